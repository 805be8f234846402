//! Ports by which a guest resets the machine: the reset control register 0xCF9 and system control port A, 0x92.
//!
//! Runs on vCPU threads. All a guest can do is ask for a reset, as often as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::PowerEvents;
use crate::bus::BusDevice;

/// Port of [`ResetControl`]. It lies inside the PCI configuration ports 0xCF8–0xCFF, which pass byte accesses on to it.
pub const RESET_CONTROL_PORT: u64 = 0xcf9;
/// Port of [`SystemControlA`].
pub const SYSTEM_CONTROL_A_PORT: u64 = 0x92;

/// RST_CPU: writing a one resets; SYS_RST and FULL_RST only say how thoroughly.
const RST_CPU: u8 = 1 << 2;
/// SYS_RST, RST_CPU and FULL_RST; the others read as zero.
const RESET_BITS: u8 = 0b1110;

/// Reset control register of the ICH (port 0xCF9), one byte.
#[derive(Debug)]
pub struct ResetControl {
    value: AtomicU8,
    events: Arc<dyn PowerEvents>,
}

impl ResetControl {
    /// At power-on state.
    #[must_use]
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self {
            value: AtomicU8::new(0),
            events,
        }
    }
}

impl BusDevice for ResetControl {
    fn name(&self) -> &str {
        "reset-control"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value.load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, data.first()) else {
            return;
        };
        // RST_CPU clears itself: the reset it asks for clears it.
        self.value
            .store(value & RESET_BITS & !RST_CPU, Ordering::Relaxed);
        if value & RST_CPU != 0 {
            self.events.reset();
        }
    }
}

/// INIT_NOW: a rising edge resets the CPU.
const FAST_RESET: u8 = 1 << 0;
/// ALT_A20_GATE. A20 is always on; the bit is stored for those who read it back.
const FAST_A20: u8 = 1 << 1;

/// System control port A (port 0x92), one byte.
#[derive(Debug)]
pub struct SystemControlA {
    value: AtomicU8,
    events: Arc<dyn PowerEvents>,
}

impl SystemControlA {
    /// At power-on state, with A20 on.
    #[must_use]
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self {
            value: AtomicU8::new(FAST_A20),
            events,
        }
    }
}

impl BusDevice for SystemControlA {
    fn name(&self) -> &str {
        "system-control-a"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value.load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, data.first()) else {
            return;
        };
        let value = value & (FAST_RESET | FAST_A20);
        let before = self.value.swap(value, Ordering::Relaxed);
        if value & !before & FAST_RESET != 0 {
            self.events.reset();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts what the guest asked for.
    #[derive(Debug, Default)]
    pub(crate) struct Requests {
        pub(crate) power_off: AtomicUsize,
        pub(crate) reset: AtomicUsize,
    }

    impl PowerEvents for Requests {
        fn power_off(&self) {
            self.power_off.fetch_add(1, Ordering::Relaxed);
        }

        fn reset(&self) {
            self.reset.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(device: &dyn BusDevice) -> u8 {
        let mut data = [0xff];
        device.read(0, &mut data);
        data[0]
    }

    #[test]
    fn reset_control_as_linux_and_firmware_use_it() {
        let events = Arc::new(Requests::default());
        let port = ResetControl::new(Arc::clone(&events) as _);
        assert_eq!(read(&port), 0);
        port.write(0, &[0x02]);
        assert_eq!(read(&port), 2);
        assert_eq!(events.reset.load(Ordering::Relaxed), 0);
        port.write(0, &[0x06]);
        assert_eq!(events.reset.load(Ordering::Relaxed), 1);
        port.write(0, &[0xff]);
        assert_eq!(events.reset.load(Ordering::Relaxed), 2);
        assert_eq!(read(&port), 0b1010);
    }

    #[test]
    fn system_control_a_resets_on_the_rising_edge() {
        let events = Arc::new(Requests::default());
        let port = SystemControlA::new(Arc::clone(&events) as _);
        assert_eq!(read(&port), 2, "A20 is on");
        port.write(0, &[read(&port) | 2]);
        assert_eq!(events.reset.load(Ordering::Relaxed), 0);
        port.write(0, &[3]);
        port.write(0, &[3]);
        assert_eq!(events.reset.load(Ordering::Relaxed), 1);
        port.write(0, &[0]);
        port.write(0, &[1]);
        assert_eq!(events.reset.load(Ordering::Relaxed), 2);
        assert_eq!(read(&port), 1);
    }
}
