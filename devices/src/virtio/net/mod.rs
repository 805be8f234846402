//! virtio-net (VIRTIO 1.2 §5.1): a NIC on a [`Backend`].
//!
//! Each running queue has a thread of its own: receive queues read frames straight into guest RAM, transmit queues write
//! them straight from it, the control queue changes settings. They share the backend, which outlives the device, and
//! `Shared`, which is atomics only. The device itself runs on the vCPU thread that touches its registers.
//!
//! The guest chooses the frames, their headers (which the kernel checks), buffer layouts, control commands and features.

mod control;
mod counters;
mod features;
mod io;
mod rx;
mod tx;
mod used;

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use paddock_network::{Backend, MacAddress};
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_S_LINK_UP};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

pub use counters::{CounterValues, Counters};

use super::worker::Worker;
use super::{DeviceError, QueueInterrupt, QueueResources, VirtioDevice};
use crate::bus::read_bytes;
use crate::throttle::Throttle;

/// The virtio device type of a NIC.
const DEVICE_TYPE: u16 = 1;
/// Enough for every control command there is.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Queues smaller than this could not take one unmerged frame of a driver that cuts it into pages.
const MIN_QUEUE_SIZE: u16 = 32;
/// The largest number of queue pairs (the kernel's limit for a tap).
const MAX_QUEUE_PAIRS: u16 = 256;
/// VIRTIO 1.2 §5.1.4: the smallest MTU a device may report.
const MIN_MTU: u16 = 68;

/// What a NIC is made of, besides its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address.
    pub mac: MacAddress,
    /// The MTU the guest is told, in bytes, at least 68; `None` tells it the backend's.
    pub mtu: Option<u16>,
    /// Queue pairs, at least 1 and no more than the backend has.
    pub queue_pairs: u16,
    /// Descriptors of each receive and transmit queue: a power of two, 32 to 32768. 256 suits most.
    pub queue_size: u16,
}

/// A NIC.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    options: NetOptions,
    queue_sizes: Vec<u16>,
    workers: Vec<Option<Worker<Stopped>>>,
    /// By queue, a received frame that was waiting for room when the queue was stopped.
    held: Vec<Option<Vec<u8>>>,
}

/// What a worker leaves behind.
#[derive(Debug)]
struct Stopped {
    queue: Queue,
    held: Option<Vec<u8>>,
}

impl From<Queue> for Stopped {
    fn from(queue: Queue) -> Self {
        Self { queue, held: None }
    }
}

/// What the queues of a NIC have in common.
#[derive(Debug)]
struct Shared {
    id: String,
    backend: Arc<dyn Backend>,
    /// The address in the configuration space, in the low 48 bits, first byte lowest.
    mac: AtomicU64,
    /// Falls when the backend is gone, for good.
    link_up: AtomicBool,
    /// How long a frame is kept for a guest whose buffers are too small for it.
    hold: Duration,
    /// How long a backend that takes nothing is waited for.
    patience: Duration,
    counters: Arc<Counters>,
    log: Throttle,
}

impl Shared {
    /// The backend is gone: the guest sees its cable pulled. Said once.
    fn link_lost(&self, interrupt: &dyn QueueInterrupt, error: &std::io::Error) {
        if self.link_up.swap(false, Ordering::AcqRel) {
            let backend = self.backend.name();
            tracing::error!(device = self.id, backend, %error, "the NIC's backend is gone; its link is down");
            interrupt.signal_config();
        }
    }
}

/// Why a worker ended by itself: a broken ring, or a host without descriptors.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An error and what is below it, in one line.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        below = cause.source();
    }
    line
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
}

impl Net {
    /// A NIC that is not in use yet.
    ///
    /// # Errors
    /// When the options do not fit each other or the backend; names the option.
    pub fn new(
        id: impl Into<String>,
        backend: Arc<dyn Backend>,
        options: NetOptions,
    ) -> Result<Self, DeviceError> {
        let counters = Arc::new(Counters::new(options.queue_pairs));
        Self::counting_in(counters, id, backend, options)
    }

