//! The adapter through its queues, driven as a guest would, and as one should not.

mod hostile;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paddock_storage::testing::{Fault, MemoryDisk};
use paddock_storage::{Capabilities, IoError};

use super::handle::ABANDONED_MOST;
use super::request::DRIVE;
use super::*;
use crate::virtio::test_driver::{Driver, Guest, Used, wait_for};

const BLOCK: usize = 2048;
/// Bytes before the data in what the device writes.
const RESPONSE: usize = 12 + 96;

/// A disk whose blocks are filled with their numbers.
fn disk(size: usize) -> MemoryDisk {
    let disk = MemoryDisk::with(Capabilities {
        size: size as u64,
        logical_block_size: 512,
        physical_block_size: 2048,
        read_only: true,
        discard: false,
        discard_granularity: 0,
        write_zeroes: false,
        flush: false,
    });
    let bytes: Vec<u8> = (0..size).map(|i| fill(i / BLOCK)).collect();
    disk.fill(&bytes);
    disk
}

fn fill(block: usize) -> u8 {
    u8::try_from(block % 250 + 1).unwrap()
}

fn medium(disk: &MemoryDisk) -> Medium {
    Medium {
        name: "cd.iso".to_owned(),
        disk: Arc::new(disk.clone()),
    }
}

struct Machine {
    guest: Guest,
    device: VirtioScsi,
    handle: CdromHandle,
    control: Driver,
    events: Driver,
    requests: Driver,
    tag: u64,
}

impl Machine {
    fn new() -> Self {
        let handle = CdromHandle::new("cd-1", || ());
        Self::of(handle)
    }

    fn of(handle: CdromHandle) -> Self {
        let guest = Guest::new();
        let mut device = VirtioScsi::new("cd0", handle.clone());
        device.drain_deadline = Duration::from_millis(100);
        let [control, events, requests] = [0, 1, 2].map(|index| guest.queue(index, 128));
        let mut this = Self {
            guest,
            device,
            handle,
            control,
            events,
            requests,
            tag: 0,
        };
        this.start();
        this
    }

    fn start(&mut self) {
        for (index, driver) in (0..).zip([&self.control, &self.events, &self.requests]) {
            self.device.start_queue(index, driver.resources(0)).unwrap();
        }
    }

    /// With this medium, and nothing to tell.
    fn with(disk: &MemoryDisk) -> Self {
        let mut this = Self::new();
        this.handle.insert(medium(disk), false).unwrap();
        this.settle();
        this
    }

    /// Hears what there is to be told.
    fn settle(&mut self) {
        while self.run(&[0], 0).check.is_some() {}
    }

    fn send(&mut self, cdb: &[u8], room: usize) -> u64 {
        self.tag += 1;
        let mut header = [0; 19 + 32];
        header[..8].copy_from_slice(&DRIVE);
        header[8..16].copy_from_slice(&self.tag.to_le_bytes());
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        // Cut without regard to what is in it.
        self.requests
            .add_bytes(&[&header[..10], &header[10..]], &[7, RESPONSE - 7 + room]);
        self.requests.kick();
        self.tag
    }

    fn run(&mut self, cdb: &[u8], room: usize) -> Reply {
        self.send(cdb, room);
        Reply::of(self.requests.wait_used())
    }

    fn read(&mut self, first: u8, blocks: u8) -> Reply {
        let room = usize::from(blocks) * BLOCK;
        self.run(&read(first, blocks), room)
    }

    /// The response to a task management function.
    fn manage(&mut self, function: u32, tag: u64) -> u8 {
        let mut request = [0; 24];
        request[4..8].copy_from_slice(&function.to_le_bytes());
        request[8..16].copy_from_slice(&DRIVE);
        request[16..].copy_from_slice(&tag.to_le_bytes());
        self.control(&request, 1)[0]
    }

    fn control(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        self.control.add_bytes(&[request], &[room]);
        self.control.kick();
        self.control.wait_used().written
    }

