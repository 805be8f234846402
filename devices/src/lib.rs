//! What the guest sees of the machine besides CPUs and RAM: buses, PCI, the virtio transport and devices, and the few
//! legacy devices a PC cannot do without. Knows no KVM: interrupts leave through the traits of [`interrupt`].

pub mod bus;
pub mod console;
pub mod cpu_hotplug;
pub mod firmware;
pub mod interrupt;
pub mod legacy;
pub mod pci;
pub mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub mod threads;
pub mod throttle;
pub mod virtio;
