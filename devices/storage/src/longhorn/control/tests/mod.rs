//! Volumes on replicas in memory, whose control services a test has refuse, hang, or be late.

mod all;
mod close;
mod compare;
mod fake;
mod hand_over;
mod history;
mod in_use;
mod lost;
mod open;
mod purge;
mod rebuild;
mod record;
mod reopen;
mod services;
mod silence;
#[cfg(feature = "controller")]
mod tools;
mod torn;
mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::ControlThread;
use super::resync::PIECE;
use crate::longhorn::options::{Taking, VolumeOptions};
use crate::longhorn::{Listener, Mode, Nobody, ReplicaStatus, Volume, VolumeError};
use crate::{Buffer, Disk, DiskQueue, IoError, Operation, Request};

use self::fake::{Fake, SECOND, SIZE};

/// How long anything may take when nothing hangs.
const SOON: Duration = Duration::from_secs(30);

/// Where the second piece begins.
const SECOND_PIECE: usize = PIECE as usize;

/// Counts how often the replicas were compared to the end.
#[derive(Default)]
struct Heard(AtomicUsize);

impl Heard {
    fn compared(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Listener for Heard {
    fn replicas(&self, _: &[ReplicaStatus]) {}

    fn compared(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Some replicas of one volume.
struct Set {
    replicas: Vec<Fake>,
    thread: ControlThread,
}

impl Set {
    /// So many that are closed, and hold nothing.
    fn new(count: usize) -> Self {
        let thread = ControlThread::start().expect("a thread");
        let replicas = (0..count).map(|_| Fake::start(&thread)).collect();
        Self { replicas, thread }
    }

    /// So many that were closed, and hold the same everywhere: a byte of that value.
    fn holding(count: usize, value: u8) -> Self {
        let set = Self::new(count);
        for replica in &set.replicas {
            replica.change(|state| {
                state.bytes.fill(value);
                state.modified = 1000 * SECOND;
            });
        }
        set
    }

    /// Runs one more.
    fn add(&mut self) -> &Fake {
        self.replicas.push(Fake::start(&self.thread));
        &self.replicas[self.replicas.len() - 1]
    }

    /// As if the engine had died, and all of them had been killed and started anew, well.
    fn start_anew(&self) {
        for replica in &self.replicas {
            replica.mend();
            replica.change(|state| state.dirty = true);
            replica.restart();
        }
    }

    /// The volume on all of them.
    fn options(&self, taking: Taking) -> VolumeOptions {
        let replicas = self.replicas.iter().map(|r| r.address.clone()).collect();
        VolumeOptions {
            taking,
            ..VolumeOptions::new("fake", replicas)
        }
    }

    fn try_open(&self, taking: Taking) -> Result<Volume, VolumeError> {
        Volume::open(self.options(taking), Arc::new(Nobody))
    }

    fn open(&self) -> Volume {
        let open = self.try_open(Taking::Open);
        open.expect("a volume that can be opened")
    }

    fn open_heard(&self) -> (Volume, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        let volume = Volume::open(self.options(Taking::Open), Arc::clone(&heard) as _);
        (volume.expect("a volume that can be opened"), heard)
    }
}

/// Has a volume lose a replica.
fn fail(volume: &Volume, index: usize) {
    let member = &volume.control.shared.members()[index];
    volume.control.shared.fail(member, "a test wants it");
}

fn modes(volume: &Volume) -> Vec<Mode> {
    volume.replicas().iter().map(|r| r.mode).collect()
}

/// Why a replica is left.
fn reason(volume: &Volume, index: usize) -> String {
    let failure = volume.replicas()[index].failure.clone();
    failure.expect("a failure").reason
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < SOON, "it does not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Does one thing.
fn run(queue: &mut dyn DiskQueue, operation: Operation) -> Result<(), IoError> {
    queue.submit(Request { tag: 1, operation });
    let mut done = Vec::new();
    queue.drain(SOON, &mut done).expect("an end");
    done[0].result
}

/// The first byte of each block that is read, several times: of all replicas that are.
fn read(volume: &Volume) -> Vec<u8> {
    read_at(volume, 0).expect("a read")
}

/// The same, of a block that may not be readable.
fn read_at(volume: &Volume, offset: usize) -> Result<Vec<u8>, IoError> {
    let mut queue = volume.open_queue(4).expect("a queue");
    let mut values = Vec::new();
    for _ in 0..6 {
        let buffer = Buffer::zeroed(512);
        let kept = buffer.part(512);
        let offset = offset as u64;
        run(&mut *queue, Operation::Read { offset, buffer })?;
        let mut bytes = [0; 512];
        kept.copy_to(&mut bytes);
        values.push(bytes[0]);
    }
    values.dedup();
    Ok(values)
}

/// Writes a block.
fn write_at(volume: &Volume, offset: usize, value: u8) -> Result<(), IoError> {
    let mut queue = volume.open_queue(4).expect("a queue");
    let buffer = Buffer::from(vec![value; 4096]);
    let offset = offset as u64;
    run(&mut *queue, Operation::Write { offset, buffer })
}
