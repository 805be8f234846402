//! The stream of events: where it begins, what it holds, how it ends.

use std::time::Duration;

use paddock_api::resource::{EndReason, EventKind, VmEnd, VmState};
use paddock_api::server::Limits;
use serde_json::{Value, json};

use super::harness::{Client, Harness, SPEC};

/// A server-sent event.
#[derive(Debug)]
struct Sent {
    id: u64,
    name: String,
    data: Value,
}

struct Stream<'a> {
    client: Client,
    server: &'a Harness,
}

impl<'a> Stream<'a> {
    fn open(server: &'a Harness, query: &str, headers: &str) -> Self {
        let mut client = server.connect();
        let target = format!("/api/v1/events{query}");
        client.send("GET", &target, headers, b"");
        let head = client.head();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("cache-control"), Some("no-cache"));
        server.document.check("GET", &target, &head);
        Self { client, server }
    }

    /// The next line of the stream itself, `None` at its end. What is sent is in chunks, each of which ends with an empty line.
    fn line(&mut self) -> Option<String> {
        let is_size = |line: &str| !line.is_empty() && u32::from_str_radix(line, 16).is_ok();
        loop {
            let line = self.client.line()?;
            if line == "0" {
                return None;
            }
            if !is_size(&line) {
                return Some(line);
            }
        }
    }

    /// The next event, which is as the document says.
    fn next(&mut self) -> Option<Sent> {
        let (mut id, mut name) = (None, None);
        loop {
            let line = self.line()?;
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.parse().unwrap());
            } else if let Some(text) = line.strip_prefix("event: ") {
                name = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(text).unwrap();
                let name = name.take().unwrap();
                let component = if name == "gap" { "Gap" } else { "Event" };
                self.server.document.check_component(component, &data);
                let id = id.take().unwrap();
                return Some(Sent { id, name, data });
            }
            if id.is_some() && name.is_some() {
                // Both come before the data.
                continue;
            }
        }
    }

    /// The numbers and names of the next ones.
    fn take(&mut self, count: usize) -> Vec<(u64, String)> {
        (0..count)
            .map(|_| self.next().unwrap())
            .map(|sent| (sent.id, sent.name))
            .collect()
    }
}

fn numbered(events: &[(u64, &str)]) -> Vec<(u64, String)> {
    events
        .iter()
        .map(|(n, name)| (*n, (*name).to_owned()))
        .collect()
}

#[test]
fn a_vm_from_its_beginning_to_its_end() {
    let server = Harness::start();
    let mut stream = Stream::open(&server, "", "");
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    server.post("power-button");
    let mut end = VmEnd::new(EndReason::Crashed);
    end.detail = Some("line 1\nline 2\r\n: data".to_owned());
    server.fake.ends(end);
    server.delete();
    let sent = stream.next().unwrap();
    assert_eq!((sent.id, &*sent.name), (1, "created"));
    assert_eq!(sent.data["name"], "web");
    assert!(sent.data["time_ms"].as_u64().unwrap() > 1_700_000_000_000);
    let sent = stream.next().unwrap();
    assert_eq!((sent.id, &sent.data["state"]), (2, &json!("running")));
    let sent = stream.next().unwrap();
    assert_eq!((sent.id, &sent.data["action"]), (3, &json!("power-button")));
    let sent = stream.next().unwrap();
    assert_eq!(
        (sent.id, &sent.data["end"]["reason"]),
        (4, &json!("crashed"))
    );
    assert_eq!(sent.data["end"]["detail"], "line 1\nline 2\r\n: data");
    let sent = stream.next().unwrap();
    assert_eq!((sent.id, &*sent.name), (5, "deleted"));
}

