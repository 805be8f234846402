//! The real Longhorn's engine, its command line and its replicas beside replicas of Paddock's.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use paddock_probe::blocks::{self, Stamp};
use paddock_storage::longhorn::{Mode, Nobody, Snapshot, Volume, VolumeOptions};
use paddock_tests::longhorn::{
    Cli, DataConnection, Engine, EngineOptions, Replica, ReplicaOptions, User, directory,
    own_replica, volume_name,
};
use paddock_tests::within;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
const BLOCK: usize = 16 << 10;
const SEED: u64 = 3;
/// How long modes may take to be as they are to be.
const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Longhorns,
    Ours,
}
use Kind::{Longhorns, Ours};

/// Replicas of a volume.
struct Set {
    volume: String,
    replicas: Vec<Replica>,
    /// Last: the replicas end before it goes.
    directory: TempDir,
    revision_counter: bool,
}

impl Set {
    fn start(name: &str, revision_counter: bool, kinds: [Kind; 3]) -> Self {
        let mut set = Self {
            volume: volume_name(name),
            replicas: Vec::new(),
            directory: directory(),
            revision_counter,
        };
        set.replicas = (0..3)
            .map(|index| set.replica(index, kinds[index]))
            .collect();
        set
    }

    /// Starts a replica in the directory of this number.
    fn replica(&self, index: usize, kind: Kind) -> Replica {
        let mut options = ReplicaOptions {
            revision_counter: self.revision_counter,
            ..ReplicaOptions::of(&self.volume)
        };
        if kind == Ours {
            options.program = own_replica();
        }
        let path = self.directory.path().join(format!("r{index}"));
        Replica::start(&path, SIZE, options)
    }

    /// Serves the directories by the other kinds of process.
    fn restart_as(&mut self, kinds: [Kind; 3]) {
        self.replicas.clear();
        self.replicas = (0..3)
            .map(|index| self.replica(index, kinds[index]))
            .collect();
    }

    fn engine(&self) -> Engine {
        let replicas: Vec<_> = self.replicas.iter().collect();
        let options = EngineOptions {
            revision_counter: self.revision_counter,
            ..EngineOptions::default()
        };
        Engine::start(&self.volume, SIZE, &replicas, &options)
    }

    /// The volume by Paddock's engine, on all of them.
    #[track_caller]
    fn volume(&self) -> Volume {
        let addresses = self.replicas.iter().map(|one| one.address().parse());
        let addresses = addresses.collect::<Result<_, _>>().unwrap();
        let options = VolumeOptions::new(&self.volume, addresses);
        let volume = Volume::open(options, Arc::new(Nobody)).unwrap();
        let replicas = volume.replicas();
        let good = replicas.iter().all(|one| one.mode == Mode::ReadWrite);
        assert!(good, "{replicas:?}");
        volume
    }

    /// Whether each replica holds the same, as it tells itself.
    #[track_caller]
    fn assert_alike(&self) {
        let all: Vec<_> = self
            .replicas
            .iter()
            .map(|one| contents(one, SIZE))
            .collect();
        for (other, replica) in all.iter().zip(&self.replicas) {
            let differs = all[0]
                .iter()
                .zip(other)
                .position(|(one, other)| one != other);
            assert_eq!(
                differs,
                None,
                "first byte that {} has not",
                replica.address()
            );
        }
    }

    #[track_caller]
    fn assert_modes(&self, cli: &Cli, wanted: [&str; 3]) {
        let modes = || {
            let listed = cli.replicas();
            let mode = |replica: &Replica| {
                let row = listed.iter().find(|row| row.address == replica.address());
                row.map_or_else(String::new, |row| row.mode.clone())
            };
            self.replicas.iter().map(mode).collect::<Vec<_>>()
        };
        assert!(
            within(SOON, || modes() == wanted),
            "{:?}, not {wanted:?}",
            cli.replicas()
        );
    }

    fn counters(&self) -> Vec<String> {
        let read = |replica: &Replica| {
            let counter = std::fs::read(replica.directory().join("revision.counter")).unwrap();
            assert_eq!(counter.len(), 4096);
            String::from_utf8(counter)
                .unwrap()
                .trim_end_matches('\0')
                .to_owned()
        };
        self.replicas.iter().map(read).collect()
    }
}

/// All of a replica's volume, of that size.
fn contents(replica: &Replica, size: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(size).unwrap()];
    let mut connection = replica.connect();
    for (chunk, offset) in data.chunks_mut(1 << 20).zip((0..).step_by(1 << 20)) {
        connection.read(offset, chunk).unwrap();
    }
    data
}

fn write(connection: &mut DataConnection, part: std::ops::Range<u64>, generation: u64) {
    let mut block = vec![0; BLOCK];
    let stamp = Stamp {
        seed: SEED,
        generation,
    };
    for offset in part.step_by(BLOCK) {
        blocks::fill(&mut block, offset, stamp);
        connection.write(offset, &block).unwrap();
    }
}

