//! virtio-blk (VIRTIO 1.2 §5.2) on a [`Disk`].
//!
//! Configuration is read on vCPU threads; each queue has a thread of its own that has its [`BlkQueue`] and with it
//! a queue of the disk. Data moves between guest RAM and the disk without a copy here.
//!
//! # A disk that does not answer
//! `stop_queue` waits for what the disk has, up to [`BlkOptions::drain_deadline`]. What is still in flight then can neither be
//! answered nor forgotten: a write reported as failed could land later, over newer data, and a read could land in memory
//! that the guest uses for something else. So the guest is told nothing, and the requests are kept with the disk queue:
//! - A pause that ends: `start_queue` on the same ring takes them up again. Nothing was lost, the guest saw a slow disk.
//! - A pause that wants to become a snapshot: `stop_queue` again waits again, and gives the ring as it is then.
//! - A reset: they are orphans; nobody waits for their result. The device serves nothing until the last of them is
//!   done: `start_queue` fails, and [`VirtioDevice::is_quiet`] tells the transport to keep the reset pending.
//! - The end of the process: the host finishes or drops them; the disk's lock is held until then.

mod bell;
mod config;
mod counters;
mod queue;
mod request;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use paddock_storage::Disk;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtio_queue::Queue;

use super::device::{DeviceError, QueueResources, VirtioDevice};
use worker::{QueueSetup, QueueThread, Rest};

pub use bell::ConfigBell;
pub use counters::{Counters, DURATION_BOUNDS, Kind, KindValues};
pub use queue::BlkQueue;

/// Device type of block devices (VIRTIO 1.2 §5).
const DEVICE_TYPE: u16 = 2;

/// The most queues: the driver uses one per vCPU.
const MAX_QUEUES: u16 = 256;

/// How long a stop waits for a disk that has just let the whole deadline pass.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// How a block device is shaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkOptions {
    /// Number of queues, 1 to 256.
    pub queues: u16,
    /// Size of each queue: a power of two, 4 to 1024.
    pub queue_size: u16,
    /// What the guest sees as the disk's serial number: at most 20 bytes of ASCII. May be empty.
    pub serial: String,
    /// How long stopping a queue waits for the disk.
    pub drain_deadline: Duration,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            drain_deadline: Duration::from_secs(10),
        }
    }
}

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlkOptionsError {
    /// The number of queues.
    #[error("disk {id}: {queues} queues; use 1 to {MAX_QUEUES}")]
    Queues {
        /// The device's id.
        id: String,
        /// The number asked for.
        queues: u16,
    },
    /// The size of the queues.
    #[error("disk {id}: queue size {size}; use a power of two from 4 to 1024")]
    QueueSize {
        /// The device's id.
        id: String,
        /// The size asked for.
        size: u16,
    },
    /// The serial number.
    #[error("disk {id}: serial {serial:?}; use at most 20 printable ASCII characters")]
    Serial {
        /// The device's id.
        id: String,
        /// The serial asked for.
        serial: String,
    },
}

impl BlkOptions {
    fn check(&self, id: &str) -> Result<(), BlkOptionsError> {
        let id = id.to_owned();
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            let queues = self.queues;
            return Err(BlkOptionsError::Queues { id, queues });
        }
        if !(4..=1024).contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            let size = self.queue_size;
            return Err(BlkOptionsError::QueueSize { id, size });
        }
        let printable = self.serial.bytes().all(|b| (b' '..=b'~').contains(&b));
        if self.serial.len() > VIRTIO_BLK_ID_BYTES as usize || !printable {
            let serial = self.serial.clone();
            return Err(BlkOptionsError::Serial { id, serial });
        }
        Ok(())
    }
}

/// A virtio block device.
#[derive(Debug)]
pub struct Blk {
    id: Arc<str>,
    disk: Arc<dyn Disk>,
    options: BlkOptions,
    sizes: Vec<u16>,
    features: u64,
    counters: Arc<Counters>,
    bell: Arc<ConfigBell>,
    /// By queue; `None` until it is started for the first time.
    threads: Vec<Option<QueueThread>>,
}

