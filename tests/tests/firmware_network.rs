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
use paddock_tests::within;

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

/// A VM without a disk, whose kernel is a file on a server.
fn a_kernel_from_the_network(suite: Suite, protocol: Protocol) {
    let network = BootNetwork::new("pdkpxe", protocol, "uki.efi");
    let mut vm = suite
        .vm()
        .memory("512M")
        .args(["--net", &network.nic(), "--boot-order", "net0"])
        .start();
    if !within(NETWORK_DEADLINE, || {
        vm.console().contains("paddock-probe: up")
    }) {
        vm.fail(&format!(
            "no kernel comes from the servers:\n{}",
            network.log()
        ));
    }
    vm.connect();
    assert!(vm.shell("cat /proc/cmdline").contains("probe.image=uki"));
    vm.power_off();
}

#[test]
fn a_kernel_by_pxe() {
    a_kernel_from_the_network(Suite::Trixie, Protocol::Pxe);
}

#[test]
fn a_kernel_by_http() {
    a_kernel_from_the_network(Suite::Bookworm, Protocol::Http);
}
