//! The two flash chips of UEFI firmware: its code, which nobody changes, and its variables, which it programs itself.
//!
//! The guest reads both through read-only memory slots, without exits. Writes exit, and end here on vCPU threads:
//!
//! ```text
//!              ┌──────────── 0xFF, 0x00, 0x50 (clears the status) ────────────┐
//!              ▼                                                              │
//!        ┌───────────┐                     0x70                        ┌────────────┐
//!   ──▶  │   array   │ ──────────────────────────────────────────────▶ │   status   │
//!        └───────────┘                                                 └────────────┘
//!   in both: 0x10 or 0x40, then a byte   programs it: only clears bits
//!            0x20, then 0xD0             erases the sector of 4 KiB: sets all bits
//! ```
//!
//! The status is read in one place only, where firmware finds out whether there is a flash. So the memory slot stays while bytes are
//! programmed, thousands of them at a first boot, and goes only between 0x70 and what ends it. Real chips read as their status after each
//! command too; neither edk2 nor Linux depends on it.
//!
//! The guest chooses offsets, commands and data, from several vCPUs at once. Writes of more than a byte are no commands of this chip.

use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use crate::bus::BusDevice;
use crate::throttle::Throttle;

/// What one command erases, in bytes.
pub const SECTOR: usize = 4096;

const READ_ARRAY: [u8; 2] = [0xff, 0x00];
const CLEAR_STATUS: u8 = 0x50;
const READ_STATUS: u8 = 0x70;
const PROGRAM: [u8; 2] = [0x10, 0x40];
const ERASE: u8 = 0x20;
const ERASE_CONFIRM: u8 = 0xd0;

/// A sector after it was erased.
const ERASED: [u8; SECTOR] = [0xff; SECTOR];

/// Status: the chip is done with the last command. It always is.
const READY: u8 = 1 << 7;
/// Status, both bits: the second half of a command did not fit the first. (Bit 4 alone would mean that the chip is write-protected.)
const SEQUENCE_ERROR: u8 = 1 << 5 | 1 << 4;

/// The host has no memory for a flash, or the image cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// No whole number of sectors, or none.
    #[error("a flash of {0} bytes is not possible: it consists of sectors of 4096")]
    Size(usize),
    /// The host refuses the memory.
    #[error("the host has no memory for a flash of {0} bytes")]
    Memory(usize, #[source] MmapRegionError),
}

/// The bytes of a flash: memory that the guest reads through a read-only slot. Outlives a reset of the machine.
#[derive(Debug)]
pub struct FlashMemory {
    region: MmapRegion,
    /// Held while bytes change, so that a [`FlashMemory::snapshot`] is the state of one moment.
    change: Mutex<()>,
}

impl FlashMemory {
    /// A flash with `image` in it.
    ///
    /// # Errors
    /// When it does not consist of sectors, or there is no memory for it.
    pub fn new(image: &[u8]) -> Result<Self, FlashError> {
        if image.is_empty() || !image.len().is_multiple_of(SECTOR) {
            return Err(FlashError::Size(image.len()));
        }
        let region =
            MmapRegion::new(image.len()).map_err(|e| FlashError::Memory(image.len(), e))?;
        region.as_volatile_slice().copy_from(image);
        Ok(Self {
            region,
            change: Mutex::new(()),
        })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.region.size()
    }

    /// Where the bytes lie in this process, for a read-only memory slot. Valid as long as `self` lives.
    #[must_use]
    pub fn host_address(&self) -> *const u8 {
        self.region.as_ptr()
    }

    /// All bytes as they were at one moment between two commands.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut image = vec![0; self.size()];
        let _still = self.change.lock();
        self.region.as_volatile_slice().copy_to(&mut image);
        image
    }

    /// Copies what lies at `offset`; bytes beyond the end are left alone.
    fn read(&self, offset: usize, data: &mut [u8]) {
        let all = self.region.as_volatile_slice();
        let count = data.len().min(self.size().saturating_sub(offset));
        if let (Ok(source), Some(data)) = (all.subslice(offset, count), data.get_mut(..count)) {
            source.copy_to(data);
        }
    }

    /// Clears the bits of the byte at `offset` that `value` has not set. Says whether that changed anything.
    fn program(&self, offset: usize, value: u8) -> bool {
        self.change(offset, 1, |bytes| {
            let Ok(old) = bytes.read_obj::<u8>(0) else {
                return false;
            };
            old & value != old && bytes.write_obj(old & value, 0).is_ok()
        })
    }

    /// Erases the sector that `offset` lies in. Says whether that changed anything.
    fn erase(&self, offset: usize) -> bool {
        self.change(offset - offset % SECTOR, SECTOR, |sector| {
            let mut old = [0; SECTOR];
            sector.copy_to(&mut old);
            let changes = old != ERASED;
            if changes {
                sector.copy_from(&ERASED);
            }
            changes
        })
    }

    fn change(&self, at: usize, size: usize, how: impl FnOnce(VolatileSlice<'_>) -> bool) -> bool {
        let _alone = self.change.lock();
        let bytes = self.region.as_volatile_slice().subslice(at, size);
        bytes.is_ok_and(how)
    }
}

