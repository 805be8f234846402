//! I/O limits of a disk: so many requests and so many bytes a second, over all its queues, adjustable while it runs.
//!
//! A request that comes too early waits in its queue, with all that comes after it there; a timer wakes the queue. While there is no
//! limit, a queue looks at one atomic flag for each request. A drain lets go of all that waits, and the limit is paid later.
//!
//! Runs on the queues' threads; limits are set on the control plane's. The guest chooses its requests, and waits for no more of them than its queues
//! hold.

mod bucket;
mod queue;

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Capabilities, Disk, DiskQueue, Operation, ResizeError};
use bucket::Bucket;
use queue::LimitQueue;

/// How much is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units in a second, in the long run.
    pub per_second: NonZeroU64,
    /// Units at once, after a while with none.
    pub burst: u64,
}

/// The limits of a disk. What is `None` has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of requests. A flush is none.
    pub requests: Option<Rate>,
    /// Of bytes read, written and zeroed: many a disk writes the zeros, and whether it does is not known here.
    pub bytes: Option<Rate>,
}

/// What limits have cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Requests that waited.
    pub requests: u64,
    /// How long, in all.
    pub time: Duration,
}

#[derive(Debug)]
struct Shared {
    /// There is a limit.
    active: AtomicBool,
    buckets: Mutex<Buckets>,
    requests: AtomicU64,
    nanoseconds: AtomicU64,
}

#[derive(Debug)]
struct Buckets {
    limits: Limits,
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Lets a request through and has it paid for; or says how long to wait, unless it is let through by `force`.
    fn admit(&self, operation: &Operation, force: bool) -> Result<(), Duration> {
        let (requests, bytes) = match operation {
            Operation::Flush => return Ok(()),
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => (1, buffer.len()),
            Operation::WriteZeroes { length, .. } => (1, *length),
            Operation::Discard { .. } => (1, 0),
        };
        let now = Instant::now();
        let mut buckets = self.lock();
        let Buckets {
            requests: first,
            bytes: second,
            ..
        } = &mut *buckets;
        let both = || [(first.as_ref(), requests), (second.as_ref(), bytes)];
        let wait = both().into_iter().filter(|(_, cost)| *cost > 0);
        let wait = wait.filter_map(|(bucket, _)| bucket?.wait(now));
        match wait.max() {
            Some(wait) if !force => return Err(wait),
            _ => {}
        }
        for (bucket, cost) in [(first, requests), (second, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(now, cost);
            }
        }
        Ok(())
    }

    fn note(&self, waited: Duration) {
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// A disk with limits.
pub struct LimitedDisk {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
}

impl LimitedDisk {
    /// Puts limits before a disk.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, limits: Limits) -> Self {
        let shared = Arc::new(Shared {
            active: AtomicBool::new(false),
            buckets: Mutex::new(Buckets {
                limits: Limits::default(),
                requests: None,
                bytes: None,
            }),
            requests: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        });
        let this = Self { disk, shared };
        this.set(limits);
        this
    }

    /// Replaces the limits. What waits is looked at anew within a tenth of a second.
    pub fn set(&self, limits: Limits) {
        let now = Instant::now();
        let mut buckets = self.shared.lock();
        buckets.limits = limits;
        buckets.requests = limits.requests.map(|rate| Bucket::new(rate, now));
        buckets.bytes = limits.bytes.map(|rate| Bucket::new(rate, now));
        let active = limits != Limits::default();
        self.shared.active.store(active, Ordering::Release);
    }

    /// The present limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.lock().limits
    }

    /// What they have cost.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        let nanoseconds = self.shared.nanoseconds.load(Ordering::Relaxed);
        Throttled {
            requests: self.shared.requests.load(Ordering::Relaxed),
            time: Duration::from_nanos(nanoseconds),
        }
    }
}

impl Disk for LimitedDisk {
    fn capabilities(&self) -> Capabilities {
        self.disk.capabilities()
    }

    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.disk.resize(size)
    }

    fn repeats_flush(&self) -> bool {
        self.disk.repeats_flush()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let queue = self.disk.open_queue(depth)?;
        Ok(Box::new(LimitQueue::new(Arc::clone(&self.shared), queue)?))
    }
}

impl fmt::Debug for LimitedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedDisk")
            .field("disk", &self.disk)
            .field("limits", &self.limits())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
