//! Disks and NICs that come and go while the guest runs: it finds them by itself, lets go of them when asked, and what cannot be done
//! leaves everything as it was.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use paddock_probe::protocol::{Area, BlocksVerify, BlocksWrite, NetPing, NetUp};
use paddock_tests::host::{Bridge, Link, run, shell};
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Api, Vm, amount, files};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const HOST: &str = "10.98.0.1";
const GUEST: &str = "10.98.0.2/24";
const MAC: &str = "02:00:5e:00:00:07";
fn image(directory: &TempDir, name: &str) -> PathBuf {
    files::empty_disk(directory.path(), name, 16 * MIB)
}

#[track_caller]
fn succeeds(vm: &Vm, started: &Value) {
    let job = vm.end_of_job(started);
    if job["state"] != "succeeded" {
        vm.fail(&job.to_string());
    }
}

#[track_caller]
fn start(api: &Api, method: &str, path: &str, body: Option<&Value>) -> Value {
    let answer = api.request(method, path, body);
    assert_eq!(answer.status, 202, "{method} {path}: {answer:?}");
    answer.body
}

fn add(vm: &Vm, api: &Api, list: &str, device: &Value) {
    let started = start(api, "POST", list, Some(device));
    succeeds(vm, &started);
}

fn remove(vm: &Vm, api: &Api, path: &str) {
    let started = start(api, "DELETE", path, None);
    succeeds(vm, &started);
}

/// The name the guest has for the disk with this serial number, as soon as it has one.
fn disk_in_guest(vm: &Vm, serial: &str) -> String {
    let mut name = None;
    let otherwise = format!("the guest does not find disk {serial}");
    vm.wait_until(&otherwise, CALL_DEADLINE, || {
        let disks = vm.info().disks;
        name = disks
            .into_iter()
            .find(|disk| disk.serial == serial)
            .map(|disk| format!("/dev/{}", disk.name));
        name.is_some()
    });
    name.unwrap()
}

/// Whether the process has the file open.
fn holds(vm: &Vm, path: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
    let mut files = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    files.any(|file| file == path)
}

/// Has the guest write all of the disk and read it back.
fn use_disk(vm: &Vm, device: &str, path: &Path, seed: u64) {
    let area = Area::new(device, 16 * MIB, seed);
    vm.call(BlocksWrite::new(area.clone()));
    let verified = vm.call(BlocksVerify::new(area));
    assert_eq!(verified.mismatches.len(), 0, "{verified:?}");
    let mut block = [0; 4096];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut block, 8 * MIB)
        .unwrap();
    assert_ne!(block, [0; 4096], "it is in the file");
}

/// The name the guest has for the NIC, as soon as it has one.
fn nic_in_guest(vm: &Vm) -> String {
    let mut name = None;
    vm.wait_until("the guest does not find the NIC", CALL_DEADLINE, || {
        let nics = vm.info().nics;
        name = nics
            .into_iter()
            .find(|nic| nic.mac == MAC)
            .map(|nic| nic.name);
        name.is_some()
    });
    name.unwrap()
}

/// Has the guest reach the host through the NIC.
fn use_nic(vm: &Vm, device: &str) {
    vm.call(NetUp {
        device: device.to_owned(),
        address: Some(GUEST.to_owned()),
        gateway: None,
        mtu: None,
    });
    let mut ping = NetPing::new(HOST);
    (ping.count, ping.interval_ms) = (5, 50);
    let reply = vm.call(ping);
    assert!(reply.received >= 4 && reply.corrupt == 0, "{reply:?}");
}

