//! A raw driver of virtio over PCI (VIRTIO 1.2 §4.1): finds the structures, negotiates, sets rings up, submits, polls for what was
//! used. Every step is there for itself, so that a case can leave one out or do it wrongly. Interrupts are not used.

use super::machine::{Function, Ram};
use std::sync::atomic::{Ordering, fence};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Device status bits (§2.1).
pub const ACKNOWLEDGE: u8 = 1;
/// See [`ACKNOWLEDGE`].
pub const DRIVER: u8 = 2;
/// See [`ACKNOWLEDGE`].
pub const DRIVER_OK: u8 = 4;
/// See [`ACKNOWLEDGE`].
pub const FEATURES_OK: u8 = 8;
/// See [`ACKNOWLEDGE`].
pub const NEEDS_RESET: u8 = 0x40;
/// See [`ACKNOWLEDGE`].
pub const FAILED: u8 = 0x80;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;

/// Offsets in the common configuration structure (§4.1.4.3).
pub mod register {
    #![expect(
        missing_docs,
        reason = "the names are those of the specification's structure"
    )]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
}

/// Bytes of the common configuration structure.
pub const COMMON_LENGTH: u64 = 0x38;

/// Descriptor flags (§2.7.5).
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const WRITE: u16 = 2;
/// See [`NEXT`].
pub const INDIRECT: u16 = 4;

/// How long a reset may take: a disk may sit on its requests for ten seconds.
const RESET_DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_micros(200);

/// Capability ids.
const CAPABILITY_VENDOR: u32 = 0x09;
const CAPABILITY_MSIX: u32 = 0x11;

/// Looks at `what` until it gives something, for no longer than `limit`.
pub fn poll<T>(limit: Duration, mut what: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = what() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(POLL);
    }
}

/// Where the structures are: offsets in BAR 0 and in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Common configuration.
    pub common: u64,
    /// Notifications: start, length.
    pub notify: (u64, u64),
    /// Bytes between the notification addresses of two queues.
    pub multiplier: u64,
    /// Interrupt status.
    pub isr: u64,
    /// Device configuration: start, length.
    pub device: (u64, u64),
    /// The PCI configuration access capability, in configuration space.
    pub window: u16,
    /// The MSI-X capability, in configuration space.
    pub msix: u16,
    /// MSI-X table.
    pub table: u64,
    /// Number of MSI-X vectors.
    pub vectors: u16,
    /// MSI-X pending bits.
    pub pending: u64,
}

impl Layout {
    /// Walks the capability list.
    ///
    /// # Errors
    /// When it is no list, or what a modern virtio function must have is missing.
    pub fn find(function: &dyn Function) -> Result<Self, String> {
        let mut layout = Self::default();
        let mut seen = [false; 5];
        let mut at = to_u16(function.read_config(0x34, 1) & 0xfc);
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            match function.read_config(at, 1) {
                CAPABILITY_VENDOR => layout.structure(function, at, &mut seen),
                CAPABILITY_MSIX => layout.msix(function, at),
                _ => {}
            }
            at = to_u16(function.read_config(at + 1, 1) & 0xfc);
        }
        let whole = at == 0 && seen.iter().all(|seen| *seen) && layout.msix != 0;
        if whole {
            Ok(layout)
        } else {
            Err(format!(
                "the function's capabilities are not those of a modern virtio device: {layout:?}"
            ))
        }
    }

    fn structure(&mut self, function: &dyn Function, at: u16, seen: &mut [bool; 5]) {
        let kind = function.read_config(at + 3, 1);
        let start = u64::from(function.read_config(at + 8, 4));
        let length = u64::from(function.read_config(at + 12, 4));
        match kind {
            1 => self.common = start,
            2 => {
                self.notify = (start, length);
                self.multiplier = function.read_config(at + 16, 4).into();
            }
            3 => self.isr = start,
            4 => self.device = (start, length),
            5 => self.window = at,
            _ => return,
        }
        if let Some(seen) = seen.get_mut(usize::try_from(kind - 1).unwrap_or(usize::MAX)) {
            *seen = true;
        }
    }

    fn msix(&mut self, function: &dyn Function, at: u16) {
        self.msix = at;
        self.vectors = to_u16(function.read_config(at + 2, 2) & 0x7ff) + 1;
        self.table = (function.read_config(at + 4, 4) & !7).into();
        self.pending = (function.read_config(at + 8, 4) & !7).into();
    }
}

