//! Disks that are there: resized, limited, refused.

use paddock_api::resource::VmState;
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const SIZE: &str = "/api/v1/vm/disks/disk0/size";
const WITH_DISK: &str = r#"{"boot": {"kernel": "/k"}, "disks": [{"path": "/d", "on_error": {"retry": {"then": "stop"}}}]}"#;

#[track_caller]
fn resize(server: &Harness, body: &str) -> Answer {
    server.send("PUT", SIZE, body)
}

#[test]
fn a_disk_grows_by_a_size_or_as_it_has_grown() {
    let server = Harness::start();
    server.put(WITH_DISK);
    server.fake.is_now(VmState::Running);
    let disk = server.get("/api/v1/vm/disks/disk0").json();
    assert_eq!(
        (&disk["size"], disk.get("failure")),
        (&json!(1 << 20), None)
    );
    let retry = json!({"retry": {"deadline_ms": 60000, "interval_ms": 1000, "then": "stop"}});
    assert_eq!(disk["spec"]["on_error"], retry, "with its defaults");
    let answer = resize(&server, r#"{"size": "4MiB"}"#);
    assert_eq!(
        (answer.status, &answer.json()["size"]),
        (200, &json!(4 << 20))
    );
    assert_eq!(resize(&server, "{}").json()["size"], 8 << 20);
    assert_eq!(server.get("/api/v1/vm/disks").json()[0]["size"], 8 << 20);
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = Harness::start();
    server.put(WITH_DISK);
    let cases = [
        ("{", 400, "", "malformed"),
        ("[]", 422, "", "wrong-type"),
        (r#"{"size": []}"#, 422, "/size", "wrong-type"),
        (r#"{"size": "512KiB"}"#, 422, "/size", "out-of-range"),
        (r#"{"bytes": 0}"#, 422, "/bytes", "unknown-field"),
    ];
    server.refuses("PUT", SIZE, &cases);
}

/// It is not the request that is wrong.
#[test]
fn a_host_that_fails_is_told_apart() {
    let server = Harness::start();
    server.put(WITH_DISK);
    server.fake.is_now(VmState::Running);
    let answer = resize(&server, r#"{"size": "2TiB"}"#);
    assert_eq!(answer.refusal(), (500, "host-failed".into()));
}

#[test]
fn it_needs_a_disk_that_is_there() {
    let server = Harness::start();
    assert_eq!(resize(&server, "{}").refusal(), (404, "no-vm".into()));
    server.put(SPEC);
    assert_eq!(resize(&server, "{}").refusal(), (404, "no-device".into()));
    server.fake.is_now(VmState::Running);
    let added = server.send("POST", "/api/v1/vm/disks", r#"{"path": "/d"}"#);
    assert_eq!(added.status, 202);
    assert_eq!(resize(&server, "{}").refusal(), (409, "wrong-state".into()));
    server.fake.finish_change();
    assert_eq!(resize(&server, "{}").status, 200);
}

#[test]
fn limits_are_replaced_as_a_whole() {
    const LIMITS: &str = "/api/v1/vm/disks/disk0/limits";
    let server = Harness::start();
    let disk = json!({"path": "/d", "limits": {"iops": 100, "bandwidth": "1MiB", "bandwidth_burst": "2MiB"}});
    server.put(&json!({"boot": {"kernel": "/k"}, "disks": [disk]}).to_string());
    server.fake.is_now(VmState::Running);
    let now = || server.get("/api/v1/vm/disks/disk0").json()["limits"].clone();
    assert_eq!(now()["iops"], 100);
    for limits in [json!({"iops": 5, "iops_burst": 10}), json!({})] {
        let answer = server.send("PUT", LIMITS, &limits.to_string());
        assert_eq!((answer.status, &answer.json()["limits"]), (200, &limits));
        assert_eq!(now(), limits);
    }
    let cases = [
        (r#"{"iops": 0}"#, 422, "/iops", "out-of-range"),
        (r#"{"bandwidth": 512}"#, 422, "/bandwidth", "out-of-range"),
        (r#"{"iops_burst": 5}"#, 422, "/iops_burst", "conflict"),
        (r#"{"bps": 5}"#, 422, "/bps", "unknown-field"),
    ];
    server.refuses("PUT", LIMITS, &cases);
}
