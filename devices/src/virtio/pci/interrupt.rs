//! From a device's workers to its driver: queue and configuration interrupts, and the status bit that asks for a reset.
//!
//! All of it is atomics and eventfds, shared between worker threads and the register side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::pci::msix::Msix;
use crate::throttle::Throttle;
use crate::virtio::QueueInterrupt;

/// "No vector" (VIRTIO 1.2 §4.1.4.3, VIRTIO_MSI_NO_VECTOR).
pub const NO_VECTOR: u16 = 0xffff;
/// ISR: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR: the configuration changed.
const ISR_CONFIG: u8 = 2;
/// Device status: the driver is set up.
const STATUS_DRIVER_OK: u8 = 4;
/// Device status: the device needs a reset.
const STATUS_NEEDS_RESET: u8 = 0x40;

/// The interrupt side of one function.
#[derive(Debug)]
pub struct Interrupts {
    name: String,
    msix: Arc<Msix>,
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    generation: AtomicU8,
    status: AtomicU8,
    /// How often the device came to need a reset.
    broken: Arc<AtomicU64>,
    log: Throttle,
}

impl Interrupts {
    /// Nothing pending, no vectors set, status 0. Counts in `broken` how often the device comes to need a reset.
    pub fn new(name: String, msix: Arc<Msix>, queues: usize, broken: Arc<AtomicU64>) -> Self {
        Self {
            name,
            msix,
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            status: AtomicU8::new(0),
            broken,
            log: Throttle::new(),
        }
    }

    /// The device status register.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets the status register.
    pub fn set_status(&self, status: u8) {
        self.status.store(status, Ordering::Release);
    }

    /// Sets bits of the status register; others may be set meanwhile by workers.
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// The configuration generation, which changes with every configuration change.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the ISR register, which clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The configuration vector.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets the configuration vector; one that does not exist becomes "none" (§4.1.5.1.2.1).
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    /// A queue's vector.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// Sets a queue's vector, likewise.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Back to power-on.
    pub fn reset(&self) {
        self.set_status(0);
        self.isr.store(0, Ordering::Release);
        self.set_config_vector(NO_VECTOR);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}

impl QueueInterrupt for Interrupts {
    fn signal_queue(&self, queue: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.msix.signal(self.queue_vector(queue));
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.signal(self.config_vector());
    }

    fn needs_reset(&self, reason: &str) {
        let before = self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::AcqRel);
        if before & STATUS_NEEDS_RESET == 0 {
            self.broken.fetch_add(1, Ordering::Relaxed);
            // A guest can reset a device and break it again in a few exits.
            if let Some(held_back) = self.log.pass() {
                tracing::warn!(
                    device = self.name,
                    held_back,
                    "device needs a reset: {reason}"
                );
            }
            if before & STATUS_DRIVER_OK != 0 {
                self.signal_config();
            }
        }
    }
}
