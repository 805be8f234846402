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

use paddock_tests::VmBuilder;
use paddock_tests::firmware::{APP_DEADLINE, Scratch, Suite, app_is_fine, says, script};
use paddock_tests::vm::text;

/// Variables with the key that has signed efi-app-signed.raw, and with none but the usual ones.
const OUR_KEY: &str = "OVMF_VARS_4M.snakeoil.fd";
const USUAL_KEYS: &str = "OVMF_VARS_4M.ms.fd";

/// What the firmware says of what it does not run.
const REFUSED: &str = "Access Denied";

/// A VM whose variables, in a file of its own, begin with these keys.
fn vm(scratch: &Scratch, keys: &str) -> VmBuilder {
    let template = Suite::Bookworm.file(keys);
    Suite::Bookworm
        .vm()
        .args(scratch.variables())
        .args(["--variables-template", text(&template)])
        .args(script("info"))
}

/// The application ran, and saw Secure Boot switched on.
#[track_caller]
fn runs(vm: VmBuilder, boots: usize) {
    let mut vm = vm.start();
    app_is_fine(&vm, boots);
    says(&vm, "EFI-APP secure-boot=1 setup-mode=0");
    vm.expect_exit(0);
}

/// The firmware refuses the disk, and nothing on it has run.
#[track_caller]
fn is_refused(vm: VmBuilder) {
    let vm = vm.start();
    vm.wait_until("the disk is not refused", APP_DEADLINE, || {
        let console = vm.console();
        console.contains(REFUSED) || console.contains("EFI-APP")
    });
    says(&vm, REFUSED);
    if vm.console().contains("EFI-APP") {
        vm.fail("it has run");
    }
}

#[test]
fn what_is_signed_runs_and_what_is_not_is_refused() {
    let scratch = Scratch::new();
    let signed = scratch.disk("efi-app-signed.raw");
    let unsigned = scratch.disk("efi-app.raw");
    runs(vm(&scratch, OUR_KEY).args(signed.clone()), 1);
    is_refused(vm(&scratch, OUR_KEY).args(unsigned.clone()));
    // The keys are in the variables by now, whatever those were made from.
    let kept = || {
        Suite::Bookworm
            .vm()
            .args(scratch.variables())
            .args(script("info"))
    };
    is_refused(kept().args(unsigned.clone()));
    runs(kept().args(signed), 2);

    // It is the keys that refuse it.
    let without = Scratch::new();
    let mut without = vm(&without, "OVMF_VARS_4M.fd").args(unsigned).start();
    app_is_fine(&without, 1);
    says(&without, "EFI-APP secure-boot=0 setup-mode=1");
    without.expect_exit(0);
}

/// Changes a character of a text in the application, where it lies on the disk.
fn tamper(disk: &Path) {
    let mut bytes = fs::read(disk).unwrap();
    let wide: Vec<u8> = "EFI-APP-START".bytes().flat_map(|byte| [byte, 0]).collect();
    let at = bytes.windows(wide.len()).position(|window| window == wide);
    bytes[at.unwrap()] ^= 1;
    fs::write(disk, bytes).unwrap();
}

#[test]
fn another_key_and_another_content_are_refused() {
    let scratch = Scratch::new();
    let signed = scratch.disk("efi-app-signed.raw");
    is_refused(vm(&scratch, USUAL_KEYS).args(signed.clone()));
    let scratch = Scratch::new();
    let changed = scratch.disk("efi-app-signed.raw");
    tamper(Path::new(&changed[1]));
    is_refused(vm(&scratch, OUR_KEY).args(changed));
}
