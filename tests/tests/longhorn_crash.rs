//! Engines that are killed in the middle of writing, again and again: nothing that was acknowledged is lost, nothing old comes back, and the replicas
//! that are read are the same in the end.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use paddock_probe::blocks::{self, SECTOR, Stamp};
use paddock_storage::longhorn::{Mode, Nobody, ReplicaAddress, Volume, VolumeOptions};
use paddock_storage::{Buffer, Disk, Operation, Request};
use paddock_tests::longhorn::{Replica, ReplicaOptions, directory, own_replica, volume_name};
use paddock_tests::within;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// As `volume-writer` has them.
const BLOCK: u64 = 6144;
const BLOCKS: u64 = 512;
const SIZE: u64 = 4 << 20;
const SEED: u64 = 77;
const SOON: Duration = Duration::from_secs(30);

/// Sectors of a block.
const SECTORS: u64 = BLOCK / SECTOR as u64;

/// A volume, and what may be in each of its sectors.
struct World {
    volume: String,
    replicas: Vec<Replica>,
    /// The generations that each sector may have, by its number; 0 stands for zeros, which all begins with.
    may_be: BTreeMap<u64, Vec<u64>>,
    generation: u64,
    _directory: TempDir,
}

impl World {
    fn new(name: &str, options: impl Fn(&str) -> ReplicaOptions) -> Self {
        let (volume, directory) = (volume_name(name), directory());
        let replicas = ["a", "b", "c"].map(|name| {
            let path = directory.path().join(name);
            Replica::start(&path, SIZE, options(&volume))
        });
        Self {
            volume,
            replicas: replicas.into(),
            may_be: BTreeMap::new(),
            generation: 0,
            _directory: directory,
        }
    }

    /// Has an engine write until somebody ends it.
    fn crash(&mut self, end: impl FnOnce(Child) + Send + 'static) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volume-writer"));
        command
            .args([&self.volume, &BLOCKS.to_string(), &SEED.to_string()])
            .arg(self.generation.to_string())
            .args(self.replicas.iter().map(Replica::address));
        let mut writer = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it writes").unwrap();
        let killer = thread::spawn(move || end(writer));
        self.note(&first);
        // The last line may be cut off.
        for line in lines.map_while(Result::ok) {
            self.note(&line);
        }
        killer.join().unwrap();
    }

    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["write", block, generation] => {
                let (Ok(block), Ok(generation)) = (block.parse(), generation.parse()) else {
                    return;
                };
                self.generation = generation;
                for sector in sectors(block) {
                    let may_be = self.may_be.entry(sector).or_insert_with(|| vec![0]);
                    may_be.push(generation);
                }
            }
            ["done", block] => {
                let Ok(block) = block.parse() else { return };
                for sector in sectors(block) {
                    let may_be: &mut Vec<u64> = self.may_be.get_mut(&sector).unwrap();
                    may_be.drain(..may_be.len() - 1);
                }
            }
            _ => {}
        }
    }

    /// The replicas' processes start anew, as an engine's death has them do.
    fn restart(&mut self) {
        for replica in &mut self.replicas {
            replica.restart();
        }
    }

    fn addresses(&self) -> Vec<ReplicaAddress> {
        let addresses = self
            .replicas
            .iter()
            .map(|replica| replica.address().parse());
        addresses.collect::<Result<_, _>>().unwrap()
    }

    /// Opens the volume, looks at every block several times, and at the replicas once they have been compared. What was read once is all that may be read
    /// from then on, until it is written anew.
    fn check(&mut self, round: usize) {
        let options = VolumeOptions::new(&self.volume, self.addresses());
        let volume = Volume::open(options, Arc::new(Nobody)).unwrap();
        let good = volume.replicas();
        assert!(
            good.iter().all(|replica| replica.mode == Mode::ReadWrite),
            "{good:?}"
        );
        let first = read_all(&volume);
        for (number, generations) in &mut self.may_be {
            let offset = number * SECTOR as u64;
            let start = usize::try_from(offset).unwrap();
            let sector = &first[start..start + SECTOR];
            let is = |generation: &u64| match generation {
                0 => sector.iter().all(|byte| *byte == 0),
                _ => blocks::check(sector, offset, stamp(*generation)).is_ok(),
            };
            let Some(found) = generations.iter().copied().find(is) else {
                let last = stamp(*generations.last().unwrap());
                let found = blocks::check(sector, offset, last);
                panic!("round {round}: one of {generations:?}, but {found:?}");
            };
            *generations = vec![found];
        }
        for _ in 0..2 {
            let again = read_all(&volume);
            let differs = first
                .iter()
                .zip(&again)
                .position(|(one, other)| one != other);
            assert_eq!(differs, None, "round {round}: what is read changes");
        }
        assert!(
            within(SOON, || volume.progress().is_none()),
            "{:?}",
            volume.progress()
        );
        assert_eq!(read_all(&volume), first, "round {round}");
        for replica in &self.replicas {
            let mut bytes = vec![0; first.len()];
            let mut connection = replica.connect();
            for (chunk, offset) in bytes.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)) {
                connection.read(offset, chunk).unwrap();
            }
            let differs = first
                .iter()
                .zip(&bytes)
                .position(|(one, other)| one != other);
            assert_eq!(differs, None, "round {round}: {}", replica.address());
        }
        volume.close().unwrap();
    }
}

