//! Volumes that lose all their replicas while they are used, and get them back: what was held is done, nothing that was acknowledged is lost, and who had missed
//! something before is not read.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use paddock_probe::blocks;
use paddock_storage::hold::{News, Opener, Policy, Retry, Then};
use paddock_storage::longhorn::{EngineSocket, Mode, Nobody, Volume, VolumeError};
use paddock_storage::{
    Buffer, Capabilities, Disk, DiskQueue, HoldingDisk, Operation, Request, ResizeError,
};
use paddock_tests::longhorn::{
    BLOCK, Engine, EngineOptions, Replica, SIZE, SOON, Set, own_replica, program, stamp,
};
use paddock_tests::within;
use rustix::event::{PollFd, PollFlags, poll};

/// Requests that a writer has in flight.
const BATCH: u64 = 32;

/// Bytes that a writer has to itself.
const SHARE: u64 = SIZE / 4;

/// The volume as a disk beside its other users.
#[derive(Debug)]
struct Shared(Arc<Volume>);

impl Disk for Shared {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.0.resize(size)
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        self.0.open_queue(depth)
    }
}

/// A volume whose failures are held.
struct Held {
    volume: Arc<Volume>,
    disk: HoldingDisk,
    news: Arc<Mutex<Vec<News>>>,
}

impl Held {
    fn open(set: &Set, policy: Policy) -> Self {
        let volume = Volume::open(set.options(), Arc::new(Nobody)).unwrap();
        let volume = Arc::new(volume);
        let again = Arc::clone(&volume);
        let opener: Opener = Box::new(move || {
            again.reopen().map_err(io::Error::other)?;
            Ok(Arc::new(Shared(Arc::clone(&again))))
        });
        let news: Arc<Mutex<Vec<News>>> = Arc::default();
        let heard = Arc::clone(&news);
        let listener = Box::new(move |news| heard.lock().unwrap().push(news));
        let disk = Arc::new(Shared(Arc::clone(&volume)));
        Self {
            disk: HoldingDisk::new(disk, policy, Some(opener), listener),
            volume,
            news,
        }
    }

    fn modes(&self) -> Vec<Mode> {
        let replicas = self.volume.replicas();
        replicas.iter().map(|replica| replica.mode).collect()
    }

    /// How many times it has stopped.
    fn stops(&self) -> usize {
        let news = self.news.lock().unwrap();
        news.iter()
            .filter(|news| matches!(news, News::Stopped(_)))
            .count()
    }

    #[track_caller]
    fn wait_for_stop(&self, count: usize) {
        assert!(within(SOON, || self.stops() == count), "{:?}", self.disk);
    }

    #[track_caller]
    fn wait_until_well(&self) {
        let well = || self.disk.status().failure.is_none();
        assert!(
            within(SOON, well),
            "{:?} {:?}",
            self.disk,
            self.volume.replicas()
        );
    }
}

/// Serves a queue until all that it has is done, and well.
fn finish(queue: &mut dyn DiskQueue) {
    queue.kick();
    let mut done = Vec::new();
    let end = Instant::now() + Duration::from_secs(120);
    while queue.in_flight() > 0 {
        assert!(
            Instant::now() < end,
            "{} are not answered",
            queue.in_flight()
        );
        let event = queue.completion_event();
        let tick = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&tick));
        queue.reap(&mut done);
        for completion in done.drain(..) {
            completion.result.expect("it is held until it is well");
        }
    }
}

/// Writes its share again and again, each time a generation, until it is told to end, and reads it each time. Returns the last generation.
fn write_on(disk: &dyn Disk, share: u64, end: &AtomicBool) -> u64 {
    let mut queue = disk.open_queue(64).unwrap();
    let start = share * SHARE;
    let mut generation = 0;
    while generation < 2 || !end.load(Ordering::Relaxed) {
        generation += 1;
        let offsets = (start..start + SHARE).step_by(BLOCK);
        for (tag, offset) in (0..).zip(offsets) {
            let mut block = vec![0; BLOCK];
            blocks::fill(&mut block, offset, stamp(generation));
            let buffer = Buffer::from(block);
            let operation = Operation::Write { offset, buffer };
            queue.submit(Request { tag, operation });
            if (tag + 1) % BATCH == 0 {
                finish(&mut *queue);
            }
        }
        finish(&mut *queue);
        check(&mut *queue, share, generation);
    }
    generation
}

