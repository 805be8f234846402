//! The PCI slots of a machine: each virtio device gets the next free one, and its BAR the next free place high in memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use paddock_devices::bus::Bus;
use paddock_devices::pci::PciFunction;
use paddock_devices::pci::root::PciRoot;
use paddock_devices::virtio::pci::{BAR_LENGTH, Doorbells, VirtioPci};
use paddock_devices::virtio::{GuestRam, VirtioDevice};

use super::chipset::Chipset;
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
    next_bar: u64,
    window: Range<u64>,
    functions: Vec<Arc<VirtioPci>>,
}

impl PciSlots {
    /// Slots of `chipset`'s bus; BARs go into `window`.
    pub fn new(vm: &Vm, chipset: &Chipset, window: Range<u64>) -> Self {
        Self {
            root: Arc::clone(&chipset.pci),
            mmio: Arc::clone(&chipset.buses.mmio),
            memory: vm.memory().clone(),
            interrupts: MessageLines(Arc::clone(vm.interrupts())),
            doorbells: vm.doorbells(),
            next_bar: window.start.next_multiple_of(BAR_LENGTH),
            window,
            functions: Vec::new(),
        }
    }

    /// Plugs a device in, with its BAR placed as firmware would.
    ///
    /// # Errors
    /// When the bus is full or the host lacks something; `pointer` says which part of the spec the device is.
    pub fn plug(&mut self, pointer: &str, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let at = self
            .root
            .free_device()
            .ok_or(Error::TooManyDevices(PLACES))?;
        let function = VirtioPci::new(
            device,
            self.memory.clone(),
            Arc::clone(&self.mmio),
            &self.interrupts,
            Arc::clone(&self.doorbells),
        )
        .map_err(|error| Error::part(pointer, error))?;
        let bar = self.next_bar;
        debug_assert!(bar + BAR_LENGTH <= self.window.end);
        self.next_bar += BAR_LENGTH;
        function.place(bar);
        self.root
            .add(at, Arc::clone(&function) as _)
            .map_err(|_| Error::TooManyDevices(PLACES))?;
        self.functions.push(function);
        Ok(())
    }

    /// Stops every device and takes it off the bus.
    pub fn shut_down(&self) {
        for function in &self.functions {
            function.shut_down();
        }
    }

    /// After [`shut_down`](Self::shut_down), waits until no backend can write to guest RAM any more, however long storage takes: RAM
    /// that a late read may still land in must not be given to the next machine.
    pub fn wait_until_quiet(&self) {
        let mut waited = Duration::ZERO;
        while let Some(busy) = self.functions.iter().find(|f| !f.is_quiet()) {
            if waited.as_secs().is_multiple_of(10) && waited.subsec_millis() == 0 {
                let device = busy.name();
                tracing::warn!(device, "waits for requests from before the reset");
            }
            std::thread::sleep(QUIET_INTERVAL);
            waited += QUIET_INTERVAL;
        }
    }
}

impl Drop for PciSlots {
    fn drop(&mut self) {
        self.shut_down();
    }
}
