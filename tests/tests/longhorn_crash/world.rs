//! A volume whose engines crash, and what may be in it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use paddock_probe::blocks::{self, SECTOR, Stamp};
use paddock_storage::longhorn::{Mode, Nobody, ReplicaAddress, Volume, VolumeOptions};
use paddock_storage::{Buffer, Disk, Operation, Request};
use paddock_tests::longhorn::{Replica, ReplicaOptions, directory, volume_name};
use tempfile::TempDir;

use crate::moments::Moments;

/// As `volume-writer` has them.
const BLOCK: u64 = 6144;
pub const DEPTH: usize = 16;

const BLOCKS: u64 = 512;
const SIZE: u64 = 4 << 20;
const SEED: u64 = 77;
const SOON: Duration = Duration::from_secs(30);

/// Sectors of a block.
const SECTORS: u64 = BLOCK / SECTOR as u64;

/// What a replica is to be when the volume is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It is used.
    Used,
    /// It is left, for it misses something.
    Left,
    /// Either.
    Any,
}

/// An engine that writes, in a process of its own.
pub struct Writer {
    pub process: Child,
    lines: Receiver<String>,
    pub said: Said,
}

/// What an engine has said beside what it writes.
#[derive(Debug, Default)]
pub struct Said {
    /// Writes that were acknowledged.
    pub done: usize,
    /// Replicas that it gave up.
    pub failed: BTreeSet<String>,
    /// Its replicas are known to be the same.
    pub compared: bool,
    /// How often it began a snapshot or a rebuild.
    pub begun: usize,
    /// How often it came to the end of it.
    pub ended: usize,
}

/// A volume, and what may be in each of its sectors.
pub struct World {
    volume: String,
    /// When its engines crash.
    pub moments: Moments,
    pub replicas: Vec<Replica>,
    /// How many queues the engines write by.
    pub queues: usize,
    /// Where it is recorded who has everything.
    pub record: Option<PathBuf>,
    /// The generations that each sector may have, by its number; 0 stands for zeros, which all begins with.
    may_be: BTreeMap<u64, Vec<u64>>,
    generation: u64,
    /// The snapshots that were acknowledged.
    snapshots: HashSet<String>,
    directory: TempDir,
}

impl World {
    pub fn new(name: &str, options: impl Fn(&str) -> ReplicaOptions) -> Self {
        let (volume, directory) = (volume_name(name), directory());
        let replicas = ["a", "b", "c"].map(|name| {
            let path = directory.path().join(name);
            Replica::start(&path, SIZE, options(&volume))
        });
        Self {
            volume,
            moments: Moments::new(name),
            replicas: replicas.into(),
            queues: 1,
            record: None,
            may_be: BTreeMap::new(),
            generation: 0,
            snapshots: HashSet::new(),
            directory,
        }
    }

    /// Has the engines record who has everything from now on.
    pub fn keep_record(&mut self) {
        self.record = Some(self.directory.path().join("record.json"));
    }

    /// How many writes were begun so far.
    pub fn written(&self) -> u64 {
        self.generation
    }

    pub fn address(&self, index: usize) -> ReplicaAddress {
        self.replicas[index].address().parse().unwrap()
    }

    fn addresses(&self) -> Vec<ReplicaAddress> {
        (0..self.replicas.len())
            .map(|index| self.address(index))
            .collect()
    }

