//! A guest that is reset uses its memory for something else: nothing of it is read or written any more for requests that it made before.

use std::time::Duration;

use super::*;

const K: usize = 1024;
const CANCELED: Result<(), IoError> = Err(IoError::Os(libc::ECANCELED));

fn submit(bench: &mut Bench, tag: u64, operation: Operation) {
    bench.queues[0].submit(Request { tag, operation });
    bench.queues[0].kick();
}

/// A write whose buffer the guest can still change.
fn write_shared(offset: u64, byte: u8, length: usize) -> (Operation, Buffer) {
    let guest = Buffer::from(vec![byte; length]);
    let buffer = guest.part(guest.len());
    (Operation::Write { offset, buffer }, guest)
}

/// What completed, by tag, once replicas have answered all they have.
fn results(bench: &mut Bench) -> Vec<(u64, Result<(), IoError>)> {
    let done = bench.settle().into_iter();
    let mut results: Vec<_> = done.map(|(_, done)| (done.tag, done.result)).collect();
    results.sort_unstable_by_key(|(tag, _)| *tag);
    results
}

/// What a queue says that needs no replica for it.
fn reap(bench: &mut Bench) -> Vec<(u64, Result<(), IoError>)> {
    let mut done = Vec::new();
    bench.queues[0].reap(&mut done);
    done.into_iter()
        .map(|done| (done.tag, done.result))
        .collect()
}

#[test]
fn a_write_that_waits_for_another_never_gets_to_a_replica() {
    let mut bench = Bench::new(2, 1, 64 * K);
    submit(&mut bench, 1, write(0, 1, 4096));
    let (second, guest) = write_shared(512, 2, 4096);
    submit(&mut bench, 2, second);
    submit(&mut bench, 3, Operation::Flush);
    bench.queues[0].abandon();
    // Whoever waits is told.
    let ready = bench.queues[0].poll(Some(Duration::ZERO));
    assert!(!ready.expect("polls").is_empty());
    assert_eq!(reap(&mut bench), [(2, CANCELED)]);
    guest.copy_from_at(0, &[0xee; 4096]);
    submit(&mut bench, 4, write(8192, 4, 512));
    submit(&mut bench, 5, read(0, 512).0);
    // What replicas had is reaped as ever.
    assert_eq!(
        results(&mut bench),
        [(1, Ok(())), (3, Ok(())), (4, CANCELED), (5, CANCELED)]
    );
    assert_eq!(bench.queues[0].in_flight(), 0);
    for replica in &bench.replicas {
        assert_eq!(replica.bytes[..4096], [1; 4096]);
        assert_eq!(replica.bytes[4096..], [0; 60 * K]);
    }
    // It had its range for nobody.
    bench.add_queue();
    assert_eq!(bench.run(1, write(512, 5, 4096)), Ok(()));
}

#[test]
fn what_was_held_at_the_gate_never_gets_to_a_replica() {
    let mut bench = Bench::new(1, 1, 64 * K);
    let shared = Arc::clone(&bench.shared);
    let frozen = poll_freeze(&mut Box::pin(shared.freeze())).expect("quiet");
    submit(&mut bench, 1, write(0, 1, 512));
    submit(&mut bench, 2, Operation::Flush);
    bench.queues[0].abandon();
    assert_eq!(reap(&mut bench), [(1, CANCELED), (2, CANCELED)]);
    drop(frozen);
    assert!(results(&mut bench).is_empty());
    assert_eq!(bench.replicas[0].bytes[0], 0);
}

#[test]
fn no_further_piece_is_begun() {
    let mut bench = Bench::new(1, 1, 4096 * K);
    let zero = Operation::WriteZeroes {
        offset: 0,
        length: 2 << 20,
        may_unmap: false,
    };
    bench.replicas[0].bytes.fill(9);
    submit(&mut bench, 1, write(2 << 20, 1, 2 << 20));
    submit(&mut bench, 2, zero);
    let (operation, buffer) = read(0, 2 << 20);
    submit(&mut bench, 3, operation);
    bench.queues[0].abandon();
    assert_eq!(
        results(&mut bench),
        [(1, CANCELED), (2, CANCELED), (3, CANCELED)]
    );
    let bytes = &bench.replicas[0].bytes;
    assert_eq!((bytes[0], bytes[256 * K]), (0, 9));
    assert_eq!((bytes[2 << 20], bytes[3 << 20]), (1, 9));
    assert_eq!(contents(&buffer)[1 << 20..], vec![0; 1 << 20]);
}

#[test]
fn what_was_held_between_two_pieces_never_gets_to_a_replica() {
    let mut bench = Bench::new(1, 1, 4096 * K);
    let shared = Arc::clone(&bench.shared);
    submit(&mut bench, 1, write(0, 1, 2 << 20));
    submit(&mut bench, 2, read(0, 2 << 20).0);
    let mut freeze = Box::pin(shared.freeze());
    assert!(poll_freeze(&mut freeze).is_none());
    assert!(results(&mut bench).is_empty());
    bench.queues[0].abandon();
    let mut canceled = reap(&mut bench);
    canceled.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(canceled, [(1, CANCELED), (2, CANCELED)]);
    drop(poll_freeze(&mut freeze).expect("quiet"));
    assert!(results(&mut bench).is_empty());
    let bytes = &bench.replicas[0].bytes;
    assert_eq!((bytes[0], bytes[1 << 20]), (1, 0));
    // It had its range for nobody, and the replica owes nothing.
    bench.add_queue();
    drop(bench.queues.remove(0));
    assert_eq!(bench.run(0, write(512, 5, 4096)), Ok(()));
}

#[test]
fn a_write_whose_blocks_are_read_first_is_not_made() {
    let mut bench = Bench::new(1, 1, 64 * K);
    let shared = Arc::clone(&bench.shared);
    let frozen = poll_freeze(&mut Box::pin(shared.freeze())).expect("quiet");
    bench.add_replica(&frozen);
    drop(frozen);
    let (operation, guest) = write_shared(512, 1, 512);
    submit(&mut bench, 1, operation);
    bench.queues[0].abandon();
    guest.copy_from_at(0, &[0xee; 512]);
    assert_eq!(results(&mut bench), [(1, CANCELED)]);
    for replica in &bench.replicas {
        assert_eq!(replica.bytes[512], 0);
    }
}

#[test]
fn a_read_that_fails_is_not_tried_elsewhere() {
    let mut bench = Bench::new(2, 1, 64 * K);
    submit(&mut bench, 1, read(0, 512).0);
    bench.queues[0].abandon();
    assert!(bench.replicas[0].answer(0, Manner::Refuse));
    assert_eq!(reap(&mut bench), [(1, CANCELED)]);
    assert!(!bench.replicas[1].answer(0, Manner::Well));
}
