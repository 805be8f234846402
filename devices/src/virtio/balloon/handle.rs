//! The owner's side of a balloon: what the guest is asked for, and what it says it gave.
//!
//! Shared by the VM's owner, the device on vCPU threads, and its worker. Numbers are atomics; the two locks are held for a few
//! instructions and taken on no way of a guest's request.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::PAGE_SIZE;
use super::statistics::Statistics;

/// Where in struct virtio_balloon_config (VIRTIO 1.2 §5.5.4) fields are: num_pages, actual, free_page_hint_cmd_id, poison_val.
const CONFIG_LENGTH: usize = 16;
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// Why a balloon cannot be asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// The target is not a number of pages.
    #[error("a balloon of {target} bytes is not a multiple of {PAGE_SIZE} bytes")]
    Unaligned {
        /// What was asked for, in bytes.
        target: u64,
    },
    /// The target would leave the guest nothing.
    #[error(
        "a balloon of {target} bytes leaves the guest nothing of its {ram} bytes; choose a smaller one"
    )]
    TooLarge {
        /// What was asked for, in bytes.
        target: u64,
        /// The guest's RAM, in bytes.
        ram: u64,
    },
    /// The guest has no driver that tells statistics, or not yet.
    #[error("the guest's balloon driver is not running")]
    NoDriver,
}

/// What a balloon has done since the VM was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterValues {
    /// Bytes given back to the host because the guest put them into the balloon.
    pub inflated_bytes: u64,
    /// Bytes given back because the guest reported them free.
    pub reported_bytes: u64,
    /// Pages that the guest wanted to give and that are not RAM.
    pub refused_pages: u64,
    /// Times the host would not take memory back.
    pub errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) inflated: AtomicU64,
    pub(super) reported: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// A balloon at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Bytes the guest is asked to give.
    pub target: u64,
    /// Bytes the guest says it has given; no more than its RAM.
    pub actual: u64,
    /// The guest has a driver that tells statistics when it is asked.
    pub driver: bool,
    /// What the guest last said of its memory, since its driver started.
    pub statistics: Option<Statistics>,
    /// What was done so far.
    pub counters: CounterValues,
}

/// The way to a VM's balloon. Cheap to clone; outlives the device, and a reset: the target stays, the guest's word does not.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

struct Shared {
    ram: u64,
    /// In pages, as the guest reads it.
    target: AtomicU32,
    /// In pages, as the guest wrote it.
    actual: AtomicU32,
    /// What the guest fills free pages with.
    poison: AtomicU32,
    /// The owner waits for statistics.
    wanted: AtomicBool,
    /// The guest's driver tells statistics.
    tells: AtomicBool,
    statistics: Mutex<Option<Statistics>>,
    counters: Counters,
    /// Wakes the worker, while there is one.
    doorbell: Mutex<Option<Arc<EventFd>>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for BalloonHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonHandle")
            .field("ram", &self.0.ram)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl BalloonHandle {
    /// An empty balloon for a guest with `ram` bytes. `changed` is called whenever [`status`](Self::status) has news but for
    /// its counters, on a vCPU thread or the device's worker: it must neither block nor call back.
    #[must_use]
    pub fn new(ram: u64, changed: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            ram,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            tells: AtomicBool::new(false),
            statistics: Mutex::new(None),
            counters: Counters::default(),
            doorbell: Mutex::new(None),
            changed: Box::new(changed),
        }))
    }

    /// Whether the guest can be asked for `target` bytes.
    ///
    /// # Errors
    /// When it is not a multiple of [`PAGE_SIZE`], or not less than the guest's RAM.
    pub fn check_target(&self, target: u64) -> Result<(), BalloonError> {
        self.pages(target).map(|_| ())
    }

    fn pages(&self, target: u64) -> Result<u32, BalloonError> {
        let ram = self.0.ram;
        if !target.is_multiple_of(PAGE_SIZE) {
            return Err(BalloonError::Unaligned { target });
        }
        if target >= ram {
            return Err(BalloonError::TooLarge { target, ram });
        }
        // 2^32 pages are 16 TiB, the most RAM there is.
        u32::try_from(target / PAGE_SIZE).map_err(|_| BalloonError::TooLarge { target, ram })
    }

    /// Asks the guest to give `target` bytes in all: to inflate or to deflate its balloon, as it takes. It does so when it can and
    /// may never.
    ///
    /// # Errors
    /// When it is not a multiple of [`PAGE_SIZE`], or not less than the guest's RAM.
    pub fn set_target(&self, target: u64) -> Result<(), BalloonError> {
        let pages = self.pages(target)?;
        if self.0.target.swap(pages, Ordering::AcqRel) != pages {
            self.ring();
            (self.0.changed)();
        }
        Ok(())
    }

    /// Bytes the guest is asked to give.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.target_pages()) * PAGE_SIZE
    }

    /// Bytes the guest says it has given; no more than its RAM. 0 while it has no driver.
    #[must_use]
    pub fn actual(&self) -> u64 {
        (u64::from(self.actual_pages()) * PAGE_SIZE).min(self.0.ram)
    }

    /// Asks the guest's driver for new statistics: they are there once [`Statistics::taken`] is later than this call. A guest
    /// that does not answer never tells any, so wait with a deadline. Many calls are one question.
    ///
    /// # Errors
    /// When there is no driver to ask.
    pub fn request_statistics(&self) -> Result<(), BalloonError> {
        if !self.0.tells.load(Ordering::Acquire) {
            return Err(BalloonError::NoDriver);
        }
        self.0.wanted.store(true, Ordering::Release);
        self.ring();
        Ok(())
    }

    /// Everything at once.
    #[must_use]
    pub fn status(&self) -> BalloonStatus {
        let counters = &self.0.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BalloonStatus {
            target: self.target(),
            actual: self.actual(),
            driver: self.0.tells.load(Ordering::Acquire),
            statistics: *self.0.statistics.lock(),
            counters: CounterValues {
                inflated_bytes: count(&counters.inflated),
                reported_bytes: count(&counters.reported),
                refused_pages: count(&counters.refused),
                errors: count(&counters.errors),
            },
        }
    }

    fn ring(&self) {
        if let Some(doorbell) = &*self.0.doorbell.lock() {
            // A full counter means that it rings already.
            let _ = doorbell.write(1);
        }
    }
}