    /// Has an engine write, and do something else beside it.
    pub fn write(&self, task: Option<String>) -> Writer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volume-writer"));
        command
            .args([&self.volume, &BLOCKS.to_string(), &SEED.to_string()])
            .args([self.generation.to_string(), self.queues.to_string()])
            .args(task)
            .args(self.replicas.iter().map(Replica::address));
        if let Some(record) = &self.record {
            command.arg(format!("record={}", record.display()));
        }
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Writer {
            process,
            lines,
            said: Said::default(),
        }
    }

    /// Lets an engine go on until it has said something.
    #[track_caller]
    pub fn until(&mut self, writer: &mut Writer, is: impl Fn(&Said) -> bool) {
        let end = Instant::now() + SOON;
        while !is(&writer.said) {
            let left = end.saturating_duration_since(Instant::now());
            match writer.lines.recv_timeout(left) {
                Ok(line) => self.note(&mut writer.said, &line),
                Err(error) => panic!("{error}: {:?}", writer.said),
            }
        }
    }

    /// Lets an engine go on for so long.
    pub fn go_on(&mut self, writer: &mut Writer, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match writer.lines.recv_timeout(left) {
                Ok(line) => self.note(&mut writer.said, &line),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("it ended by itself"),
            }
            if left.is_zero() {
                return;
            }
        }
    }

    /// Kills an engine, and starts the replicas' processes anew.
    pub fn crash(&mut self, mut writer: Writer) -> Said {
        writer.process.kill().unwrap();
        let status = writer.process.wait().unwrap();
        assert_eq!(status.code(), None, "it ended by itself");
        // The last line may be cut off.
        while let Ok(line) = writer.lines.recv() {
            self.note(&mut writer.said, &line);
        }
        thread::scope(|scope| {
            for replica in &mut self.replicas {
                scope.spawn(|| replica.restart());
            }
        });
        writer.said
    }

    fn note(&mut self, said: &mut Said, line: &str) {
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
                said.done += 1;
                for sector in sectors(block) {
                    let may_be: &mut Vec<u64> = self.may_be.get_mut(&sector).unwrap();
                    may_be.drain(..may_be.len() - 1);
                }
            }
            ["failed", replica] => {
                said.failed.insert(replica.to_owned());
            }
            ["compared"] => said.compared = true,
            ["begun"] => said.begun += 1,
            ["ended", ref snapshot @ ..] => {
                said.ended += 1;
                self.snapshots
                    .extend(snapshot.iter().map(|&name| name.to_owned()));
            }
            _ => {}
        }
    }

    /// What a replica remembers of itself.
    fn meta(&self, index: usize) -> serde_json::Value {
        let path = self.replicas[index].directory().join("volume.meta");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Whether a replica bears the mark of one that is not complete.
    pub fn is_marked(&self, index: usize) -> bool {
        self.meta(index)["Rebuilding"].as_bool().unwrap()
    }

    /// Has a replica be one that was last written long ago.
    pub fn age(&self, index: usize) {
        let meta = self.meta(index);
        let directory = self.replicas[index].directory();
        let head = directory.join(meta["Head"].as_str().unwrap());
        let head = File::options().write(true).open(head).unwrap();
        let before = SystemTime::now() - Duration::from_secs(10);
        head.set_modified(before).unwrap();
    }

    /// Opens the volume, looks at every block several times, and at the replicas once they have been compared. What was read once is all that may be read
    /// from then on, until it is written anew. Those that are left get what they lack in the end. Returns how many that were.
    #[track_caller]
    pub fn check(&mut self, expected: [Expected; 3]) -> usize {
        let options = VolumeOptions {
            record: self.record.clone(),
            ..VolumeOptions::new(&self.volume, self.addresses())
        };
        let volume = Volume::open(options, Arc::new(Nobody)).unwrap();
        for (address, expected) in self.addresses().iter().zip(expected) {
            let other = match is_used(&volume, address) {
                true => Expected::Left,
                false => Expected::Used,
            };
            assert_ne!(expected, other, "{address}: {:?}", volume.replicas());
        }
        let first = read_all(&volume);
        self.look(&first);
        assert_same(&first, &read_all(&volume), "what is read changes");
        let end = Instant::now() + SOON;
        while !volume.is_compared() {
            assert!(Instant::now() < end, "{:?}", volume.progress());
            thread::sleep(Duration::from_millis(2));
        }
        assert_same(&first, &read_all(&volume), "what is read changes");
        let mut left = Vec::new();
        for address in self.addresses() {
            match is_used(&volume, &address) {
                true => self.compare(&address, &first),
                false => left.push(address),
            }
        }
        assert!(left.len() < self.replicas.len(), "nobody is read");
        let snapshots = volume.snapshots().unwrap();
        let present: HashSet<String> = snapshots.into_iter().map(|one| one.name).collect();
        let lost: Vec<_> = self.snapshots.difference(&present).collect();
        assert!(lost.is_empty(), "snapshots are lost: {lost:?}");
        for address in &left {
            if volume.replicas().iter().any(|one| one.address == *address) {
                volume.remove_replica(address).unwrap();
            }
            volume.add_replica(address.clone()).unwrap();
            self.compare(address, &first);
        }
        volume.close().unwrap();
        left.len()
    }

    /// Finds what may be there, and expects that from now on.
    #[track_caller]
    fn look(&mut self, data: &[u8]) {
        for (number, generations) in &mut self.may_be {
            let offset = number * SECTOR as u64;
            let start = usize::try_from(offset).unwrap();
            let sector = &data[start..start + SECTOR];
            let is = |generation: &u64| match generation {
                0 => sector.iter().all(|byte| *byte == 0),
                _ => blocks::check(sector, offset, stamp(*generation)).is_ok(),
            };
            let Some(found) = generations.iter().copied().find(is) else {
                let last = stamp(*generations.last().unwrap());
                let found = blocks::check(sector, offset, last);
                panic!("one of {generations:?}, but {found:?}");
            };
            *generations = vec![found];
        }
    }

    /// Whether a replica has what was read.
    #[track_caller]
    fn compare(&self, address: &ReplicaAddress, expected: &[u8]) {
        let is = |replica: &&Replica| replica.address() == address.url();
        let replica = self.replicas.iter().find(is).unwrap();
        let mut bytes = vec![0; expected.len()];
        let mut connection = replica.connect();
        for (chunk, offset) in bytes.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)) {
            connection.read(offset, chunk).unwrap();
        }
        assert_same(expected, &bytes, &replica.address());
    }
}

fn is_used(volume: &Volume, address: &ReplicaAddress) -> bool {
    let replicas = volume.replicas();
    let replica = replicas.iter().find(|one| one.address == *address);
    replica.is_some_and(|replica| replica.mode == Mode::ReadWrite)
}

#[track_caller]
fn assert_same(one: &[u8], other: &[u8], what: &str) {
    if one != other {
        let mut pairs = one.iter().zip(other);
        let differs = pairs.position(|(one, other)| one != other);
        panic!("{what}, from byte {differs:?} on");
    }
}

/// The numbers of a block's sectors.
fn sectors(block: u64) -> Range<u64> {
    block * SECTORS..(block + 1) * SECTORS
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
