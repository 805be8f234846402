//! A replica process, and the directory it keeps its copy in.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::Signal;

use super::data::DataConnection;
use super::network::Network;
use super::ports::Ports;
use super::process::Process;
use super::relay::{Relay, Request, Spoiled};
use super::{START_DEADLINE, is_served, program};

/// How a replica is run.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// What is run: Longhorn's program, or another that takes the same command line.
    pub program: PathBuf,
    /// Name of the volume; calls for another one are refused.
    pub volume: String,
    /// Whether it counts the writes in `revision.counter`. Longhorn has that off, unless it is told otherwise.
    pub revision_counter: bool,
    /// More flags of `longhorn replica`.
    pub flags: Vec<String>,
    /// The host that it runs on, as it were.
    pub host: Host,
    /// Whether engines reach it by a relay that can spoil what passes it.
    pub relayed: bool,
}

/// Where a replica runs.
#[derive(Debug, Clone)]
pub enum Host {
    /// This machine, where nobody else finds it.
    Local,
    /// This machine, where the other host of a network finds it.
    Near(Arc<Network>),
    /// The other host of a network.
    Far(Arc<Network>),
}

impl Host {
    /// Where the world finds it.
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Local => Ipv4Addr::LOCALHOST,
            Self::Near(network) => network.near_address(),
            Self::Far(network) => network.address(),
        }
    }

    /// A command that runs there.
    fn command(&self, program: &Path) -> Command {
        match self {
            Self::Local | Self::Near(_) => Command::new(program),
            Self::Far(network) => network.command(program),
        }
    }
}

impl ReplicaOptions {
    /// Longhorn's replica of a volume, without a revision counter.
    ///
    /// # Panics
    /// When Longhorn was not built.
    #[must_use]
    pub fn of(volume: &str) -> Self {
        Self::by(program(), volume)
    }

    /// A program's replica of a volume, without a revision counter.
    #[must_use]
    pub fn by(program: PathBuf, volume: &str) -> Self {
        Self {
            program,
            volume: volume.to_owned(),
            revision_counter: false,
            flags: Vec::new(),
            host: Host::Local,
            relayed: false,
        }
    }
}

/// A replica on ports of its own; ended on drop, its directory left where it is.
#[derive(Debug)]
pub struct Replica {
    process: Process,
    /// The earlier processes, for their logs.
    ended: Vec<Process>,
    ports: Ports,
    relay: Option<Relay>,
    directory: PathBuf,
    size: u64,
    options: ReplicaOptions,
}

impl Replica {
    /// Starts it in a directory, which it makes, with a volume of `size` bytes where there is none, if that is not 0, and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve in time.
    #[must_use]
    pub fn start(directory: &Path, size: u64, options: ReplicaOptions) -> Self {
        let ports = Ports::free();
        let mut this = Self {
            process: spawn(directory, size, &options, &ports),
            ended: Vec::new(),
            ports,
            relay: None,
            directory: directory.to_owned(),
            size,
            options,
        };
        this.wait_until_it_serves();
        this.relay = this.options.relayed.then(|| Relay::before(this.served()));
        this
    }

    /// Where its process listens: as a replica, for data connections, and as a sync agent.
    fn served(&self) -> [SocketAddr; 3] {
        let address = self.options.host.address();
        [0, 1, 2].map(|number| SocketAddr::from((address, self.ports.address(number).port())))
    }

    fn wait_until_it_serves(&mut self) {
        let served = self.served();
        self.process.wait_until("serve", START_DEADLINE, || {
            served.into_iter().all(is_served)
        });
    }

    /// Its address as engines and the command line want it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("tcp://{}", self.control())
    }

    /// Where it serves gRPC.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        let relay = self.relay.as_ref().map(Relay::address);
        relay.unwrap_or_else(|| self.served()[0])
    }

    /// Where it takes data connections.
    #[must_use]
    pub fn data(&self) -> SocketAddr {
        self.served()[1]
    }

    /// Where its sync agent serves gRPC.
    #[must_use]
    pub fn sync_agent(&self) -> SocketAddr {
        self.served()[2]
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the process that runs, or ran last, has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// A data connection, beside the engine's: a replica serves anybody, while it is open.
    ///
    /// # Panics
    /// When there is nobody.
    #[must_use]
    pub fn connect(&self) -> DataConnection {
        DataConnection::tcp(self.data()).unwrap_or_else(|error| panic!("{}: {error}", self.data()))
    }

    /// Spoils its next answer to such a request of an engine.
    ///
    /// # Panics
    /// When engines do not reach it by a relay.
    pub fn spoil(&self, request: Request, how: Spoiled) {
        match &self.relay {
            Some(relay) => relay.spoil(request, how),
            None => panic!("there is no relay before {}", self.control()),
        }
    }

    /// Kills it, and its sync agent.
    ///
    /// # Panics
    /// When it has ended.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(START_DEADLINE);
    }

    /// Stops it, and its sync agent, as if their host had no time for them.
    ///
    /// # Panics
    /// When it has ended.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// When it has ended.
    pub fn thaw(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Starts it anew, on the same directory and ports, and waits until it serves. If it still runs, it is killed first.
    ///
    /// # Panics
    /// When it does not serve in time.
    pub fn restart(&mut self) {
        if self.process.ended().is_none() {
            self.kill();
        }
        let new = spawn(&self.directory, self.size, &self.options, &self.ports);
        self.ended.push(std::mem::replace(&mut self.process, new));
        self.wait_until_it_serves();
    }
}

fn spawn(directory: &Path, size: u64, options: &ReplicaOptions, ports: &Ports) -> Process {
    let mut command = options.host.command(&options.program);
    let listen = SocketAddr::from((options.host.address(), ports.address(0).port()));
    command
        .args(["--volume-name", &options.volume, "replica"])
        .args(["--listen", &listen.to_string()]);
    if size > 0 {
        command.args(["--size", &size.to_string()]);
    }
    command.args(["--sync-agent-port-count", &Ports::SYNC_AGENT.to_string()]);
    if !options.revision_counter {
        command.arg("--disableRevCounter");
    }
    command.args(&options.flags).arg(directory);
    let name = format!("replica {listen}, {}", directory.display());
    Process::start(name, &mut command)
}
