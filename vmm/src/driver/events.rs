//! What the machine tells the driver: from vCPU threads, without waiting for it. The guest chooses when and how often.

use std::sync::Arc;

use paddock_devices::cpu_hotplug::CpuEvents;
use paddock_devices::legacy::PowerEvents;
use paddock_devices::pci::hotplug::SlotEvents;
use tokio::sync::{Notify, mpsc};

use crate::machine::MachineEvents;
use crate::vcpu::report::CrashReport;

/// Events of one life of the machine. The first that ends it decides, so the rest may be lost.
pub(super) const EVENTS: usize = 16;

/// What the machine tells the driver.
#[derive(Debug)]
pub(super) enum Event {
    PowerOff,
    Reset,
    Crashed(Box<CrashReport>),
}

/// Leaves events for the driver, from vCPU threads.
#[derive(Debug, Clone)]
pub(super) struct Events {
    pub(super) sender: mpsc::Sender<Event>,
    /// The guest let go of a device or a CPU; which one, the machine knows. Never lost, as an event may be.
    pub(super) released: Arc<Notify>,
}

impl Events {
    fn send(&self, event: Event) {
        // Full means that the machine's fate is decided already.
        let _ = self.sender.try_send(event);
    }
}

impl PowerEvents for Events {
    fn power_off(&self) {
        self.send(Event::PowerOff);
    }

    fn reset(&self) {
        self.send(Event::Reset);
    }
}

impl SlotEvents for Events {
    fn slot_released(&self) {
        self.released.notify_one();
    }
}

impl CpuEvents for Events {
    fn cpu_released(&self) {
        self.released.notify_one();
    }
}

impl MachineEvents for Events {
    fn crashed(&self, report: CrashReport) {
        self.send(Event::Crashed(Box::new(report)));
    }

    fn power(&self) -> Arc<dyn PowerEvents> {
        Arc::new(self.clone())
    }

    fn slots(&self) -> Arc<dyn SlotEvents> {
        Arc::new(self.clone())
    }

    fn cpus(&self) -> Arc<dyn CpuEvents> {
        Arc::new(self.clone())
    }
}
