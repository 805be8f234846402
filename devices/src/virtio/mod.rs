//! Virtio 1.2: the device contract, the PCI transport, and the devices.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod device;
pub mod mem;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod scsi;
mod service;
#[cfg(test)]
pub(crate) mod test_driver;
pub mod worker;

pub use device::{DeviceError, GuestMap, GuestRam, QueueInterrupt, QueueResources, VirtioDevice};
