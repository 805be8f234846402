//! The guest's side of a NIC's queue: a driver that honours event indices, reuses its buffers, and sleeps until it is
//! interrupted, so that a lost interrupt or kick shows as a test that misses its deadline.

use std::collections::HashMap;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};

/// After this a wait has failed.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// Each queue's ring and buffers have this much room.
pub(super) const QUEUE_SPACE: u64 = 16 << 20;
const AVAIL: u64 = 0x10_0000;
const USED: u64 = 0x11_0000;
const INDIRECT: u64 = 0x12_0000;
/// Where the buffers of the descriptor `head` begin, and how much room they have.
const BUFFERS: u64 = 0x30_0000;
pub(super) const BUFFER_SPACE: u64 = 0x1_8000;
/// The largest table of one indirect chain, in bytes.
const INDIRECT_SPACE: u64 = 0x1000;

/// Guest RAM for `queues` queues.
pub(super) fn guest_ram(queues: u64) -> GuestRam {
    let size = usize::try_from(QUEUE_SPACE * queues).unwrap();
    GuestRam::new(GuestMap::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

/// Where a device's interrupts go.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    state: Mutex<InterruptState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct InterruptState {
    queues: HashMap<u16, u64>,
    config: u64,
    resets: Vec<String>,
}

impl QueueInterrupt for Interrupts {
    fn signal_queue(&self, queue: u16) {
        *self.state.lock().unwrap().queues.entry(queue).or_default() += 1;
        self.changed.notify_all();
    }

    fn signal_config(&self) {
        self.state.lock().unwrap().config += 1;
        self.changed.notify_all();
    }

    fn needs_reset(&self, reason: &str) {
        self.state.lock().unwrap().resets.push(reason.to_owned());
        self.changed.notify_all();
    }
}

impl Interrupts {
    pub(super) fn of_queue(&self, queue: u16) -> u64 {
        let state = self.state.lock().unwrap();
        state.queues.get(&queue).copied().unwrap_or(0)
    }

    pub(super) fn of_config(&self) -> u64 {
        self.state.lock().unwrap().config
    }

    pub(super) fn resets(&self) -> Vec<String> {
        self.state.lock().unwrap().resets.clone()
    }

    /// Sleeps until the queue had more than `seen` interrupts; whether it did in time.
    fn wait_queue(&self, queue: u16, seen: u64, limit: Duration) -> bool {
        let state = self.state.lock().unwrap();
        let count = |s: &InterruptState| s.queues.get(&queue).copied().unwrap_or(0);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |s| count(s) <= seen)
            .unwrap();
        count(&state) > seen
    }
}

/// A piece of a chain: its length, and whether the device writes it.
pub(super) type Piece = (u32, bool);

/// The driver of one queue.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) features: u64,
    memory: GuestRam,
    base: u64,
    kick: Arc<EventFd>,
    interrupts: Arc<Interrupts>,
    seen: u64,
    avail: Wrapping<u16>,
    notified: Wrapping<u16>,
    used: Wrapping<u16>,
    free: Vec<u16>,
    chains: HashMap<u16, (Vec<u16>, Vec<Piece>)>,
}

