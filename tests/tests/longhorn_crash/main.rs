//! Engines that are killed in the middle of writing, a hundred times on Paddock's replicas: nothing that was acknowledged is lost, nothing old comes back, and the replicas
//! that are read are the same in the end. They are killed while all is well, while a replica is away, while replicas are compared after another crash, in
//! a snapshot, and in a rebuild; each run has moments of its own for that.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

mod moments;
mod world;

use std::thread;
use std::time::{Duration, Instant};

use paddock_tests::longhorn::{ReplicaOptions, own_replica};
use rustix::process::{Pid, Signal, kill_process};

use self::world::Expected::{Any, Left, Used};
use self::world::{DEPTH, Said, World, Writer};

/// How long an engine that lost a replica goes on, at most.
const LOSING: Duration = Duration::from_millis(50);

/// A volume on Paddock's replicas.
fn world(name: &str, revision_counter: bool) -> World {
    World::new(name, |volume| ReplicaOptions {
        revision_counter,
        ..ReplicaOptions::by(own_replica(), volume)
    })
}

/// From the first requests on to some hundreds of them.
fn crash_while_writing(world: &mut World, round: usize, time: Duration) -> Said {
    let mut writer = world.write(None);
    world.until(&mut writer, |said| said.done > 0);
    let moment = world.moments.of((time, world.queues), round, time);
    world.go_on(&mut writer, moment);
    world.crash(writer)
}

fn crash_while_all_is_well(world: &mut World, rounds: usize) {
    for round in 0..rounds {
        crash_while_writing(world, round, Duration::from_millis(100));
        world.check([Used; 3]);
    }
    let written = world.written();
    println!("{rounds} crashes, {written} writes");
    assert!(written > 100, "hardly anything was written: {written}");
}

/// Each time twice: the second time while replicas are compared that were not closed the first time.
fn crash_while_replicas_are_compared(world: &mut World, rounds: usize) {
    let mut interrupted = 0;
    for round in 0..rounds {
        crash_while_writing(world, round, Duration::from_millis(30));
        let again = crash_while_writing(world, round, Duration::from_millis(10));
        interrupted += usize::from(!again.compared);
        world.check([Used; 3]);
    }
    println!("{interrupted} of {rounds} comparisons were interrupted");
    assert!(interrupted > 0, "no comparison was interrupted");
}

/// An engine whose replica ended and was started again: that has missed something once so many writes were acknowledged in all.
fn lose(world: &mut World, index: usize) -> (Writer, usize) {
    let mut writer = world.write(None);
    world.until(&mut writer, |said| said.done > 0);
    world.replicas[index].kill();
    let name = world.address(index).to_string();
    world.until(&mut writer, |said| said.failed.contains(&name));
    // What was under way it may have.
    let missed = writer.said.done + DEPTH * world.queues + 1;
    world.replicas[index].restart();
    (writer, missed)
}

/// Crashes once it has missed something.
fn lose_and_crash(world: &mut World, index: usize, round: usize) {
    let (mut writer, missed) = lose(world, index);
    world.until(&mut writer, |said| said.done >= missed);
    let moment = world.moments.of("losing", round, LOSING);
    world.go_on(&mut writer, moment);
    world.crash(writer);
}

fn crash_with_a_record(world: &mut World, rounds: usize) {
    world.keep_record();
    for round in 0..rounds {
        let index = round % 3;
        let (mut writer, missed) = lose(world, index);
        let moment = world.moments.of("losing", round, LOSING);
        world.go_on(&mut writer, moment);
        let said = world.crash(writer);
        let mut expected = [Used; 3];
        expected[index] = if said.done >= missed { Left } else { Any };
        world.check(expected);
    }
}

#[test]
fn while_all_is_well() {
    let mut world = world("well", false);
    crash_while_all_is_well(&mut world, 12);
    world.queues = 3;
    crash_while_all_is_well(&mut world, 15);
}

#[test]
fn while_writes_are_counted() {
    let mut world = world("counted", true);
    world.queues = 3;
    let mut left = 0;
    for round in 0..8 {
        crash_while_writing(&mut world, round, Duration::from_millis(100));
        left += world.check([Any; 3]);
    }
    println!("{left} replicas were left");
}

#[test]
fn while_replicas_are_compared() {
    let mut world = world("compared", false);
    world.queues = 2;
    crash_while_replicas_are_compared(&mut world, 10);
}

