//! The device, driven through its queue; the memory's owner is a [`Recorder`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::virtio::test_driver::{DEADLINE, Driver, Guest, wait_for};

const BLOCK: u64 = 2 << 20;
const START: u64 = 6 << 30;
const COUNT: u64 = 100;
const SIZE: u64 = COUNT * BLOCK;
const QUEUE_SIZE: u16 = 128;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);
const UNPLUGGED: (u16, u16) = (0, 1);
const MIXED: (u16, u16) = (0, 2);

/// What the owner was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Provided(Range<u64>),
    Reclaimed(Range<u64>),
}

use Event::{Provided, Reclaimed};

#[derive(Debug, Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
    fails: AtomicBool,
    /// How long the host takes, in milliseconds.
    takes: AtomicU64,
}

impl Recorder {
    fn record(&self, range: &Range<u64>, event: Event) -> io::Result<()> {
        assert!(START <= range.start && range.start < range.end && range.end <= START + SIZE);
        assert!(range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK));
        self.events.lock().push(event);
        let takes = self.takes.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(takes));
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock())
    }
}

impl Reclaim for Recorder {
    fn granule(&self) -> u64 {
        4096
    }

    fn reclaim(&self, range: Range<u64>) -> io::Result<()> {
        self.record(&range, Reclaimed(range.clone()))
    }
}

impl Supply for Recorder {
    fn provide(&self, range: Range<u64>) -> io::Result<()> {
        self.record(&range, Provided(range.clone()))
    }
}

/// A host that has all the memory one can ask for; counts the bytes that it provides and takes back.
#[derive(Debug, Default)]
struct Unlimited {
    provided: AtomicU64,
    taken_back: AtomicU64,
    /// How long it takes to take something back, in milliseconds.
    takes: AtomicU64,
}

impl Reclaim for Unlimited {
    fn granule(&self) -> u64 {
        4096
    }

    fn reclaim(&self, range: Range<u64>) -> io::Result<()> {
        let length = range.end - range.start;
        self.taken_back.fetch_add(length, Ordering::Relaxed);
        let takes = self.takes.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(takes));
        Ok(())
    }
}

impl Supply for Unlimited {
    fn provide(&self, range: Range<u64>) -> io::Result<()> {
        let length = range.end - range.start;
        self.provided.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }
}

struct Machine {
    guest: Guest,
    memory: Arc<Recorder>,
    handle: MemHandle,
    device: VirtioMem,
}

fn device(handle: &MemHandle, memory: &Arc<Recorder>) -> VirtioMem {
    VirtioMem::new("memory", handle.clone(), Arc::clone(memory) as _)
}

impl Machine {
    fn new(requested: u64) -> Self {
        let memory = Arc::<Recorder>::default();
        let handle = MemHandle::new(START..START + SIZE, BLOCK, || ()).unwrap();
        handle.set_requested(requested * BLOCK).unwrap();
        let device = device(&handle, &memory);
        assert_eq!(memory.take(), [Reclaimed(START..START + SIZE)]);
        Self {
            guest: Guest::new(),
            memory,
            handle,
            device,
        }
    }

    fn start(&mut self) -> Driver {
        let driver = self.guest.queue(0, QUEUE_SIZE);
        let resources = driver.resources(self.device.features());
        self.device.start_queue(0, resources).unwrap();
        driver
    }

