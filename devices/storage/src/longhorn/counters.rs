//! How much queues have done: counted by each queue for itself, added up by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Requests of one kind that were done well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub requests: u64,
    pub bytes: u64,
    /// That they took together, from their beginning to the last replica's answer.
    pub nanoseconds: u64,
}

impl Total {
    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: with(self.requests, other.requests),
            bytes: with(self.bytes, other.bytes),
            nanoseconds: with(self.nanoseconds, other.nanoseconds),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.each(other, u64::wrapping_add)
    }
}

/// What was done since a volume was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub reads: Total,
    pub writes: Total,
}

impl Totals {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads.plus(other.reads),
            writes: self.writes.plus(other.writes),
        }
    }

    /// What came since another time.
    #[cfg(any(feature = "controller", test))]
    pub(super) fn since(self, before: Self) -> Self {
        let minus = u64::saturating_sub;
        Self {
            reads: self.reads.each(before.reads, minus),
            writes: self.writes.each(before.writes, minus),
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: u64, took: Duration) {
        // One thread adds, so that nothing is lost; others only look.
        let add = |counter: &AtomicU64, more: u64| {
            let now = counter.load(Ordering::Relaxed);
            counter.store(now.wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.requests, 1);
        add(&self.bytes, bytes);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanoseconds, took);
    }

    fn total(&self) -> Total {
        Total {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
        }
    }
}

/// What one queue has done.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: Counter,
    writes: Counter,
}

impl Counters {
    /// Counts a request that was done well. On the queue's thread only.
    pub(super) fn count(&self, write: bool, bytes: u64, took: Duration) {
        let counter = if write { &self.writes } else { &self.reads };
        counter.add(bytes, took);
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            reads: self.reads.total(),
            writes: self.writes.total(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_adds_up() {
        let (one, other) = (Counters::default(), Counters::default());
        one.count(true, 4096, Duration::from_nanos(7));
        let before = one.totals();
        one.count(true, 512, Duration::from_nanos(3));
        other.count(false, 1024, Duration::from_nanos(5));
        let now = one.totals().plus(other.totals());
        let total = |requests, bytes, nanoseconds| Total {
            requests,
            bytes,
            nanoseconds,
        };
        assert_eq!(now.writes, total(2, 4608, 10));
        assert_eq!(now.reads, total(1, 1024, 5));
        assert_eq!(now.since(before).writes, total(1, 512, 3));
        assert_eq!(before.since(now), Totals::default());
    }
}
