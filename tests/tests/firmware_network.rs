//! Stock firmware boots from the network, by PXE: an EFI application, and a kernel. (That one's 20 MB take their minutes: firmware polls its
//! NIC, and the lab is slow; QEMU's guests wait as long.)
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::time::Duration;

use paddock_tests::firmware::{Scratch, Suite};
use paddock_tests::netboot::BootNetwork;
use paddock_tests::{Vm, is_soak, within};

/// From power-on to what comes from the network: firmware polls its NIC, which on a busy lab takes minutes.
const NETWORK_DEADLINE: Duration = Duration::from_secs(400);

/// Waits until `text` is on the console, as long as `paddock` runs.
#[track_caller]
fn wait_for(network: &BootNetwork, vm: &mut Vm, text: &str) {
    let said = |vm: &Vm| vm.console().contains(text);
    let _ = within(NETWORK_DEADLINE, || said(vm) || vm.has_ended());
    // What was said last comes a moment after the end.
    if !within(Duration::from_secs(5), || said(vm)) {
        let log = network.log();
        vm.fail(&format!("{text:?} is not said; the servers:\n{log}"));
    }
}

/// What comes from the NIC, the first choice, ends; the disk, the second one, is booted then.
fn the_network_gives_way_to_the_disk(suite: Suite) {
    let network = BootNetwork::new("pdkpxe", "efi-app.efi");
    let scratch = Scratch::new();
    let mut vm = suite
        .vm()
        .args(scratch.disk("efi-app.raw"))
        .args(["--net", &network.nic(), "--boot-order", "nic0,disk0"])
        .args(["--oem-string", "efi-app:boots=1 return; info"])
        .start();
    wait_for(&network, &mut vm, "EFI-APP-OK boots=2");
    if !network.log().contains("efi-app.efi to 10.97.0.20") {
        vm.fail(&format!("not from the network:\n{}", network.log()));
    }
    vm.expect_exit(0);
}

/// A unified kernel image gets to its probe, although there is a disk that boots.
fn a_kernel_comes_over_the_network(suite: Suite) {
    let network = BootNetwork::new("pdkpxe", "uki.efi");
    let scratch = Scratch::new();
    let mut vm = suite
        .vm()
        .memory("512M")
        .args(scratch.disk("efi-app.raw"))
        .args(["--net", &network.nic(), "--boot-order", "nic0,disk0"])
        .start();
    wait_for(&network, &mut vm, "paddock-probe: up, ");
    if !network.log().contains("uki.efi to 10.97.0.20") {
        vm.fail(&format!("not from the network:\n{}", network.log()));
    }
    vm.connect();
    let command_line = vm.shell("cat /proc/cmdline");
    assert!(command_line.contains("probe.image=uki"), "{command_line}");
    vm.power_off();
}

#[test]
fn pxe_before_a_disk() {
    a_kernel_comes_over_the_network(Suite::Trixie);
    if is_soak() {
        a_kernel_comes_over_the_network(Suite::Bookworm);
        the_network_gives_way_to_the_disk(Suite::Bookworm);
        the_network_gives_way_to_the_disk(Suite::Trixie);
    }
}
