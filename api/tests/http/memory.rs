//! The memory: read, set, refused.

use paddock_api::resource::{EndReason, VmEnd, VmState};
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const MEMORY: &str = "/api/v1/vm/memory";
const GROWING: &str = r#"{"boot": {"kernel": "/k"}, "memory": {"size": "512MiB", "max": "2GiB"}}"#;

#[track_caller]
fn set(server: &Harness, body: &str) -> Answer {
    server.send("PUT", MEMORY, body)
}

#[test]
fn it_grows_up_to_its_max() {
    let server = Harness::start();
    server.put(GROWING);
    server.fake.is_now(VmState::Running);
    let all = |requested: u64| json!({"size": 512 << 20, "max": 2_u64 << 30, "requested": requested, "plugged": 512 << 20, "driver": false});
    assert_eq!(server.get(MEMORY).json(), all(512 << 20));
    for requested in [2_u64 << 30, 512 << 20, 1 << 30] {
        let answer = set(&server, &json!({ "requested": requested }).to_string());
        assert_eq!((answer.status, answer.json()), (202, all(requested)));
        assert_eq!(server.get(MEMORY).json(), all(requested));
    }
    let answer = set(&server, r#"{"requested": "1536MiB"}"#);
    assert_eq!(answer.json(), all(1536 << 20));
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = Harness::start();
    server.put(GROWING);
    let cases = [
        ("{", 400, "", "malformed"),
        ("{}", 422, "", "missing-field"),
        ("[]", 422, "", "wrong-type"),
        ("[1073741824]", 422, "", "wrong-type"),
        (r#"{"requested": []}"#, 422, "/requested", "wrong-type"),
        (
            r#"{"requested": "3GiB"}"#,
            422,
            "/requested",
            "out-of-range",
        ),
        (
            r#"{"requested": "256MiB"}"#,
            422,
            "/requested",
            "out-of-range",
        ),
        (
            r#"{"requested": "1GiB", "size": 0}"#,
            422,
            "/size",
            "unknown-field",
        ),
    ];
    server.refuses("PUT", MEMORY, &cases);
}

#[test]
fn it_needs_a_vm_that_runs() {
    let server = Harness::start();
    let body = r#"{"requested": "1GiB"}"#;
    assert_eq!(server.get(MEMORY).refusal(), (404, "no-vm".into()));
    assert_eq!(set(&server, body).refusal(), (404, "no-vm".into()));
    server.put(SPEC);
    let memory = server.get(MEMORY).json();
    assert_eq!(memory["max"], memory["size"]);
    assert_eq!(set(&server, body).status, 422, "it has no max");
    server.delete();
    server.put(GROWING);
    server.fake.ends(VmEnd::new(EndReason::PoweredOff));
    assert_eq!(set(&server, body).refusal(), (409, "wrong-state".into()));
}
