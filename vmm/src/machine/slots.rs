//! The PCI slots of a machine. A device gets the next free one and keeps it across resets.
//!
//! Devices of a machine that is being built get their BAR placed high in memory, as firmware would, unless there is firmware; one that is
//! added to a running machine comes as on real hardware, and the guest places it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use paddock_devices::bus::Bus;
use paddock_devices::pci::hotplug::HotPlug;
use paddock_devices::pci::root::PciRoot;
use paddock_devices::pci::{DeviceFunction, PciFunction};
use paddock_devices::virtio::GuestRam;
use paddock_devices::virtio::pci::{BAR_LENGTH, Doorbells, VirtioPci};

use super::chipset::Chipset;
use super::devices::OpenDevice;
use crate::Error;
use crate::kvm::{MessageLines, Vm};

/// How often to look whether a device is quiet.
const QUIET_INTERVAL: Duration = Duration::from_millis(100);
/// Device numbers on a bus, less the host bridge and the LPC bridge.
const PLACES: usize = 30;

/// Places virtio devices.
#[derive(Debug)]
pub struct PciSlots {
    root: Arc<PciRoot>,
    mmio: Arc<Bus>,
    memory: GuestRam,
    interrupts: MessageLines,
    doorbells: Arc<dyn Doorbells>,
    /// What is left of the window for BARs; `None`: firmware places them.
    window: Option<Range<u64>>,
    hot_plug: Arc<HotPlug>,
    functions: BTreeMap<DeviceFunction, Arc<VirtioPci>>,
}

impl PciSlots {
    /// Slots of `chipset`'s bus; BARs go into `window`, or where firmware places them.
    pub fn new(vm: &Vm, chipset: &Chipset, window: Option<Range<u64>>) -> Self {
        Self {
            root: Arc::clone(&chipset.pci),
            mmio: Arc::clone(&chipset.buses.mmio),
            memory: vm.memory().clone(),
            interrupts: MessageLines(Arc::clone(vm.interrupts())),
            doorbells: vm.doorbells(),
            window,
            hot_plug: Arc::clone(&chipset.hot_plug),
            functions: BTreeMap::new(),
        }
    }

    /// Plugs a device in before the guest runs.
    ///
    /// # Errors
    /// When the bus is full or the host lacks something.
    pub fn plug(&mut self, device: &mut OpenDevice) -> Result<(), Error> {
        let function = self.fill(device)?;
        if let Some(window) = &mut self.window {
            let bar = window.start.next_multiple_of(BAR_LENGTH);
            debug_assert!(bar + BAR_LENGTH <= window.end);
            window.start = bar + BAR_LENGTH;
            function.place(bar);
        }
        Ok(())
    }

    /// Plugs a device in and tells the guest, which runs.
    ///
    /// # Errors
    /// When the bus is full or the host lacks something.
    pub fn hot_plug(&mut self, device: &mut OpenDevice) -> Result<(), Error> {
        self.fill(device)?;
        if let Some(at) = device.slot {
            self.hot_plug.added(at);
        }
        Ok(())
    }

    /// Puts the device into its slot, or the next free one if it has none yet.
    fn fill(&mut self, device: &mut OpenDevice) -> Result<Arc<VirtioPci>, Error> {
        let full = || Error::TooManyDevices(PLACES);
        let at = device.slot.or_else(|| self.free_slot()).ok_or_else(full)?;
        let wrong = |error| Error::part(device.key().to_string(), error);
        let virtio = device.make().map_err(wrong)?;
        let function = VirtioPci::counting_in(
            device.broken(),
            virtio,
            self.memory.clone(),
            Arc::clone(&self.mmio),
            &self.interrupts,
            Arc::clone(&self.doorbells),
        )
        .map_err(|error| wrong(error.into()))?;
        self.root
            .add(at, Arc::clone(&function) as _)
            .map_err(|_| full())?;
        self.functions.insert(at, Arc::clone(&function));
        device.slot = Some(at);
        Ok(function)
    }

    /// Not one that the guest let go of and whose function is still here.
    fn free_slot(&self) -> Option<DeviceFunction> {
        let mut free = self.root.free_devices();
        free.find(|at| !self.functions.contains_key(at))
    }

    /// Takes a function out whose slot the guest has let go of.
    pub fn take(&mut self, at: DeviceFunction) -> Option<Arc<VirtioPci>> {
        self.functions.remove(&at)
    }

    /// Stops every device and takes it off the bus.
    pub fn shut_down(&self) {
        for function in self.functions.values() {
            function.shut_down();
        }
    }

    /// After [`shut_down`](Self::shut_down), waits until nothing can write to guest RAM any more.
    pub fn wait_until_quiet(&self) {
        self.functions.values().for_each(|f| wait_until_quiet(f));
    }
}

/// Waits until no backend of a function that was shut down can write to guest RAM any more, however long storage takes: RAM that a
/// late read may still land in must not be given to the next machine, and a disk that may still be written not to another VM.
pub fn wait_until_quiet(function: &VirtioPci) {
    let mut waited = Duration::ZERO;
    while !function.is_quiet() {
        if waited.as_secs().is_multiple_of(10) && waited.subsec_millis() == 0 {
            let device = function.name();
            tracing::warn!(device, "waits for the last requests");
        }
        std::thread::sleep(QUIET_INTERVAL);
        waited += QUIET_INTERVAL;
    }
}

impl Drop for PciSlots {
    fn drop(&mut self) {
        self.shut_down();
    }
}
