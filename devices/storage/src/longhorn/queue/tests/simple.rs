//! What a queue does when all goes well, and who has to wait for whom.

use super::*;

const K: usize = 1024;

#[test]
fn a_write_goes_to_all_and_reads_go_round() {
    let mut bench = Bench::new(3, 1, 64 * K);
    assert_eq!(bench.run(0, write(4096, 7, 4096)), Ok(()));
    for replica in &bench.replicas {
        assert_eq!(replica.bytes[4096..8192], [7; 4096]);
    }
    let mut asked = [0; 3];
    for _ in 0..6 {
        let (operation, buffer) = read(4096 + 512, 1024);
        bench.queues[0].submit(Request { tag: 1, operation });
        bench.queues[0].kick();
        for (count, replica) in asked.iter_mut().zip(&mut bench.replicas) {
            replica.receive();
            *count += replica.pending.len();
        }
        assert_eq!(bench.settle().len(), 1);
        assert_eq!(contents(&buffer), [7; 1024]);
    }
    assert_eq!(asked, [2, 2, 2]);
}

#[test]
fn a_large_request_is_cut_into_pieces() {
    let mut bench = Bench::new(2, 1, 4 << 20);
    assert_eq!(bench.run(0, write(512, 9, (3 << 20) + 512)), Ok(()));
    let expected = [vec![0; 512], vec![9; (3 << 20) + 512]].concat();
    assert_eq!(bench.replicas[0].bytes[..expected.len()], expected);
    assert_eq!(bench.replicas[0].bytes, bench.replicas[1].bytes);
    let (operation, buffer) = read(0, (3 << 20) + 1024);
    assert_eq!(bench.run(0, operation), Ok(()));
    assert_eq!(contents(&buffer), expected);
    let zero = Operation::WriteZeroes {
        offset: 1024,
        length: 3 << 20,
        may_unmap: true,
    };
    assert_eq!(bench.run(0, zero), Ok(()));
    let expected = [vec![0; 512], vec![9; 512], vec![0; 3 << 20]].concat();
    assert_eq!(bench.replicas[1].bytes[..expected.len()], expected);
}

#[test]
fn what_is_outside_or_not_offered_is_refused_before_a_replica_sees_it() {
    let mut bench = Bench::new(1, 1, 8 * K);
    let outside = [
        write(8192, 1, 512),
        write(u64::MAX - 511, 1, 512),
        write(u64::MAX / 2 + 1, 1, 512),
        write(100, 1, 512),
        read(7680, 1024).0,
    ];
    for operation in outside {
        assert_eq!(bench.run(0, operation), Err(IoError::OutOfRange));
    }
    let discard = Operation::Discard {
        offset: 0,
        length: 4096,
    };
    assert_eq!(bench.run(0, discard), Err(IoError::Unsupported));
    assert_eq!(bench.run(0, write(0, 1, 0)), Ok(()));
    bench.replicas[0].receive();
    assert!(bench.replicas[0].pending.is_empty());
}

#[test]
fn overlapping_writes_of_two_queues_wait_for_each_other() {
    let mut bench = Bench::new(2, 2, 64 * K);
    let [first, second] = &mut bench.queues[..] else {
        panic!("two queues")
    };
    let request = |tag, operation| Request { tag, operation };
    first.submit(request(1, write(0, 1, 8192)));
    first.kick();
    // In the same block as the end of the first.
    second.submit(request(2, write(7680, 2, 512)));
    second.submit(request(3, write(8192, 3, 512)));
    second.kick();
    let bytes = |replica: &mut Replica| {
        replica.receive();
        let data = replica.pending.iter().map(|pending| pending.data[0]);
        let mut data: Vec<u8> = data.collect();
        data.sort_unstable();
        data
    };
    assert_eq!(bytes(&mut bench.replicas[0]), [1, 3]);
    let done = bench.settle();
    assert_eq!(done.len(), 3);
    for replica in &bench.replicas {
        assert_eq!(
            (
                replica.bytes[7679],
                replica.bytes[7680],
                replica.bytes[8192]
            ),
            (1, 2, 3)
        );
    }
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let mut bench = Bench::new(2, 1, 64 * K);
    let queue = &mut bench.queues[0];
    let mut done = Vec::new();
    queue.submit(Request {
        tag: 1,
        operation: write(0, 1, 512),
    });
    queue.submit(Request {
        tag: 2,
        operation: Operation::Flush,
    });
    queue.submit(Request {
        tag: 3,
        operation: write(4096, 1, 512),
    });
    queue.kick();
    bench.replicas[0].answer(0, Manner::Well);
    queue.reap(&mut done);
    assert!(done.is_empty());
    // The last write is still on its way.
    bench.replicas[1].answer(0, Manner::Well);
    queue.reap(&mut done);
    let tags: Vec<u64> = done.iter().map(|completion| completion.tag).collect();
    assert_eq!(tags, [1, 2]);
    bench.settle();
    assert_eq!(bench.run(0, Operation::Flush), Ok(()));
}