/// Reads a share.
fn check(queue: &mut dyn DiskQueue, share: u64, generation: u64) {
    let start = share * SHARE;
    let mut buffers = Vec::new();
    for (tag, offset) in (0..).zip((start..start + SHARE).step_by(BLOCK)) {
        let buffer = Buffer::zeroed(BLOCK);
        buffers.push((offset, buffer.part(BLOCK as u64)));
        let operation = Operation::Read { offset, buffer };
        queue.submit(Request { tag, operation });
    }
    finish(queue);
    for (offset, buffer) in buffers {
        let mut block = vec![0; BLOCK];
        buffer.copy_to(&mut block);
        if let Err(mismatch) = blocks::check(&block, offset, stamp(generation)) {
            panic!("{mismatch}");
        }
    }
}

/// Has two queues write while something happens, then looks at all they wrote once more.
fn while_written(disk: &HoldingDisk, happens: impl FnOnce()) {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers = [0, 1].map(|share| {
            let end = &end;
            scope.spawn(move || write_on(disk, share, end))
        });
        thread::sleep(Duration::from_millis(300));
        happens();
        thread::sleep(Duration::from_millis(300));
        end.store(true, Ordering::Relaxed);
        for (share, writer) in (0..).zip(writers) {
            let generation = writer.join().unwrap();
            let mut queue = disk.open_queue(64).unwrap();
            // By each of the replicas.
            for _ in 0..3 {
                check(&mut *queue, share, generation);
            }
        }
    });
}

impl Held {
    /// Waits until the replicas have been compared, and rebuilds those that were left.
    fn mend(&self, set: &Set) {
        assert!(within(SOON, || self.volume.progress().is_none()));
        for (index, mode) in self.modes().into_iter().enumerate() {
            if mode == Mode::Failed {
                self.volume.remove_replica(&set.address(index)).unwrap();
                self.volume.add_replica(set.address(index)).unwrap();
            }
        }
        assert_eq!(self.modes(), [Mode::ReadWrite; 3]);
        set.assert_alike(&[0, 1, 2]);
    }
}

fn kill_all(set: &mut Set) {
    for replica in &mut set.replicas {
        replica.kill();
    }
}

fn restart_all(set: &mut Set) {
    for replica in &mut set.replicas {
        replica.restart();
    }
}

fn lost_and_found(mut set: Set) {
    let held = Held::open(&set, Policy::Stop);
    while_written(&held.disk, || ());
    // While nothing is written: all have everything.
    kill_all(&mut set);
    while_written(&held.disk, || {
        held.wait_for_stop(1);
        // They are not back: it stops again, and what is held stays so.
        held.disk.resume().unwrap();
        held.wait_for_stop(2);
        restart_all(&mut set);
        held.disk.resume().unwrap();
        held.wait_until_well();
        assert_eq!(held.modes(), [Mode::ReadWrite; 3]);
    });
    // One after the other under writes: the last has everything, and those before it may.
    while_written(&held.disk, || {
        kill_all(&mut set);
        held.wait_for_stop(3);
        restart_all(&mut set);
        held.disk.resume().unwrap();
        held.wait_until_well();
        assert_eq!(held.modes()[2], Mode::ReadWrite);
    });
    held.mend(&set);
    held.volume.close().unwrap();
}

#[test]
fn a_stopped_volume_whose_replicas_are_back_goes_on() {
    let programs = [own_replica(), own_replica(), own_replica()];
    lost_and_found(Set::of("found", false, programs));
}

#[test]
fn a_stopped_volume_whose_longhorn_replicas_are_back_goes_on() {
    let programs = [program(), own_replica(), program()];
    lost_and_found(Set::of("found-go", false, programs));
}

