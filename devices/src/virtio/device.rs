//! The contract between a virtio device and its transport.
//!
//! A queue is started and stopped, never poked: `start_queue(index, resources)` / `stop_queue(index) -> Queue`
//! serve DRIVER_OK, device reset, pause, hot-unplug, snapshot and a vhost hand-over alike. Between the two the queue
//! belongs to the device, which works on it on a thread of its own; the transport's registers are served on vCPU threads.
//!
//! Everything in the rings and in configuration writes is chosen by a hostile guest.

use std::fmt;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// The map of guest RAM at one moment. While an `Arc` of it lives, the RAM in it stays mapped.
pub type GuestMap = GuestMemoryMmap;

/// Guest RAM. A cheap handle; `memory()` gives a snapshot of the map that stays mapped while it is held.
pub type GuestRam = GuestMemoryAtomic<GuestMap>;

/// How a device signals its driver. Implemented by the transport; used from worker threads, without locks.
pub trait QueueInterrupt: Send + Sync + fmt::Debug {
    /// Buffers of this queue were used.
    fn signal_queue(&self, queue: u16);
    /// The device configuration changed.
    fn signal_config(&self);
    /// The driver broke the device beyond repair (VIRTIO 1.2 §2.1.2): sets DEVICE_NEEDS_RESET and tells the driver.
    /// The device stops serving until it is reset; the process lives.
    fn needs_reset(&self, reason: &str);
}

/// What a queue needs to run.
#[derive(Debug)]
pub struct QueueResources {
    /// The ring, as the driver configured it: ready, addresses and size set, position restored.
    pub queue: Queue,
    /// Guest RAM, in which ring and buffers lie.
    pub memory: GuestRam,
    /// Becomes readable when the driver notifies the queue (an ioeventfd in a real VM).
    pub kick: Arc<EventFd>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn QueueInterrupt>,
    /// The negotiated feature bits.
    pub features: u64,
}

/// Why a device could not do what the transport asked.
#[derive(Debug, thiserror::Error)]
#[error("virtio device {device}: {action}")]
pub struct DeviceError {
    /// The device's id in the VM spec.
    pub device: String,
    /// What it was doing, such as "starting queue 3".
    pub action: String,
    /// Why it failed.
    pub source: std::io::Error,
}

/// A virtio device, without transport.
pub trait VirtioDevice: Send {
    /// The device's id in the VM spec, for logs, metrics and thread names.
    fn id(&self) -> &str;

    /// VIRTIO 1.2 §5: the device type (1 network, 2 block, 3 console, 4 entropy, …).
    fn device_type(&self) -> u16;

    /// The feature bits the device offers. The transport adds VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;

    /// The largest size of each queue (a power of two ≤ 32768); its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Tells what was negotiated, once, at FEATURES_OK.
    fn set_features(&mut self, _negotiated: u64) {}

    /// Reads the device configuration. Bytes beyond its end read as zero. Any width and alignment.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device configuration; most devices have nothing writable. Any width and alignment.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Hands a queue over and starts serving it. Buffers already available must be served without a kick.
    ///
    /// # Errors
    /// When the host lacks something; the transport then sets DEVICE_NEEDS_RESET.
    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError>;

    /// Stops a queue and gives it back, drained: no completion comes after this. `None` if it was not running.
    /// Returns within a deadline of the device's; see [`is_quiet`](Self::is_quiet) for a backend that does not answer in time.
    fn stop_queue(&mut self, index: u16) -> Option<Queue>;

    /// Whether the host is done with every request of the stopped queues. `false` only where a backend (a dead disk, a hung
    /// NFS server) sat on requests beyond the deadline of `stop_queue`: it may still read or write their guest RAM and
    /// its own storage. The transport then keeps a reset pending (a non-zero device_status), and the machine refuses
    /// snapshot and migration, until it is quiet. Starting the queue again
    /// without a `reset` in between is fine at any time; stopping it again waits again and gives the ring as it is then.
    fn is_quiet(&mut self) -> bool {
        true
    }

    /// Back to the state before negotiation. All queues have been stopped.
    fn reset(&mut self) {}
}
