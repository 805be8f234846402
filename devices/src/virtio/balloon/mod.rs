//! Balloon device (VIRTIO 1.2 §5.5): takes memory from a running guest and gives it back, learns which pages the guest leaves
//! free anyway, and asks for the guest's memory statistics.
//!
//! [`BalloonHandle`] is the owner's side: target, actual size, statistics. It is made once and outlives the device, which a
//! VM reset replaces; [`Reclaim`] is the way to the guest RAM's owner. One worker thread serves all queues, from the first
//! that starts to the last that stops.
//!
//! The guest chooses which pages it gives, when, and every number in its statistics. A page outside RAM is refused and
//! harms nothing. A page inside that is still in use, by a virtqueue, by another device's I/O in flight, by the guest's kernel, is
//! the guest's own loss: the range stays mapped and reads as zeros, I/O in flight ends in pages that nobody sees any more, and
//! whoever touches the page again makes it anew, within the size of RAM. A guest that takes more than it was told, or gives
//! less, is believed about nothing but [its word](BalloonHandle::actual).

mod engine;
mod handle;
mod pages;
mod statistics;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::{fmt, io};

use virtio_queue::Queue;

pub use handle::{BalloonError, BalloonHandle, BalloonStatus, CounterValues};
pub use statistics::Statistics;

use self::engine::{Brakes, Engine};
use super::service::Service;
use super::{DeviceError, QueueResources, VirtioDevice};
use crate::bus::read_bytes;

/// Bytes of a page as the balloon counts them, whatever the pages of guest and host are.
pub const PAGE_SIZE: u64 = 4096;

/// VIRTIO_ID_BALLOON.
const DEVICE_TYPE: u16 = 5;
/// VIRTIO_BALLOON_F_MUST_TELL_HOST: the driver waits for the device before it uses a page from the balloon.
const F_MUST_TELL_HOST: u64 = 1 << 0;
/// VIRTIO_BALLOON_F_STATS_VQ: there is a statistics queue.
const F_STATS: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the driver takes pages back when it has no other.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_POISON: the driver tells what its free pages are filled with.
const F_PAGE_POISON: u64 = 1 << 4;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the driver reports pages that it leaves free.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// At least 32, or Linux reports no pages.
const QUEUE_SIZE: u16 = 128;
/// Inflate, deflate, statistics, free page hints (not offered), reporting: see [`Role::of`].
const QUEUES: usize = 5;
const QUEUE_SIZES: [u16; QUEUES] = [QUEUE_SIZE; QUEUES];

/// Gives guest RAM back to the host. Implemented where the RAM is owned, called on the device's worker thread.
pub trait Reclaim: Send + Sync + fmt::Debug {
    /// The smallest piece that can be given back, in bytes: the size of the host's pages, a power of two and at least
    /// [`PAGE_SIZE`].
    fn granule(&self) -> u64;

    /// Gives the memory behind a range of guest-physical addresses back. It reads as zeros until it is written, and costs
    /// nothing until it is touched. Both ends are multiples of the granule; what is not RAM is left alone.
    ///
    /// # Errors
    /// When the host refuses; the memory is then as it was, or in part given back.
    fn reclaim(&self, range: Range<u64>) -> io::Result<()>;
}

/// What a balloon offers its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonOptions {
    /// The guest may take pages back rather than kill processes for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it leaves free, without being asked for memory.
    pub free_page_reporting: bool,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

impl Role {
    /// The specification numbers queues by purpose, 0 to 4 (§5.5.2). Linux numbers those that there are, without gaps, and so do other
    /// devices: its reporting queue is 3, because free page hints are not offered, or 2 without statistics. Both are served.
    fn of(index: u16, features: u64) -> Option<Self> {
        let has = |feature| features & feature != 0;
        match index {
            0 => Some(Self::Inflate),
            1 => Some(Self::Deflate),
            2 if has(F_STATS) => Some(Self::Statistics),
            2..=4 if has(F_PAGE_REPORTING) => Some(Self::Reporting),
            _ => None,
        }
    }
}

/// A balloon device.
#[derive(Debug)]
pub struct VirtioBalloon {
    id: String,
    handle: BalloonHandle,
    memory: Arc<dyn Reclaim>,
    options: BalloonOptions,
    brakes: Arc<Brakes>,
    service: Service<Engine>,
}

impl VirtioBalloon {
    /// `id` as in the VM spec. Only one device at a time may have the handle.
    #[must_use]
    pub fn new(
        id: impl Into<String>,
        handle: BalloonHandle,
        memory: Arc<dyn Reclaim>,
        options: BalloonOptions,
    ) -> Self {
        Self {
            id: id.into(),
            handle,
            memory,
            options,
            brakes: Arc::default(),
            service: Service::default(),
        }
    }

    /// Nobody rings for a worker that is gone.
    fn hang_up(&self) {
        if !self.service.is_running() {
            self.handle.set_doorbell(None);
        }
    }
}

impl VirtioDevice for VirtioBalloon {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let mut features = F_STATS;
        if self.options.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if self.options.free_page_reporting {
            // A guest that fills its free pages reports them only to a device that wants to know with what.
            features |= F_PAGE_REPORTING | F_PAGE_POISON;
        }
        if self.memory.granule() > PAGE_SIZE {
            // A host page goes once the last of its parts is in the balloon: none of them may be in use by then.
            features |= F_MUST_TELL_HOST;
        }
        features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.handle.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.handle.write_config(offset, data);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        if Role::of(index, resources.features).is_none() {
            return Err(DeviceError {
                device: self.id.clone(),
                action: format!("starting queue {index}"),
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
        let (handle, memory) = (self.handle.clone(), Arc::clone(&self.memory));
        let brakes = Arc::clone(&self.brakes);
        let make = || Engine::new(self.id.clone(), handle, memory, brakes);
        // Before the engine looks at the target: nothing is set between the two unheard.
        let spawned = |doorbell: &_| self.handle.set_doorbell(Some(Arc::clone(doorbell)));
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
        self.handle.forget_driver();
    }
}

impl Drop for VirtioBalloon {
    fn drop(&mut self) {
        // One that was reset says nothing more: the handle may be another device's by now.
        if self.service.reset() {
            self.hang_up();
            self.handle.forget_driver();
        }
    }
}
