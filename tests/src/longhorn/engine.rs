//! Longhorn's own engine, which it also calls controller, with its `socket` frontend.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::cli::Cli;
use super::data::DataConnection;
use super::ports::Ports;
use super::process::Process;
use super::replica::Replica;
use super::{START_DEADLINE, is_served, program};

/// How an engine is run.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Whether replicas have to count the writes, and agree.
    pub revision_counter: bool,
    /// How long a replica may leave everything unanswered; 8 s if it is not said.
    pub replica_timeout: Option<Duration>,
    /// More flags of `longhorn controller`.
    pub flags: Vec<String>,
}

/// An engine with its volume up; ended on drop.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    ports: Ports,
    volume: String,
}

impl Engine {
    /// Starts it on replicas that are not open, and waits until the volume can be used.
    ///
    /// # Panics
    /// When that is not in time.
    #[must_use]
    pub fn start(volume: &str, size: u64, replicas: &[&Replica], options: &EngineOptions) -> Self {
        let ports = Ports::free();
        let mut command = Command::new(program());
        let size = size.to_string();
        command
            .arg("controller")
            .args(["--listen", &ports.address(0).to_string()])
            .args(["--size", &size, "--current-size", &size])
            .args(["--frontend", "socket"]);
        for replica in replicas {
            command.args(["--replica", &replica.address()]);
        }
        if !options.revision_counter {
            command.arg("--disableRevCounter");
        }
        if let Some(timeout) = options.replica_timeout {
            command.args(["--engine-replica-timeout", &timeout.as_secs().to_string()]);
        }
        command.args(&options.flags).arg(volume);
        let mut this = Self {
            process: Process::start(format!("engine of {volume}"), &mut command),
            ports,
            volume: volume.to_owned(),
        };
        let (socket, controller) = (this.socket(), this.controller());
        this.process
            .wait_until("have its volume up", START_DEADLINE, || {
                is_served(controller) && UnixStream::connect(&socket).is_ok()
            });
        this
    }

    /// Where it serves gRPC.
    #[must_use]
    pub fn controller(&self) -> SocketAddr {
        self.ports.address(0)
    }

    /// Where it takes data connections.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/longhorn-{}.sock", self.volume))
    }

    /// A data connection.
    ///
    /// # Panics
    /// When there is nobody.
    #[must_use]
    pub fn connect(&self) -> DataConnection {
        let socket = self.socket();
        DataConnection::unix(&socket)
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
    }

    /// Longhorn's command line for it.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(self.controller(), &self.volume)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Ends it in order: the replicas are closed, and can be opened again.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn shut_down(mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait(START_DEADLINE);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Longhorn leaves it there.
        let _ = fs::remove_file(self.socket());
    }
}
