//! The device, driven through its queues; guest RAM's owner is a [`Recorder`].
#![expect(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges are what is compared"
)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::virtio::test_driver::{DEADLINE, Driver, Guest, wait_for};

const LARGE: u64 = 2 << 20;
const ALL: BalloonOptions = BalloonOptions {
    deflate_on_oom: true,
    free_page_reporting: true,
};
/// Test RAM.
const RAM: u64 = 64 << 20;
const RAM_PAGES: u32 = 16 << 10;

/// Remembers what is given back.
#[derive(Debug)]
struct Recorder {
    granule: u64,
    ranges: Mutex<Vec<Range<u64>>>,
    fails: AtomicBool,
}

impl Reclaim for Recorder {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn reclaim(&self, range: Range<u64>) -> io::Result<()> {
        assert!(range.start < range.end && range.end <= RAM);
        assert!(range.start.is_multiple_of(self.granule) && range.end.is_multiple_of(self.granule));
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.ranges.lock().push(range);
        Ok(())
    }
}

impl Recorder {
    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.ranges.lock())
    }
}

struct Machine {
    guest: Guest,
    memory: Arc<Recorder>,
    handle: BalloonHandle,
    device: VirtioBalloon,
    /// What the driver does not accept.
    declined: u64,
}

impl Machine {
    fn new(granule: u64) -> Self {
        let memory = Arc::new(Recorder {
            granule,
            ranges: Mutex::default(),
            fails: AtomicBool::new(false),
        });
        let handle = BalloonHandle::new(RAM, || ());
        let shared = Arc::clone(&memory) as Arc<dyn Reclaim>;
        let device = VirtioBalloon::new("balloon", handle.clone(), shared, ALL);
        Self {
            guest: Guest::new(),
            memory,
            handle,
            device,
            declined: 0,
        }
    }

    fn features(&self) -> u64 {
        self.device.features() & !self.declined
    }

    fn start(&mut self, index: u16) -> Driver {
        let driver = self.guest.queue(index, QUEUE_SIZE);
        let resources = driver.resources(self.features());
        self.device.start_queue(index, resources).unwrap();
        driver
    }

    /// Sends pages and returns what was given back for them.
    fn send(&self, driver: &mut Driver, pages: &[u32]) -> Vec<Range<u64>> {
        driver.add_bytes(&[&bytes(pages)], &[]);
        driver.kick();
        let used = driver.wait_used();
        assert!(used.written.is_empty());
        self.memory.take()
    }

