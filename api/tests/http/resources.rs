//! What each path does when all is well.

use paddock_api::resource::{EndReason, VmEnd, VmState};
use serde_json::json;

use super::harness::{Harness, SPEC};

#[test]
fn the_life_of_a_vm() {
    let server = Harness::start();
    let created = server.put(SPEC);
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), Some("/api/v1/vm"));
    let vm = created.json();
    assert_eq!(vm["state"], "starting");
    assert_eq!(vm["spec"]["name"], "web");
    assert_eq!(vm["spec"]["memory"]["size"], "512MiB", "defaults are told");
    assert_eq!(vm["spec"]["console"]["serial"], "off");
    assert_eq!(vm["last_event"], 1);

    server.fake.is_now(VmState::Running);
    for action in ["power-button", "reset", "nmi"] {
        let done = server.post(action);
        assert_eq!((done.status, done.body.len()), (202, 0), "{action}");
    }
    let vm = server.get("/api/v1/vm").json();
    assert_eq!(vm["state"], "running");
    assert_eq!(vm["last_event"], 5);
    assert!(vm.get("end").is_none(), "{vm}");

    server.fake.ends(VmEnd {
        reason: EndReason::Failed,
        detail: Some("no such file".to_owned()),
        pointer: Some("/boot/kernel".to_owned()),
    });
    let vm = server.get("/api/v1/vm").json();
    assert_eq!(vm["state"], "ended");
    let end = json!({"reason": "failed", "detail": "no such file", "pointer": "/boot/kernel"});
    assert_eq!(vm["end"], end);

    assert_eq!(server.delete().status, 204);
    assert_eq!(server.get("/api/v1/vm").status, 404);
    assert_eq!(server.put(SPEC).status, 201, "there is room for another");
}

#[test]
fn what_a_spec_answers_is_a_spec_again() {
    let server = Harness::start();
    let first = server.put(
        r#"{"boot": {"kernel": "k", "command_line": "quiet"}, "cpus": {"count": 2}, "memory": {"size": 1073741824},
            "disks": [{"path": "a", "serial": "s"}], "nics": [{"bridge": "br0", "vlan": 7}],
            "console": {"hvc0": {"file": "log"}, "ports": [{"name": "agent", "socket": "/run/a.sock"}]}}"#,
    );
    assert_eq!(first.status, 201, "{}", first.json());
    let spec = first.json()["spec"].clone();
    assert_eq!(server.delete().status, 204);
    let second = server.put(&spec.to_string());
    assert_eq!(second.json()["spec"], spec);
}

#[test]
fn the_document() {
    let server = Harness::start();
    for path in ["/api/v1/openapi.json", "/openapi.json"] {
        let mut client = server.connect();
        client.send("GET", path, "", b"");
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.body, paddock_api::openapi::CHECKED_IN.as_bytes());
    }
    server.get("/api/v1/openapi.json");
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Harness::start();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send("GET", "/api/v1/vm", "", b"");
        assert_eq!(client.answer().status, 404);
    }
    // Sent at once, answered in order.
    client.write(
        b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\nGET /api/v1/vm HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().status, 404);
}

#[test]
fn the_body_may_come_in_chunks_and_its_type_with_parameters() {
    let server = Harness::start();
    let mut client = server.connect();
    let headers = "Content-Type: Application/JSON; charset=utf-8\r\nTransfer-Encoding: chunked\r\n";
    client.send("PUT", "/api/v1/vm", headers, b"");
    let (one, two) = SPEC.split_at(10);
    for part in [one, two, ""] {
        client.write(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
    }
    assert_eq!(client.answer().status, 201);
}

#[test]
fn an_end_in_the_middle_of_an_answer_waits_for_it() {
    let mut server = Harness::start();
    server.put(SPEC);
    server.fake.hold_deletes();
    let mut client = server.connect();
    client.send("DELETE", "/api/v1/vm", "", b"");
    let mut idle = server.connect();
    // The server has seen both.
    server.get("/api/v1/vm");
    server.end();
    assert!(idle.rest().is_empty());
    server.fake.finish_deletes();
    assert_eq!(client.answer().status, 204);
    server.join();
    assert!(!server.path().exists(), "the socket is removed");
}
