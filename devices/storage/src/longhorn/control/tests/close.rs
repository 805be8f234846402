//! The end of a volume, whose replicas hang.

use std::collections::HashMap;
use std::thread;

use tokio::runtime::Builder;

use super::fake::Manner::Hang;
use super::*;
use crate::longhorn::control;

use Mode::{Failed, ReadWrite};

/// How long a replica may be silent while the volume is used: longer than its end may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the end may take.
const END: Duration = Duration::from_secs(20);

fn patient(set: &Set) -> VolumeOptions {
    VolumeOptions {
        timeout: TIMEOUT,
        ..set.options(Taking::Open)
    }
}

#[test]
fn a_write_that_a_replica_does_not_answer_keeps_no_other_from_being_closed() {
    let set = Set::holding(2, 2);
    let volume = Volume::open(patient(&set), Arc::new(Nobody)).expect("a volume");
    set.replicas[1].change(|state| state.silent = true);
    let mut queue = volume.open_queue(4).expect("a queue");
    let (offset, buffer) = (0, Buffer::zeroed(4096));
    queue.submit(Request {
        tag: 1,
        operation: Operation::Write { offset, buffer },
    });
    queue.kick();
    wait_until("is written", || set.replicas[0].state().dirty);
    let writing = thread::spawn(move || {
        let mut done = Vec::new();
        queue.drain(TIMEOUT, &mut done).expect("an end");
        done[0].result
    });
    let since = Instant::now();
    volume.close().expect("closed");
    assert!(since.elapsed() < END, "{:?}", since.elapsed());
    assert_eq!(modes(&volume), [ReadWrite, Failed]);
    writing.join().expect("a result").expect("written");
    let [kept, left] = [0, 1].map(|index| set.replicas[index].state());
    assert!(!kept.open && !kept.dirty);
    assert!(left.open, "{:?}", left.calls);
}

#[test]
fn what_is_expected_to_be_closed_does_nothing_but_its_requests() {
    let set = Set::holding(1, 2);
    let volume = set.open();
    volume.expect_close();
    let refused = volume.snapshot(None, HashMap::new());
    assert!(
        matches!(&refused, Err(VolumeError::State { problem, .. }) if problem.contains("being closed")),
        "{refused:?}"
    );
    volume.begin_close();
    wait_until("closes", || !set.replicas[0].state().open);
    volume.close().expect("closed");
    let closes = set.replicas[0].state().calls.into_iter();
    assert_eq!(closes.filter(|call| *call == "close").count(), 1);
}

#[test]
fn those_who_wait_for_their_turn_are_not_let_go_first() {
    let set = Set::holding(2, 2);
    let volume = Arc::new(set.open());
    for replica in &set.replicas {
        replica.set("snapshot", Hang);
    }
    let take = || {
        let volume = Arc::clone(&volume);
        thread::spawn(move || volume.snapshot(None, HashMap::new()))
    };
    let first = take();
    wait_until("is asked", || {
        set.replicas[0].state().calls.contains(&"snapshot")
    });
    let others: Vec<_> = (0..4).map(|_| take()).collect();
    // So that they wait.
    thread::sleep(Duration::from_millis(500));
    volume.close().expect("closed");
    assert!(first.join().expect("a result").is_err());
    for other in others {
        let refused = other.join().expect("a result");
        assert!(
            matches!(&refused, Err(VolumeError::State { problem, .. }) if problem.contains("closed")),
            "{refused:?}"
        );
    }
    let calls = set.replicas[0].state().calls.into_iter();
    assert_eq!(calls.filter(|call| *call == "snapshot").count(), 1);
}

#[test]
fn replicas_that_are_lost_are_not_waited_for() {
    let set = Set::holding(2, 2);
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let control = control::open(patient(&set), Arc::new(Nobody)).await;
        let control = control.expect("a volume that can be opened");
        for member in control.shared.members() {
            control.shared.fail(&member, "the test says so");
        }
        let reopening = Arc::clone(&control);
        let reopening = tokio::spawn(async move { reopening.reopen().await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!reopening.is_finished(), "it waits for its replicas");
        let closed = tokio::time::timeout(END, control.close()).await;
        closed.expect("in time").expect("closed");
        let reopened = reopening.await.expect("an end");
        assert!(reopened.is_err());
    });
}
