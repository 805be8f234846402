//! What is done on all replicas at once, some of which do it late, or never.

use std::collections::HashMap;

use super::fake::Manner::{DoesLate, DoneLate, Hang, Refuse};
use super::*;
use crate::longhorn::control::peer::CALL_WHILE_FROZEN;

use Mode::{Failed, ReadWrite};

/// Longer than anybody waits.
const LATE: Duration = Duration::from_secs(7);

fn on_all(set: &Set, call: &'static str, manners: [fake::Manner; 3]) {
    for (replica, manner) in set.replicas.iter().zip(manners) {
        replica.set(call, manner);
    }
}

/// A volume that has gone from zeros in a snapshot to twos.
fn with_snapshot() -> (Set, Volume) {
    let set = Set::holding(3, 2);
    for replica in &set.replicas {
        replica.change(|state| state.take_snapshot("a", "then").expect("taken"));
    }
    let volume = set.open();
    (set, volume)
}

#[test]
fn one_that_went_back_without_saying_so_is_what_the_others_are_left_for() {
    let (set, volume) = with_snapshot();
    on_all(&set, "revert", [DoneLate(LATE), Refuse, Refuse]);
    volume.revert("a").expect("reverted");
    assert_eq!(modes(&volume), [ReadWrite, Failed, Failed]);
    assert_eq!(read(&volume), [0]);
}

#[test]
fn one_that_may_go_back_later_is_left() {
    let (set, volume) = with_snapshot();
    on_all(&set, "revert", [DoesLate(LATE), Refuse, Refuse]);
    let reverted = volume.revert("a");
    assert!(matches!(reverted, Err(VolumeError::Refused { .. })));
    assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
    wait_until("goes back", || set.replicas[0].state().bytes[0] == 0);
    assert_eq!(read(&volume), [2]);
}

#[test]
fn where_all_refuse_nobody_is_left() {
    let (set, volume) = with_snapshot();
    on_all(&set, "revert", [Refuse; 3]);
    on_all(&set, "snapshot", [Refuse; 3]);
    on_all(&set, "expand", [Refuse; 3]);
    assert!(volume.revert("a").is_err());
    assert!(volume.snapshot(None, HashMap::new()).is_err());
    assert!(volume.expand(2 * SIZE as u64).is_err());
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    assert_eq!(read(&volume), [2]);
}

#[test]
fn a_snapshot_that_was_taken_is_one_whatever_was_answered() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    on_all(&set, "snapshot", [DoneLate(LATE); 3]);
    let name = Some("a".to_owned());
    volume.snapshot(name, HashMap::new()).expect("taken");
    assert_eq!(modes(&volume), [ReadWrite; 3]);
}

#[test]
fn of_replicas_that_may_take_a_snapshot_later_one_is_kept() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    on_all(&set, "snapshot", [DoesLate(LATE); 3]);
    set.replicas[0].set("get", Hang);
    let name = Some("a".to_owned());
    // Whether there is room for it is asked of the first.
    assert!(volume.snapshot(name.clone(), HashMap::new()).is_err());
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    set.replicas[0].mend();
    set.replicas[0].set("snapshot", Hang);
    let taken = volume.snapshot(name, HashMap::new());
    let Err(VolumeError::Unreachable { problem, .. }) = taken else {
        panic!("{taken:?}");
    };
    assert!(problem.contains("no answer"), "{problem}");
    assert_eq!(modes(&volume), [ReadWrite, Failed, Failed]);
}

#[test]
fn one_that_cannot_be_asked_what_it_did_is_left() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    for replica in &set.replicas[1..] {
        replica.set("snapshot", Hang);
        replica.set("get", Hang);
    }
    let name = Some("a".to_owned());
    let taken = volume.snapshot(name, HashMap::new()).expect("taken");
    assert_eq!(modes(&volume), [ReadWrite, Failed, Failed]);
    // All I/O waits for them, and not twice as long for what one of them may say.
    assert!(taken.frozen < 2 * CALL_WHILE_FROZEN, "{taken:?}");
}

#[test]
fn one_that_may_grow_later_is_left() {
    let set = Set::holding(3, 2);
    let volume = set.open();
    on_all(&set, "expand", [DoesLate(LATE), Refuse, Refuse]);
    assert!(volume.expand(2 * SIZE as u64).is_err());
    assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
    assert_eq!(Disk::size(&volume), SIZE as u64);
    wait_until("grows", || set.replicas[0].state().bytes.len() > SIZE);
    volume.close().expect("closed");
    // It stays left, and what it grew to is nobody's size.
    set.replicas[0].change(|state| state.dirty = true);
    set.replicas[0].restart();
    let volume = set.open();
    assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
    assert_eq!(Disk::size(&volume), SIZE as u64);
}

#[test]
fn a_snapshot_takes_as_long_as_nothing_is_sent() {
    let set = Set::holding(1, 2);
    let volume = set.open();
    let mut queue = volume.open_queue(4).expect("a queue");
    set.replicas[0].change(|state| state.silent = true);
    let (offset, buffer) = (0, Buffer::zeroed(512));
    let operation = Operation::Read { offset, buffer };
    queue.submit(Request { tag: 1, operation });
    queue.kick();
    let taken = std::thread::scope(|scope| {
        let taking = scope.spawn(|| volume.snapshot(None, HashMap::new()));
        wait_until("shuts the gate", || !volume.control.shared.is_open());
        std::thread::sleep(Duration::from_millis(100));
        set.replicas[0].mend();
        queue.drain(SOON, &mut Vec::new()).expect("an answer");
        taking.join().expect("no panic").expect("taken")
    });
    assert!(taken.frozen >= Duration::from_millis(100), "{taken:?}");
}

#[test]
fn one_that_went_back_at_once_has_a_head_of_another_second() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    let taken = volume.snapshot(Some("s".to_owned()), HashMap::new());
    taken.expect("a snapshot");
    let before = set.replicas[0].state().head_created;
    volume.revert("s").expect("back");
    for replica in &set.replicas {
        assert_ne!(replica.state().head_created, before);
    }
    volume.close().expect("closed");
}