/// The numbers of a block's sectors.
fn sectors(block: u64) -> Range<u64> {
    block * SECTORS..(block + 1) * SECTORS
}

fn kill(mut writer: Child, after: Duration) {
    thread::sleep(after);
    writer.kill().unwrap();
    let status = writer.wait().unwrap();
    assert_eq!(status.code(), None, "it ended by itself");
}

fn stamp(generation: u64) -> Stamp {
    Stamp {
        seed: SEED,
        generation,
    }
}

fn read_all(volume: &Volume) -> Vec<u8> {
    let mut queue = volume.open_queue(64).unwrap();
    let mut parts = Vec::new();
    for offset in (0..SIZE).step_by(64 << 10) {
        let buffer = Buffer::zeroed(64 << 10);
        parts.push(buffer.part(buffer.len()));
        let operation = Operation::Read { offset, buffer };
        queue.submit(Request {
            tag: offset,
            operation,
        });
    }
    let mut done = Vec::new();
    queue.drain(SOON, &mut done).unwrap();
    assert!(
        done.iter().all(|completion| completion.result.is_ok()),
        "{done:?}"
    );
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    for (part, chunk) in parts.iter().zip(bytes.chunks_mut(64 << 10)) {
        part.copy_to(chunk);
    }
    bytes
}

fn crash_again_and_again(mut world: World, rounds: usize) {
    for round in 0..rounds {
        // From the first requests on to some hundreds of them, never the same moment.
        let after = Duration::from_micros(u64::try_from(round * 7919 % 150_000).unwrap());
        world.crash(move |writer| kill(writer, after));
        world.restart();
        world.check(round);
    }
    let written = world.generation;
    println!("{rounds} crashes, {written} writes");
    assert!(written > 100, "hardly anything was written: {written}");
}

#[test]
fn a_hundred_crashes_of_the_engine_on_paddocks_replicas() {
    let world = World::new("crashes", |volume| ReplicaOptions {
        program: own_replica(),
        ..ReplicaOptions::of(volume)
    });
    crash_again_and_again(world, 100);
}

#[test]
fn crashes_of_the_engine_on_longhorns_replicas() {
    let world = World::new("crashes-go", ReplicaOptions::of);
    crash_again_and_again(world, 20);
}

/// A process that is stopped, as its host is when that is a VM that is moved, has heard nothing meanwhile: it is no replica's fault.
#[test]
fn an_engine_that_stood_still_gives_nobody_up() {
    let mut world = World::new("standstill", |volume| ReplicaOptions {
        program: own_replica(),
        ..ReplicaOptions::of(volume)
    });
    world.crash(|writer| {
        thread::sleep(Duration::from_millis(500));
        let pid = Pid::from_child(&writer);
        kill_process(pid, Signal::STOP).unwrap();
        // Longer than the last replica may be silent.
        thread::sleep(Duration::from_secs(20));
        kill_process(pid, Signal::CONT).unwrap();
        // Whoever has no replica any more ends by itself.
        kill(writer, Duration::from_secs(3));
    });
    world.restart();
    world.check(0);
}
