//! A volume of Paddock's own engine on replicas, and one who uses it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use paddock_probe::blocks::{self, Stamp};
use paddock_storage::longhorn::{Nobody, ReplicaAddress, Volume, VolumeOptions};
use paddock_storage::{Buffer, Completion, Disk, DiskQueue, IoError, Operation, Request};
use tempfile::TempDir;

use super::{Replica, ReplicaOptions, directory, program, volume_name};

/// Bytes that a [`User`] writes at once.
pub const BLOCK: usize = 16 << 10;

/// Bytes of a [`Set`]'s volume.
pub const SIZE: u64 = 32 << 20;

/// How long a request may take when nothing is wrong.
pub const SOON: Duration = Duration::from_secs(30);

const SEED: u64 = 5;

/// What distinguishes the blocks of a generation.
#[must_use]
pub fn stamp(generation: u64) -> Stamp {
    Stamp {
        seed: SEED,
        generation,
    }
}

/// The replicas of a volume of [`SIZE`] bytes.
#[derive(Debug)]
pub struct Set {
    /// The volume's name.
    pub volume: String,
    /// Their processes.
    pub replicas: Vec<Replica>,
    /// Last: the replicas end before it goes.
    directory: TempDir,
    /// How the next one is run.
    pub options: ReplicaOptions,
}

impl Set {
    /// Starts three of Longhorn's. `name` is for people.
    ///
    /// # Panics
    /// When they do not serve in time.
    #[must_use]
    pub fn start(name: &str, revision_counter: bool) -> Self {
        Self::of(name, revision_counter, [program(), program(), program()])
    }

    /// Starts three of these programs'.
    ///
    /// # Panics
    /// When they do not serve in time.
    #[must_use]
    pub fn of(name: &str, revision_counter: bool, programs: [PathBuf; 3]) -> Self {
        let (volume, directory) = (volume_name(name), directory());
        let options = ReplicaOptions {
            revision_counter,
            ..ReplicaOptions::by(programs[0].clone(), &volume)
        };
        let mut set = Self {
            volume,
            replicas: Vec::new(),
            directory,
            options,
        };
        for program in programs {
            set.options.program = program;
            set.add();
        }
        set
    }

    /// Starts one more.
    ///
    /// # Panics
    /// When it does not serve in time.
    pub fn add(&mut self) {
        let name = format!("r{}", self.replicas.len());
        let path = self.directory.path().join(name);
        self.replicas
            .push(Replica::start(&path, SIZE, self.options.clone()));
    }

    /// Where one is.
    ///
    /// # Panics
    /// Never: it has an address.
    #[must_use]
    pub fn address(&self, index: usize) -> ReplicaAddress {
        let address = self.replicas[index].address();
        address.parse().expect("a replica's address")
    }

    /// The volume on the first three.
    #[must_use]
    pub fn options(&self) -> VolumeOptions {
        let addresses = (0..3).map(|index| self.address(index)).collect();
        VolumeOptions::new(&self.volume, addresses)
    }

    /// Opens the volume on the first three.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn open(&self) -> Volume {
        Volume::open(self.options(), Arc::new(Nobody)).expect("a volume that can be opened")
    }

    /// Compares all that replicas have.
    ///
    /// # Panics
    /// When they differ.
    #[track_caller]
    pub fn assert_alike(&self, indices: &[usize]) {
        let replicas = indices.iter().map(|&index| &self.replicas[index]);
        assert_alike(&replicas.collect::<Vec<_>>(), SIZE);
    }
}

/// Compares all that replicas have of a volume of `size` bytes, which nobody writes meanwhile and an engine has open.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_alike(replicas: &[&Replica], size: u64) {
    const CHUNK: usize = 1 << 20;
    let mut connections: Vec<_> = replicas.iter().map(|replica| replica.connect()).collect();
    let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
    for offset in (0..size).step_by(CHUNK) {
        for (number, connection) in connections.iter_mut().enumerate() {
            let read = connection.read(offset, &mut other);
            read.unwrap_or_else(|error| panic!("reading {}: {error}", replicas[number].control()));
            if number == 0 {
                std::mem::swap(&mut one, &mut other);
            } else if one != other {
                let at = one.iter().zip(&other).position(|(one, other)| one != other);
                let (one, other) = (replicas[0].control(), replicas[number].control());
                panic!("{one} and {other} differ, {at:?} bytes behind byte {offset}");
            }
        }
    }
}

/// One queue of a disk, used with many requests at once.
pub struct User {
    queue: Box<dyn DiskQueue>,
    tag: u64,
}

impl User {
    /// Begins to use a disk.
    ///
    /// # Panics
    /// When it gives no queue.
    #[must_use]
    pub fn new(disk: &dyn Disk) -> Self {
        Self {
            queue: disk.open_queue(64).expect("a queue"),
            tag: 0,
        }
    }

    /// Begins something.
    pub fn submit(&mut self, operation: Operation) {
        self.tag += 1;
        let tag = self.tag;
        self.queue.submit(Request { tag, operation });
    }

    /// Waits for all that was begun.
    ///
    /// # Panics
    /// When it is not done [`SOON`].
    #[track_caller]
    pub fn finish(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        self.queue.drain(SOON, &mut done).expect("an end");
        done
    }

    /// Writes blocks of a generation.
    ///
    /// # Errors
    /// The first that there was.
    pub fn write(&mut self, from: u64, to: u64, generation: u64) -> Result<(), IoError> {
        for offset in (from..to).step_by(BLOCK) {
            let mut block = vec![0; BLOCK];
            blocks::fill(&mut block, offset, stamp(generation));
            let buffer = Buffer::from(block);
            self.submit(Operation::Write { offset, buffer });
        }
        self.submit(Operation::Flush);
        self.finish().into_iter().try_for_each(|done| done.result)
    }

    /// Reads blocks of a generation.
    ///
    /// # Panics
    /// When they are others.
    #[track_caller]
    pub fn check(&mut self, from: u64, to: u64, generation: u64) {
        let mut buffers = Vec::new();
        for offset in (from..to).step_by(BLOCK) {
            let buffer = Buffer::zeroed(BLOCK);
            buffers.push((offset, buffer.part(BLOCK as u64)));
            self.submit(Operation::Read { offset, buffer });
        }
        for done in self.finish() {
            done.result.expect("a read");
        }
        for (offset, buffer) in buffers {
            let mut block = vec![0; BLOCK];
            buffer.copy_to(&mut block);
            if let Err(mismatch) = blocks::check(&block, offset, stamp(generation)) {
                panic!("{mismatch}");
            }
        }
    }
}
