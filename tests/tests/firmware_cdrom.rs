//! Stock firmware boots from CD-ROM drives, as the boot order says, and what it boots finds its medium there.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::path::PathBuf;

use paddock_tests::cdrom::{eject, holds, insert};
use paddock_tests::firmware::{Scratch, Suite};
use paddock_tests::vm::text;
use paddock_tests::{Vm, VmBuilder, files};

const PURE: &str = "iso-pure";
const HYBRID: &str = "iso-hybrid";
/// What is on the disk.
const UKI: &str = "uki";

/// The file of an ISO. Nobody writes it.
fn iso(name: &str) -> PathBuf {
    files::guest(&format!("{name}.iso"))
}

/// A VM with these drives, each with what `--cdrom` says, and this boot order.
fn with_drives<S: AsRef<str>>(vm: VmBuilder, drives: &[S], order: &str) -> VmBuilder {
    let drives = drives.iter().flat_map(|drive| ["--cdrom", drive.as_ref()]);
    let order = ["--boot-order", order]
        .into_iter()
        .filter(|_| !order.is_empty());
    vm.memory("512M").args(drives.chain(order))
}

/// The guest was booted from this image.
#[track_caller]
fn came_from(vm: &Vm, image: &str) {
    let command_line = vm.shell("cat /proc/cmdline");
    let wanted = format!("probe.image={image}");
    if !command_line.split_whitespace().any(|word| word == wanted) {
        vm.fail(&format!("{image} was to be booted, not {command_line}"));
    }
}

fn an_iso_boots(vm: VmBuilder, name: &str) {
    let medium = iso(name);
    let vm = with_drives(vm, &[text(&medium)], "").boot();
    came_from(&vm, name);
    holds(&vm, &medium);
    vm.power_off();
}

#[test]
fn pure_isos_boot() {
    for suite in Suite::Trixie.or_both() {
        an_iso_boots(suite.vm(), PURE);
    }
}

/// As an installation goes: from the medium at first, from the disk once it is ejected, and from another medium when one is inserted.
#[test]
fn an_ejected_medium_gives_way_to_the_disk() {
    for suite in Suite::Trixie.or_both() {
        let scratch = Scratch::new();
        let [pure, hybrid] = [PURE, HYBRID].map(iso);
        let vm = suite.vm().args(scratch.disk("uki.raw")).api();
        let mut vm = with_drives(vm, &[text(&pure)], "cdrom0,disk0").boot();
        came_from(&vm, PURE);
        holds(&vm, &pure);
        let api = vm.api();
        assert_eq!(insert(&api, &hybrid, "").status, 200);
        holds(&vm, &hybrid);
        assert_eq!(eject(&api, "").status, 200);
        vm.reboot(2);
        came_from(&vm, UKI);
        assert_eq!(insert(&api, &hybrid, "").status, 200);
        holds(&vm, &hybrid);
        vm.reboot(3);
        came_from(&vm, HYBRID);
        vm.power_off();
    }
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn hybrid_isos_boot() {
        for suite in Suite::Bookworm.or_both() {
            an_iso_boots(suite.vm(), HYBRID);
        }
    }

    #[test]
    fn seabios_boots_a_hybrid_iso() {
        for suite in Suite::Trixie.or_both() {
            let firmware = suite.file("bios-256k.bin");
            an_iso_boots(Vm::builder().firmware(&firmware), HYBRID);
        }
    }

    #[test]
    fn an_empty_tray_is_passed_over() {
        for suite in Suite::Trixie.or_both() {
            let scratch = Scratch::new();
            let drives = [
                "id=empty".to_owned(),
                format!("path={},id=full", text(&iso(PURE))),
            ];
            for (order, image) in [("empty,full,disk0", PURE), ("empty,disk0,full", UKI)] {
                let vm = suite.vm().args(scratch.disk("uki.raw"));
                let vm = with_drives(vm, &drives, order).boot();
                came_from(&vm, image);
                vm.power_off();
            }
        }
    }
}
