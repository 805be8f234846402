//! Stock firmware boots a unified kernel image, ISOs, and, as a BIOS, a disk with a master boot record.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::path::Path;

use paddock_tests::firmware::{CODE, Scratch, Suite};
use paddock_tests::{Vm, amount};

/// Boots an image to paddock's probe, through `firmware`; under the soak with several processors as well, and often.
fn probe_answers(firmware: &Path, image: &str, more: &str) {
    let scratch = Scratch::new();
    let [flag, disk] = scratch.disk(image);
    for cpus in (1..=2).cycle().take(usize::try_from(amount(1, 6)).unwrap()) {
        let vm = Vm::builder()
            .firmware(firmware)
            .cpus(&cpus)
            .memory("512M")
            .args([flag.clone(), format!("{disk}{more}")])
            .boot();
        let command_line = vm.shell("cat /proc/cmdline");
        assert!(command_line.contains("probe.image="), "{command_line}");
        assert!(vm.shell("dmesg").contains("ACPI: MCFG"), "no MCFG");
        vm.power_off();
    }
}

#[test]
fn a_unified_kernel_image_boots() {
    for suite in Suite::Bookworm.or_both() {
        probe_answers(&suite.file(CODE), "uki.raw", "");
    }
}

#[test]
fn isos_boot_from_virtio_blk() {
    for (usual, image) in [
        (Suite::Bookworm, "iso-pure.iso"),
        (Suite::Trixie, "iso-hybrid.iso"),
    ] {
        for suite in usual.or_both() {
            probe_answers(&suite.file(CODE), image, ",readonly");
        }
    }
}

#[test]
fn seabios_boots_an_mbr_disk() {
    for suite in Suite::Bookworm.or_both() {
        probe_answers(&suite.file("bios-256k.bin"), "bios-disk.raw", "");
    }
}