#[track_caller]
fn check(connection: &mut DataConnection, part: std::ops::Range<u64>, generation: u64) {
    let mut block = vec![0; BLOCK];
    let stamp = Stamp {
        seed: SEED,
        generation,
    };
    // Each of the three is asked in its turn.
    for offset in part
        .clone()
        .step_by(BLOCK)
        .chain(part.clone().step_by(BLOCK))
        .chain(part.step_by(BLOCK))
    {
        connection.read(offset, &mut block).unwrap();
        if let Err(mismatch) = blocks::check(&block, offset, stamp) {
            panic!("{mismatch}");
        }
    }
}

/// Longhorn's engine on three of ours: snapshots, going on, another engine.
#[test]
fn longhorns_engine_uses_our_replicas() {
    let set = Set::start("ours", true, [Ours; 3]);
    let engine = set.engine();
    let cli = engine.cli();
    set.assert_modes(&cli, ["RW", "RW", "RW"]);
    let mut connection = engine.connect();
    write(&mut connection, 0..8 * MIB, 1);
    cli.run(["snapshot", "create", "one"]);
    write(&mut connection, 4 * MIB..12 * MIB, 2);
    connection.write(5, &[9; 3]).unwrap();
    check(&mut connection, MIB..4 * MIB, 1);
    check(&mut connection, 4 * MIB..12 * MIB, 2);
    let listed = cli.replicas();
    let chain = ["volume-head-001.img", "volume-snap-one.img"];
    assert!(
        listed.iter().all(|replica| replica.chain == chain),
        "{listed:?}"
    );
    set.assert_alike();
    let beyond = connection.write(SIZE, &[1; 512]).unwrap_err();
    assert!(beyond.to_string().contains("EOF"), "{beyond}");
    engine.shut_down();
    let counters = set.counters();
    assert_eq!(counters, ["1025"; 3]);
    let engine = set.engine();
    set.assert_modes(&engine.cli(), ["RW", "RW", "RW"]);
    check(&mut engine.connect(), 4 * MIB..12 * MIB, 2);
}

/// What Longhorn's command line does to a volume through its engine, our replicas do.
#[test]
fn our_replicas_go_back_and_grow_as_longhorns_engine_says() {
    let set = Set::start("back", false, [Ours; 3]);
    let engine = set.engine();
    let cli = engine.cli();
    let mut connection = engine.connect();
    write(&mut connection, 0..4 * MIB, 1);
    cli.run(["snapshot", "create", "one"]);
    write(&mut connection, 0..8 * MIB, 2);
    drop(connection);
    cli.run(["frontend", "shutdown"]);
    cli.run(["snapshot", "revert", "one"]);
    cli.run(["frontend", "start", "socket"]);
    let mut connection = engine.connect();
    check(&mut connection, 0..4 * MIB, 1);
    let mut later = vec![1; 1 << 20];
    connection.read(4 * MIB, &mut later).unwrap();
    assert!(later.iter().all(|byte| *byte == 0), "it was not there");
    write(&mut connection, 2 * MIB..4 * MIB, 3);
    set.assert_alike();
    // Longhorn's engine itself does not see it with this frontend, and its replicas are made larger.
    let size = 2 * SIZE;
    cli.run(["expand", "--size", &size.to_string()]);
    let grown = || {
        set.replicas.iter().all(|replica| {
            let meta = std::fs::read_to_string(replica.directory().join("volume.meta"));
            meta.unwrap().contains(&format!("\"Size\":{size}"))
        })
    };
    assert!(within(SOON, grown), "the replicas are not larger");
    check(&mut connection, 0..2 * MIB, 1);
    check(&mut connection, 2 * MIB..4 * MIB, 3);
    set.assert_modes(&cli, ["RW", "RW", "RW"]);
}

/// Directories change hands, and each side goes on where the other has stopped.
#[test]
fn a_directory_that_one_wrote_opens_in_the_other() {
    let mut set = Set::start("hands", true, [Longhorns, Ours, Longhorns]);
    let mut generation = 0;
    for kinds in [
        [Longhorns, Ours, Longhorns],
        [Ours, Longhorns, Longhorns],
        [Longhorns, Ours, Ours],
    ] {
        set.restart_as(kinds);
        let engine = set.engine();
        let cli = engine.cli();
        set.assert_modes(&cli, ["RW", "RW", "RW"]);
        let mut connection = engine.connect();
        if generation > 0 {
            check(&mut connection, 0..2 * MIB, generation);
        }
        generation += 1;
        write(&mut connection, 0..2 * MIB, generation);
        cli.run(["snapshot", "create", &format!("s{generation}")]);
        write(
            &mut connection,
            generation * 2 * MIB..(generation + 1) * 2 * MIB,
            generation,
        );
        connection
            .write(15 * MIB + generation * 100, &[7; 50])
            .unwrap();
        set.assert_alike();
        engine.shut_down();
        let counters = set.counters();
        assert!(
            counters.iter().all(|counter| *counter == counters[0]),
            "{counters:?}"
        );
    }
    // Without an engine, and without a close.
    set.restart_as([Ours, Longhorns, Ours]);
    let engine = set.engine();
    let mut connection = engine.connect();
    for generation in 1..=3 {
        check(
            &mut connection,
            generation * 2 * MIB..(generation + 1) * 2 * MIB,
            generation,
        );
    }
    set.assert_alike();
}

