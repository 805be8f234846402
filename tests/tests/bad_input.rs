//! What cannot work is refused before a guest runs: an error that names the file or interface and the cause, exit status 1
//! (2 where the command line itself is wrong), and no panic.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use paddock_tests::host::{run, shell};
use paddock_tests::vm::{refused, text};
use paddock_tests::{Vm, files};
use tempfile::TempDir;

/// Runs `paddock run` with what must not work; its error must hold every one of `parts`.
fn fails(arguments: &[&str], status: i32, parts: &[&str]) {
    let (code, log) = refused(arguments);
    assert_eq!(code, Some(status), "{arguments:?}:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    for part in parts {
        assert!(
            log.to_lowercase().contains(&part.to_lowercase()),
            "{part:?} is missing for {arguments:?} in:\n{log}"
        );
    }
}

fn file(directory: &TempDir, name: &str, contents: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, contents).unwrap();
    path
}

fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn kernel(path: &Path, parts: &[&str]) {
    let mut parts = parts.to_vec();
    parts.push(text(path));
    fails(&["--kernel", text(path)], 1, &parts);
}

#[test]
fn kernels() {
    let directory = scratch();
    let bzimage = fs::read(files::guest("vmlinuz")).unwrap();
    let elf = fs::read(files::guest("vmlinux")).unwrap();
    kernel(&directory.path().join("absent"), &["no such file"]);
    kernel(directory.path(), &["directory"]);
    kernel(&file(&directory, "empty", b""), &["empty"]);
    kernel(
        &file(&directory, "text", b"#!/bin/sh\necho hello\n"),
        &["text file", "bzImage", "ELF"],
    );
    kernel(
        &file(&directory, "short-bzimage", &bzimage[..bzimage.len() / 2]),
        &["copied completely"],
    );
    kernel(
        &file(&directory, "short-elf", &elf[..elf.len() / 2]),
        &["copied completely"],
    );
    let mut arm = elf[..4096].to_vec();
    // e_machine: AArch64.
    arm[18..20].copy_from_slice(&183_u16.to_le_bytes());
    kernel(&file(&directory, "arm", &arm), &["x86"]);
}

#[test]
fn an_unreadable_kernel_and_an_unreadable_disk() {
    let directory = scratch();
    let bzimage = files::guest("vmlinuz");
    let secret = file(&directory, "secret", b"0123456789abcdef");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Root may read anything, so as nobody; who must be able to run paddock, and to use KVM.
    let binary = directory.path().join("paddock");
    fs::copy(files::paddock(), &binary).unwrap();
    let kernel_copy = directory.path().join("vmlinuz");
    fs::copy(&bzimage, &kernel_copy).unwrap();
    for path in [&binary, &kernel_copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let before = fs::metadata("/dev/kvm").unwrap().permissions();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
    for arguments in [
        format!("--kernel {}", secret.display()),
        format!(
            "--kernel {} --disk {}",
            kernel_copy.display(),
            secret.display()
        ),
    ] {
        let output = shell(&format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups {} run {arguments} </dev/null",
            binary.display()
        ));
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments}: {log}");
        assert!(log.contains(text(&secret)), "{log}");
        assert!(log.to_lowercase().contains("permission denied"), "{log}");
    }
    fs::set_permissions("/dev/kvm", before).unwrap();
}

#[test]
fn initramfs() {
    let directory = scratch();
    let kernel = files::guest("vmlinuz");
    let with = |path: &Path, more: &[&str], parts: &[&str]| {
        let mut arguments = vec!["--kernel", text(&kernel), "--initramfs", text(path)];
        arguments.extend(more);
        let mut parts = parts.to_vec();
        parts.push(text(path));
        fails(&arguments, 1, &parts);
    };
    with(&directory.path().join("absent"), &[], &["no such file"]);
    with(&file(&directory, "empty", b""), &[], &["empty"]);
    let large = directory.path().join("large");
    File::create(&large).unwrap().set_len(200 << 20).unwrap();
    with(&large, &["--memory", "128M"], &["RAM"]);
}

#[test]
fn disks() {
    let directory = scratch();
    let kernel = files::guest("vmlinuz");
    let with = |disk: &Path, parts: &[&str]| {
        let arguments = ["--kernel", text(&kernel), "--disk", text(disk)];
        let mut parts = parts.to_vec();
        parts.push(text(disk));
        fails(&arguments, 1, &parts);
    };
    with(&directory.path().join("absent"), &["no such file"]);
    with(directory.path(), &["directory"]);
    with(&file(&directory, "empty", b""), &["empty"]);
    with(&file(&directory, "odd", &[0; 1000]), &["512"]);
    with(Path::new("/dev/null"), &["block device"]);
}

#[test]
fn taps_and_bridges() {
    let kernel = files::guest("vmlinuz");
    let with = |net: &str, parts: &[&str]| {
        fails(&["--kernel", text(&kernel), "--net", net], 1, parts);
    };
    with("tap=pdkabsent", &["pdkabsent", "no such"]);
    with("tap=lo", &["lo", "not a tap"]);
    with("bridge=pdkabsent", &["pdkabsent", "no such"]);
    with("bridge=lo", &["lo", "not a bridge"]);
    run("ip link add pdkplain type bridge");
    with(
        "bridge=pdkplain,vlan=5",
        &["pdkplain", "ip link set", "vlan_filtering 1"],
    );
    run("ip link delete pdkplain");
}

#[test]
fn a_busy_tap() {
    run("ip tuntap add pdkbusy mode tap vnet_hdr");
    let vm = Vm::builder().args(["--net", "tap=pdkbusy"]).boot();
    let kernel = files::guest("vmlinuz");
    fails(
        &["--kernel", text(&kernel), "--net", "tap=pdkbusy"],
        1,
        &["pdkbusy", "busy"],
    );
    vm.power_off();
    run("ip link delete pdkbusy");
}

#[test]
fn every_problem_of_a_command_line_at_once() {
    let kernel = files::guest("vmlinuz");
    fails(
        &[
            "--kernel",
            text(&kernel),
            "--cpus",
            "255",
            "--memory",
            "1M",
            "--net",
            "tap=a-name-that-is-much-too-long",
        ],
        2,
        &["--cpus", "254", "--memory", "64MiB", "--net", "15"],
    );
    fails(
        &["--kernel", text(&kernel), "--disk", "pth=x"],
        2,
        &["pth", "path"],
    );
    fails(&[], 2, &["kernel"]);
}

#[test]
fn more_memory_than_the_host_has_in_huge_pages() {
    let kernel = files::guest("vmlinuz");
    fails(
        &[
            "--kernel",
            text(&kernel),
            "--memory",
            "size=64G,hugepages=2M",
        ],
        1,
        &["huge pages", "free", "nr_hugepages"],
    );
}

#[test]
fn huge_pages_where_there_are_some() {
    run("echo 200 > /proc/sys/vm/nr_hugepages");
    let free = || run("grep HugePages_Free /proc/meminfo");
    let before = free();
    let vm = Vm::builder().memory("size=256M,hugepages=2M").boot();
    assert_ne!(before, free(), "the guest's RAM comes from the pool");
    vm.power_off();
    run("echo 0 > /proc/sys/vm/nr_hugepages");
}