#[test]
fn a_job_tells_how_much_of_it_is_done() {
    let server = Harness::start();
    server.put(r#"{"boot": {"kernel": "/k"}, "cpus": {"count": 1, "max": 3}}"#);
    server.fake.is_now(VmState::Running);
    let mut stream = Stream::open(&server, "", "");
    let answer = server.send("PUT", "/api/v1/vm/cpus", r#"{"wanted": 3}"#);
    assert_eq!(answer.status, 202);
    // The same twice is no event.
    for done in [1, 1, 2] {
        server.fake.count_resize(done);
    }
    server.fake.finish_resize();
    for (done, state) in [
        (0, "running"),
        (1, "running"),
        (2, "running"),
        (2, "succeeded"),
    ] {
        let sent = stream.next().unwrap();
        let job = &sent.data["job"];
        assert_eq!((&*sent.name, &job["state"]), ("job", &json!(state)));
        assert_eq!(job["progress"], json!({"done": done, "total": 2}));
    }
}

#[test]
fn a_stream_goes_on_where_another_ended() {
    let server = Harness::start();
    server.put(SPEC);
    for state in [VmState::Running, VmState::Resetting, VmState::Running] {
        server.fake.is_now(state);
    }
    let all = [(1, "created"), (2, "state"), (3, "state"), (4, "state")];
    for (query, headers, rest) in [
        ("?after=0", "", &all[..]),
        ("?after=2", "", &all[2..]),
        ("", "Last-Event-ID: 3\r\n", &all[3..]),
        // The URL is the old one when a client reconnects by itself.
        ("?after=0", "Last-Event-ID: 3\r\n", &all[3..]),
    ] {
        let mut stream = Stream::open(&server, query, headers);
        assert_eq!(stream.take(rest.len()), numbered(rest), "{query} {headers}");
    }
    // What a client reads tells it where to begin.
    let after = server.get("/api/v1/vm").json()["last_event"].clone();
    server.delete();
    let mut stream = Stream::open(&server, &format!("?after={after}"), "");
    assert_eq!(stream.take(1), numbered(&[(5, "deleted")]));
}

#[test]
fn history_that_is_lost_is_told() {
    let server = Harness::start();
    for _ in 0..600 {
        server.fake.publish(EventKind::Deleted);
    }
    let mut stream = Stream::open(&server, "?after=10", "");
    let gap = stream.next().unwrap();
    assert_eq!((gap.id, &*gap.name), (88, "gap"));
    assert_eq!(gap.data, json!({"lost": 78}));
    assert_eq!(stream.take(1), numbered(&[(89, "deleted")]));

    // The number is that of a process before this one.
    let mut stream = Stream::open(&server, "", "Last-Event-ID: 7000\r\n");
    let gap = stream.next().unwrap();
    assert_eq!((gap.id, &*gap.name), (88, "gap"));
    assert_eq!(gap.data, json!({"lost": null}));
    assert_eq!(stream.take(1), numbered(&[(89, "deleted")]));
}

#[test]
fn a_stream_shows_that_it_lives() {
    let server = Harness::with(Limits {
        keep_alive: Duration::from_millis(50),
        // What follows is no idle client.
        idle: Duration::from_millis(100),
        ..Limits::default()
    });
    let mut stream = Stream::open(&server, "", "");
    let mut signs = 0;
    while signs < 6 {
        signs += u32::from(stream.line().unwrap().starts_with(':'));
    }
    server.fake.publish(EventKind::Deleted);
    assert_eq!(stream.take(1), numbered(&[(1, "deleted")]));
}

#[test]
fn a_stream_ends_with_the_server_after_the_last_event() {
    let mut server = Harness::start();
    server.put(SPEC);
    let client = {
        let stream = Stream::open(&server, "?after=0", "");
        stream.client
    };
    server.fake.ends(VmEnd::new(EndReason::PoweredOff));
    server.end();
    let mut stream = Stream {
        client,
        server: &server,
    };
    assert_eq!(stream.take(2), numbered(&[(1, "created"), (2, "ended")]));
    assert!(stream.next().is_none());
    server.join();
}
