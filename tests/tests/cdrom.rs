//! CD-ROM drives: what is on a medium is what the guest reads, and media come and go while it runs, with its consent or without.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::path::{Path, PathBuf};

use paddock_probe::protocol::Exec;
use paddock_tests::cdrom::{DRIVE, eject, insert, wait_for_drive};
use paddock_tests::host::run;
use paddock_tests::vm::{CALL_DEADLINE, text};
use paddock_tests::{Api, Vm};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const ERRORS: &str = "paddock_cdrom_errors_total{cdrom=\"cdrom0\"}";

/// An ISO with one file of `mib` MiB by chance, and one that says its name.
fn iso(directory: &TempDir, name: &str, mib: u64) -> PathBuf {
    let tree = directory.path().join(name);
    let image = directory.path().join(format!("{name}.iso"));
    run(&format!(
        "mkdir {tree} && head -c {size} /dev/urandom >{tree}/data && echo {name} >{tree}/name && \
         xorriso -as mkisofs -quiet -r -V {name} -o {image} {tree}",
        tree = text(&tree),
        image = text(&image),
        size = mib << 20,
    ));
    image
}

/// The checksum of the file by chance, as the host made it.
fn checksum(directory: &TempDir, name: &str) -> String {
    let data = directory.path().join(name).join("data");
    first_word(&run(&format!("sha256sum {}", text(&data))))
}

fn first_word(line: &str) -> String {
    line.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A VM with a drive that has this medium, or none.
fn boot(medium: Option<&Path>) -> (Vm, Api) {
    let mut arguments = vec!["--cdrom".to_owned()];
    arguments.extend(medium.map(|path| text(path).to_owned()));
    let vm = Vm::builder().args(arguments).api().boot();
    wait_for_drive(&vm);
    let api = vm.api();
    (vm, api)
}

/// Whether a shell command of the guest's succeeds, and what it said.
fn guest(vm: &Vm, command: &str) -> (bool, String) {
    let reply = vm.call(Exec::shell(command));
    let said = reply.stdout.to_text() + &reply.stderr.to_text();
    (reply.success(), said)
}

/// Waits until the drive looks so.
fn until(vm: &Vm, api: &Api, what: &str, is_so: impl Fn(&Value) -> bool) {
    let otherwise = format!("it is not so that {what}");
    vm.wait_until(&otherwise, CALL_DEADLINE, || is_so(&api.get(DRIVE).body));
}

fn mount(vm: &Vm) {
    vm.shell("mkdir -p /tmp/cd && mount -t iso9660 -o ro /dev/sr0 /tmp/cd");
}

/// Mounts the medium, and checks that it is this one, to the last byte.
fn holds(vm: &Vm, directory: &TempDir, name: &str) {
    mount(vm);
    assert_eq!(vm.shell("cat /tmp/cd/name").trim(), name);
    let sum = first_word(&vm.shell("sha256sum /tmp/cd/data"));
    assert_eq!(sum, checksum(directory, name));
    vm.shell("umount /tmp/cd");
}

#[test]
fn media_are_read_and_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (iso(&directory, "first", 24), iso(&directory, "second", 5));
    let (vm, api) = boot(Some(&first));
    assert_eq!(api.get(DRIVE).body["medium"], json!(first));
    let model = vm.shell("cat /sys/block/sr0/device/vendor /sys/block/sr0/device/model");
    assert_eq!(
        model.split_whitespace().collect::<Vec<_>>(),
        ["PADDOCK", "CD-ROM"]
    );
    holds(&vm, &directory, "first");

    // One who follows hears of it, and the guest finds the other medium by itself.
    let mut events = api.events(0);
    let changed = insert(&api, &second, "");
    assert_eq!(
        (changed.status, &changed.body["medium"]),
        (200, &json!(second))
    );
    let told = events.wait_for("medium");
    assert_eq!(
        (&told["cdrom"], &told["path"]),
        (&json!("cdrom0"), &json!(second))
    );
    holds(&vm, &directory, "second");
    let size = vm.shell("blockdev --getsize64 /dev/sr0");
    assert_eq!(
        size.trim().parse::<u64>().unwrap(),
        second.metadata().unwrap().len()
    );

    assert_eq!(eject(&api, "").status, 200);
    let (read, said) = guest(&vm, "dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    assert!(!read && said.contains("No medium found"), "{said}");
    assert_eq!(insert(&api, &first, "").status, 200);
    holds(&vm, &directory, "first");

    let metrics = api.metrics();
    let read = metrics.get("paddock_cdrom_read_bytes_total{cdrom=\"cdrom0\"}");
    assert!(read > 53.0 * 1_048_576.0, "{read}");
    assert!(metrics.get(ERRORS) < 1.0);
    vm.power_off();
}

#[test]
fn what_the_guest_uses_is_taken_by_force_only() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (iso(&directory, "first", 8), iso(&directory, "second", 1));
    let (vm, api) = boot(Some(&first));
    mount(&vm);
    until(&vm, &api, "it is locked", |drive| drive["locked"] == true);
    assert_eq!(eject(&api, "").code(), "tray-locked");
    assert_eq!(insert(&api, &second, "?force=false").code(), "tray-locked");
    assert_eq!(
        vm.shell("cat /tmp/cd/name").trim(),
        "first",
        "nothing happened to it"
    );
    let forced = eject(&api, "?force=true");
    assert_eq!(
        (forced.status, &forced.body["locked"]),
        (200, &json!(false))
    );
    let (read, said) = guest(
        &vm,
        "echo 3 >/proc/sys/vm/drop_caches; cat /tmp/cd/data >/dev/null",
    );
    assert!(!read, "{said}");
    vm.shell("umount /tmp/cd");
    assert_eq!(insert(&api, &second, "").status, 200);
    holds(&vm, &directory, "second");
    until(&vm, &api, "it is unlocked", |drive| {
        drive["locked"] == false
    });
    vm.power_off();
}

