//! Doorbells as ioeventfds: a notification becomes an event inside the kernel, and the vCPU goes on.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use paddock_devices::virtio::pci::Doorbells;
use vmm_sys_util::eventfd::EventFd;

/// Registers ioeventfds with a VM.
pub struct IoEvents {
    vm: Arc<VmFd>,
}

impl IoEvents {
    /// Doorbells of `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl std::fmt::Debug for IoEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoEvents")
    }
}

impl Doorbells for IoEvents {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        // No data match and no length: any write rings, whatever its width.
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn disconnect(&self, address: u64, event: &EventFd) {
        let result = self
            .vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
        if let Err(error) = result {
            tracing::debug!(address, "ioeventfd not removed: {error}");
        }
    }
}
