//! `paddock ctl` on a real process with a real guest: a VM through all of its life, and what is waited for.
//!
//! What each command asks for and prints is tested in the `vmm` crate, with servers that answer what a test says.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use paddock_probe::protocol::PowerOff;
use paddock_tests::host::Bridge;
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Ctl, Vm, files};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const MAC: &str = "02:00:5e:00:00:17";
/// A process that serves, and its API by `paddock ctl`.
fn serve() -> (Vm, Ctl) {
    let (vm, api) = Vm::serve();
    (vm, Ctl::at(api.socket()))
}

/// An empty disk.
fn image(directory: &TempDir, name: &str) -> PathBuf {
    files::empty_disk(directory.path(), name, 16 * MIB)
}

fn has_nic(vm: &Vm) -> bool {
    vm.info().nics.iter().any(|nic| nic.mac == MAC)
}

/// Creates a VM with a balloon from a file and a flag, and waits for its guest.
fn create(vm: &mut Vm, ctl: &Ctl, directory: &TempDir) {
    let mut spec = vm.spec(2);
    spec["balloon"] = json!({});
    let file = directory.path().join("vm.json");
    fs::write(&file, spec.to_string()).unwrap();
    let words = [
        "vm",
        "create",
        "--spec",
        file.to_str().unwrap(),
        "--name",
        "web",
    ];
    assert_eq!(ctl.well(&words), "the VM is running\n");
    vm.connect();
}

#[test]
fn a_vm_through_its_life() {
    let (mut vm, ctl) = serve();
    let directory = tempfile::tempdir().unwrap();
    assert!(ctl.fails(&["vm", "show"]).contains("(no-vm)"));
    create(&mut vm, &ctl, &directory);
    assert!(
        ctl.fails(&["vm", "create", "--kernel", "/k"])
            .contains("(vm-exists)")
    );
    let shown = ctl.well(&["vm", "show"]);
    assert!(
        shown.starts_with("name        web\nstate       running\n"),
        "{shown}"
    );
    assert_eq!(ctl.json(&["vm", "show"])["spec"]["name"], "web");

    disks_come_and_go(&vm, &ctl, &directory);
    nics_come_and_go(&vm, &ctl);
    the_cpus_stay(&ctl);
    the_memory_stays(&ctl);
    the_balloon_is_set(&vm, &ctl);
    the_jobs_are_listed(&ctl);

    ctl.well(&["vm", "nmi"]);
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let first = vm.shell(boot_id);
    ctl.well(&["vm", "reset"]);
    vm.wait_until("it is not reset", CALL_DEADLINE, || {
        let events = all_events(&ctl);
        let states = events.iter().map(|event| &event["state"]);
        states.filter(|state| *state == "running").count() == 2
    });
    vm.connect();
    assert_ne!(vm.shell(boot_id), first);

    assert_eq!(
        power_off(&vm, &ctl),
        "the power button was pressed\nthe VM ended: its guest powered off\n"
    );
    let shown = ctl.well(&["vm", "show"]);
    assert!(shown.contains("end         powered-off\n"), "{shown}");
    let error = ctl.fails(&["vm", "power-button"]);
    assert!(error.contains("(wrong-state)"), "{error}");
    assert_eq!(ctl.well(&["vm", "delete"]), "the VM is gone\n");
    assert!(ctl.fails(&["vm", "delete"]).contains("(no-vm)"));

    // The stream ends with the process, and that is no failure.
    let following = ctl.start(&["events", "--after", "0"]);
    following.wait_for("deleted");
    vm.signal("TERM");
    vm.expect_exit(0);
    let followed = following.finish();
    assert_eq!(followed.code, Some(0), "{followed:?}");
    for told in ["created   web", "action    nmi", "ended     powered-off"] {
        assert!(followed.stdout.contains(told), "{told}: {followed:?}");
    }
    let error = ctl.fails(&["vm", "show"]);
    assert!(error.contains("there is no API here"), "{error}");
}

