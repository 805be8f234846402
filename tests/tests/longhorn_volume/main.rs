//! Paddock's engine on the real Longhorn's replicas, and Longhorn's tools and engine on what it leaves behind.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

mod interrupted;
mod network;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_probe::blocks;
use paddock_storage::longhorn::{
    EngineSocket, Mode, Nobody, Taking, Volume, VolumeError, VolumeOptions,
};
use paddock_storage::{Buffer, Disk, IoError, Operation};
use paddock_tests::longhorn::{
    BLOCK, Engine, EngineOptions, Replica, SIZE, SOON, Set, User, own_replica, program, stamp,
};
use paddock_tests::within;

const MIB: u64 = 1 << 20;

/// What a volume without replicas answers.
const EIO: IoError = IoError::Os(rustix::io::Errno::IO.raw_os_error());

fn modes(volume: &Volume) -> Vec<Mode> {
    volume
        .replicas()
        .iter()
        .map(|replica| replica.mode)
        .collect()
}

#[test]
fn what_paddock_writes_longhorn_reads_and_the_other_way_round() {
    both_ways(&Set::start("both-ways", true));
}

#[test]
fn both_engines_use_paddocks_replicas() {
    let programs = [own_replica(), own_replica(), own_replica()];
    both_ways(&Set::of("own", true, programs));
}

#[test]
fn both_engines_use_a_mixed_set() {
    let programs = [own_replica(), program(), own_replica()];
    both_ways(&Set::of("mixed", true, programs));
}

/// The writes that all replicas of a set have counted: the next engine takes one that has fewer for one that missed some.
#[track_caller]
fn counted(set: &Set) -> u64 {
    let count = |replica: &Replica| {
        let bytes = std::fs::read(replica.directory().join("revision.counter")).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        text.trim_end_matches('\0').parse::<u64>().unwrap()
    };
    let counts: Vec<u64> = set.replicas.iter().map(count).collect();
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    counts[0]
}

/// Paddock's engine writes and Longhorn's reads, and the other way round. Replicas count the writes.
fn both_ways(set: &Set) {
    let volume = set.open();
    assert_eq!(volume.size(), SIZE);
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    user.check(0, SIZE, 1);
    set.assert_alike(&[0, 1, 2]);
    drop(user);
    volume.close().unwrap();
    let ours = counted(set);
    assert!(ours > 1, "{ours}");

    let replicas: Vec<&Replica> = set.replicas.iter().collect();
    let options = EngineOptions {
        revision_counter: true,
        ..EngineOptions::default()
    };
    let engine = Engine::start(&set.volume, SIZE, &replicas, &options);
    assert!(
        engine
            .cli()
            .replicas()
            .iter()
            .all(|replica| replica.mode == "RW")
    );
    let mut connection = engine.connect();
    let mut block = vec![0; BLOCK];
    for offset in (0..SIZE).step_by(BLOCK) {
        connection.read(offset, &mut block).unwrap();
        blocks::check(&block, offset, stamp(1)).unwrap();
        if offset < SIZE / 2 {
            blocks::fill(&mut block, offset, stamp(2));
            connection.write(offset, &block).unwrap();
        }
    }
    engine.shut_down();

    let volume = set.open();
    assert_eq!(
        modes(&volume),
        [Mode::ReadWrite; 3],
        "{:?}",
        volume.replicas()
    );
    let mut user = User::new(&volume);
    user.check(0, SIZE / 2, 2);
    user.check(SIZE / 2, SIZE, 1);
    drop(user);
    volume.close().unwrap();
    let all = counted(set);
    assert!(all > ours, "{all}, of which {ours} are ours");
}

#[test]
fn a_killed_replica_is_left_at_once_and_rebuilt_under_writes() {
    kill_and_rebuild(Set::start("rebuild", false));
}

#[test]
fn replicas_of_one_kind_are_rebuilt_from_those_of_the_other() {
    // Replica 1 is rebuilt, from replica 0.
    kill_and_rebuild(Set::of(
        "from-go",
        false,
        [program(), own_replica(), program()],
    ));
    kill_and_rebuild(Set::of(
        "from-own",
        false,
        [own_replica(), program(), own_replica()],
    ));
}

