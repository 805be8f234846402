//! What becomes of requests that fail on the host: the error policies `stop` and `retry`, on any [`Disk`].
//!
//! The policy `report` needs nothing of this: its disk is not wrapped. Here a request that the host fails is *held*, with everything
//! submitted after it on any queue of the disk, until the disk works again: it is tried on the handle there is, then the disk is opened anew
//! by its stable name, then what is held is replayed in the order of its submission, before anything newer. The guest sees a slow disk.
//!
//! Queues work on their users' threads (`queue`), attempts are made by a thread that lives while something is held and may
//! block (`supervisor`), and what they agree on is in `state`. The guest chooses the requests, and how many there are up to the depth of its
//! queues; it has no say in what is tried when.
//!
//! # What is not held
//! - What the guest did wrong: out of range, read-only, unsupported.
//! - A discard that fails: it is a hint, and no reason to stop anything.
//! - A flush that fails on a disk whose flushes cannot be repeated ([`Disk::repeats_flush`]). The kernel's page cache forgets what it
//!   could not write, and a second `fsync` would succeed: a lie. The guest gets the error. For the same reason the next flush fails after such a
//!   disk was opened anew while it had writes that no flush had covered: the cache of a device that vanished went with it.
//!   With `O_DIRECT` the cache that a flush empties is the device's own. A device that loses what it acknowledged when it
//!   vanishes (its volatile cache, at a power failure) is not found out here, nor by a kernel that runs on one.

mod handle;
mod queue;
mod state;
mod supervisor;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::{Capabilities, Disk, DiskQueue, ResizeError};
use queue::HoldQueue;
use state::{Shared, StartSupervisor};

/// What to do about a request that fails on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Hold until [`HoldingDisk::resume`]; each call is one attempt.
    Stop,
    /// Hold and try again by itself.
    Retry(Retry),
}

/// How to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How long after the first failure to go on trying.
    pub deadline: Duration,
    /// Time from one attempt to the next, and before the first.
    pub interval: Duration,
    /// What to do at the deadline.
    pub then: Then,
}

/// What to do with a disk that did not recover in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// What is held is answered with its error, and so is what fails later, until something succeeds. The disk is still looked for.
    Report,
    /// As [`Policy::Stop`]; a resume starts the time anew.
    Stop,
}

/// Opens the disk anew by its stable name. May block. Where it fails with [`io::ErrorKind::ResourceBusy`] the handle in use
/// may be what is in the way; it is then closed first.
pub type Opener = Box<dyn Fn() -> io::Result<Arc<dyn Disk>> + Send + Sync>;

/// Is told what happens, in order and on any thread, while a lock is held: it must neither block nor call back.
pub type Listener = Box<dyn Fn(News) + Send + Sync>;

/// What an owner wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Requests are held from now on. Once until it has recovered.
    Failed(Failure),
    /// Nothing more will be tried without [`HoldingDisk::resume`]. After each attempt that failed.
    Stopped(Failure),
    /// The deadline is over: failures are reported to the guest from now on.
    Reporting(Failure),
    /// A request has succeeded on the disk, and nothing is held any more. Once after each `Failed`, unless the disk is closed before.
    Recovered {
        /// From the failure to now.
        after: Duration,
        /// Attempts that it took.
        attempts: u32,
    },
}

/// The failure on which requests were held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What the host said last.
    pub errno: i32,
    /// First byte of the request that failed first; `None` for a flush.
    pub offset: Option<u64>,
    /// When it failed first.
    pub since: SystemTime,
}

/// How a disk is, for its owner's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Since when it has not been well, and why; `None` while it is.
    pub failure: Option<Failure>,
    /// Nothing is tried without a resume.
    pub stopped: bool,
    /// Failures are reported, for the deadline is over.
    pub reporting: bool,
    /// Requests that are held, or were and have not been answered yet. Zero while it is not well: those that were held were dropped, and the next
    /// request finds out.
    pub requests: usize,
    /// Attempts since the failure.
    pub attempts: u32,
    /// Requests that failed on the host, since the disk was made; attempts of the same count each.
    pub errors: u64,
}

/// A disk whose failed requests are held.
pub struct HoldingDisk {
    shared: Arc<Shared>,
}

impl HoldingDisk {
    /// Wraps `disk`. Without an `opener` attempts are made on this handle alone.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        policy: Policy,
        opener: Option<Opener>,
        listener: Listener,
    ) -> Self {
        Self::started_by(supervisor::start, disk, policy, opener, listener)
    }

    fn started_by(
        start: StartSupervisor,
        disk: Arc<dyn Disk>,
        policy: Policy,
        opener: Option<Opener>,
        listener: Listener,
    ) -> Self {
        Self {
            shared: Arc::new(Shared::new(disk, policy, opener, listener, start)),
        }
    }

    /// Tries at once, if something is held: on the handle there is, then on a new one. Returns without waiting for the outcome.
    ///
    /// # Errors
    /// When the host gives no thread. It has stopped again then, and tells so.
    pub fn resume(&self) -> io::Result<()> {
        self.shared.resume()
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

impl Disk for HoldingDisk {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let disk = self.shared.lock().disk.clone();
        match disk {
            Some(disk) => disk.resize(size),
            // It failed, was closed, and could not be opened anew so far.
            None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        }
    }

    fn repeats_flush(&self) -> bool {
        self.shared.repeats_flush()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        Ok(Box::new(HoldQueue::open(Arc::clone(&self.shared), depth)?))
    }
}

impl Drop for HoldingDisk {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for HoldingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldingDisk")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
