//! When all replicas fail: who has everything, and that nothing is acknowledged that none of those has.

use super::*;

const K: usize = 1024;

fn begin(bench: &mut Bench, queue: usize, operation: Operation) {
    bench.queues[queue].submit(Request { tag: 1, operation });
    bench.queues[queue].kick();
}

fn reap(bench: &mut Bench, queue: usize) -> Vec<Result<(), IoError>> {
    let mut done = Vec::new();
    bench.queues[queue].reap(&mut done);
    done.into_iter()
        .map(|completion| completion.result)
        .collect()
}

/// Ids of those that have everything, now that all have failed.
fn complete(bench: &Bench) -> Vec<u32> {
    let complete = bench.shared.complete_when_lost();
    complete.iter().map(|member| member.id).collect()
}

/// Breaks all connections of a replica, and has the queue notice.
fn kill(bench: &mut Bench, replica: usize) {
    for connection in 0..bench.queues.len() {
        bench.replicas[replica].cut(connection);
    }
    bench.settle();
}

#[test]
fn who_missed_an_acknowledged_write_is_behind() {
    let mut bench = Bench::new(3, 1, 64 * K);
    kill(&mut bench, 0);
    assert_eq!(bench.run(0, write(0, 1, 512)), Ok(()));
    assert_eq!(complete(&bench), [0; 0], "others are there");
    kill(&mut bench, 1);
    // Nobody was told that it was written, and reading changes nothing.
    assert_eq!(bench.run(0, read(0, 512).0), Ok(()));
    begin(&mut bench, 0, write(0, 2, 512));
    kill(&mut bench, 2);
    assert_eq!(bench.run(0, write(0, 3, 512)), Err(IoError::Os(libc::EIO)));
    assert_eq!(bench.modes(), [Mode::Failed; 3]);
    assert_eq!(complete(&bench), [1, 2]);
}

#[test]
fn who_is_being_rebuilt_has_not_everything() {
    let mut bench = Bench::new(1, 1, 64 * K);
    let shared = Arc::clone(&bench.shared);
    let frozen = poll_freeze(&mut Box::pin(shared.freeze())).expect("nobody is busy");
    bench.add_replica(&frozen);
    drop(frozen);
    assert_eq!(bench.run(0, write(0, 1, 4096)), Ok(()));
    kill(&mut bench, 0);
    kill(&mut bench, 1);
    assert_eq!(complete(&bench), [0]);
}

#[test]
fn who_may_have_missed_something_counts_for_nothing_before_it_is_compared() {
    let eio = Err(IoError::Os(libc::EIO));
    for manner in [Manner::Gone, Manner::Refuse] {
        let mut bench = Bench::new(2, 1, 64 * K);
        bench.replicas[1].member.fall_behind();
        bench.replicas[1].bytes.fill(9);
        bench.shared.set_primary(Some(0));
        assert_eq!(bench.run(0, write(0, 1, 512)), Ok(()));
        begin(&mut bench, 0, read(8192, 512).0);
        assert!(bench.replicas[0].answer(0, Manner::Refuse));
        assert_eq!(reap(&mut bench, 0), [eio], "the other is not asked");
        assert_eq!(bench.modes(), [Mode::ReadWrite; 2]);
        // What it alone has is not acknowledged, and it is not gone on with.
        begin(&mut bench, 0, write(0, 2, 512));
        assert!(bench.replicas[1].answer(0, Manner::Well));
        assert!(bench.replicas[0].answer(0, manner));
        assert_eq!(reap(&mut bench, 0), [eio]);
        assert_eq!(bench.modes(), [Mode::Failed; 2]);
        assert_eq!(bench.run(0, read(0, 512).0), eio);
        assert_eq!(complete(&bench), [0]);
    }
}

#[test]
fn what_two_queues_lose_crosswise_is_not_acknowledged_to_both() {
    let mut bench = Bench::new(2, 2, 64 * K);
    begin(&mut bench, 0, write(0, 1, 4096));
    begin(&mut bench, 1, write(8192, 2, 4096));
    for replica in &mut bench.replicas {
        replica.receive();
    }
    // Replica 0 has what queue 0 wrote, and replica 1 what queue 1 did.
    for (kept, lost) in [(0, 1), (1, 0)] {
        let pending = &bench.replicas[kept].pending;
        let which = pending.iter().position(|p| p.connection == kept);
        assert!(bench.replicas[kept].answer(which.expect("it has it"), Manner::Well));
        bench.replicas[lost].cut(kept);
    }
    assert_eq!(reap(&mut bench, 0), [Ok(())]);
    assert_eq!(reap(&mut bench, 1), [Err(IoError::Os(libc::EIO))]);
    bench.settle();
    assert_eq!(bench.modes(), [Mode::Failed; 2]);
    assert_eq!(complete(&bench), [0]);
}

#[test]
fn a_queue_of_before_acknowledges_nothing_on_replicas_that_are_back() {
    let mut bench = Bench::with_record(2, 2, 64 * K, true);
    begin(&mut bench, 0, write(0, 1, 4096));
    assert!(bench.replicas[0].answer(0, Manner::Well));
    kill_quietly(&mut bench);
    let lost = complete(&bench);
    assert_eq!(lost, [0, 1]);
    // Replica 1 is back, which has not got it.
    let back = Arc::new(Member::new(7, "replica-1".to_owned(), Mode::ReadWrite));
    bench.shared.reinstate(&[(1, Arc::clone(&back))]);
    assert_eq!(complete(&bench), [0; 0], "one is there");
    bench.shared.recorded(2);
    let error = Err(IoError::Os(libc::EIO));
    assert!(
        reap(&mut bench, 0).is_empty(),
        "its return is to be recorded"
    );
    bench.shared.recorded(1);
    assert_eq!(reap(&mut bench, 0), [error]);
    assert_eq!(bench.run(0, write(0, 2, 512)), error);
    // What is acknowledged now, replica 0 misses.
    assert!(!bench.shared.is_decided());
    assert!(bench.shared.decide(&[7]));
    bench.shared.fail(&back, "it died");
    assert_eq!(complete(&bench), [7]);
}

/// All replicas fail, and queue 0 does not look.
fn kill_quietly(bench: &mut Bench) {
    for replica in &bench.replicas {
        bench.shared.fail(&replica.member, "it died");
    }
}