/// Kills a replica under writes and rebuilds it under writes.
fn kill_and_rebuild(mut set: Set) {
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    volume
        .snapshot(Some("first".to_owned()), HashMap::new())
        .unwrap();
    set.replicas[1].kill();
    let before = Instant::now();
    user.write(0, SIZE / 2, 2).unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(8),
        "a write waited for a dead replica"
    );
    assert_eq!(
        modes(&volume),
        [Mode::ReadWrite, Mode::Failed, Mode::ReadWrite]
    );
    user.check(0, SIZE / 2, 2);

    let address = set.address(1);
    set.replicas[1].restart();
    volume.remove_replica(&address).unwrap();
    let rebuilt = std::thread::scope(|scope| {
        let rebuild = scope.spawn(|| volume.add_replica(address.clone()));
        let mut generation = 2;
        while !rebuild.is_finished() {
            generation += 1;
            user.write(SIZE / 4, SIZE / 2, generation).unwrap();
            // A part of a sector, which the new replica lacks the rest of.
            let buffer = Buffer::from(vec![7; 512]);
            user.submit(Operation::Write {
                offset: 3 * SIZE / 4 + 512 * (generation % 64),
                buffer,
            });
            assert!(user.finish().iter().all(|done| done.result.is_ok()));
        }
        assert!(generation > 2, "nothing was written meanwhile");
        user.check(SIZE / 4, SIZE / 2, generation);
        rebuild.join().unwrap()
    });
    let rebuilt = rebuilt.unwrap();
    println!(
        "rebuilt in {:?}, I/O stood still for {:?}",
        rebuilt.took, rebuilt.frozen
    );
    assert_eq!(modes(&volume), [Mode::ReadWrite; 3]);
    set.assert_alike(&[0, 1, 2]);
    let snapshots = volume.snapshots().unwrap();
    assert_eq!(
        snapshots.iter().filter(|s| s.user_created).count(),
        1,
        "{snapshots:?}"
    );
    user.check(0, SIZE / 4, 2);
    drop(user);
    volume.close().unwrap();
}

