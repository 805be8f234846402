//! The real Longhorn by itself, engine and replicas: what Paddock's own are held to does what its contract says.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use paddock_probe::blocks::{self, Stamp};
use paddock_tests::longhorn::{
    Cli, DataConnection, Engine, EngineOptions, Replica, ReplicaOptions, directory, volume_name,
};
use paddock_tests::within;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Bytes of a block.
const BLOCK: usize = 16 << 10;
const SEED: u64 = 11;
/// How long an engine waits for a replica, if nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Three replicas of a volume.
struct Set {
    volume: String,
    replicas: [Replica; 3],
    /// Last: the replicas end before it goes.
    _directory: TempDir,
}

impl Set {
    fn start(name: &str, revision_counter: bool) -> Self {
        let (volume, directory) = (volume_name(name), directory());
        let options = ReplicaOptions {
            revision_counter,
            ..ReplicaOptions::of(&volume)
        };
        let replicas = ["a", "b", "c"]
            .map(|name| Replica::start(&directory.path().join(name), SIZE, options.clone()));
        Self {
            volume,
            replicas,
            _directory: directory,
        }
    }

    fn engine(&self, options: &EngineOptions) -> Engine {
        Engine::start(&self.volume, SIZE, &self.replicas.each_ref(), options)
    }

    /// Whether each replica holds the same, as it tells itself.
    #[track_caller]
    fn assert_alike(&self) {
        let [one, others @ ..] = self.replicas.each_ref().map(contents);
        for (other, replica) in others.iter().zip(&self.replicas[1..]) {
            let differs = one.iter().zip(other).position(|(one, other)| one != other);
            assert_eq!(
                differs,
                None,
                "first byte that {} has not",
                replica.address()
            );
        }
    }
}

/// All of a replica's volume.
fn contents(replica: &Replica) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(SIZE).unwrap()];
    let mut connection = replica.connect();
    for (chunk, offset) in data.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)) {
        connection.read(offset, chunk).unwrap();
    }
    data
}

/// Offsets of all blocks of a part of the volume.
fn offsets(from: u64, to: u64) -> impl Iterator<Item = u64> {
    (from..to).step_by(BLOCK)
}

fn write(connection: &mut DataConnection, offset: u64, generation: u64) {
    let mut block = vec![0; BLOCK];
    let stamp = Stamp {
        seed: SEED,
        generation,
    };
    blocks::fill(&mut block, offset, stamp);
    connection.write(offset, &block).unwrap();
}

#[track_caller]
fn check(connection: &mut DataConnection, offset: u64, generation: u64) {
    let mut block = vec![0; BLOCK];
    connection.read(offset, &mut block).unwrap();
    let stamp = Stamp {
        seed: SEED,
        generation,
    };
    if let Err(mismatch) = blocks::check(&block, offset, stamp) {
        panic!("{mismatch}");
    }
}

/// The replicas' modes, in the order of the set.
fn modes(cli: &Cli, set: &Set) -> [Option<String>; 3] {
    let listed = cli.replicas();
    set.replicas.each_ref().map(|replica| {
        let mut rows = listed.iter();
        let row = rows.find(|row| row.address == replica.address());
        row.map(|row| row.mode.clone())
    })
}

#[track_caller]
fn assert_modes(cli: &Cli, set: &Set, wanted: [&str; 3]) {
    let seen = within(TIMEOUT, || {
        let modes = modes(cli, set);
        modes.each_ref().map(Option::as_deref) == wanted.map(Some)
    });
    assert!(seen, "{:?}, not {wanted:?}", cli.replicas());
}

/// Writes the whole last quarter over and over until it is told to end, and returns the last generation of it.
fn write_until(connection: &mut DataConnection, ended: &AtomicBool) -> u64 {
    let mut generation = 100;
    loop {
        generation += 1;
        for offset in offsets(3 * SIZE / 4, SIZE) {
            write(connection, offset, generation);
        }
        if ended.load(Ordering::Relaxed) {
            return generation;
        }
    }
}

