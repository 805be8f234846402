//! The way to tell a disk's driver that the configuration has changed: its capacity.
//!
//! Made where the disk is kept, so that it leads to the device of the present life of the machine. Rung on the control plane's threads; the guest
//! decides only whether there is a driver that hears it.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::virtio::QueueInterrupt;

/// Leads to the driver while it has a queue.
#[derive(Debug, Default)]
pub struct ConfigBell(Mutex<Option<Arc<dyn QueueInterrupt>>>);

impl ConfigBell {
    /// Tells the driver. One that comes later reads the configuration anyway.
    pub fn ring(&self) {
        let interrupt = self.0.lock().clone();
        if let Some(interrupt) = interrupt {
            interrupt.signal_config();
        }
    }

    /// There is a driver, and this is the way to it.
    pub(super) fn lead_to(&self, interrupt: &Arc<dyn QueueInterrupt>) {
        *self.0.lock() = Some(Arc::clone(interrupt));
    }

    /// There is none any more.
    pub(super) fn lead_nowhere(&self) {
        *self.0.lock() = None;
    }
}
