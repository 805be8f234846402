//! Replicas that were away while something was done with the volume beside writing it.

use super::super::Control;
use super::fake::Manner::{Hang, Refuse};
use super::fake::now;
use super::*;
use crate::longhorn::{Offline, Standing};

use Mode::{Failed, ReadWrite};
use Standing::{Complete, Stale};

/// Twos since a snapshot `a` of zeros, written a second ago.
fn with_snapshot(counter: Option<i64>) -> Set {
    let set = Set::holding(3, 2);
    let (then, modified) = ("2026-01-01T00:00:00Z", now() - SECOND);
    for replica in &set.replicas {
        replica.change(|state| {
            state.take_snapshot("a", then).expect("taken");
            (state.counter, state.modified) = (counter, modified);
        });
    }
    set
}

fn remove_snapshot(volume: &Volume, name: &'static str) -> Result<(), VolumeError> {
    volume.call(move |control: Arc<Control>| async move { control.remove_snapshot(name).await })
}

fn purge(volume: &Volume) -> Result<(), VolumeError> {
    volume.call(|control: Arc<Control>| async move { control.start_purge().await })
}

/// What is told of the replicas while nobody has them open.
fn standings(set: &Set) -> Vec<Standing> {
    let offline = Offline::new(set.options(Taking::Open)).expect("a thread");
    let found = offline.survey().expect("what they say");
    found.iter().map(|found| found.standing).collect()
}

#[test]
fn one_that_was_away_when_the_others_went_back_is_left() {
    for counter in [None, Some(5)] {
        let set = with_snapshot(counter);
        set.replicas[2].set("get", Refuse);
        let volume = set.open();
        assert_eq!(modes(&volume), [ReadWrite, ReadWrite, Failed]);
        volume.revert("a").expect("reverted");
        volume.close().expect("closed");
        set.replicas[2].mend();
        assert_eq!(standings(&set), [Complete, Complete, Stale]);
        let volume = set.open();
        assert_eq!(modes(&volume), [ReadWrite, ReadWrite, Failed]);
        let expected = match counter {
            None => "was not there when a snapshot was taken or gone back to",
            // Longhorn's engine goes by that.
            Some(_) => "has seen 5 writes, and another 6",
        };
        let reason = reason(&volume, 2);
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(read(&volume), [0]);
    }
}

#[test]
fn one_that_did_not_go_back_is_left_the_next_time_too() {
    for counter in [None, Some(5)] {
        let set = with_snapshot(counter);
        let volume = set.open();
        set.replicas[0].set("revert", Hang);
        volume.revert("a").expect("reverted");
        assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
        drop(volume);
        set.start_anew();
        let volume = set.open();
        assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
        assert_eq!(read(&volume), [0]);
    }
}

#[test]
fn one_that_does_not_count_that_it_went_back_is_left() {
    let set = with_snapshot(Some(5));
    let volume = set.open();
    set.replicas[1].set("set counter", Refuse);
    volume.revert("a").expect("reverted");
    assert_eq!(modes(&volume), [ReadWrite, Failed, ReadWrite]);
}

#[test]
fn a_snapshot_that_one_would_not_give_up_is_no_reason_to_leave_it() {
    let set = with_snapshot(None);
    let volume = set.open();
    set.replicas[1].set("mark", Refuse);
    assert!(remove_snapshot(&volume, "a").is_err());
    let marks = || set.replicas.iter().map(|r| r.state().marked.len());
    assert_eq!(marks().collect::<Vec<_>>(), [1, 0, 1]);
    volume.close().expect("closed");
    set.replicas[1].mend();
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    // And it is told when it is tried again, whoever has given it up by then.
    set.replicas[0].change(|state| state.chain.clear());
    remove_snapshot(&volume, "a").expect("removed");
    assert_eq!(marks().collect::<Vec<_>>(), [1, 1, 2]);
    for replica in &set.replicas {
        replica.change(|state| state.chain.clear());
    }
    let missing = remove_snapshot(&volume, "a");
    assert!(matches!(missing, Err(VolumeError::NotFound { .. })));
}

#[test]
fn a_purge_that_one_did_not_do_is_no_reason_to_leave_it() {
    let set = Set::holding(3, 2);
    for replica in &set.replicas {
        replica.change(|state| {
            for (name, created) in [("x", "2026-01-01T00:00:00Z"), ("a", "2026-01-02T00:00:00Z")] {
                state.take_snapshot(name, created).expect("taken");
            }
            state.automatic.push("volume-snap-x.img".to_owned());
        });
    }
    let volume = set.open();
    set.replicas[1].set("purge status", Hang);
    assert!(purge(&volume).is_err());
    set.replicas[0].end_purge();
    set.replicas[2].end_purge();
    let files = || set.replicas.iter().map(|r| r.state().chain.len());
    assert_eq!(files().collect::<Vec<_>>(), [1, 2, 1]);
    volume.close().expect("closed");
    assert_eq!(standings(&set), [Complete; 3]);
    assert_eq!(modes(&set.open()), [ReadWrite; 3]);
}