#[test]
fn a_volume_that_is_tried_again_finds_its_replicas() {
    let programs = [own_replica(), own_replica(), own_replica()];
    let mut set = Set::of("retried", false, programs);
    let policy = Policy::Retry(Retry {
        deadline: Duration::from_secs(60),
        interval: Duration::from_millis(200),
        then: Then::Stop,
    });
    let held = Held::open(&set, policy);
    while_written(&held.disk, || ());
    kill_all(&mut set);
    while_written(&held.disk, || {
        let failed = || held.disk.status().failure.is_some();
        assert!(within(SOON, failed));
        // One after the other: the first is not opened before the others had time to come.
        restart_all(&mut set);
        held.wait_until_well();
        assert_eq!(held.modes(), [Mode::ReadWrite; 3]);
        assert_eq!(held.stops(), 0);
    });
}

#[test]
fn who_missed_a_write_is_not_opened_again() {
    let programs = [own_replica(), own_replica(), own_replica()];
    let mut set = Set::of("behind", false, programs);
    let held = Held::open(&set, Policy::Stop);
    while_written(&held.disk, || {
        for replica in &mut set.replicas[..2] {
            replica.kill();
        }
        let left = || held.modes()[..2] == [Mode::Failed; 2];
        assert!(within(SOON, left));
        thread::sleep(Duration::from_millis(300));
        set.replicas[2].kill();
        held.wait_for_stop(1);
        // They have nothing of what was written since, and who has is not there.
        for replica in &mut set.replicas[..2] {
            replica.restart();
        }
        let error = held.volume.reopen().unwrap_err();
        assert!(matches!(error, VolumeError::NoReplica { .. }), "{error}");
        for index in [0, 1] {
            let address = set.address(index).to_string();
            assert!(!error.to_string().contains(&address), "{error}");
        }
        set.replicas[2].restart();
        held.disk.resume().unwrap();
        held.wait_until_well();
        let expected = [Mode::Failed, Mode::Failed, Mode::ReadWrite];
        assert_eq!(held.modes(), expected);
    });
    held.mend(&set);
    held.volume.close().unwrap();
}

#[test]
fn a_replica_that_still_has_the_volume_open_is_refused() {
    let programs = [own_replica(), own_replica(), own_replica()];
    let mut set = Set::of("stopped", false, programs);
    let held = Held::open(&set, Policy::Stop);
    while_written(&held.disk, || {
        set.replicas[0].kill();
        set.replicas[1].kill();
        set.replicas[2].freeze();
        held.wait_for_stop(1);
        // What it was sent before may still be written: it has to begin anew.
        set.replicas[2].thaw();
        let error = held.volume.reopen().unwrap_err().to_string();
        assert!(error.contains("restart its process"), "{error}");
        for replica in &mut set.replicas {
            replica.restart();
        }
        held.disk.resume().unwrap();
        held.wait_until_well();
    });
}

/// Longhorn's engine on the replicas of a set.
fn engine(set: &Set) -> Engine {
    let replicas: Vec<&Replica> = set.replicas.iter().collect();
    Engine::start(&set.volume, SIZE, &replicas, &EngineOptions::default())
}

/// The engine dies under writes, of which any replica may have any, and another takes its place at the same socket.
#[test]
fn a_stopped_volume_behind_longhorns_engine_goes_on_with_the_next_engine() {
    let mut set = Set::start("engine", false);
    let one = engine(&set);
    let path = one.socket();
    let mut current = Some(one);
    let open = move || EngineSocket::open(&path, SIZE, false);
    let first = Arc::new(open().unwrap());
    let opener: Opener = Box::new(move || Ok(Arc::new(open().map_err(io::Error::other)?)));
    let disk = HoldingDisk::new(first, Policy::Stop, Some(opener), Box::new(|_| ()));
    let stopped = |attempts: u32| {
        let status = disk.status();
        status.stopped && status.attempts == attempts
    };
    for _ in 0..2 {
        while_written(&disk, || {
            // It is killed, and its socket goes with it.
            drop(current.take());
            assert!(within(SOON, || stopped(0)), "{disk:?}");
            // There is no other yet: it stops again, and what is held stays so.
            disk.resume().unwrap();
            assert!(within(SOON, || stopped(1)), "{disk:?}");
            restart_all(&mut set);
            current = Some(engine(&set));
            disk.resume().unwrap();
            assert!(within(SOON, || disk.status().failure.is_none()), "{disk:?}");
        });
        set.assert_alike(&[0, 1, 2]);
    }
}
