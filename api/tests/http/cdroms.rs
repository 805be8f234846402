//! CD-ROM drives: read, their media changed, refused.

use paddock_api::resource::{EndReason, VmEnd, VmState};
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const CDROMS: &str = "/api/v1/vm/cdroms";
const DRIVE: &str = "/api/v1/vm/cdroms/cdrom0";
const MEDIUM: &str = "/api/v1/vm/cdroms/cdrom0/medium";
const WITH_DRIVES: &str =
    r#"{"boot": {"kernel": "/k"}, "cdroms": [{"path": "/a.iso"}, {"id": "second"}]}"#;

#[track_caller]
fn insert(server: &Harness, target: &str, body: &str) -> Answer {
    let headers = "Content-Type: application/json\r\n";
    server.request("PUT", target, headers, body.as_bytes())
}

#[track_caller]
fn eject(server: &Harness, target: &str) -> Answer {
    server.request("DELETE", target, "", b"")
}

fn running() -> Harness {
    let server = Harness::start();
    server.put(WITH_DRIVES);
    server.fake.is_now(VmState::Running);
    server
}

#[test]
fn drives_are_listed_with_what_is_in_them() {
    let server = running();
    assert_eq!(
        server.get(CDROMS).json(),
        json!([
            {"id": "cdrom0", "medium": "/a.iso", "size": 2048, "open": false, "locked": false, "driver": false,
             "spec": {"id": "cdrom0", "path": "/a.iso"}},
            {"id": "second", "open": false, "locked": false, "driver": false, "spec": {"id": "second"}},
        ])
    );
    assert_eq!(server.get(DRIVE).json()["medium"], "/a.iso");
}

#[test]
fn media_go_in_and_out() {
    let server = running();
    let drive = insert(&server, MEDIUM, r#"{"path": "/b.iso"}"#);
    assert_eq!(
        (drive.status, &drive.json()["medium"]),
        (200, &json!("/b.iso"))
    );
    assert_eq!(server.get(DRIVE).json()["medium"], "/b.iso");
    for _ in 0..2 {
        let drive = eject(&server, MEDIUM);
        assert_eq!((drive.status, drive.json().get("medium")), (200, None));
    }
    server.fake.is_now(VmState::Paused);
    assert_eq!(insert(&server, MEDIUM, r#"{"path": "fd:cd"}"#).status, 200);
}

#[test]
fn a_locked_tray_is_opened_by_force_only() {
    let server = running();
    server.fake.lock_trays(true);
    let body = r#"{"path": "/b.iso"}"#;
    let locked = (409, "tray-locked".to_owned());
    for force in ["", "?force=false"] {
        let target = format!("{MEDIUM}{force}");
        assert_eq!(insert(&server, &target, body).refusal(), locked);
        assert_eq!(eject(&server, &target).refusal(), locked);
    }
    let by_force = format!("{MEDIUM}?force=true");
    assert_eq!(insert(&server, &by_force, body).status, 200);
    assert_eq!(eject(&server, &by_force).status, 200);
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = running();
    for (body, status, pointer, code) in [
        ("{", 400, "", "malformed"),
        ("{}", 422, "", "missing-field"),
        ("[]", 422, "", "wrong-type"),
        (r#"{"path": 7}"#, 422, "/path", "wrong-type"),
        (r#"{"path": ""}"#, 422, "/path", "malformed"),
        (r#"{"path": "fd:1"}"#, 422, "/path", "out-of-range"),
        (r#"{"path": "/absent"}"#, 422, "/path", "out-of-range"),
        (
            r#"{"path": "/a", "force": true}"#,
            422,
            "/force",
            "unknown-field",
        ),
    ] {
        let answer = insert(&server, MEDIUM, body);
        assert_eq!(answer.status, status, "{body}");
        let told = [(pointer.to_owned(), code.to_owned())];
        assert_eq!(answer.errors(), told, "{body}");
    }
    for query in [
        "?force",
        "?force=1",
        "?deadline_ms=3",
        "?force=true&force=true",
    ] {
        let target = format!("{MEDIUM}{query}");
        let refused = (400, "invalid-parameter".to_owned());
        assert_eq!(eject(&server, &target).refusal(), refused, "{query}");
        assert_eq!(insert(&server, &target, "{}").refusal(), refused, "{query}");
    }
}

#[test]
fn where_there_is_no_drive_or_no_vm_that_runs() {
    let server = Harness::start();
    let body = r#"{"path": "/b.iso"}"#;
    for answer in [
        server.get(CDROMS),
        server.get(DRIVE),
        insert(&server, MEDIUM, body),
        eject(&server, MEDIUM),
    ] {
        assert_eq!(answer.refusal(), (404, "no-vm".into()));
    }
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    assert_eq!(server.get(CDROMS).json(), json!([]));
    for answer in [
        server.get(DRIVE),
        insert(&server, MEDIUM, body),
        eject(&server, MEDIUM),
        server.get("/api/v1/vm/cdroms/%ff"),
    ] {
        assert_eq!(answer.refusal(), (404, "no-device".into()));
    }
    server.fake.ends(VmEnd::new(EndReason::PoweredOff));
    for answer in [insert(&server, MEDIUM, body), eject(&server, MEDIUM)] {
        assert_eq!(answer.refusal(), (409, "wrong-state".into()));
    }
}
