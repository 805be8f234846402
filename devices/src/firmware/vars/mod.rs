//! The file that keeps a VM's UEFI variables, and the thread that writes it.
//!
//! The guest programs its flash byte by byte; this thread puts the flash into the file, a little after the first change that is not in it
//! yet, and at once when asked to ([`VarsStore::flush`]: the guest was powered off, paused, copied).
//!
//! What is in the file is always the whole flash as it was at one moment: it is written to a new file beside the old one, brought to
//! disk, and renamed over it. So a crash of process or host at any time leaves either the old or the new state, at most [`WRITE_DELAY`]
//! and one write old, and never a mixture of two. Firmware is prepared for a power failure at any moment, and no more is
//! asked of it. (Writing sectors in place would leave, after a crash, some sectors of one moment and some of another, in an order that no
//! firmware ever wrote.)
//!
//! A file that cannot be replaced, such as a mount of its own or a block device, is therefore refused when it is opened. One process has
//! it: the file is locked, and so is each that replaces it, before it does.
//!
//! The guest chooses the bytes and how often they change. That costs memory twice the flash, and a write per delay. A flash that is no
//! variable store any more, as after a kernel has erased it, is not written: the VM could not be started again from that. The
//! file keeps the last whole store, until the flash is one again.

mod error;
mod file;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub use error::{VarsError, VarsErrorKind};
pub use file::VarsOptions;

use self::file::VarsFile;
use super::flash::{FlashChanged, FlashMemory};
use crate::threads;

