//! Connections that are lost, and servers that forget.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::load::{BLOCK, Load, four_queues};
use super::server::{ALL, Manner, Server};
use super::{Dice, open, options, read, write};
use crate::nbd::NbdDisk;
use crate::nbd::protocol::{
    CAN_MULTI_CONN, CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, FLAG_NO_HOLE, SEND_FLUSH,
};
use crate::{Buffer, Disk, IoError, Operation, Request};

const TIMED_OUT: IoError = IoError::Os(libc::ETIMEDOUT);

#[test]
fn requests_are_cut_as_the_server_wants_them() {
    let blocks = Some([4096, 4096, 10_000]);
    let server = Server::new(Manner {
        blocks,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    let capabilities = disk.capabilities();
    assert_eq!(
        (capabilities.size, capabilities.logical_block_size),
        (1 << 20, 4096)
    );
    let mut queue = disk.open_queue(4).unwrap();
    let queue = queue.as_mut();
    let bytes: Vec<u8> = (0..=255).cycle().take(5 * 4096).collect();
    assert_eq!(write(queue, 4096, bytes.clone()), Ok(()));
    assert_eq!(read(queue, 4096, 5 * 4096), Ok(bytes));
    assert_eq!(write(queue, 512, vec![1; 512]), Err(IoError::OutOfRange));
    assert_eq!(
        write(queue, 1 << 20, vec![1; 4096]),
        Err(IoError::OutOfRange)
    );
    for may_unmap in [false, true] {
        let zero = Operation::WriteZeroes {
            offset: 0,
            length: 8192,
            may_unmap,
        };
        assert_eq!(super::one(queue, zero), Ok(()));
    }
    assert_eq!(
        super::one(
            queue,
            Operation::Discard {
                offset: 0,
                length: 1 << 20
            }
        ),
        Ok(())
    );
    assert_eq!(write(queue, 0, Vec::new()), Ok(()));
    let seen: Vec<_> = server
        .state
        .lock()
        .unwrap()
        .seen
        .iter()
        .map(|s| (s.0, s.1, s.3))
        .collect();
    let cut = |command| [8192, 8192, 4096].map(|length| (command, 0, length));
    assert_eq!(seen[..3], cut(CMD_WRITE));
    assert_eq!(seen[3..6], cut(CMD_READ));
    assert_eq!(
        seen[6..8],
        [
            (CMD_WRITE_ZEROES, FLAG_NO_HOLE, 8192),
            (CMD_WRITE_ZEROES, 0, 8192)
        ]
    );
    assert_eq!(seen.len(), 9);
}

#[test]
fn four_queues_with_a_connection_each_or_with_one_for_all() {
    for (flags, structured, odd, connections) in [
        (ALL, true, true, 4),
        (ALL, false, false, 4),
        (ALL & !CAN_MULTI_CONN, true, false, 1),
        (
            ALL & !CAN_MULTI_CONN & !crate::nbd::protocol::SEND_WRITE_ZEROES,
            false,
            false,
            1,
        ),
    ] {
        let server = Server::new(Manner {
            flags,
            structured,
            odd,
            ..Manner::default()
        });
        let disk = open(&options(&server.uri()));
        assert_eq!(four_queues(&disk, &disk, |count| count > 300), []);
        assert_eq!(server.state.lock().unwrap().connections, connections);
        let state = server.state.lock().unwrap();
        assert!(
            state.committed == state.cached,
            "all was flushed at the end"
        );
    }
}

#[test]
fn a_server_that_dies_again_and_again_loses_nothing() {
    for flags in [ALL, ALL & !CAN_MULTI_CONN] {
        let server = Server::new(Manner {
            flags,
            ..Manner::default()
        });
        let disk = open(&options(&server.uri()));
        let over = AtomicBool::new(false);
        let errors = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut dice = Dice(99);
                for life in 0..30 {
                    std::thread::sleep(Duration::from_millis(20 + dice.below(40)));
                    server.away.store(life % 3 == 0, Ordering::Release);
                    if life % 5 == 4 {
                        server.cut();
                    } else {
                        server.die();
                    }
                    std::thread::sleep(Duration::from_millis(dice.below(30)));
                    server.away.store(false, Ordering::Release);
                }
                over.store(true, Ordering::Release);
            });
            four_queues(&disk, &disk, |_| over.load(Ordering::Acquire))
        });
        assert_eq!(errors, []);
        let (flushed, connections) = {
            let state = server.state.lock().unwrap();
            (state.committed == state.cached, state.connections)
        };
        assert!(flushed, "all was flushed at the end");
        // Up to one for each of its lives; where the machine is busy, it is not found in all of them.
        assert!(connections > 5, "{connections} connections");
    }
}

