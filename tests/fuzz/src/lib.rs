//! What the fuzz targets have in common: the input, taken piece by piece, and the honest start that it then departs from.

use std::sync::atomic::{AtomicUsize, Ordering};

use paddock_devices::virtio::QueueInterrupt;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// Writing to a peer that is gone is an error, as it is in every program whose `main` is Rust's; libFuzzer's is not, and without this the signal ends the
/// fuzzer without a word.
pub fn ignore_broken_pipes() {
    // SAFETY: nothing runs at this signal any more, and nobody else sets what does.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The input, taken from the front; zeros when it is used up.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether it is used up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (now, later) = self.0.split_at(N.min(self.0.len()));
        bytes[..now.len()].copy_from_slice(now);
        self.0 = later;
        bytes
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// The next two.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    /// A descriptor of anything.
    pub fn descriptor(&mut self) -> Descriptor {
        let address = u64::from_le_bytes(self.bytes());
        let length = u32::from_le_bytes(self.bytes());
        Descriptor::new(address, length, self.word(), self.word())
    }

    /// A descriptor in the first 65536 times `unit` bytes, in a table of little more than 16: plausible numbers get further than random
    /// ones.
    pub fn plausible_descriptor(&mut self, unit: u64) -> Descriptor {
        let address = u64::from(self.word()) * unit;
        let length = self.word().into();
        Descriptor::new(address, length, self.word() & 7, self.word() % 18)
    }
}

/// A queue as a driver sets it up, with its three parts in the first 4 GiB.
///
/// # Panics
/// When they are not, or the size is none.
#[must_use]
pub fn valid_queue(size: u16, table: u64, available: u64, used: u64) -> Queue {
    let low = |address: u64| Some(u32::try_from(address).unwrap());
    let mut queue = Queue::new(size).unwrap();
    queue.set_desc_table_address(low(table), Some(0));
    queue.set_avail_ring_address(low(available), Some(0));
    queue.set_used_ring_address(low(used), Some(0));
    queue.set_ready(true);
    queue
}

/// The transport's side of a device: counts how often it asks for a reset.
#[derive(Debug, Default)]
pub struct Resets(AtomicUsize);

impl Resets {
    /// So far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl QueueInterrupt for Resets {
    fn signal_queue(&self, _queue: u16) {}
    fn signal_config(&self) {}
    fn needs_reset(&self, _reason: &str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
