//! What each command asks for, and what it makes of the answer.

use std::collections::BTreeSet;

use paddock_api::resource::Action;
use serde_json::{Value, json};

use super::answers;
use super::fake::{Fake, Request, answer, ctl, stream, text};
use crate::cli::Status;

/// A command line for each call of the API, and what it asks for.
const CALLS: [(&str, &str, &str); 37] = [
    ("vm create --kernel k", "PUT /api/v1/vm", "PUT /api/v1/vm"),
    ("vm show", "GET /api/v1/vm", "GET /api/v1/vm"),
    ("vm delete", "DELETE /api/v1/vm", "DELETE /api/v1/vm"),
    (
        "vm power-button",
        "POST /api/v1/vm/actions/{action}",
        "POST /api/v1/vm/actions/power-button",
    ),
    ("disks list", "GET /api/v1/vm/disks", "GET /api/v1/vm/disks"),
    (
        "disks add data.img",
        "POST /api/v1/vm/disks",
        "POST /api/v1/vm/disks",
    ),
    (
        "disks show a/../b?c",
        "GET /api/v1/vm/disks/{id}",
        "GET /api/v1/vm/disks/a%2F..%2Fb%3Fc",
    ),
    (
        "disks remove data --deadline 5",
        "DELETE /api/v1/vm/disks/{id}",
        "DELETE /api/v1/vm/disks/data?deadline_ms=5000",
    ),
    (
        "disks limit data --iops 100 --bandwidth 10M",
        "PUT /api/v1/vm/disks/{id}/limits",
        "PUT /api/v1/vm/disks/data/limits",
    ),
    (
        "disks resize data 20G",
        "PUT /api/v1/vm/disks/{id}/size",
        "PUT /api/v1/vm/disks/data/size",
    ),
    (
        "replicas list data",
        "GET /api/v1/vm/disks/{id}/replicas",
        "GET /api/v1/vm/disks/data/replicas",
    ),
    (
        "replicas add data 10.0.0.4:10000",
        "POST /api/v1/vm/disks/{id}/replicas",
        "POST /api/v1/vm/disks/data/replicas",
    ),
    (
        "replicas remove data [::1]:10000",
        "DELETE /api/v1/vm/disks/{id}/replicas/{address}",
        "DELETE /api/v1/vm/disks/data/replicas/%5B%3A%3A1%5D%3A10000",
    ),
    (
        "snapshots list data",
        "GET /api/v1/vm/disks/{id}/snapshots",
        "GET /api/v1/vm/disks/data/snapshots",
    ),
    (
        "snapshots create data before --label by=me",
        "POST /api/v1/vm/disks/{id}/snapshots",
        "POST /api/v1/vm/disks/data/snapshots",
    ),
    (
        "snapshots remove data before",
        "DELETE /api/v1/vm/disks/{id}/snapshots/{name}",
        "DELETE /api/v1/vm/disks/data/snapshots/before",
    ),
    (
        "cdroms list",
        "GET /api/v1/vm/cdroms",
        "GET /api/v1/vm/cdroms",
    ),
    (
        "cdroms show cdrom0",
        "GET /api/v1/vm/cdroms/{id}",
        "GET /api/v1/vm/cdroms/cdrom0",
    ),
    (
        "cdroms insert cdrom0 a.iso",
        "PUT /api/v1/vm/cdroms/{id}/medium",
        "PUT /api/v1/vm/cdroms/cdrom0/medium",
    ),
    (
        "cdroms eject cdrom0 --force",
        "DELETE /api/v1/vm/cdroms/{id}/medium",
        "DELETE /api/v1/vm/cdroms/cdrom0/medium?force=true",
    ),
    ("nics list", "GET /api/v1/vm/nics", "GET /api/v1/vm/nics"),
    (
        "nics add tap=tap0",
        "POST /api/v1/vm/nics",
        "POST /api/v1/vm/nics",
    ),
    (
        "nics show lan",
        "GET /api/v1/vm/nics/{id}",
        "GET /api/v1/vm/nics/lan",
    ),
    (
        "nics remove lan",
        "DELETE /api/v1/vm/nics/{id}",
        "DELETE /api/v1/vm/nics/lan",
    ),
    ("cpus show", "GET /api/v1/vm/cpus", "GET /api/v1/vm/cpus"),
    (
        "cpus set 3 --deadline 5",
        "PUT /api/v1/vm/cpus",
        "PUT /api/v1/vm/cpus?deadline_ms=5000",
    ),
    (
        "memory show",
        "GET /api/v1/vm/memory",
        "GET /api/v1/vm/memory",
    ),
    (
        "memory set 1G",
        "PUT /api/v1/vm/memory",
        "PUT /api/v1/vm/memory",
    ),
    (
        "balloon show",
        "GET /api/v1/vm/balloon",
        "GET /api/v1/vm/balloon",
    ),
    (
        "balloon set 256M",
        "PUT /api/v1/vm/balloon",
        "PUT /api/v1/vm/balloon",
    ),
    (
        "balloon statistics",
        "GET /api/v1/vm/balloon/statistics",
        "GET /api/v1/vm/balloon/statistics",
    ),
    ("jobs list", "GET /api/v1/jobs", "GET /api/v1/jobs"),
    ("jobs wait 3", "GET /api/v1/jobs/{id}", "GET /api/v1/jobs/3"),
    (
        "jobs cancel 3 --no-wait",
        "POST /api/v1/jobs/{id}/cancel",
        "POST /api/v1/jobs/3/cancel",
    ),
    (
        "events --after 7 --count 1",
        "GET /api/v1/events",
        "GET /api/v1/events?after=7",
    ),
    ("metrics", "GET /api/v1/metrics", "GET /api/v1/metrics"),
    (
        "openapi",
        "GET /api/v1/openapi.json",
        "GET /api/v1/openapi.json",
    ),
];

