//! Disks, NICs and jobs: added, removed, read, cancelled, refused.

use paddock_api::resource::VmState;
use serde_json::json;

use super::harness::{Answer, Harness, SPEC};

const DISKS: &str = "/api/v1/vm/disks";
const NICS: &str = "/api/v1/vm/nics";

fn running() -> Harness {
    let server = Harness::start();
    assert_eq!(server.put(SPEC).status, 201);
    server.fake.is_now(VmState::Running);
    server
}

#[track_caller]
fn add(server: &Harness, list: &str, body: &str) -> Answer {
    server.send("POST", list, body)
}

#[track_caller]
fn remove(server: &Harness, target: &str) -> Answer {
    server.request("DELETE", target, "", b"")
}

#[test]
fn the_life_of_a_disk() {
    let server = running();
    let added = add(&server, DISKS, r#"{"path": "/d", "serial": "s1"}"#);
    assert_eq!(added.status, 202);
    assert_eq!(added.header("location"), Some("/api/v1/jobs/1"));
    let job = added.json();
    assert_eq!(
        (&job["kind"], &job["device"]),
        (&json!("add-device"), &json!("disk0"))
    );
    assert!(job.get("progress").is_none(), "nothing to count: {job}");
    let disk = server.get("/api/v1/vm/disks/disk0").json();
    assert_eq!(
        (&disk["state"], &disk["job"]),
        (&json!("adding"), &json!(1))
    );

    server.fake.finish_change();
    assert_eq!(server.get("/api/v1/jobs/1").json()["state"], "succeeded");
    let disks = server.get(DISKS).json();
    assert_eq!(disks.as_array().unwrap().len(), 1);
    assert_eq!(disks[0]["state"], "present");
    assert_eq!(disks[0]["spec"]["queue_size"], 256, "defaults are told");
    assert_eq!(
        server.get("/api/v1/vm").json()["spec"]["disks"][0]["serial"],
        "s1"
    );

    let removed = remove(&server, "/api/v1/vm/disks/disk0?deadline_ms=5000");
    assert_eq!(removed.status, 202);
    let job = removed.json();
    assert_eq!(job["phase"], "waiting-for-guest");
    let allowed = job["deadline_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
    assert_eq!(allowed, 5000);
    server.fake.fail_change("the guest did not let go of it");
    let job = server.get("/api/v1/jobs/2").json();
    assert_eq!(
        (&job["state"], &job["failure"]),
        (&json!("failed"), &json!("the guest did not let go of it"))
    );
    assert_eq!(server.get(DISKS).json()[0]["state"], "present");

    assert_eq!(
        remove(&server, "/api/v1/vm/disks/disk0").status,
        202,
        "once more"
    );
    server.fake.finish_change();
    assert_eq!(server.get(DISKS).json(), json!([]));
    assert_eq!(
        server.get("/api/v1/vm/disks/disk0").refusal(),
        (404, "no-device".into())
    );
    let jobs = server.get("/api/v1/jobs").json();
    let states: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| &job["state"])
        .collect();
    assert_eq!(states, ["succeeded", "failed", "succeeded"]);
}

#[test]
fn the_life_of_a_nic() {
    let server = running();
    let added = add(
        &server,
        NICS,
        r#"{"id": "lan", "bridge": "br0", "vlan": 7}"#,
    );
    assert_eq!(added.status, 202);
    assert_eq!(server.get("/api/v1/vm/nics/lan").json()["state"], "adding");
    server.fake.finish_change();
    let nics = server.get(NICS).json();
    assert_eq!(
        (&nics[0]["id"], &nics[0]["spec"]["vlan"]),
        (&json!("lan"), &json!(7))
    );
    assert_eq!(remove(&server, "/api/v1/vm/nics/lan").status, 202);
    server.fake.finish_change();
    assert_eq!(server.get(NICS).json(), json!([]));
}

#[test]
fn what_is_wrong_with_a_device_is_told_at_its_place() {
    let server = running();
    add(&server, DISKS, r#"{"id": "data", "path": "/d"}"#);
    for (list, body, status, errors) in [
        (DISKS, "{", 400, vec![("", "malformed")]),
        (DISKS, "[]", 422, vec![("", "wrong-type")]),
        (DISKS, "{}", 422, vec![("", "missing-field")]),
        (
            DISKS,
            r#"{"path": "/e", "id": "data"}"#,
            422,
            vec![("/id", "duplicate")],
        ),
        (
            DISKS,
            r#"{"path": 3, "size": 1, "queues": 0}"#,
            422,
            vec![
                ("/path", "wrong-type"),
                ("/queues", "out-of-range"),
                ("/size", "unknown-field"),
            ],
        ),
        (
            NICS,
            r#"{"tap": "tap0", "id": "data"}"#,
            422,
            vec![("/id", "duplicate")],
        ),
        (
            NICS,
            r#"{"tap": "a", "bridge": "b"}"#,
            422,
            vec![("", "conflict")],
        ),
    ] {
        let answer = add(&server, list, body);
        assert_eq!(answer.status, status, "{body}");
        let expected: Vec<_> = errors
            .into_iter()
            .map(|(pointer, code)| (pointer.to_owned(), code.to_owned()))
            .collect();
        assert_eq!(answer.errors(), expected, "{body}");
    }
    let large = format!("{{\"path\": \"{}\"}}", "a".repeat(4 << 20));
    assert_eq!(
        add(&server, DISKS, &large).refusal(),
        (413, "body-too-large".into())
    );
    let untyped = server.request("POST", DISKS, "", b"{}");
    assert_eq!(untyped.refusal(), (415, "unsupported-media-type".into()));
}

#[test]
fn what_cannot_be_done_now_is_refused_at_once() {
    let server = Harness::start();
    let disk = r#"{"path": "/d"}"#;
    for list in [DISKS, NICS] {
        assert_eq!(server.get(list).refusal(), (404, "no-vm".into()));
        assert_eq!(
            server.get(&format!("{list}/a")).refusal(),
            (404, "no-vm".into())
        );
    }
    assert_eq!(add(&server, DISKS, disk).refusal(), (404, "no-vm".into()));
    assert_eq!(
        remove(&server, "/api/v1/vm/nics/a").refusal(),
        (404, "no-vm".into())
    );

    server.put(SPEC);
    let refused = add(&server, DISKS, disk);
    assert_eq!(refused.refusal(), (409, "wrong-state".into()));
    assert!(
        refused.detail().contains("starting"),
        "{}",
        refused.detail()
    );
    assert_eq!(
        remove(&server, "/api/v1/vm/disks/a").refusal(),
        (409, "wrong-state".into())
    );

    server.fake.is_now(VmState::Running);
    assert_eq!(
        remove(&server, "/api/v1/vm/disks/a").refusal(),
        (404, "no-device".into())
    );
    assert_eq!(
        remove(&server, "/api/v1/vm/nics/%ff").refusal(),
        (404, "no-device".into())
    );
    add(&server, DISKS, disk);
    assert_eq!(
        remove(&server, "/api/v1/vm/nics/disk0").refusal(),
        (404, "no-device".into())
    );
    let busy = remove(&server, "/api/v1/vm/disks/disk0");
    assert_eq!(busy.refusal(), (409, "device-busy".into()));
    assert!(busy.detail().contains("job 1"), "{}", busy.detail());
    server.fake.finish_change();
    for wrong in [
        "deadline_ms=0",
        "deadline_ms=3600001",
        "deadline_ms=-1",
        "deadline_ms=a",
        "force=1",
    ] {
        let answer = remove(&server, &format!("/api/v1/vm/disks/disk0?{wrong}"));
        assert_eq!(
            answer.refusal(),
            (400, "invalid-parameter".into()),
            "{wrong}"
        );
    }
}

#[test]
fn jobs_are_cancelled_while_they_can_be() {
    let server = running();
    let cancel = |target: &str| server.request("POST", target, "", b"");
    for (target, method) in [("/api/v1/jobs/1", "GET"), ("/api/v1/jobs/x/cancel", "POST")] {
        let answer = server.request(method, target, "", b"");
        assert_eq!(answer.refusal(), (404, "no-job".into()), "{target}");
    }
    assert_eq!(server.get("/api/v1/jobs").json(), json!([]));
    add(&server, DISKS, r#"{"path": "/d"}"#);
    let cancelled = cancel("/api/v1/jobs/1/cancel");
    assert_eq!(
        (cancelled.status, &cancelled.json()["id"]),
        (202, &json!(1))
    );
    server.fake.finish_change();
    assert_eq!(
        cancel("/api/v1/jobs/1/cancel").refusal(),
        (409, "too-late".into())
    );
    assert_eq!(
        server.post("power-button").status,
        202,
        "the VM is not bothered"
    );
}

#[test]
fn jobs_are_told_by_events() {
    let server = running();
    add(&server, DISKS, r#"{"path": "/d"}"#);
    server.fake.finish_change();
    let mut client = server.connect();
    client.send("GET", "/api/v1/events?after=2", "", b"");
    client.head();
    let mut states = Vec::new();
    while states.len() < 2 {
        let line = client.line().unwrap();
        if let Some(data) = line.strip_prefix("data: ") {
            let event: serde_json::Value = serde_json::from_str(data).unwrap();
            server.document.check_component("Event", &event);
            states.push(event["job"]["state"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(states, ["running", "succeeded"]);
}