    fn config(&self, offset: u64) -> u64 {
        let mut data = [0xee; 8];
        self.device.read_config(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn config_interrupts(&self) -> u64 {
        self.guest.interrupts.config.load(Ordering::Relaxed)
    }

    /// Blocks that are plugged in, told alike on both sides.
    fn plugged(&self) -> u64 {
        let plugged = self.handle.plugged();
        assert_eq!(self.config(40), plugged);
        plugged / BLOCK
    }
}

fn request(kind: u16, address: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

fn answer(written: &[u8]) -> (u16, u16) {
    assert_eq!(written.len(), 10);
    assert_eq!(written[2..8], [0; 6]);
    let word = |at: usize| u16::from_le_bytes([written[at], written[at + 1]]);
    (word(0), word(8))
}

/// Sends a request about blocks from the `first` on.
fn ask(driver: &mut Driver, kind: u16, first: u64, blocks: u16) -> (u16, u16) {
    send(driver, &request(kind, START + first * BLOCK, blocks))
}

fn send(driver: &mut Driver, request: &[u8]) -> (u16, u16) {
    driver.add_bytes(&[request], &[10]);
    driver.kick();
    answer(&driver.wait_used().written)
}

fn blocks(range: Range<u64>) -> Range<u64> {
    START + range.start * BLOCK..START + range.end * BLOCK
}

#[test]
fn the_configuration_tells_the_region() {
    let machine = Machine::new(7);
    assert_eq!(machine.device.device_type(), 24);
    assert_eq!(machine.device.features(), F_UNPLUGGED_INACCESSIBLE);
    for (offset, value) in [
        (0, BLOCK),
        (8, 0),
        (16, START),
        (24, SIZE),
        (32, SIZE),
        (40, 0),
        (48, 7 * BLOCK),
        (56, 0),
        (u64::MAX, 0),
    ] {
        assert_eq!(machine.config(offset), value, "at {offset}");
    }
    let mut byte = [0];
    machine.device.read_config(51, &mut byte);
    assert_eq!(u64::from(byte[0]), (7 * BLOCK) >> 24);
}

#[test]
fn blocks_are_plugged_and_unplugged() {
    let mut machine = Machine::new(10);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, STATE, 0, 100), UNPLUGGED);
    assert_eq!(ask(&mut driver, PLUG, 4, 6), ACK);
    assert_eq!(machine.memory.take(), [Provided(blocks(4..10))]);
    assert_eq!(machine.plugged(), 6);
    for (first, count, state) in [
        (4, 6, ACK),
        (3, 1, UNPLUGGED),
        (10, 90, UNPLUGGED),
        (3, 2, MIXED),
        (9, 2, MIXED),
        (0, 100, MIXED),
    ] {
        assert_eq!(ask(&mut driver, STATE, first, count), state, "{first}");
    }
    assert_eq!(ask(&mut driver, UNPLUG, 5, 2), ACK);
    assert_eq!(machine.memory.take(), [Reclaimed(blocks(5..7))]);
    assert_eq!(machine.plugged(), 4);
    assert_eq!(ask(&mut driver, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(machine.memory.take(), [Reclaimed(blocks(0..100))]);
    assert_eq!(machine.plugged(), 0);
    assert_eq!(ask(&mut driver, STATE, 0, 100), UNPLUGGED);
    wait_for("an interrupt", || (driver.interrupts() > 0).then_some(()));
    assert_eq!(machine.guest.broken(), None);
    assert_eq!(machine.handle.status().counters, CounterValues::default());
}

#[test]
fn a_stop_waits_for_one_request_and_not_for_a_ring_of_them() {
    let mut machine = Machine::new(10);
    let mut driver = machine.start();
    machine.memory.takes.store(200, Ordering::Relaxed);
    for _ in 0..16 {
        driver.add_bytes(&[&request(UNPLUG_ALL, 0, 0)], &[10]);
    }
    driver.kick();
    wait_for("the first request", || {
        (!machine.memory.events.lock().is_empty()).then_some(())
    });
    machine.device.stop_queue(0).unwrap();
    let done = machine.memory.take().len();
    assert!(done < 8, "{done} requests were served before the stop");
}

#[test]
fn a_request_takes_no_longer_than_its_memory_needs() {
    const HUGE: u64 = 1 << 30;
    let memory = Arc::<Unlimited>::default();
    let handle = MemHandle::new(START..START + 16 * HUGE, HUGE, || ()).unwrap();
    handle.set_requested(16 * HUGE).unwrap();
    let mut device = VirtioMem::new("memory", handle.clone(), Arc::clone(&memory) as _);
    let guest = Guest::new();
    let mut driver = guest.queue(0, QUEUE_SIZE);
    let resources = driver.resources(device.features());
    device.start_queue(0, resources).unwrap();
    let mut plug =
        |first: u64, count| send(&mut driver, &request(PLUG, START + first * HUGE, count));
    assert_eq!(plug(0, 5), NACK);
    assert_eq!(plug(0, 16), NACK);
    assert_eq!((plug(0, 4), plug(4, 1)), (ACK, ACK));
    assert_eq!(handle.plugged(), 5 * HUGE);
    assert_eq!(memory.provided.load(Ordering::Relaxed), 5 * HUGE);
}

#[test]
fn a_stop_does_not_wait_until_all_is_unplugged() {
    const HUGE: u64 = 1 << 30;
    const BLOCKS: u16 = 512;
    let memory = Arc::<Unlimited>::default();
    let size = u64::from(BLOCKS) * HUGE;
    let handle = MemHandle::new(START..START + size, HUGE, || ()).unwrap();
    handle.set_requested(size).unwrap();
    let mut device = VirtioMem::new("memory", handle.clone(), Arc::clone(&memory) as _);
    let guest = Guest::new();
    let mut driver = guest.queue(0, QUEUE_SIZE);
    let features = device.features();
    device.start_queue(0, driver.resources(features)).unwrap();
    let part = |kind, index: u64| request(kind, START + index * 4 * HUGE, 4);
    for kind in [UNPLUG_ALL, UNPLUG] {
        for index in 0..u64::from(BLOCKS / 4) {
            assert_eq!(send(&mut driver, &part(PLUG, index)), ACK);
        }
        memory.taken_back.store(0, Ordering::Relaxed);
        memory.takes.store(100, Ordering::Relaxed);
        driver.add_bytes(&[&request(kind, START, BLOCKS)], &[10]);
        driver.kick();
        wait_for("the first step", || {
            (memory.taken_back.load(Ordering::Relaxed) > 0).then_some(())
        });
        let queue = device.stop_queue(0).unwrap();
        let taken_back = memory.taken_back.load(Ordering::Relaxed);
        assert!(
            taken_back <= size / 4,
            "{taken_back:#x} bytes before the stop"
        );
        assert_eq!(handle.plugged(), size, "not before it is all done");

        // Whoever goes on with the queue serves it.
        memory.takes.store(0, Ordering::Relaxed);
        let resources = QueueResources {
            queue,
            ..driver.resources(features)
        };
        device.start_queue(0, resources).unwrap();
        driver.kick();
        assert_eq!(answer(&driver.wait_used().written), ACK);
        assert_eq!(handle.plugged(), 0);
    }
    assert_eq!(guest.broken(), None);
}

#[test]
fn requests_against_the_rules_change_nothing() {
    let mut machine = Machine::new(100);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, PLUG, 10, 10), ACK);
    machine.memory.take();
    let at = |offset: u64| START.wrapping_add(offset);
    let mut refused = 0;
    for (kind, address, count, why) in [
        (PLUG, at(0), 0, "no blocks"),
        (UNPLUG, at(10 * BLOCK), 0, "no blocks"),
        (STATE, at(0), 0, "no blocks"),
        (PLUG, at(4096), 1, "not aligned"),
        (UNPLUG, at(10 * BLOCK + 1), 1, "not aligned"),
        (STATE, at(BLOCK / 2), 1, "not aligned"),
        (PLUG, START - BLOCK, 1, "before the region"),
        (PLUG, START - BLOCK, 2, "before the region"),
        (PLUG, 0, 1, "before the region"),
        (PLUG, at(SIZE), 1, "behind the region"),
        (PLUG, at(SIZE - BLOCK), 2, "across its end"),
        (STATE, at(0), 101, "across its end"),
        (STATE, at(0), u16::MAX, "across its end"),
        (PLUG, u64::MAX - BLOCK + 1, 1, "at the end of all"),
        (PLUG, u64::MAX - BLOCK + 1, u16::MAX, "wraps"),
        (PLUG, at(10 * BLOCK), 1, "is plugged in"),
        (PLUG, at(9 * BLOCK), 2, "is plugged in, in part"),
        (PLUG, at(19 * BLOCK), 2, "is plugged in, in part"),
        (UNPLUG, at(0), 1, "is not plugged in"),
        (UNPLUG, at(9 * BLOCK), 11, "is plugged in only in part"),
        (UNPLUG, at(10 * BLOCK), 11, "is plugged in only in part"),
        (4, at(0), 1, "no such request"),
        (u16::MAX, at(0), 1, "no such request"),
    ] {
        let answer = send(&mut driver, &request(kind, address, count));
        assert_eq!(answer, ERROR, "{why}: {kind} {address:#x} {count}");
        refused += 1;
    }
    for short in [1, 2, 16] {
        let whole = request(PLUG, at(0), 1);
        driver.add_bytes(&[&whole[..short]], &[10]);
        driver.kick();
        assert_eq!(answer(&driver.wait_used().written), ERROR, "{short} bytes");
        refused += 1;
    }
    assert_eq!((machine.memory.take(), machine.plugged()), (vec![], 10));
    let counters = machine.handle.status().counters;
    assert_eq!((counters.refused_requests, counters.errors), (refused, 0));
    assert_eq!(ask(&mut driver, STATE, 10, 10), ACK);
    assert_eq!(machine.guest.broken(), None);
}

#[test]
fn no_more_is_plugged_in_than_is_requested() {
    let mut machine = Machine::new(8);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, PLUG, 0, 9), NACK);
    assert_eq!(ask(&mut driver, PLUG, 0, 8), ACK);
    assert_eq!(ask(&mut driver, PLUG, 8, 1), NACK);
    machine.handle.set_requested(9 * BLOCK).unwrap();
    assert_eq!(ask(&mut driver, PLUG, 99, 1), ACK);
    // It is asked for less, and has what it has until it gives it.
    machine.handle.set_requested(0).unwrap();
    assert_eq!(machine.plugged(), 9);
    assert_eq!(ask(&mut driver, UNPLUG, 0, 1), ACK);
    assert_eq!(ask(&mut driver, PLUG, 0, 1), NACK);
    assert_eq!(machine.plugged(), 8);
    let counters = machine.handle.status().counters;
    assert_eq!(counters, CounterValues::default());
}

