//! Disks that are replicated volumes: their replicas and snapshots.

use paddock_api::resource::VmState;
use serde_json::json;

use super::harness::Harness;

const DISK: &str = "/api/v1/vm/disks/data";
const REPLICAS: &str = "/api/v1/vm/disks/data/replicas";
const SNAPSHOTS: &str = "/api/v1/vm/disks/data/snapshots";
const SPEC: &str = r#"{"boot": {"kernel": "/k"}, "disks": [{"path": "/d", "id": "file"},
    {"id": "data", "volume": {"name": "v", "replicas": ["a:1", "[::1]:1"]}}]}"#;

fn running() -> Harness {
    let server = Harness::start();
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    server
}

#[test]
fn replicas_come_and_go() {
    let server = running();
    let rw = |address: &str| json!({"address": address, "mode": "rw"});
    assert_eq!(
        server.get(REPLICAS).json(),
        json!([rw("a:1"), rw("[::1]:1")])
    );
    let added = server.send("POST", REPLICAS, r#"{"address": "tcp://b:1"}"#);
    let job = added.json();
    assert_eq!((added.status, &job["kind"]), (202, &json!("add-replica")));
    assert_eq!(job["progress"], json!({"done": 0, "total": 4096}));
    assert_eq!(server.get(DISK).json()["volume"]["job"], job["id"]);
    let again = server.send("POST", REPLICAS, r#"{"address": "c:1"}"#);
    assert_eq!(again.refusal(), (409, "device-busy".into()));
    server.fake.finish_rebuild("data");
    let volume = server.get(DISK).json()["volume"].clone();
    let all = json!({"replicas": [rw("a:1"), rw("[::1]:1"), rw("b:1")]});
    assert_eq!(volume, all);
    let again = server.send("POST", REPLICAS, r#"{"address": "b:1"}"#);
    assert_eq!(again.refusal(), (409, "volume-state".into()));
    let remove = |address: &str| server.send("DELETE", &format!("{REPLICAS}/{address}"), "");
    let left = remove("%5B::1%5D:1");
    assert_eq!(
        (left.status, left.json()),
        (200, json!([rw("a:1"), rw("b:1")]))
    );
    for none in ["c:1", "nothing", "%FF"] {
        let answer = remove(none);
        assert_eq!(answer.status, 404, "{none}");
    }
    assert_eq!(remove("a:1").status, 200);
    assert_eq!(remove("b:1").refusal(), (409, "volume-state".into()));
}

#[test]
fn snapshots_are_taken_and_removed() {
    let server = running();
    assert_eq!(server.get(SNAPSHOTS).json(), json!([]));
    let body = r#"{"name": "before", "labels": {"by": "me"}}"#;
    let taken = server.send("POST", SNAPSHOTS, body);
    let expected = json!({"name": "before", "frozen_us": 7});
    assert_eq!((taken.status, taken.json()), (201, expected));
    let again = server.send("POST", SNAPSHOTS, body);
    assert_eq!(again.refusal(), (409, "volume-state".into()));
    assert_eq!(
        server.send("POST", SNAPSHOTS, "{}").json()["name"],
        "made-up"
    );
    let removed = server.send("DELETE", &format!("{SNAPSHOTS}/before"), "");
    let job = removed.json();
    assert_eq!(
        (removed.status, &job["kind"], &job["phase"]),
        (202, &json!("remove-snapshot"), &json!("purging"))
    );
    let listed = server.get(SNAPSHOTS).json();
    assert_eq!(
        listed[0],
        json!({"name": "before", "created": "2026-11-22T19:00:00Z", "user_created": true, "removed": true,
               "size": 4096, "labels": {"by": "me"}})
    );
    assert_eq!(listed[1]["parent"], "before");
    let none = server.send("DELETE", &format!("{SNAPSHOTS}/none"), "");
    assert_eq!(none.refusal(), (404, "no-snapshot".into()));
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    let server = running();
    let replicas = [
        ("{", 400, "", "malformed"),
        ("{}", 422, "", "missing-field"),
        (r#"{"address": "a"}"#, 422, "/address", "malformed"),
        (r#"{"address": 1}"#, 422, "/address", "wrong-type"),
        (r#"{"adress": "a:1"}"#, 422, "/adress", "unknown-field"),
    ];
    server.refuses("POST", REPLICAS, &replicas);
    let snapshots = [
        (r#"{"name": ""}"#, 422, "/name", "malformed"),
        (r#"{"name": "a/b"}"#, 422, "/name", "malformed"),
        (r#"{"labels": {"a": 1}}"#, 422, "/labels/a", "wrong-type"),
        (r#"{"label": {}}"#, 422, "/label", "unknown-field"),
    ];
    server.refuses("POST", SNAPSHOTS, &snapshots);
}

#[test]
fn they_need_a_volume_that_is_there() {
    let server = Harness::start();
    let ask = |disk: &str| {
        [
            ("GET", "replicas", ""),
            ("POST", "replicas", r#"{"address": "b:1"}"#),
            ("DELETE", "replicas/a:1", ""),
            ("GET", "snapshots", ""),
            ("POST", "snapshots", "{}"),
            ("DELETE", "snapshots/s", ""),
        ]
        .map(|(method, what, body)| {
            let path = format!("/api/v1/vm/disks/{disk}/{what}");
            server.send(method, &path, body).refusal()
        })
    };
    let each = |status: u16, code: &str| vec![(status, code.to_owned()); 6];
    assert_eq!(ask("data").to_vec(), each(404, "no-vm"));
    server.put(SPEC);
    server.fake.is_now(VmState::Running);
    assert_eq!(ask("none").to_vec(), each(404, "no-device"));
    assert_eq!(ask("file").to_vec(), each(404, "no-volume"));
}