/// What the API would answer.
fn right(request: &Request) -> Vec<u8> {
    let target = request.target.strip_prefix("/api/v1/").unwrap();
    let target = target.split('?').next().unwrap();
    let parts: Vec<_> = target.split('/').collect();
    let (status, body) = match (request.method.as_str(), parts.as_slice()) {
        ("DELETE", ["vm"]) => (204, Value::Null),
        ("POST", ["vm", "actions", _]) => (202, Value::Null),
        (_, ["vm"]) => (201, answers::vm("running")),
        ("GET", ["vm", "disks"]) => (200, json!([answers::disk()])),
        ("GET", ["vm", "disks", _]) | ("PUT", ["vm", "disks", _, "size" | "limits"]) => {
            (200, answers::disk())
        }
        ("GET" | "DELETE", ["vm", "disks", _, "replicas", ..]) => (200, answers::replicas()),
        ("GET", ["vm", "disks", _, "snapshots"]) => (200, answers::snapshots()),
        ("POST", ["vm", "disks", _, "snapshots"]) => {
            (201, json!({"name": "before", "frozen_us": 1500}))
        }
        ("GET", ["vm", "nics"]) => (200, json!([answers::nic()])),
        ("GET", ["vm", "nics", _]) => (200, answers::nic()),
        (_, ["vm", "disks" | "nics", ..]) => (202, answers::job("succeeded")),
        ("GET", ["vm", "cdroms"]) => (200, json!([answers::cdrom()])),
        (_, ["vm", "cdroms", ..]) => (200, answers::cdrom()),
        ("GET", ["vm", "cpus"]) => (200, answers::cpus()),
        (_, ["vm", "cpus"]) => (202, answers::job("succeeded")),
        ("GET", ["vm", "memory"]) => (200, answers::memory()),
        (_, ["vm", "memory"]) => (202, answers::memory()),
        (_, ["vm", "balloon"]) => (202, answers::balloon()),
        (_, ["vm", "balloon", _]) => (200, json!({"free": 4096})),
        (_, ["jobs"]) => (200, json!([answers::job("failed")])),
        (_, ["jobs", ..]) => (200, answers::job("succeeded")),
        (_, ["events"]) => {
            return stream(
                "id: 8\nevent: deleted\ndata: {\"seq\":8,\"time_ms\":0,\"type\":\"deleted\"}\n\n",
            );
        }
        (_, ["metrics"]) => {
            return text("# HELP a_total Things.\n# TYPE a_total counter\na_total{disk=\"d\"} 3\n");
        }
        (_, ["openapi.json"]) => (200, json!({"openapi": "3.1.0"})),
        other => panic!("{other:?}"),
    };
    answer(status, &body)
}

