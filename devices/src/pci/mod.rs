//! PCI: configuration space, the root bus with its two ways in (ports CF8/CFC and ECAM), MSI-X, and the two chipset functions
//! of q35-lite (DESIGN §4).
//!
//! Configuration accesses and BAR accesses run on vCPU threads; everything in them is the guest's choice.

pub mod bars;
pub mod config;
pub mod host_bridge;
pub mod hotplug;
pub mod lpc;
pub mod msix;
pub mod root;

use std::fmt;

/// Device number (0 to 31) and function number (0 to 7) on bus 0, the only bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceFunction {
    device: u8,
    function: u8,
}

impl DeviceFunction {
    /// `None` when either number is out of range.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self { device, function })
        } else {
            None
        }
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

impl fmt::Debug for DeviceFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A PCI function as the root bus sees it.
pub trait PciFunction: Send + Sync + fmt::Debug {
    /// The device's name, for logs and crash reports.
    fn name(&self) -> &str;

    /// Reads configuration space. `offset + data.len()` is at most 4096; any width and alignment.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, likewise.
    fn write_config(&self, offset: u16, data: &[u8]);
}
