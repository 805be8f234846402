//! Questions that may never be answered: a file system whose server is gone, a guest that does not come out of KVM.
//!
//! Each is put on a thread of its own, which is left behind if it takes too long; the process ends soon after.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TooLate(Duration),
    /// The host gives no thread.
    #[error("starting a thread")]
    NoThread(#[source] io::Error),
    /// The thread ended without an answer.
    #[error("the question failed, see standard error")]
    Lost,
}

/// Asks, and waits for at most `deadline`.
///
/// # Errors
/// When there is no answer by then.
pub fn within<T: Send + 'static>(
    deadline: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        .name("doctor".to_owned())
        .spawn(move || {
            // Nobody listens any more if it took too long.
            let _ = sender.send(ask());
        })
        .map_err(NoAnswer::NoThread)?;
    receiver
        .recv_timeout(deadline)
        .map_err(|error| match error {
            RecvTimeoutError::Timeout => NoAnswer::TooLate(deadline),
            RecvTimeoutError::Disconnected => NoAnswer::Lost,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_their_lack() {
        let long = Duration::from_secs(60);
        assert_eq!(within(long, || 7).unwrap(), 7);
        let (hold, held) = sync_channel::<()>(0);
        let short = Duration::from_millis(20);
        let late = within(short, move || held.recv());
        assert!(matches!(late, Err(NoAnswer::TooLate(_))), "{late:?}");
        drop(hold);
        let lost = within(long, || -> u32 { std::panic::resume_unwind(Box::new(())) });
        assert!(matches!(lost, Err(NoAnswer::Lost)), "{lost:?}");
    }
}