/// Every method of every path of the document.
fn documented() -> BTreeSet<String> {
    let document: Value = serde_json::from_str(paddock_api::openapi::CHECKED_IN).unwrap();
    let mut all = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            all.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    all
}

/// Whether a request is a call of the path in the document.
fn is_call_of(request: &str, documented: &str) -> bool {
    let request = request.split('?').next().unwrap();
    let (request, documented): (Vec<_>, Vec<_>) = (
        request.split('/').collect(),
        documented.split('/').collect(),
    );
    request.len() == documented.len()
        && request
            .iter()
            .zip(&documented)
            .all(|(a, b)| a == b || b.starts_with('{'))
}

#[test]
fn every_call_of_the_api_has_a_command() {
    let mut called = BTreeSet::new();
    for (words, path, request) in CALLS {
        let fake = Fake::start(|_, request| right(request));
        let printed = fake.ctl(words).well();
        assert_eq!(fake.lines(), [request], "{words}");
        assert!(is_call_of(request, path), "{words}");
        assert!(!printed.is_empty(), "{words}");
        called.insert(path.to_owned());
    }
    assert_eq!(
        called,
        documented(),
        "a call of the API has no command; or a command's call is not in the document"
    );
}

#[test]
fn the_answer_itself_with_json() {
    for (words, _, _) in CALLS {
        let fake = Fake::start(|_, request| right(request));
        let printed = fake.ctl(&format!("--json {words}")).well();
        if ["vm delete", "vm power-button"].contains(&words) {
            assert_eq!(printed, "", "{words}: there is no body");
            continue;
        }
        assert_eq!(printed.lines().count(), 1, "{words}: {printed}");
        let told: Value = serde_json::from_str(&printed).unwrap();
        assert!(told.is_object() || told.is_array(), "{words}: {printed}");
    }
}

#[test]
fn every_action_has_a_command_of_its_name() {
    let fake = Fake::start(|_, request| right(request));
    for action in Action::ALL {
        assert_ne!(fake.ctl(&format!("vm {action}")).well(), "");
        let asked = fake.lines().pop().unwrap();
        assert_eq!(asked, format!("POST /api/v1/vm/actions/{action}"));
    }
}

