//! `paddock doctor` on a real host: it tells what it runs on, that VMs can run, and whom the device keeps out.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use paddock_tests::files;
use paddock_tests::host::{Bridge, Link, run, shell};
use paddock_tests::vm::text;
use serde_json::Value;
use tempfile::TempDir;

const README: &str = include_str!("../../README.md");
/// A user without rights, and a group that nobody is in.
const NOBODY: u32 = 65534;
const GROUP: u32 = 64242;

/// Runs `paddock doctor`, after words in front of it; returns exit status and standard output.
fn doctor(before: &str, binary: &Path, arguments: &str) -> (Option<i32>, String) {
    let output = shell(&format!(
        "exec {before} {} doctor {arguments}",
        binary.display()
    ));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "", "{arguments}");
    let page = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), page)
}

fn json(before: &str, binary: &Path, arguments: &str) -> (Option<i32>, Value) {
    let (status, page) = doctor(before, binary, &format!("--json {arguments}"));
    let report = serde_json::from_str(&page).unwrap_or_else(|error| panic!("{error}:\n{page}"));
    (status, report)
}

fn rows(report: &Value) -> &[Value] {
    report["checks"].as_array().unwrap()
}

/// The row "group.name".
fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    rows(report)
        .iter()
        .find(|row| full_name(row) == name)
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

fn full_name(row: &Value) -> String {
    format!(
        "{}.{}",
        row["group"].as_str().unwrap(),
        row["name"].as_str().unwrap()
    )
}

/// The commands of a row's fix.
fn commands(row: &Value) -> Vec<&str> {
    let commands = row["fix"]["commands"].as_array();
    let commands = commands.unwrap_or_else(|| panic!("no fix: {row:#}"));
    commands.iter().map(|c| c.as_str().unwrap()).collect()
}

/// `/dev/kvm`, which is given back on drop as it was.
struct KvmDevice {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl KvmDevice {
    const PATH: &str = "/dev/kvm";

    fn taken(gid: u32, mode: u32) -> Self {
        let before = fs::metadata(Self::PATH).unwrap();
        let this = Self {
            uid: before.uid(),
            gid: before.gid(),
            mode: before.mode(),
        };
        Self::set(0, gid, mode);
        this
    }

