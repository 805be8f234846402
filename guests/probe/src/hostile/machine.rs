//! What the attacking driver stands on: the function it has to itself, memory whose physical addresses it knows, and the ways around
//! the function (ports, other physical addresses).
//!
//! Inside a guest these are sysfs, locked memory and `/dev/mem` (the binary's module `attack`); the tests of `paddock-devices` put the
//! devices themselves behind them, so that the table of cases also runs where there is no guest.

use std::time::Duration;

/// A PCI function that no other driver uses. Nothing here fails: what is not there reads as ones, as on the bus.
pub trait Function {
    /// Reads `width` (1, 2 or 4) bytes of configuration space.
    fn read_config(&self, offset: u16, width: usize) -> u32;
    /// Writes configuration space likewise.
    fn write_config(&self, offset: u16, width: usize, value: u32);
    /// Reads `width` (1, 2, 4 or 8) bytes at any offset from where BAR 0 was when the function was taken over, also while the BAR is
    /// elsewhere.
    fn read_bar(&self, offset: u64, width: usize) -> u64;
    /// Writes there likewise.
    fn write_bar(&self, offset: u64, width: usize, value: u64);
    /// Bytes of BAR 0.
    fn bar_length(&self) -> u64;
}

/// One piece of guest RAM without holes, for rings and buffers.
pub trait Ram {
    /// Its physical address, a multiple of 64 KiB.
    fn base(&self) -> u64;
    /// Its length in bytes.
    fn length(&self) -> u64;
    /// Reads at a physical address inside.
    fn read(&self, address: u64, data: &mut [u8]);
    /// Writes at a physical address inside.
    fn write(&self, address: u64, data: &[u8]);
}

/// I/O ports.
pub trait Ports {
    /// Reads `width` (1, 2 or 4) bytes.
    fn read(&self, port: u16, width: usize) -> u32;
    /// Writes `width` bytes.
    fn write(&self, port: u16, width: usize, value: u32);
}

/// Physical addresses that are not RAM.
pub trait Physical {
    /// Reads `width` (1, 2, 4 or 8) bytes that do not cross a page; `None` where the guest's kernel allows no look.
    fn read(&self, address: u64, width: usize) -> Option<u64>;
    /// Writes likewise; whether that was allowed.
    fn write(&self, address: u64, width: usize, value: u64) -> bool;
}

/// All of it.
pub trait Machine {
    /// The function under attack.
    fn function(&self) -> &dyn Function;
    /// Another function that nobody uses meanwhile.
    fn neighbour(&self) -> Option<&dyn Function>;
    /// Memory for rings and buffers.
    fn ram(&self) -> &dyn Ram;
    /// The first physical address behind guest RAM.
    fn ram_end(&self) -> u64;
    /// I/O ports, where there are any.
    fn ports(&self) -> Option<&dyn Ports>;
    /// Other physical addresses, where they can be reached.
    fn physical(&self) -> Option<&dyn Physical>;
    /// How long a storm, a sweep or a flood lasts.
    fn storm(&self) -> Duration {
        Duration::from_secs(1)
    }
}
