//! virtio-scsi (VIRTIO 1.2 §5.6) with one CD-ROM drive: target 0, unit 0. Firmware and installers look for their media there.
//!
//! [`CdromHandle`] is the owner's side: the medium is inserted, ejected and changed through it while the guest runs. It is made once and
//! outlives the device, which a VM reset replaces. One worker thread serves all queues, from the first that starts to the last that
//! stops. `cdrom` is what the drive answers; `reads` gets the blocks.
//!
//! The guest chooses every byte of its requests. A medium is only read, into memory of the worker's, from where it is copied to guest
//! RAM: a host that does not answer can be waited for no longer at any time, and a command that is aborted writes nothing any more. What
//! such a host leaves unanswered when the queue is stopped is answered BUSY, upon which drivers ask again.

mod cdrom;
mod engine;
mod handle;
mod reads;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::Queue;

pub use handle::{CdromError, CdromHandle, CdromStatus, CounterValues, Medium};

use self::engine::{Brakes, Engine};
use self::request::{EVENT_LENGTH, Sizes};
use super::service::Service;
use super::{DeviceError, QueueResources, VirtioDevice};

/// The drive's target on its adapter, as firmware is to find it.
pub const DRIVE_TARGET: u16 = 0;
/// The drive's logical unit there.
pub const DRIVE_LUN: u16 = 0;

/// VIRTIO_ID_SCSI.
const DEVICE_TYPE: u16 = 8;

/// Control, events, requests.
const QUEUES: usize = 3;
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; QUEUES] = [QUEUE_SIZE; QUEUES];

/// How long stopping the queue waits for a host that reads.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of struct virtio_scsi_config.
const CONFIG_LENGTH: usize = 36;
/// Where in it the fields are that the driver writes.
const SENSE_SIZE: usize = 20;
const CDB_SIZE: usize = 24;

/// Segments of one request: those of a full queue without the headers'.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most that drivers should read at once, in sectors of 512 bytes.
const MAX_SECTORS: u32 = 512;

/// A SCSI host adapter with a CD-ROM drive.
#[derive(Debug)]
pub struct VirtioScsi {
    id: String,
    handle: CdromHandle,
    sizes: Arc<Sizes>,
    brakes: Arc<Brakes>,
    service: Service<Engine>,
    drain_deadline: Duration,
}

impl VirtioScsi {
    /// A device after power-on. `id` as in the VM spec. Only one device at a time may have the handle.
    #[must_use]
    pub fn new(id: impl Into<String>, handle: CdromHandle) -> Self {
        handle.reset_drive();
        Self {
            id: id.into(),
            handle,
            sizes: Arc::default(),
            brakes: Arc::default(),
            service: Service::default(),
            drain_deadline: DRAIN_DEADLINE,
        }
    }

    /// Nobody rings for a worker that is gone.
    fn hang_up(&self) {
        if !self.service.is_running() {
            self.handle.set_driver(None);
        }
    }

    /// struct virtio_scsi_config: one target with one unit.
    fn config(&self) -> [u8; CONFIG_LENGTH] {
        let mut config = [0; CONFIG_LENGTH];
        for (at, value) in [
            (0, 1_u32), // num_queues
            (4, SEGMENTS),
            (8, MAX_SECTORS),
            (12, u32::from(QUEUE_SIZE)), // cmd_per_lun
            (16, u32::try_from(EVENT_LENGTH).unwrap_or(0)),
            (SENSE_SIZE, Sizes::limited(&self.sizes.sense)),
            (CDB_SIZE, Sizes::limited(&self.sizes.cdb)),
        ] {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        // max_channel, max_target and max_lun are 0.
        config
    }

    /// Replaces the bytes of a field that a write touches.
    fn write_field(field: &AtomicU32, at: usize, offset: u64, data: &[u8]) {
        let mut bytes = field.load(Ordering::Acquire).to_le_bytes();
        for (i, slot) in (at as u64..).zip(&mut bytes) {
            let byte = i
                .checked_sub(offset)
                .and_then(|i| data.get(usize::try_from(i).ok()?));
            if let Some(byte) = byte {
                *slot = *byte;
            }
        }
        field.store(u32::from_le_bytes(bytes), Ordering::Release);
    }
}

impl VirtioDevice for VirtioScsi {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        // Units come and go with their adapter, and changed media are told the MMC way (§5.6.6.3): no HOTPLUG, no CHANGE.
        1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        data.fill(0);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        for (slot, byte) in data.iter_mut().zip(rest) {
            *slot = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        Self::write_field(&self.sizes.sense, SENSE_SIZE, offset, data);
        Self::write_field(&self.sizes.cdb, CDB_SIZE, offset, data);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        if usize::from(index) >= QUEUES {
            return Err(DeviceError {
                device: self.id.clone(),
                action: format!("starting queue {index}"),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        let make = || {
            let (handle, sizes) = (self.handle.clone(), Arc::clone(&self.sizes));
            let brakes = Arc::clone(&self.brakes);
            Engine::new(self.id.clone(), handle, sizes, brakes, self.drain_deadline)
        };
        // Before the engine looks at the tray: nothing is changed between the two unheard.
        let spawned = |doorbell: &_| self.handle.set_driver(Some(Arc::clone(doorbell)));
        let started = self
            .service
            .start(&self.id, index, resources, make, spawned);
        self.hang_up();
        started
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let queue = self.service.stop(index);
        self.hang_up();
        queue
    }

    fn reset(&mut self) {
        self.service.reset();
        self.hang_up();
        self.sizes.reset();
        self.handle.reset_drive();
    }
}

impl Drop for VirtioScsi {
    fn drop(&mut self) {
        // One that was reset says nothing more: the handle may be another device's by now.
        if self.service.reset() {
            self.hang_up();
        }
    }
}