    fn config(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn config_interrupts(&self) -> u64 {
        self.guest.interrupts.config.load(Ordering::Relaxed)
    }
}

fn bytes(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn the_offer_follows_the_options() {
    let machine = Machine::new(PAGE_SIZE);
    assert_eq!(machine.device.device_type(), 5);
    assert_eq!(machine.device.features(), 0b11_0110);
    assert_eq!(machine.device.queue_max_sizes(), [128; 5]);
    let plain = VirtioBalloon::new(
        "plain",
        machine.handle.clone(),
        Arc::clone(&machine.memory) as _,
        BalloonOptions::default(),
    );
    assert_eq!(plain.features(), F_STATS);
    assert_eq!(Machine::new(LARGE).features() & F_MUST_TELL_HOST, 1);
}

#[test]
fn inflated_pages_are_given_back_in_ranges() {
    let mut machine = Machine::new(PAGE_SIZE);
    let mut inflate = machine.start(0);
    let mut deflate = machine.start(1);
    let given = machine.send(&mut inflate, &[12, 10, 11, 30, 10]);
    assert_eq!(given, [0xa000..0xd000, 0x1e000..0x1f000]);
    // Cut by the driver into buffers in the middle of a number, and with a rest that is none.
    let all = bytes(&[7, 8, 9]);
    inflate.add_bytes(&[&all[..2], &all[2..7], &all[7..], &[1, 0]], &[]);
    inflate.kick();
    inflate.wait_used();
    assert_eq!(machine.memory.take(), [0x7000..0xa000]);
    assert_eq!(
        machine.send(&mut deflate, &[10, 11]),
        [],
        "touching it is enough"
    );
    assert_eq!(machine.send(&mut inflate, &[]), []);
    let counters = machine.handle.status().counters;
    assert_eq!(
        (counters.inflated_bytes, counters.refused_pages),
        (7 << 12, 0)
    );
    wait_for("an interrupt", || {
        (inflate.interrupts() > 0 && deflate.interrupts() > 0).then_some(())
    });
    assert_eq!(machine.guest.broken(), None);
    assert!(machine.device.stop_queue(0).is_some());
    assert!(machine.device.stop_queue(0).is_none());
    assert!(machine.device.stop_queue(1).is_some());
}

#[test]
fn pages_outside_ram_are_refused() {
    let mut machine = Machine::new(PAGE_SIZE);
    let mut inflate = machine.start(0);
    let outside = [
        RAM_PAGES,
        RAM_PAGES + 1,
        1 << 20,
        u32::MAX,
        RAM_PAGES - 1,
        5,
    ];
    assert_eq!(
        machine.send(&mut inflate, &outside),
        [0x5000..0x6000, RAM - PAGE_SIZE..RAM]
    );
    assert_eq!(machine.handle.status().counters.refused_pages, 4);
    assert_eq!(machine.guest.broken(), None);
}

#[test]
fn a_host_that_refuses_harms_nobody() {
    let mut machine = Machine::new(PAGE_SIZE);
    machine.memory.fails.store(true, Ordering::Relaxed);
    let mut inflate = machine.start(0);
    assert_eq!(machine.send(&mut inflate, &[1, 2, 9]), []);
    let counters = machine.handle.status().counters;
    assert_eq!((counters.errors, counters.inflated_bytes), (2, 0));
    machine.memory.fails.store(false, Ordering::Relaxed);
    assert_eq!(machine.send(&mut inflate, &[1]), [0x1000..0x2000]);
}

#[test]
fn a_reset_does_not_loosen_the_brakes_on_the_log() {
    let mut machine = Machine::new(PAGE_SIZE);
    for _ in 0..2 {
        let mut inflate = machine.start(0);
        assert_eq!(machine.send(&mut inflate, &[u32::MAX]), []);
        machine.memory.fails.store(true, Ordering::Relaxed);
        assert_eq!(machine.send(&mut inflate, &[0]), []);
        machine.memory.fails.store(false, Ordering::Relaxed);
        machine.device.reset();
        let brakes = &machine.device.brakes;
        let passed = [brakes.refusals.pass(), brakes.failures.pass()];
        assert_eq!(passed, [None; 2], "the worker logged, and so may nobody");
    }
}

#[test]
fn an_endless_request_is_cut() {
    let mut machine = Machine::new(PAGE_SIZE);
    let mut inflate = machine.start(0);
    // Twice as many as are looked at, each a range of its own as far as there is RAM.
    let pages: Vec<u32> = (0..32 << 10).map(|i| i * 2).collect();
    let given = machine.send(&mut inflate, &pages);
    assert_eq!(given.len(), 8 << 10);
    assert_eq!(machine.handle.status().counters.refused_pages, 8 << 10);
}

#[test]
fn large_pages_go_when_their_last_part_does() {
    let mut machine = Machine::new(LARGE);
    let mut inflate = machine.start(0);
    let mut deflate = machine.start(1);
    let pages: Vec<u32> = (512..1024).collect();
    assert_eq!(machine.send(&mut inflate, &pages[..256]), []);
    assert_eq!(machine.send(&mut deflate, &pages[255..256]), []);
    assert_eq!(
        machine.send(&mut inflate, &pages[256..]),
        [],
        "one is in use"
    );
    assert_eq!(
        machine.send(&mut inflate, &pages[255..256]),
        [LARGE..2 * LARGE]
    );
    // A deflation too long to be looked at takes everything out.
    machine.send(&mut inflate, &(1024..1535).collect::<Vec<_>>());
    machine.send(&mut deflate, &[1; (16 << 10) + 1]);
    assert_eq!(machine.send(&mut inflate, &[1535]), []);
    // What the driver said before a reset does not count after it.
    machine.send(&mut inflate, &(0..511).collect::<Vec<_>>());
    machine.device.stop_queue(0);
    machine.device.stop_queue(1);
    machine.device.reset();
    let mut inflate = machine.start(0);
    assert_eq!(machine.send(&mut inflate, &[511]), []);
}

#[test]
fn large_pages_of_a_driver_that_tells_late_go_only_at_once() {
    let mut machine = Machine::new(LARGE);
    machine.declined = F_MUST_TELL_HOST;
    let mut inflate = machine.start(0);
    let pages: Vec<u32> = (500..1100).collect();
    assert_eq!(machine.send(&mut inflate, &pages[..300]), []);
    assert_eq!(machine.send(&mut inflate, &pages[300..]), []);
    assert_eq!(machine.send(&mut inflate, &pages), [LARGE..2 * LARGE]);
}

#[test]
fn the_driver_learns_of_its_target() {
    let mut machine = Machine::new(PAGE_SIZE);
    machine.handle.set_target(8 << 20).unwrap();
    assert_eq!(machine.config(0), 2048, "with no driver yet");
    let deflate = machine.start(1);
    assert_eq!(machine.config_interrupts(), 0);
    let inflate = machine.start(0);
    wait_for("the target at the start", || {
        (machine.config_interrupts() == 1).then_some(())
    });
    machine.device.write_config(4, &2048_u32.to_le_bytes());
    assert_eq!(machine.handle.actual(), 8 << 20);
    machine.handle.set_target(4 << 20).unwrap();
    wait_for("a new target", || {
        (machine.config_interrupts() == 2).then_some(())
    });
    assert_eq!((machine.config(0), machine.config(4)), (1024, 2048));
    assert_eq!((machine.config(16), machine.config(u64::MAX)), (0, 0));
    machine.handle.set_target(4 << 20).unwrap();
    drop((inflate, deflate));
    for index in [0, 1] {
        machine.device.stop_queue(index);
    }
    machine.device.reset();
    assert_eq!(
        (machine.handle.target(), machine.handle.actual()),
        (4 << 20, 0)
    );
    assert_eq!(machine.config_interrupts(), 2, "nothing new, nothing said");
}

#[test]
fn a_device_that_was_replaced_leaves_the_handle_alone() {
    let mut machine = Machine::new(PAGE_SIZE);
    let _queue = machine.start(0);
    machine.device.write_config(4, &[1, 0, 0, 0]);
    machine.device.stop_queue(0);
    machine.device.reset();
    let shared = Arc::clone(&machine.memory) as Arc<dyn Reclaim>;
    let next = VirtioBalloon::new("next", machine.handle.clone(), shared, ALL);
    let old = std::mem::replace(&mut machine.device, next);
    let _inflate = machine.start(0);
    machine.device.write_config(4, &[2, 0, 0, 0]);
    drop(old);
    assert_eq!(machine.handle.actual(), 2 * PAGE_SIZE);
    machine.handle.set_target(3 * PAGE_SIZE).unwrap();
    wait_for("the new target", || {
        (machine.config_interrupts() > 0).then_some(())
    });
    // One that goes without a reset takes what it said with it.
    let Machine { device, handle, .. } = machine;
    drop(device);
    assert_eq!((handle.actual(), handle.target()), (0, 3 * PAGE_SIZE));
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut machine = Machine::new(PAGE_SIZE);
    assert_eq!(
        machine.handle.request_statistics(),
        Err(BalloonError::NoDriver)
    );
    let mut queue = machine.start(2);
    assert_eq!(machine.handle.status().statistics, None);
    queue.add_bytes(&[&statistic(4, 100), &statistic(5, 200)], &[]);
    queue.kick();
    let first = wait_for("the first statistics", || {
        machine.handle.status().statistics
    });
    assert_eq!((first.free, first.total), (Some(100), Some(200)));
    std::thread::sleep(Duration::from_millis(20));
    assert!(
        queue.try_used().is_none(),
        "the buffer is kept until it is wanted"
    );
    for value in 300..310 {
        let asked = Instant::now();
        machine.handle.request_statistics().unwrap();
        queue.wait_used();
        queue.add_bytes(&[&statistic(6, value)], &[]);
        queue.kick();
        let new = wait_for("new statistics", || {
            machine
                .handle
                .status()
                .statistics
                .filter(|s| s.taken > asked)
        });
        assert_eq!((new.available, new.total), (Some(value), None));
    }
    wait_for("interrupts", || (queue.interrupts() == 10).then_some(()));
    // The buffer goes with its queue, and is there again when that starts anew.
    let ring = machine.device.stop_queue(2).unwrap();
    assert_eq!(
        machine.handle.request_statistics(),
        Err(BalloonError::NoDriver)
    );
    let resources = queue.resources_with(ring, machine.features());
    machine.device.start_queue(2, resources).unwrap();
    machine.handle.request_statistics().unwrap();
    queue.wait_used();
    assert!(machine.device.stop_queue(2).is_some());
    machine.device.reset();
    assert_eq!(machine.handle.status().statistics, None);
    assert_eq!(machine.guest.broken(), None);
}

#[test]
fn many_buffers_for_statistics_make_no_storm() {
    let mut machine = Machine::new(PAGE_SIZE);
    let mut queue = machine.start(2);
    for value in 0..20 {
        queue.add_bytes(&[&statistic(4, value)], &[]);
    }
    queue.kick();
    let free = || machine.handle.status().statistics.and_then(|s| s.free);
    wait_for("the first", || (free() == Some(0)).then_some(()));
    for _ in 0..5 {
        queue.kick();
    }
    machine.handle.request_statistics().unwrap();
    queue.wait_used();
    wait_for("the second", || (free() == Some(1)).then_some(()));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(free(), Some(1));
    assert!(queue.try_used().is_none());
}

#[test]
fn reported_pages_are_given_back_wherever_their_queue_is() {
    for (index, declined) in [(4, 0), (3, 0), (2, F_STATS)] {
        let mut machine = Machine::new(PAGE_SIZE);
        machine.declined = declined;
        let mut queue = machine.start(index);
        queue.add_raw(0x40_0000, 4 << 20, true);
        queue.kick();
        queue.wait_used();
        assert_eq!(machine.memory.take(), [0x40_0000..0x80_0000]);
        let status = machine.handle.status();
        assert_eq!(
            (
                status.counters.reported_bytes,
                status.counters.inflated_bytes
            ),
            (4 << 20, 0)
        );
        // What does not begin and end with a page keeps the pages at its ends; what the device may not write it leaves alone.
        for (address, length, writable) in [
            (0x10_0fff, 0x2001, true),
            (0x20_0800, 0x1000, true),
            (0x30_0000, 0x1000, false),
        ] {
            queue.add_raw(address, length, writable);
            queue.kick();
            queue.wait_used();
        }
        assert_eq!(machine.memory.take(), [0x10_1000..0x10_3000]);
        assert_eq!(machine.guest.broken(), None);
    }
}

#[test]
fn reported_pages_that_are_filled_stay_as_they_are() {
    let mut machine = Machine::new(PAGE_SIZE);
    let mut queue = machine.start(3);
    machine
        .device
        .write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    assert_eq!(machine.config(12), 0xaaaa_aaaa);
    queue.add_raw(0x40_0000, 4 << 20, true);
    queue.kick();
    queue.wait_used();
    assert_eq!(machine.memory.take(), []);
    machine.device.write_config(12, &[0; 4]);
    queue.add_raw(0x40_0000, 4 << 20, true);
    queue.kick();
    queue.wait_used();
    assert_eq!(machine.memory.take(), [0x40_0000..0x80_0000]);
}

#[test]
fn reported_large_pages_are_given_back_whole() {
    let mut machine = Machine::new(LARGE);
    let mut queue = machine.start(3);
    queue.add_raw(LARGE - PAGE_SIZE, 6 << 20, true);
    queue.kick();
    queue.wait_used();
    assert_eq!(machine.memory.take(), [LARGE..3 * LARGE]);
}

#[test]
fn queues_that_were_not_agreed_on_do_not_start() {
    let mut machine = Machine::new(PAGE_SIZE);
    let driver = machine.guest.queue(0, QUEUE_SIZE);
    for (index, features) in [(2, 0), (3, F_STATS), (4, F_STATS), (5, u64::MAX)] {
        let resources = driver.resources(features);
        let error = machine.device.start_queue(index, resources).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
    }
    let _first = machine.start(0);
    let again = driver.resources(machine.features());
    let error = machine.device.start_queue(0, again).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_broken_ring_asks_for_a_reset_once_and_stops_only_itself() {
    for index in [0, 1, 2, 3] {
        let mut machine = Machine::new(LARGE);
        let mut broken = machine.start(index);
        let mut other = machine.start(4);
        broken.add_raw(0x4000_0000_0000, 8, index == 3);
        broken.kick();
        machine.guest.wait_broken();
        broken.add_bytes(&[&bytes(&[1])], &[]);
        broken.kick();
        other.add_raw(LARGE, 2 << 20, true);
        other.kick();
        other.wait_used();
        assert!(broken.try_used().is_none());
        assert!(machine.device.stop_queue(index).is_some());
        assert!(machine.device.stop_queue(4).is_some());
        machine.guest.wait_broken();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..8192), large: bool) {
        let mut machine = Machine::new(if large { LARGE } else { PAGE_SIZE });
        let started = Instant::now();
        for index in 0..5 {
            let driver = machine.guest.queue(index, 64);
            driver.scribble(&bytes);
            let resources = driver.resources(machine.features());
            machine.device.start_queue(index, resources).unwrap();
            driver.kick();
        }
        machine.handle.set_target(PAGE_SIZE).unwrap();
        machine.handle.request_statistics().unwrap();
        for index in 0..5 {
            prop_assert!(machine.device.stop_queue(index).is_some());
        }
        prop_assert!(started.elapsed() < DEADLINE);
    }

    #[test]
    fn any_pages_are_answered(pages in prop::collection::vec(prop_oneof![0..RAM_PAGES + 64, any::<u32>()], 0..600), large: bool) {
        let mut machine = Machine::new(if large { LARGE } else { PAGE_SIZE });
        let mut inflate = machine.start(0);
        // The recorder checks every range.
        let given = machine.send(&mut inflate, &pages);
        let given: u64 = given.iter().map(|range| range.end - range.start).sum();
        let inside: BTreeSet<_> = pages.iter().filter(|page| **page < RAM_PAGES).collect();
        prop_assert!(large || given == inside.len() as u64 * PAGE_SIZE);
        prop_assert_eq!(machine.guest.broken(), None);
    }
}