/// The low 16 bits.
fn to_u16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or_default()
}

/// The driver of one function.
#[derive(Clone, Copy)]
pub struct Driver<'a> {
    /// The function.
    pub function: &'a dyn Function,
    /// Its structures.
    pub layout: Layout,
}

impl<'a> Driver<'a> {
    /// Finds the function's structures.
    ///
    /// # Errors
    /// See [`Layout::find`].
    pub fn new(function: &'a dyn Function) -> Result<Self, String> {
        let layout = Layout::find(function)?;
        Ok(Self { function, layout })
    }

    /// Reads a register of the common structure; `width` is 1, 2, 4 or 8.
    #[must_use]
    pub fn read(&self, register: u64, width: usize) -> u64 {
        self.function.read_bar(self.layout.common + register, width)
    }

    /// Writes one.
    pub fn write(&self, register: u64, width: usize, value: u64) {
        self.function
            .write_bar(self.layout.common + register, width, value);
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::try_from(self.read(register::STATUS, 1)).unwrap_or(0xff)
    }

    /// Writes the status register.
    pub fn set_status(&self, status: u8) {
        self.write(register::STATUS, 1, status.into());
    }

    /// Whether the device asks for a reset, now or within `limit`.
    #[must_use]
    pub fn needs_reset(&self, limit: Duration) -> bool {
        poll(limit, || (self.status() & NEEDS_RESET != 0).then_some(())).is_some()
    }

    /// Resets the device and waits until it has (§2.4.2).
    ///
    /// # Errors
    /// When the status does not become 0 in time.
    pub fn reset(&self) -> Result<(), String> {
        self.set_status(0);
        poll(RESET_DEADLINE, || (self.status() == 0).then_some(())).ok_or_else(|| {
            format!(
                "the status is {:#x} {RESET_DEADLINE:?} after a reset",
                self.status()
            )
        })
    }

    /// What the device offers.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let half = |select: u64| {
            self.write(register::DEVICE_FEATURE_SELECT, 4, select);
            self.read(register::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// Writes what the driver takes.
    pub fn take_features(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(register::DRIVER_FEATURE_SELECT, 4, select);
            self.write(register::DRIVER_FEATURE, 4, half);
        }
    }

    /// From a reset device to FEATURES_OK, with VERSION_1 and those of `wanted` that are offered; returns what was agreed upon.
    ///
    /// # Errors
    /// When the device does not agree.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, String> {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let features = self.offered() & (wanted | VERSION_1);
        self.take_features(features);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status() & FEATURES_OK == 0 {
            return Err(format!("the device refuses its own features {features:#x}"));
        }
        Ok(features)
    }

    /// Selects a queue; its largest size, 0 where there is none.
    #[must_use]
    pub fn select(&self, queue: u16) -> u16 {
        self.write(register::QUEUE_SELECT, 2, queue.into());
        u16::try_from(self.read(register::QUEUE_SIZE, 2)).unwrap_or(0)
    }

    /// Tells the device where the rings of a queue are, and enables it.
    pub fn enable(&self, ring: &Ring) {
        let _ = self.select(ring.queue);
        self.write(register::QUEUE_SIZE, 2, ring.size.into());
        self.place(ring.descriptors, ring.available, ring.used);
        self.write(register::QUEUE_ENABLE, 2, 1);
    }

    /// Writes the three addresses of the selected queue, by halves as the specification wants it.
    pub fn place(&self, descriptors: u64, available: u64, used: u64) {
        for (register, address) in [
            (register::QUEUE_DESC, descriptors),
            (register::QUEUE_DRIVER, available),
            (register::QUEUE_DEVICE, used),
        ] {
            self.write(register, 4, address & 0xffff_ffff);
            self.write(register + 4, 4, address >> 32);
        }
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, queue: u16) {
        fence(Ordering::SeqCst);
        self.function
            .write_bar(self.doorbell(queue), 2, queue.into());
    }

    /// Where in the BAR a queue is notified.
    #[must_use]
    pub fn doorbell(&self, queue: u16) -> u64 {
        self.layout.notify.0 + u64::from(queue) * self.layout.multiplier
    }
}

/// A descriptor as it stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one, with [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// As it lies in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A piece of a well-formed chain: address, length, whether the device writes it.
pub type Piece = (u64, u32, bool);

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The chain's head.
    pub head: u32,
    /// Bytes the device says it wrote.
    pub length: u32,
}