#[test]
fn a_shut_gate_holds_what_comes_and_waits_for_what_is_there() {
    let mut bench = Bench::new(1, 2, 64 * K);
    bench.queues[0].submit(Request {
        tag: 1,
        operation: write(0, 1, 512),
    });
    bench.queues[0].kick();
    let shared = Arc::clone(&bench.shared);
    let mut freeze = Box::pin(shared.freeze());
    assert!(poll_freeze(&mut freeze).is_none());
    bench.queues[1].submit(Request {
        tag: 2,
        operation: write(4096, 2, 512),
    });
    bench.queues[0].submit(Request {
        tag: 3,
        operation: write(8192, 3, 512),
    });
    assert_eq!(bench.settle().len(), 1);
    let frozen = poll_freeze(&mut freeze).expect("quiet");
    assert!(bench.settle().is_empty());
    assert_eq!(bench.queues[1].in_flight(), 1);
    assert_eq!(bench.replicas[0].bytes[4096], 0);
    drop(frozen);
    assert_eq!(bench.settle().len(), 2);
    assert_eq!(
        (bench.replicas[0].bytes[4096], bench.replicas[0].bytes[8192]),
        (2, 3)
    );
    // Whoever gives up waiting opens the gate as well.
    bench.queues[0].submit(Request {
        tag: 4,
        operation: write(0, 4, 512),
    });
    bench.queues[0].kick();
    let mut freeze = Box::pin(shared.freeze());
    assert!(poll_freeze(&mut freeze).is_none());
    drop(freeze);
    assert_eq!(bench.settle().len(), 1);
    assert_eq!(bench.run(1, write(4096, 5, 512)), Ok(()));
}

#[test]
fn a_shut_gate_waits_for_pieces_and_not_for_requests() {
    const PIECE: usize = 256 * K;
    let mut bench = Bench::new(2, 2, 64 << 20);
    for replica in &mut bench.replicas {
        replica.bytes.fill(9);
    }
    let zero = Operation::WriteZeroes {
        offset: 0,
        length: 64 << 20,
        may_unmap: false,
    };
    let (operation, _) = read(0, 3 << 20);
    // Of which the second waits for the first to have ended.
    let requests = [(0, zero), (1, write(32 << 20, 2, 4096)), (1, operation)];
    for (tag, (queue, operation)) in (0..).zip(requests) {
        bench.queues[queue].submit(Request { tag, operation });
        bench.queues[queue].kick();
    }
    let shared = Arc::clone(&bench.shared);
    let mut freeze = Box::pin(shared.freeze());
    assert!(poll_freeze(&mut freeze).is_none(), "replicas have a piece");
    assert!(bench.settle().is_empty());
    let frozen = poll_freeze(&mut freeze).expect("replicas have answered");
    for replica in &bench.replicas {
        assert_eq!((replica.bytes[PIECE - 1], replica.bytes[PIECE]), (0, 9));
    }
    // From here on it gets all there is, and no less.
    let new = bench.add_replica(&frozen);
    bench.replicas[new].bytes.fill(7);
    assert!(bench.settle().is_empty());
    drop(frozen);
    assert_eq!(bench.settle().len(), 3);
    let expected = [vec![0; 32 << 20], vec![2; 4096], vec![0; (32 << 20) - 4096]].concat();
    assert!(bench.replicas[0].bytes == expected && bench.replicas[1].bytes == expected);
    let bytes = &bench.replicas[new].bytes;
    assert!(bytes[..PIECE] == [7; PIECE] && bytes[PIECE..] == expected[PIECE..]);
}

