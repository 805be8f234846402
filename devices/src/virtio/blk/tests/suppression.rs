//! A driver that notifies only when the device asked for it, and sleeps until it is interrupted: whoever suppresses one
//! notification too many hangs it (VIRTIO 1.2 §2.7.7, §2.7.10).

use super::*;
use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const ENTRIES: u16 = 64;
const SLOTS: u16 = ENTRIES / 2;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x8000;
const SLOT: u64 = 0x1000;

#[derive(Debug)]
struct Line(EventFd);

impl QueueInterrupt for Line {
    fn signal_queue(&self, _queue: u16) {
        self.0.write(1).unwrap();
    }
    fn signal_config(&self) {}
    fn needs_reset(&self, reason: &str) {
        panic!("{reason}");
    }
}

struct Frugal {
    map: GuestMap,
    kick: Arc<EventFd>,
    line: Arc<Line>,
    event_idx: bool,
    avail: u16,
    used: u16,
    kicks: u32,
    interrupts: u32,
}

impl Frugal {
    fn load(&self, address: u64) -> u16 {
        self.map
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap()
    }

    fn store(&self, address: u64, value: u16) {
        self.map
            .store(value, GuestAddress(address), Ordering::Release)
            .unwrap();
    }

    /// Slot `n` has descriptors 2n and 2n + 1: the header; data and status.
    fn prepare(&self) {
        for slot in 0..SLOTS {
            let base = DATA + SLOT * u64::from(slot);
            let request = header(VIRTIO_BLK_T_IN, u64::from(slot));
            self.map.write_slice(&request, GuestAddress(base)).unwrap();
            let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
            let first = Descriptor::new(base, 16, next, 2 * slot + 1);
            let second = Descriptor::new(base + 512, 513, write, 0);
            let at = |index: u16| GuestAddress(16 * u64::from(index));
            self.map.write_obj(first, at(2 * slot)).unwrap();
            self.map.write_obj(second, at(2 * slot + 1)).unwrap();
        }
    }

    fn submit(&mut self, slots: &[u16]) {
        let old = self.avail;
        for slot in slots {
            self.store(AVAIL + 4 + 2 * u64::from(self.avail % ENTRIES), 2 * slot);
            self.avail = self.avail.wrapping_add(1);
            self.store(AVAIL + 2, self.avail);
        }
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.load(USED + 4 + 8 * u64::from(ENTRIES));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            self.load(USED) & 1 == 0
        };
        if wanted {
            self.kicks += 1;
            self.kick.write(1).unwrap();
        }
    }

    /// Collects what is used; sleeps if there is nothing.
    fn collect(&mut self, wake_after: u16) -> Vec<u16> {
        loop {
            let index = self.load(USED + 2);
            if index != self.used {
                let mut slots = Vec::new();
                while self.used != index {
                    let entry = USED + 4 + 8 * u64::from(self.used % ENTRIES);
                    slots.push(self.load(entry) / 2);
                    self.used = self.used.wrapping_add(1);
                }
                return slots;
            }
            // Asks for an interrupt after so many more, then looks again.
            let event = self.used.wrapping_add(wake_after - 1);
            self.store(AVAIL + 4 + 2 * u64::from(ENTRIES), event);
            fence(Ordering::SeqCst);
            if self.load(USED + 2).wrapping_sub(self.used) >= wake_after {
                continue;
            }
            let fd = crate::virtio::worker::borrow(&self.line.0);
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                fd,
                rustix::event::PollFlags::IN,
            )];
            let patience = rustix::event::Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut fds, Some(&patience)).unwrap();
            assert_eq!(ready, 1, "a notification was lost");
            self.line.0.read().unwrap();
            self.interrupts += 1;
        }
    }
}

fn run(engine: Engine, event_idx: bool) {
    let (_directory, disk) = raw_disk(engine);
    let mut blk = Blk::new("disk0", disk, BlkOptions::default()).unwrap();
    let map = GuestMap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let mut driver = Frugal {
        map: map.clone(),
        kick: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        line: Arc::new(Line(EventFd::new(libc::EFD_NONBLOCK).unwrap())),
        event_idx,
        avail: 0,
        used: 0,
        kicks: 0,
        interrupts: 0,
    };
    driver.prepare();
    let mut queue = Queue::new(ENTRIES).unwrap();
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    let resources = QueueResources {
        queue,
        memory: GuestRam::new(map),
        kick: Arc::clone(&driver.kick),
        interrupt: Arc::clone(&driver.line) as _,
        features: blk.features() & !(u64::from(!event_idx) << VIRTIO_RING_F_EVENT_IDX),
    };
    blk.start_queue(0, resources).unwrap();
    let mut free: Vec<u16> = (0..SLOTS).collect();
    let mut random = 12345_u32;
    for _ in 0..20_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let batch = (random >> 16) as usize % 5;
        let start = free.len().saturating_sub(batch);
        let slots = free.split_off(start);
        driver.submit(&slots);
        let in_flight = SLOTS - free.len() as u16;
        if in_flight > 0 && (in_flight >= SLOTS - 5 || random >> 30 == 0) {
            // Without event indices each batch interrupts.
            let wake_after = if event_idx { 1 + in_flight / 2 } else { 1 };
            free.extend(driver.collect(wake_after.min(in_flight)));
        }
    }
    while free.len() < usize::from(SLOTS) {
        free.extend(driver.collect(1));
    }
    free.sort_unstable();
    assert!(free.into_iter().eq(0..SLOTS), "each once");
    let requests = u32::from(driver.avail);
    assert!(driver.kicks > 0 && driver.interrupts > 0 && requests > 0);
    assert!(blk.stop_queue(0).is_some());
}

#[test]
fn a_frugal_driver_is_never_left_asleep() {
    for engine in [Engine::IoUring, Engine::Threads] {
        for event_idx in [true, false] {
            run(engine, event_idx);
        }
    }
}
