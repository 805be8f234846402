//! What was done in the last second.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use paddock_longhorn::messages::Metrics;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::longhorn::control::Control;
use crate::longhorn::counters::{Total, Totals};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// What was done in the last second.
#[derive(Debug)]
pub(super) struct Meter {
    control: Weak<Control>,
    last: Mutex<Metrics>,
}

impl Meter {
    pub(super) fn new(control: &Arc<Control>) -> Self {
        Self {
            control: Arc::downgrade(control),
            last: Mutex::default(),
        }
    }

    pub(super) fn last(&self) -> Metrics {
        *self.last.lock()
    }

    /// Looks every second, until the volume ends.
    pub(super) async fn run(&self) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before: Option<(Instant, Totals)> = None;
        loop {
            ticks.tick().await;
            let Some(control) = self.control.upgrade() else {
                return;
            };
            let now = (Instant::now(), control.shared.totals());
            if let Some((when, totals)) = before.replace(now) {
                *self.last.lock() = rates(now.1.since(totals), now.0 - when);
            }
        }
    }
}

/// How much that is in a second.
fn rates(done: Totals, within: Duration) -> Metrics {
    let per_second = |count: u64| {
        let nanoseconds = within.as_nanos().max(1);
        let rate = u128::from(count) * 1_000_000_000 / nanoseconds;
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    let latency = |total: Total| total.nanoseconds.checked_div(total.requests).unwrap_or(0);
    Metrics {
        read_throughput: per_second(done.reads.bytes),
        write_throughput: per_second(done.writes.bytes),
        read_latency: latency(done.reads),
        write_latency: latency(done.writes),
        read_iops: per_second(done.reads.requests),
        write_iops: per_second(done.writes.requests),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_a_second() {
        let reads = Total {
            requests: 10,
            bytes: 40_960,
            nanoseconds: 5_000,
        };
        let done = Totals {
            reads,
            writes: Total::default(),
        };
        let metrics = rates(done, Duration::from_millis(500));
        assert_eq!(metrics.read_iops, 20);
        assert_eq!(metrics.read_throughput, 81_920);
        assert_eq!(metrics.read_latency, 500);
        assert_eq!((metrics.write_iops, metrics.write_latency), (0, 0));
        // Nothing was done in no time.
        assert_eq!(rates(Totals::default(), Duration::ZERO), Metrics::default());
    }
}
