//! Which replicas are taken.

use tokio::runtime::Builder;

use super::*;
use crate::longhorn::control;
use crate::longhorn::ranges::{Range, Writer};

use Mode::{Failed, ReadWrite};

/// Makes a replica one that failed, with old contents, while the others went on for so many seconds.
fn left_behind(replica: &Fake, seconds: i64) {
    replica.change(|state| {
        state.bytes.fill(1);
        state.dirty = true;
        state.modified -= seconds * SECOND;
    });
}

#[test]
fn one_that_was_not_closed_is_left_where_others_were() {
    for seconds in [0, 1, 3600] {
        let set = Set::holding(3, 2);
        left_behind(&set.replicas[0], seconds);
        let volume = set.open();
        assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
        assert!(reason(&volume, 0).contains("was not closed"));
        assert_eq!(read(&volume), [2]);
        assert_eq!(volume.progress(), None, "there is nothing to be compared");
        volume.close().expect("closed");
        // Nobody takes it for one that was closed, the next time.
        let first = set.replicas[0].state();
        assert!(first.dirty && first.open, "{first:?}");
        set.replicas[0].restart();
        assert_eq!(modes(&set.open()), [Failed, ReadWrite, ReadWrite]);
    }
}

#[test]
fn where_none_was_closed_they_are_made_like_the_one_that_was_written_last() {
    let set = Set::holding(3, 2);
    left_behind(&set.replicas[0], 10);
    set.replicas[1].change(|state| state.dirty = true);
    set.replicas[2].change(|state| state.dirty = true);
    let volume = set.open();
    assert_eq!(read(&volume), [2]);
    wait_until("is made like it", || {
        set.replicas[0].state().bytes.iter().all(|byte| *byte == 2)
    });
    for replica in &set.replicas {
        assert!(replica.state().bytes.iter().all(|byte| *byte == 2));
    }
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    assert_eq!(read(&volume), [2]);
    wait_until("is compared", || volume.progress().is_none());
    volume.close().expect("closed");
    // None of them looks older, although the others had it all.
    assert_eq!(modes(&set.open()), [ReadWrite; 3]);
}

#[test]
fn one_that_was_away_while_others_were_used_is_left() {
    let set = Set::holding(3, 2);
    left_behind(&set.replicas[2], 60);
    // It had been closed before that.
    set.replicas[2].change(|state| state.dirty = false);
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite, ReadWrite, Failed]);
    assert!(reason(&volume, 2).contains("60 s before another"));
    assert_eq!(read(&volume), [2]);
    // It can be given what it lacks.
    assert!(!set.replicas[2].state().open);
}

#[test]
fn nothing_is_guessed_where_an_older_one_was_closed_and_a_newer_one_was_not() {
    let set = Set::holding(2, 2);
    left_behind(&set.replicas[0], 60);
    set.replicas[0].change(|state| state.dirty = false);
    set.replicas[1].change(|state| state.dirty = true);
    let Err(VolumeError::NoReplica { problems, .. }) = set.try_open(Taking::Open) else {
        panic!("it is opened");
    };
    let name_only = |problem: &String| problem.contains("name only those");
    assert!(problems.iter().all(name_only), "{problems:?}");
    // Both are found the same the next time, the second once its process was started anew.
    assert!(!set.replicas[0].state().open && !set.replicas[0].state().dirty);
    assert!(set.replicas[1].state().open && set.replicas[1].state().dirty);
    set.replicas[1].restart();
    let volume = set.try_open(Taking::Salvage).expect("salvaged");
    assert_eq!(modes(&volume), [Failed, ReadWrite]);
    assert_eq!(read(&volume), [2]);
}

