//! Metrics: the service's, with those of jobs and events.

use paddock_api::metrics::Snapshot;
use paddock_api::resource::VmState;

use super::harness::{Harness, SPEC};

#[track_caller]
fn read(server: &Harness) -> Snapshot {
    let answer = server.get("/api/v1/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = String::from_utf8(answer.body).unwrap();
    Snapshot::parse(&text).unwrap()
}

#[test]
fn with_and_without_a_vm() {
    let server = Harness::start();
    let none = read(&server);
    assert_eq!(none.value("paddock_events_total", &[]), Some(0.0));
    assert_eq!(none.value("fake_vm", &[("name", "web")]), None);
    server.put(SPEC);
    let some = read(&server);
    assert_eq!(some.value("fake_vm", &[("name", "web")]), Some(1.0));
    assert_eq!(some.value("paddock_events_total", &[]), Some(1.0));
    server.delete();
    assert_eq!(read(&server).value("fake_vm", &[("name", "web")]), None);
}

#[test]
fn where_prometheus_looks() {
    let server = Harness::start();
    let mut client = server.connect();
    client.send("GET", "/metrics", "", b"");
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body).unwrap();
    assert_eq!(Snapshot::parse(&text).unwrap(), read(&server));
    client.send("HEAD", "/metrics", "", b"");
    let head = client.head();
    assert_eq!(
        head.header("content-length"),
        Some(&*text.len().to_string())
    );
    assert_eq!(server.request("POST", "/metrics", "", b"").status, 405);
}

#[test]
fn jobs_by_their_state() {
    let server = Harness::start();
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    let add = |path: &str| {
        let disk = format!(r#"{{"path": "{path}"}}"#);
        let answer = server.send("POST", "/api/v1/vm/disks", &disk);
        assert_eq!(answer.status, 202, "{answer:?}");
    };
    let tally = || {
        let metrics = read(&server);
        let ended = |state| metrics.value("paddock_jobs_ended_total", &[("state", state)]);
        let running = metrics.value("paddock_jobs_running", &[]);
        [
            running,
            ended("succeeded"),
            ended("failed"),
            ended("cancelled"),
        ]
        .map(Option::unwrap)
    };
    for path in ["a", "b", "c"] {
        add(path);
    }
    assert_eq!(tally(), [3.0, 0.0, 0.0, 0.0]);
    server.fake.finish_change();
    server.fake.fail_change("no such file");
    assert_eq!(tally(), [1.0, 1.0, 1.0, 0.0]);
}

#[test]
fn the_vm_has_a_timeline() {
    let server = Harness::start();
    let timeline = server.put(SPEC).json()["timeline"].clone();
    assert_eq!(timeline["vm_created_us"], 7);
    assert!(timeline.get("init_up_us").is_none(), "{timeline}");
}
