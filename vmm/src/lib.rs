//! The machine: KVM, memory, vCPUs, boot, firmware tables, the state driver, the command line and the doctor.

pub mod acpi;
pub mod balloon;
pub mod boot;
pub mod cli;
pub mod console;
pub mod cpu;
pub mod doctor;
pub mod driver;
mod error;
pub mod growth;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod processors;
pub mod slot;
pub mod systemd;
pub mod terminal;
pub mod vcpu;

pub use error::Error;
