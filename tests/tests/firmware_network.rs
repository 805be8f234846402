//! Stock firmware boots from the network: an EFI application and a unified kernel image, by PXE and by HTTP.
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
use paddock_tests::netboot::{BootNetwork, Protocol};
use paddock_tests::{Vm, within};

/// From power-on to what comes from the network: firmware collects DHCP offers for some seconds.
const NETWORK_DEADLINE: Duration = Duration::from_secs(240);

/// The NIC is the first choice although there is a disk that boots; what comes from the NIC gives way to the disk.
fn the_network_comes_before_the_disk(suite: Suite) {
    let network = BootNetwork::new("pdkpxe", Protocol::Pxe, "efi-app.efi");
    let scratch = Scratch::new();
    let mut vm = suite
        .vm()
        .args(scratch.disk("efi-app.raw"))
        .args(["--net", &network.nic(), "--boot-order", "net0,disk0"])
        .args(["--oem-string", "efi-app:boots=1 return; info"])
        .start();
    let done = within(NETWORK_DEADLINE, || {
        vm.console().contains("EFI-APP-OK boots=2")
    });
    if !done || !network.log().contains("efi-app.efi to 10.97.0.20") {
        let log = network.log();
        vm.fail(&format!(
            "not from the network, then the disk; the servers:\n{log}"
        ));
    }
    vm.expect_exit(0);
}

#[test]
fn pxe_before_a_disk_by_bookworm() {
    the_network_comes_before_the_disk(Suite::Bookworm);
}

#[test]
fn pxe_before_a_disk_by_trixie() {
    the_network_comes_before_the_disk(Suite::Trixie);
}

/// Waits until the unified kernel image that `network` serves has come up.
fn a_kernel_comes(network: &BootNetwork, mut vm: Vm) {
    let up = within(NETWORK_DEADLINE, || {
        vm.console().contains("paddock-probe: up")
    });
    if !up {
        let log = network.log();
        vm.fail(&format!("no kernel comes from the servers:\n{log}"));
    }
    vm.connect();
    assert!(vm.shell("cat /proc/cmdline").contains("probe.image=uki"));
    vm.power_off();
}

/// A VM without any disk.
#[test]
fn a_kernel_by_pxe() {
    let network = BootNetwork::new("pdkpxe", Protocol::Pxe, "uki.efi");
    let vm = Suite::Bookworm
        .vm()
        .memory("512M")
        .args(["--net", &network.nic(), "--boot-order", "net0"])
        .start();
    a_kernel_comes(&network, vm);
}

/// Firmware asks for it only after minutes of PXE, unless it is told to begin with it.
#[test]
fn a_kernel_by_http() {
    let network = BootNetwork::new("pdkhttp", Protocol::Http, "uki.efi");
    let scratch = Scratch::new();
    let vm = Suite::Trixie
        .vm()
        .memory("512M")
        .args(scratch.disk("efi-app.raw"))
        .args(["--net", &network.nic(), "--boot-order", "disk0,net0"])
        .args(["--oem-string", "efi-app:boot-next HTTPv4; reset"])
        .start();
    a_kernel_comes(&network, vm);
}
