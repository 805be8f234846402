//! How it is noticed that a replica does not answer, or not everything.

use std::time::{Duration, Instant};

use super::super::session::{Ask, Session};
use super::*;

const PATIENCE: Duration = Duration::from_secs(8);

/// A replica, and a connection to it whose time the test tells, in milliseconds.
fn connect() -> (Replica, Session) {
    let mut replica = Replica::new(0, 1 << 16, Mode::ReadWrite);
    let socket = replica.connect();
    let session = Session::new(Arc::clone(&replica.member), socket);
    (replica, session)
}

fn ask(session: &mut Session, request: u32, now: u64) {
    assert!(session.ask(request, Ask::Read(Buffer::zeroed(512)), 0, now));
    session.link().send().expect("room for it");
}

/// The requests that were answered.
fn receive(session: &mut Session, now: u64) -> Vec<u32> {
    let mut answers = Vec::new();
    session.receive(now, &mut answers).expect("a connection");
    answers.iter().map(|answer| answer.request).collect()
}

#[test]
fn a_replica_that_answers_nothing_is_silent() {
    let (mut replica, mut session) = connect();
    assert_eq!(replica.member.silence(100_000, PATIENCE), None);
    ask(&mut session, 1, 100_000);
    assert_eq!(replica.member.silence(108_000, PATIENCE), None);
    let reason = replica.member.silence(108_001, PATIENCE);
    assert_eq!(reason.as_deref(), Some("it has not answered for 8 s"));
    assert!(replica.answer(0, Manner::Well));
    assert_eq!(receive(&mut session, 108_500), [1]);
    assert_eq!(replica.member.silence(200_000, PATIENCE), None);
}

#[test]
fn a_request_that_is_not_answered_while_others_are_is_missed() {
    let (mut replica, mut session) = connect();
    ask(&mut session, 1, 500);
    for second in 1..=32 {
        let now = second * 1000;
        ask(&mut session, 2, now);
        assert!(replica.answer(1, Manner::Well));
        assert_eq!(receive(&mut session, now), [2]);
        assert_eq!(replica.member.silence(now, PATIENCE), None);
    }
    let reason = replica.member.silence(33_001, PATIENCE).expect("a reason");
    assert!(reason.contains("a request for 32 s"), "{reason}");
    // The last one has more time.
    assert_eq!(replica.member.silence(33_001, 2 * PATIENCE), None);
    // A slow one that answers what it was asked first is not left.
    ask(&mut session, 3, 33_000);
    assert!(replica.answer(0, Manner::Well));
    assert_eq!(receive(&mut session, 33_000), [1]);
    assert_eq!(replica.member.silence(41_000, PATIENCE), None);
}

#[test]
fn an_answer_whose_end_does_not_come_is_waited_for_no_longer_than_any() {
    let (mut replica, mut session) = connect();
    ask(&mut session, 1, 0);
    ask(&mut session, 2, 0);
    assert!(replica.answer(0, Manner::Well));
    let Pending {
        connection, header, ..
    } = replica.pending.remove(0);
    let header = Header {
        kind: Kind::Response,
        payload: header.size,
        ..header
    };
    let begun = [&header.encode()[..], &[0; 100]].concat();
    replica.send(connection, &begun);
    assert_eq!(receive(&mut session, 1000), [1]);
    assert!(session.owes());
    assert!(replica.member.silence(9001, PATIENCE).is_some());
    replica.send(connection, &[0; 412]);
    assert_eq!(receive(&mut session, 2000), [2]);
    assert_eq!(replica.member.silence(100_000, PATIENCE), None);
}

#[test]
fn a_queue_that_watches_over_itself_wakes_whoever_waits_for_it() {
    let mut bench = Bench::new(2, 1, 1 << 16);
    bench.queues[0]
        .watch_over(Duration::from_millis(80))
        .expect("a timer");
    let queue = &mut bench.queues[0];
    let operation = write(0, 1, 512);
    queue.submit(Request { tag: 1, operation });
    queue.kick();
    // The other has the write.
    assert!(bench.replicas[0].answer(0, Manner::Well));
    let mut done = Vec::new();
    let since = Instant::now();
    while done.is_empty() {
        assert!(since.elapsed() < Duration::from_secs(30), "it sleeps");
        crate::fd::wait_readable(queue.completion_event(), since + PATIENCE).expect("polls");
        queue.reap(&mut done);
    }
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(bench.modes(), [Mode::ReadWrite, Mode::Failed]);
    // One that answers is not left, and nobody is woken up for one who is asked for nothing.
    let operation = read(0, 512).0;
    assert_eq!(bench.run(0, operation), Ok(()));
    std::thread::sleep(Duration::from_millis(20));
    let queue = &mut bench.queues[0];
    queue.reap(&mut Vec::new());
    assert!(!crate::fd::is_readable(queue.completion_event()));
    std::thread::sleep(Duration::from_millis(30));
    assert!(!crate::fd::is_readable(queue.completion_event()));
    assert_eq!(bench.modes(), [Mode::ReadWrite, Mode::Failed]);
}