impl Blk {
    /// Makes a device on a disk.
    ///
    /// # Errors
    /// When an option cannot be; the error names it and what would do.
    pub fn new(
        id: impl Into<String>,
        disk: Arc<dyn Disk>,
        options: BlkOptions,
    ) -> Result<Self, BlkOptionsError> {
        let id = id.into();
        options.check(&id)?;
        let queues = usize::from(options.queues);
        let features = config::features(&disk.capabilities(), options.queues);
        Ok(Self {
            id: id.into(),
            disk,
            sizes: vec![options.queue_size; queues],
            features,
            counters: Arc::new(Counters::new(options.queues)),
            bell: Arc::default(),
            threads: std::iter::repeat_with(|| None).take(queues).collect(),
            options,
        })
    }

    /// Counts in `counters`, which live longer than the device, rather than in its own. Call before a queue is started.
    #[must_use]
    pub fn counting_in(mut self, counters: Arc<Counters>) -> Self {
        self.counters = counters;
        self
    }

    /// Has `bell`, which lives longer than the device, lead to its driver. Call before a queue is started.
    #[must_use]
    pub fn ringing_by(mut self, bell: Arc<ConfigBell>) -> Self {
        self.bell = bell;
        self
    }

    fn leaves(&self, rest: Rest) -> bool {
        self.threads.iter().flatten().any(|t| t.rest() == rest)
    }

    /// How long to wait for the requests of a queue. Queues are stopped one after the other while a vCPU waits: on a disk that left
    /// another queue waiting in vain, the deadline is not waited for once more with each.
    fn patience(&self, index: u16) -> Duration {
        let others = (0..).zip(&self.threads).filter(|(i, _)| *i != index);
        let in_vain = others
            .filter_map(|(_, thread)| thread.as_ref())
            .any(|thread| thread.rest() == Rest::Requests);
        if in_vain {
            self.options.drain_deadline.min(LAST_LOOK)
        } else {
            self.options.drain_deadline
        }
    }

    fn start(&mut self, index: u16, resources: QueueResources) -> io::Result<()> {
        if self.leaves(Rest::Orphans) {
            let reason = "the disk still has requests from before the reset";
            return Err(io::Error::other(reason));
        }
        let Some(slot) = self.threads.get_mut(usize::from(index)) else {
            return Err(io::Error::other("there is no such queue"));
        };
        let thread = match slot {
            Some(thread) => thread,
            None => slot.insert(QueueThread::new(QueueSetup {
                id: Arc::clone(&self.id),
                index,
                disk: Arc::clone(&self.disk),
                serial: self.options.serial.clone(),
                drain_deadline: self.options.drain_deadline,
                counters: Arc::clone(&self.counters),
            })?),
        };
        let interrupt = Arc::clone(&resources.interrupt);
        thread.start(resources)?;
        self.bell.lead_to(&interrupt);
        Ok(())
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.bell.lead_nowhere();
    }
}

impl VirtioDevice for Blk {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let options = &self.options;
        config::read(
            &self.disk.capabilities(),
            options.queues,
            options.queue_size,
            offset,
            data,
        );
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        self.start(index, resources).map_err(|source| DeviceError {
            device: self.id.to_string(),
            action: format!("starting queue {index}"),
            source,
        })
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let patience = self.patience(index);
        self.threads
            .get_mut(usize::from(index))?
            .as_mut()?
            .stop(patience)
    }

    fn is_quiet(&mut self) -> bool {
        !self.leaves(Rest::Requests) && !self.leaves(Rest::Orphans)
    }

    fn reset(&mut self) {
        self.bell.lead_nowhere();
        for thread in self.threads.iter_mut().flatten() {
            thread.reset();
        }
    }
}

#[cfg(test)]
mod tests;
