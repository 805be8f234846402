//! Rings and chains that no driver would make: each ends in a used buffer or a reset request, never in a panic or a hang.

use std::sync::Mutex;

use super::*;
use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};
use paddock_storage::testing::Fault;
use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const SIZE: usize = 64 * 512;
const RAM: usize = 1 << 20;
const ENTRIES: u16 = 64;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x8000;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

#[derive(Debug, Default)]
struct Resets(Mutex<Vec<String>>);

impl QueueInterrupt for Resets {
    fn signal_queue(&self, _queue: u16) {}
    fn signal_config(&self) {}
    fn needs_reset(&self, reason: &str) {
        self.0.lock().unwrap().push(reason.to_owned());
    }
}

/// A ring that is written by hand.
struct Raw {
    map: GuestMap,
    resets: Arc<Resets>,
    core: BlkQueue,
    avail: u16,
}

/// Address, length, flags, next.
type Fields = (u64, u32, u16, u16);

impl Raw {
    fn new(disk: &MemoryDisk, event_idx: bool) -> Self {
        let map = GuestMap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let resets = Arc::new(Resets::default());
        let mut queue = Queue::new(ENTRIES).unwrap();
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let no_event_idx = u64::from(!event_idx) << VIRTIO_RING_F_EVENT_IDX;
        let resources = QueueResources {
            queue,
            memory: GuestRam::new(map.clone()),
            kick: Arc::new(EventFd::new(0).unwrap()),
            interrupt: Arc::clone(&resets) as _,
            features: device(disk, 1).features() & !no_event_idx,
        };
        let queue = disk.open_queue(ENTRIES).unwrap();
        Self {
            map,
            resets,
            core: BlkQueue::new("disk0".into(), 0, resources, b"", queue),
            avail: 0,
        }
    }

    fn put(&self, table: u64, index: u64, (address, length, flags, next): Fields) {
        let descriptor = Descriptor::new(address, length, flags, next);
        let place = GuestAddress(table + 16 * index);
        self.map.write_obj(descriptor, place).unwrap();
    }

    fn make_available(&mut self, head: u16) {
        let slot = AVAIL + 4 + 2 * u64::from(self.avail % ENTRIES);
        self.map.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail += 1;
        self.map
            .write_obj(self.avail, GuestAddress(AVAIL + 2))
            .unwrap();
    }

    /// Serves until nothing is left to do. More passes than there are entries mean that it would never end.
    fn settle(&mut self) {
        let mut passes = 0;
        while self.core.serve() || self.core.in_flight() > 0 {
            passes += 1;
            assert!(passes < 200, "the queue does not settle");
        }
    }

    fn used(&self) -> u16 {
        self.core.ring().next_used()
    }

    fn resets(&self) -> Vec<String> {
        self.resets.0.lock().unwrap().clone()
    }
}

/// The reason that a chain of these descriptors, the first its head, is refused for.
fn refused(direct: &[Fields], indirect: &[Fields]) -> String {
    let mut raw = Raw::new(&MemoryDisk::new(SIZE), true);
    for (index, fields) in (0..).zip(direct) {
        raw.put(0, index, *fields);
    }
    for (index, fields) in (0..).zip(indirect) {
        raw.put(TABLE, index, *fields);
    }
    raw.make_available(0);
    raw.settle();
    assert_eq!(raw.used(), 0);
    let mut resets = raw.resets();
    assert_eq!(resets.len(), 1, "{direct:?} {indirect:?}");
    resets.remove(0)
}

#[test]
fn chains_that_cannot_be_ask_for_a_reset_and_say_why() {
    let table = |entries: u32| (TABLE, 16 * entries, INDIRECT, 0);
    let header = (DATA, 16, NEXT, 1);
    let cases: &[(&str, &[Fields], &[Fields])] = &[
        ("outside the table", &[(DATA, 16, NEXT, ENTRIES)], &[]),
        ("outside the table", &[table(1)], &[(DATA, 16, NEXT, 1)]),
        ("loop", &[(DATA, 16, NEXT, 0)], &[]),
        (
            "loop",
            &[table(2)],
            &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)],
        ),
        ("malformed indirect", &[(TABLE, 0, INDIRECT, 0)], &[]),
        ("malformed indirect", &[(TABLE, 17, INDIRECT, 0)], &[]),
        ("malformed indirect", &[(TABLE, 16 << 16, INDIRECT, 0)], &[]),
        (
            "malformed indirect",
            &[(TABLE, 16, INDIRECT | NEXT, 1)],
            &[],
        ),
        ("malformed indirect", &[table(1)], &[table(1)]),
        ("not guest RAM", &[(RAM as u64, 16, INDIRECT, 0)], &[]),
        (
            "readable descriptor after",
            &[(DATA, 1, WRITE | NEXT, 1), header],
            &[],
        ),
        ("not guest RAM", &[(1 << 40, 16, 0, 0)], &[]),
        ("not guest RAM", &[(u64::MAX, 16, 0, 0)], &[]),
        ("not guest RAM", &[(u64::MAX - 15, 16, WRITE, 0)], &[]),
        ("not guest RAM", &[(RAM as u64 - 8, 16, WRITE, 0)], &[]),
        ("not guest RAM", &[(0, u32::MAX, 0, 0)], &[]),
        ("no room", &[(DATA, 16, 0, 0)], &[]),
        ("no room", &[(DATA, 0, WRITE, 0)], &[]),
    ];
    for (expected, direct, indirect) in cases {
        let reason = refused(direct, indirect);
        assert!(reason.contains(expected), "{reason} is not {expected}");
    }
}

