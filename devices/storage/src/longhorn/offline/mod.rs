//! The replicas of a volume while no engine has them open: making their files, looking at them, comparing what they hold.
//!
//! It runs on a thread of its own, like an engine's control side. One that was not closed is never opened here: closing it again would make it look clean,
//! and only an engine that opens the volume makes such replicas the same. Whoever calls knows that nobody else opens them meanwhile.
//!
//! Replicas answer what they like; the worst that comes of it is an error.

mod compare;
mod create;
mod survey;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::compare::compare;
pub use self::compare::{Comparison, Difference};
pub use self::survey::{Found, Inside, Standing};
use super::control::ControlThread;
use super::control::peer::Peer;
use super::error::VolumeError;
use super::options::VolumeOptions;

/// How far a comparison is; it can be ended from another thread.
#[derive(Debug, Default)]
pub struct Watch {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Watch {
    /// Bytes that were compared, and of how many. Both are 0 before it begins.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.total.load(Ordering::Relaxed))
    }

    /// Has it end soon, with an error.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn reach(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }
}

/// The replicas of a volume that no engine has open. Its calls wait until they are done; they are for threads that may block.
pub struct Offline {
    options: VolumeOptions,
    thread: ControlThread,
}

impl Offline {
    /// The replicas of a volume, as an engine would be told of them. Nobody is asked anything yet.
    ///
    /// # Errors
    /// When the options cannot be, or the host gives no thread.
    pub fn new(options: VolumeOptions) -> Result<Self, VolumeError> {
        options.check()?;
        let thread = ControlThread::start().map_err(|error| VolumeError::Host {
            volume: options.name.clone(),
            problem: error.to_string(),
        })?;
        Ok(Self { options, thread })
    }

    fn call<T, F>(
        &self,
        call: impl FnOnce(VolumeOptions, Vec<Peer>) -> F + Send + 'static,
    ) -> Result<T, VolumeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let options = self.options.clone();
        let result = self.thread.run(async move {
            let peers = options.replicas.iter();
            let peers = peers.map(|replica| Peer::new(replica, &options.name));
            let peers = peers.collect::<Result<_, _>>()?;
            call(options, peers).await
        });
        result.wait().unwrap_or_else(|| {
            Err(VolumeError::State {
                volume: self.options.name.clone(),
                problem: "its thread has ended".to_owned(),
            })
        })
    }

    /// Makes the volume: the files of each replica, for `size` bytes of zeros. A replica that has the files already, and in them nothing but zeros of that
    /// size, is as good as one without.
    ///
    /// # Errors
    /// When the size cannot be, or one of the replicas cannot be asked or has anything; then nothing is made. When one fails to make its files, others
    /// have theirs.
    pub fn create(&self, size: u64) -> Result<(), VolumeError> {
        let sized = VolumeOptions {
            size: Some(size),
            ..self.options.clone()
        };
        sized.check()?;
        self.call(move |options, peers| async move { create::create(&options, &peers, size).await })
    }

    /// What each of the replicas has, in the order in which they were named.
    ///
    /// # Errors
    /// Only when nobody could be asked at all. A replica that cannot is told as such.
    pub fn survey(&self) -> Result<Vec<Found>, VolumeError> {
        self.call(|options, peers| async move { Ok(survey::survey(&options, peers).await) })
    }

    /// Reads all of all replicas, up to the first difference.
    ///
    /// # Errors
    /// When one of them is not closed and clean, cannot be read, or `watch` was told to end it.
    pub fn compare(&self, watch: &Arc<Watch>) -> Result<Comparison, VolumeError> {
        let watch = Arc::clone(watch);
        self.call(move |options, peers| async move { compare(&options, &peers, &watch).await })
    }
}

impl fmt::Debug for Offline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offline")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