/// How long changes are collected before they are written.
pub const WRITE_DELAY: Duration = Duration::from_millis(200);
/// After a write that failed, the next one is tried after this long; twice as long each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How long a store that is dropped waits for its last write. A disk that hangs for longer keeps the thread, not the VMM.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// The variable store of a VM: its flash, and the file that follows it. Outlives resets of the machine; dropped, it writes what is left.
#[derive(Debug)]
pub struct VarsStore {
    path: PathBuf,
    memory: Arc<FlashMemory>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// How a store is.
#[derive(Debug, Clone)]
pub struct VarsStatus {
    /// The file lacks changes.
    pub unsaved: bool,
    /// Why the last write failed, if it did. It is tried again.
    pub error: Option<Arc<VarsError>>,
    /// Writes so far that went well.
    pub writes: u64,
    /// Writes so far that failed.
    pub failures: u64,
}

/// Told on the writer's thread how the file is; returns at once. What it is told of is in the [`VarsStatus`] already.
pub trait VarsEvents: Send + Sync + fmt::Debug {
    /// A write failed, and the one before did not.
    fn write_failed(&self, error: &VarsError);
    /// The file is written, after it could not be.
    fn written_again(&self);
}

/// How a store is, for those who do not own it. Does not keep it.
#[derive(Debug, Clone)]
pub struct VarsWatch(Arc<Shared>);

impl VarsWatch {
    /// How it is now, or was at its end.
    #[must_use]
    pub fn status(&self) -> VarsStatus {
        let state = self.0.state.lock();
        VarsStatus {
            unsaved: state.saved < state.changes,
            error: state.error.clone(),
            writes: state.writes,
            failures: state.failures,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake_writer: Condvar,
    written: Condvar,
    events: OnceLock<Arc<dyn VarsEvents>>,
}

#[derive(Debug, Default)]
struct State {
    /// Changes of the flash so far.
    changes: u64,
    /// How many of them the file has.
    saved: u64,
    /// Writes that went well so far.
    writes: u64,
    /// Writes that failed so far, and why the last write did if it did.
    failures: u64,
    error: Option<Arc<VarsError>>,
    /// Somebody waits for the file: write at once.
    hurry: bool,
    stop: bool,
    stopped: bool,
}

impl Shared {
    /// Waits for changes, and then until enough of them are collected: for the delay, or `retry` after a write that failed, unless somebody
    /// is in a hurry. `false`: nothing is left, and nothing will come.
    fn wait_for_work(&self, state: &mut MutexGuard<'_, State>, retry: Duration) -> bool {
        while state.saved == state.changes && !state.stop {
            state.hurry = false;
            self.wake_writer.wait(state);
        }
        let delay = if state.error.is_some() {
            retry
        } else {
            WRITE_DELAY
        };
        let deadline = Instant::now() + delay;
        while !state.stop && !state.hurry {
            let wait = self.wake_writer.wait_until(state, deadline);
            if wait.timed_out() {
                break;
            }
        }
        state.saved < state.changes
    }

    /// A write is over: notes how, tells who is to know, and then who waits for it.
    fn finish_write(&self, state: &mut MutexGuard<'_, State>, result: Result<u64, VarsError>) {
        let failed_before = state.error.is_some();
        let error = match result {
            Ok(changes) => {
                state.saved = changes;
                state.writes += 1;
                None
            }
            Err(error) => {
                state.failures += 1;
                Some(Arc::new(error))
            }
        };
        state.error.clone_from(&error);
        if failed_before != error.is_some() {
            MutexGuard::unlocked(state, || self.tell(error.as_deref()));
        }
        self.written.notify_all();
    }

    /// Tells that the file cannot be written any more, or can again.
    fn tell(&self, error: Option<&VarsError>) {
        let events = self.events.get();
        match error {
            Some(cause) => {
                let error = cause as &dyn std::error::Error;
                tracing::error!(error, "variable store not written; the guest goes on");
                events.inspect(|events| events.write_failed(cause));
            }
            None => {
                tracing::info!("variable store: written again");
                events.inspect(|events| events.written_again());
            }
        }
    }
}

impl FlashChanged for Shared {
    fn flash_changed(&self) {
        let mut state = self.state.lock();
        if state.changes == state.saved {
            self.wake_writer.notify_one();
        }
        state.changes += 1;
    }
}

impl VarsStore {
    /// Opens the file, or makes it from the template.
    ///
    /// # Errors
    /// When it is in use, no variable store, one for other firmware, or cannot be replaced where it is; when it does not exist and there
    /// is no template.
    pub fn open(options: &VarsOptions<'_>) -> Result<Self, VarsError> {
        let (file, image) = VarsFile::open(options)?;
        let failed =
            |error: std::io::Error| VarsError::because(options.path, VarsErrorKind::Io, error);
        let memory =
            FlashMemory::new(&image).map_err(|error| failed(std::io::Error::other(error)))?;
        let memory = Arc::new(memory);
        let shared = Arc::new(Shared::default());
        let writer = threads::named("vars-writer");
        let writer = {
            let (memory, shared) = (Arc::clone(&memory), Arc::clone(&shared));
            writer.spawn(move || write_changes(&memory, &shared, file))
        };
        Ok(Self {
            path: options.path.to_path_buf(),
            memory,
            shared,
            writer: Some(writer.map_err(failed)?),
        })
    }

    /// The flash that the file keeps.
    #[must_use]
    pub fn memory(&self) -> &Arc<FlashMemory> {
        &self.memory
    }

    /// Whom the flash tells that it changed.
    #[must_use]
    pub fn changed(&self) -> Arc<dyn FlashChanged> {
        Arc::clone(&self.shared) as _
    }

    /// Where others see how it is.
    #[must_use]
    pub fn watch(&self) -> VarsWatch {
        VarsWatch(Arc::clone(&self.shared))
    }

    /// Whom it tells of its file, from now on. Only the first call counts.
    pub fn set_events(&self, events: Arc<dyn VarsEvents>) {
        let _ = self.shared.events.set(events);
    }

    /// Has all changes up to now written and brought to disk, waiting at most `patience` for it.
    ///
    /// # Errors
    /// When writing failed meanwhile, or takes longer; it goes on either way.
    pub fn flush(&self, patience: Duration) -> Result<(), Arc<VarsError>> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        let (wanted, failures) = (state.changes, state.failures);
        while state.saved < wanted {
            state.hurry = true;
            self.shared.wake_writer.notify_one();
            let timed_out = self
                .shared
                .written
                .wait_until(&mut state, deadline)
                .timed_out();
            if state.saved >= wanted {
                break;
            }
            if let (Some(error), true) = (&state.error, state.failures > failures) {
                return Err(Arc::clone(error));
            }
            if timed_out {
                let kind = VarsErrorKind::Slow(patience);
                return Err(Arc::new(VarsError::new(&self.path, kind)));
            }
        }
        Ok(())
    }
}

impl Drop for VarsStore {
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_PATIENCE;
        let mut state = self.shared.state.lock();
        state.stop = true;
        self.shared.wake_writer.notify_one();
        while !state.stopped {
            let wait = self.shared.written.wait_until(&mut state, deadline);
            if wait.timed_out() && !state.stopped {
                tracing::error!(
                    "variable store: the host's disk hangs; the last changes may be lost"
                );
                return;
            }
        }
        drop(state);
        if let Some(writer) = self.writer.take() {
            // It has nothing left to do; that it panicked was reported as it happened.
            let _ = writer.join();
        }
    }
}

/// The thread: writes until it is told to stop and nothing is left, or the last write failed.
fn write_changes(memory: &FlashMemory, shared: &Shared, mut file: VarsFile) {
    let mut state = shared.state.lock();
    let mut retry = RETRY_FIRST;
    while shared.wait_for_work(&mut state, retry) {
        state.hurry = false;
        let (changes, last) = (state.changes, state.stop);
        // The snapshot has these changes and maybe more, which will then be written once more.
        let result = MutexGuard::unlocked(&mut state, || file.replace(&memory.snapshot()));
        retry = match (&result, &state.error) {
            (Err(_), Some(_)) => (retry * 2).min(RETRY_MOST),
            _ => RETRY_FIRST,
        };
        let failed = result.is_err();
        shared.finish_write(&mut state, result.map(|()| changes));
        if failed && last {
            tracing::error!("variable store: the last changes are lost");
            break;
        }
    }
    state.stopped = true;
    shared.written.notify_all();
}

#[cfg(test)]
mod tests;
