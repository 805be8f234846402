//! What clients do to each other: nothing.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use paddock_api::resource::{EventKind, VmState};
use paddock_api::server::Limits;

use super::harness::{Client, Harness, JSON, LONG, SPEC};

const SHORT: Duration = Duration::from_millis(200);

/// A client that follows the events, at the beginning of the stream.
fn follower(server: &Harness) -> Client {
    let mut client = server.connect();
    client.send("GET", "/api/v1/events", "", b"");
    assert_eq!(client.head().status, 200);
    client
}

#[test]
fn two_hundred_idle_clients() {
    let server = Harness::start();
    let mut idle: Vec<Client> = (0..200).map(|_| server.connect()).collect();
    assert_eq!(server.put(SPEC).status, 201);
    // Whoever came first has made room; whoever came last is still welcome.
    assert!(idle[0].rest().is_empty());
    let last = idle.last_mut().unwrap();
    last.send("GET", "/api/v1/vm", "", b"");
    assert_eq!(last.answer().status, 200);
}

#[test]
fn where_all_are_being_served_another_is_told_so() {
    let server = Harness::with(Limits {
        connections: 3,
        followers: 3,
        ..Limits::default()
    });
    let mut followers = [(); 3].map(|()| follower(&server));
    // Before it has said anything, and after it has.
    let mut client = server.connect();
    let refused = client.answer();
    assert_eq!(refused.refusal(), (503, "too-many-connections".to_owned()));
    server.document.check("GET", "/api/v1/vm", &refused);
    for _ in 0..10 {
        assert_eq!(server.get("/api/v1/vm").status, 503);
    }
    assert!(client.rest().is_empty());
    // One goes.
    followers[1]
        .stream
        .get_mut()
        .shutdown(Shutdown::Both)
        .unwrap();
    server.fake.publish(EventKind::Deleted);
    eventually(|| {
        let mut client = server.connect();
        let _ = client.try_write(b"GET /api/v1/vm HTTP/1.1\r\nHost: a\r\n\r\n");
        client.head().status == 404
    });
}

#[test]
fn those_who_follow_the_events_leave_room_for_others() {
    let server = Harness::with(Limits {
        followers: 2,
        ..Limits::default()
    });
    let followers = [(); 2].map(|()| follower(&server));
    let refused = server.get("/api/v1/events");
    assert_eq!(refused.refusal(), (503, "too-many-connections".to_owned()));
    drop(followers);
    eventually(|| {
        server.fake.publish(EventKind::Deleted);
        let mut client = server.connect();
        client.send("GET", "/api/v1/events", "", b"");
        client.head().status == 200
    });
}

#[test]
fn a_client_that_sends_no_more_gets_its_answer() {
    let server = Harness::start();
    let mut client = server.connect();
    client.send("PUT", "/api/v1/vm", JSON, SPEC.as_bytes());
    client.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().status, 201);
    assert!(client.rest().is_empty());

    // In the middle of a body.
    let mut client = server.connect();
    let headers = format!("{JSON}Content-Length: 100\r\n");
    client.send("PUT", "/api/v1/vm", &headers, b"");
    client.write(b"{");
    client.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    let answer = client.answer();
    assert_eq!(answer.refusal(), (400, "invalid-json".to_owned()));

    // In the middle of a head.
    let mut client = server.connect();
    client.write(b"GET /api");
    client.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    client.rest();
}

#[test]
fn idle_clients_and_half_heads_are_cut_in_time() {
    let server = Harness::with(Limits {
        idle: SHORT,
        ..Limits::default()
    });
    let start = Instant::now();
    let mut silent = server.connect();
    let mut half = server.connect();
    half.write(b"GET /api/v1/vm HT");
    let mut served = server.connect();
    served.send("GET", "/api/v1/vm", "", b"");
    assert_eq!(served.answer().status, 404);
    silent.rest();
    half.rest();
    served.rest();
    assert!(start.elapsed() >= SHORT && start.elapsed() < LONG);
    // Drop by drop is no way out.
    let mut slow = server.connect();
    let start = Instant::now();
    for byte in b"GET /api/v1/vm HTTP/1.1\r\nHost: a\r\nA: b\r\n"
        .iter()
        .cycle()
    {
        if slow.try_write(&[*byte]).is_err() {
            break;
        }
        assert!(start.elapsed() < LONG, "it is still being read");
        std::thread::sleep(SHORT / 10);
    }
}

#[test]
fn bodies_that_do_not_come() {
    let server = Harness::with(Limits {
        body: SHORT,
        ..Limits::default()
    });
    let headers = format!("{JSON}Content-Length: 100\r\n");
    let mut client = server.connect();
    client.send("PUT", "/api/v1/vm", &headers, b"");
    client.write(b"{\"boot\": {");
    let answer = client.answer();
    server.document.check("PUT", "/api/v1/vm", &answer);
    assert_eq!(answer.refusal(), (408, "body-timeout".to_owned()));
    client.rest();
}

#[test]
fn a_client_that_never_reads_its_events_is_cut() {
    let server = Harness::with(Limits {
        unread: SHORT,
        connections: 2,
        followers: 2,
        ..Limits::default()
    });
    let mut deaf = follower(&server);
    let mut hearing = follower(&server);
    let end = Instant::now() + LONG;
    let mut published = 0_u32;
    // More than the socket holds; another follower gets all of it, and nobody waits.
    let cut = loop {
        assert!(Instant::now() < end, "it is still served");
        for _ in 0..50 {
            server.fake.publish(EventKind::Deleted);
        }
        published += 50;
        let mut got = 0;
        while got < 50 {
            let line = hearing.line().unwrap();
            got += u32::from(line.starts_with("event: deleted"));
            assert!(!line.starts_with("event: gap"), "{line}");
        }
        // Both places are taken until the deaf one has lost its own.
        let mut client = server.connect();
        let _ = client.try_write(b"GET /api/v1/vm HTTP/1.1\r\nHost: a\r\n\r\n");
        if client.head().status == 404 {
            break published;
        }
    };
    assert!(cut > 100, "it was cut after {cut} events");
    let rest = deaf.rest();
    assert!(
        rest.len() < 1 << 20,
        "{} bytes were kept for it",
        rest.len()
    );
}

#[test]
fn a_client_that_does_not_wait_for_its_delete() {
    let server = Harness::start();
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    let mut client = server.connect();
    client.send("DELETE", "/api/v1/vm", "", b"");
    drop(client);
    eventually(|| server.get("/api/v1/vm").status == 404);
}

/// Waits for something that is bound to happen.
#[track_caller]
fn eventually(mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !happened() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
