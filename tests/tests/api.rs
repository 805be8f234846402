//! The HTTP API of a real process with a real guest: one VM after the other, what is done to it, and how the process ends.
//!
//! What the server does to clients that mean ill is tested in the `api` crate; here are only those that a guest may suffer from.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use paddock_probe::protocol::{Crash, CrashKind, PowerOff};
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Api, Vm, amount, files};
use serde_json::json;

/// The NMIs that each vCPU has had.
fn nmis(vm: &Vm) -> Vec<u64> {
    let interrupts = vm.shell("cat /proc/interrupts");
    let line = interrupts.lines().find(|line| line.contains("NMI:"));
    let numbers = line.unwrap().split_whitespace().skip(1);
    numbers.map_while(|word| word.parse().ok()).collect()
}

#[test]
fn a_vm_from_its_spec_to_its_power_off_and_another_after_it() {
    let (mut vm, api) = Vm::serve();
    assert_eq!(api.get("/vm").code(), "no-vm");
    let mut events = api.events(0);
    let directory = tempfile::tempdir().unwrap();
    let disk = files::empty_disk(directory.path(), "disk.img", 1 << 20);
    let mut spec = vm.spec(2);
    spec["name"] = json!("first");
    spec["disks"] = json!([{"path": disk, "serial": "FIRST"}]);
    vm.create(&api, &spec);
    let info = vm.info();
    assert_eq!(info.cpus, [0, 1]);
    assert_eq!(info.disks[0].serial, "FIRST");
    let read = api.get("/vm").body;
    assert_eq!(read["spec"]["name"], "first");
    assert_eq!(read["spec"]["disks"][0]["id"], "disk0", "defaults are told");
    assert_eq!(api.create(&spec).code(), "vm-exists");
    assert_eq!(events.wait_for("created")["name"], "first");
    events.wait_for_state("running");

    assert_eq!(api.act("power-button").status, 202);
    vm.wait_for_power_button();
    assert_eq!(events.wait_for("action")["action"], "power-button");
    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    assert_eq!(events.wait_for("ended")["end"]["reason"], "powered-off");
    let read = api.get("/vm").body;
    assert_eq!(
        (&read["state"], &read["end"]["reason"]),
        (&json!("ended"), &json!("powered-off"))
    );
    assert_eq!(api.act("reset").code(), "wrong-state");
    assert_eq!(api.create(&spec).code(), "vm-exists");

    // The next one gets the same disk, which the last one has let go.
    for round in 2..=amount(2, 10) {
        assert_eq!(api.delete().status, 204);
        events.wait_for("deleted");
        assert_eq!(api.get("/vm").status, 404);
        spec["disks"][0]["serial"] = json!(format!("NUMBER-{round}"));
        vm.create(&api, &spec);
        assert_eq!(vm.info().disks[0].serial, format!("NUMBER-{round}"));
    }
    vm.signal("QUIT");
    assert_eq!(events.wait_for("ended")["end"]["reason"], "stopped");
    assert_eq!(events.next(), None, "the stream ends with the process");
    vm.expect_exit(0);
    assert!(!api.socket().exists(), "the socket is removed");
}

#[test]
fn a_delete_stops_a_running_vm_and_frees_what_it_holds() {
    let (mut vm, api) = Vm::serve();
    // The socket is there before all that will answer on it: an answer tells that the process has what it needs.
    assert_eq!(api.get("/vm").code(), "no-vm");
    let pid = vm.pid();
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let (descriptors, threads) = (count("fd"), count("task"));
    let spec = vm.spec(2);
    vm.create(&api, &spec);
    let started = Instant::now();
    assert_eq!(api.delete().status, 204);
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(api.delete().code(), "no-vm");
    // Blocking threads of the control plane come and go.
    assert!(
        count("fd") <= descriptors + 2,
        "{} of {descriptors}",
        count("fd")
    );
    assert!(
        count("task") <= threads + 2,
        "{} of {threads}",
        count("task")
    );
    let printed = fs::read_to_string(vm.console_file()).unwrap();
    assert!(printed.contains("paddock-probe: up, 2 cpus"), "{printed}");
    vm.signal("TERM");
    vm.expect_exit(0);
}

#[test]
fn a_reset_and_an_nmi_reach_the_guest() {
    let (mut vm, api) = Vm::serve();
    let spec = vm.spec(2);
    vm.create(&api, &spec);
    let before = nmis(&vm);
    assert_eq!(api.act("nmi").status, 202);
    let end = Instant::now() + CALL_DEADLINE;
    loop {
        let now = nmis(&vm);
        assert_eq!((now.len(), before.len()), (2, 2), "one number a vCPU");
        if now.iter().zip(&before).all(|(now, before)| now > before) {
            break;
        }
        assert!(Instant::now() < end, "NMIs: {before:?}, and then {now:?}");
    }
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let first = vm.shell(boot_id);
    let mut events = api.events(0);
    // The spec's on_reset is for the guest's own resets.
    assert_eq!(api.act("reset").status, 202);
    events.wait_for_state("resetting");
    events.wait_for_state("running");
    vm.connect();
    assert_ne!(vm.shell(boot_id), first);
    vm.signal("QUIT");
    vm.expect_exit(0);
}

#[test]
fn a_guest_that_crashes_says_where() {
    let (mut vm, api) = Vm::serve();
    let mut events = api.events(0);
    let spec = vm.spec(1);
    vm.create(&api, &spec);
    let kind = CrashKind::TripleFault;
    let _ = vm.probe().call(Crash { kind }, Duration::from_secs(10));
    let end = events.wait_for("ended")["end"].clone();
    assert_eq!(end["reason"], "crashed");
    let detail = end["detail"].as_str().unwrap();
    assert!(detail.contains("RIP") && detail.contains("CR3"), "{detail}");
    assert_eq!(api.get("/vm").body["end"], end);
    assert_eq!(api.delete().status, 204);
    vm.create(&api, &spec);
    vm.signal("QUIT");
    vm.expect_exit(0);
}

