//! Negotiation and queue life: the device's side of VIRTIO 1.2 §3.1 (initialisation), §2.4 (reset) and §2.1 (status).
//!
//! ```text
//!  0 ──ACKNOWLEDGE, DRIVER──▶ features ──FEATURES_OK──▶ queues set up ──DRIVER_OK──▶ running
//!  ▲                                                                                  │
//!  └──────────────── write 0 (every queue stopped, drained, forgotten) ◀──────────────┘
//! ```

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupts;
use crate::virtio::{GuestRam, QueueInterrupt, QueueResources, VirtioDevice};

/// Device status bits (§2.1).
pub mod status {
    /// The driver accepted the features, and the device them.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The device gave up.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Bits of a feature word.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// One queue as the driver sees it through the registers.
#[derive(Debug)]
struct QueueSlot {
    /// The ring while it is not running; an empty copy of its settings while it is.
    queue: Queue,
    enabled: bool,
    running: bool,
}

/// A device behind its registers.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    interrupts: Arc<Interrupts>,
    kicks: Vec<Arc<EventFd>>,
    queues: Vec<QueueSlot>,
    negotiated: u64,
    /// A reset waits for requests that the device could not take back from its backend.
    resetting: bool,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("device", &self.device.id())
            .field("negotiated", &format_args!("{:#x}", self.negotiated))
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// `kicks` has an event per queue of `device`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        interrupts: Arc<Interrupts>,
        kicks: Vec<Arc<EventFd>>,
    ) -> Result<Self, virtio_queue::Error> {
        let queues = fresh_queues(&*device)?;
        Ok(Self {
            device,
            memory,
            interrupts,
            kicks,
            queues,
            negotiated: 0,
            resetting: false,
        })
    }

    /// The device itself, for its configuration.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    /// What the driver asks for so far.
    pub fn negotiated(&self) -> u64 {
        self.negotiated
    }

    /// The driver writes half of the feature word. Not after FEATURES_OK (§2.2.1).
    pub fn set_driver_features(&mut self, half: u32, bits: u32) {
        if self.interrupts.status() & status::FEATURES_OK != 0 {
            return;
        }
        let shift = match half {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let keep = !(u64::from(u32::MAX) << shift);
        self.negotiated = self.negotiated & keep | u64::from(bits) << shift;
    }

    /// The status register. While a reset is not over it reads NEEDS_RESET: the driver waits for 0 (§2.4.2), and until then must
    /// not reuse memory that the backend may still write.
    pub fn status(&mut self) -> u8 {
        if self.is_quiet() {
            self.interrupts.status()
        } else {
            status::NEEDS_RESET
        }
    }

    /// Whether no request from before a reset is still with the device's backend.
    pub fn is_quiet(&mut self) -> bool {
        self.resetting = self.resetting && !self.device.is_quiet();
        !self.resetting
    }

    /// The driver writes the status register.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        if !self.is_quiet() {
            return;
        }
        let before = self.interrupts.status();
        let mut added = value & !before & !status::NEEDS_RESET;
        if before & status::NEEDS_RESET != 0 {
            // Only a reset leads on from here: a device that gave up is not set up behind its back.
            added &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        let mut accepted = added & !(status::FEATURES_OK | status::DRIVER_OK);
        if added & status::FEATURES_OK != 0 && self.features_acceptable() {
            self.device.set_features(self.negotiated);
            accepted |= status::FEATURES_OK;
        }
        let ready = (before | accepted) & status::FEATURES_OK != 0;
        if added & status::DRIVER_OK != 0 {
            accepted |= status::DRIVER_OK;
        }
        self.interrupts.add_status(accepted);
        if accepted & status::DRIVER_OK != 0 {
            if ready {
                self.start_enabled();
            } else {
                self.interrupts
                    .needs_reset("DRIVER_OK without agreed features");
            }
        }
    }

    fn features_acceptable(&self) -> bool {
        self.negotiated & !self.offered() == 0 && self.negotiated & VERSION_1 != 0
    }

    /// Stops everything and forgets what the driver set up.
    pub fn reset(&mut self) {
        self.stop_all();
        self.device.reset();
        self.interrupts.reset();
        self.resetting = true;
        self.negotiated = 0;
        if let Ok(queues) = fresh_queues(&*self.device) {
            self.queues = queues;
        }
        for kick in &self.kicks {
            // Nothing to read is the usual case.
            let _ = kick.read();
        }
    }

    /// Stops every running queue and takes it back.
    pub fn stop_all(&mut self) {
        for index in 0..self.queues.len() {
            if self.queues[index].running {
                self.queues[index].running = false;
                let number = u16::try_from(index).unwrap_or(u16::MAX);
                if let Some(queue) = self.device.stop_queue(number) {
                    self.queues[index].queue = queue;
                }
            }
        }
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// A queue's registers, if it exists.
    pub fn queue(&self, index: u16) -> Option<&Queue> {
        self.queues.get(usize::from(index)).map(|slot| &slot.queue)
    }

    /// Whether the driver enabled the queue.
    pub fn queue_enabled(&self, index: u16) -> bool {
        self.queues
            .get(usize::from(index))
            .is_some_and(|slot| slot.enabled)
    }

    /// A queue's registers for writing, while the driver may write them: before it enables the queue (§4.1.4.3.2).
    pub fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues
            .get_mut(usize::from(index))
            .filter(|slot| !slot.enabled)
            .map(|slot| &mut slot.queue)
    }

    /// The driver enables a queue. There is no disabling short of a reset.
    pub fn enable_queue(&mut self, index: u16) {
        let Some(slot) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        if slot.enabled {
            return;
        }
        slot.enabled = true;
        slot.queue.set_ready(true);
        let both = status::DRIVER_OK | status::FEATURES_OK;
        if self.interrupts.status() & both == both {
            self.start(usize::from(index));
        }
    }

    fn start_enabled(&mut self) {
        for index in 0..self.queues.len() {
            self.start(index);
        }
    }

    fn start(&mut self, index: usize) {
        let slot = &mut self.queues[index];
        let gave_up = self.interrupts.status() & status::NEEDS_RESET != 0;
        if !slot.enabled || slot.running || gave_up {
            return;
        }
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        if !slot.queue.is_valid(&*self.memory.memory()) {
            self.interrupts
                .needs_reset(&format!("queue {number} lies outside guest RAM"));
            return;
        }
        let Some(ring) = copy_of(&slot.queue) else {
            self.interrupts
                .needs_reset(&format!("queue {number} is set up wrongly"));
            return;
        };
        let resources = QueueResources {
            queue: ring,
            memory: self.memory.clone(),
            kick: Arc::clone(&self.kicks[index]),
            interrupt: Arc::clone(&self.interrupts) as Arc<dyn QueueInterrupt>,
            features: self.negotiated,
        };
        match self.device.start_queue(number, resources) {
            Ok(()) => slot.running = true,
            Err(error) => {
                let cause = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                self.interrupts.needs_reset(&format!("{error}: {cause}"));
            }
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// The rings of a device that was just reset.
fn fresh_queues(device: &dyn VirtioDevice) -> Result<Vec<QueueSlot>, virtio_queue::Error> {
    device
        .queue_max_sizes()
        .iter()
        .map(|&size| {
            Ok(QueueSlot {
                queue: Queue::new(size)?,
                enabled: false,
                running: false,
            })
        })
        .collect()
}

/// The same ring once more: one for the registers to show, one for the worker to run.
fn copy_of(queue: &Queue) -> Option<Queue> {
    Queue::try_from(queue.state()).ok()
}
