//! Opening what the host may take long over, or never get done with: images on a server that is gone, for instance.
//!
//! Such a thread cannot be ended, only left behind. The control plane has few of them (`cli::process`), and pausing and stopping the VM needs one
//! too: so no more than [`AT_ONCE`] open something, and whatever else is to be opened waits for one of them.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::release::Held;
use crate::Error;

/// Threads that open something at once, those included that nobody waits for any more.
const AT_ONCE: usize = 3;

/// The threads of one VM that open something. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Opening {
    places: Arc<Semaphore>,
    held: Held,
}

impl Opening {
    /// For the VM of which this is held.
    pub fn new(held: Held) -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
            held,
        }
    }

    /// Runs `open` on a thread as soon as one may be had. Dropped before its end, the thread is left behind: it closes what it opens, and
    /// has its place and holds the VM until then.
    ///
    /// # Errors
    /// Those of `open`, and when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        open: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let failed = |error| Error::host("opening a file")(std::io::Error::other(error));
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|error| failed(error.to_string()))?;
        let held = self.held.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let _until_then = (place, held);
            open()
        });
        let opened = opened.await;
        opened.unwrap_or_else(|error| Err(failed(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Threads that hang leave some for the rest of the VM, also when nobody waits for them any more.
    #[tokio::test]
    async fn what_hangs_does_not_take_all_threads() {
        let (held, released) = Held::new();
        let opening = Opening::new(held);
        let (end, ends): (Vec<_>, Vec<_>) = (0..AT_ONCE).map(|_| mpsc::channel::<()>()).unzip();
        for ends in ends {
            let hangs = opening.run(move || Ok(ends.recv().is_ok()));
            let given_up = tokio::time::timeout(Duration::from_millis(50), hangs).await;
            given_up.unwrap_err();
        }
        let waits = opening.run(|| Ok(1));
        let waiting = tokio::time::timeout(Duration::from_millis(50), waits).await;
        waiting.unwrap_err();
        drop(end);
        assert_eq!(opening.run(|| Ok(2)).await.unwrap(), 2);
        drop(opening);
        released.wait().await;
    }
}