    /// The reason asked about, or subscribed to, that the device tells of.
    fn notifications(&mut self, kind: u32, events: u32) -> (u32, u8) {
        let mut request = [0; 16];
        request[..4].copy_from_slice(&kind.to_le_bytes());
        request[4..12].copy_from_slice(&DRIVE);
        request[12..].copy_from_slice(&events.to_le_bytes());
        let answer = self.control(&request, 5);
        let actual = answer[..4].try_into().unwrap();
        (u32::from_le_bytes(actual), answer[4])
    }

    fn add_event_buffer(&mut self) {
        self.events.add(&[], &[16]);
        self.events.kick();
    }

    fn event(&mut self) -> [u32; 4] {
        let event = self.events.wait_used().written;
        assert_eq!(event.len(), 16);
        let word = |at: usize| u32::from_le_bytes(event[at..at + 4].try_into().unwrap());
        [word(0), word(4), word(8), word(12)]
    }

    fn stop(&mut self) {
        for index in 0..3 {
            assert!(self.device.stop_queue(index).is_some());
        }
    }
}

fn read(first: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, first, 0, 0, blocks, 0]
}

/// What came back.
#[derive(Debug, PartialEq)]
struct Reply {
    response: u8,
    status: u8,
    residual: u32,
    /// Sense key, code and qualifier.
    check: Option<[u8; 3]>,
    data: Vec<u8>,
}

impl Reply {
    fn of(used: Used) -> Self {
        let bytes = used.written;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let sense = (word(0) >= 14).then(|| [bytes[14], bytes[24], bytes[25]]);
        assert_eq!(bytes[10] == 2, sense.is_some());
        Self {
            response: bytes[11],
            status: bytes[10],
            residual: word(4),
            check: sense,
            data: bytes[RESPONSE..].to_vec(),
        }
    }

    fn is_blocks(&self, first: usize, count: usize) -> bool {
        let expected = (0..count * BLOCK).map(|i| fill(first + i / BLOCK));
        (self.response, self.status) == (0, 0) && self.data.iter().copied().eq(expected)
    }
}

#[test]
fn a_driver_finds_the_drive_and_reads_its_medium() {
    let mut machine = Machine::new();
    let inquiry = machine.run(&[0x12, 0, 0, 0, 255], 64);
    assert_eq!(
        (inquiry.data.len(), inquiry.residual, inquiry.response),
        (36, 28, 0)
    );
    assert_eq!(machine.run(&[0], 0).check, Some([6, 0x29, 0]));
    assert_eq!(machine.run(&[0], 0).check, Some([2, 0x3a, 1]));
    let disk = disk(2000 * BLOCK);
    machine.handle.insert(medium(&disk), false).unwrap();
    assert_eq!(machine.run(&[0], 0).check, Some([6, 0x28, 0]));
    assert_eq!(machine.run(&[0], 0).status, 0);
    assert_eq!(machine.run(&[0x25], 8).data, [0, 0, 7, 0xcf, 0, 0, 8, 0]);
    assert!(machine.read(5, 3).is_blocks(5, 3));
    // More than one piece, and more room than data.
    let long = machine.run(&[0x28, 0, 0, 0, 0, 2, 0, 3, 0, 0], 800 * BLOCK);
    assert!(long.is_blocks(2, 768));
    assert_eq!(u64::from(long.residual), 32 * BLOCK as u64);
    let counters = machine.handle.status().counters;
    assert_eq!(counters.read_bytes, 771 * BLOCK as u64);
    assert_eq!((counters.commands, counters.errors), (8, 0));
}

