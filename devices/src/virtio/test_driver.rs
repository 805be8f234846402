//! The other side of a virtqueue, for tests: a driver that adds chains of any layout, notifies, and collects what was used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{GuestMap, GuestRam, QueueInterrupt, QueueResources};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Guest RAM of a test; rings lie at its start, buffers after them.
const RAM: usize = 64 << 20;
/// Room for one queue's ring.
const RING_SPACE: u64 = 64 << 10;
const BUFFERS: u64 = 8 << 20;

/// Counts interrupts and remembers the reason for the reset asked for.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    queues: Mutex<BTreeMap<u16, u64>>,
    pub(crate) config: AtomicU64,
    broken: Mutex<Vec<String>>,
}

impl QueueInterrupt for Interrupts {
    fn signal_queue(&self, queue: u16) {
        *self.queues.lock().entry(queue).or_default() += 1;
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }

    fn needs_reset(&self, reason: &str) {
        self.broken.lock().push(reason.to_owned());
    }
}

/// Guest RAM, and an allocator of buffers that never frees.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    map: Arc<GuestMap>,
    ram: GuestRam,
    pub(crate) interrupts: Arc<Interrupts>,
    next_ring: Arc<AtomicU64>,
    next_buffer: Arc<AtomicU64>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let map = GuestMap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        Self {
            map: Arc::new(map.clone()),
            ram: GuestRam::new(map),
            interrupts: Arc::default(),
            next_ring: Arc::default(),
            next_buffer: Arc::new(AtomicU64::new(BUFFERS)),
        }
    }

    /// The reason for which the device asked for a reset.
    pub(crate) fn broken(&self) -> Option<String> {
        self.interrupts.broken.lock().first().cloned()
    }

    pub(crate) fn wait_broken(&self) {
        wait_for("a reset request", || self.broken());
        assert_eq!(self.interrupts.broken.lock().len(), 1);
    }

    /// A queue of `size` entries with index `index`.
    pub(crate) fn queue(&self, index: u16, size: u16) -> Driver {
        let ring = self.next_ring.fetch_add(RING_SPACE, Ordering::Relaxed);
        assert!(ring + RING_SPACE <= BUFFERS);
        let mut queue = Queue::new(size).unwrap();
        let low = |offset: u64| Some(u32::try_from(ring + offset).unwrap());
        queue.set_desc_table_address(low(0), Some(0));
        queue.set_avail_ring_address(low(0x4000), Some(0));
        queue.set_used_ring_address(low(0x8000), Some(0));
        queue.set_size(size);
        queue.set_ready(true);
        Driver {
            guest: self.clone(),
            index,
            size,
            ring,
            queue: queue.state(),
            free: (0..size).collect(),
            chains: BTreeMap::new(),
            avail: 0,
            used: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }
    }

    fn allocate(&self, length: usize) -> u64 {
        let address = self.next_buffer.fetch_add(length as u64, Ordering::Relaxed);
        assert!(address + length as u64 <= RAM as u64, "test out of RAM");
        address
    }
}

/// A chain that came back.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) head: u16,
    /// What the device says it wrote, across the chain's writable buffers.
    pub(crate) written: Vec<u8>,
}

#[derive(Debug, Default)]
struct InFlight {
    descriptors: Vec<u16>,
    writable: Vec<(u64, usize)>,
}

/// A driver of one queue.
#[derive(Debug)]
pub(crate) struct Driver {
    guest: Guest,
    index: u16,
    size: u16,
    ring: u64,
    queue: virtio_queue::QueueState,
    free: Vec<u16>,
    chains: BTreeMap<u16, InFlight>,
    avail: u16,
    used: u16,
    kick: Arc<EventFd>,
}

impl Driver {
    /// What the transport would start the queue with.
    pub(crate) fn resources(&self, features: u64) -> QueueResources {
        self.resources_with(self.queue.try_into().unwrap(), features)
    }

    /// The same, with a ring that was running before.
    pub(crate) fn resources_with(&self, queue: Queue, features: u64) -> QueueResources {
        QueueResources {
            queue,
            memory: self.guest.ram.clone(),
            kick: Arc::clone(&self.kick),
            interrupt: Arc::clone(&self.guest.interrupts) as _,
            features,
        }
    }

    /// Whether `count` descriptors are free.
    pub(crate) fn has_room(&self, count: usize) -> bool {
        self.free.len() >= count
    }

