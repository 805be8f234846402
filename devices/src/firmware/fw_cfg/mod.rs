//! fw_cfg: named files and numbered items that the host hands to firmware, through ports or by DMA (QEMU's `docs/specs/fw_cfg.rst`).
//!
//! ```text
//! 0x510  write 16 bits  selects an item, from its start
//! 0x511  read a byte    of the item; zeros behind its end
//! 0x514  write 64 bits, big endian, in two halves: the second one (0x518) starts a transfer that a descriptor in RAM at this address
//!        tells: select, read, skip, write. Reads as "QEMU CFG".
//! ```
//!
//! A transfer is done by the vCPU thread whose guest asks for it, before the port write returns, so it must be short whatever the guest
//! asks for: it copies no more than an item has, and fills no more than [`PADDING_MAX`] bytes behind an item's end with zeros. What
//! asks for more, or lies outside RAM (also only in part), fails whole with the descriptor's error bit. A descriptor outside RAM is
//! ignored. Transfers may overlap their own descriptor: that is read once before, and its status written last.
//!
//! The guest chooses keys, lengths and addresses, and the contents of items that are for it to write. All vCPUs share one selection, under
//! a short lock.

mod dma;
mod items;

use std::sync::Arc;

use parking_lot::Mutex;

pub use items::{FwCfgError, FwCfgItems, LateItem, NAME_MAX, WrittenItem};

use self::items::Item;
use crate::bus::BusDevice;
use crate::throttle::Throttle;
use crate::virtio::GuestRam;

/// The first port.
pub const FW_CFG_PORT: u64 = 0x510;
/// Number of ports.
pub const FW_CFG_PORTS: u64 = 12;
/// The most that one transfer fills with zeros behind the end of an item, in bytes.
pub const PADDING_MAX: usize = 64 << 10;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
/// What the DMA address reads as: there is DMA.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

#[derive(Debug, Default)]
struct Selection {
    /// `None`: no such item, which is one of no bytes.
    item: Option<Arc<Item>>,
    /// The next byte. May lie behind the end.
    offset: usize,
    /// The item's contents since it was selected, made when the first byte was asked for.
    contents: Option<Arc<[u8]>>,
}

impl Selection {
    /// What is left of the item.
    fn rest(&mut self) -> &[u8] {
        let Some(item) = &self.item else {
            return &[];
        };
        let contents = self.contents.get_or_insert_with(|| item.contents());
        contents.get(self.offset..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.offset = self.offset.saturating_add(count);
    }
}

#[derive(Debug, Default)]
struct State {
    selection: Selection,
    /// Upper half of the next descriptor's address.
    address_high: u32,
}

/// The device. One of a machine; built anew at each reset.
#[derive(Debug)]
pub struct FwCfg {
    items: FwCfgItems,
    memory: GuestRam,
    state: Mutex<State>,
    log: Throttle,
}

impl FwCfg {
    /// Hands out `items`; transfers go to and from `memory`.
    #[must_use]
    pub fn new(items: FwCfgItems, memory: GuestRam) -> Self {
        Self {
            items,
            memory,
            state: Mutex::default(),
            log: Throttle::new(),
        }
    }

    fn select(&self, state: &mut State, key: u16) {
        state.selection = Selection {
            item: self.items.get(key),
            ..Selection::default()
        };
    }

    fn read_byte(&self) -> u8 {
        let mut state = self.state.lock();
        let byte = state.selection.rest().first().copied();
        state.selection.advance(1);
        byte.unwrap_or(0)
    }
}

impl BusDevice for FwCfg {
    fn name(&self) -> &str {
        "fw_cfg"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => *byte = self.read_byte(),
            (DMA_HIGH.., data) => {
                let start = usize::try_from(offset - DMA_HIGH).unwrap_or(usize::MAX);
                let rest = DMA_SIGNATURE.get(start..).unwrap_or_default();
                for (byte, known) in data.iter_mut().zip(rest) {
                    *byte = *known;
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECTOR, &[low, high]) => {
                let key = u16::from_le_bytes([low, high]);
                self.select(&mut self.state.lock(), key);
            }
            (DMA_HIGH, &[a, b, c, d]) => {
                self.state.lock().address_high = u32::from_be_bytes([a, b, c, d]);
            }
            (DMA_LOW, &[a, b, c, d]) => {
                let mut state = self.state.lock();
                let high = std::mem::take(&mut state.address_high);
                let address = u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d]));
                self.transfer(&mut state, address);
            }
            // Bytes written to the data port changed items in QEMU's youth.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
