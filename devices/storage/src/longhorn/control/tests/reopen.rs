//! Volumes that have lost all their replicas, and open them again.

use super::fake::Manner::{DoneLate, Hang};
use super::*;

use Mode::{Failed, ReadWrite};

/// Has a volume lose both replicas, the first first. Their processes are started anew.
fn lose(set: &Set, volume: &Volume) {
    for index in [0, 1] {
        fail(volume, index);
    }
    set.replicas.iter().for_each(Fake::restart);
    assert_eq!(modes(volume), [Failed; 2]);
}

#[test]
fn a_comparison_that_all_were_lost_in_begins_anew_with_the_same_one() {
    let set = Set::holding(2, 2);
    for replica in &set.replicas {
        replica.change(|state| state.dirty = true);
    }
    set.replicas[0].change(|state| {
        state.bytes.fill(1);
        state.modified -= SECOND;
    });
    set.replicas[1].change(|state| state.hangs_at = Some(SECOND_PIECE));
    let (volume, heard) = set.open_heard();
    wait_until("makes the first piece the same", || {
        set.replicas[0].state().bytes[0] == 2
    });
    lose(&set, &volume);
    set.replicas.iter().for_each(Fake::mend);
    wait_until("ends", || volume.progress().is_none());
    assert!(!volume.is_compared());
    assert_eq!(heard.compared(), 0);
    // It looks newer, and its owner knows better.
    set.replicas[0].change(|state| state.modified += 3600 * SECOND);
    set.replicas[1].change(|state| state.hangs_at = Some(2 * SECOND_PIECE));
    volume.reopen().expect("opened again");
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    assert_eq!(read_at(&volume, 3 * SECOND_PIECE), Ok(vec![2]));
    assert_eq!(heard.compared(), 0);
    set.replicas[1].mend();
    wait_until("is compared", || volume.is_compared());
    assert_eq!(heard.compared(), 1);
    let first = set.replicas[0].state();
    assert!(first.bytes.iter().all(|byte| *byte == 2));
}

#[test]
fn what_is_left_of_a_comparison_is_the_volume() {
    let set = Set::holding(2, 2);
    for replica in &set.replicas {
        replica.change(|state| state.dirty = true);
    }
    // It may miss what the other has.
    set.replicas[0].change(|state| state.modified -= 60 * SECOND);
    set.replicas[1].change(|state| state.hangs_at = Some(SECOND_PIECE));
    let (volume, heard) = set.open_heard();
    wait_until("is compared", || volume.progress().is_some());
    lose(&set, &volume);
    set.replicas.iter().for_each(Fake::mend);
    volume.reopen().expect("opened again");
    assert_eq!(modes(&volume), [Failed, ReadWrite]);
    assert!(volume.is_compared());
    assert_eq!(volume.progress(), None);
    assert_eq!(heard.compared(), 1);
}

#[test]
fn who_has_closed_them_and_when_they_were_written_says_nothing() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    assert_eq!(write_at(&volume, 0, 3), Ok(()));
    lose(&set, &volume);
    // An operator has closed it, and the other has a write that nobody was told of.
    set.replicas[0].change(|state| state.dirty = false);
    set.replicas[1].change(|state| {
        state.bytes[SECOND_PIECE..][..4096].fill(9);
        state.modified += 10 * SECOND;
    });
    volume.reopen().expect("opened again");
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    assert_eq!(read_at(&volume, SECOND_PIECE), Ok(vec![9]));
    wait_until("is compared", || volume.is_compared());
    assert_eq!(read(&volume), [3]);
    assert_eq!(set.replicas[0].state().bytes[SECOND_PIECE], 9);
}

#[test]
fn one_that_has_lost_everything_is_not_opened_again() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    assert_eq!(write_at(&volume, 0, 3), Ok(()));
    lose(&set, &volume);
    // The last that was read, and that would be believed.
    set.replicas[1].empty();
    volume.reopen().expect("opened again");
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    assert_eq!(read(&volume), [3]);
    assert_eq!(read_at(&volume, SECOND_PIECE), Ok(vec![2]));
}

#[test]
fn one_that_missed_a_snapshot_is_not_opened_again() {
    let set = Set::holding(2, 2);
    let volume = set.open();
    let snapshot = || volume.snapshot(Some("a".to_owned()), std::collections::HashMap::new());
    set.replicas[0].set("snapshot", fake::Manner::Refuse);
    snapshot().expect("taken");
    assert_eq!(modes(&volume), [Failed, ReadWrite]);
    lose(&set, &volume);
    // It looks better.
    set.replicas[0].change(|state| state.modified += 60 * SECOND);
    set.replicas[1].change(|state| state.dirty = true);
    volume.reopen().expect("opened again");
    assert_eq!(modes(&volume), [Failed, ReadWrite]);
}

#[test]
fn one_that_was_opened_in_vain_can_be_opened_the_next_time() {
    let late = Duration::from_secs(1);
    let later = Duration::from_secs(6);
    for (late, then) in [(late, Some("get")), (later, None)] {
        let set = Set::holding(1, 2);
        let volume = set.open();
        assert_eq!(write_at(&volume, 0, 3), Ok(()));
        fail(&volume, 0);
        let replica = &set.replicas[0];
        replica.restart();
        replica.set("open", DoneLate(late));
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| volume.reopen());
            wait_until("is open", || replica.state().open);
            if let Some(call) = then {
                replica.set(call, Hang);
            }
            opening.join().expect("no panic").expect_err("it hangs");
        });
        replica.mend();
        assert_eq!(modes(&volume), [Failed]);
        assert!(replica.state().open);
        volume.reopen().expect("opened again");
        assert_eq!(modes(&volume), [ReadWrite]);
        assert_eq!(read(&volume), [3]);
        // Once it is used it has to begin anew, as any other.
        fail(&volume, 0);
        let error = volume.reopen().expect_err("it is open").to_string();
        assert!(error.contains("restart its process"), "{error}");
    }
}
