//! A guest that is reset while the server is away or stuck: it is not waited for, and nothing of what it wanted is done later.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::server::{ALL, Manner, Server};
use super::{open, options, read, write};
use crate::nbd::protocol::{CAN_MULTI_CONN, CMD_FLUSH, CMD_READ, CMD_WRITE};
use crate::{Buffer, Disk, DiskQueue, IoError, Operation, Request};

const CANCELED: Result<(), IoError> = Err(IoError::Os(libc::ECANCELED));

/// Far less than requests wait for a server.
const SOON: Duration = Duration::from_secs(20);

/// With a connection for each queue, and with one for all.
const BOTH: [u16; 2] = [ALL, ALL & !CAN_MULTI_CONN];

fn server(flags: u16, size: u64) -> Server {
    Server::new(Manner {
        size,
        flags,
        odd: false,
        ..Manner::default()
    })
}

fn submit_write(queue: &mut dyn DiskQueue, tag: u64, offset: u64, length: usize) {
    let buffer = Buffer::from(vec![9; length]);
    let operation = Operation::Write { offset, buffer };
    queue.submit(Request { tag, operation });
    queue.kick();
}

/// What all in flight came to, by tag: each once.
fn results(queue: &mut dyn DiskQueue) -> Vec<(u64, Result<(), IoError>)> {
    let mut done = Vec::new();
    queue.drain(SOON, &mut done).expect("nobody is waited for");
    let mut results: Vec<_> = done
        .into_iter()
        .map(|done| (done.tag, done.result))
        .collect();
    results.sort_unstable_by_key(|(tag, _)| *tag);
    results
}

#[test]
fn a_server_that_is_away_is_not_waited_for() {
    for flags in BOTH {
        let server = server(flags, 1 << 20);
        let disk = open(&options(&server.uri()));
        let mut queue = disk.open_queue(8).unwrap();
        let mut other = disk.open_queue(8).unwrap();
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
        assert_eq!(write(other.as_mut(), 512, vec![2; 512]), Ok(()));
        server.away.store(true, Ordering::Release);
        // It may have the first when it dies, and the others come when it is away.
        let mut stuck = server.state.lock().unwrap();
        submit_write(queue.as_mut(), 1, 1024, 512);
        stuck.die();
        drop(stuck);
        submit_write(queue.as_mut(), 2, 2048, 512);
        submit_write(queue.as_mut(), 3, 4096, 300 << 10);
        let operation = Operation::Flush;
        queue.submit(Request { tag: 4, operation });
        queue.kick();
        submit_write(other.as_mut(), 1, 8192, 512);
        queue.abandon();
        submit_write(queue.as_mut(), 5, 2048, 512);
        let all: Vec<_> = (1..=5).map(|tag| (tag, CANCELED)).collect();
        assert_eq!(results(queue.as_mut()), all);
        assert_eq!(queue.in_flight(), 0);

        let before = server.state.lock().unwrap().seen.len();
        server.away.store(false, Ordering::Release);
        // What nobody abandoned is done, and what was acknowledged is there.
        assert_eq!(results(other.as_mut()), [(1, Ok(()))]);
        drop(queue);
        let mut queue = disk.open_queue(8).unwrap();
        let expected = [[1; 512], [2; 512], [0; 512]].concat();
        assert_eq!(read(queue.as_mut(), 0, 1536), Ok(expected));
        let seen = server.state.lock().unwrap().seen[before..].to_vec();
        let seen: Vec<_> = seen.iter().map(|seen| (seen.0, seen.2)).collect();
        let replayed = [(CMD_WRITE, 0), (CMD_WRITE, 512), (CMD_FLUSH, 0)];
        assert_eq!(seen[..3], replayed);
        assert_eq!(seen[3..], [(CMD_WRITE, 8192), (CMD_READ, 0)]);
    }
}

#[test]
fn what_the_server_has_is_not_sent_again() {
    for flags in BOTH {
        let server = server(flags, 1 << 20);
        let disk = open(&options(&server.uri()));
        let mut queue = disk.open_queue(8).unwrap();
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
        let mut stuck = server.state.lock().unwrap();
        submit_write(queue.as_mut(), 1, 1024, 512);
        queue.abandon();
        let mut done = Vec::new();
        if flags & CAN_MULTI_CONN != 0 {
            queue.reap(&mut done);
            assert!(done.is_empty(), "the server may yet do it");
        }
        stuck.die();
        drop(stuck);
        assert_eq!(results(queue.as_mut()), [(1, CANCELED)]);
        drop(queue);
        let mut queue = disk.open_queue(8).unwrap();
        let expected = [[1; 512], [0; 512], [0; 512]].concat();
        assert_eq!(read(queue.as_mut(), 0, 1536), Ok(expected));
    }
}

#[test]
fn what_the_socket_has_not_taken_is_never_sent() {
    const LENGTH: usize = 64 << 10;
    for flags in BOTH {
        let server = server(flags, 8 << 20);
        let disk = open(&options(&server.uri()));
        let mut queue = disk.open_queue(128).unwrap();
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
        let before = server.state.lock().unwrap().seen.len();
        let stuck = server.state.lock().unwrap();
        for tag in 0..128 {
            submit_write(queue.as_mut(), tag, tag * LENGTH as u64, LENGTH);
        }
        queue.abandon();
        drop(stuck);
        let results = results(queue.as_mut());
        assert!(results.iter().map(|(tag, _)| *tag).eq(0..128), "each once");
        let done = results.iter().filter(|(_, result)| result.is_ok()).count();
        let canceled = results.iter().filter(|(_, result)| *result == CANCELED);
        assert_eq!(canceled.count(), 128 - done);
        assert!(done < 128, "a socket that takes 8 MiB at once");
        assert!(done > 0 || flags & CAN_MULTI_CONN == 0, "it has some");
        // The connection is as good as before.
        drop(queue);
        let mut queue = disk.open_queue(8).unwrap();
        assert_eq!(read(queue.as_mut(), 8 << 19, 512).map(|_| ()), Ok(()));
        let state = server.state.lock().unwrap();
        assert_eq!(state.seen.len(), before + done + 1);
        assert_eq!(state.connections, 1);
    }
}

#[test]
fn a_queue_that_is_dropped_leaves_nothing_to_be_sent() {
    for flags in BOTH {
        let server = server(flags, 1 << 20);
        let disk = open(&options(&server.uri()));
        let mut queue = disk.open_queue(8).unwrap();
        assert_eq!(write(queue.as_mut(), 0, vec![1; 512]), Ok(()));
        server.away.store(true, Ordering::Release);
        server.die();
        submit_write(queue.as_mut(), 1, 1024, 512);
        drop(queue);
        server.away.store(false, Ordering::Release);
        let mut queue = disk.open_queue(8).unwrap();
        let expected = [[1; 512], [0; 512], [0; 512]].concat();
        assert_eq!(read(queue.as_mut(), 0, 1536), Ok(expected));
    }
}
