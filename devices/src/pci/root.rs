//! The root bus and the two ways into it: ports 0xCF8–0xCFF (PCI Local Bus 3.0 §3.2.2.3.2) and the memory-mapped
//! window of PCI Express (ECAM, PCI Express Base §7.2.2).
//!
//! Functions hold the buses on which their BARs lie, and the ways in lie on those buses: so the ways in hold the root weakly, or
//! no machine would ever be freed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::config::CONFIG_SIZE;
use super::{DeviceFunction, PciFunction};
use crate::bus::BusDevice;

/// First of the configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Number of configuration ports.
pub const CONFIG_PORT_COUNT: u64 = 8;
/// Bytes of ECAM a bus takes.
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// Bus 0 and what is plugged into it.
#[derive(Debug, Default)]
pub struct PciRoot {
    functions: RwLock<BTreeMap<DeviceFunction, Arc<dyn PciFunction>>>,
}

impl PciRoot {
    /// Plugs a function in; gives it back when the place is taken.
    ///
    /// # Errors
    /// The function, when there is one at `at` already.
    pub fn add(
        &self,
        at: DeviceFunction,
        function: Arc<dyn PciFunction>,
    ) -> Result<(), Arc<dyn PciFunction>> {
        let mut functions = self.functions.write();
        if functions.contains_key(&at) {
            return Err(function);
        }
        functions.insert(at, function);
        Ok(())
    }

    /// Pulls a function out.
    pub fn remove(&self, at: DeviceFunction) -> Option<Arc<dyn PciFunction>> {
        self.functions.write().remove(&at)
    }

    /// The device numbers without any function, lowest first.
    pub fn free_devices(&self) -> impl Iterator<Item = DeviceFunction> + use<> {
        let functions = self.functions.read();
        let taken = functions
            .keys()
            .fold(0_u32, |taken, at| taken | 1 << at.device());
        (0..32)
            .filter(move |device| taken & 1 << device == 0)
            .filter_map(|device| DeviceFunction::new(device, 0))
    }

    fn get(&self, at: DeviceFunction) -> Option<Arc<dyn PciFunction>> {
        self.functions.read().get(&at).cloned()
    }

    /// Reads configuration space; where nothing is plugged in, all ones.
    pub fn read(&self, at: DeviceFunction, offset: u16, data: &mut [u8]) {
        match self.get(at) {
            Some(function) if fits(offset, data.len()) => function.read_config(offset, data),
            _ => data.fill(0xff),
        }
    }

    /// Writes configuration space.
    pub fn write(&self, at: DeviceFunction, offset: u16, data: &[u8]) {
        if let Some(function) = self.get(at) {
            if fits(offset, data.len()) {
                function.write_config(offset, data);
            }
        }
    }
}

fn fits(offset: u16, length: usize) -> bool {
    usize::from(offset) + length <= CONFIG_SIZE
}

/// Ports 0xCF8 (address) and 0xCFC (data), with the reset control register that PC chipsets put in between, at 0xCF9.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Weak<PciRoot>,
    reset_control: Arc<dyn BusDevice>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// `reset_control` answers byte accesses to 0xCF9.
    #[must_use]
    pub fn new(root: &Arc<PciRoot>, reset_control: Arc<dyn BusDevice>) -> Self {
        Self {
            root: Arc::downgrade(root),
            reset_control,
            address: AtomicU32::new(0),
        }
    }

    /// The function and register the address register and the data port's offset select.
    fn selected(&self, port_offset: u64) -> Option<(DeviceFunction, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, enable] = address.to_le_bytes();
        if enable & 0x80 == 0 || bus != 0 {
            return None;
        }
        let at = DeviceFunction::new(devfn >> 3, devfn & 7)?;
        let low = u16::try_from(port_offset & 3).ok()?;
        Some((at, u16::from(register & 0xfc) + low))
    }
}

impl BusDevice for ConfigPorts {
    fn name(&self) -> &str {
        "pci-config-ports"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (1, 1) => self.reset_control.read(0, data),
            (4..8, _) => match (self.selected(offset), self.root.upgrade()) {
                (Some((at, register)), Some(root)) => root.read(at, register, data),
                _ => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self
                .address
                .store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed),
            (1, [_]) => self.reset_control.write(0, data),
            (4..8, _) => {
                if let (Some((at, register)), Some(root)) =
                    (self.selected(offset), self.root.upgrade())
                {
                    root.write(at, register, data);
                }
            }
            _ => {}
        }
    }
}

/// The memory-mapped window: offset bits 27:20 are the bus, 19:15 the device, 14:12 the function, 11:0 the register.
#[derive(Debug)]
pub struct Ecam {
    root: Weak<PciRoot>,
}