    /// As [`new`](Self::new), and counts in `counters`, which live longer than the device, rather than in its own.
    ///
    /// # Errors
    /// When the options do not fit each other or the backend; names the option.
    pub fn counting_in(
        counters: Arc<Counters>,
        id: impl Into<String>,
        backend: Arc<dyn Backend>,
        options: NetOptions,
    ) -> Result<Self, DeviceError> {
        let id = id.into();
        if let Err((option, problem)) = check(&*backend, &options) {
            return Err(DeviceError {
                device: id,
                action: format!("setting {option}"),
                source: std::io::Error::new(ErrorKind::InvalidInput, problem),
            });
        }
        let mut queue_sizes = vec![options.queue_size; usize::from(options.queue_pairs) * 2];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let workers = queue_sizes.iter().map(|_| None).collect();
        let held = vec![None; queue_sizes.len()];
        let shared = Shared {
            id,
            backend,
            mac: AtomicU64::new(mac_to_bits(options.mac.bytes())),
            link_up: AtomicBool::new(true),
            hold: rx::HOLD,
            patience: tx::PATIENCE,
            counters,
            log: Throttle::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            options,
            queue_sizes,
            workers,
            held,
        })
    }

    /// The NIC's counters, which go on counting while it runs.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    fn mtu(&self) -> Option<u16> {
        self.options.mtu.or_else(|| self.shared.backend.mtu())
    }

    /// What a queue is for, which depends on MQ: without it the control queue comes third (§5.1.2).
    fn role(&self, index: u16, features: u64) -> Option<Role> {
        let pairs = if has(features, VIRTIO_NET_F_MQ) {
            self.options.queue_pairs
        } else {
            1
        };
        let pair = index / 2;
        match (pair < pairs, index % 2) {
            (true, 0) => Some(Role::Receive(pair)),
            (true, _) => Some(Role::Transmit(pair)),
            (false, _) if index == pairs * 2 => Some(Role::Control),
            (false, _) => None,
        }
    }

    /// Back to what a device does before a driver says otherwise: one queue pair, whole frames.
    fn settle_backend(&self, features: u64) {
        let backend = &*self.shared.backend;
        let offloads = features::guest_offloads(features) & backend.supported_offloads();
        let result = backend
            .set_active_queues(1)
            .and_then(|()| backend.set_offloads(offloads));
        if let Err(error) = result {
            // Either the backend is gone, which the workers will tell the guest, or it refuses what it said it can do. A guest comes
            // here as often as it resets the device.
            let device = &self.shared.id;
            if let Some(held_back) = self.shared.log.pass() {
                tracing::warn!(device, backend = backend.name(), %error, held_back, "the NIC's backend refuses its settings");
            }
        }
    }

    fn config_space(&self) -> [u8; 12] {
        let mut config = [0; 12];
        let mac = self.shared.mac.load(Ordering::Acquire).to_le_bytes();
        config[..6].copy_from_slice(&mac[..6]);
        if self.shared.link_up.load(Ordering::Acquire) {
            config[6] = u8::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or(1);
        }
        config[8..10].copy_from_slice(&self.options.queue_pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu().unwrap_or(0).to_le_bytes());
        config
    }

    fn spawn(
        &mut self,
        index: u16,
        mut resources: QueueResources,
    ) -> std::io::Result<Worker<Stopped>> {
        let features = resources.features;
        resources
            .queue
            .set_event_idx(has(features, VIRTIO_RING_F_EVENT_IDX));
        let shared = Arc::clone(&self.shared);
        let held = self.held.get_mut(usize::from(index)).and_then(Option::take);
        let id = &self.shared.id;
        // Built on their threads, where their lists of raw segments stay.
        match self.role(index, features) {
            Some(Role::Receive(pair)) => Worker::spawn(&format!("rx{pair} {id}"), move |events| {
                rx::Receiver::new(shared, pair, index, resources, held).run(&events)
            }),
            Some(Role::Transmit(pair)) => Worker::spawn(&format!("tx{pair} {id}"), move |events| {
                tx::Transmitter::new(shared, pair, index, resources).run(&events)
            }),
            Some(Role::Control) => {
                let pairs = self.options.queue_pairs;
                Worker::spawn(&format!("ctl {id}"), move |events| {
                    control::Control::new(shared, index, pairs, resources).run(&events)
                })
            }
            None => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        features::offered(
            self.shared.backend.supported_offloads(),
            self.options.queue_pairs > 1,
            self.mtu().is_some(),
        )
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn set_features(&mut self, negotiated: u64) {
        self.settle_backend(negotiated);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config_space(), offset, data);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let device = self.shared.id.clone();
        let failed = |source: std::io::Error| DeviceError {
            device,
            action: format!("starting queue {index}"),
            source,
        };
        let slot = usize::from(index);
        match self.workers.get(slot) {
            None => return Err(failed(ErrorKind::InvalidInput.into())),
            Some(Some(_)) => return Err(failed(ErrorKind::AlreadyExists.into())),
            Some(None) => {}
        }
        let worker = self.spawn(index, resources).map_err(failed)?;
        self.workers[slot] = Some(worker);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let slot = usize::from(index);
        let stopped = self.workers.get_mut(slot)?.take()?.stop()?;
        self.held[slot] = stopped.held;
        Some(stopped.queue)
    }

    fn reset(&mut self) {
        self.held.fill(None);
        let mac = mac_to_bits(self.options.mac.bytes());
        self.shared.mac.store(mac, Ordering::Release);
        self.settle_backend(0);
    }
}

fn check(backend: &dyn Backend, options: &NetOptions) -> Result<(), (&'static str, String)> {
    let most = backend.queue_pairs().min(MAX_QUEUE_PAIRS);
    if !(1..=most).contains(&options.queue_pairs) {
        let (asked, name) = (options.queue_pairs, backend.name());
        let problem = format!("{asked} queue pairs are asked for, and {name} has 1 to {most}");
        return Err(("queue_pairs", problem));
    }
    let size = options.queue_size;
    if !size.is_power_of_two() || !(MIN_QUEUE_SIZE..=32768).contains(&size) {
        let problem = format!("{size} is not a power of two from {MIN_QUEUE_SIZE} to 32768");
        return Err(("queue_size", problem));
    }
    if let Some(mtu) = options.mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(("mtu", format!("{mtu} is below {MIN_MTU}")));
    }
    if !options.mac.is_unicast() {
        let problem = format!("{} is not a unicast address", options.mac);
        return Err(("mac", problem));
    }
    Ok(())
}

/// Whether a feature bit is set.
fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// An address as a number, first byte lowest.
fn mac_to_bits(bytes: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = bytes;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}
