//! The sync agent: transfers files between replicas when one is rebuilt, and purges snapshots. gRPC starts it, HTTP carries the files as
//! Longhorn's own tools do. Peers are not trusted: names are plain, ranges are within the file, and a file that did not come whole is none.

mod fold;
mod http;
mod purge;
mod receive;
mod send;
mod service;
mod sync;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::files::names;
use crate::volume::replica::Replica;
use paddock_longhorn::Identity;

/// Bytes of a piece of a file, as Longhorn's senders cut it.
const PIECE: u64 = 2 << 20;

/// How long a request of a transfer may take where the engine does not say, as Longhorn's.
const HTTP_DEADLINE: Duration = Duration::from_secs(30);

/// How long a request of a transfer may take, of which an engine says so many seconds.
fn http_deadline(seconds: i32) -> Duration {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => HTTP_DEADLINE,
    }
}

/// The agent of a replica.
#[derive(Debug, Clone)]
pub struct Agent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    replica: Arc<Replica>,
    identity: Identity,
    /// Where files are received.
    address: IpAddr,
    ports: Mutex<Ports>,
    work: Mutex<Work>,
}

/// The ports for receivers.
#[derive(Debug)]
struct Ports {
    first: u16,
    count: u16,
    next: u16,
    used: BTreeSet<u16>,
}

/// A port that is given back when it is dropped.
#[derive(Debug)]
struct Port {
    shared: Arc<Shared>,
    number: u16,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.shared.ports.lock().used.remove(&self.number);
    }
}

/// What the agent is at, or was at last.
#[derive(Debug, Default)]
struct Work {
    purge: Job,
    rebuild: Job,
    /// Where the files of the rebuild come from.
    sources: Vec<String>,
}

/// A piece of work.
#[derive(Debug, Clone, Default)]
struct Job {
    running: bool,
    error: String,
    /// `in_progress`, `complete` or `error`, and nothing before the first.
    state: &'static str,
    progress: Arc<Progress>,
}

/// How much of it is done.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    fn start(total: u64) -> Arc<Self> {
        Arc::new(Self {
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
        })
    }

    fn add(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    fn per_cent(&self) -> i32 {
        let total = self.total.load(Ordering::Relaxed).max(1);
        let done = self.done.load(Ordering::Relaxed).min(total);
        i32::try_from(u128::from(done) * 100 / u128::from(total)).unwrap_or(100)
    }
}

impl Job {
    fn begin(total: u64) -> Self {
        Self {
            running: true,
            error: String::new(),
            state: "in_progress",
            progress: Progress::start(total),
        }
    }

    fn end(&mut self, result: std::result::Result<(), String>) {
        self.running = false;
        match result {
            Ok(()) => self.state = "complete",
            Err(error) => {
                self.state = "error";
                self.error = error;
            }
        }
    }

    fn per_cent(&self) -> i32 {
        match self.state {
            "complete" => 100,
            _ => self.progress.per_cent(),
        }
    }
}

impl Agent {
    /// The agent of a replica, which receives files on `count` ports from `first` on.
    #[must_use]
    pub fn new(
        replica: Arc<Replica>,
        identity: Identity,
        address: IpAddr,
        first: u16,
        count: u16,
    ) -> Self {
        let ports = Mutex::new(Ports {
            first,
            count,
            next: 0,
            used: BTreeSet::new(),
        });
        let shared = Shared {
            replica,
            identity,
            address,
            ports,
            work: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Removes what an earlier process did not receive to the end.
    ///
    /// # Errors
    /// When it stays.
    pub fn clean(&self) -> Result<()> {
        let directory = match self.shared.replica.directory() {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            other => other?,
        };
        for name in directory.names()? {
            if names::is_receiving(&name) {
                tracing::info!(file = %name, "removing what was not received to its end");
                directory.remove(&name)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// A port that no receiver has.
    fn port(self: &Arc<Self>) -> Result<Port> {
        let mut ports = self.ports.lock();
        for _ in 0..ports.count {
            let number = ports.first.checked_add(ports.next);
            ports.next = (ports.next + 1) % ports.count;
            if let Some(number) = number.filter(|number| !ports.used.contains(number)) {
                ports.used.insert(number);
                let shared = Arc::clone(self);
                return Ok(Port { shared, number });
            }
        }
        Err(Error::refused("out of ports"))
    }
}

fn check_transferable(name: &str) -> Result<()> {
    match names::is_transferable(name) {
        true => Ok(()),
        false => Err(Error::refused(format!(
            "{name:?} is not a file of a replica that is transferred"
        ))),
    }
}
