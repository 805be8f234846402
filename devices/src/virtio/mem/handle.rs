//! The owner's side of a memory device: how much the guest is asked to have plugged in, and how much it has.
//!
//! Shared by the VM's owner, the device on vCPU threads, and its worker. Numbers are atomics; the set of blocks is locked by the worker
//! alone while it serves a request, and by the device when it is made.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use super::blocks::Blocks;

/// Bytes of struct virtio_mem_config (VIRTIO 1.2 §5.15.4).
const CONFIG_LENGTH: usize = 56;
/// Where its fields are; each has 8 bytes. The NUMA node, at 8, is not told.
const BLOCK_SIZE: usize = 0;
const ADDRESS: usize = 16;
const REGION_SIZE: usize = 24;
const USABLE_SIZE: usize = 32;
const PLUGGED: usize = 40;
const REQUESTED: usize = 48;

/// Why a memory device cannot be so, or be asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemError {
    /// The region is not made of blocks.
    #[error(
        "a region of {size} bytes at {start:#x} is not a whole number of blocks of {block} bytes"
    )]
    Region {
        /// Its first guest-physical address.
        start: u64,
        /// Its length in bytes.
        size: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// What is asked for is not a number of blocks.
    #[error("{requested} bytes are not a whole number of blocks of {block} bytes")]
    Unaligned {
        /// What was asked for, in bytes.
        requested: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// More is asked for than there is room for.
    #[error("{requested} bytes do not fit into the region of {size} bytes")]
    TooLarge {
        /// What was asked for, in bytes.
        requested: u64,
        /// The region's length in bytes.
        size: u64,
    },
}

/// What a memory device has done since the VM was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterValues {
    /// Requests of the guest that break the rules.
    pub refused_requests: u64,
    /// Times the host would not give memory or take it back.
    pub errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) refused: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// A memory device at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemStatus {
    /// The most that can be plugged in, in bytes.
    pub region_size: u64,
    /// How much the guest is asked to have plugged in, in bytes.
    pub requested: u64,
    /// How much it has plugged in, in bytes.
    pub plugged: u64,
    /// The guest has a driver.
    pub driver: bool,
    /// What was done so far.
    pub counters: CounterValues,
}

/// The way to a VM's memory device. Cheap to clone; outlives the device, and a reset: what is asked for stays, what was plugged in does
/// not.
#[derive(Clone)]
pub struct MemHandle(Arc<Shared>);

struct Shared {
    start: u64,
    size: u64,
    block: u64,
    requested: AtomicU64,
    plugged: AtomicU64,
    driver: AtomicBool,
    blocks: Mutex<Blocks>,
    counters: Counters,
    /// Wakes the worker, while there is one.
    doorbell: Mutex<Option<Arc<EventFd>>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for MemHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemHandle")
            .field("region", &self.region())
            .field("block", &self.0.block)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl MemHandle {
    /// A device with nothing plugged in or asked for. `region` is where in guest-physical space its blocks of `block` bytes lie, a power
    /// of two of which both ends are multiples. `changed` is called whenever [`status`](Self::status) has news but for its counters,
    /// on a vCPU thread or the device's worker: it must neither block nor call back.
    ///
    /// # Errors
    /// When the region is empty, wraps, or is not made of such blocks.
    pub fn new(
        region: Range<u64>,
        block: u64,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, MemError> {
        let (start, size) = (region.start, region.end.saturating_sub(region.start));
        let fits = block.is_power_of_two()
            && size > 0
            && start.is_multiple_of(block)
            && size.is_multiple_of(block);
        let count = usize::try_from(size.checked_div(block).unwrap_or(0)).ok();
        let Some(count) = count.filter(|_| fits) else {
            return Err(MemError::Region { start, size, block });
        };
        Ok(Self(Arc::new(Shared {
            start,
            size,
            block,
            requested: AtomicU64::new(0),
            plugged: AtomicU64::new(0),
            driver: AtomicBool::new(false),
            blocks: Mutex::new(Blocks::new(count)),
            counters: Counters::default(),
            doorbell: Mutex::new(None),
            changed: Box::new(changed),
        })))
    }

    /// Where in guest-physical space the blocks lie.
    #[must_use]
    pub fn region(&self) -> Range<u64> {
        self.0.start..self.0.start + self.0.size
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.0.block
    }

    /// Whether the guest can be asked to have `requested` bytes plugged in.
    ///
    /// # Errors
    /// When it is not a number of blocks, or does not fit into the region.
    pub fn check_requested(&self, requested: u64) -> Result<(), MemError> {
        let Shared { size, block, .. } = *self.0;
        if requested > size {
            return Err(MemError::TooLarge { requested, size });
        }
        if !requested.is_multiple_of(block) {
            return Err(MemError::Unaligned { requested, block });
        }
        Ok(())
    }

    /// Asks the guest to have `requested` bytes plugged in, in all: to plug or to unplug blocks, as it takes. It does so when it can and
    /// may never.
    ///
    /// # Errors
    /// When it is not a number of blocks, or does not fit into the region.
    pub fn set_requested(&self, requested: u64) -> Result<(), MemError> {
        self.check_requested(requested)?;
        if self.0.requested.swap(requested, Ordering::AcqRel) != requested {
            if let Some(doorbell) = &*self.0.doorbell.lock() {
                // A full counter means that it rings already.
                let _ = doorbell.write(1);
            }
            (self.0.changed)();
        }
        Ok(())
    }

    /// How much the guest is asked to have plugged in, in bytes.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.0.requested.load(Ordering::Acquire)
    }

    /// How much it has plugged in, in bytes.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.0.plugged.load(Ordering::Acquire)
    }

