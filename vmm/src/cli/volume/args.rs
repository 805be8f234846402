//! The command line of `paddock volume`, with its help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use paddock_api::spec::{ByteSize, VolumeName};
use paddock_storage::longhorn::{ReplicaAddress, VolumeOptions};

use crate::cli::args::LogLevel;

/// What `paddock volume --help` tells at its end.
pub const NOTES: &str = "\
Volumes and replicas
  A volume is kept by replica processes, best on several hosts: Longhorn's, or paddock-replica. Each serves a directory on three ports, of which the \
first is named. They have no authentication: let them listen only where nobody else is, and tell each the volume's name, so that one of another \
volume is refused. Every command names all of the volume's replicas, those that are lost included.
  A replica's directory has to be on a file system with O_DIRECT and FIEMAP, such as ext4 or XFS.
  The VM that uses a volume has the engine that writes to all of its replicas (`paddock run --disk volume=NAME,replica=HOST:PORT,…`). \
These commands are for the time when none does: a replica that is open is refused.
  A replica that was not closed, because its VM was killed, is in its process's memory still open: start that process anew. Where none of the replicas was \
closed, `paddock volume check --repair` then makes them the same; so does the next VM, while it runs. Where others were, that one failed before, and \
`paddock volume rebuild` gives it what it may miss.
  Replicas count the writes they have seen, unless they are told not to, and one that missed some is known by that and not used until it is rebuilt. \
Where it comes back alone, nobody knows that it missed any: name all of them, and look whether the others come back, too.

Exit status
  0  done; from check: all replicas are the same; from inspect: the replicas were asked, whatever they have
  1  an error, or something was found that is not as it should be
  2  the command line is wrong

Examples
  Each replica is a service of its own; to try it out, start each of these three in a terminal of its own:

  paddock-replica --volume-name data replica --listen 127.0.0.1:10000 /srv/replica1
  paddock-replica --volume-name data replica --listen 127.0.0.1:20000 /srv/replica2
  paddock-replica --volume-name data replica --listen 127.0.0.1:30000 /srv/replica3

  Then, in a fourth, a volume of zeros; with `--from debian.raw` instead of `--size 10G` it holds what that image does:

  replicas=127.0.0.1:10000,127.0.0.1:20000,127.0.0.1:30000
  paddock volume create data --size 10G --replica $replicas
  paddock volume inspect data --replica $replicas
  paddock volume snapshot create data before-upgrade --replica $replicas
  paddock volume snapshot remove data before-upgrade --replica $replicas
  paddock volume rebuild data --replica $replicas
  paddock volume check data --replica $replicas && echo all the same

  paddock run --kernel vmlinuz --disk volume=data,replica=127.0.0.1:10000,replica=127.0.0.1:20000,replica=127.0.0.1:30000";

/// `paddock volume`
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,

    /// Log this and what is more severe, to standard error
    #[arg(
        long,
        value_name = "LEVEL",
        help_heading = "Logging",
        value_enum,
        default_value_t = LogLevel::Error,
        global = true
    )]
    pub log_level: LogLevel,

    /// What to do.
    #[command(subcommand)]
    pub command: VolumeCommand,
}

/// What can be done with a volume that no VM uses.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume on replicas that have none
    ///
    /// Each replica gets its files. One that has a volume already is refused, and then nothing is made; one that was started with the very size, and was
    /// not written, is as good as new.
    Create(CreateArgs),
    /// Show the replicas: what each has, and which miss something
    ///
    /// Nothing is changed, and whatever is found, the exit status is 0. What is in a replica that was not closed is not looked at, for looking would make
    /// it seem clean.
    Inspect(WhichArgs),
    /// Its snapshots: take, list, go back to one, remove one
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Give replicas that miss something, or everything, what the others have
    ///
    /// What an engine would leave out is rebuilt: replicas that missed writes, that were not rebuilt to the end, and those that have no files, because they
    /// replace one that is lost. At least one replica has to be complete. What a rebuilt replica had of its own is gone: where more replicas would be
    /// overwritten than are there to rebuild from, or one does not look like the others' volume, --anew has to name them.
    Rebuild(RebuildArgs),
    /// Read all replicas and compare them
    ///
    /// Says what is not alike: sizes, snapshots, counters of writes, and the first range that differs. All of each replica is read.
    Check(CheckArgs),
}

/// Which volume.
#[derive(Debug, Clone, Args)]
pub struct WhichArgs {
    /// The volume's name, which replicas that know theirs check
    #[arg(value_name = "NAME")]
    pub name: VolumeName,

    /// Where the replicas are: the first port of each; several with commas, or the option again
    #[arg(
        long,
        value_name = "HOST:PORT",
        required = true,
        value_delimiter = ',',
        action = clap::ArgAction::Append
    )]
    pub replica: Vec<ReplicaAddress>,

    /// How long a replica may be silent before it is given up, while another is there to go on with
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(8..=30))]
    pub timeout: u64,
}

impl WhichArgs {
    /// As an engine wants it.
    pub fn options(&self) -> VolumeOptions {
        VolumeOptions {
            timeout: Duration::from_secs(self.timeout),
            ..VolumeOptions::new(self.name.to_string(), self.replica.clone())
        }
    }
}