#[test]
fn while_a_replica_is_away_and_that_is_recorded() {
    let mut world = world("recorded", false);
    world.queues = 2;
    crash_with_a_record(&mut world, 7);
}

#[test]
fn while_a_replica_is_away_and_writes_are_counted() {
    let mut world = world("missed", true);
    world.queues = 2;
    for round in 0..6 {
        let index = round % 3;
        lose_and_crash(&mut world, index, round);
        let mut expected = [Any; 3];
        expected[index] = Left;
        world.check(expected);
    }
}

/// Where nothing else tells, one that was last written long before the others is good for nothing until it has been compared. Every other time the engine that
/// compares is killed, too.
#[test]
fn while_a_replica_is_away_for_long() {
    let mut world = world("old", false);
    world.queues = 2;
    let mut marked = 0;
    for round in 0..8 {
        let index = round % 3;
        lose_and_crash(&mut world, index, round);
        world.age(index);
        let mut expected = [Used; 3];
        if round % 2 == 1 {
            let again = crash_while_writing(&mut world, round, Duration::from_millis(10));
            // It loses its mark a moment before that is told.
            let is_marked = world.is_marked(index);
            assert!(!(again.compared && is_marked), "{again:?}");
            marked += usize::from(is_marked);
            expected[index] = if is_marked { Left } else { Used };
        }
        world.check(expected);
    }
    assert!(marked > 0, "no comparison was interrupted");
}

/// Crashes in the middle of a task, whose name is given by the round, or a little after. Returns how many replicas were left in all.
fn crash_in(world: &mut World, rounds: usize, task: impl Fn(&World, usize) -> String) -> usize {
    world.queues = 2;
    let (mut interrupted, mut left, mut time) = (0, 0, Duration::ZERO);
    for round in 0..rounds {
        let mut writer = world.write(Some(task(world, round)));
        world.until(&mut writer, |said| said.begun > 0);
        if round == 0 {
            let begun = Instant::now();
            world.until(&mut writer, |said| said.ended > 0);
            time = begun.elapsed() * 5 / 4;
        }
        let moment = world.moments.of("a task", round, time);
        world.go_on(&mut writer, moment);
        let said = world.crash(writer);
        interrupted += said.begun - said.ended;
        left += world.check([Any; 3]);
    }
    println!("{interrupted} of {rounds} were interrupted, {left} replicas were left, {time:?}");
    assert!(interrupted > 0, "none was interrupted");
    left
}

#[test]
fn in_a_snapshot() {
    let mut world = world("snapshots", false);
    crash_in(&mut world, 9, |_, _| "snapshots".to_owned());
}

fn crash_in_a_rebuild(world: &mut World, rounds: usize) {
    let left = crash_in(world, rounds, |world, round| {
        format!("rebuild={}", world.address(round % 3))
    });
    assert!(left > 0, "none was interrupted before its end");
}

#[test]
fn in_a_rebuild() {
    let mut world = world("rebuilds", false);
    world.keep_record();
    crash_in_a_rebuild(&mut world, 6);
}

#[test]
fn in_a_rebuild_while_writes_are_counted() {
    crash_in_a_rebuild(&mut world("counted-rebuilds", true), 5);
}

#[test]
fn on_longhorns_replicas() {
    let mut world = World::new("crashes-go", ReplicaOptions::of);
    crash_while_all_is_well(&mut world, 4);
    world.queues = 3;
    crash_while_all_is_well(&mut world, 6);
    crash_while_replicas_are_compared(&mut world, 4);
}

/// A process that is stopped, as its host is when that is a VM that is moved, has heard nothing meanwhile: it is no replica's fault.
#[test]
fn an_engine_that_stood_still_gives_nobody_up() {
    let mut world = world("standstill", false);
    let mut writer = world.write(None);
    world.go_on(&mut writer, Duration::from_millis(500));
    let pid = Pid::from_child(&writer.process);
    kill_process(pid, Signal::STOP).unwrap();
    // Longer than the last replica may be silent.
    thread::sleep(Duration::from_secs(20));
    kill_process(pid, Signal::CONT).unwrap();
    // Whoever has no replica any more ends by itself.
    world.go_on(&mut writer, Duration::from_secs(3));
    let said = world.crash(writer);
    assert!(said.failed.is_empty(), "{said:?}");
    world.check([Used; 3]);
}
