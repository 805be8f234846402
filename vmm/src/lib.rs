//! The machine: KVM, memory, vCPUs, boot, firmware tables, the state driver, the command line and the doctor.
//!
//! ```text
//!  cli ──▶ slot ──▶ driver ──▶ machine ──▶ vcpu, kvm, memory, paddock_devices
//!         (place    (owns      (one life   boot, acpi, smbios, cpu, layout: what its guest finds
//!         of a VM)  the VM)    of it)
//! ```
//!
//! [`balloon`], [`growth`] and [`processors`] are what changes while the guest runs, as the API sees it and the driver does it; [`console`]
//! and [`terminal`] where consoles end, [`metrics`] what is counted, [`systemd`] the process as a service. [`doctor`] judges the host.

pub mod acpi;
pub mod balloon;
pub mod boot;
pub mod cdrom;
pub mod cli;
pub mod code;
pub mod console;
pub mod cpu;
pub mod disks;
pub mod doctor;
pub mod driver;
mod error;
pub mod firmware;
pub mod growth;
pub mod heap;
pub mod kvm;
pub mod layout;
pub mod machine;
#[cfg(test)]
mod mapped;
pub mod memory;
pub mod metrics;
pub mod processors;
pub mod slot;
pub mod smbios;
pub mod stack;
pub mod systemd;
pub mod terminal;
pub mod variables;
pub mod vcpu;
pub mod volumes;

pub use error::Error;