#[test]
fn disks_and_nics_come_and_go_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let (busy, path) = (image(&directory, "busy"), image(&directory, "disk"));
    let bridge = Bridge::new("hotbr", 7, &format!("{HOST}/24"));
    let disk = format!("path={},serial=BUSY", busy.display());
    let vm = Vm::builder().cpus("2").api().args(["--disk", &disk]).boot();
    let api = vm.api();
    let busy = disk_in_guest(&vm, "BUSY");
    vm.shell(&format!(
        "(while dd if={busy} of=/dev/null bs=64k iflag=direct; do :; done) >/dev/null 2>&1 & echo $! > /load"
    ));
    for round in 1..=amount(3, 30) {
        let serial = format!("HOT{round}");
        let disk = json!({"id": "hot", "path": path, "serial": serial});
        add(&vm, &api, "/vm/disks", &disk);
        let nic = json!({"id": "lan", "bridge": bridge.name(), "vlan": 7, "mac": MAC});
        add(&vm, &api, "/vm/nics", &nic);
        assert_eq!(api.get("/vm/disks/hot").body["state"], "present");

        let device = disk_in_guest(&vm, &serial);
        use_disk(&vm, &device, &path, round);
        use_nic(&vm, &nic_in_guest(&vm));

        remove(&vm, &api, "/vm/nics/lan");
        remove(&vm, &api, "/vm/disks/hot");
        assert!(!holds(&vm, &path), "the disk is closed");
        assert!(!vm.has_disk(&serial));
        assert!(vm.info().nics.iter().all(|nic| nic.mac != MAC));
        assert_eq!(api.get("/vm/disks/hot").code(), "no-device");
        assert!(
            !run("ip -o link show master hotbr").contains("tap"),
            "its tap is gone"
        );
    }
    vm.shell("kill $(cat /load)");
    assert!(
        !vm.shell("dmesg").contains("I/O error"),
        "the load was not disturbed"
    );
    vm.power_off();
}

#[test]
fn a_guest_that_does_not_let_go_keeps_it_until_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, "disk");
    let disk = format!("id=data,path={},serial=DATA", path.display());
    let mut vm = Vm::builder().api().args(["--disk", &disk]).boot();
    let api = vm.api();
    let device = disk_in_guest(&vm, "DATA");
    vm.heed_hot_plug(false);

    let removing = start(&api, "DELETE", "/vm/disks/data?deadline_ms=2000", None);
    let state = api.get("/vm/disks/data").body;
    assert_eq!(
        (&state["state"], &state["job"]),
        (&json!("removing"), &removing["id"])
    );
    let again = api.request("DELETE", "/vm/disks/data", None);
    assert_eq!((again.status, again.code()), (409, "device-busy"));
    let job = vm.end_of_job(&removing);
    assert_eq!(job["state"], "failed", "{job}");
    assert!(
        job["failure"].as_str().unwrap().contains("did not let go"),
        "{job}"
    );
    let took = job["ended_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
    assert!((2000..20_000).contains(&took), "{job}");
    assert_eq!(api.get("/vm/disks/data").body["state"], "present");
    use_disk(&vm, &device, &path, 1);

    let removing = start(&api, "DELETE", "/vm/disks/data", None);
    let cancel = format!("/jobs/{}/cancel", removing["id"]);
    assert_eq!(api.request("POST", &cancel, None).status, 202);
    assert_eq!(vm.end_of_job(&removing)["state"], "cancelled");
    assert_eq!(api.request("POST", &cancel, None).code(), "too-late");

    // What was wanted, and is not any more, is not taken when the guest looks again.
    vm.heed_hot_plug(true);
    use_disk(&vm, &device, &path, 2);
    assert!(vm.has_disk("DATA"));
    remove(&vm, &api, "/vm/disks/data");
    assert!(!vm.has_disk("DATA") && !holds(&vm, &path));

    // A guest that starts over holds nothing.
    let disk = json!({"id": "data", "path": path, "serial": "AGAIN"});
    add(&vm, &api, "/vm/disks", &disk);
    disk_in_guest(&vm, "AGAIN");
    vm.heed_hot_plug(false);
    let removing = start(&api, "DELETE", "/vm/disks/data", None);
    vm.start_reboot();
    succeeds(&vm, &removing);
    assert!(!holds(&vm, &path));
    vm.wait_for_boot(2);
    assert!(!vm.has_disk("AGAIN"));
    vm.power_off();
}

