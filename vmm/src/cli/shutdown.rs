//! When to ask the guest to power off, when to stop it, and when to give up.
//!
//! ```text
//!  Running ──interrupt──▶ Asked ──interrupt, timeout──▶ Stopping ──interrupt, timeout──▶ given up
//!     └──────────────────────── stop ──────────────────────▲
//! ```
//!
//! A pure state machine: signals and the clock come in, [`Step`]s come out.

use std::time::{Duration, Instant};

/// How long the VM has to stop once it must: disks are drained within it.
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Press the power button.
    PowerButton,
    /// Stop the VM.
    Stop,
    /// The VM does not even stop: end the process.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Asked(Instant),
    Stopping(Instant),
}

/// The way to the end.
#[derive(Debug, Clone, Copy)]
pub struct Shutdown {
    state: State,
    /// How long the guest has to power off.
    grace: Duration,
}

impl Shutdown {
    /// Nothing asked so far.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            state: State::Running,
            grace,
        }
    }

    /// How long the guest has to power off.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Someone wants the VM to end: SIGTERM and its like.
    pub fn interrupt(&mut self, now: Instant) -> Step {
        match self.state {
            State::Running => {
                self.state = State::Asked(now + self.grace);
                Step::PowerButton
            }
            State::Asked(_) => self.stop(now),
            State::Stopping(_) => Step::GiveUp,
        }
    }

    /// The VM must end now: the escape key, SIGQUIT, or a guest that cannot be asked.
    pub fn stop(&mut self, now: Instant) -> Step {
        if matches!(self.state, State::Stopping(_)) {
            return Step::GiveUp;
        }
        self.state = State::Stopping(now + STOP_DEADLINE);
        Step::Stop
    }

    /// When to call [`timeout`](Self::timeout), if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Running => None,
            State::Asked(at) | State::Stopping(at) => Some(at),
        }
    }

    /// When what the VM still holds is not waited for any more, now that it has ended.
    #[must_use]
    pub fn release_by(&self, now: Instant) -> Instant {
        match self.state {
            State::Running | State::Asked(_) => now + STOP_DEADLINE,
            State::Stopping(at) => at,
        }
    }

    /// The deadline has come.
    pub fn timeout(&mut self, now: Instant) -> Option<Step> {
        if self.deadline().is_none_or(|at| now < at) {
            return None;
        }
        Some(self.stop(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn one_signal_and_a_guest_that_does_not_listen() {
        let start = Instant::now();
        let mut shutdown = Shutdown::new(GRACE);
        assert_eq!((shutdown.deadline(), shutdown.timeout(start)), (None, None));
        assert_eq!(shutdown.interrupt(start), Step::PowerButton);
        assert_eq!(shutdown.deadline(), Some(start + GRACE));
        assert_eq!(shutdown.timeout(start + GRACE / 2), None);
        assert_eq!(shutdown.timeout(start + GRACE), Some(Step::Stop));
        let last = start + GRACE + STOP_DEADLINE;
        assert_eq!(shutdown.deadline(), Some(last));
        assert_eq!(shutdown.timeout(last), Some(Step::GiveUp));
    }

    #[test]
    fn what_is_held_at_the_end_is_waited_for_as_long_as_the_end_itself() {
        let now = Instant::now();
        let mut shutdown = Shutdown::new(GRACE);
        assert_eq!(shutdown.release_by(now), now + STOP_DEADLINE);
        shutdown.interrupt(now);
        let later = now + GRACE / 2;
        assert_eq!(shutdown.release_by(later), later + STOP_DEADLINE);
        shutdown.stop(later);
        let last = later + STOP_DEADLINE;
        assert_eq!(shutdown.release_by(last - GRACE / 30), last);
    }

    #[test]
    fn impatience() {
        let now = Instant::now();
        let mut shutdown = Shutdown::new(GRACE);
        assert_eq!(shutdown.interrupt(now), Step::PowerButton);
        assert_eq!(shutdown.interrupt(now), Step::Stop);
        assert_eq!(shutdown.interrupt(now), Step::GiveUp);

        let mut shutdown = Shutdown::new(GRACE);
        assert_eq!(shutdown.stop(now), Step::Stop);
        assert_eq!(shutdown.stop(now), Step::GiveUp);
    }

    #[test]
    fn no_grace() {
        let now = Instant::now();
        let mut shutdown = Shutdown::new(Duration::ZERO);
        assert_eq!(shutdown.interrupt(now), Step::PowerButton);
        assert_eq!(shutdown.timeout(now), Some(Step::Stop));
    }
}
