//! The virtio transport over PCI, modern only (VIRTIO 1.2 §4.1).
//!
//! One 64-bit BAR holds every structure, each on pages of its own. Registers are served on vCPU threads under one lock per device;
//! notifications go to an eventfd that KVM writes without leaving the kernel (the BAR's doorbell pages), and interrupts leave
//! by MSI-X, so no guest request takes that lock. INTx is not offered: drivers without MSI-X poll.

mod common;
mod function;
mod interrupt;
#[cfg(test)]
mod tests;
mod transport;

pub use function::VirtioPci;

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// How doorbells reach an event without the VMM: KVM's ioeventfd, or nothing in tests.
pub trait Doorbells: Send + Sync + std::fmt::Debug {
    /// A write to `address` on the MMIO bus writes `event` from now on.
    ///
    /// # Errors
    /// When the kernel refuses; the write then arrives at the function itself, which is slower and as good.
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect).
    fn disconnect(&self, address: u64, event: &EventFd);
}

/// The BAR that holds everything.
const BAR: u8 = 0;
const COMMON_OFFSET: u64 = 0x0000;
const COMMON_LENGTH: u64 = 0x40;
const ISR_OFFSET: u64 = 0x1000;
const ISR_LENGTH: u64 = 0x4;
const DEVICE_OFFSET: u64 = 0x2000;
const DEVICE_LENGTH: u64 = 0x1000;
const NOTIFY_OFFSET: u64 = 0x4000;
const NOTIFY_LENGTH: u64 = 0x2000;
/// Bytes between doorbells.
const NOTIFY_MULTIPLIER: u32 = 4;
const TABLE_OFFSET: u32 = 0x8000;
const TABLE_LENGTH: u64 = 0x4000;
const PENDING_OFFSET: u32 = 0xc000;
const PENDING_LENGTH: u64 = 0x1000;
/// Size of the BAR in bytes.
pub const BAR_LENGTH: u64 = 0x1_0000;
/// The most queues a device can have: what the table pages hold vectors for, less the configuration vector.
pub const MAX_QUEUES: usize = 1023;