#[test]
fn a_host_that_refuses_is_busy() {
    let mut machine = Machine::new(8);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, PLUG, 0, 4), ACK);
    machine.memory.take();
    machine.memory.fails.store(true, Ordering::Relaxed);
    assert_eq!(ask(&mut driver, PLUG, 4, 2), BUSY);
    let tried = [Provided(blocks(4..6)), Reclaimed(blocks(4..6))];
    assert_eq!(machine.memory.take(), tried);
    assert_eq!(ask(&mut driver, UNPLUG, 0, 2), BUSY);
    assert_eq!(ask(&mut driver, UNPLUG_ALL, 0, 0), BUSY);
    assert_eq!(machine.plugged(), 4);
    assert_eq!(machine.handle.status().counters.errors, 3);
    machine.memory.fails.store(false, Ordering::Relaxed);
    assert_eq!(ask(&mut driver, PLUG, 4, 2), ACK);
    assert_eq!(ask(&mut driver, UNPLUG, 0, 2), ACK);
    assert_eq!(machine.plugged(), 4);
}

#[test]
fn the_driver_is_told_when_it_is_asked_for_something_else() {
    let mut machine = Machine::new(0);
    let _driver = machine.start();
    assert!(machine.handle.status().driver);
    for (blocks, count) in [(3, 1), (100, 2), (0, 3)] {
        machine.handle.set_requested(blocks * BLOCK).unwrap();
        wait_for("a config interrupt", || {
            (machine.config_interrupts() == count).then_some(())
        });
        assert_eq!(machine.config(48), blocks * BLOCK);
    }
    assert!(machine.device.stop_queue(0).is_some());
    assert!(!machine.handle.status().driver);
    // While nobody listened: told when somebody does.
    machine.handle.set_requested(BLOCK).unwrap();
    assert_eq!(machine.config_interrupts(), 3);
    let _driver = machine.start();
    wait_for("a config interrupt", || {
        (machine.config_interrupts() == 4).then_some(())
    });
}

