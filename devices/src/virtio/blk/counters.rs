//! What a disk counts: requests of each kind, by queue. A queue's worker adds a pass at a time, before it tells the driver of what it
//! has done; whoever serves metrics reads at any time. The guest chooses what there is to count.
//!
//! Made where the disk is kept, so that a device that is made anew at a reset goes on counting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data from the disk.
    Read,
    /// Data to the disk.
    Write,
    /// What was written is to be on stable storage.
    Flush,
    /// A range is not needed any more.
    Discard,
    /// A range is to read as zeros.
    WriteZeroes,
    /// The serial number is asked for, or something that there is not.
    Other,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::Other,
    ];

    /// By the type in a request's header (VIRTIO 1.2 §5.2.6).
    pub(super) fn of_type(number: u32) -> Self {
        match number {
            VIRTIO_BLK_T_IN => Self::Read,
            VIRTIO_BLK_T_OUT => Self::Write,
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Other,
        }
    }
}

/// Upper bounds of the classes that durations are counted in, in nanoseconds: from the page cache to a disk that hangs. What takes
/// longer is in a class of its own.
pub const DURATION_BOUNDS: [u64; 14] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];
const CLASSES: usize = DURATION_BOUNDS.len() + 1;

/// What was counted of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindValues {
    /// Requests that were answered, well or not.
    pub requests: u64,
    /// Bytes of those that went well: data moved, or the range discarded or zeroed.
    pub bytes: u64,
    /// Requests answered with an error: the host's, or the guest's own.
    pub errors: u64,
    /// Nanoseconds from when each request was taken from the ring to its answer, in all.
    pub nanoseconds: u64,
    /// Requests by how long they took: for each of [`DURATION_BOUNDS`] those that took no longer, and longer than the one before;
    /// then the rest.
    pub classes: [u64; CLASSES],
}

impl KindValues {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.nanoseconds += other.nanoseconds;
        for (class, more) in self.classes.iter_mut().zip(other.classes) {
            *class += more;
        }
    }
}

/// What a pass over a queue counts, by [`Kind`].
#[derive(Debug, Default)]
pub(super) struct Batch([KindValues; Kind::ALL.len()]);

impl Batch {
    /// A request was answered, `well` or not, after this time.
    pub(super) fn count(&mut self, kind: Kind, bytes: u64, well: bool, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let values = &mut self.0[kind as usize];
        values.requests += 1;
        if well {
            values.bytes += bytes;
        } else {
            values.errors += 1;
        }
        values.nanoseconds = values.nanoseconds.saturating_add(nanoseconds);
        values.classes[DURATION_BOUNDS.partition_point(|bound| *bound < nanoseconds)] += 1;
    }
}

/// A disk's counters, by queue.
#[derive(Debug)]
pub struct Counters(Box<[QueueCounters]>);

/// Those of one queue, on cache lines of their own: each is written by another thread.
#[derive(Debug, Default)]
#[repr(align(128))]
struct QueueCounters([KindCounters; Kind::ALL.len()]);

#[derive(Debug, Default)]
struct KindCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    classes: [AtomicU64; CLASSES],
}

impl Counters {
    /// For a disk with so many queues.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Self((0..queues).map(|_| QueueCounters::default()).collect())
    }

    /// The number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.0.len()
    }

    /// What one queue has counted of one kind; nothing if there is no such queue.
    #[must_use]
    pub fn queue(&self, index: usize, kind: Kind) -> KindValues {
        let queue = self.0.get(index);
        queue.map_or_else(KindValues::default, |queue| queue.0[kind as usize].values())
    }

    /// What all queues have counted of one kind.
    #[must_use]
    pub fn values(&self, kind: Kind) -> KindValues {
        let mut sum = KindValues::default();
        for queue in &self.0 {
            sum.merge(&queue.0[kind as usize].values());
        }
        sum
    }

    /// Adds what a pass over queue `index` counted, and sets the batch back to nothing.
    pub(super) fn add(&self, index: u16, batch: &mut Batch) {
        let Some(queue) = self.0.get(usize::from(index)) else {
            return;
        };
        for (counters, values) in queue.0.iter().zip(&mut batch.0) {
            if values.requests != 0 {
                counters.add(&std::mem::take(values));
            }
        }
    }
}

impl KindCounters {
    fn values(&self) -> KindValues {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KindValues {
            requests: read(&self.requests),
            bytes: read(&self.bytes),
            errors: read(&self.errors),
            nanoseconds: read(&self.nanoseconds),
            classes: std::array::from_fn(|class| read(&self.classes[class])),
        }
    }

    fn add(&self, values: &KindValues) {
        let add = |counter: &AtomicU64, value: u64| {
            if value != 0 {
                counter.fetch_add(value, Ordering::Relaxed);
            }
        };
        add(&self.requests, values.requests);
        add(&self.bytes, values.bytes);
        add(&self.errors, values.errors);
        add(&self.nanoseconds, values.nanoseconds);
        for (counter, value) in self.classes.iter().zip(values.classes) {
            add(counter, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_added_once_and_to_its_queue() {
        let counters = Counters::new(2);
        let mut batch = Batch::default();
        let micros = Duration::from_micros;
        batch.count(Kind::Read, 4096, true, micros(10));
        batch.count(Kind::Read, 512, false, micros(11));
        batch.count(Kind::Flush, 0, true, Duration::from_secs(60));
        counters.add(1, &mut batch);
        counters.add(1, &mut batch);
        counters.add(2, &mut batch);
        assert_eq!(counters.queue(0, Kind::Read), KindValues::default());
        assert_eq!(counters.queue(9, Kind::Read), KindValues::default());
        let read = counters.queue(1, Kind::Read);
        assert_eq!((read.requests, read.bytes, read.errors), (2, 4096, 1));
        assert_eq!(read.nanoseconds, 21_000);
        assert_eq!(read.classes[..3], [1, 1, 0]);
        let flush = counters.values(Kind::Flush);
        assert_eq!((flush.requests, flush.classes[CLASSES - 1]), (1, 1));
    }

    #[test]
    fn kinds_are_numbered_in_their_order() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
        assert!(DURATION_BOUNDS.is_sorted());
    }
}