#[test]
fn the_guest_opens_the_tray_and_it_stays_open_over_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (iso(&directory, "first", 1), iso(&directory, "second", 1));
    let (mut vm, api) = boot(Some(&first));
    // The kernel ejects when the last one closes the device, and does not close the tray again by itself.
    vm.shell("echo 0 >/proc/sys/dev/cdrom/autoclose; echo 1 >/proc/sys/dev/cdrom/autoeject");
    vm.shell("dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    until(&vm, &api, "it is open", |drive| drive["open"] == true);
    assert_eq!(api.get(DRIVE).body["medium"], json!(first), "still in it");
    let (read, said) = guest(&vm, "dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    assert!(!read && said.contains("No medium found"), "{said}");
    vm.reboot(2);
    wait_for_drive(&vm);
    assert_eq!(api.get(DRIVE).body["open"], true);
    // Who opens the device has the tray closed. Linux asks for the size of the blocks before that, so the first one may read nothing.
    guest(&vm, "dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    holds(&vm, &directory, "first");
    assert_eq!(api.get(DRIVE).body["open"], false);
    vm.shell("echo 1 >/proc/sys/dev/cdrom/autoeject; dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    until(&vm, &api, "it is open again", |drive| drive["open"] == true);
    vm.shell("echo 0 >/proc/sys/dev/cdrom/autoeject");
    let closed = insert(&api, &second, "");
    assert_eq!((closed.status, &closed.body["open"]), (200, &json!(false)));
    holds(&vm, &directory, "second");
    vm.power_off();
}

#[test]
fn an_empty_drive_and_what_is_no_medium() {
    let directory = tempfile::tempdir().unwrap();
    let (vm, api) = boot(None);
    assert_eq!(api.get(DRIVE).body.get("medium"), None);
    let (read, said) = guest(&vm, "dd if=/dev/sr0 of=/dev/null bs=2048 count=1");
    assert!(!read && said.contains("No medium found"), "{said}");
    let absent = directory.path().join("absent.iso");
    let refused = insert(&api, &absent, "");
    assert_eq!((refused.status, refused.code()), (422, "invalid-spec"));
    assert!(
        refused.body["detail"]
            .as_str()
            .unwrap()
            .contains("absent.iso"),
        "{refused:?}"
    );
    assert_eq!(eject(&api, "").status, 200, "it is empty, as is wanted");
    // Any size: the last block is filled up.
    let odd = directory.path().join("odd");
    std::fs::write(&odd, vec![7; MIB + 1000]).unwrap();
    assert_eq!(insert(&api, &odd, "").status, 200);
    let count = |filter: &str| -> usize {
        let counted = vm.shell(&format!("dd if=/dev/sr0 bs=2048 {filter} | wc -c"));
        counted.trim().parse().unwrap()
    };
    assert_eq!(count(""), MIB + 2048);
    assert_eq!(count("| tr -d '\\000'"), MIB + 1000);
    // A file that shrinks under the guest is an error to it, and no more than that. (Near the end Linux takes one for the end.)
    std::fs::write(&odd, vec![7; MIB / 4]).unwrap();
    let (read, said) = guest(
        &vm,
        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/sr0 of=/dev/null bs=2048",
    );
    assert!(!read, "{said}");
    assert!(api.metrics().get(ERRORS) >= 1.0);
    vm.power_off();
}