#[test]
fn a_drivers_reset_keeps_blocks_and_a_new_device_has_none() {
    let mut machine = Machine::new(20);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, PLUG, 30, 20), ACK);
    assert!(machine.device.stop_queue(0).is_some());
    assert!(machine.device.stop_queue(0).is_none());
    machine.device.reset();
    assert_eq!(machine.plugged(), 20);
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, STATE, 30, 20), ACK);
    assert_eq!(ask(&mut driver, STATE, 29, 1), UNPLUGGED);
    machine.memory.take();

    machine.device.stop_queue(0);
    machine.device = device(&machine.handle, &machine.memory);
    assert_eq!(machine.memory.take(), [Reclaimed(START..START + SIZE)]);
    assert_eq!(machine.plugged(), 0);
    assert_eq!(machine.handle.requested(), 20 * BLOCK, "that stays");
    let mut driver = machine.start();
    assert_eq!(ask(&mut driver, STATE, 0, 100), UNPLUGGED);
    assert_eq!(ask(&mut driver, PLUG, 0, 20), ACK);
}

#[test]
fn an_answer_may_be_cut_into_pieces_but_must_fit() {
    let mut machine = Machine::new(1);
    let mut driver = machine.start();
    let whole = request(PLUG, START, 1);
    driver.add_bytes(&[&whole[..3], &whole[3..9], &whole[9..]], &[1, 6, 3, 4]);
    driver.kick();
    assert_eq!(answer(&driver.wait_used().written), ACK);
    driver.add_bytes(&[&request(UNPLUG, START, 1)], &[9]);
    driver.kick();
    machine.guest.wait_broken();
    assert_eq!(machine.plugged(), 1, "it was not served");
    assert!(machine.device.stop_queue(0).is_some());
}

