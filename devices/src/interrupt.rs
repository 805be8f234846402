//! How devices interrupt the guest, seen from the device.
//!
//! The machine implements these on KVM (GSI routes and irqfds); tests implement them on nothing at all.
//! Both kinds of line are signalled from any thread without a lock.

use std::fmt;
use std::io;

use vmm_sys_util::eventfd::EventFd;

/// What a message-signalled interrupt writes where: programmed by the guest, passed on unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Address, as the guest wrote it.
    pub address: u64,
    /// Data, as the guest wrote it.
    pub data: u32,
}

/// One message-signalled interrupt: an event that, while a message is set, reaches the guest as that message.
pub trait MsiLine: Send + Sync + fmt::Debug {
    /// Writing to it raises the interrupt. While no message is set the event is held, and delivered by the next `set`:
    /// that is exactly MSI-X's pending bit.
    fn event(&self) -> &EventFd;

    /// Sets the message, or masks the line with `None`.
    ///
    /// # Errors
    /// When the kernel refuses the route.
    fn set(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// Where devices get their MSI lines from.
pub trait MsiAllocator: Send + Sync + fmt::Debug {
    /// A fresh, masked line. Dropping it gives it back.
    ///
    /// # Errors
    /// When there are no lines or descriptors left.
    fn allocate(&self) -> io::Result<Box<dyn MsiLine>>;
}

/// A wire to the interrupt controller (an ISA or ACPI interrupt).
pub trait IrqLine: Send + Sync + fmt::Debug {
    /// Sets the level. An edge-triggered device raises and lowers.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_level(&self, high: bool) -> io::Result<()>;
}