#[test]
fn what_was_acknowledged_survives_the_servers_cache() {
    let server = Server::new(Manner::default());
    let disk = open(&options(&server.uri()));
    let mut queue = disk.open_queue(4).unwrap();
    let queue = queue.as_mut();
    assert_eq!(write(queue, 0, vec![1; 1024]), Ok(()));
    // Overwritten, in part; the order counts.
    assert_eq!(write(queue, 512, vec![2; 1024]), Ok(()));
    let zero = Operation::WriteZeroes {
        offset: 1024,
        length: 512,
        may_unmap: true,
    };
    assert_eq!(super::one(queue, zero), Ok(()));
    server.die();
    assert_eq!(server.state.lock().unwrap().cached[..1536], [0; 1536]);
    let expected = [[1; 512], [2; 512], [0; 512]].concat();
    assert_eq!(read(queue, 0, 1536), Ok(expected.clone()));
    // It was flushed before anything else was asked.
    assert_eq!(server.state.lock().unwrap().committed[..1536], expected);
    server.die();
    assert_eq!(read(queue, 0, 1536), Ok(expected));
}

#[test]
fn without_a_cache_there_is_nothing_to_replay() {
    let server = Server::new(Manner {
        flags: ALL & !SEND_FLUSH,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    assert!(!disk.capabilities().flush);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
    assert_eq!(super::one(queue.as_mut(), Operation::Flush), Ok(()));
    server.cut();
    assert_eq!(read(queue.as_mut(), 0, 512), Ok(vec![1; 512]));
    let state = server.state.lock().unwrap();
    let commands: Vec<_> = state.seen.iter().map(|seen| seen.0).collect();
    assert_eq!(commands, [CMD_WRITE, CMD_READ]);
}

#[test]
fn the_journal_is_flushed_before_it_grows_too_large() {
    let server = Server::new(Manner {
        size: 64 << 20,
        odd: false,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    let mut queues = [disk.open_queue(8).unwrap(), disk.open_queue(8).unwrap()];
    for (mib, queue) in (0..40).zip([0, 1].into_iter().cycle()) {
        assert_eq!(
            write(queues[queue].as_mut(), mib << 20, vec![3; 1 << 20]),
            Ok(())
        );
    }
    let flushes = |commands: &[(u16, u16, u64, u32)]| {
        commands.iter().filter(|seen| seen.0 == CMD_FLUSH).count()
    };
    let seen = server.state.lock().unwrap().seen.clone();
    assert!(
        (3..=5).contains(&flushes(&seen)),
        "{} flushes",
        flushes(&seen)
    );
    server.die();
    let replayed = seen.len();
    for mib in 0..40 {
        assert_eq!(
            read(queues[0].as_mut(), mib << 20, 512),
            Ok(vec![3; 512]),
            "at {mib} MiB"
        );
    }
    let seen = server.state.lock().unwrap().seen[replayed..].to_vec();
    let writes = seen.iter().filter(|seen| seen.0 == CMD_WRITE).count();
    assert!((1..=16).contains(&writes), "{writes} MiB replayed");
}

#[test]
fn a_flush_that_nobody_looks_for_keeps_no_other_queue() {
    let server = Server::new(Manner {
        size: 64 << 20,
        odd: false,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    let mut queues = [disk.open_queue(8).unwrap(), disk.open_queue(32).unwrap()];
    for mib in 0..9 {
        let bytes = vec![3; 1 << 20];
        assert_eq!(write(queues[0].as_mut(), mib << 20, bytes), Ok(()));
    }
    // The first queue has its flush on the way, and its user has nothing more for it.
    for tag in 0..24 {
        let buffer = Buffer::from(vec![5; 1 << 20]);
        let offset = (9 + tag) << 20;
        let operation = Operation::Write { offset, buffer };
        queues[1].submit(Request { tag, operation });
    }
    let mut done = Vec::new();
    queues[1].drain(super::PATIENCE, &mut done).unwrap();
    assert_eq!(done.len(), 24);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn writes_that_wait_for_room_do_not_keep_the_flush_that_makes_it() {
    let size = 64 << 20;
    let server = Server::new(Manner {
        size,
        odd: false,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    let mut queues = [disk.open_queue(64).unwrap(), disk.open_queue(64).unwrap()];
    for tag in 0..64 {
        let buffer = Buffer::from(vec![5; 1 << 20]);
        let offset = tag << 20;
        let operation = Operation::Write { offset, buffer };
        let queue = usize::from(tag % 2 == 1);
        queues[queue].submit(Request { tag, operation });
    }
    std::thread::scope(|scope| {
        for queue in &mut queues {
            scope.spawn(|| {
                let mut done = Vec::new();
                queue.drain(super::PATIENCE, &mut done).unwrap();
                assert!(done.iter().all(|completion| completion.result.is_ok()));
                assert_eq!(done.len(), 32);
            });
        }
    });
    let state = server.state.lock().unwrap();
    assert!(state.cached.iter().all(|byte| *byte == 5));
}

#[test]
fn a_flush_of_our_own_that_fails_is_made_good() {
    let server = Server::new(Manner {
        size: 16 << 20,
        odd: false,
        ..Manner::default()
    });
    let disk = open(&options(&server.uri()));
    let mut queue = disk.open_queue(8).unwrap();
    server.fail(CMD_FLUSH, 5);
    for mib in 0..12 {
        assert_eq!(write(queue.as_mut(), mib << 20, vec![4; 1 << 20]), Ok(()));
    }
    assert_eq!(super::one(queue.as_mut(), Operation::Flush), Ok(()));
    let state = server.state.lock().unwrap();
    assert!(state.errors.is_empty(), "the flush failed");
    assert!(state.committed[..12 << 20].iter().all(|byte| *byte == 4));
    assert_eq!(state.connections, 2);
}

#[test]
fn after_a_flush_that_failed_the_next_one_can_be_believed() {
    let server = Server::new(Manner::default());
    let disk = open(&options(&server.uri()));
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![6; 512]), Ok(()));
    server.fail(CMD_FLUSH, 5);
    let flush = super::one(queue.as_mut(), Operation::Flush);
    assert_eq!(flush, Err(IoError::Os(libc::EIO)));
    // As a kernel forgets what it could not write.
    {
        let mut state = server.state.lock().unwrap();
        state.cached = state.committed.clone();
    }
    assert_eq!(super::one(queue.as_mut(), Operation::Flush), Ok(()));
    let state = server.state.lock().unwrap();
    assert!(state.committed[..512].iter().all(|byte| *byte == 6));
}

#[test]
fn errors_are_the_requests() {
    for structured in [false, true] {
        let server = Server::new(Manner {
            structured,
            ..Manner::default()
        });
        let disk = open(&options(&server.uri()));
        let mut queue = disk.open_queue(8).unwrap();
        for (error, expected) in [
            (28, IoError::Os(libc::ENOSPC)),
            (5, IoError::Os(libc::EIO)),
            (1, IoError::Os(libc::EPERM)),
            (95, IoError::Unsupported),
            (22, IoError::Os(libc::EIO)),
            (4711, IoError::Os(libc::EIO)),
        ] {
            server.fail(CMD_WRITE, error);
            server.fail(CMD_READ, error);
            assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Err(expected));
            assert_eq!(read(queue.as_mut(), 0, 512), Err(expected));
        }
        assert_eq!(server.state.lock().unwrap().connections, 1);
        // ESHUTDOWN: the server goes down, and somebody else may come.
        server.fail(CMD_WRITE, 108);
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
        assert_eq!(server.state.lock().unwrap().connections, 2);
    }
}

#[test]
fn a_server_that_stays_away_is_given_up() {
    let server = Server::new(Manner::default());
    let mut quick = options(&server.uri());
    quick.reconnect_deadline = Duration::from_millis(300);
    let disk = open(&quick);
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
    server.away.store(true, Ordering::Release);
    server.die();
    let start = Instant::now();
    assert_eq!(write(queue.as_mut(), 512, vec![2; 512]), Err(TIMED_OUT));
    assert!(start.elapsed() >= Duration::from_millis(300));
    let start = Instant::now();
    assert_eq!(read(queue.as_mut(), 0, 512), Err(TIMED_OUT));
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "what comes later does not wait"
    );
    server.away.store(false, Ordering::Release);
    let end = start + super::PATIENCE;
    while let Err(error) = read(queue.as_mut(), 0, 512) {
        assert_eq!(error, TIMED_OUT);
        assert!(Instant::now() < end, "the server is not found again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        read(queue.as_mut(), 0, 512),
        Ok(vec![1; 512]),
        "it was acknowledged"
    );
}

#[test]
fn another_export_is_not_taken_for_the_one_that_went() {
    let server = Server::new(Manner::default());
    let mut quick = options(&server.uri());
    quick.reconnect_deadline = Duration::from_millis(300);
    let disk = open(&quick);
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
    server.manner.lock().unwrap().size = 1 << 19;
    server.die();
    assert_eq!(read(queue.as_mut(), 0, 512), Err(TIMED_OUT));
    assert_eq!(
        server.state.lock().unwrap().seen.len(),
        1,
        "nothing was asked of it"
    );
    *server.manner.lock().unwrap() = Manner::default();
    let end = Instant::now() + super::PATIENCE;
    while read(queue.as_mut(), 0, 512) != Ok(vec![1; 512]) {
        assert!(Instant::now() < end, "the export is not found again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_queue_waits_for_what_its_user_watches_too() {
    let server = Server::new(Manner::default());
    let disk = open(&options(&server.uri()));
    let mut queue = disk.open_queue(8).unwrap();
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    assert_eq!(queue.watch(crate::fd::borrow(&event)).ok(), Some(true));
    let buffer = Buffer::zeroed(512);
    queue.submit(Request {
        tag: 1,
        operation: Operation::Read { offset: 0, buffer },
    });
    let mut done = Vec::new();
    let end = Instant::now() + super::PATIENCE;
    while done.is_empty() {
        assert!(!queue.wait(Some(super::PATIENCE)), "nobody rang");
        assert!(Instant::now() < end);
        queue.reap(&mut done);
    }
    event.write(1).unwrap();
    assert!(queue.wait(Some(super::PATIENCE)));
    assert!(
        queue.wait(Some(super::PATIENCE)),
        "as long as it is readable"
    );
    event.read().unwrap();
    assert!(!queue.wait(Some(Duration::ZERO)));
}

#[test]
fn a_queue_leaves_its_connection_to_the_next() {
    let server = Server::new(Manner::default());
    let disk: NbdDisk = open(&options(&server.uri()));
    for _ in 0..3 {
        let mut queue = disk.open_queue(8).unwrap();
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
    }
    assert_eq!(server.state.lock().unwrap().connections, 1);
    let mut load = Load::new(0, 1, (1 << 20) / BLOCK);
    let mut queue = disk.open_queue(8).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![0; 512]), Ok(()));
    load.run(queue.as_mut(), 8, |count| count > 100);
    drop(queue);
    load.verify(&disk);
}
