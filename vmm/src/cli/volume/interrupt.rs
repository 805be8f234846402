//! Ctrl-C and its like: replicas that were opened are closed first, or their processes would have to be started anew.

use std::io;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::cli::process::{Meaning, Signals, runtime};
use crate::cli::{Status, logging};

/// Whether somebody wants the command to end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches signals from now on, until the process ends.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn catch() -> io::Result<Self> {
        let this = Self::default();
        let seen = this.clone();
        let runtime = runtime()?;
        let mut signals = {
            let _context = runtime.enter();
            Signals::catch()?
        };
        let wait = move || {
            runtime.block_on(async {
                loop {
                    match signals.next().await {
                        Meaning::Resumed => {}
                        Meaning::End if !seen.0.swap(true, Ordering::SeqCst) => {
                            logging::tell(
                                "interrupted: it ends as soon as its replicas are closed; once more ends at once",
                            );
                        }
                        Meaning::End | Meaning::EndNow => exit(Status::Error as i32),
                    }
                }
            });
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)?;
        Ok(this)
    }

    /// Whether it should end.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
