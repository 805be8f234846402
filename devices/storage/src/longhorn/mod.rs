//! Replicated volumes, in the language of Longhorn's v1 data engine: the engine is in this process, and talks to the replica processes itself.
//!
//! A [`Volume`] is a [`Disk`]. Each of its queues has connections of its own to all replicas (`queue`); a control thread (`control`) opens and closes
//! them, watches over them, and takes snapshots, rebuilds replicas and makes the volume larger between two requests (`shared`).
//!
//! # What is promised
//! - A write is acknowledged when all replicas that are not given up have it, and one that missed it is never read again.
//! - What an acknowledgement by a replica is worth is the replica's: Longhorn's write by O_DIRECT and never flush what the file system has to remember of
//!   a file that grew. Their protocol has no flush; a flush here is a barrier, and waits for the writes before it. One host's loss of power is what the
//!   other replicas are for.
//! - Two writes to the same 4 KiB are never under way at once, so that replicas do not differ for good.
//! - When all replicas have failed, those that missed nothing that was acknowledged can be opened again ([`Volume::reopen`]), and no others.
//! - Replicas that were not closed are compared, and made the same, while only one of them is read. One that was not closed where others were, or was not
//!   written when others were, is left: also where writes are not counted, as far as the replicas' clocks tell the same time. Where none was closed, one that
//!   is empty, or was last written more than 5 s before another, is taken in to be made the same, and is good for nothing before it is.
//!
//! Nothing keeps two engines from using the same replicas once they are open: whoever opens a volume has to know that nobody else does. A replica that is open
//! is refused.
//!
//! The guest decides what is read and written; replicas answer what they like, and are given up for it. Neither can make more than a volume fail.

mod control;
#[cfg(feature = "controller")]
mod controller;
mod counters;
mod error;
mod handle;
mod member;
mod offline;
mod options;
mod queue;
mod ranges;
mod shared;
mod socket;
mod status;
mod text;
mod torn;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use self::control::{Control, ControlThread};
use self::queue::VolumeQueue;
use crate::{Capabilities, Disk, DiskQueue, ResizeError};

#[cfg(feature = "controller")]
pub use controller::{Controller, ControllerOptions};
pub use error::VolumeError;
pub use handle::VolumeHandle;
pub use member::{Failure, Mode};
pub use offline::{Comparison, Difference, Found, Inside, Offline, Standing, Watch};
pub use options::{DEFAULT_TIMEOUT, ReplicaAddress, TIMEOUTS, Taking, VolumeOptions};
pub use socket::EngineSocket;
pub use status::{
    Activity, Listener, Nobody, Progress, Purge, Rebuilt, ReplicaStatus, Snapshot, Taken,
};

/// Bytes that a replica stores as one: smaller writes are slower, and writes to the same one wait for each other.
const SECTOR: u64 = 4096;

/// The smallest that can be read or written.
const BLOCK: u32 = 512;

fn capabilities(size: u64, read_only: bool) -> Capabilities {
    Capabilities {
        size,
        logical_block_size: BLOCK,
        physical_block_size: 4096,
        read_only,
        // Longhorn's replicas can lose a snapshot's data to it, and it never makes anything read as zeros for good.
        discard: false,
        discard_granularity: 0,
        // Replicas get them as data, cut here and not by the guest.
        write_zeroes: true,
        flush: true,
    }
}

/// A replicated volume, open. Calls that change it wait until they are done; they are for threads that may block.
///
/// Dropping it drops its connections and leaves the replicas open, as a crash would: [`close`](Self::close) it.
#[derive(Debug)]
pub struct Volume {
    control: Arc<Control>,
    thread: ControlThread,
}

impl Volume {
    /// Opens a volume: all replicas that can be used, of which there is to be one.
    ///
    /// # Errors
    /// Says what is wrong with which replica, and what to do.
    pub fn open(options: VolumeOptions, listener: Arc<dyn Listener>) -> Result<Self, VolumeError> {
        options.check()?;
        let host = {
            let volume = options.name.clone();
            move |problem: String| VolumeError::Host { volume, problem }
        };
        let thread = ControlThread::start().map_err(|error| host(error.to_string()))?;
        let opened = thread.run(control::open(options, listener)).wait();
        let control = opened.ok_or_else(|| VolumeError::Options {
            problem: "the volume's thread ended while it was opened".to_owned(),
        })??;
        Ok(Self { control, thread })
    }

