//! What console devices (the 16550 and virtio-console ports) share with whoever shows them: output goes to a
//! [`ConsoleSink`], input comes through a [`ConsoleInput`].
//!
//! Sinks are called on vCPU threads and device workers with bytes the guest chose; inputs by the host.

use std::fmt;

use vmm_sys_util::eventfd::EventFd;

/// Where a console's output goes.
pub trait ConsoleSink: Send + Sync + fmt::Debug {
    /// Takes all of `bytes` (one at a time from a serial port) and returns at once: a sink whose readers are slow drops its oldest
    /// bytes. The caller may hold a device's lock.
    fn write(&self, bytes: &[u8]);
}

/// A console's keyboard side. Implemented by the devices, used by the host from any thread.
pub trait ConsoleInput: Send + Sync + fmt::Debug {
    /// Takes as many bytes as there is space for and says how many. Never blocks.
    fn enqueue(&self, bytes: &[u8]) -> usize;

    /// Becomes readable once there is space again, after [`enqueue`](Self::enqueue) could not take everything.
    fn space(&self) -> &EventFd;
}