#[test]
fn a_replica_that_is_rebuilt_gets_whole_blocks_and_is_not_read() {
    let mut bench = Bench::new(1, 1, 64 * K);
    assert_eq!(bench.run(0, write(0, 1, 16 * K)), Ok(()));
    let shared = Arc::clone(&bench.shared);
    let frozen = poll_freeze(&mut Box::pin(shared.freeze())).expect("quiet");
    let new = bench.add_replica(&frozen);
    drop(frozen);
    assert_eq!(bench.run(0, write(4096 + 512, 2, 512)), Ok(()));
    assert_eq!(bench.replicas[new].bytes[..4096], [0; 4096]);
    assert_eq!(
        bench.replicas[new].bytes[4096..8192],
        bench.replicas[0].bytes[4096..8192]
    );
    let zero = Operation::WriteZeroes {
        offset: 8192 + 512,
        length: 4096,
        may_unmap: false,
    };
    assert_eq!(bench.run(0, zero), Ok(()));
    assert_eq!(
        bench.replicas[new].bytes[8192..16384],
        bench.replicas[0].bytes[8192..16384]
    );
    for _ in 0..4 {
        let (operation, buffer) = read(0, 4096);
        assert_eq!(bench.run(0, operation), Ok(()));
        assert_eq!(contents(&buffer), [1; 4096]);
    }
    // The one that has it all goes.
    bench.replicas[0].cut(0);
    assert_eq!(bench.run(0, read(0, 512).0), Err(IoError::Os(libc::EIO)));
    assert_eq!(bench.run(0, write(0, 1, 4096)), Err(IoError::Os(libc::EIO)));
}

#[test]
fn the_last_blocks_may_be_a_part_of_one() {
    let size = 64 * K + 512;
    let mut bench = Bench::new(1, 1, size);
    let shared = Arc::clone(&bench.shared);
    let frozen = poll_freeze(&mut Box::pin(shared.freeze())).expect("quiet");
    let new = bench.add_replica(&frozen);
    drop(frozen);
    assert_eq!(bench.run(0, write(64 * K as u64, 1, 512)), Ok(()));
    assert_eq!(bench.run(0, write(63 * K as u64, 2, K + 512)), Ok(()));
    for replica in [0, new] {
        let bytes = &bench.replicas[replica].bytes;
        assert_eq!(bytes[63 * K - 1..63 * K + 1], [0, 2]);
        assert_eq!(bytes[size - 1], 2);
    }
}

#[test]
fn copies_are_bounded() {
    let mut bench = Bench::new(1, 1, 64 << 20);
    for tag in 0..64 {
        let operation = write(tag << 20, 1, 1 << 20);
        bench.queues[0].submit(Request { tag, operation });
    }
    bench.queues[0].kick();
    assert_eq!(bench.queues[0].copies, super::super::MAX_COPIES);
    assert_eq!(bench.settle().len(), 64);
    assert_eq!(bench.queues[0].copies, 0);
}

#[test]
fn a_queue_that_ends_takes_nothing_with_it() {
    let mut bench = Bench::new(1, 3, 64 * K);
    for (byte, queue) in (0..).zip(&mut bench.queues) {
        queue.submit(Request {
            tag: 1,
            operation: write(0, byte, 512),
        });
        queue.kick();
    }
    // The second waits for the first, and ends.
    drop(bench.queues.remove(1));
    assert_eq!(bench.settle().len(), 2);
    assert_eq!(bench.replicas[0].bytes[0], 2);
    let shared = Arc::clone(&bench.shared);
    assert!(poll_freeze(&mut Box::pin(shared.freeze())).is_some());
}

#[test]
fn a_letter_box_that_gets_no_queue_is_nobodys() {
    let bench = Bench::new(1, 0, 64 * K);
    let shared = &bench.shared;
    // What opening a queue does, as far as it gets.
    let post = shared.add_post().expect("an eventfd");
    assert!(shared.enter(&post) && shared.is_used());
    drop(post);
    assert!(shared.connected_posts().is_empty() && !shared.is_used());
    let frozen = poll_freeze(&mut Box::pin(shared.freeze()));
    assert!(frozen.is_some(), "nobody is waited for");
}