#[test]
fn a_nic_that_the_guest_keeps_works_until_it_is_let_go_of() {
    let bridge = Bridge::new("keepbr", 7, &format!("{HOST}/24"));
    let vm = Vm::builder().api().boot();
    let api = vm.api();
    let nic = json!({"id": "lan", "bridge": bridge.name(), "vlan": 7, "mac": MAC});
    add(&vm, &api, "/vm/nics", &nic);
    let device = nic_in_guest(&vm);
    vm.heed_hot_plug(false);

    let removing = start(&api, "DELETE", "/vm/nics/lan?deadline_ms=2000", None);
    let state = api.get("/vm/nics/lan").body;
    assert_eq!(
        (&state["state"], &state["job"]),
        (&json!("removing"), &removing["id"])
    );
    let again = api.request("DELETE", "/vm/nics/lan", None);
    assert_eq!((again.status, again.code()), (409, "device-busy"));
    let job = vm.end_of_job(&removing);
    assert_eq!(job["state"], "failed", "{job}");
    let failure = job["failure"].as_str().unwrap();
    assert!(failure.contains("did not let go"), "{job}");
    let took = job["ended_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
    assert!((2000..20_000).contains(&took), "{job}");
    assert_eq!(api.get("/vm/nics/lan").body["state"], "present");
    // Its tap is still there, and on the bridge.
    use_nic(&vm, &device);

    // The guest looks again, and nobody wants it any more.
    vm.heed_hot_plug(true);
    use_nic(&vm, &device);
    remove(&vm, &api, "/vm/nics/lan");
    assert!(vm.info().nics.iter().all(|nic| nic.mac != MAC));
    let ports = run(&format!("ip -o link show master {}", bridge.name()));
    assert!(!ports.contains("tap"), "{ports}");
    assert_eq!(api.get("/vm/nics/lan").code(), "no-device");
    vm.power_off();
}

/// A device-mapper device that answers nothing once it is told so; it is thawed and removed on drop.
struct DeadDisk {
    path: PathBuf,
    loop_device: String,
}

impl DeadDisk {
    const NAME: &str = "paddock-dead";

    fn new(image: &Path) -> Self {
        let loop_device = run(&format!("losetup --find --show {}", image.display()));
        let loop_device = loop_device.trim().to_owned();
        let (name, sectors) = (Self::NAME, 16 * MIB / 512);
        run(&format!(
            "echo 0 {sectors} linear {loop_device} 0 | dmsetup create --noudevsync {name}"
        ));
        let node = run(&format!(
            "dmsetup info --columns --noheadings -o blkdevname {name}"
        ));
        let path = Path::new("/dev").join(node.trim());
        Self { path, loop_device }
    }

    fn freeze(&self) {
        run(&format!(
            "dmsetup suspend --nolockfs --noflush {}",
            Self::NAME
        ));
    }

    fn thaw(&self) {
        run(&format!("dmsetup resume --noudevsync {}", Self::NAME));
    }
}

impl Drop for DeadDisk {
    fn drop(&mut self) {
        let name = Self::NAME;
        let _ = shell(&format!(
            "dmsetup resume --noudevsync {name}; dmsetup remove --noudevsync --retry {name}; losetup --detach {}",
            self.loop_device
        ));
    }
}

#[test]
fn a_removal_ends_while_a_reset_waits_for_a_dead_disk() {
    let directory = tempfile::tempdir().unwrap();
    let dead = DeadDisk::new(&image(&directory, "dead"));
    let path = image(&directory, "disk");
    let mut vm = Vm::builder()
        .api()
        .args([
            "--disk",
            &format!("path={},serial=DEAD", dead.path.display()),
        ])
        .args([
            "--disk",
            &format!("id=data,path={},serial=DATA", path.display()),
        ])
        .boot();
    let api = vm.api();
    let device = disk_in_guest(&vm, "DEAD");
    dead.freeze();
    vm.heed_hot_plug(false);
    vm.shell(&format!(
        "dd if={device} of=/dev/null bs=4k count=1 iflag=direct >/dev/null 2>&1 &"
    ));
    sleep(Duration::from_secs(1));
    let late = start(&api, "DELETE", "/vm/disks/data?deadline_ms=8000", None);
    let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
    assert_eq!(api.act("reset").status, 202);
    events.wait_for_state("resetting");
    let job = vm.end_of_job(&late);
    assert_eq!(api.state(), "resetting");
    let failure = job["failure"].as_str().unwrap_or_default();
    assert!(failure.contains("still resetting"), "{job}");
    let took = job["ended_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
    assert!((8000..20_000).contains(&took), "{job}");
    assert_eq!(api.get("/vm/disks/data").body["state"], "present");
    let again = api.request("DELETE", "/vm/disks/data", None);
    assert_eq!(again.status, 409, "not before it runs: {again:?}");

    dead.thaw();
    events.wait_for_state("running");
    vm.wait_for_boot(2);
    let device = disk_in_guest(&vm, "DATA");
    use_disk(&vm, &device, &path, 6);
    remove(&vm, &api, "/vm/disks/data");
    assert!(!vm.has_disk("DATA") && !holds(&vm, &path));
    disk_in_guest(&vm, "DEAD");
    vm.power_off();
}

#[test]
fn what_was_added_is_there_after_a_reset_and_what_failed_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (image(&directory, "first"), image(&directory, "second"));
    let mut vm = Vm::builder().api().boot();
    let api = vm.api();
    let absent = json!({"path": directory.path().join("absent")});
    let started = start(&api, "POST", "/vm/disks", Some(&absent));
    let job = vm.end_of_job(&started);
    assert_eq!(job["state"], "failed", "{job}");
    assert!(
        job["failure"].as_str().unwrap().contains("No such file"),
        "{job}"
    );
    assert_eq!(api.get("/vm/disks").body, json!([]));

    add(
        &vm,
        &api,
        "/vm/disks",
        &json!({"path": first, "serial": "FIRST"}),
    );
    add(
        &vm,
        &api,
        "/vm/disks",
        &json!({"path": second, "serial": "SECOND"}),
    );
    let twice = api.request("POST", "/vm/disks", Some(&json!({"path": first})));
    assert_eq!(twice.status, 422, "{twice:?}");
    let device = disk_in_guest(&vm, "SECOND");
    use_disk(&vm, &device, &second, 3);
    // From the first place: the second keeps its own.
    remove(&vm, &api, "/vm/disks/disk0");
    let places = |vm: &Vm| -> Vec<String> {
        let functions = vm.info().pci.into_iter();
        functions.map(|function| function.address).collect()
    };
    let before = places(&vm);
    vm.reboot(2);
    assert_eq!(places(&vm), before, "devices stay in their slots");
    let disks = vm.info().disks;
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0].serial, "SECOND");
    assert_eq!(
        api.get("/vm").body["spec"]["disks"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    vm.power_off();
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    /// With the bridges, the console and the entropy device that is a full bus.
    #[test]
    fn twenty_disks_and_eight_nics() {
        let directory = tempfile::tempdir().unwrap();
        let mut arguments = Vec::new();
        for index in 0..20 {
            let path = image(&directory, &format!("disk{index}"));
            arguments.extend([
                "--disk".to_owned(),
                format!("path={},serial=S{index}", path.display()),
            ]);
        }
        let taps: Vec<Link> = (0..8)
            .map(|index| Link::tap(&format!("many{index}"), "vnet_hdr"))
            .collect();
        for tap in &taps {
            arguments.extend(["--net".to_owned(), format!("tap={}", tap.name())]);
        }
        let vm = Vm::builder().api().args(arguments).boot();
        let api = vm.api();
        let info = vm.info();
        assert_eq!((info.disks.len(), info.nics.len()), (20, 8));
        for index in 0..20 {
            assert!(
                info.disks
                    .iter()
                    .any(|disk| disk.serial == format!("S{index}"))
            );
        }
        let path = image(&directory, "one too many");
        let started = start(&api, "POST", "/vm/disks", Some(&json!({"path": path})));
        let job = vm.end_of_job(&started);
        assert!(
            job["failure"]
                .as_str()
                .unwrap()
                .contains("places on its PCI bus"),
            "{job}"
        );
        // One out, one in.
        remove(&vm, &api, "/vm/disks/disk19");
        add(
            &vm,
            &api,
            "/vm/disks",
            &json!({"path": path, "serial": "NEW"}),
        );
        let device = disk_in_guest(&vm, "NEW");
        use_disk(&vm, &device, &path, 4);
        vm.power_off();
    }
}
