//! What replicas may do wrong.

use std::time::Duration;

use super::*;

const K: usize = 1024;

/// Submits something, has one replica answer it in some manner and the others well.
fn with_fault(
    bench: &mut Bench,
    operation: Operation,
    replica: usize,
    manner: Manner,
) -> Result<(), IoError> {
    bench.queues[0].submit(Request { tag: 7, operation });
    bench.queues[0].kick();
    assert!(bench.replicas[replica].answer(0, manner));
    let done = bench.settle();
    assert_eq!(done.len(), 1, "{done:?}");
    done[0].1.result
}

const BAD: [Manner; 6] = [
    Manner::Refuse,
    Manner::Full,
    Manner::DoneAndGone,
    Manner::Gone,
    Manner::OtherSequence,
    Manner::Garbage,
];

#[test]
fn a_replica_that_misses_a_write_is_left_and_never_read_again() {
    for manner in BAD {
        let mut bench = Bench::new(3, 1, 64 * K);
        assert_eq!(
            with_fault(&mut bench, write(0, 5, 4096), 1, manner),
            Ok(()),
            "{manner:?}"
        );
        assert_eq!(
            bench.modes(),
            [Mode::ReadWrite, Mode::Failed, Mode::ReadWrite],
            "{manner:?}"
        );
        assert_eq!(bench.events.try_recv(), Ok(Event::Failed(1)));
        for _ in 0..6 {
            let (operation, buffer) = read(0, 4096);
            assert_eq!(bench.run(0, operation), Ok(()));
            assert_eq!(contents(&buffer), [5; 4096]);
        }
    }
}

#[test]
fn a_read_goes_to_the_next_replica() {
    for manner in [
        Manner::Refuse,
        Manner::Gone,
        Manner::OtherSequence,
        Manner::Garbage,
        Manner::Short,
    ] {
        let mut bench = Bench::new(2, 1, 64 * K);
        assert_eq!(bench.run(0, write(0, 5, 4096)), Ok(()));
        let (operation, buffer) = read(0, 4096);
        assert_eq!(
            with_fault(&mut bench, operation, 0, manner),
            Ok(()),
            "{manner:?}"
        );
        assert_eq!(contents(&buffer), [5; 4096], "{manner:?}");
        assert_eq!(bench.modes(), [Mode::Failed, Mode::ReadWrite], "{manner:?}");
    }
}

#[test]
fn what_no_replica_can_read_is_an_error_and_nobody_is_left_for_it() {
    let mut bench = Bench::new(2, 1, 64 * K);
    bench.queues[0].submit(Request {
        tag: 1,
        operation: read(0, 512).0,
    });
    bench.queues[0].kick();
    assert!(bench.replicas[0].answer(0, Manner::Refuse));
    let mut done = Vec::new();
    bench.queues[0].reap(&mut done);
    assert!(bench.replicas[1].answer(0, Manner::Refuse));
    bench.queues[0].reap(&mut done);
    assert_eq!(done[0].result, Err(IoError::Os(libc::EIO)));
    assert_eq!(bench.modes(), [Mode::ReadWrite; 2]);
    assert_eq!(bench.run(0, read(0, 512).0), Ok(()));
}

#[test]
fn without_space_the_volume_lives_on() {
    let mut bench = Bench::new(2, 1, 64 * K);
    bench.queues[0].submit(Request {
        tag: 1,
        operation: write(0, 1, 512),
    });
    bench.queues[0].kick();
    for replica in &mut bench.replicas {
        assert!(replica.answer(0, Manner::Full));
    }
    let done = bench.settle();
    assert_eq!(done[0].1.result, Err(IoError::Os(libc::ENOSPC)));
    assert_eq!(bench.modes(), [Mode::ReadWrite; 2]);
    assert_eq!(bench.run(0, write(0, 2, 512)), Ok(()));
}

#[test]
fn the_last_replica_takes_the_volume_with_it() {
    let mut bench = Bench::new(1, 1, 64 * K);
    let error = Err(IoError::Os(libc::EIO));
    assert_eq!(
        with_fault(&mut bench, write(0, 1, 512), 0, Manner::Gone),
        error
    );
    assert_eq!(bench.run(0, write(0, 1, 512)), error);
    assert_eq!(bench.run(0, read(0, 512).0), error);
    // Many that overlap, of which each waits for the one before.
    for tag in 0..2000 {
        bench.queues[0].submit(Request {
            tag,
            operation: write(0, 1, 512),
        });
    }
    assert_eq!(bench.settle().len(), 2000);
}

#[test]
fn what_is_held_for_lack_of_room_is_not_forgotten_when_a_replica_takes_all_with_it() {
    let mut bench = Bench::new(1, 1, 2 << 20);
    let queue = &mut bench.queues[0];
    for tag in 0..40 {
        let operation = write(tag * 512, 1, 1 << 20);
        queue.submit(Request { tag, operation });
    }
    queue.kick();
    bench.replicas[0].cut(0);
    // Nothing else is going to wake whoever waits.
    let mut done = Vec::new();
    assert!(!queue.wait(Some(Duration::ZERO)));
    queue.reap(&mut done);
    assert_eq!(done.len(), 40);
}