/// The device's side.
impl BalloonHandle {
    pub(super) fn set_doorbell(&self, doorbell: Option<Arc<EventFd>>) {
        *self.0.doorbell.lock() = doorbell;
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.0.target.load(Ordering::Acquire)
    }

    pub(super) fn actual_pages(&self) -> u32 {
        self.0.actual.load(Ordering::Acquire)
    }

    /// What the guest fills free pages with: four bytes over and over.
    pub(super) fn poison(&self) -> u32 {
        self.0.poison.load(Ordering::Acquire)
    }

    /// Whether the driver tells statistics from now on.
    pub(super) fn set_tells(&self, tells: bool) {
        if self.0.tells.swap(tells, Ordering::AcqRel) != tells {
            (self.0.changed)();
        }
    }

    /// Whether the owner wants new statistics, and has not been heard yet.
    pub(super) fn take_wanted(&self) -> bool {
        self.0.wanted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn tell(&self, statistics: Statistics) {
        *self.0.statistics.lock() = Some(statistics);
        (self.0.changed)();
    }

    /// The device is as new: what its last driver said does not count any more.
    pub(super) fn forget_driver(&self) {
        self.set_tells(false);
        self.take_wanted();
        self.0.poison.store(0, Ordering::Release);
        let empty = self.0.actual.swap(0, Ordering::AcqRel) == 0;
        let silent = self.0.statistics.lock().take().is_none();
        if !(empty && silent) {
            (self.0.changed)();
        }
    }

    /// The device configuration.
    pub(super) fn config(&self) -> [u8; CONFIG_LENGTH] {
        let mut config = [0; CONFIG_LENGTH];
        config[..ACTUAL].copy_from_slice(&self.target_pages().to_le_bytes());
        config[ACTUAL..ACTUAL + 4].copy_from_slice(&self.actual_pages().to_le_bytes());
        config[POISON..].copy_from_slice(&self.poison().to_le_bytes());
        config
    }

    /// The driver writes the device configuration, of which two fields are its own.
    pub(super) fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        let slots = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get_mut(offset..))
            .unwrap_or_default();
        for (slot, byte) in slots.iter_mut().zip(data) {
            *slot = *byte;
        }
        let field = |at: usize| config[at..].first_chunk().copied().map(u32::from_le_bytes);
        let (actual, poison) = (field(ACTUAL).unwrap_or(0), field(POISON).unwrap_or(0));
        self.0.poison.store(poison, Ordering::Release);
        if self.0.actual.swap(actual, Ordering::AcqRel) != actual {
            (self.0.changed)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> (BalloonHandle, Arc<AtomicU64>) {
        let changes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&changes);
        let count = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        (BalloonHandle::new(64 << 20, count), changes)
    }

    #[test]
    fn targets_are_checked() {
        let (handle, changes) = handle();
        assert_eq!(
            handle.set_target(5000),
            Err(BalloonError::Unaligned { target: 5000 })
        );
        for target in [64 << 20, u64::MAX / PAGE_SIZE * PAGE_SIZE] {
            let ram = 64 << 20;
            let error = BalloonError::TooLarge { target, ram };
            assert_eq!(handle.check_target(target), Err(error));
            assert_eq!(handle.set_target(target), Err(error));
        }
        assert_eq!((handle.target(), changes.load(Ordering::Relaxed)), (0, 0));
        for _ in 0..2 {
            handle.set_target(32 << 20).unwrap();
            assert_eq!(
                (handle.target(), changes.load(Ordering::Relaxed)),
                (32 << 20, 1)
            );
        }
        let error = handle.request_statistics().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest's balloon driver is not running"
        );
    }

    #[test]
    fn the_guest_writes_its_two_fields_at_any_width() {
        let (handle, changes) = handle();
        handle.set_target(0x1234 << 12).unwrap();
        handle.write_config(0, &[0xff; 4]);
        assert_eq!(handle.config()[..4], [0x34, 0x12, 0, 0]);
        handle.write_config(4, &[3, 0]);
        handle.write_config(5, &[1]);
        assert_eq!(handle.actual(), 0x103 * PAGE_SIZE);
        handle.write_config(10, &[9, 9, 7, 8, 9, 10, 11, 12]);
        assert_eq!(handle.poison(), 0x0a09_0807);
        assert_eq!(handle.config()[8..12], [0; 4]);
        handle.write_config(2, &[0xff; 6]);
        assert_eq!(handle.target(), 0x1234 << 12);
        assert_eq!(handle.actual(), 64 << 20, "no more than there is");
        for offset in [16, 17, u64::MAX] {
            handle.write_config(offset, &[1; 8]);
        }
        assert_eq!(changes.load(Ordering::Relaxed), 4);
        handle.forget_driver();
        assert_eq!((handle.actual(), handle.poison()), (0, 0));
        assert_eq!(handle.target(), 0x1234 << 12);
        assert_eq!(changes.load(Ordering::Relaxed), 5);
    }
}