/// All that the process has kept, which here is all there was.
fn all_events(ctl: &Ctl) -> Vec<Value> {
    let last = ctl.json(&["vm", "show"])["last_event"].to_string();
    let printed = ctl.well(&["events", "--json", "--after", "0", "--count", &last]);
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.last().unwrap()["seq"].to_string(), last);
    events
}

fn disks_come_and_go(vm: &Vm, ctl: &Ctl, directory: &TempDir) {
    let path = image(directory, "disk");
    let disk = format!("{},id=data,serial=DATA,readonly", path.display());
    let added = ctl.well(&["disks", "add", &disk]);
    assert!(added.contains("(add-device data) succeeded in"), "{added}");
    vm.wait_until("the guest does not find the disk", CALL_DEADLINE, || {
        vm.has_disk("DATA")
    });
    let listed = ctl.well(&["disks", "list"]);
    let line = format!(
        "data  present  16 MiB  {}  read-only, serial DATA",
        path.display()
    );
    assert!(listed.contains(&line), "{listed}");
    assert_eq!(ctl.json(&["disks", "show", "data"])["state"], "present");
    // Every mistake of a second one, at its place.
    let error = ctl.fails(&["disks", "add", "/other,id=data,queues=0"]);
    for place in ["(invalid-spec)", "\n  /id: ", "\n  /queues: "] {
        assert!(error.contains(place), "{place:?}: {error}");
    }
    // A job that fails.
    let error = ctl.fails(&["disks", "add", "/absent/disk,id=absent"]);
    assert!(error.contains("(add-device absent) failed: "), "{error}");

    let removed = ctl.well(&["disks", "remove", "data", "--deadline", "60"]);
    assert!(
        removed.contains("(remove-device data) succeeded in"),
        "{removed}"
    );
    assert!(!vm.has_disk("DATA"));
    assert!(
        ctl.fails(&["disks", "show", "data"])
            .contains("(no-device)")
    );
    assert_eq!(ctl.well(&["disks", "list"]), "no disks\n");
}

fn nics_come_and_go(vm: &Vm, ctl: &Ctl) {
    let bridge = Bridge::new("ctlbr", 7, "10.97.0.1/24");
    let file = tempfile::NamedTempFile::new().unwrap();
    let nic = json!({"id": "lan", "bridge": bridge.name(), "vlan": 7, "mac": MAC});
    fs::write(file.path(), nic.to_string()).unwrap();
    let file = file.path().to_str().unwrap();
    ctl.well(&["nics", "add", "--spec", file]);
    vm.wait_until("the guest does not find the NIC", CALL_DEADLINE, || {
        has_nic(vm)
    });
    let listed = ctl.well(&["nics", "list"]);
    let line = format!("lan  present  bridge ctlbr, VLAN 7  {MAC}");
    assert!(listed.contains(&line), "{listed}");
    let job = ctl.json(&["nics", "remove", "lan"]);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(!has_nic(vm));
}

fn the_cpus_stay(ctl: &Ctl) {
    let cpus = ctl.json(&["cpus", "show"]);
    assert_eq!(
        (&cpus["max"], &cpus["present"]),
        (&cpus["count"], &cpus["count"])
    );
    let error = ctl.fails(&["cpus", "set", "3"]);
    assert!(error.contains("max when the VM is created"), "{error}");
}

fn the_memory_stays(ctl: &Ctl) {
    let memory = ctl.json(&["memory", "show"]);
    assert_eq!(
        (&memory["max"], &memory["plugged"]),
        (&memory["size"], &memory["size"])
    );
    let error = ctl.fails(&["memory", "set", "1G"]);
    assert!(error.contains("max when the VM is created"), "{error}");
}