/// Snapshots without what they take: each replica's file system says something else of a file, and something else later.
fn without_sizes(mut snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    for snapshot in &mut snapshots {
        snapshot.size = 0;
    }
    snapshots
}

/// So they do after more than writes: a way back, a snapshot folded into another, a rebuild, and growth.
#[test]
fn a_directory_that_one_changed_opens_in_the_other() {
    let mut set = Set::start("changed", false, [Ours, Longhorns, Ours]);
    let volume = set.volume();
    let mut user = User::new(&volume);
    for (name, from, to, generation) in [("one", 0, 8, 1), ("two", 2, 6, 2), ("three", 4, 10, 3)] {
        user.write(from * MIB, to * MIB, generation).unwrap();
        let name = Some(name.to_owned());
        volume.snapshot(name, HashMap::new()).unwrap();
    }
    drop(user);
    volume.revert("two").unwrap();
    let mut user = User::new(&volume);
    user.write(MIB, 3 * MIB, 4).unwrap();
    for name in ["one", "three"] {
        volume.remove_snapshot(name).unwrap();
    }
    volume.start_purge().unwrap();
    assert!(within(SOON, || !volume.purge().unwrap().running));
    for index in [0, 1] {
        let address = set.replicas[index].address().parse().unwrap();
        volume.remove_replica(&address).unwrap();
        volume.add_replica(address).unwrap();
    }
    volume.expand(2 * SIZE).unwrap();
    user.write(2 * SIZE - MIB, 2 * SIZE, 5).unwrap();
    drop(user);
    let snapshots = without_sizes(volume.snapshots().unwrap());
    let names: Vec<_> = snapshots.iter().map(|one| one.name.as_str()).collect();
    assert!(
        names.contains(&"two") && !names.contains(&"one"),
        "{names:?}"
    );
    let before = contents(&set.replicas[0], 2 * SIZE);
    volume.close().unwrap();

    set.restart_as([Longhorns, Ours, Longhorns]);
    let volume = set.volume();
    assert_eq!(without_sizes(volume.snapshots().unwrap()), snapshots);
    let mut user = User::new(&volume);
    for (from, to, generation) in [(0, 1, 1), (1, 3, 4), (3, 6, 2), (6, 8, 1), (31, 32, 5)] {
        user.check(from * MIB, to * MIB, generation);
    }
    for replica in &set.replicas {
        let differs = contents(replica, 2 * SIZE) != before;
        assert!(!differs, "{} has other bytes", replica.address());
    }
    drop(user);
    volume.close().unwrap();
}

/// Longhorn's command line has replicas of one kind rebuilt from the other, and purges snapshots.
#[test]
fn replicas_are_rebuilt_from_each_other() {
    let mut set = Set::start("mixed", false, [Longhorns, Ours, Ours]);
    let engine = set.engine();
    let cli = engine.cli();
    let mut connection = engine.connect();
    write(&mut connection, 0..4 * MIB, 1);
    cli.run(["snapshot", "create", "one"]);
    write(&mut connection, 2 * MIB..6 * MIB, 2);
    // Ours from Longhorn's or ours, Longhorn's from ours, and ours once more where its old files are.
    for index in [1, 0, 1] {
        set.replicas[index].kill();
        write(&mut connection, 6 * MIB..8 * MIB, 3);
        let mut modes = ["RW"; 3];
        modes[index] = "ERR";
        set.assert_modes(&cli, modes);
        let address = set.replicas[index].address();
        cli.run(["rm-replica", &address]);
        set.replicas[index].restart();
        cli.add_replica(&address, SIZE);
        set.assert_modes(&cli, ["RW"; 3]);
        set.assert_alike();
    }
    check(&mut connection, 0..2 * MIB, 1);
    check(&mut connection, 2 * MIB..6 * MIB, 2);
    cli.run(["snapshot", "rm", "one"]);
    cli.run(["snapshot", "purge"]);
    let purged = within(SOON, || {
        cli.replicas()
            .iter()
            .all(|replica| replica.chain.len() <= 2)
    });
    assert!(purged, "{:?}", cli.replicas());
    check(&mut connection, 0..2 * MIB, 1);
    check(&mut connection, 2 * MIB..6 * MIB, 2);
    set.assert_alike();
}
