//! A started queue as a worker serves it: chains in, used buffers and interrupts out, and a driver that breaks the rules stopped for
//! good (VIRTIO 1.2 §2.1.2) without every device checking for it.
//!
//! Lives on the worker's thread. The guest chooses everything in the ring.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Chain, RingError};
use super::{GuestMap, QueueResources};

/// A started queue.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    resources: QueueResources,
    /// The driver broke the ring: nothing is served until the device is reset.
    broken: bool,
    /// Buffers were used since the driver was last told.
    used: bool,
}

impl Ring {
    /// Queue `index` of its device.
    #[must_use]
    pub fn new(index: u16, resources: QueueResources) -> Self {
        Self {
            index,
            resources,
            broken: false,
            used: false,
        }
    }

    /// The map of guest RAM to use for a batch of chains. Take it anew for each batch: memory may be hot-plugged.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestMap> {
        self.resources.memory.memory().into_inner()
    }

    /// What the driver's notifications arrive on.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.resources.kick
    }

    /// Forgets the notifications that have arrived. Only after the worker was woken by them, as it may block otherwise.
    pub fn acknowledge(&self) {
        let _ = self.resources.kick.read();
    }

    /// The next chain, if there is one.
    pub fn pop(&mut self, memory: &GuestMap) -> Option<Chain> {
        if self.broken {
            return None;
        }
        let popped = chain::pop(&mut self.resources.queue, memory);
        self.check(popped).flatten()
    }

    /// Puts the chain popped last back to be popped again.
    pub fn unpop(&mut self) {
        self.resources.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes in its writable part.
    pub fn push_used(&mut self, memory: &GuestMap, head: u16, written: u64) {
        // A chain has less than 2^32 bytes.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        let added = self.resources.queue.add_used(memory, head, written);
        self.used |= self.check(added.map_err(RingError::from)).is_some();
    }

    /// Interrupts the driver if something was used since the last call and it wants to know. Call after a batch.
    pub fn flush(&mut self, memory: &GuestMap) {
        if !std::mem::take(&mut self.used) || self.broken {
            return;
        }
        let wanted = chain::wants_interrupt(&mut self.resources.queue, memory);
        if self.check(wanted) == Some(true) {
            self.resources.interrupt.signal_queue(self.index);
        }
    }

    /// Asks the driver to notify of new chains; whether some came in the meantime, which it then did not notify of.
    pub fn arm(&mut self, memory: &GuestMap) -> bool {
        if self.broken {
            return false;
        }
        let armed = self.resources.queue.enable_notification(memory);
        self.check(armed.map_err(RingError::from)) == Some(true)
    }

    /// Tells the driver that the device's configuration changed.
    pub fn signal_config(&self) {
        self.resources.interrupt.signal_config();
    }

    /// A failure while using guest RAM that [`chain::pop`] had checked: the driver's fault, or that of the memory's owner.
    pub fn check<T>(&mut self, result: Result<T, RingError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if !std::mem::replace(&mut self.broken, true) {
                    let reason = format!("queue {}: {error}", self.index);
                    self.resources.interrupt.needs_reset(&reason);
                }
                None
            }
        }
    }

    /// The ring, for the transport.
    #[must_use]
    pub fn into_queue(self) -> Queue {
        self.resources.queue
    }
}