/// `paddock volume create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Which one.
    #[command(flatten)]
    pub which: WhichArgs,

    /// How large: a multiple of 4 KiB, such as 10G [default: as large as the image]
    #[arg(long, value_name = "SIZE", required_unless_present = "from")]
    pub size: Option<ByteSize>,

    /// Fill it with what a raw image, or a block device, has
    #[arg(long, value_name = "IMAGE")]
    pub from: Option<PathBuf>,
}

/// `paddock volume snapshot`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take one of what the volume is now
    Create(SnapshotCreateArgs),
    /// List them, the oldest first
    List(WhichArgs),
    /// Make the volume what it was at a snapshot. What was written since is gone, unless a later snapshot has it
    Revert(SnapshotArgs),
    /// Remove one, and give back what it takes
    ///
    /// Of all replicas, which have to be complete. Each merges it into the one above it, as well as those that a rebuild or growth made; what the volume and its
    /// other snapshots have stays as it is. The newest one is marked as removed and stays until there is a later one, for the volume is based on it; so does one from
    /// which several others branch off. Give the command again then.
    Remove(SnapshotArgs),
}

/// `paddock volume snapshot create`
#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// Which one.
    #[command(flatten)]
    pub which: WhichArgs,

    /// The snapshot's name: up to 200 letters, digits, '-', '_' and '.' [default: one that nothing else has]
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,

    /// Give it a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
}

/// `paddock volume snapshot revert` and `remove`
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Which one.
    #[command(flatten)]
    pub which: WhichArgs,

    /// The snapshot's name
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,
}

/// `paddock volume rebuild`
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Which one.
    #[command(flatten)]
    pub which: WhichArgs,

    /// Rebuild this one of them, even if it seems complete, or seems to be another volume's
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', action = clap::ArgAction::Append)]
    pub anew: Vec<ReplicaAddress>,
}

/// `paddock volume check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Which one.
    #[command(flatten)]
    pub which: WhichArgs,

    /// Make replicas that were not closed the same first, as the next VM would
    #[arg(long)]
    pub repair: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn parse(line: &str) -> Result<VolumeArgs, clap::Error> {
        let words = ["paddock", "volume"].into_iter();
        let words = words.chain(line.split_whitespace());
        match Cli::try_parse_from(words)?.command {
            Command::Volume(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replicas_are_named_one_by_one_or_together() {
        let VolumeCommand::Inspect(which) =
            parse("inspect v --replica a:1,tcp://b:2 --replica [::1]:3")
                .unwrap()
                .command
        else {
            panic!("not inspect")
        };
        let options = which.options();
        let replicas: Vec<_> = options.replicas.iter().map(ToString::to_string).collect();
        assert_eq!(replicas, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(options.timeout, Duration::from_secs(8));
        assert_eq!(options.name, "v");
    }

    #[test]
    fn what_can_be_asked_for() {
        let args = parse("create v --replica a:1 --size 10G --from i.raw --json").unwrap();
        assert!(args.json);
        let VolumeCommand::Create(create) = args.command else {
            panic!("not create")
        };
        assert_eq!(create.size.map(ByteSize::bytes), Some(10 << 30));
        assert_eq!(create.from, Some(PathBuf::from("i.raw")));
        let args = parse("snapshot create v s --replica a:1 --label a=b=c --label d=").unwrap();
        let VolumeCommand::Snapshot(SnapshotCommand::Create(create)) = args.command else {
            panic!("not create")
        };
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(create.label, [label("a", "b=c"), label("d", "")]);
        assert_eq!(create.snapshot.as_deref(), Some("s"));
        let args = parse("rebuild v --replica a:1,b:1 --anew b:1").unwrap();
        let VolumeCommand::Rebuild(rebuild) = args.command else {
            panic!("not rebuild")
        };
        assert_eq!(rebuild.anew, rebuild.which.replica[1..]);
        assert!(parse("check v --replica a:1 --repair").is_ok());
        assert!(parse("snapshot revert v s --replica a:1").is_ok());
        let args = parse("snapshot remove v s --replica a:1 --json").unwrap();
        let VolumeCommand::Snapshot(SnapshotCommand::Remove(remove)) = args.command else {
            panic!("not remove")
        };
        assert_eq!((remove.snapshot.as_str(), args.json), ("s", true));
    }

    #[test]
    fn usage_errors() {
        for bad in [
            "",
            "create v --replica a:1",
            "create v --size 1G",
            "create v --replica a --size 1G",
            "create v --replica a:1 --size x",
            "create .. --replica a:1 --size 1G",
            "inspect --replica a:1",
            "inspect v",
            "inspect v --replica a:1 --timeout 7",
            "snapshot create v s --replica a:1 --label x",
            "snapshot revert v --replica a:1",
            "snapshot remove v --replica a:1",
            "snapshot remove v s",
            "rebuild v --replica a:1 --anew x",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn the_help_tells_what_matters() {
        let help = parse("--help").unwrap_err().to_string();
        for text in [
            "paddock-replica",
            "Exit status",
            "check --repair",
            "rebuild",
            "FIEMAP",
        ] {
            assert!(help.contains(text), "{text} is not in\n{help}");
        }
    }
}
