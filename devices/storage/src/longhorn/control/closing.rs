//! The end of a volume: from the moment at which it is known that it is to be closed, nothing is begun any more but the requests of its queues, and nobody is
//! waited for long.
//!
//! Whoever ends a VM has seconds for it, and replicas that are not closed by then are refused the next time, until their processes were started anew. So one
//! that hangs is left soon, and does not keep the others from being closed.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

/// How long a replica may take for anything but its close, once the volume is to be closed.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// How long the requests under way may take to end. Longer than it takes to leave those replicas that do not answer.
pub(super) const REQUESTS: Duration = Duration::from_secs(8);

/// Whether the volume is to be closed.
#[derive(Debug)]
pub(super) struct Closing(watch::Sender<Option<Instant>>);

impl Closing {
    /// It is not.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// It is, from now on.
    pub(super) fn begin(&self) {
        self.0
            .send_if_modified(|since| match since.replace(Instant::now()) {
                Some(before) => {
                    *since = Some(before);
                    false
                }
                None => true,
            });
    }

    /// Whether it is.
    pub(super) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Whether it is, and replicas have been waited for long enough since.
    pub(super) fn is_overdue(&self) -> bool {
        self.0
            .borrow()
            .is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// For those who wait for a replica.
    pub(super) fn hurry(&self) -> Hurry {
        Hurry(self.0.subscribe())
    }
}

/// Ends waits once the volume is to be closed.
#[derive(Debug, Clone)]
pub(in crate::longhorn) struct Hurry(watch::Receiver<Option<Instant>>);

impl Hurry {
    /// Returns when somebody has waited for long enough who begins now: never, unless the volume is to be closed.
    pub(super) async fn over(mut self) {
        let begun = self.0.wait_for(Option::is_some).await.is_ok();
        if !begun {
            // The volume is gone.
            return pending().await;
        }
        sleep(PATIENCE).await;
    }
}