#[test]
fn the_end_of_the_process_asks_the_guest_first() {
    let (mut vm, api) = Vm::serve();
    let spec = vm.spec(1);
    vm.create(&api, &spec);
    vm.signal("TERM");
    vm.wait_for_power_button();
    let other = json!({"boot": {"kernel": "k"}});
    assert_eq!(api.create(&other).code(), "vm-exists");
    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    vm.expect_exit(0);
}

#[test]
fn run_offers_the_api_too() {
    let mut vm = Vm::builder()
        .cpus(&2)
        .args(["--name", "shell", "--on-reset", "exit"])
        .api()
        .boot();
    let api = vm.api();
    let read = api.get("/vm").body;
    assert_eq!(
        (&read["state"], &read["spec"]["name"]),
        (&json!("running"), &json!("shell"))
    );
    assert_eq!(read["spec"]["console"]["serial"], "terminal");
    let spec = vm.spec(1);
    assert_eq!(api.create(&spec).code(), "vm-exists");
    // Whoever asks for a reset from outside does not want the end.
    assert_eq!(api.act("reset").status, 202);
    vm.wait_for_console("paddock-probe: up, 2 cpus", 2, CALL_DEADLINE * 2);
    vm.connect();
    let mut events = api.events(0);
    assert_eq!(events.wait_for("created")["name"], "shell");
    assert_eq!(api.delete().status, 204);
    assert_eq!(events.wait_for("ended")["end"]["reason"], "stopped");
    vm.expect_exit(5);
    assert!(!api.socket().exists(), "the socket is removed");
}

#[test]
fn a_guest_does_not_feel_clients_that_sit_there() {
    let mut vm = Vm::builder().api().boot();
    let api = vm.api();
    let idle: Vec<_> = (0..200).map(|_| api.connect()).collect();
    let deaf: Vec<_> = (0..10).map(|_| api.events(0)).collect();
    assert_eq!(vm.shell("echo well").trim(), "well");
    assert_eq!(api.state(), "running");
    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    // They do not hold up the end either.
    vm.expect_exit(0);
    drop((idle, deaf));
}

// Without a guest.

#[test]
fn what_cannot_be_built_says_why_and_makes_room() {
    let (mut vm, api) = Vm::serve();
    let mut events = api.events(0);
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, "#!/bin/sh\n").unwrap();
    for (spec, pointer, detail) in [
        (
            json!({"boot": {"kernel": "/absent"}, "console": {"serial": {"file": "/absent/log"}}}),
            "/console/serial",
            "/absent/log",
        ),
        (
            json!({"boot": {"kernel": "/absent"}}),
            "/boot/kernel",
            "no such file",
        ),
        (
            json!({"boot": {"kernel": kernel}}),
            "/boot/kernel",
            "text file",
        ),
    ] {
        assert_eq!(api.create(&spec).status, 201);
        let end = events.wait_for("ended")["end"].clone();
        assert_eq!(
            (&end["reason"], &end["pointer"]),
            (&json!("failed"), &json!(pointer))
        );
        let told = end["detail"].as_str().unwrap();
        assert!(told.contains(detail), "{told}");
        assert_eq!(api.get("/vm").body["end"], end);
        assert_eq!(api.delete().status, 204);
    }
    let wrong = json!({"boot": {"kernel": "k", "kernels": 1}, "console": {"serial": "terminal"}});
    let refused = api.create(&wrong);
    assert_eq!((refused.status, refused.code()), (422, "invalid-spec"));
    let errors = refused.body["errors"].as_array().unwrap();
    let pointers: Vec<_> = errors.iter().map(|error| &error["pointer"]).collect();
    assert_eq!(pointers, ["/boot/kernels", "/console/serial"]);
    vm.signal("TERM");
    vm.expect_exit(0);
}

#[test]
fn the_socket_is_for_the_user_of_the_process_and_root() {
    let (mut vm, api) = Vm::serve();
    let mode = fs::metadata(api.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Also where somebody opens the way.
    let directory = api.socket().parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(api.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let ask = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
               s.send(b'GET /api/v1/vm HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n'); print(s.recv(4096).decode())";
    let asked_by = |user: u32| {
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", ask]).arg(api.socket());
        let output = python.uid(user).gid(user).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let nobody = asked_by(65534);
    assert!(nobody.starts_with("HTTP/1.1 403 "), "{nobody}");
    assert!(nobody.contains("\"forbidden\""), "{nobody}");
    let root = asked_by(0);
    assert!(root.starts_with("HTTP/1.1 404 "), "{root}");
    vm.signal("INT");
    vm.expect_exit(0);
}

#[test]
fn a_socket_that_is_taken() {
    let (vm, api) = Vm::serve();
    let mut other = Vm::builder().serve_at(api.socket());
    other.expect_exit(1);
    std::thread::sleep(Duration::from_millis(200));
    let log = other.log();
    assert!(log.contains("another process listens"), "{log}");
    assert_eq!(
        api.get("/vm").status,
        404,
        "the first one is none the worse"
    );
    // One that is killed leaves its socket behind; the next one takes its place.
    vm.signal("KILL");
    let gone = Instant::now() + CALL_DEADLINE;
    while std::os::unix::net::UnixStream::connect(api.socket()).is_ok() {
        assert!(Instant::now() < gone, "it does not end");
    }
    assert!(api.socket().exists());
    let mut next = Vm::builder().serve_at(api.socket());
    assert_eq!(Api::at(api.socket()).get("/vm").status, 404);
    next.signal("TERM");
    next.expect_exit(0);
}