#[test]
fn what_one_queue_notices_all_know() {
    let mut bench = Bench::new(2, 2, 64 * K);
    bench.queues[1].submit(Request {
        tag: 1,
        operation: write(4096, 1, 512),
    });
    bench.queues[1].kick();
    assert_eq!(with_fault_only(&mut bench), Ok(()));
    let done = bench.settle();
    assert_eq!(
        done.len(),
        1,
        "the other queue's write ended without the replica"
    );
    assert_eq!(done[0].1.result, Ok(()));
}

/// Queue 0 loses its connection to replica 0; replica 1 answers only queue 0.
fn with_fault_only(bench: &mut Bench) -> Result<(), IoError> {
    bench.queues[0].submit(Request {
        tag: 7,
        operation: write(0, 1, 512),
    });
    bench.queues[0].kick();
    bench.replicas[0].receive();
    bench.replicas[0].cut(0);
    bench.replicas[1].receive();
    let ours = bench.replicas[1]
        .pending
        .iter()
        .position(|pending| pending.connection == 0);
    assert!(bench.replicas[1].answer(ours.expect("it has it"), Manner::Well));
    let mut done = Vec::new();
    bench.queues[0].reap(&mut done);
    done.pop().expect("done").result
}

#[test]
fn nothing_is_acknowledged_before_a_failure_is_recorded() {
    let mut bench = Bench::with_record(2, 1, 64 * K, true);
    bench.queues[0].submit(Request {
        tag: 1,
        operation: write(0, 1, 512),
    });
    bench.queues[0].kick();
    bench.replicas[0].cut(0);
    assert!(bench.settle().is_empty());
    bench.queues[0].submit(Request {
        tag: 2,
        operation: Operation::Flush,
    });
    bench.queues[0].submit(Request {
        tag: 3,
        operation: write(4096, 1, 512),
    });
    bench.queues[0].submit(Request {
        tag: 4,
        operation: read(4096, 512).0,
    });
    let done = bench.settle();
    let tags: Vec<u64> = done.iter().map(|(_, completion)| completion.tag).collect();
    assert_eq!(tags, [4]);
    bench.shared.recorded(1);
    assert_eq!(bench.settle().len(), 3);
}

#[test]
fn only_the_primary_is_read_while_there_is_one() {
    let mut bench = Bench::new(2, 1, 64 * K);
    bench.replicas[1].bytes.fill(9);
    bench.shared.set_primary(Some(1));
    for _ in 0..4 {
        let (operation, buffer) = read(0, 512);
        assert_eq!(bench.run(0, operation), Ok(()));
        assert_eq!(contents(&buffer), [9; 512]);
    }
}

#[test]
fn a_replica_that_owes_an_answer_when_a_queue_ends_is_left() {
    let mut bench = Bench::new(2, 2, 64 * K);
    bench.queues[0].submit(Request {
        tag: 1,
        operation: write(0, 1, 512),
    });
    bench.queues[0].kick();
    assert!(bench.replicas[0].answer(0, Manner::Well));
    bench.replicas[1].receive();
    drop(bench.queues.remove(0));
    assert_eq!(bench.modes(), [Mode::ReadWrite, Mode::Failed]);
    // Nobody waits for what the queue had to itself.
    assert_eq!(bench.run(0, write(0, 2, 512)), Ok(()));
    assert_eq!(bench.replicas[0].bytes[0], 2);
}

#[test]
fn another_is_read_when_the_primary_goes() {
    for manner in [Manner::Gone, Manner::Garbage, Manner::Refuse] {
        let mut bench = Bench::new(3, 1, 64 * K);
        bench.shared.set_primary(Some(2));
        // While they differ, whoever was read first is read.
        bench.replicas[0].bytes.fill(8);
        bench.replicas[1].bytes.fill(9);
        let (operation, buffer) = read(0, 512);
        assert_eq!(
            with_fault(&mut bench, operation, 2, manner),
            Ok(()),
            "{manner:?}"
        );
        let first = contents(&buffer);
        assert_ne!(first, [0; 512], "{manner:?}");
        assert_eq!(bench.replicas[2].member.mode(), Mode::Failed);
        for _ in 0..4 {
            let (operation, buffer) = read(0, 512);
            assert_eq!(bench.run(0, operation), Ok(()));
            assert_eq!(contents(&buffer), first, "{manner:?}");
        }
    }
}

#[test]
fn the_primary_stays_when_there_is_no_other() {
    let mut bench = Bench::new(2, 1, 64 * K);
    bench.shared.set_primary(Some(1));
    bench.replicas[0].cut(0);
    assert_eq!(bench.run(0, read(0, 512).0), Ok(()));
    let eio = Err(IoError::Os(libc::EIO));
    assert_eq!(
        with_fault(&mut bench, read(0, 512).0, 1, Manner::Refuse),
        eio
    );
    assert_eq!(bench.modes(), [Mode::Failed, Mode::ReadWrite]);
    assert_eq!(bench.run(0, read(0, 512).0), Ok(()));
}