#[test]
fn an_available_index_that_jumps_asks_for_a_reset() {
    let mut raw = Raw::new(&MemoryDisk::new(SIZE), false);
    raw.map
        .write_obj(ENTRIES + 1, GuestAddress(AVAIL + 2))
        .unwrap();
    raw.settle();
    assert_eq!(raw.resets().len(), 1);
}

#[test]
fn rings_outside_guest_ram_ask_for_a_reset() {
    let disk = MemoryDisk::new(SIZE);
    let guest = Guest::new();
    let driver = guest.queue(0, 16);
    let mut resources = driver.resources(0);
    resources.queue.set_used_ring_address(Some(0), Some(1));
    let queue = disk.open_queue(16).unwrap();
    let mut core = BlkQueue::new("disk0".into(), 0, resources, b"", queue);
    assert!(core.is_broken() && guest.broken().is_some());
    assert!(!core.serve());
}

#[test]
fn a_head_that_is_in_flight_cannot_be_made_available_again() {
    let disk = MemoryDisk::new(SIZE);
    disk.script([Fault::Stuck]);
    let mut raw = Raw::new(&disk, true);
    raw.put(0, 0, (DATA, 16, NEXT, 1));
    raw.put(0, 1, (DATA, 513, WRITE, 0));
    raw.make_available(0);
    raw.core.serve();
    raw.make_available(0);
    raw.core.serve();
    assert!(raw.resets()[0].contains("twice"));
    // The request is the disk's all the same.
    assert_eq!(raw.core.in_flight(), 1);
    disk.release();
    raw.core.drain(Duration::from_secs(5)).unwrap();
    assert_eq!(raw.used(), 0, "a broken ring is not written");
}

#[test]
fn a_broken_queue_serves_nothing_more() {
    let mut raw = Raw::new(&MemoryDisk::new(SIZE), true);
    raw.put(0, 0, (1 << 40, 16, 0, 0));
    raw.put(0, 1, (DATA, 16, NEXT, 2));
    raw.put(0, 2, (DATA, 513, WRITE, 0));
    raw.make_available(0);
    raw.make_available(1);
    raw.settle();
    raw.make_available(1);
    raw.settle();
    assert!(raw.core.is_broken());
    assert_eq!((raw.used(), raw.resets().len()), (0, 1));
}

/// Plausible numbers get further than random ones.
fn fields() -> impl Strategy<Value = Fields> {
    let flags = prop::sample::select(vec![
        0,
        NEXT,
        NEXT,
        WRITE,
        WRITE | NEXT,
        INDIRECT,
        INDIRECT | NEXT,
        0xffff,
    ]);
    let address = prop_oneof![
        4 => DATA..RAM as u64,
        2 => (TABLE..DATA).prop_map(|address| address & !15),
        1 => 0..TABLE,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        3 => prop::sample::select(vec![0, 1, 15, 16, 17, 32, 48, 512, 513, 1024]),
        2 => (0..60_u32).prop_map(|entries| entries * 16),
        1 => any::<u32>(),
    ];
    let next = prop_oneof![5 => 0..ENTRIES, 1 => any::<u16>()];
    (address, length, flags, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_chains_are_used_or_ask_for_a_reset(
        direct in prop::collection::vec(fields(), ENTRIES as usize),
        indirect in prop::collection::vec(fields(), 0..600),
        kinds in prop::collection::vec((prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13, 99]), 0..80_u64), 40),
        heads in prop::collection::vec(prop_oneof![20 => 0..ENTRIES, 1 => any::<u16>()], 1..30),
        event_idx: bool,
    ) {
        let disk = MemoryDisk::new(SIZE);
        let mut raw = Raw::new(&disk, event_idx);
        for (address, (kind, sector)) in (DATA..).step_by(16).zip(&kinds) {
            raw.map.write_slice(&header(*kind, *sector), GuestAddress(address)).unwrap();
        }
        for (index, fields) in (0..).zip(&direct) {
            raw.put(0, index, *fields);
        }
        for (index, fields) in (0..).zip(&indirect) {
            raw.put(TABLE, index, *fields);
        }
        for (served, head) in (1..).zip(heads) {
            raw.make_available(head);
            raw.settle();
            if raw.core.is_broken() {
                break;
            }
            // A chain may have been used over the rings themselves; then the device's own position still counts.
            prop_assert_eq!(raw.used(), served);
        }
        prop_assert_eq!(raw.resets().len(), usize::from(raw.core.is_broken()));
        prop_assert_eq!(raw.core.in_flight(), 0);
    }

    #[test]
    fn garbage_over_the_rings_is_survived(
        requests in 0..10_usize,
        garbage in prop::collection::vec(any::<u8>(), 3..600),
        event_idx: bool,
    ) {
        let disk = MemoryDisk::new(SIZE);
        let mask = if event_idx { !0 } else { !(1 << VIRTIO_RING_F_EVENT_IDX) };
        let mut bench = Bench::with_features(&disk, 32, mask);
        for sector in 0..requests as u64 {
            bench.driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, sector)], &[512, 1]);
        }
        bench.driver.scribble(&garbage);
        bench.settle();
        prop_assert_eq!(bench.core.in_flight(), 0);
        prop_assert_eq!(bench.core.is_broken(), bench.guest.broken().is_some());
    }
}
