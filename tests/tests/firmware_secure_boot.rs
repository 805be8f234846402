//! Secure Boot by Debian 12's firmware: what an enrolled key has signed is run, and nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs;
use std::path::Path;

use paddock_tests::firmware::{APP_DEADLINE, Scratch, Suite, app_is_fine, says, script};
use paddock_tests::vm::text;
use paddock_tests::{Vm, VmBuilder};

/// Variables with the key that has signed efi-app-signed.raw, and with none but the usual ones.
const OUR_KEY: &str = "OVMF_VARS_4M.snakeoil.fd";
const USUAL_KEYS: &str = "OVMF_VARS_4M.ms.fd";

/// What the firmware says of what it does not run.
const REFUSED: [&str; 2] = ["Access Denied", "Security Violation"];

fn vm(scratch: &Scratch) -> VmBuilder {
    Suite::Bookworm
        .vm()
        .args(scratch.variables())
        .args(script("info"))
}

/// `--variables-template`
fn keys(name: &str) -> [String; 2] {
    let template = Suite::Bookworm.file(name);
    let flag = "--variables-template".to_owned();
    [flag, text(&template).to_owned()]
}

fn is_refused(vm: &Vm) -> bool {
    let console = vm.console();
    REFUSED.iter().any(|reason| console.contains(reason))
}

/// The firmware passes over the first disk, and runs the application on the second, with Secure Boot, for the `boots`th time.
#[track_caller]
fn the_second_runs(vm: VmBuilder, boots: usize) {
    let mut vm = vm.start();
    app_is_fine(&vm, boots);
    says(&vm, "EFI-APP secure-boot=1 setup-mode=0");
    if !is_refused(&vm) {
        vm.fail("the first disk was not refused");
    }
    vm.expect_exit(0);
}

/// Changes a letter of a text in the application, where it lies on the disk: whoever runs it says so.
fn tamper(disk: &Path) {
    let mut bytes = fs::read(disk).unwrap();
    let wide: Vec<u8> = "EFI-APP-START".bytes().flat_map(|byte| [byte, 0]).collect();
    let at = bytes.windows(wide.len()).position(|window| window == wide);
    bytes[at.unwrap()] = b'X';
    fs::write(disk, bytes).unwrap();
}

#[test]
fn what_is_not_signed_or_was_changed_is_passed_over() {
    let (scratch, another) = (Scratch::new(), Scratch::new());
    let signed = scratch.disk("efi-app-signed.raw");
    let unsigned = scratch.disk("efi-app.raw");
    let disks = [unsigned, signed.clone()].concat();
    the_second_runs(vm(&scratch).args(keys(OUR_KEY)).args(disks), 1);

    // The key is in the variables by now, whatever those were made from.
    let changed = another.disk("efi-app-signed.raw");
    tamper(Path::new(&changed[1]));
    the_second_runs(vm(&scratch).args([changed, signed].concat()), 2);
}

#[test]
fn what_another_key_has_signed_is_refused() {
    let scratch = Scratch::new();
    let vm = vm(&scratch)
        .args(keys(USUAL_KEYS))
        .args(scratch.disk("efi-app-signed.raw"))
        .start();
    vm.wait_until("it is neither refused nor run", APP_DEADLINE, || {
        is_refused(&vm) || vm.console().contains("EFI-APP")
    });
    if vm.console().contains("EFI-APP") {
        vm.fail("it has run");
    }
}
