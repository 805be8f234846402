//! The LPC bridge, 8086:2918 at 00:1f.0: PMBASE and ACPI_CNTL decide where the ACPI power-management ports are.
//!
//! Firmware programs both; on a direct kernel boot the machine does it beforehand, where the ACPI tables say it is.

use std::sync::Arc;

use parking_lot::Mutex;

use super::PciFunction;
use super::config::{ConfigSpace, Identity, touches};
use crate::bus::{Bus, BusDevice};

/// PMBASE: bits 15:7 of the port base; bit 0 reads 1 (I/O space).
const PMBASE: u16 = 0x40;
const PMBASE_MASK: u32 = 0xff80;
/// ACPI_CNTL: bit 7 enables the power-management ports.
const ACPI_CNTL: u16 = 0x44;
const ACPI_CNTL_ENABLE: u8 = 1 << 7;
/// Ports of the power-management block.
pub const PM_PORTS: u64 = 128;
/// PIRQ routing registers: scratch for firmware.
const PIRQ: [usize; 2] = [0x60, 0x68];
/// Root complex base address: stored, not decoded.
const RCBA: usize = 0xf0;

/// The LPC bridge.
#[derive(Debug)]
pub struct LpcBridge {
    ports: Arc<Bus>,
    pm_block: Arc<dyn BusDevice>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: ConfigSpace,
    mapped: Option<u64>,
}

impl LpcBridge {
    /// Serves `pm_block` on `ports`; at power-on at `base` (a multiple of 128), or nowhere, as firmware expects.
    #[must_use]
    pub fn new(ports: Arc<Bus>, pm_block: Arc<dyn BusDevice>, base: Option<u16>) -> Self {
        let mut config = ConfigSpace::new(&Identity {
            vendor: 0x8086,
            device: 0x2918,
            revision: 2,
            class: 0x06_01_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            multi_function: false,
        });
        config.allow(usize::from(PMBASE), &PMBASE_MASK.to_le_bytes());
        config.allow(usize::from(ACPI_CNTL), &[0x87]);
        for pirq in PIRQ {
            config.set(pirq, &[0x80; 4]);
            config.allow(pirq, &[0x8f; 4]);
        }
        config.allow(RCBA, &0xffff_c001_u32.to_le_bytes());
        config.set(
            usize::from(PMBASE),
            &(u32::from(base.unwrap_or(0)) & PMBASE_MASK | 1).to_le_bytes(),
        );
        if base.is_some() {
            config.set(usize::from(ACPI_CNTL), &[ACPI_CNTL_ENABLE]);
        }
        let this = Self {
            ports,
            pm_block,
            state: Mutex::new(State {
                config,
                mapped: None,
            }),
        };
        this.move_block(&mut this.state.lock());
        this
    }

    /// Where the power-management ports are now.
    #[must_use]
    pub fn pm_base(&self) -> Option<u64> {
        self.state.lock().mapped
    }

    fn move_block(&self, state: &mut State) {
        let enabled = state.config.read_u16(ACPI_CNTL) & u16::from(ACPI_CNTL_ENABLE) != 0;
        let base = u64::from(state.config.read_u32(PMBASE) & PMBASE_MASK);
        let wanted = (enabled && base != 0).then_some(base);
        if wanted == state.mapped {
            return;
        }
        if let Some(base) = state.mapped.take() {
            let removed = self.ports.remove(base);
            debug_assert!(removed.is_ok(), "the block was on the bus");
        }
        if let Some(base) = wanted {
            match self
                .ports
                .insert(base, PM_PORTS, Arc::clone(&self.pm_block))
            {
                Ok(()) => state.mapped = wanted,
                Err(error) => tracing::debug!("power-management ports stay off: {error}"),
            }
        }
    }
}

impl PciFunction for LpcBridge {
    fn name(&self) -> &str {
        "lpc-bridge"
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.state.lock().config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.state.lock();
        state.config.write(offset, data);
        if touches(offset, data.len(), PMBASE, 5) {
            self.move_block(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{ACPI_CNTL, LpcBridge, PMBASE};
    use crate::bus::{Bus, BusDevice};
    use crate::pci::PciFunction;
    use crate::pci::root::{Ecam, PciRoot};

    #[test]
    fn the_pm_block_follows_its_registers() {
        let block: Arc<dyn BusDevice> = Arc::new(Ecam::new(&Arc::new(PciRoot::default())));
        let lpc = LpcBridge::new(Arc::new(Bus::default()), block, None);
        assert_eq!(lpc.pm_base(), None);
        lpc.write_config(PMBASE, &0x601_u32.to_le_bytes());
        assert_eq!(lpc.pm_base(), None, "not enabled");
        lpc.write_config(ACPI_CNTL, &[0x80]);
        assert_eq!(lpc.pm_base(), Some(0x600));
        lpc.write_config(PMBASE, &0xffff_ffff_u32.to_le_bytes());
        assert_eq!(lpc.pm_base(), Some(0xff80));
        lpc.write_config(ACPI_CNTL, &[0]);
        assert_eq!(lpc.pm_base(), None);
    }
}
