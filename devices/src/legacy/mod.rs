//! The few devices a PC cannot do without: 16550 serial port, CMOS clock, ACPI power management, reset and debug ports.
//!
//! Each is a [`BusDevice`](crate::bus::BusDevice) served on vCPU threads; whoever builds the machine decides where it lies. There is
//! deliberately no i8042: its ports read as all-ones, which firmware and kernels understand at once, while a half-made one costs
//! them thousands of exits. Port 0x61 belongs to the in-kernel PIT.

pub mod acpi_pm;
mod civil;
pub mod cmos;
pub mod debug;
pub mod reset;
pub mod serial;

use std::fmt;

/// What the guest asks of the machine through its power ports. Called on a vCPU thread, possibly often: leaves a note for the
/// state driver and returns at once.
pub trait PowerEvents: Send + Sync + fmt::Debug {
    /// The guest entered S5: it is done.
    fn power_off(&self);
    /// The guest wants to start over.
    fn reset(&self);
}