fn the_balloon_is_set(vm: &Vm, ctl: &Ctl) {
    assert_eq!(ctl.json(&["balloon", "show"])["driver"], true);
    let total = || {
        ctl.json(&["balloon", "statistics"])["total"]
            .as_u64()
            .unwrap()
    };
    let before = total();
    assert_eq!(ctl.json(&["balloon", "set", "32M"])["target"], 32 * MIB);
    vm.wait_until(
        "the guest does not give what it is asked for",
        CALL_DEADLINE,
        || ctl.json(&["balloon", "show"])["actual"] == 32 * MIB,
    );
    assert_eq!(total(), before - 32 * MIB);
    let error = ctl.fails(&["balloon", "set", "1T"]);
    assert!(error.contains("/target: "), "{error}");
    ctl.well(&["balloon", "set", "0"]);
}

fn the_jobs_are_listed(ctl: &Ctl) {
    let jobs = ctl.json(&["jobs", "list"]);
    let states: Vec<_> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        ["succeeded", "failed", "succeeded", "succeeded", "succeeded"]
    );
    assert!(ctl.fails(&["jobs", "wait", "2"]).contains("failed: "));
    ctl.well(&["jobs", "wait", "1"]);
    assert!(ctl.fails(&["jobs", "cancel", "1"]).contains("(too-late)"));
    assert!(ctl.fails(&["jobs", "show", "99"]).contains("(no-job)"));
}

/// Presses the power button, which this guest leaves to the test, and waits for the end; what the command printed.
fn power_off(vm: &Vm, ctl: &Ctl) -> String {
    let pressing = ctl.start(&["vm", "power-button", "--wait"]);
    vm.wait_for_power_button();
    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    let done = pressing.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    done.stdout
}

#[test]
fn waiting_can_be_given_up_and_the_job_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let disk = format!(
        "id=data,path={},serial=DATA",
        image(&directory, "disk").display()
    );
    let mut vm = Vm::builder().api().args(["--disk", &disk]).boot();
    let ctl = Ctl::at(vm.api().socket());
    // A guest that does not look does not let go.
    vm.heed_hot_plug(false);
    let state = || ctl.json(&["disks", "show", "data"])["state"].clone();

    let remove = ["disks", "remove", "data", "--deadline", "600"];
    let waiting = ctl.start(&remove);
    vm.wait_until("it is not being removed", CALL_DEADLINE, || {
        state() == "removing"
    });
    // Until it waits, Ctrl-C ends it without a word. And a line is told of what takes longer than a second.
    sleep(Duration::from_secs(2));
    waiting.interrupt();
    let done = waiting.finish();
    assert_eq!(done.code, Some(1), "{done:?}");
    let told = "job 1 (remove-device data): waiting-for-guest\n\
                error: interrupted: job 1 (remove-device data) goes on\n";
    assert!(done.stderr.starts_with(told), "{done:?}");
    assert!(
        done.stderr.ends_with("paddock ctl jobs cancel 1\n"),
        "{done:?}"
    );
    assert_eq!(state(), "removing");
    let error = ctl.fails(&remove);
    assert!(error.contains("(device-busy)"), "{error}");
    let error = ctl.fails(&["jobs", "wait", "1", "--max-wait", "1"]);
    assert!(
        error.contains("job 1 (remove-device data) goes on"),
        "{error}"
    );

    let cancelled = ctl.well(&["jobs", "cancel", "1"]);
    assert!(
        cancelled.starts_with("job 1 (remove-device data) was cancelled after "),
        "{cancelled}"
    );
    assert_eq!(state(), "present");

    // One that ends at its deadline is a failure.
    let error = ctl.fails(&["disks", "remove", "data", "--deadline", "1"]);
    assert!(error.contains("did not let go"), "{error}");
    let begun = ctl.json(&["disks", "remove", "data", "--no-wait"]);
    assert_eq!(begun["state"], "running", "{begun}");
    vm.heed_hot_plug(true);
    ctl.well(&["jobs", "wait", &begun["id"].to_string()]);
    assert!(!vm.has_disk("DATA"));
    // The process ends with its VM, sooner or later than it is looked at.
    power_off(&vm, &ctl);
    vm.expect_exit(0);
}