#[test]
fn answers_as_people_read_them() {
    let fake = Fake::start(|_, request| right(request));
    assert_eq!(
        fake.ctl("vm show").well(),
        "\
name        web
state       running
failures    disk0: No space left on device (errno 28) since 2023-11-14T22:13:20.123Z: stopped; requests: 2, attempts: 1
boot        /boot/vmlinuz
            console=ttyS0
CPUs        4 (1 socket, 2 cores, 2 threads)
memory      1GiB
disks       disk0: /srv/a.img (read-only, 4 queues)
NICs        nic0: bridge br0, VLAN 7 (02:00:5e:00:00:07)
serial      file /var/log/web
variables   vm.fd: cannot be written
timeline    machine built after 12.3 ms
            init up after 2500.0 ms
last event  2
"
    );
    assert_eq!(
        fake.ctl("disks list").well(),
        "\
ID    STATE     SIZE   PATH           OPTIONS                                                   JOB  FAILURE
data  removing  1 GiB  /srv/data.img  serial S1, io_uring, stops on errors, 100 IOPS, 10 MiB/s  3    \
No space left on device (errno 28) since 2023-11-14T22:13:20.123Z: stopped; requests: 2, attempts: 1
"
    );
    assert_eq!(
        fake.ctl("replicas list data").well(),
        "\
ADDRESS         MODE    REBUILD         FAILED                    FAILURE
10.0.0.1:10000  rw
10.0.0.2:10000  wo      1 GiB of 4 GiB
10.0.0.3:10000  failed                  2023-11-14T22:13:20.123Z  it has not answered for 8 s
"
    );
    assert_eq!(
        fake.ctl("snapshots list data").well(),
        "\
NAME    CREATED               SIZE   PARENT  NOTES
before  2026-11-22T19:00:00Z  4 KiB          by=me
auto    2026-11-22T19:01:00Z  0 B    before  removed, made by a rebuild or a resize
"
    );
    assert_eq!(
        fake.ctl("snapshots create data before").well(),
        "snapshot before was taken; the guest's I/O stood still for 1.5 ms\n"
    );
    assert_eq!(
        fake.ctl("cdroms list").well(),
        "\
ID      TRAY    MEDIUM      SIZE
cdrom0  locked  /srv/a.iso  4 MiB
"
    );
    assert_eq!(
        fake.ctl("nics show lan").well(),
        "\
ID   STATE    ATTACHED TO  MAC                OPTIONS   JOB
lan  present  tap tap0     02:00:5e:00:00:07  MTU 9000
"
    );
    assert_eq!(
        fake.ctl("jobs list").well(),
        "\
ID  KIND           DEVICE  STATE   PHASE              ELAPSED  FAILURE
3   remove-device  data    failed  waiting-for-guest  1.5 s    the guest did not let go of it in time
"
    );
    assert_eq!(
        fake.ctl("cpus show").well(),
        "\
at the start  2
max           8
wanted        4
plugged in    5
job           3
"
    );
    assert_eq!(
        fake.ctl("memory show").well(),
        "\
size at the start   512 MiB
max                 4 GiB
requested           1 GiB
plugged in          768 MiB
guest has a driver  yes
"
    );
    let balloon = fake.ctl("balloon show").well();
    assert!(
        balloon.contains("target                     256 MiB\n"),
        "{balloon}"
    );
    assert_eq!(fake.ctl("balloon statistics").well(), "free  4 KiB\n");
    let event = fake.ctl("events --count 1").well();
    assert_eq!(event, "8      1970-01-01T00:00:00.000Z  deleted\n");
}

#[test]
fn devices_are_described_as_for_run() {
    let fake = Fake::start(|_, request| right(request));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nic");
    let here = std::env::current_dir().unwrap();
    fake.ctl("disks add data.img,readonly,queue-size=64").well();
    fake.ctl("nics add bridge=br0,vlan=7").well();
    fake.ctl("disks add fd:data").well();
    for (list, written, sent) in [
        ("nics", json!({"bridge": "br0", "vlam": 7}), None),
        (
            "disks",
            json!({"path": "rel", "new": [1]}),
            Some(json!({"path": here.join("rel"), "new": [1]})),
        ),
        ("disks", json!({"path": "fd:data"}), None),
        ("disks", json!({"path": 3}), None),
        ("disks", json!([]), None),
    ] {
        std::fs::write(&file, written.to_string()).unwrap();
        fake.ctl(&format!("{list} add --spec {}", file.display()))
            .well();
        // What is wrong with it is for the API to say.
        let body = fake.requests().last().unwrap().body.clone();
        assert_eq!(body, sent.unwrap_or(written));
    }
    let requests = fake.requests();
    assert_eq!(
        requests[0].body,
        json!({"path": here.join("data.img"), "read_only": true, "queue_size": 64})
    );
    assert_eq!(requests[1].body, json!({"bridge": "br0", "vlan": 7}));
    assert_eq!(requests[2].body, json!({"path": "fd:data"}));
    assert!(
        requests[0]
            .head
            .to_lowercase()
            .contains("content-type: application/json"),
        "{}",
        requests[0].head
    );
}