#[test]
fn a_frozen_replica_is_left_after_the_timeout_and_the_last_after_twice_that() {
    let mut set = Set::start("frozen", false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    set.replicas[0].freeze();
    let before = Instant::now();
    user.write(0, MIB, 2).unwrap();
    let took = before.elapsed();
    assert!(
        took > Duration::from_secs(7) && took < Duration::from_secs(14),
        "{took:?}"
    );
    assert_eq!(
        modes(&volume),
        [Mode::Failed, Mode::ReadWrite, Mode::ReadWrite]
    );
    user.check(0, MIB, 2);
    set.replicas[1].kill();
    user.write(0, MIB, 3).unwrap();
    set.replicas[2].freeze();
    let before = Instant::now();
    assert_eq!(user.write(0, MIB, 4), Err(EIO));
    let took = before.elapsed();
    assert!(
        took > Duration::from_secs(15) && took < Duration::from_secs(24),
        "{took:?}"
    );
}

#[test]
fn snapshots_are_taken_listed_and_gone_back_to() {
    let set = Set::start("snapshots", true);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    let labels = HashMap::from([("of".to_owned(), "test".to_owned())]);
    let taken = volume.snapshot(Some("one".to_owned()), labels).unwrap();
    println!("I/O stood still for {:?}", taken.frozen);
    user.write(0, SIZE / 2, 2).unwrap();
    let unnamed = volume.snapshot(None, HashMap::new()).unwrap();
    user.write(0, SIZE, 3).unwrap();
    let again = volume.snapshot(Some("one".to_owned()), HashMap::new());
    assert!(matches!(again, Err(VolumeError::State { .. })), "{again:?}");
    let wrong = volume.snapshot(Some("../x".to_owned()), HashMap::new());
    assert!(matches!(wrong, Err(VolumeError::State { .. })), "{wrong:?}");
    let snapshots = volume.snapshots().unwrap();
    let mut names: Vec<&str> = snapshots.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    let mut expected = [unnamed.name.as_str(), "one"];
    expected.sort_unstable();
    assert_eq!(names, expected);
    let one = snapshots.iter().find(|s| s.name == "one").unwrap();
    assert_eq!(one.labels, [("of".to_owned(), "test".to_owned())]);

    // Not while it is used.
    assert!(matches!(
        volume.revert("one"),
        Err(VolumeError::State { .. })
    ));
    drop(user);
    assert!(matches!(
        volume.revert("two"),
        Err(VolumeError::NotFound { .. })
    ));
    volume.revert("one").unwrap();
    let mut user = User::new(&volume);
    user.check(0, SIZE, 1);
    set.assert_alike(&[0, 1, 2]);
    drop(user);
    volume.close().unwrap();
}

#[test]
fn a_volume_grows_while_it_is_used() {
    let set = Set::start("grows", false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    volume.expand(2 * SIZE).unwrap();
    assert_eq!(volume.size(), 2 * SIZE);
    user.write(SIZE, 2 * SIZE, 2).unwrap();
    user.check(0, SIZE, 1);
    user.check(SIZE, 2 * SIZE, 2);
    assert!(matches!(
        volume.expand(SIZE),
        Err(VolumeError::State { .. })
    ));
    drop(user);
    volume.close().unwrap();
    // Longhorn's engine finds them all of the same size.
    let replicas: Vec<&Replica> = set.replicas.iter().collect();
    let engine = Engine::start(&set.volume, 2 * SIZE, &replicas, &EngineOptions::default());
    assert!(
        engine
            .cli()
            .replicas()
            .iter()
            .all(|replica| replica.mode == "RW")
    );
}

#[test]
fn replicas_that_are_open_or_lag_behind_are_refused() {
    let mut set = Set::start("refused", true);
    let volume = set.open();
    let second = Volume::open(set.options(), Arc::new(Nobody));
    let Err(VolumeError::NoReplica { problems, .. }) = second else {
        panic!("a second engine has them: {second:?}");
    };
    assert!(
        problems
            .iter()
            .all(|problem| problem.contains("must be closed")),
        "{problems:?}"
    );
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    set.replicas[2].kill();
    user.write(0, MIB, 2).unwrap();
    drop(user);
    volume.close().unwrap();

    // It has seen fewer writes.
    set.replicas[2].restart();
    let volume = set.open();
    assert_eq!(
        modes(&volume),
        [Mode::ReadWrite, Mode::ReadWrite, Mode::Failed]
    );
    let reason = volume.replicas()[2].failure.clone().unwrap().reason;
    assert!(reason.contains("has seen"), "{reason}");
    User::new(&volume).check(0, MIB, 2);
    volume.close().unwrap();
}

#[test]
fn after_a_crash_of_the_engine_replicas_are_compared() {
    let mut set = Set::start("crash", false);
    let volume = set.open();
    User::new(&volume).write(0, SIZE, 1).unwrap();
    // As if the engine had died after it had sent a write to one of them only.
    drop(volume);
    let mut connection = set.replicas[2].connect();
    let unfinished = 8 * MIB;
    connection.write(unfinished, &[9; BLOCK]).unwrap();
    for replica in &mut set.replicas {
        replica.restart();
    }
    let volume = set.open();
    assert_eq!(modes(&volume), [Mode::ReadWrite; 3]);
    let mut user = User::new(&volume);
    // It was written last, so it is the one that is believed.
    let check = |user: &mut User| {
        user.check(0, unfinished, 1);
        user.check(unfinished + BLOCK as u64, SIZE, 1);
        let buffer = Buffer::zeroed(BLOCK);
        let read = buffer.part(BLOCK as u64);
        user.submit(Operation::Read {
            offset: unfinished,
            buffer,
        });
        assert!(user.finish().iter().all(|done| done.result.is_ok()));
        let mut block = [0; BLOCK];
        read.copy_to(&mut block);
        assert_eq!(block, [9; BLOCK]);
    };
    check(&mut user);
    assert!(
        within(SOON, || volume.progress().is_none()),
        "{:?}",
        volume.progress()
    );
    set.assert_alike(&[0, 1, 2]);
    check(&mut user);
    drop(user);
    volume.close().unwrap();
}

/// A replica is killed while the others are written, and there again when the volume is opened the next time. Nothing counts the writes.
fn stale_replica(name: &str, end: impl FnOnce(&mut Set, Volume)) {
    let mut set = Set::start(name, false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    set.replicas[0].kill();
    user.write(0, SIZE, 2).unwrap();
    drop(user);
    end(&mut set, volume);
    set.replicas[0].restart();
    let volume = set.open();
    User::new(&volume).check(0, SIZE, 2);
    assert!(
        within(SOON, || volume.progress().is_none()),
        "{:?}",
        volume.progress()
    );
    let mut user = User::new(&volume);
    for _ in 0..3 {
        user.check(0, SIZE, 2);
    }
    drop(user);
    volume.close().unwrap();
}

#[test]
fn a_stale_replica_does_not_come_back_after_a_clean_end() {
    stale_replica("stale", |_, volume| volume.close().unwrap());
}

#[test]
fn a_stale_replica_does_not_come_back_after_a_crash() {
    stale_replica("stale-crash", |set, volume| {
        drop(volume);
        set.replicas[1].restart();
        set.replicas[2].restart();
    });
}

#[test]
fn a_volume_is_handed_over_open() {
    let set = Set::start("handed-over", false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, SIZE, 1).unwrap();
    let complete = volume.hand_over().unwrap();
    assert_eq!(complete, set.options().replicas);
    // Nothing reaches them any more.
    assert!(user.write(0, MIB, 2).is_err());
    drop(user);
    drop(volume);
    let options = VolumeOptions {
        taking: Taking::HandedOver,
        ..set.options()
    };
    let volume = Volume::open(options, Arc::new(Nobody)).unwrap();
    let mut user = User::new(&volume);
    user.check(0, SIZE, 1);
    user.write(0, SIZE, 3).unwrap();
    drop(user);
    volume.close().unwrap();
    User::new(&set.open()).check(0, SIZE, 3);
}

#[test]
fn two_of_three_replicas_may_go_at_once() {
    let mut set = Set::start("two", false);
    let volume = set.open();
    let mut user = User::new(&volume);
    user.write(0, MIB, 1).unwrap();
    set.replicas[0].kill();
    set.replicas[1].freeze();
    user.write(0, MIB, 2).unwrap();
    user.check(0, MIB, 2);
    assert_eq!(
        modes(&volume),
        [Mode::Failed, Mode::Failed, Mode::ReadWrite]
    );
    set.replicas[2].kill();
    assert_eq!(user.write(0, MIB, 3), Err(EIO));
}

#[test]
fn a_volume_behind_longhorns_own_engine() {
    let mut set = Set::start("behind", false);
    let replicas: Vec<_> = set.replicas.iter().collect();
    let engine = Engine::start(&set.volume, SIZE, &replicas, &EngineOptions::default());
    let disk = EngineSocket::open(&engine.socket(), SIZE, false).unwrap();
    let (mut one, mut other) = (User::new(&disk), User::new(&disk));
    one.write(0, SIZE, 1).unwrap();
    other.write(SIZE / 2, SIZE, 2).unwrap();
    one.check(SIZE / 2, SIZE, 2);
    other.check(0, SIZE / 2, 1);
    // What it is told by its own tools, and what becomes of its replicas, its client does not notice.
    engine.cli().run(["snapshot", "create", "one"]);
    set.replicas[0].kill();
    one.write(0, SIZE / 4, 3).unwrap();
    other.check(0, SIZE / 4, 3);
    set.assert_alike(&[1, 2]);
    drop(engine);
    let failed = one.write(0, MIB, 4);
    assert_eq!(failed, Err(EIO), "there is nobody any more");
}
