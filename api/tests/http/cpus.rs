//! The CPUs: read, made more and fewer, refused.

use paddock_api::resource::VmState;
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const CPUS: &str = "/api/v1/vm/cpus";
const GROWING: &str = r#"{"boot": {"kernel": "/k"}, "cpus": {"count": 2, "max": 8}}"#;

#[track_caller]
fn set(server: &Harness, body: &str) -> Answer {
    server.send("PUT", CPUS, body)
}

#[test]
fn their_number_is_changed_by_a_job() {
    let server = Harness::start();
    server.put(GROWING);
    for (round, state) in [VmState::Running, VmState::Paused].into_iter().enumerate() {
        server.fake.is_now(state);
        let number = 2 * round + 1;
        let answer = set(&server, r#"{"wanted": 8}"#);
        let job = answer.json();
        assert_eq!((answer.status, &job["id"]), (202, &json!(number)));
        assert_eq!(
            (&job["kind"], &job["device"]),
            (&json!("resize-cpus"), &json!("cpus"))
        );
        let waited = job["deadline_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
        assert_eq!(waited, 30_000);
        let all = json!({"count": 2, "max": 8, "wanted": 8, "present": 2, "job": number});
        assert_eq!(server.get(CPUS).json(), all);
        let refusal = set(&server, r#"{"wanted": 1}"#).refusal();
        assert_eq!(refusal, (409, "device-busy".into()));
        let progress = |done: u64, total: u64| json!({"done": done, "total": total});
        assert_eq!(job["progress"], progress(0, 6));
        let path = format!("/api/v1/jobs/{number}");
        server.fake.count_resize(2);
        assert_eq!(server.get(&path).json()["progress"], progress(2, 6));
        server.fake.finish_resize();
        assert_eq!(server.get(&path).json()["progress"], progress(6, 6));
        let all = json!({"count": 2, "max": 8, "wanted": 8, "present": 8});
        assert_eq!(server.get(CPUS).json(), all);

        let answer = server.send("PUT", &format!("{CPUS}?deadline_ms=5"), r#"{"wanted": 1}"#);
        let job = answer.json();
        let waited = job["deadline_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
        assert_eq!((answer.status, waited), (202, 5));
        server.fake.count_resize(3);
        server.fake.fail_resize("the guest keeps them");
        let path = format!("/api/v1/jobs/{}", job["id"]);
        let job = server.get(&path).json();
        assert_eq!(job["failure"], "the guest keeps them");
        assert_eq!(job["progress"], progress(3, 7));
    }
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = Harness::start();
    server.put(GROWING);
    server.fake.is_now(VmState::Running);
    let cases = [
        ("{", 400, "", "malformed"),
        ("{}", 422, "", "missing-field"),
        ("3", 422, "", "wrong-type"),
        (r#"{"wanted": "3"}"#, 422, "/wanted", "wrong-type"),
        (r#"{"wanted": -1}"#, 422, "/wanted", "wrong-type"),
        (r#"{"wanted": 0}"#, 422, "/wanted", "out-of-range"),
        (r#"{"wanted": 9}"#, 422, "/wanted", "out-of-range"),
        (
            r#"{"wanted": 3, "count": 2}"#,
            422,
            "/count",
            "unknown-field",
        ),
    ];
    server.refuses("PUT", CPUS, &cases);
    for query in ["deadline_ms=0", "deadline_ms=x", "deadline=3"] {
        let answer = server.send("PUT", &format!("{CPUS}?{query}"), r#"{"wanted": 3}"#);
        assert_eq!(answer.refusal(), (400, "invalid-parameter".into()));
    }
}

#[test]
fn they_need_a_vm_that_runs() {
    let server = Harness::start();
    let body = r#"{"wanted": 3}"#;
    assert_eq!(server.get(CPUS).refusal(), (404, "no-vm".into()));
    assert_eq!(set(&server, body).refusal(), (404, "no-vm".into()));
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    let cpus = server.get(CPUS).json();
    assert_eq!(cpus["max"], cpus["count"]);
    assert_eq!(set(&server, body).status, 422, "they have no max");
    server.delete();
    server.put(GROWING);
    for state in [VmState::Starting, VmState::Resetting, VmState::Stopping] {
        server.fake.is_now(state);
        assert_eq!(set(&server, body).refusal(), (409, "wrong-state".into()));
    }
}
