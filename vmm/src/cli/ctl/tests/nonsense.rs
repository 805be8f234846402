//! Servers that are none, or are broken: each gets a clear error, in time.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::json;

use super::fake::{Fake, answer, ctl};
use crate::cli::Status;

#[test]
fn what_is_no_answer() {
    let not_http = "does not answer as Paddock's API does";
    for (bytes, told) in [
        (
            &b""[..],
            "the connection ended before the answer was complete",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", not_http),
        (b"\0\xff\r\n\r\n", not_http),
        (
            b"HTTP/1.1 200 OK\r\nContent-Len",
            "the connection ended before",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[",
            "the connection ended before",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", not_http),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
            "not UTF-8",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "its answer is not understood",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "its answer is not understood",
        ),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
            "HTTP status 502 Bad Gateway, and gives no reason",
        ),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
            "HTTP status 301",
        ),
    ] {
        for words in ["vm show", "disks remove a", "jobs wait 1"] {
            let done = Fake::script(vec![bytes.to_vec()]).ctl(words);
            let error = done.error();
            let shown = String::from_utf8_lossy(bytes);
            assert!(error.contains(told), "{words}, {shown:?}: {error}");
            assert!(error.contains("api.sock: "), "it names the socket: {error}");
            assert_eq!(done.result.unwrap_err().status(), Status::Error);
        }
    }
}

#[test]
fn a_refusal_that_comes_before_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let problem = json!({"detail": "the API serves the user of its process, and root", "code": "forbidden"});
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(&answer(403, &problem));
            // To the end of the client, which gets what was sent.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    for _ in 0..20 {
        for words in [&["vm", "show"][..], &["balloon", "set", "1G"], &["events"]] {
            let done = ctl(&[&["--api-socket", socket.to_str().unwrap()], words].concat());
            assert_eq!(
                done.error(),
                "the API serves the user of its process, and root (forbidden)"
            );
        }
    }
}

#[test]
fn streams_that_are_none() {
    for (bytes, told) in [
        (answer(200, &json!([])), "it has no stream of events"),
        (
            answer(
                400,
                &json!({"detail": "no such number", "code": "invalid-parameter"}),
            ),
            "no such number (invalid-parameter)",
        ),
        (
            super::fake::stream("id: 1\nevent: state\ndata: {\n\n"),
            "an event's data is not JSON",
        ),
        (
            super::fake::stream(&"data: x".repeat(1 << 18)),
            "an event is larger than 1 MiB",
        ),
        (
            super::fake::stream(&"data: x\n".repeat(1 << 20)),
            "an event is larger than 1 MiB",
        ),
    ] {
        let error = Fake::script(vec![bytes]).ctl("events --after 0").error();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_gap_that_is_none() {
    for data in ["[1]", "1", "\"x\"", "null", "true"] {
        for words in ["events", "events --json", "events --after 0"] {
            let gap = format!("id: 4\nevent: gap\ndata: {data}\n\n");
            let done = Fake::script(vec![super::fake::stream(&gap)]).ctl(words);
            let error = done.error();
            let told = "does not answer as Paddock's API does: a gap's data is no object";
            assert!(error.ends_with(told), "{words}, {data}: {error}");
            assert_eq!(done.printed, "", "{words}, {data}");
        }
    }
}

#[test]
fn answers_have_an_end() {
    let fake = Fake::with(|_, _, mut stream| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let mut sent = stream.write_all(head.as_bytes());
        while sent.is_ok() {
            sent = stream.write_all(chunk.as_bytes());
        }
    });
    let error = fake.ctl("vm show").error();
    assert!(error.contains("larger than 16 MiB"), "{error}");
    let fake = Fake::with(|_, _, mut stream| {
        let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while sent.is_ok() {
            sent = stream.write_all(b"Name: value\r\n");
        }
    });
    let error = fake.ctl("vm show").error();
    assert!(error.contains("does not answer as"), "{error}");
}

#[test]
fn silence_has_an_end() {
    let started = Instant::now();
    // Accepts, and says nothing; says something, and then nothing.
    for beginning in ["", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n["] {
        let fake = Fake::with(move |_, _, mut stream| {
            stream.write_all(beginning.as_bytes()).unwrap();
            std::mem::forget(stream);
        });
        let error = fake.ctl("vm show --timeout 1").error();
        assert!(
            error.contains("no answer within 1s; --timeout gives it longer"),
            "{error}"
        );
    }
    // Does not even accept: its queue is full.
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let words = ["vm", "show", "--timeout", "1", "--api-socket"];
    let error = ctl(&[&words[..], &[socket.to_str().unwrap()]].concat()).error();
    assert!(error.contains("accepts no connection"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
