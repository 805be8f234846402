//! The host bridge, 8086:29c0 at 00:00.0: its PCIEXBAR register decides where ECAM is.
//!
//! Firmware programs it (0xB000_0000 or 0xE000_0000, depending on its age), so the window is moved on the MMIO bus as the register
//! says; a guest that puts it over something else loses ECAM until it mends that.

use std::sync::Arc;

use parking_lot::Mutex;

use super::PciFunction;
use super::config::{ConfigSpace, Identity, touches};
use crate::bus::{Bus, BusDevice};

/// PCIEXBAR: 64 bits; bit 0 enable, bits 2:1 length (256, 128 or 64 MiB), above that the base.
const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u64 = 1;
/// Base bits 35:26 and the three control bits.
const PCIEXBAR_WRITABLE: u64 = 0xf_fc00_0007;

/// The host bridge.
#[derive(Debug)]
pub struct HostBridge {
    mmio: Arc<Bus>,
    ecam: Arc<dyn BusDevice>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: ConfigSpace,
    /// Where the window is on the bus now: base and length.
    window: Option<(u64, u64)>,
}

impl HostBridge {
    /// `ecam` is served on `mmio`; at power-on at `base` (256 MiB), or nowhere, as firmware expects.
    #[must_use]
    pub fn new(mmio: Arc<Bus>, ecam: Arc<dyn BusDevice>, base: Option<u64>) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x8086,
            device: 0x29c0,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            multi_function: false,
        });
        config.allow(usize::from(PCIEXBAR), &PCIEXBAR_WRITABLE.to_le_bytes());
        if let Some(base) = base {
            config.set(
                usize::from(PCIEXBAR),
                &(base | PCIEXBAR_ENABLE).to_le_bytes(),
            );
        }
        let this = Self {
            mmio,
            ecam,
            state: Mutex::new(State {
                config,
                window: None,
            }),
        };
        this.move_window(&mut this.state.lock());
        this
    }

    /// Where ECAM is now: base and length in bytes; `None` while it is off.
    #[must_use]
    pub fn ecam_window(&self) -> Option<(u64, u64)> {
        self.state.lock().window
    }

    fn move_window(&self, state: &mut State) {
        let wanted = wanted_window(&state.config);
        if wanted == state.window {
            return;
        }
        if let Some((base, _)) = state.window.take() {
            let removed = self.mmio.remove(base);
            debug_assert!(removed.is_ok(), "the window was on the bus");
        }
        if let Some((base, length)) = wanted {
            match self.mmio.insert(base, length, Arc::clone(&self.ecam)) {
                Ok(()) => state.window = wanted,
                Err(error) => tracing::debug!("ECAM stays off: {error}"),
            }
        }
    }
}

fn wanted_window(config: &ConfigSpace) -> Option<(u64, u64)> {
    let value =
        u64::from(config.read_u32(PCIEXBAR + 4)) << 32 | u64::from(config.read_u32(PCIEXBAR));
    let length: u64 = match value >> 1 & 3 {
        0 => 256 << 20,
        1 => 128 << 20,
        2 => 64 << 20,
        _ => return None,
    };
    let base = value & PCIEXBAR_WRITABLE & !(length - 1);
    (value & PCIEXBAR_ENABLE != 0 && base != 0).then_some((base, length))
}

impl PciFunction for HostBridge {
    fn name(&self) -> &str {
        "host-bridge"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.state.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.state.lock();
        state.config.write(offset, data);
        if touches(offset, data.len(), PCIEXBAR, 8) {
            self.move_window(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{HostBridge, PCIEXBAR};
    use crate::bus::{Bus, BusDevice};
    use crate::pci::PciFunction;
    use crate::pci::root::{Ecam, PciRoot};

    #[test]
    fn ecam_follows_the_register() {
        let bus = Arc::new(Bus::default());
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam::new(&Arc::new(PciRoot::default())));
        let bridge = HostBridge::new(Arc::clone(&bus), Arc::clone(&ecam), Some(0xe000_0000));
        assert_eq!(bridge.ecam_window(), Some((0xe000_0000, 256 << 20)));
        bridge.write_config(PCIEXBAR, &0_u32.to_le_bytes());
        assert_eq!(bridge.ecam_window(), None);
        bridge.write_config(PCIEXBAR, &0xb000_0003_u32.to_le_bytes());
        assert_eq!(bridge.ecam_window(), Some((0xb000_0000, 128 << 20)));
        bus.insert(0xd000_0000, 0x1000, ecam).unwrap();
        bridge.write_config(PCIEXBAR, &0xd000_0001_u32.to_le_bytes());
        assert_eq!(bridge.ecam_window(), None, "the place is taken");
    }
}
