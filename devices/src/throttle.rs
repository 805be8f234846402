//! A brake for log lines that a guest can trigger at will: one in five seconds gets through, the rest is counted.
//!
//! Used from any thread, without locks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds between two lines that get through.
const INTERVAL_MS: u64 = 5000;

/// One kind of log line of one device.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Milliseconds on [`clock_ms`] from which the next line may pass.
    next: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    /// Lets the first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }

    /// Whether to log now: the number of lines held back since the last one, or `None` to keep quiet.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(clock_ms())
    }

    fn pass_at(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let won = now >= next
            && self
                .next
                .compare_exchange(
                    next,
                    now.saturating_add(INTERVAL_MS),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if won {
            Some(self.held_back.swap(0, Ordering::Relaxed))
        } else {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

/// Milliseconds since the first call in this process.
fn clock_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_an_interval_passes_and_tells_of_the_rest() {
        let throttle = Throttle::new();
        assert_eq!(throttle.pass_at(10), Some(0));
        for now in 10..15 {
            assert_eq!(throttle.pass_at(now), None);
        }
        assert_eq!(throttle.pass_at(10 + INTERVAL_MS - 1), None);
        assert_eq!(throttle.pass_at(10 + INTERVAL_MS), Some(6));
        assert_eq!(throttle.pass_at(10 + INTERVAL_MS), None);
        assert_eq!(throttle.pass_at(u64::MAX), Some(1));
    }
}