#[test]
fn a_killed_replica_is_rebuilt_while_writes_go_on() {
    let mut set = Set::start("rebuild", false);
    let engine = set.engine(&EngineOptions::default());
    let (cli, mut connection) = (engine.cli(), engine.connect());
    assert_modes(&cli, &set, ["RW", "RW", "RW"]);
    offsets(0, SIZE / 2).for_each(|offset| write(&mut connection, offset, 1));
    set.assert_alike();

    set.replicas[1].kill();
    offsets(SIZE / 4, 3 * SIZE / 4).for_each(|offset| write(&mut connection, offset, 2));
    assert_modes(&cli, &set, ["RW", "ERR", "RW"]);

    set.replicas[1].restart();
    let address = set.replicas[1].address();
    cli.run(["rm-replica", &address]);
    let (rebuilt, mut other) = (AtomicBool::new(false), engine.connect());
    let last = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&mut other, &rebuilt));
        cli.add_replica(&address, SIZE);
        rebuilt.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert_modes(&cli, &set, ["RW", "RW", "RW"]);
    assert!(last > 101, "nothing was written during the rebuild");

    // Each of the three is asked in its turn.
    for _ in 0..3 {
        for offset in offsets(0, SIZE) {
            let generation = match offset * 4 / SIZE {
                0 => 1,
                3 => last,
                _ => 2,
            };
            check(&mut connection, offset, generation);
        }
    }
    set.assert_alike();
}

#[test]
fn a_frozen_replica_is_given_up_before_the_write_is_acknowledged() {
    let mut set = Set::start("frozen", false);
    let engine = set.engine(&EngineOptions::default());
    let (cli, mut connection) = (engine.cli(), engine.connect());
    write(&mut connection, 0, 1);
    set.replicas[2].freeze();
    let began = Instant::now();
    write(&mut connection, 0, 2);
    let took = began.elapsed();
    assert!(took > TIMEOUT && took < 3 * TIMEOUT, "{took:?}");
    assert_modes(&cli, &set, ["RW", "RW", "ERR"]);
    for _ in 0..4 {
        check(&mut connection, 0, 2);
    }
    // It is not taken back by itself, and its process knows of nothing.
    set.replicas[2].thaw();
    write(&mut connection, 0, 3);
    assert_modes(&cli, &set, ["RW", "RW", "ERR"]);
}

#[test]
fn a_volume_that_was_shut_down_is_there_again_and_counts_its_writes() {
    let mut set = Set::start("again", true);
    let options = EngineOptions {
        revision_counter: true,
        ..EngineOptions::default()
    };
    let engine = set.engine(&options);
    let mut connection = engine.connect();
    let written: Vec<u64> = offsets(0, MIB).collect();
    written
        .iter()
        .for_each(|&offset| write(&mut connection, offset, 1));
    engine.shut_down();

    let counters = set.replicas.each_ref().map(|replica| {
        let counter = std::fs::read(replica.directory().join("revision.counter")).unwrap();
        assert_eq!(counter.len(), 4096);
        let text = String::from_utf8(counter).unwrap();
        text.trim_end_matches('\0').parse::<usize>().unwrap()
    });
    assert_eq!(counters, [written.len(); 3]);

    set.replicas[0].restart();
    let engine = set.engine(&options);
    assert_modes(&engine.cli(), &set, ["RW", "RW", "RW"]);
    let mut connection = engine.connect();
    for _ in 0..3 {
        written
            .iter()
            .for_each(|&offset| check(&mut connection, offset, 1));
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_the_connection_goes_on() {
    let set = Set::start("refused", false);
    let engine = set.engine(&EngineOptions {
        replica_timeout: Some(2 * TIMEOUT),
        flags: vec!["--unmap-mark-snap-chain-removed".to_owned()],
        ..EngineOptions::default()
    });
    assert!(engine.log().contains("timeout 16s"), "{}", engine.log());
    let mut connection = engine.connect();
    let beyond = connection.write(SIZE - 512, &[1; 1024]).unwrap_err();
    assert!(beyond.to_string().contains("EOF"), "{beyond}");
    write(&mut connection, SIZE - BLOCK as u64, 1);
    check(&mut connection, SIZE - BLOCK as u64, 1);
}