impl Driver {
    /// Sets up queue `index` with `size` entries; its ring and buffers are at the `index`th 16 MiB of RAM.
    pub(super) fn new(
        memory: &GuestRam,
        interrupts: &Arc<Interrupts>,
        index: u16,
        size: u16,
        features: u64,
    ) -> Self {
        Self {
            index,
            size,
            features,
            memory: memory.clone(),
            base: QUEUE_SPACE * u64::from(index),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()),
            interrupts: Arc::clone(interrupts),
            seen: 0,
            avail: Wrapping(0),
            notified: Wrapping(0),
            used: Wrapping(0),
            free: (0..size.min(128)).rev().collect(),
            chains: HashMap::new(),
        }
    }

    /// What the transport hands to the device at the first start.
    pub(super) fn resources(&self) -> QueueResources {
        let mut queue = Queue::new(self.size).unwrap();
        let low = |offset: u64| Some(u32::try_from(self.base + offset).unwrap());
        queue.set_desc_table_address(low(0), None);
        queue.set_avail_ring_address(low(AVAIL), None);
        queue.set_used_ring_address(low(USED), None);
        queue.set_ready(true);
        self.resume(queue)
    }

    /// What the transport hands to the device at a later start.
    pub(super) fn resume(&self, queue: Queue) -> QueueResources {
        QueueResources {
            queue,
            memory: self.memory.clone(),
            kick: Arc::clone(&self.kick),
            interrupt: Arc::clone(&self.interrupts) as Arc<dyn QueueInterrupt>,
            features: self.features,
        }
    }

    /// What its kicks arrive on.
    pub(super) fn kick_event(&self) -> Arc<EventFd> {
        Arc::clone(&self.kick)
    }

    fn map(&self) -> Arc<GuestMap> {
        use vm_memory::GuestAddressSpace;
        self.memory.memory().into_inner()
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.base + offset)
    }

    fn event_idx(&self) -> bool {
        self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0
    }

    /// Whether a chain of `pieces` has room in the ring.
    pub(super) fn has_room(&self, pieces: usize, indirect: bool) -> bool {
        self.free.len() >= if indirect { 1 } else { pieces }
    }

    /// How many chains the device has.
    pub(super) fn in_flight(&self) -> usize {
        self.chains.len()
    }

    /// Makes a chain available, filled with `content` as far as it goes, without a kick. Returns its head.
    pub(super) fn offer(&mut self, pieces: &[Piece], content: &[u8], indirect: bool) -> u16 {
        let map = self.map();
        let count = if indirect { 1 } else { pieces.len() };
        let taken: Vec<u16> = (0..count).map(|_| self.free.pop().unwrap()).collect();
        let head = taken[0];
        let buffers = BUFFERS + BUFFER_SPACE * u64::from(head);
        let table = INDIRECT + INDIRECT_SPACE * u64::from(head);
        let mut offset = 0_u64;
        for (i, &(length, writable)) in pieces.iter().enumerate() {
            assert!(offset + u64::from(length) <= BUFFER_SPACE);
            let start = usize::try_from(offset).unwrap().min(content.len());
            let end = (start + usize::try_from(length).unwrap()).min(content.len());
            map.write_slice(&content[start..end], self.at(buffers + offset))
                .unwrap();
            let last = i + 1 == pieces.len();
            let mut flags = if last { 0 } else { VRING_DESC_F_NEXT };
            flags |= if writable { VRING_DESC_F_WRITE } else { 0 };
            let (at, next) = if indirect {
                (table + 16 * i as u64, u16::try_from(i + 1).unwrap())
            } else {
                let next = if last { 0 } else { taken[i + 1] };
                (16 * u64::from(taken[i]), next)
            };
            self.describe(&map, at, self.base + buffers + offset, length, flags, next);
            offset += u64::from(length);
        }
        if indirect {
            let length = u32::try_from(16 * pieces.len()).unwrap();
            let flags = VRING_DESC_F_INDIRECT;
            self.describe(
                &map,
                16 * u64::from(head),
                self.base + table,
                length,
                flags,
                0,
            );
        }
        self.chains.insert(head, (taken, pieces.to_vec()));
        self.publish(head);
        head
    }

    fn describe(&self, map: &GuestMap, at: u64, address: u64, length: u32, flags: u32, next: u16) {
        map.write_obj(address, self.at(at)).unwrap();
        map.write_obj(length, self.at(at + 8)).unwrap();
        let flags = u16::try_from(flags).unwrap();
        map.write_obj([flags, next], self.at(at + 12)).unwrap();
    }

    /// Puts any number into the available ring.
    pub(super) fn publish(&mut self, head: u16) {
        let map = self.map();
        let slot = AVAIL + 4 + 2 * u64::from(self.avail.0 % self.size);
        map.write_obj(head, self.at(slot)).unwrap();
        self.avail += 1;
        map.store(self.avail.0, self.at(AVAIL + 2), Ordering::Release)
            .unwrap();
    }

    /// Tells the device of what was made available, if it wants to know (§2.7.7.1, §2.7.10).
    pub(super) fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let map = self.map();
        let wanted = if self.event_idx() {
            let at = USED + 4 + 8 * u64::from(self.size);
            let event = Wrapping(map.load::<u16>(self.at(at), Ordering::Relaxed).unwrap());
            self.avail - event - Wrapping(1) < self.avail - self.notified
        } else {
            let flags: u16 = map.load(self.at(USED), Ordering::Relaxed).unwrap();
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
        };
        self.notified = self.avail;
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Kicks, wanted or not.
    pub(super) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next chain that came back: its head and what the device wrote.
    pub(super) fn take(&mut self) -> Option<(u16, Vec<u8>)> {
        let map = self.map();
        let used: u16 = map.load(self.at(USED + 2), Ordering::Acquire).unwrap();
        if used == self.used.0 {
            return None;
        }
        let slot = USED + 4 + 8 * u64::from(self.used.0 % self.size);
        let [head, length]: [u32; 2] = map.read_obj(self.at(slot)).unwrap();
        self.used += 1;
        let head = u16::try_from(head).unwrap();
        let (taken, pieces) = self.chains.remove(&head).expect("a chain that was offered");
        let readable: u32 = pieces.iter().filter(|p| !p.1).map(|p| p.0).sum();
        let writable: u32 = pieces.iter().filter(|p| p.1).map(|p| p.0).sum();
        assert!(
            length <= writable,
            "more was written than there is room for"
        );
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let start = BUFFERS + BUFFER_SPACE * u64::from(head) + u64::from(readable);
        map.read_slice(&mut bytes, self.at(start)).unwrap();
        self.free.extend(taken.into_iter().rev());
        Some((head, bytes))
    }

    /// Like [`take`](Self::take), asleep until an interrupt if there is nothing. `None` after `limit`.
    pub(super) fn take_within(&mut self, limit: Duration) -> Option<(u16, Vec<u8>)> {
        let start = Instant::now();
        loop {
            if let Some(used) = self.take() {
                return Some(used);
            }
            let map = self.map();
            if self.event_idx() {
                let at = AVAIL + 4 + 2 * u64::from(self.size);
                map.store(self.used.0, self.at(at), Ordering::Relaxed)
                    .unwrap();
            } else {
                map.store(0_u16, self.at(AVAIL), Ordering::Relaxed).unwrap();
            }
            fence(Ordering::SeqCst);
            let used = self.take();
            if used.is_none() {
                let left = limit.saturating_sub(start.elapsed());
                if !self.interrupts.wait_queue(self.index, self.seen, left) {
                    return None;
                }
            }
            self.seen = self.interrupts.of_queue(self.index);
            if !self.event_idx() {
                let flags = u16::try_from(VRING_AVAIL_F_NO_INTERRUPT).unwrap();
                map.store(flags, self.at(AVAIL), Ordering::Relaxed).unwrap();
            }
            if used.is_some() {
                return used;
            }
        }
    }

    /// The next chain that comes back. Fails the test if none does.
    pub(super) fn wait(&mut self) -> (u16, Vec<u8>) {
        let index = self.index;
        self.take_within(DEADLINE)
            .unwrap_or_else(|| panic!("queue {index}: nothing came back, or nobody was told"))
    }

    /// Writes anything into the ring.
    pub(super) fn scribble(&self, offset: u64, bytes: &[u8]) {
        self.map().write_slice(bytes, self.at(offset)).unwrap();
    }
}

/// Offsets of a queue's parts, for scribbling.
pub(super) const PARTS: [u64; 4] = [0, AVAIL, USED, INDIRECT];