#[test]
fn the_last_block_may_be_cut() {
    let mut machine = Machine::with(&disk(2 * BLOCK + 512));
    assert_eq!(machine.run(&[0x25], 8).data[3], 2);
    let last = machine.read(1, 2);
    assert_eq!(last.status, 0);
    assert!(last.data[..BLOCK].iter().all(|byte| *byte == 2));
    assert!(last.data[BLOCK..BLOCK + 512].iter().all(|byte| *byte == 3));
    assert!(last.data[BLOCK + 512..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_the_host_cannot_read_is_told_by_its_block() {
    let disk = disk(500 * BLOCK);
    let mut machine = Machine::with(&disk);
    // The first 128 blocks can be read, the others not at once, and of these the first only.
    let error = Fault::Error(IoError::Os(libc::EIO));
    disk.script([Fault::None, error, Fault::None, error]);
    machine.send(&[0x28, 0, 0, 0, 0, 10, 0, 1, 0x2c, 0], 300 * BLOCK);
    let bytes = machine.requests.wait_used().written;
    let sense = [0xf0, 0, 3, 0, 0, 0, 139, 10, 0, 0, 0, 0, 0x11, 0];
    assert_eq!(bytes[12..26], sense);
    assert_eq!(bytes.len(), RESPONSE + 129 * BLOCK);
    assert!(
        bytes[RESPONSE..]
            .iter()
            .zip(0..)
            .all(|(byte, i)| *byte == fill(10 + i / BLOCK))
    );
    assert_eq!(machine.handle.status().counters.errors, 1);
    assert!(machine.read(10, 1).is_blocks(10, 1));
}

#[test]
fn a_medium_is_changed_under_the_guest() {
    let (first, second) = (disk(100 * BLOCK), disk(50 * BLOCK));
    let mut machine = Machine::with(&first);
    assert!(machine.read(0, 1).is_blocks(0, 1));
    // One that the host never answers.
    first.script([Fault::Stuck]);
    machine.send(&read(1, 1), BLOCK);
    wait_for("the read", || (first.open_queues() == 1).then_some(()));
    let old = machine.handle.insert(medium(&second), false).unwrap();
    assert!(old.is_some());
    let gone = Reply::of(machine.requests.wait_used());
    assert_eq!(gone.check, Some([6, 0x3a, 0]));
    drop(old);
    wait_for("the old medium", || {
        (first.open_queues() == 0).then_some(())
    });
    machine.settle();
    assert_eq!(machine.run(&[0x25], 8).data[3], 49);
    assert!(machine.read(49, 1).is_blocks(49, 1));
    assert_eq!(machine.handle.status().size, Some(50 * BLOCK as u64));
    machine.handle.eject(false).unwrap();
    assert_eq!(machine.run(&[0], 0).check, Some([6, 0x3a, 0]));
    assert_eq!(machine.read(0, 1).check, Some([2, 0x3a, 1]));
    assert!(machine.handle.eject(false).unwrap().is_none());
}

#[test]
fn a_locked_medium_is_asked_for_and_taken_by_force() {
    let disk = disk(100 * BLOCK);
    let mut machine = Machine::with(&disk);
    assert_eq!(machine.run(&[0x1e, 0, 0, 0, 1], 0).status, 0);
    assert!(machine.handle.status().locked);
    assert_eq!(machine.handle.eject(false).unwrap_err(), CdromError::Locked);
    assert_eq!(
        machine.handle.insert(medium(&disk), false).unwrap_err(),
        CdromError::Locked
    );
    let asked = machine.run(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8);
    assert_eq!(asked.data[4..6], [1, 2], "an eject request");
    assert!(machine.read(0, 1).is_blocks(0, 1));
    assert!(machine.handle.eject(true).unwrap().is_some());
    let status = machine.handle.status();
    assert_eq!((status.medium, status.locked), (None, false));
    // The guest ejects what it has unlocked.
    machine.handle.insert(medium(&disk), false).unwrap();
    machine.settle();
    assert_eq!(machine.run(&[0x1b, 0, 0, 0, 2], 0).status, 0);
    assert!(machine.handle.status().open);
    assert_eq!(machine.read(0, 1).check, Some([2, 0x3a, 2]));
}

#[test]
fn the_owner_hears_of_what_changes() {
    let changes = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&changes);
    let handle = CdromHandle::new("", move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let mut machine = Machine::of(handle);
    let news = || changes.swap(0, Ordering::Relaxed);
    assert_eq!(news(), 1, "a driver");
    assert!(machine.handle.status().driver);
    machine.handle.insert(medium(&disk(BLOCK)), false).unwrap();
    assert_eq!(news(), 1);
    machine.settle();
    assert_eq!(news(), 0);
    for (cdb, changed) in [
        ([0x1e, 0, 0, 0, 1], 1),
        ([0x1e, 0, 0, 0, 1], 0),
        ([0x1e, 0, 0, 0, 0], 1),
        ([0x1b, 0, 0, 0, 2], 1),
        ([0x1b, 0, 0, 0, 3], 1),
    ] {
        assert_eq!(machine.run(&cdb, 0).status, 0);
        assert_eq!(news(), changed, "{cdb:x?}");
    }
    machine.stop();
    assert!(!machine.handle.status().driver);
    assert_eq!(news(), 1);
}

#[test]
fn functions_abort_and_reset() {
    let disk = disk(100 * BLOCK);
    let mut machine = Machine::with(&disk);
    disk.script([const { Fault::Stuck }; 4]);
    let tag = machine.send(&read(1, 1), BLOCK);
    let other = machine.send(&read(2, 1), BLOCK);
    wait_for("both reads", || {
        let known = [tag, other].map(|tag| machine.manage(6, tag));
        (known == [10, 10]).then_some(())
    });
    assert_eq!(machine.manage(7, 0), 10, "there are tasks");
    assert_eq!(machine.manage(0, 99), 0, "nothing to abort");
    assert_eq!(machine.manage(0, tag), 0);
    let aborted = Reply::of(
        machine
            .requests
            .try_used()
            .expect("answered before the function"),
    );
    assert_eq!((aborted.response, aborted.data.len()), (2, 0));
    assert_eq!(machine.manage(6, tag), 0, "not known any more");
    assert_eq!(machine.run(&[0x1e, 0, 0, 0, 1], 0).status, 0);
    assert_eq!(machine.manage(5, 0), 0);
    let reset = Reply::of(
        machine
            .requests
            .try_used()
            .expect("answered before the function"),
    );
    assert_eq!(reset.response, 4);
    assert!(!machine.handle.status().locked);
    assert_eq!(machine.run(&[0], 0).check, Some([6, 0x29, 0]));
    for (function, response) in [(1, 0), (2, 11), (3, 0), (4, 0), (7, 0), (8, 11), (99, 11)] {
        assert_eq!(machine.manage(function, 0), response, "{function}");
    }
    // What was aborted comes too late, and for nobody.
    disk.release();
    machine.settle();
    assert!(machine.read(3, 1).is_blocks(3, 1));
    assert!(machine.requests.try_used().is_none());
}

#[test]
fn events_go_to_those_who_subscribed() {
    let disk = disk(BLOCK);
    let mut machine = Machine::with(&disk);
    assert_eq!(machine.notifications(1, 0x7e), (16, 0));
    machine.add_event_buffer();
    machine.handle.eject(false).unwrap();
    machine.settle_empty();
    assert!(machine.events.try_used().is_none(), "nobody asked");
    assert_eq!(machine.notifications(2, 0x7e), (16, 0));
    machine.handle.insert(medium(&disk), false).unwrap();
    let drive = 1;
    assert_eq!(machine.event(), [2, drive, 0, 16]);
    // Without a buffer it is missed, which is told with the next one.
    machine.handle.eject(false).unwrap();
    machine.settle_empty();
    machine.add_event_buffer();
    assert_eq!(machine.event(), [0x8000_0000, drive, 0, 0]);
    machine.add_event_buffer();
    assert_eq!(machine.notifications(2, 0), (0, 0));
    machine.handle.insert(medium(&disk), false).unwrap();
    machine.settle();
    assert!(machine.events.try_used().is_none(), "not wanted any more");
}

impl Machine {
    /// A driver that starts anew.
    fn restart(&mut self) {
        self.device.reset();
        let [control, events, requests] = [0, 1, 2].map(|index| self.guest.queue(index, 64));
        (self.control, self.events, self.requests) = (control, events, requests);
        self.start();
        assert_eq!(self.run(&[0], 0).check, Some([6, 0x29, 0]));
    }

    /// [`settle`](Self::settle) without a medium.
    fn settle_empty(&mut self) {
        while self.run(&[0], 0).check != Some([2, 0x3a, 1]) {}
    }
}

#[test]
fn a_stopped_queue_leaves_nothing_behind() {
    let disk = disk(1000 * BLOCK);
    let mut machine = Machine::with(&disk);
    disk.script([Fault::Delay(3), Fault::Stuck]);
    machine.send(&read(1, 1), BLOCK);
    machine.send(&read(2, 2), 2 * BLOCK);
    wait_for("the reads", || (machine.manage(7, 0) == 10).then_some(()));
    machine.stop();
    let mut replies = [0; 2].map(|_| Reply::of(machine.requests.wait_used()));
    replies.sort_by_key(|reply| reply.status);
    assert!(replies[0].is_blocks(1, 1));
    let [_, busy] = replies;
    assert_eq!((busy.status, busy.data.len()), (8, 0), "to be tried again");
    assert_eq!(disk.open_queues(), 0, "the worker has let go");
    assert!(machine.device.is_quiet());
    disk.release();
    machine.restart();
    assert!(machine.read(2, 2).is_blocks(2, 2));
}

/// What a host that hangs costs is bounded, however often the guest resets its drive.
#[test]
fn a_medium_that_hangs_is_given_up_until_it_is_inserted_again() {
    let disk = disk(1000 * BLOCK);
    let mut machine = Machine::with(&disk);
    for _ in 0..ABANDONED_MOST {
        disk.script([Fault::Stuck]);
        machine.send(&read(1, 1), BLOCK);
        wait_for("the read", || (machine.manage(7, 0) == 10).then_some(()));
        machine.stop();
        machine.restart();
    }
    let refused = machine.read(1, 1);
    assert_eq!((refused.status, refused.data.len()), (8, 0), "busy");
    machine.handle.insert(medium(&disk), false).unwrap();
    machine.settle();
    assert!(machine.read(1, 1).is_blocks(1, 1));
    disk.release();
}

#[test]
fn after_a_pause_it_goes_on_where_it_was() {
    let mut machine = Machine::with(&disk(100 * BLOCK));
    assert!(machine.read(0, 1).is_blocks(0, 1));
    assert_eq!(machine.run(&[0x1e, 0, 0, 0, 1], 0).status, 0);
    let queues = [0, 1, 2].map(|index| machine.device.stop_queue(index).unwrap());
    // Asked for while it stands still.
    machine.send(&read(7, 2), 2 * BLOCK);
    let drivers = [&machine.control, &machine.events, &machine.requests];
    for ((index, queue), driver) in (0..).zip(queues).zip(drivers) {
        let resources = driver.resources_with(queue, 0);
        machine.device.start_queue(index, resources).unwrap();
    }
    assert!(Reply::of(machine.requests.wait_used()).is_blocks(7, 2));
    assert!(machine.handle.status().locked, "nothing was reset");
    assert!(
        machine.read(1, 1).is_blocks(1, 1),
        "and nothing is to be told"
    );
}

#[test]
fn the_configuration_is_one_target_and_two_sizes_to_choose() {
    let mut device = VirtioScsi::new("cd0", CdromHandle::new("", || ()));
    let config = |device: &VirtioScsi| {
        let mut bytes = [0xff; 40];
        device.read_config(0, &mut bytes);
        bytes
    };
    let fresh = config(&device);
    assert_eq!(fresh[..4], [1, 0, 0, 0]);
    assert_eq!(fresh[16..28], [16, 0, 0, 0, 96, 0, 0, 0, 32, 0, 0, 0]);
    assert_eq!(fresh[28..], [0; 12]);
    device.write_config(20, &64_u32.to_le_bytes());
    device.write_config(25, &[1]);
    device.write_config(0, &[9; 20]);
    device.write_config(28, &[9; 8]);
    device.write_config(u64::MAX, &[9; 8]);
    let written = config(&device);
    assert_eq!(written[20..28], [64, 0, 0, 0, 32, 1, 0, 0]);
    assert_eq!(
        (&written[..20], &written[28..]),
        (&fresh[..20], &fresh[28..])
    );
    device.write_config(20, &[0xff; 8]);
    assert_eq!(config(&device)[20..28], [0, 16, 0, 0, 0, 16, 0, 0]);
    device.reset();
    assert_eq!(config(&device), fresh);
}
