//! A flash in the guest's address space: a memory slot that the guest can only read.
//!
//! The machine's builder puts it in; afterwards the flash takes it out and in on vCPU threads, as the guest asks for its status.

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use paddock_devices::firmware::flash::{FlashMemory, FlashSlot};

/// A read-only memory slot. It stays in the guest when this is dropped, and goes with the VM.
pub struct ReadOnlySlot {
    vm: Arc<VmFd>,
    number: u32,
    address: u64,
    /// What is shown.
    memory: Arc<FlashMemory>,
}

impl fmt::Debug for ReadOnlySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnlySlot")
            .field("number", &self.number)
            .field("address", &format_args!("{:#x}", self.address))
            .finish_non_exhaustive()
    }
}

impl ReadOnlySlot {
    /// Slot `number` of `vm`, to show `memory` at `address`. Not there yet.
    pub(super) fn new(vm: Arc<VmFd>, number: u32, address: u64, memory: Arc<FlashMemory>) -> Self {
        Self {
            vm,
            number,
            address,
            memory,
        }
    }

    /// Puts it into the guest's address space.
    pub(super) fn put_in(&self) -> io::Result<()> {
        self.set(self.memory.size() as u64)
    }

    #[expect(
        unsafe_code,
        reason = "KVM maps the flash by the host's virtual addresses"
    )]
    fn set(&self, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.number,
            guest_phys_addr: self.address,
            memory_size: size,
            userspace_addr: self.memory.host_address() as u64,
            flags: KVM_MEM_READONLY,
        };
        // SAFETY: `size` is zero, which takes the slot out, or that of the mapping owned by `memory`, which `Vm` holds as long as the VM,
        // as it does guest RAM. The guest cannot write through the slot.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

impl FlashSlot for ReadOnlySlot {
    fn set_present(&self, present: bool) -> io::Result<()> {
        if present { self.put_in() } else { self.set(0) }
    }
}