impl Ecam {
    /// A window onto `root`.
    #[must_use]
    pub fn new(root: &Arc<PciRoot>) -> Self {
        Self {
            root: Arc::downgrade(root),
        }
    }
}

/// Splits an ECAM offset; `None` on a bus other than 0.
fn ecam_target(offset: u64) -> Option<(DeviceFunction, u16)> {
    if offset >= ECAM_BUS_SIZE {
        return None;
    }
    let device = u8::try_from(offset >> 15 & 0x1f).ok()?;
    let function = u8::try_from(offset >> 12 & 7).ok()?;
    let register = u16::try_from(offset & 0xfff).ok()?;
    Some((DeviceFunction::new(device, function)?, register))
}

impl BusDevice for Ecam {
    fn name(&self) -> &str {
        "pci-ecam"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match (ecam_target(offset), self.root.upgrade()) {
            (Some((at, register)), Some(root)) => root.read(at, register, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Some((at, register)), Some(root)) = (ecam_target(offset), self.root.upgrade()) {
            root.write(at, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::{ConfigPorts, Ecam, PciRoot};
    use crate::bus::{Bus, BusDevice};
    use crate::pci::DeviceFunction;
    use crate::pci::host_bridge::HostBridge;
    use crate::pci::lpc::LpcBridge;

    fn root() -> Arc<PciRoot> {
        let root = Arc::new(PciRoot::default());
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam::new(&root));
        let bridge = HostBridge::new(Arc::new(Bus::default()), ecam, None);
        root.add(DeviceFunction::new(0, 0).unwrap(), Arc::new(bridge))
            .unwrap();
        root
    }

    fn ports(root: &Arc<PciRoot>) -> ConfigPorts {
        // The reset register is not under test; any device will do.
        ConfigPorts::new(root, Arc::new(Ecam::new(&Arc::default())))
    }

    #[test]
    fn both_ways_lead_to_the_same_register() {
        let root = root();
        let (ports, ecam) = (ports(&root), Ecam::new(&root));
        ports.write(0, &0x8000_0000_u32.to_le_bytes());
        let (mut a, mut b) = ([0; 4], [0; 4]);
        ports.read(4, &mut a);
        ecam.read(0, &mut b);
        assert_eq!(u32::from_le_bytes(a), 0x29c0_8086);
        assert_eq!(a, b);
        let mut device = [0; 2];
        ports.read(6, &mut device);
        assert_eq!(u16::from_le_bytes(device), 0x29c0);
    }

    #[test]
    fn empty_places_read_as_ones() {
        let root = root();
        let ecam = Ecam::new(&root);
        for offset in [1 << 15, 1 << 20, 255 << 20, u64::MAX] {
            let mut data = [0; 4];
            ecam.read(offset, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        assert!(
            root.add(
                DeviceFunction::new(0, 0).unwrap(),
                root.get(DeviceFunction::new(0, 0).unwrap()).unwrap()
            )
            .is_err()
        );
        assert_eq!(root.free_devices().next(), DeviceFunction::new(1, 0));
        assert_eq!(root.free_devices().count(), 31);
    }

    #[test]
    fn a_machine_that_is_dropped_is_freed() {
        let (io_ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let root = Arc::new(PciRoot::default());
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam::new(&root));
        io_ports.insert(0xcf8, 8, Arc::new(ports(&root))).unwrap();
        let pm_block: Arc<dyn BusDevice> = Arc::new(Ecam::new(&Arc::default()));
        let bridge = HostBridge::new(Arc::clone(&mmio), ecam, Some(0xe000_0000));
        let lpc = LpcBridge::new(Arc::clone(&io_ports), pm_block, Some(0x600));
        root.add(DeviceFunction::new(0, 0).unwrap(), Arc::new(bridge))
            .unwrap();
        root.add(DeviceFunction::new(31, 0).unwrap(), Arc::new(lpc))
            .unwrap();
        let left = Arc::downgrade(&root);
        drop((root, io_ports, mmio));
        assert!(left.upgrade().is_none(), "something holds itself");
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in proptest::collection::vec((0_u64..8, any::<bool>(), proptest::collection::vec(any::<u8>(), 1..9)), 0..64)) {
            let root = root();
            let (ports, ecam) = (ports(&root), Ecam::new(&root));
            for (offset, write, mut data) in accesses {
                let far = u64::from_le_bytes([data[0]; 8]) & 0xfff_ffff;
                if write {
                    ports.write(offset, &data);
                    ecam.write(far, &data);
                } else {
                    ports.read(offset, &mut data);
                    ecam.read(far, &mut data);
                }
            }
        }
    }
}