#[test]
fn a_vm_is_described_as_for_run() {
    let fake = Fake::start(|_, request| right(request));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    std::fs::write(&file, "name = \"web\"\n[boot]\nkernel = \"/k\"\n").unwrap();
    let words = format!("vm create --spec {} --disk a.img", file.display());
    assert_eq!(fake.ctl(&words).well(), "the VM is running\n");
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        fake.requests()[0].body,
        json!({
            "name": "web",
            "boot": {"kernel": "/k", "command_line": ""},
            "disks": [{"path": here.join("a.img")}],
            "console": {"serial": "off"},
        })
    );
}

#[test]
fn what_is_typed_wrong_is_not_sent() {
    let fake = Fake::start(|_, request| right(request));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    std::fs::write(&file, "{\"path\": }").unwrap();
    for (words, told) in [
        (
            "disks add a,readnoly=on".to_owned(),
            "DISK a,readnoly=on: unknown key readnoly; did you mean readonly?",
        ),
        (
            "nics add tap0".to_owned(),
            "NET tap0: unknown key tap0; did you mean tap?",
        ),
        (
            "vm create --kernel k --cpus 999 --serial terminal".to_owned(),
            "2 problems with the VM spec:",
        ),
        (
            format!("disks add --spec {}", file.display()),
            "line 1, column 10: expected value",
        ),
    ] {
        let done = fake.ctl(&words);
        let error = done.error();
        assert!(error.contains(told), "{words}: {error}");
        assert_eq!(done.result.unwrap_err().status(), Status::Usage, "{words}");
    }
    let done = fake.ctl("disks add --spec /absent/file");
    assert_eq!(done.result.unwrap_err().status(), Status::Error);
    assert_eq!(fake.lines(), [""; 0]);
}

#[test]
fn refusals_are_told_with_every_reason() {
    let problem = json!({
        "title": "Unprocessable Entity", "status": 422, "code": "invalid-spec", "detail": "the spec is wrong in 2 places",
        "errors": [{"pointer": "/id", "code": "duplicate", "detail": "there is one"},
                   {"pointer": "/queues", "code": "out-of-range", "detail": "too \u{1b}[2J many"}],
    });
    let fake = Fake::script(vec![answer(422, &problem)]);
    let done = fake.ctl("disks add a,queues=99");
    let error = done.error();
    assert!(
        error.starts_with("the spec is wrong in 2 places (invalid-spec)\n  /id: there is one [duplicate]\n  /queues: "),
        "{error}"
    );
    assert!(!error.contains('\x1b'), "{error:?}");
    assert_eq!(done.printed, "");
    assert_eq!(done.result.unwrap_err().status(), Status::Error);
    let done = fake.ctl("disks add a,queues=99 --json");
    assert!(done.result.is_err());
    let printed: Value = serde_json::from_str(&done.printed).unwrap();
    assert_eq!(printed, problem);
}

#[test]
fn what_another_version_answers_is_shown_as_it_is() {
    let mut vm = answers::vm("hibernating");
    vm["spec"]["news"] = json!(1);
    let fake = Fake::script(vec![answer(200, &vm)]);
    let printed = fake.ctl("vm show").well();
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), vm);
}

#[test]
fn there_must_be_a_socket_and_someone_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let show =
        |socket: &std::path::Path| ctl(&["vm", "show", "--api-socket", socket.to_str().unwrap()]);
    let absent = show(&socket);
    assert!(
        absent.error().contains("there is no API here"),
        "{absent:?}"
    );
    assert_eq!(absent.result.unwrap_err().status(), Status::Error);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let left = show(&socket).error();
    assert!(left.contains("nobody listens there any more"), "{left}");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = show(&file).error();
    assert!(file.contains("nobody listens there"), "{file}");
    let long = directory.path().join("x".repeat(200));
    let long = show(&long).error();
    assert!(long.contains("SUN_LEN"), "{long}");
}