/// The read-only memory slot through which the guest reads a flash.
pub trait FlashSlot: Send + Sync + fmt::Debug {
    /// Puts the slot into the guest's address space, or takes it out, so that reads exit to the device. It is in at first. Called on vCPU
    /// threads, under a lock of the device.
    ///
    /// # Errors
    /// When the hypervisor refuses; everything is then as it was.
    fn set_present(&self, present: bool) -> io::Result<()>;
}

/// Told on a vCPU thread that the bytes of a flash changed: leaves a note and returns at once. May be called thousands of times a second.
pub trait FlashChanged: Send + Sync + fmt::Debug {
    /// [`FlashMemory::snapshot`] is another one now.
    fn flash_changed(&self);
}

/// The first half of a command of two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Program,
    Erase,
}

#[derive(Debug)]
struct State {
    /// Reads give the status instead of the array.
    reads_status: bool,
    status: u8,
    begun: Option<Begun>,
    /// Whether the slot is in the guest's address space.
    slot_present: bool,
}

/// The chip with the variables.
#[derive(Debug)]
pub struct VarsFlash {
    memory: Arc<FlashMemory>,
    slot: Arc<dyn FlashSlot>,
    changed: Arc<dyn FlashChanged>,
    state: Mutex<State>,
    log: Throttle,
}

impl VarsFlash {
    /// The chip as it is after a reset. `slot` shows `memory` to the guest and is present.
    #[must_use]
    pub fn new(
        memory: Arc<FlashMemory>,
        slot: Arc<dyn FlashSlot>,
        changed: Arc<dyn FlashChanged>,
    ) -> Self {
        Self {
            memory,
            slot,
            changed,
            state: Mutex::new(State {
                reads_status: false,
                status: READY,
                begun: None,
                slot_present: true,
            }),
            log: Throttle::new(),
        }
    }

    /// One byte from the guest. Says whether the array changed.
    fn command(&self, state: &mut State, offset: usize, value: u8) -> bool {
        match state.begun.take() {
            Some(Begun::Program) => {
                state.status |= READY;
                self.memory.program(offset, value)
            }
            Some(Begun::Erase) if value == ERASE_CONFIRM => {
                state.status |= READY;
                self.memory.erase(offset)
            }
            Some(Begun::Erase) if !READ_ARRAY.contains(&value) => {
                state.status |= READY | SEQUENCE_ERROR;
                false
            }
            _ => {
                self.begin(state, value);
                false
            }
        }
    }

    /// A byte that is no second half.
    fn begin(&self, state: &mut State, value: u8) {
        match value {
            READ_STATUS => self.read_status(state, true),
            CLEAR_STATUS => {
                state.status = 0;
                self.read_status(state, false);
            }
            ERASE => state.begun = Some(Begun::Erase),
            value if PROGRAM.contains(&value) => state.begun = Some(Begun::Program),
            value => {
                if !READ_ARRAY.contains(&value) {
                    self.complain("a command that this flash has not", value.into());
                }
                self.read_status(state, false);
            }
        }
    }

    fn read_status(&self, state: &mut State, wanted: bool) {
        state.reads_status = wanted;
        if state.slot_present != wanted {
            return;
        }
        match self.slot.set_present(!wanted) {
            Ok(()) => state.slot_present = !wanted,
            // Without the slot, reads come here and are answered; with it, the guest sees no status and does without variables.
            Err(error) => {
                if let Some(held_back) = self.log.pass() {
                    tracing::warn!(%error, wanted, held_back, "flash: memory slot stays as it is");
                }
            }
        }
    }

    fn complain(&self, what: &str, value: u64) {
        if let Some(held_back) = self.log.pass() {
            tracing::info!(value, held_back, "guest sends {what}; ignored");
        }
    }
}

impl BusDevice for VarsFlash {
    fn name(&self) -> &str {
        "flash vars"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        if state.reads_status {
            data.fill(state.status);
        } else if let Ok(offset) = usize::try_from(offset) {
            self.memory.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state.lock();
        let (&[value], Ok(offset)) = (data, usize::try_from(offset)) else {
            // Neither a command nor the rest of one.
            state.begun = None;
            self.complain("a write that is no byte to its flash", data.len() as u64);
            return;
        };
        let changed = self.command(&mut state, offset, value);
        drop(state);
        if changed {
            self.changed.flash_changed();
        }
    }
}

/// The chip with the code: reads as it is, ignores writes. Newer firmware tries there whether it is a flash.
#[derive(Debug)]
pub struct CodeFlash {
    memory: Arc<FlashMemory>,
}

impl CodeFlash {
    /// The chip with these bytes.
    #[must_use]
    pub fn new(memory: Arc<FlashMemory>) -> Self {
        Self { memory }
    }
}

impl BusDevice for CodeFlash {
    fn name(&self) -> &str {
        "flash code"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(offset) = usize::try_from(offset) {
            self.memory.read(offset, data);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests;
