//! What a process prints, kept as it comes.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Everything that came out of a pipe or socket so far.
#[derive(Debug, Clone)]
pub(crate) struct Transcript {
    kept: Arc<Mutex<Vec<u8>>>,
    /// No more will come.
    complete: Arc<AtomicBool>,
}

impl Transcript {
    /// Reads `pipe`, if there is one, to its end.
    pub(crate) fn follow(pipe: Option<impl Read + Send + 'static>) -> Self {
        let this = Self {
            kept: Arc::default(),
            complete: Arc::default(),
        };
        let Self { kept, complete } = this.clone();
        if let Some(mut pipe) = pipe {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&buffer[..count]);
                }
                complete.store(true, Ordering::Release);
            });
        }
        this
    }

    pub(crate) fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// Whether the other end is closed and all of it read.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }
}