#[test]
fn there_is_one_queue_and_it_starts_once() {
    let mut machine = Machine::new(0);
    let driver = machine.start();
    for index in [0, 1] {
        let again = driver.resources(0);
        assert!(machine.device.start_queue(index, again).is_err());
    }
    assert!(machine.device.stop_queue(1).is_none());
    assert!(machine.handle.status().driver);
    drop(machine.device);
    assert!(!machine.handle.status().driver);
}

/// A request that is often right: the blocks near what there is.
fn any_request() -> impl Strategy<Value = (u16, u64, u16)> {
    let address = prop_oneof![
        8 => (0..COUNT).prop_map(|block| START + block * BLOCK),
        1 => any::<u64>(),
    ];
    let kind = prop_oneof![Just(PLUG), Just(PLUG), Just(UNPLUG), Just(STATE), 0_u16..6];
    (
        kind,
        address,
        prop_oneof![4 => 0_u16..20, 1 => any::<u16>()],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..8192)) {
        let mut machine = Machine::new(COUNT);
        let started = Instant::now();
        let driver = machine.guest.queue(0, 64);
        driver.scribble(&bytes);
        machine.device.start_queue(0, driver.resources(0)).unwrap();
        driver.kick();
        machine.handle.set_requested(BLOCK).unwrap();
        prop_assert!(machine.device.stop_queue(0).is_some());
        prop_assert!(started.elapsed() < DEADLINE);
    }

    #[test]
    fn requests_do_what_a_model_does(
        requested in 0..=COUNT,
        requests in prop::collection::vec(any_request(), 0..40),
    ) {
        let mut machine = Machine::new(requested);
        let mut driver = machine.start();
        let mut model = [false; 100];
        for (kind, address, count) in requests {
            let answer = send(&mut driver, &request(kind, address, count));
            let in_region = (START..START + SIZE).contains(&address) && address.is_multiple_of(BLOCK);
            let first = usize::try_from((address.wrapping_sub(START)) / BLOCK).unwrap();
            let range = model.get_mut(first..first + usize::from(count)).filter(|_| in_region && count > 0);
            let plugged = machine.plugged();
            let expected = match (kind, range) {
                (UNPLUG_ALL, _) => {
                    model.fill(false);
                    ACK
                }
                (PLUG, Some(range)) if !range.contains(&true) => {
                    if answer == ACK {
                        range.fill(true);
                        ACK
                    } else {
                        prop_assert!(plugged + u64::from(count) > requested);
                        NACK
                    }
                }
                (UNPLUG, Some(range)) if !range.contains(&false) => {
                    range.fill(false);
                    ACK
                }
                (STATE, Some(range)) => match (range.contains(&true), range.contains(&false)) {
                    (true, true) => MIXED,
                    (true, false) => ACK,
                    _ => UNPLUGGED,
                },
                _ => ERROR,
            };
            prop_assert_eq!(answer, expected);
            prop_assert_eq!(machine.plugged(), model.iter().filter(|plugged| **plugged).count() as u64);
            prop_assert!(machine.plugged() <= requested);
        }
        prop_assert_eq!(machine.guest.broken(), None);
    }
}
