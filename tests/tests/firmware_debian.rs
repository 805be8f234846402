//! Stock firmware boots Debian from its disk, with either boot loader.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::time::Duration;

use paddock_tests::amount;
use paddock_tests::firmware::{Scratch, Suite};
use paddock_tests::is_soak;

/// From power-on to a distribution's login; emulated twice over, it takes its time.
const LOGIN_DEADLINE: Duration = Duration::from_secs(400);

/// Boots it to its login and powers it off; under the soak several times, with the variables and the boot entries of the time before.
fn debian_boots(suite: Suite, image: &str, cpus: u32) {
    let scratch = Scratch::new();
    let disk = scratch.disk(image);
    for _ in 0..amount(1, 3) {
        let mut vm = suite
            .vm()
            .cpus(&cpus)
            .memory("1G")
            .args(disk.clone())
            .args(scratch.variables())
            .start();
        vm.wait_for_console("login:", 1, LOGIN_DEADLINE);
        // Only then somebody there listens to the power button.
        vm.connect();
        vm.wait_until("no logind", LOGIN_DEADLINE, || {
            vm.shell("systemctl is-active systemd-logind || true") == "active\n"
        });
        vm.signal("TERM");
        vm.expect_exit(0);
    }
}

#[test]
fn debian_with_grub() {
    debian_boots(Suite::Trixie, "grub-disk.raw", 2);
    if is_soak() {
        debian_boots(Suite::Bookworm, "grub-disk.raw", 1);
    }
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn debian_with_systemd_boot() {
        debian_boots(Suite::Bookworm, "debian.raw", 1);
        if is_soak() {
            debian_boots(Suite::Trixie, "debian.raw", 2);
        }
    }
}
