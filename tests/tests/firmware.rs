//! Stock firmware runs an EFI application, keeps its variables through everything, and what it cannot be is refused.
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
use std::time::Duration;

use paddock_tests::firmware::{APP_DEADLINE, CODE, Scratch, Suite, app_is_fine, says, script};
use paddock_tests::vm::{refused, text};
use paddock_tests::{Vm, amount, files, is_soak};

fn variables_are_kept(suite: Suite) {
    let scratch = Scratch::new();
    let disk = scratch.disk("efi-app.raw");
    let vm = || {
        let vm = suite.vm().args(disk.clone()).args(scratch.variables());
        vm.args(["--uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
            .args(["--system-serial", "ds=none", "--asset-tag", "rack 3"])
    };
    let commands = "boots=1 info; boots=1 set PaddockKept one; boots=1 exit-boot-services; \
                    boots=1 set PaddockLate two; boots=1 reset; \
                    expect PaddockKept one; expect PaddockLate two";
    let mut first = vm().cpus("2").args(script(commands)).start();
    app_is_fine(&first, 2);
    for line in [
        "EFI-APP-OK boots=1",
        "EFI-APP smbios uuid=6BA7B810-9DAD-11D1-80B4-00C04FD430C8",
        "EFI-APP smbios serial=\"ds=none\"",
        "EFI-APP smbios asset=\"rack 3\"",
        "EFI-APP cpus=2 enabled=2",
        "EFI-APP acpi ",
        " APIC MCFG",
        "EFI-APP boot services left",
        "EFI-APP set PaddockLate=\"two\" at runtime",
    ] {
        says(&first, line);
    }
    first.expect_exit(0);

    let mut second = vm().args(script(commands)).start();
    app_is_fine(&second, 3);
    second.expect_exit(0);
    assert!(!second.console().contains("boots=1"));
}

#[test]
fn variables_are_kept_over_reset_and_power_off_by_trixie() {
    variables_are_kept(Suite::Trixie);
}

/// The 2 MiB layout, and code and variables in one file. Without a file variables live as long as the VM: the next of the same image has none.
#[test]
fn other_layouts_boot_and_variables_without_a_file_end_with_the_vm() {
    let scratch = Scratch::new();
    let disk = scratch.disk("efi-app.raw");
    let all = [
        (Suite::Trixie, "OVMF.fd"),
        (Suite::Trixie, "OVMF.fd"),
        (Suite::Bookworm, "OVMF_CODE.fd"),
        (Suite::Bookworm, "OVMF.fd"),
    ];
    let some = if is_soak() { 4 } else { 3 };
    for (suite, image) in &all[..some] {
        let mut vm = Vm::builder()
            .firmware(&suite.file(image))
            .args(disk.clone())
            .args(script(
                "boots=1 set PaddockKept one; boots=1 reset; expect PaddockKept one",
            ))
            .start();
        app_is_fine(&vm, 2);
        says(&vm, "EFI-APP-START boots=1");
        vm.expect_exit(0);
    }
}

/// The host's own choice, by QEMU's descriptors.
#[test]
fn firmware_is_found_by_its_descriptor() {
    let scratch = Scratch::new();
    let directory = scratch.path("qemu/firmware");
    fs::create_dir_all(&directory).unwrap();
    let file = |name: &str| {
        let file = Suite::Trixie.file(name);
        serde_json::json!({"filename": file, "format": "raw"})
    };
    let descriptor = serde_json::json!({
        "description": "for a test", "interface-types": ["uefi"], "features": [], "tags": [],
        "mapping": {"device": "flash", "executable": file(CODE), "nvram-template": file("OVMF_VARS_4M.fd")},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    });
    fs::write(directory.join("00-test.json"), descriptor.to_string()).unwrap();
    let mut vm = Vm::builder()
        .firmware(Path::new(""))
        .env("XDG_CONFIG_HOME", text(scratch.directory()))
        .args(scratch.disk("efi-app.raw"))
        .args(script("get Nothing"))
        .start();
    app_is_fine(&vm, 1);
    assert!(vm.log().contains("trixie"), "{}", vm.log());
    vm.expect_exit(0);
}

#[test]
fn ram_of_all_sizes() {
    let all = [
        ("128M", "end=0x8000000", Suite::Bookworm),
        ("6G", "end=0x200000000", Suite::Trixie),
        ("3G", "end=0x140000000", Suite::Trixie),
    ];
    let some = if is_soak() { 3 } else { 2 };
    for (memory, end, usual) in &all[..some] {
        for suite in usual.or_both() {
            let scratch = Scratch::new();
            let mut vm = suite
                .vm()
                .memory(memory)
                .args(scratch.disk("efi-app.raw"))
                .args(script("info"))
                .start();
            app_is_fine(&vm, 1);
            let console = vm.console();
            let line = console.lines().find(|l| l.contains("EFI-APP memory"));
            // Firmware keeps what is at the end of low RAM for itself.
            let fits = *memory == "128M" || line.is_some_and(|line| line.contains(end));
            if !fits {
                vm.fail(&format!("{memory}: {line:?}, not {end}"));
            }
            vm.expect_exit(0);
        }
    }
}

#[test]
fn the_boot_order_is_obeyed_and_what_cannot_boot_is_passed_over() {
    for suite in Suite::Trixie.or_both() {
        let scratch = Scratch::new();
        let empty = files::empty_disk(scratch.directory(), "empty.img", 1 << 20);
        let disks = [scratch.disk("uki.raw"), scratch.disk("efi-app.raw")].concat();
        // The third cannot boot, the second gives way, the first is the kernel's.
        let mut vm = suite
            .vm()
            .memory("512M")
            .args(disks)
            .args(["--disk", text(&empty)])
            .args(["--boot-order", "disk2,disk1,disk0"])
            .args(script("return"))
            .boot();
        says(&vm, "EFI-APP-OK boots=1");
        vm.signal("QUIT");
        vm.expect_exit(5);
    }
}

/// What a VM that is killed while it sets variables leaves behind is whole, each time.
#[test]
fn variables_survive_kill_9_during_writes() {
    let scratch = Scratch::new();
    let disk = scratch.disk("efi-app.raw");
    let vm = || {
        let vm = Suite::Trixie.vm().args(disk.clone());
        vm.args(scratch.variables())
    };
    let rounds = amount(1, 12);
    // Firmware that finds half a variable behind the last whole one writes its store anew, byte by byte: a million exits.
    let deadline = APP_DEADLINE * 5;
    for round in 0..rounds {
        let churning = vm().args(script("check-churn; churn 0")).start();
        churning.wait_for_console("EFI-APP churned", 5, deadline);
        // At different moments of the writer's time.
        std::thread::sleep(Duration::from_millis(37 * (round % 8)));
        churning.signal("KILL");
        churning.wait_until("it lives on", APP_DEADLINE, || churning_is_gone(&churning));
        if churning.console().contains("EFI-APP-FAILED") {
            churning.fail("a variable was not whole");
        }
    }
    let mut last = vm().args(script("check-churn")).start();
    last.wait_for_console("EFI-APP-OK", 1, deadline);
    says(&last, "EFI-APP churn kept");
    assert!(!last.console().contains("churn kept 0"));
    last.expect_exit(0);
}

fn churning_is_gone(vm: &Vm) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Runs `paddock run` with what must not work; its error must hold every one of `parts`.
#[track_caller]
fn fails(arguments: &[&str], status: i32, parts: &[&str]) {
    let (code, log) = refused(arguments);
    assert_eq!(code, Some(status), "{arguments:?}:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    for part in parts {
        assert!(log.contains(part), "{part:?} is missing in:\n{log}");
    }
}

#[test]
fn images_that_cannot_run_are_refused_with_the_reason() {
    let scratch = Scratch::new();
    let code = fs::read(Suite::Trixie.file(CODE)).unwrap();
    let write = |name: &str, contents: &[u8]| {
        let path = scratch.path(name);
        fs::write(&path, contents).unwrap();
        text(&path).to_owned()
    };
    let image = |path: &str, parts: &[&str]| fails(&["--firmware", path], 1, parts);
    let secboot = Suite::Trixie.file("OVMF_CODE_4M.secboot.fd");
    image(
        text(&secboot),
        &["--firmware", "system management mode", CODE],
    );
    image(
        &write("short.fd", &code[..code.len() / 2]),
        &["copied completely"],
    );
    image(
        &write("text.fd", b"#!/bin/sh\n"),
        &["is neither a UEFI image nor a BIOS"],
    );
    image(text(&scratch.path("absent.fd")), &["there is no such file"]);
    image(
        text(&Suite::Trixie.file("OVMF_VARS_4M.fd")),
        &["without code", "CODE file"],
    );
}

#[test]
fn variables_that_do_not_fit_are_refused_with_the_reason() {
    let scratch = Scratch::new();
    let code = Suite::Bookworm.file(CODE);
    let variables = |path: &Path, parts: &[&str]| {
        let arguments = ["--firmware", text(&code), "--variables", text(path)];
        fails(&arguments, 1, parts);
    };
    let other = scratch.path("other.fd");
    fs::copy(Suite::Bookworm.file("OVMF_VARS.fd"), &other).unwrap();
    let shown = ["--variables", "131072 bytes", "needs 540672"];
    variables(&other, &shown);
    assert_eq!(fs::metadata(&other).unwrap().len(), 131_072, "left alone");
    let note = scratch.path("note.txt");
    fs::write(&note, "not variables").unwrap();
    variables(&note, &["--variables", "note.txt"]);
    assert_eq!(fs::read_to_string(&note).unwrap(), "not variables");
    variables(
        &scratch.path("absent/variables.fd"),
        &["its directory does not exist"],
    );
    let bios = Suite::Bookworm.file("bios-256k.bin");
    let file = scratch.path("v.fd");
    fails(
        &["--firmware", text(&bios), "--variables", text(&file)],
        1,
        &["has no variables"],
    );
    assert!(!file.exists());
}

#[test]
fn command_lines_that_contradict_themselves_are_refused() {
    fails(&["--firmware", "f", "--kernel", "k"], 2, &["--kernel"]);
    fails(&["--firmware", "f", "--cmdline", "c"], 2, &["--cmdline c"]);
    fails(
        &["--firmware", "f", "--boot-order", "disk7"],
        2,
        &["no disk, CD-ROM drive or NIC has the id \"disk7\""],
    );
    fails(
        &["--kernel", "k", "--variables", "v"],
        2,
        &["--variables v"],
    );
    fails(
        &["--firmware", "f", "--variables", "fd:3"],
        2,
        &["--variables fd:3", "descriptor"],
    );
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn variables_are_kept_over_reset_and_power_off_by_bookworm() {
        variables_are_kept(Suite::Bookworm);
    }
}
