//! What becomes of a disk's errors, and disks that grow and are limited, as a guest on real KVM sees it.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use paddock_probe::protocol::{Area, BlocksVerify, BlocksWrite};
use paddock_tests::host::{SmallFileSystem, run, shell};
use paddock_tests::{Ctl, Vm};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(300);

/// Requests that a guest has on their way: on a slow host they are still more than a limit lets through.
const JOBS: u32 = 8;

/// A VM with an API and a disk.
fn boot(path: &Path, more: &str) -> Vm {
    let disk = format!("path={},id=data{more}", path.display());
    Vm::builder().api().args(["--disk", &disk]).boot()
}

fn image(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Megabytes from an offset on.
fn area(offset: u64, length: u64) -> Area {
    let mut area = Area::new("/dev/vda", length, 5);
    area.offset = offset;
    area.block_size = 1 << 20;
    area
}

fn write_and_verify(vm: &Vm, area: &Area) {
    let mut write = BlocksWrite::new(area.clone());
    write.issue.jobs = JOBS;
    write.flush = true;
    let written = vm.call_within(write, LONG);
    assert!(written.is_clean(), "{written:?}");
    let mut verify = BlocksVerify::new(area.clone());
    verify.issue.jobs = JOBS;
    let verified = vm.call_within(verify, LONG);
    assert!(verified.is_clean(), "{verified:?}");
}

#[test]
fn a_full_host_stops_the_vm_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let small = SmallFileSystem::new(directory.path().join("small"), "16m");
    let vm = boot(&image(small.path(), 64 * MIB), ",on-error=stop");
    let api = vm.api();
    let mut events = api.events(0);
    events.wait_for_state("running");
    let area = area(0, 48 * MIB);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| vm.call_within(BlocksWrite::new(area.clone()), LONG));
        let error = events.wait_for("disk-error");
        assert_eq!(
            (&error["disk"], &error["errno"]),
            (&json!("data"), &json!(28)),
            "{error}"
        );
        events.wait_for_state("paused");
        let failures = api.get("/vm").body["disk_failures"].clone();
        assert_eq!(
            (&failures[0]["disk"], &failures[0]["errno"]),
            (&json!("data"), &json!(28))
        );
        // There is still no room: it stops again, and nothing is lost.
        assert_eq!(api.act("resume").status, 202);
        events.wait_for_state("running");
        events.wait_for_state("paused");
        small.grow("128m");
        assert_eq!(api.act("resume").status, 202);
        events.wait_for("disk-recovered");
        writer.join().unwrap()
    });
    assert!(written.is_clean(), "the guest saw an error: {written:?}");
    let verified = vm.call_within(BlocksVerify::new(area), LONG);
    assert!(verified.is_clean(), "{verified:?}");
    assert!(
        api.get("/vm").body["disk_failures"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    vm.power_off();
}

#[test]
fn a_disk_that_is_tried_again_recovers_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let small = SmallFileSystem::new(directory.path().join("small"), "16m");
    let vm = boot(&image(small.path(), 64 * MIB), ",on-error=retry");
    let api = vm.api();
    let mut events = api.events(0);
    let area = area(0, 48 * MIB);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| vm.call_within(BlocksWrite::new(area.clone()), LONG));
        events.wait_for("disk-error");
        assert_eq!(api.state(), "running");
        small.grow("128m");
        events.wait_for("disk-recovered");
        writer.join().unwrap()
    });
    assert!(written.is_clean(), "the guest saw an error: {written:?}");
    let verified = vm.call_within(BlocksVerify::new(area), LONG);
    assert!(verified.is_clean(), "{verified:?}");
    vm.power_off();
}

#[test]
fn a_disk_grows_and_the_guest_uses_what_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let vm = boot(&image(directory.path(), 64 * MIB), "");
    assert_eq!(vm.info().disks[0].size, 64 * MIB);
    let grown = Ctl::at(vm.api().socket()).json(&["disks", "resize", "data", "96MiB"]);
    assert_eq!(grown["size"], 96 * MIB, "{grown}");
    vm.wait_until(
        "the guest does not see the new size",
        Duration::from_secs(30),
        || vm.info().disks[0].size == 96 * MIB,
    );
    write_and_verify(&vm, &area(60 * MIB, 36 * MIB));
    vm.power_off();
}

/// Sets the limits of a disk that is used. Returns how long the guest then takes for an area, and how many of its requests were made to wait.
fn limited(vm: &Vm, limits: &Value, area: &Area) -> (Duration, f64) {
    let api = vm.api();
    let answer = api.request("PUT", "/vm/disks/data/limits", Some(limits));
    assert_eq!(answer.status, 200, "{answer:?}");
    let waited = || {
        let name = "paddock_disk_throttled_requests_total{disk=\"data\"}";
        api.metrics().get(name)
    };
    let (before, since) = (waited(), Instant::now());
    write_and_verify(vm, area);
    (since.elapsed(), waited() - before)
}