    fn set(uid: u32, gid: u32, mode: u32) {
        chown(Self::PATH, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(Self::PATH, Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for KvmDevice {
    fn drop(&mut self) {
        Self::set(self.uid, self.gid, self.mode);
    }
}

/// A copy of the binary that everybody may run; the build's place may be root's alone.
fn binary_for_all() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("paddock");
    fs::copy(files::paddock(), &binary).unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    (directory, binary)
}

/// A cable, one end of which stands for an uplink.
fn cable(end: &str) -> Link {
    let make = format!("ip link add {end} type veth peer name {end}p");
    Link::made_by(&make, end)
}

#[test]
fn says_what_it_runs_on_and_that_vms_can_run() {
    let (status, report) = json("", &files::paddock(), "");
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(report["version"], 1);
    assert_eq!(report["can_run"], true);
    let kernel = run("uname -r");
    assert_eq!(report["kernel"], kernel.trim());
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let nested = flags.split_whitespace().any(|flag| flag == "hypervisor");
    let hypervisor = row(&report, "processor.hypervisor");
    assert_eq!(hypervisor["facts"]["nested"], nested, "{hypervisor:#}");
    // What the lab is made of, unless it found hardware to run on.
    if cpuinfo.contains("QEMU TCG") {
        assert_eq!(hypervisor["facts"]["hypervisor"], "tcg", "{hypervisor:#}");
        assert_eq!(hypervisor["verdict"], "degraded");
        let paging = row(&report, "processor.nested-paging");
        assert_eq!(paging["verdict"], "ok", "kvm_amd has NPT there: {paging:#}");
    }
    for name in ["processor.virtualization", "kvm.device", "kvm.capabilities"] {
        assert_eq!(row(&report, name)["verdict"], "ok", "{report:#}");
    }
    let guest = row(&report, "kvm.guest");
    assert_eq!(guest["blocks"], false, "{guest:#}");
    assert!(guest["facts"]["exit_ns"].as_u64().unwrap() > 0, "{guest:#}");
}

#[test]
fn the_json_has_the_rows_that_the_readme_names() {
    let (_, report) = json("", &files::paddock(), "");
    let names: Vec<_> = rows(&report).iter().map(full_name).collect();
    let groups: Vec<_> = rows(&report)
        .iter()
        .map(|row| format!("{}.", row["group"].as_str().unwrap()))
        .collect();
    // Words in backquotes that begin like a row.
    let named: Vec<_> = README
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| groups.iter().any(|group| word.starts_with(group.as_str())))
        .collect();
    assert!(named.len() > 5, "the README names {named:?}");
    for word in named {
        assert!(
            names.contains(&word.to_owned()),
            "{word} is not in {names:?}"
        );
    }
}

#[test]
fn every_row_is_whole() {
    let (_, report) = json("", &files::paddock(), "--directory /tmp");
    for row in rows(&report) {
        let verdict = row["verdict"].as_str().unwrap();
        assert!(
            ["ok", "degraded", "missing", "unknown"].contains(&verdict),
            "{row:#}"
        );
        assert!(!row["found"].as_str().unwrap().is_empty(), "{row:#}");
        assert!(verdict == "ok" || row["means"].is_string(), "{row:#}");
        for key in ["subject", "blocks", "fix", "facts"] {
            assert!(row.get(key).is_some(), "{key}: {row:#}");
        }
    }
    let counts = report["counts"].as_object().unwrap();
    let sum: u64 = counts.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(sum, rows(&report).len() as u64);
}

#[test]
fn the_page_for_people() {
    let (status, page) = doctor("", &files::paddock(), "");
    assert_eq!(status, Some(0), "{page}");
    assert!(page.contains("VMs can run on this host."), "{page}");
    assert!(!page.contains('\x1b'), "colours in a pipe");
    let (_, page) = doctor("", &files::paddock(), "--help");
    assert!(page.contains("Exit status"), "{page}");
}

/// The fix is told, and it is the right one: after it, the same user is let in.
#[test]
fn a_user_whom_the_device_keeps_out() {
    let (_directory, binary) = binary_for_all();
    let nobody = format!("setpriv --reuid={NOBODY} --regid={NOBODY}");
    let alone = format!("{nobody} --clear-groups");
    let _device = KvmDevice::taken(0, 0o600);

    let (status, report) = json(&alone, &binary, "");
    assert_eq!(status, Some(1), "{report:#}");
    assert_eq!(report["can_run"], false);
    let device = row(&report, "kvm.device");
    assert_eq!(device["verdict"], "missing", "{device:#}");
    assert_eq!(device["blocks"], true, "{device:#}");
    let found = device["found"].as_str().unwrap();
    assert!(
        found.contains("65534") && found.contains("mode 0600"),
        "{found}"
    );
    let fix = commands(device);
    let rule = "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/65-paddock-kvm.rules";
    assert!(fix.contains(&rule), "{fix:?}");
    assert!(
        fix.contains(&"chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"),
        "{fix:?}"
    );
    assert!(fix.contains(&"usermod -aG kvm nobody"), "{fix:?}");
    assert_eq!(row(&report, "network.net-admin")["verdict"], "missing");
    let (status, page) = doctor(&alone, &binary, "");
    assert_eq!(status, Some(1), "{page}");
    assert!(
        page.contains("No VM can run on this host until this is mended"),
        "{page}"
    );
    assert!(page.contains("usermod -aG kvm nobody"), "{page}");

    KvmDevice::set(0, GROUP, 0o660);
    let (status, report) = json(&alone, &binary, "");
    assert_eq!(status, Some(1), "{report:#}");
    let fix = commands(row(&report, "kvm.device"));
    assert_eq!(fix, [format!("usermod -aG {GROUP} nobody")]);

    let member = format!("{nobody} --groups={GROUP}");
    let (status, report) = json(&member, &binary, "");
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(row(&report, "kvm.device")["verdict"], "ok");
    assert!(row(&report, "kvm.guest")["facts"]["exit_ns"].is_u64());
}

#[test]
fn bridges_and_their_vlans() {
    let name = "pdkdoc0";
    let bridge = Bridge::new(name, 100, "10.209.1.1/24");
    let vlans = |report: &Value| -> Value {
        let rows = rows(report).iter();
        let mut rows = rows.filter(|row| row["subject"] == name);
        rows.find(|row| row["name"] == "vlan-filtering")
            .unwrap()
            .clone()
    };
    let (_, report) = json("", &files::paddock(), "");
    assert_eq!(vlans(&report)["verdict"], "ok", "{report:#}");
    run(&format!(
        "ip link set {} type bridge vlan_filtering 0",
        bridge.name()
    ));
    let (status, report) = json("", &files::paddock(), "");
    assert_eq!(status, Some(0), "VMs without a VLAN still run: {report:#}");
    let off = vlans(&report);
    assert_eq!(off["verdict"], "missing", "{off:#}");
    let fix = commands(&off);
    assert_eq!(
        fix,
        [format!("ip link set {name} type bridge vlan_filtering 1")]
    );
    run(fix[0]);
    let (_, report) = json("", &files::paddock(), "");
    assert_eq!(vlans(&report)["verdict"], "ok", "the fix works: {report:#}");

    // A NIC's tap in a VLAN that the uplink does not carry, until it is told to.
    let uplink = "pdkdocup";
    let _cable = cable(uplink);
    run(&format!("ip link set {uplink} master {name} up"));
    let _tap = Link::made_by(
        &format!("ip tuntap add dev pdkdoctap mode tap && ip link set pdkdoctap master {name} up"),
        "pdkdoctap",
    );
    run("bridge vlan add dev pdkdoctap vid 77 pvid untagged");
    let (_, report) = json("", &files::paddock(), "");
    let stranded = vlans(&report);
    assert_eq!(stranded["verdict"], "degraded", "{stranded:#}");
    let fix = commands(&stranded);
    assert_eq!(fix, [format!("bridge vlan add dev {uplink} vid 77")]);
    run(fix[0]);
    let (_, report) = json("", &files::paddock(), "");
    let carried = vlans(&report);
    assert_eq!(carried["verdict"], "ok", "the fix works: {carried:#}");
    assert_eq!(
        carried["facts"]["uplink_vlans"][uplink], "77",
        "{carried:#}"
    );
}

#[test]
fn directories() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    let arguments = format!(
        "--directory {} --directory {}",
        text(directory.path()),
        text(&absent)
    );
    let (status, report) = json("", &files::paddock(), &arguments);
    assert_eq!(status, Some(0), "{report:#}");
    for name in ["storage.direct", "storage.locks", "storage.discard"] {
        assert_eq!(row(&report, name)["subject"], text(directory.path()));
    }
    let unknown = row(&report, "storage.directory");
    assert_eq!(unknown["subject"], text(&absent));
    assert_eq!(unknown["verdict"], "unknown");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "something was left"
    );
}

#[test]
fn a_limit_of_its_control_group() {
    // The lab has version 2; a machine that is the host itself may have the other, which CI does not allow.
    let group = Path::new("/sys/fs/cgroup/paddock-doctor");
    let made = shell(&format!(
        "grep -qw memory /sys/fs/cgroup/cgroup.controllers && echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir {}",
        group.display()
    ));
    if !made.status.success() {
        let missing = format!(
            "no control group of version 2 with a limit on memory can be made here: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("left out: {missing}");
        return;
    }
    let limit: u64 = 96 << 20;
    fs::write(group.join("memory.max"), limit.to_string()).unwrap();
    let inside = format!(
        "sh -c 'echo $$ > {}/cgroup.procs && exec \"$@\"' sh",
        group.display()
    );
    let (status, report) = json(&inside, &files::paddock(), "");
    let _ = fs::remove_dir(group);
    assert_eq!(status, Some(0), "{report:#}");
    let memory = row(&report, "limits.cgroup-memory");
    assert_eq!(memory["facts"]["limit_bytes"], limit, "{memory:#}");
    assert_eq!(memory["verdict"], "degraded", "{memory:#}");
}
