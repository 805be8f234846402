//! Firmware: which image a VM boots with, where it lies in the guest's address space, and what it is told through fw_cfg.
//!
//! ```text
//! descriptors   QEMU's JSON files: which images this host has, and what they need
//!      │ path
//! image         the file: UEFI code, UEFI code with variables, or a BIOS; checked, and its places below 4 GiB
//!      │
//! files         fw_cfg: memory map, CPUs, ACPI tables with their loader, boot order, SMBIOS
//! windows       where firmware puts 32-bit BARs, which the ACPI tables must say as well
//! ```
//!
//! Runs on the control thread before the guest does, but for the ACPI tables, which are made when the guest selects them. The files
//! that are read here are the host's, and may hold anything; none is read beyond a bound.

pub mod descriptors;
mod error;
pub mod files;
pub mod image;
pub mod windows;

pub use error::{FirmwareError, FirmwareErrorKind};