    /// Everything at once.
    #[must_use]
    pub fn status(&self) -> MemStatus {
        let counters = &self.0.counters;
        MemStatus {
            region_size: self.0.size,
            requested: self.requested(),
            plugged: self.plugged(),
            driver: self.0.driver.load(Ordering::Acquire),
            counters: CounterValues {
                refused_requests: counters.refused.load(Ordering::Relaxed),
                errors: counters.errors.load(Ordering::Relaxed),
            },
        }
    }
}

/// The device's side.
impl MemHandle {
    /// The blocks, for one who changes them: [`set_blocks`](Self::set_blocks) tells of it.
    pub(super) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.0.blocks.lock()
    }

    /// The blocks are as they are to be.
    pub(super) fn set_blocks(&self, blocks: MutexGuard<'_, Blocks>) {
        let plugged = blocks.plugged() as u64 * self.0.block;
        let before = self.0.plugged.swap(plugged, Ordering::AcqRel);
        drop(blocks);
        if before != plugged {
            (self.0.changed)();
        }
    }

    /// The worker that serves the driver, while there is one.
    pub(super) fn set_driver(&self, doorbell: Option<Arc<EventFd>>) {
        let driver = doorbell.is_some();
        *self.0.doorbell.lock() = doorbell;
        if self.0.driver.swap(driver, Ordering::AcqRel) != driver {
            (self.0.changed)();
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The device configuration. All of the region can be used at any time.
    pub(super) fn config(&self) -> [u8; CONFIG_LENGTH] {
        let mut config = [0; CONFIG_LENGTH];
        for (at, value) in [
            (BLOCK_SIZE, self.0.block),
            (ADDRESS, self.0.start),
            (REGION_SIZE, self.0.size),
            (USABLE_SIZE, self.0.size),
            (PLUGGED, self.plugged()),
            (REQUESTED, self.requested()),
        ] {
            config[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 2 << 20;
    const START: u64 = 4 << 30;

    #[test]
    fn regions_are_made_of_blocks() {
        for (region, block) in [
            (START..START, BLOCK),
            (
                Range {
                    start: START,
                    end: 0,
                },
                BLOCK,
            ),
            (START + 4096..START + 4096 + BLOCK, BLOCK),
            (START..START + BLOCK + 4096, BLOCK),
            (START..START + BLOCK, 0),
            (START..START + 3 * BLOCK, 3 * BLOCK),
        ] {
            let error = MemHandle::new(region.clone(), block, || ()).unwrap_err();
            assert!(matches!(error, MemError::Region { .. }), "{region:?}");
        }
    }

    #[test]
    fn requests_of_the_owner_are_checked() {
        let changes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&changes);
        let count = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let size = 8 * BLOCK;
        let handle = MemHandle::new(START..START + size, BLOCK, count).unwrap();
        let block = BLOCK;
        let requested = BLOCK + 4096;
        assert_eq!(
            handle.set_requested(requested),
            Err(MemError::Unaligned { requested, block })
        );
        for requested in [size + BLOCK, u64::MAX] {
            let error = MemError::TooLarge { requested, size };
            assert_eq!(handle.set_requested(requested), Err(error));
        }
        assert_eq!(changes.load(Ordering::Relaxed), 0);
        for _ in 0..2 {
            handle.set_requested(size).unwrap();
            assert_eq!((handle.requested(), handle.plugged()), (size, 0));
            assert_eq!(changes.load(Ordering::Relaxed), 1);
        }
    }
}