#[test]
fn a_disk_takes_the_time_of_the_limits_that_it_has_now() {
    let directory = tempfile::tempdir().unwrap();
    let vm = boot(&image(directory.path(), 64 * MIB), "");
    // Twice 12 MiB at 4 MiB a second, less what may come at once.
    let limits = json!({"bandwidth": "4MiB"});
    let (took, waited) = limited(&vm, &limits, &area(0, 12 * MIB));
    assert!(
        took > Duration::from_secs(3) && waited > 0.0,
        "{took:?}, {waited}"
    );
    // Twice 40 requests at 15 a second: of so few bytes that the limit of before would let them pass.
    let small = Area {
        block_size: 4096,
        ..area(0, 40 * 4096)
    };
    let (took, waited) = limited(&vm, &json!({"iops": 15}), &small);
    assert!(
        took > Duration::from_secs(3) && waited > 40.0,
        "{took:?}, {waited}"
    );
    let (_, waited) = limited(&vm, &json!({}), &small);
    assert!(waited < 1.0, "no limit is left: {waited}");
    vm.power_off();
}

/// A loop device of a file, and device-mapper devices on it; taken down on drop.
struct Devices {
    image: PathBuf,
    loop_device: String,
    names: Vec<&'static str>,
}

impl Devices {
    fn on(image: PathBuf) -> Self {
        let loop_device = run(&format!("losetup --find --show {}", image.display()));
        Self {
            image,
            loop_device: loop_device.trim().to_owned(),
            names: Vec::new(),
        }
    }

    /// A table that maps so many bytes to the loop device.
    fn table(&self, size: u64) -> String {
        format!("0 {} linear {} 0", size / 512, self.loop_device)
    }

    /// Makes a device, which `link` leads to from now on.
    fn appear(&mut self, name: &'static str, size: u64, link: &Path) {
        let table = self.table(size);
        run(&format!(
            "echo {table} | dmsetup create --noudevsync {name}"
        ));
        self.names.push(name);
        let node = run(&format!(
            "dmsetup info --columns --noheadings -o blkdevname {name}"
        ));
        let _ = std::fs::remove_file(link);
        symlink(Path::new("/dev").join(node.trim()), link).unwrap();
    }

    /// Whatever is asked of a device fails from now on, as that of one that was pulled out.
    fn vanish(&self, name: &str, link: &Path) {
        run(&format!("dmsetup wipe_table --noudevsync {name}"));
        std::fs::remove_file(link).unwrap();
    }

    /// Makes a device larger, with what is below it.
    fn grow(&self, name: &str, size: u64) {
        let file = File::options().write(true).open(&self.image).unwrap();
        file.set_len(size).unwrap();
        let (table, below) = (self.table(size), &self.loop_device);
        run(&format!(
            "losetup --set-capacity {below} && echo {table} | dmsetup load {name} && dmsetup resume --noudevsync {name}"
        ));
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = shell(&format!("dmsetup remove --noudevsync --retry {name}"));
        }
        let _ = shell(&format!("losetup --detach {}", self.loop_device));
    }
}

#[test]
fn a_block_device_vanishes_comes_back_under_its_path_and_grows() {
    let directory = tempfile::tempdir().unwrap();
    let mut devices = Devices::on(image(directory.path(), 64 * MIB));
    let link = directory.path().join("by-name");
    devices.appear("paddock-before", 64 * MIB, &link);
    let vm = boot(&link, ",on-error=retry");
    let api = vm.api();
    let mut events = api.events(0);
    write_and_verify(&vm, &area(0, 16 * MIB));
    devices.vanish("paddock-before", &link);
    let area_of_both = area(8 * MIB, 32 * MIB);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| vm.call_within(BlocksWrite::new(area_of_both.clone()), LONG));
        let error = events.wait_for("disk-error");
        assert_eq!(error["disk"], "data", "{error}");
        devices.appear("paddock-after", 64 * MIB, &link);
        events.wait_for("disk-recovered");
        writer.join().unwrap()
    });
    assert!(written.is_clean(), "the guest saw an error: {written:?}");
    let verified = vm.call_within(BlocksVerify::new(area_of_both), LONG);
    assert!(verified.is_clean(), "{verified:?}");

    devices.grow("paddock-after", 96 * MIB);
    let answer = api.request("PUT", "/vm/disks/data/size", Some(&json!({})));
    assert_eq!(
        (answer.status, &answer.body["size"]),
        (200, &json!(96 * MIB)),
        "{answer:?}"
    );
    let soon = Duration::from_secs(30);
    vm.wait_until("the guest does not see the new size", soon, || {
        vm.info().disks[0].size == 96 * MIB
    });
    write_and_verify(&vm, &area(60 * MIB, 36 * MIB));
    vm.power_off();
}
