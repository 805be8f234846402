//! A token bucket that may owe: a request passes as soon as there is anything in it, however large the request is, and those after it wait until that
//! is paid.
//!
//! So none waits longer than for what was let through before it, also beside queues with many small ones, and the rate holds in the long run all the
//! same: in any time, no more than the burst, what the rate gives in that time, and one request.

use std::time::{Duration, Instant};

use super::Rate;

/// Parts of a unit that are counted.
const PARTS: i128 = 1_000_000_000;

/// The shortest time that is worth a timer. What a rate gives in it always fits.
const MOMENT: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Bucket {
    /// Parts of a unit in a nanosecond, which are units in a second.
    rate: i128,
    /// The most there can be, in parts.
    capacity: i128,
    /// What there is, in parts; below zero what is owed.
    level: i128,
    /// When the level was that.
    since: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let per_second = i128::from(rate.per_second.get());
        let least = per_second.saturating_mul(nanoseconds(MOMENT)).max(PARTS);
        let capacity = (i128::from(rate.burst) * PARTS).max(least);
        Self {
            rate: per_second,
            capacity,
            level: capacity,
            since: now,
        }
    }

    fn level(&self, now: Instant) -> i128 {
        let passed = now.saturating_duration_since(self.since);
        let gained = nanoseconds(passed).saturating_mul(self.rate);
        self.level.saturating_add(gained).min(self.capacity)
    }

    /// How long until something may be taken, if it may not yet.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let lacking = PARTS - self.level(now);
        if lacking <= 0 {
            return None;
        }
        let wait = lacking.div_euclid(self.rate) + 1;
        let wait = u64::try_from(wait).map_or(Duration::MAX, Duration::from_nanos);
        Some(wait)
    }

    /// Takes so many units, whether they are there or not.
    pub(super) fn take(&mut self, now: Instant, units: u64) {
        self.level = self.level(now).saturating_sub(i128::from(units) * PARTS);
        self.since = self.since.max(now);
    }
}

fn nanoseconds(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}