    fn call<T, F>(&self, call: impl FnOnce(Arc<Control>) -> F) -> Result<T, VolumeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let result = self.thread.run(call(Arc::clone(&self.control))).wait();
        result.unwrap_or_else(|| {
            Err(VolumeError::State {
                volume: self.name().to_owned(),
                problem: "its thread has ended".to_owned(),
            })
        })
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.control.options.name
    }

    /// The way to it for those who may not block. It keeps nothing open.
    #[must_use]
    pub fn handle(&self) -> VolumeHandle {
        VolumeHandle::new(&self.control, self.thread.runtime())
    }

    /// The replicas, those that failed included.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        self.control.replicas()
    }

    /// Whether the replicas are known to have the same. Those that were not closed are compared first, and meanwhile the volume can be used, but not
    /// changed otherwise; closed before that, they will be compared the next time.
    #[must_use]
    pub fn is_compared(&self) -> bool {
        self.control.shared.primary().is_none()
    }

    /// How far the present rebuild or comparison is; `None` while there is none.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.control.progress()
    }

    /// Takes a snapshot of what has been acknowledged. All I/O stands still meanwhile; a file system that is to be whole in it must be frozen by the guest.
    /// Of what has not been acknowledged it has what a disk has when its power fails: a large write may be in it in part.
    /// Without a name it gets one.
    ///
    /// # Errors
    /// When the name is taken or cannot be one, when there are too many, and while a replica is rebuilt.
    pub fn snapshot(
        &self,
        name: Option<String>,
        labels: HashMap<String, String>,
    ) -> Result<Taken, VolumeError> {
        self.call(|control| async move { control.snapshot(name, labels).await })
    }

    /// The snapshots there are, the oldest first.
    ///
    /// # Errors
    /// When no replica can be asked.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        self.call(|control| async move { control.snapshots().await })
    }

    /// Makes the volume what it was at a snapshot. Only while it has no queues: nobody uses it.
    ///
    /// # Errors
    /// When there is no such snapshot, somebody uses the volume, or a replica is rebuilt.
    pub fn revert(&self, snapshot: &str) -> Result<(), VolumeError> {
        let snapshot = snapshot.to_owned();
        self.call(|control| async move { control.revert(&snapshot).await })
    }

    /// Notes on all replicas that a snapshot is to go. What it has stays until they are [purged](Self::start_purge).
    ///
    /// # Errors
    /// When there is no such snapshot, a replica is rebuilt, or one cannot note it; it can be asked for again.
    pub fn remove_snapshot(&self, name: &str) -> Result<(), VolumeError> {
        let name = name.to_owned();
        self.call(|control| async move { control.remove_snapshot(&name).await })
    }

    /// Has all replicas begin to give back what snapshots have that are to go, and those that nobody asked for. They do it by themselves.
    ///
    /// # Errors
    /// When a replica is rebuilt, or one does not begin.
    pub fn start_purge(&self) -> Result<(), VolumeError> {
        self.call(|control| async move { control.start_purge().await })
    }

    /// How far they are with it.
    ///
    /// # Errors
    /// When one of them could not do it, or cannot be asked.
    pub fn purge(&self) -> Result<Purge, VolumeError> {
        self.call(|control| async move { control.purge().await })
    }

    /// Adds a replica, whose process runs and is used by nobody, and gives it everything that the others have. Takes as long as that takes; the
    /// [`Listener`] hears how far it is.
    ///
    /// # Errors
    /// When it cannot be used, or the rebuild failed; the replica is then [`Mode::Failed`], if it was added at all, and is to be removed.
    pub fn add_replica(&self, replica: ReplicaAddress) -> Result<Rebuilt, VolumeError> {
        self.call(|control| async move { control.add_replica(replica).await })
    }

    /// Lets go of a replica. What is written from now on, it misses.
    ///
    /// # Errors
    /// When there is no such replica, or it is the only one that has everything.
    pub fn remove_replica(&self, replica: &ReplicaAddress) -> Result<(), VolumeError> {
        let replica = replica.clone();
        self.call(|control| async move { control.remove_replica(&replica).await })
    }

    /// Makes the volume larger: to `size` bytes, a multiple of 4096.
    ///
    /// # Errors
    /// When it is smaller than the present size, or no replica could be made larger.
    pub fn expand(&self, size: u64) -> Result<(), VolumeError> {
        self.call(|control| async move { control.expand(size).await })
    }

    /// Serves Longhorn's tools what an engine serves them, on a listening socket of TCP, until what it returns is dropped, or the volume is. Nobody
    /// who connects is asked who he is: the socket is to be where only those come who may do everything with the volume.
    ///
    /// # Errors
    /// When the socket cannot be used.
    #[cfg(feature = "controller")]
    pub fn serve_controller(
        &self,
        listener: std::net::TcpListener,
        options: ControllerOptions,
    ) -> Result<Controller, VolumeError> {
        self.call(|control| async move { controller::serve(&control, listener, options).await })
    }

    /// Opens the replicas again, if all have failed: those that have everything that was acknowledged, and whose processes were started anew. Does nothing as long
    /// as there is one to read. Queues that were opened before go on failing: open others.
    ///
    /// Where some of them are not there yet, waits for them, for [`VolumeOptions::timeout`] since the last failed: what is not there in time has to be
    /// removed and added again.
    ///
    /// # Errors
    /// When none of them can be opened: says what is wrong with each, and what to do.
    pub fn reopen(&self) -> Result<(), VolumeError> {
        self.call(|control| async move { control.reopen().await })
    }

    /// Says that it is to be closed soon, at the end of a VM: from now on nothing is begun but the requests of its queues, and replicas that do not answer
    /// are left after a few seconds, however long they would have had, so that the others can be closed.
    pub fn expect_close(&self) {
        self.control.expect_close();
    }

    /// Begins to [`close`](Self::close), which goes on by itself. Queues get errors soon.
    pub fn begin_close(&self) {
        let control = Arc::clone(&self.control);
        // Never fails; and a replica that cannot be closed is told of.
        drop(self.thread.run(async move { control.close().await }));
    }

    /// Waits for what replicas were sent, and closes them: the next to open the volume finds them clean. Queues get errors from then on, also for what
    /// replicas have a part of: to have that done, wait for it before.
    ///
    /// # Errors
    /// Never, so far; a replica that cannot be closed is not, and will be found unclean. Replicas that hang delay it by some seconds.
    pub fn close(&self) -> Result<(), VolumeError> {
        self.call(|control| async move { control.close().await })
    }

    /// Waits for what replicas were sent, and leaves them open to another engine, which takes them as [`Taking::HandedOver`]. Queues get errors from
    /// then on, as when it is closed.
    ///
    /// Returns the replicas that have everything. That engine is to be given these and no others: one that failed here may be there again, and nothing about
    /// it says that it misses writes.
    ///
    /// # Errors
    /// While a replica is rebuilt or the replicas are compared, and when it was closed. The volume can then be used as before.
    pub fn hand_over(&self) -> Result<Vec<ReplicaAddress>, VolumeError> {
        self.call(|control| async move { control.hand_over().await })
    }
}

impl Disk for Volume {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.size(), self.control.options.read_only)
    }

    fn size(&self) -> u64 {
        self.control.shared.size()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let present = Disk::size(self);
        let Some(wanted) = size else {
            return Ok(present);
        };
        if wanted < present {
            let size = present;
            return Err(ResizeError::Smaller { size, wanted });
        }
        if !wanted.is_multiple_of(SECTOR) {
            let block = u32::try_from(SECTOR).unwrap_or(u32::MAX);
            return Err(ResizeError::Block { block });
        }
        self.expand(wanted)
            .map_err(|error| ResizeError::Io(io::Error::other(error)))?;
        Ok(Disk::size(self))
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let connected = self.call(|control| async move { control.connect_queue().await });
        let (post, connections) = connected.map_err(io::Error::other)?;
        let shared = Arc::clone(&self.control.shared);
        let queue = VolumeQueue::new(shared, post, self.capabilities(), connections)?;
        Ok(Box::new(queue))
    }
}
