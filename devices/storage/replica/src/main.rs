//! `paddock-replica`: a replica process, as Longhorn's engines expect one.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use paddock_replica::process::{self, Settings};
use paddock_replica::volume::replica::Options;
use paddock_replica::{data, size};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A replica of a volume, in the protocol and the files of Longhorn's v1 data engine.
///
/// An engine, Paddock's or Longhorn's, opens replicas on several hosts and writes to all of them. One process serves one directory; a directory
/// that this program wrote opens in Longhorn's own replica, and the other way round.
#[derive(Debug, Parser)]
#[command(name = "paddock-replica", version)]
struct Cli {
    /// The volume's name. Calls that name another are refused, and so is nothing where it is not given.
    #[arg(long, value_name = "NAME", default_value = "", global = true)]
    volume_name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the replica in a directory, until it is told to end (SIGTERM, SIGINT).
    ///
    /// With --listen HOST:P it takes control calls (gRPC) on port P, data on P+1, calls of the sync agent on P+2, and receives the files of a
    /// rebuild on the ports from P+3 on. There is no authentication: listen only where nobody else is.
    ///
    /// The directory has to be on a file system with O_DIRECT and FIEMAP, such as ext4 or XFS.
    ///
    /// At the end what was written is on stable storage, and the replica stays as open as an engine left it: only an engine closes it.
    Replica(ReplicaArgs),
}

#[derive(Debug, Args)]
struct ReplicaArgs {
    /// Where to listen; the ports after it are used as well.
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:9502")]
    listen: String,
    /// Make a volume of this size where there is none: bytes, or such as 10G.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<i64>,
    /// A raw image that holds what the volume's own layers do not.
    #[arg(long, value_name = "FILE")]
    backing_file: Option<PathBuf>,
    /// Do not count writes. Engine and replicas have to agree on that.
    #[arg(long = "disableRevCounter")]
    disable_rev_counter: bool,
    /// An unmap marks the snapshots below the head as removed first, so that their space can be given back.
    #[arg(long)]
    unmap_mark_disk_chain_removed: bool,
    /// How data connections come: by TCP, or on the unix socket of the volume.
    #[arg(long, value_enum, default_value_t)]
    data_server_protocol: Protocol,
    /// Whether to serve the sync agent, which transfers files and purges snapshots.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sync_agent: bool,
    /// How many files may be received at once, each on a port of its own.
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    sync_agent_port_count: u16,
    /// This process's name. Calls that name another are refused.
    #[arg(long, value_name = "NAME", default_value = "")]
    replica_instance_name: String,
    /// The most snapshots that are not to go.
    #[arg(long, value_name = "COUNT", default_value_t = 250, value_parser = clap::value_parser!(i32).range(1..=250))]
    snapshot_max_count: i32,
    /// The most space that snapshots may take, which the engine looks after; 0 for any.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
    snapshot_max_size: i64,
    /// The directory of the replica. It is made where there is none.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Protocol {
    #[default]
    Tcp,
    Unix,
}

fn resolve(listen: &str) -> Result<SocketAddr, String> {
    let fail = |reason: String| {
        format!("--listen {listen}: {reason}; give a host and a port, such as 127.0.0.1:9502")
    };
    let mut found: Vec<_> = listen
        .to_socket_addrs()
        .map_err(|error| fail(error.to_string()))?
        .collect();
    // Where a name has both, IPv4, as Longhorn does.
    found.sort_by_key(|address| matches!(address.ip(), IpAddr::V6(_)));
    found
        .into_iter()
        .next()
        .ok_or_else(|| fail("has no address".to_owned()))
}

fn settings(cli: Cli) -> Result<Settings, String> {
    let Command::Replica(args) = cli.command;
    let listen = resolve(&args.listen)?;
    if args.data_server_protocol as u8 == Protocol::Unix as u8 && cli.volume_name.is_empty() {
        return Err(
            "--data-server-protocol unix needs --volume-name, which the socket is named after"
                .to_owned(),
        );
    }
    let data = match args.data_server_protocol {
        Protocol::Tcp => {
            let port = listen
                .port()
                .checked_add(1)
                .ok_or("--listen: there are no ports after this one")?;
            data::Address::Tcp(SocketAddr::new(listen.ip(), port))
        }
        Protocol::Unix => data::Address::Unix(process::unix_socket(&cli.volume_name)?),
    };
    Ok(Settings {
        volume: cli.volume_name,
        instance: args.replica_instance_name,
        listen,
        data,
        size: args.size,
        agent_ports: args.sync_agent.then_some(args.sync_agent_port_count),
        options: Options {
            directory: args.directory,
            backing_file: args.backing_file,
            count_revisions: !args.disable_rev_counter,
            unmap_marks: args.unmap_mark_disk_chain_removed,
            most_snapshots: args.snapshot_max_count,
            most_snapshot_bytes: args.snapshot_max_size,
        },
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(log)
        .with(LevelFilter::INFO)
        .init();
    let result =
        settings(cli).and_then(|settings| process::run(settings).map_err(|error| error.text()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
