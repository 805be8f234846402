//! The balloon: read, set, refused.

use paddock_api::resource::{EndReason, VmEnd, VmState};
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const BALLOON: &str = "/api/v1/vm/balloon";
const STATISTICS: &str = "/api/v1/vm/balloon/statistics";
const WITH_BALLOON: &str = r#"{"boot": {"kernel": "/k"}, "balloon": {}}"#;

#[track_caller]
fn set(server: &Harness, body: &str) -> Answer {
    server.send("PUT", BALLOON, body)
}

#[test]
fn its_target_is_set_and_its_guest_asked() {
    let server = Harness::start();
    server.put(WITH_BALLOON);
    server.fake.is_now(VmState::Running);
    assert_eq!(server.get(BALLOON).json()["target"], 0);
    assert_eq!(
        server.get(STATISTICS).refusal(),
        (409, "guest-silent".into())
    );
    let answer = set(&server, r#"{"target": "64MiB"}"#);
    assert_eq!(
        (answer.status, &answer.json()["target"]),
        (202, &json!(64 << 20))
    );
    assert_eq!(set(&server, r#"{"target": 4096}"#).json()["target"], 4096);
    assert_eq!(server.get(BALLOON).json()["target"], 4096);
    assert_eq!(server.get(STATISTICS).json(), json!({"free": 4096}));
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = Harness::start();
    server.put(WITH_BALLOON);
    let cases = [
        ("{", 400, "", "malformed"),
        ("{}", 422, "", "missing-field"),
        ("[]", 422, "", "wrong-type"),
        ("7", 422, "", "wrong-type"),
        ("[4096]", 422, "", "wrong-type"),
        (r#"{"target": true}"#, 422, "/target", "wrong-type"),
        (r#"{"target": "1GiB"}"#, 422, "/target", "out-of-range"),
        (r#"{"target": 0, "size": 0}"#, 422, "/size", "unknown-field"),
    ];
    server.refuses("PUT", BALLOON, &cases);
}

#[test]
fn without_one_there_is_nothing_to_set() {
    let server = Harness::start();
    for target in [BALLOON, STATISTICS] {
        assert_eq!(server.get(target).refusal(), (404, "no-vm".into()));
    }
    server.put(SPEC);
    for target in [BALLOON, STATISTICS] {
        assert_eq!(server.get(target).refusal(), (404, "no-balloon".into()));
    }
    assert_eq!(
        set(&server, r#"{"target": 0}"#).refusal(),
        (404, "no-balloon".into())
    );
    server.delete();
    server.put(WITH_BALLOON);
    server.fake.ends(VmEnd::new(EndReason::PoweredOff));
    assert_eq!(
        set(&server, r#"{"target": 0}"#).refusal(),
        (409, "wrong-state".into())
    );
}