    /// Makes a chain of readable buffers with this content and writable ones of these sizes available, without notifying.
    pub(crate) fn add_bytes(&mut self, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut chain = InFlight::default();
        let mut descriptors = Vec::new();
        for bytes in readable {
            let address = self.guest.allocate(bytes.len());
            self.guest
                .map
                .write_slice(bytes, GuestAddress(address))
                .unwrap();
            descriptors.push((address, bytes.len(), 0));
        }
        for length in writable {
            let address = self.guest.allocate(*length);
            chain.writable.push((address, *length));
            descriptors.push((address, *length, VRING_DESC_F_WRITE));
        }
        self.publish(chain, &descriptors)
    }

    /// [`add_bytes`](Self::add_bytes) with readable buffers of zeros.
    pub(crate) fn add(&mut self, readable: &[usize], writable: &[usize]) -> u16 {
        let zeros: Vec<Vec<u8>> = readable.iter().map(|length| vec![0; *length]).collect();
        let slices: Vec<&[u8]> = zeros.iter().map(Vec::as_slice).collect();
        self.add_bytes(&slices, writable)
    }

    /// A chain of one descriptor with any address.
    pub(crate) fn add_raw(&mut self, address: u64, length: usize, writable: bool) -> u16 {
        let flags = if writable { VRING_DESC_F_WRITE } else { 0 };
        self.publish(InFlight::default(), &[(address, length, flags)])
    }

    fn publish(&mut self, mut chain: InFlight, descriptors: &[(u64, usize, u32)]) -> u16 {
        assert!(self.free.len() >= descriptors.len(), "ring full");
        chain.descriptors = self.free.split_off(self.free.len() - descriptors.len());
        let head = chain.descriptors[0];
        for (i, (address, length, flags)) in descriptors.iter().enumerate() {
            let next = chain.descriptors.get(i + 1);
            let flags = flags | next.map_or(0, |_| VRING_DESC_F_NEXT);
            let descriptor = Descriptor::new(
                *address,
                u32::try_from(*length).unwrap(),
                u16::try_from(flags).unwrap(),
                next.copied().unwrap_or(0),
            );
            let at = self.ring + 16 * u64::from(chain.descriptors[i]);
            self.guest
                .map
                .write_obj(descriptor, GuestAddress(at))
                .unwrap();
        }
        let avail = self.ring + 0x4000;
        let slot = avail + 4 + 2 * u64::from(self.avail % self.size);
        self.guest.map.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.guest
            .map
            .store(self.avail, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
        self.chains.insert(head, chain);
        head
    }

    /// Makes the chain that was added last available once more, against the rules.
    pub(crate) fn publish_again(&mut self) {
        let avail = self.ring + 0x4000;
        let slot = |index: u16| GuestAddress(avail + 4 + 2 * u64::from(index % self.size));
        let last: u16 = self
            .guest
            .map
            .read_obj(slot(self.avail.wrapping_sub(1)))
            .unwrap();
        self.guest.map.write_obj(last, slot(self.avail)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.guest
            .map
            .store(self.avail, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
    }

    /// Notifies the device.
    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used chain, if there is one.
    pub(crate) fn try_used(&mut self) -> Option<Used> {
        let used = self.ring + 0x8000;
        let map = Arc::clone(&self.guest.map);
        let index: u16 = map.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
        if index == self.used {
            return None;
        }
        let slot = used + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let [head, length]: [u32; 2] = map.read_obj(GuestAddress(slot)).unwrap();
        let head = u16::try_from(head).unwrap();
        let chain = self
            .chains
            .remove(&head)
            .expect("the device invents chains");
        self.free.extend(chain.descriptors);
        let mut written = Vec::new();
        let mut left = usize::try_from(length).unwrap();
        for (address, capacity) in chain.writable {
            let mut part = vec![0; capacity.min(left)];
            map.read_slice(&mut part, GuestAddress(address)).unwrap();
            left -= part.len();
            written.extend(part);
        }
        assert_eq!(left, 0, "more written than there was room");
        Some(Used { head, written })
    }

    /// The next used chain; fails the test after [`DEADLINE`].
    pub(crate) fn wait_used(&mut self) -> Used {
        wait_for("a used buffer", || self.try_used())
    }

    /// Writes garbage over the rings.
    pub(crate) fn scribble(&self, bytes: &[u8]) {
        for (part, offset) in bytes
            .chunks(bytes.len().div_ceil(3))
            .zip([0, 0x4000, 0x8000])
        {
            self.guest
                .map
                .write_slice(part, GuestAddress(self.ring + offset))
                .unwrap();
        }
    }

    /// Interrupts this queue has had.
    pub(crate) fn interrupts(&self) -> u64 {
        let queues = self.guest.interrupts.queues.lock();
        queues.get(&self.index).copied().unwrap_or(0)
    }
}

/// Asks until there is an answer; fails the test after [`DEADLINE`].
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