#[test]
fn an_engine_that_died_with_its_first_writes_leaves_nobody_behind() {
    // One has them, the others were not written since they were closed.
    let set = Set::holding(3, 2);
    set.replicas[0].change(|state| {
        state.bytes[..4096].fill(3);
        state.dirty = true;
        state.modified += SECOND;
    });
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    assert_eq!(
        read(&volume),
        [2],
        "what was not acknowledged comes and goes"
    );
    wait_until("is made like them", || {
        set.replicas[0].state().bytes[0] == 2
    });
    // Of a new volume, too.
    let set = Set::new(3);
    set.replicas[1].change(|state| {
        state.bytes[..4096].fill(3);
        state.dirty = true;
        state.modified = 2000 * SECOND;
    });
    let volume = set.open();
    assert_eq!(modes(&volume), [ReadWrite; 3]);
    assert_eq!(read(&volume), [3]);
    wait_until("are made like it", || {
        set.replicas.iter().all(|r| r.state().bytes[0] == 3)
    });
}

#[test]
fn a_new_one_is_not_taken_for_one_that_has_everything() {
    for (dirty, taking) in [(false, Taking::Open), (true, Taking::Salvage)] {
        let mut set = Set::holding(1, 2);
        set.replicas[0].change(|state| state.dirty = dirty);
        set.add().change(|state| state.modified = 2000 * SECOND);
        let volume = set.try_open(taking).expect("opened");
        assert_eq!(modes(&volume), [ReadWrite, Failed]);
        assert!(reason(&volume, 1).contains("is empty"));
        assert_eq!(read(&volume), [2]);
    }
    // After a crash it is made like the others.
    let mut set = Set::holding(1, 2);
    set.replicas[0].change(|state| state.dirty = true);
    set.add().change(|state| state.modified = 2000 * SECOND);
    let volume = set.open();
    assert_eq!(read(&volume), [2]);
    wait_until("is filled", || {
        set.replicas[1].state().bytes.iter().all(|byte| *byte == 2)
    });
    assert_eq!(modes(&volume), [ReadWrite; 2]);
    // All of them are new where the volume is.
    let set = Set::new(3);
    set.replicas[1].change(|state| state.modified = 100 * SECOND);
    assert_eq!(modes(&set.open()), [ReadWrite; 3]);
}

#[test]
fn one_that_missed_a_snapshot_is_left() {
    let set = Set::holding(3, 2);
    for replica in &set.replicas {
        replica.change(|state| state.dirty = true);
    }
    for replica in &set.replicas[1..] {
        replica.change(|state| state.take_snapshot("a", "").expect("taken"));
    }
    left_behind(&set.replicas[0], 1);
    let volume = set.open();
    assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
    assert!(reason(&volume, 0).contains("other snapshots"));
}

#[test]
fn one_that_grew_alone_and_failed_does_not_make_the_volume_larger() {
    for counter in [None, Some(5)] {
        let set = Set::holding(3, 2);
        for replica in &set.replicas {
            replica.change(|state| state.counter = counter.map(|counter| counter + 1));
        }
        left_behind(&set.replicas[0], 1);
        set.replicas[0].change(|state| {
            state.bytes.resize(2 * SIZE, 1);
            state.counter = counter;
        });
        let volume = set.open();
        assert_eq!(modes(&volume), [Failed, ReadWrite, ReadWrite]);
        assert_eq!(Disk::size(&volume), SIZE as u64);
        assert_eq!(read(&volume), [2]);
    }
}

#[test]
fn nobody_waits_at_the_gate_for_a_comparison_that_waits_for_a_range() {
    let set = Set::holding(2, 2);
    for replica in &set.replicas {
        replica.change(|state| state.dirty = true);
    }
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let control = control::open(set.options(Taking::Open), Arc::new(Nobody)).await;
        let control = control.expect("a volume that can be opened");
        // As a request has it that waits at the gate with its next piece.
        let shared = &control.shared;
        let post = shared.add_post().expect("a letter box");
        let writer = Writer {
            queue: post.id,
            request: 0,
        };
        let range = Range::of_blocks(0, SIZE as u64, 4096);
        assert!(shared.acquire(range, writer), "it has not begun");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let frozen = tokio::time::timeout(SOON, shared.freeze()).await;
        drop(frozen.expect("the gate shuts"));
        shared.release(range, 0, &post, &mut Vec::new());
        let compared = async {
            while shared.primary().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let compared = tokio::time::timeout(SOON, compared).await;
        compared.expect("it goes on");
    });
}
