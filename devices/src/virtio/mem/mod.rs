//! Memory device (VIRTIO 1.2 §5.15): memory that a running guest plugs in and out, block by block, as much as it is asked to.
//!
//! [`MemHandle`] is the owner's side: how much is requested, how much is plugged in. It is made once and outlives the device,
//! which a VM reset replaces; [`Supply`] is the way to the owner of the memory. One worker thread serves the queue while it runs.
//! A device that is made is one after power-on: nothing is plugged in. A reset by the driver changes no block, as the
//! specification says: a kernel that takes over from another (kexec) asks what is plugged in, or unplugs all.
//!
//! The guest chooses what it plugs and when, and every number in its requests. More than is requested is not plugged in; blocks are
//! checked against the region and against what is plugged in. What is unplugged goes back to the host at once. The driver is
//! told that unplugged memory is inaccessible, but the region stays mapped: a guest that breaks this rule, or lets another device
//! write there, reads zeros and makes pages, within the size of the region; they go with the next unplugging of all.

mod blocks;
mod engine;
mod handle;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use handle::{CounterValues, MemError, MemHandle, MemStatus};

use self::engine::Engine;
use super::balloon::Reclaim;
use super::ring::Ring;
use super::worker::Worker;
use super::{DeviceError, QueueResources, VirtioDevice};
use crate::bus::read_bytes;

/// VIRTIO_ID_MEM.
const DEVICE_TYPE: u16 = 24;
/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver does not touch what is not plugged in, not even to read it.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

const QUEUE_SIZES: [u16; 1] = [128];

/// Gives guest RAM to the guest, and takes it [back](Reclaim). Implemented where the RAM is owned, called on the device's worker thread.
pub trait Supply: Reclaim {
    /// Sees to it that the memory behind a range of guest-physical addresses is there once it is touched, as far as the host can
    /// promise. Both ends are multiples of the granule.
    ///
    /// # Errors
    /// When the host has none to give; some of it may be there all the same.
    fn provide(&self, range: Range<u64>) -> io::Result<()>;
}

/// A memory device.
#[derive(Debug)]
pub struct VirtioMem {
    engine: Arc<Engine>,
    id: String,
    worker: Option<Worker<Ring>>,
}

impl VirtioMem {
    /// A device after power-on: what an earlier one had plugged in goes back to the host. `id` as in the VM spec. Only one device at a time
    /// may have the handle, whose blocks are multiples of the memory's granule.
    #[must_use]
    pub fn new(id: impl Into<String>, handle: MemHandle, memory: Arc<dyn Supply>) -> Self {
        let id = id.into();
        debug_assert!(handle.block_size().is_multiple_of(memory.granule()));
        let engine = Engine::new(id.clone(), handle, memory);
        // Where the host does not take it back, the guest sees what it had, and is free to unplug it.
        engine.start_over();
        Self {
            engine: Arc::new(engine),
            id,
            worker: None,
        }
    }

    fn start(&self, resources: QueueResources) -> io::Result<Worker<Ring>> {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (engine, rung) = (Arc::clone(&self.engine), Arc::clone(&doorbell));
        let ring = Ring::new(0, resources);
        // Before the worker looks at what is requested: nothing is set between the two unheard.
        self.engine.handle().set_driver(Some(doorbell));
        let worker = Worker::spawn(&self.id, move |events| engine.run(&events, ring, &rung));
        if worker.is_err() {
            self.engine.handle().set_driver(None);
        }
        worker
    }
}

impl VirtioDevice for VirtioMem {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.engine.handle().config(), offset, data);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let started = if index != 0 {
            Err(io::ErrorKind::InvalidInput.into())
        } else if self.worker.is_some() {
            Err(io::ErrorKind::AlreadyExists.into())
        } else {
            self.start(resources)
        };
        let worker = started.map_err(|source| DeviceError {
            device: self.id.clone(),
            action: format!("starting queue {index}"),
            source,
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        if index != 0 {
            return None;
        }
        let worker = self.worker.take()?;
        let ring = worker.stop();
        self.engine.handle().set_driver(None);
        ring.map(Ring::into_queue)
    }
}

impl Drop for VirtioMem {
    fn drop(&mut self) {
        // One that was stopped says nothing more: the handle may be another device's by now.
        self.stop_queue(0);
    }
}