/// The rings of one queue, in memory that device and driver share.
#[derive(Debug, Clone)]
pub struct Ring {
    /// Which queue.
    pub queue: u16,
    /// Descriptors.
    pub size: u16,
    /// Descriptor table: 16 bytes a descriptor.
    pub descriptors: u64,
    /// Available ring: 6 bytes and 2 a descriptor.
    pub available: u64,
    /// Used ring: 6 bytes and 8 a descriptor.
    pub used: u64,
    /// The available index as last written.
    pub next_available: u16,
    next_used: u16,
    next_slot: u16,
}

impl Ring {
    /// Bytes that a queue of `size` takes, each ring on a page of its own.
    #[must_use]
    pub fn footprint(size: u16) -> u64 {
        let size = u64::from(size);
        (size * 16).next_multiple_of(4096)
            + (size * 2 + 6).next_multiple_of(4096)
            + (size * 8 + 6).next_multiple_of(4096)
    }

    /// Rings from `address` on, zeroed.
    #[must_use]
    pub fn new(ram: &dyn Ram, queue: u16, size: u16, address: u64) -> Self {
        let table = (u64::from(size) * 16).next_multiple_of(4096);
        let available = (u64::from(size) * 2 + 6).next_multiple_of(4096);
        let zeros = vec![0; usize::try_from(Self::footprint(size)).unwrap_or(0)];
        ram.write(address, &zeros);
        Self {
            queue,
            size,
            descriptors: address,
            available: address + table,
            used: address + table + available,
            next_available: 0,
            next_used: 0,
            next_slot: 0,
        }
    }

    /// Writes a descriptor of the table.
    pub fn describe(&self, ram: &dyn Ram, slot: u16, descriptor: Descriptor) {
        let at = self.descriptors + u64::from(slot % self.size) * 16;
        ram.write(at, &descriptor.bytes());
    }

    /// Makes a head available, whatever it is.
    pub fn offer(&mut self, ram: &dyn Ram, head: u16) {
        let at = self.available + 4 + u64::from(self.next_available % self.size) * 2;
        ram.write(at, &head.to_le_bytes());
        self.set_index(ram, self.next_available.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn set_index(&mut self, ram: &dyn Ram, index: u16) {
        self.next_available = index;
        fence(Ordering::SeqCst);
        ram.write(self.available + 2, &index.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// Describes a chain in the next free slots; its head. No more than the table holds may be under way.
    pub fn chain(&mut self, ram: &dyn Ram, pieces: &[Piece]) -> u16 {
        let head = self.next_slot;
        let mut slot = head;
        for (number, &(address, length, write)) in (1..).zip(pieces) {
            let next = (slot + 1) % self.size;
            let more = number < pieces.len();
            let flags = if more { NEXT } else { 0 } | if write { WRITE } else { 0 };
            self.describe(
                ram,
                slot,
                Descriptor {
                    address,
                    length,
                    flags,
                    next: if more { next } else { 0 },
                },
            );
            slot = next;
        }
        self.next_slot = slot;
        head
    }

    /// Describes a chain and makes it available; its head.
    pub fn submit(&mut self, ram: &dyn Ram, pieces: &[Piece]) -> u16 {
        let head = self.chain(ram, pieces);
        self.offer(ram, head);
        head
    }

    /// The next used entry, if there is one.
    pub fn take_used(&mut self, ram: &dyn Ram) -> Option<Used> {
        let mut index = [0; 2];
        ram.read(self.used + 2, &mut index);
        if u16::from_le_bytes(index) == self.next_used {
            return None;
        }
        fence(Ordering::SeqCst);
        let at = self.used + 4 + u64::from(self.next_used % self.size) * 8;
        let mut entry = [0; 8];
        ram.read(at, &mut entry);
        self.next_used = self.next_used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = entry;
        Some(Used {
            head: u32::from_le_bytes([a, b, c, d]),
            length: u32::from_le_bytes([e, f, g, h]),
        })
    }

    /// Waits until the chain at `head` is used; those that come before it are let go.
    pub fn wait_used(&mut self, ram: &dyn Ram, head: u16, limit: Duration) -> Option<Used> {
        poll(limit, || {
            let used = self.take_used(ram)?;
            (used.head == u32::from(head)).then_some(used)
        })
    }
}

#[cfg(test)]
mod tests;
