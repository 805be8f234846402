//! Whole hosts, made up, and what the doctor says of each.

use std::io;

use super::access::Owner;
use super::kvm::{Capabilities, Offer};
use super::report::{Check, Verdict};
use super::testing::FakeHost;
use super::trial::{Failure, Outcome};
use super::*;
use crate::kvm::KvmError;
use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_HYPERV_CPUID,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_NESTED_STATE, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_READONLY_MEM, KVM_CAP_TSC_CONTROL, KVM_CAP_X86_SMM, KVM_CLOCK_REALTIME,
};
use paddock_network::NetworkErrorKind;
use paddock_network::probe::{TunFeatures, VlanRange};
use paddock_storage::probe::{DirectoryOffer, Lock};

mod groups;
mod properties;

const STATUS_OF_ROOT: &str =
    "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0\nCapEff:\t000001ffffffffff\n";
const STATUS_OF_JOE: &str =
    "Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t1000\nCapEff:\t0\n";

/// A server with everything: what the files of one say.
fn server() -> FakeHost {
    FakeHost::new(&[
        (
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t: fpu vmx ept constant_tsc nonstop_tsc\nvmx flags\t: ept\n\nprocessor : 1\nflags : none\n",
        ),
        (
            "proc/meminfo",
            "MemTotal: 65536000 kB\nMemAvailable: 60000000 kB\nCommitLimit: 32768000 kB\nCommitted_AS: 1000 kB\n",
        ),
        ("proc/self/status", STATUS_OF_ROOT),
        ("proc/self/cgroup", "0::/user.slice\n"),
        (
            "proc/self/limits",
            "Max open files            1024                 524288               files\nMax locked memory         8388608              8388608              bytes\nMax address space         unlimited            unlimited            bytes\n",
        ),
        ("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/sys/net/bridge/bridge-nf-call-iptables", "0\n"),
        ("proc/sys/vm/overcommit_memory", "0\n"),
        (
            "etc/passwd",
            "root:x:0:0::/root:/bin/bash\njoe:x:1000:1000::/home/joe:/bin/bash\n",
        ),
        ("etc/group", "root:x:0:\nkvm:x:106:\n"),
        ("sys/module/kvm_intel/parameters/ept", "Y\n"),
        ("sys/module/kvm_intel/parameters/unrestricted_guest", "Y\n"),
        ("sys/module/kvm_intel/parameters/vpid", "Y\n"),
        ("sys/module/kvm_intel/parameters/pml", "N\n"),
        ("sys/module/kvm_intel/parameters/nested", "1\n"),
        ("sys/class/dmi/id/sys_vendor", "Maker\n"),
        ("sys/class/dmi/id/product_name", "Server 1\n"),
        ("sys/class/net/br0/bridge/vlan_filtering", "1\n"),
        ("sys/class/net/br0/bridge/default_pvid", "1\n"),
        ("sys/class/net/br0/bridge/stp_state", "0\n"),
        ("sys/class/net/br0/bridge/forward_delay", "1500\n"),
        ("sys/class/net/br0/brif/eth0/state", "3\n"),
        ("sys/class/net/br0/flags", "0x1003\n"),
        ("sys/class/net/br0/mtu", "1500\n"),
        ("sys/class/net/eth0/mtu", "1500\n"),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "512\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "512\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
            "0\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            "4\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
            "4\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages",
            "0\n",
        ),
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc\n",
        ),
    ])
}

/// What the kernel of that server answers.
fn good() -> Facts {
    let capabilities = [
        (KVM_CAP_X86_SMM, 1),
        (KVM_CAP_HYPERV_CPUID, 1),
        (KVM_CAP_PMU_CAPABILITY, 1),
        (KVM_CAP_READONLY_MEM, 1),
        (KVM_CAP_DIRTY_LOG_RING, 1 << 20),
        (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3),
        (KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_REALTIME | 2),
        (KVM_CAP_TSC_CONTROL, 1),
        (KVM_CAP_NESTED_STATE, 4224),
    ];
    let outcome = Outcome {
        exit: std::time::Duration::from_nanos(1500),
        tsc_khz: Some(2_600_000),
    };
    Facts {
        signatures: Signatures::default(),
        kvm: kvm::Facts {
            owner: Some(Owner {
                uid: 0,
                gid: 106,
                mode: 0o660,
            }),
            offer: Ok(Offer {
                missing: Vec::new(),
                max_vcpus: 1024,
                capabilities: Capabilities::made_up(&capabilities),
                trial: Some(Ok(outcome)),
            }),
        },
        firmware: firmware::Facts {
            uefi: Ok(firmware::Uefi {
                descriptor: "/usr/share/qemu/firmware/60-edk2-x86_64.json".into(),
                image: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
                secure_boot: false,
                broken: None,
            }),
        },
        userfaultfd: Ok(()),
        network: network::Facts {
            tun_owner: Some(Owner {
                uid: 0,
                gid: 0,
                mode: 0o666,
            }),
            tun: Ok(TunFeatures {
                vnet_header: true,
                multi_queue: true,
            }),
            vhost_owner: Some(Owner {
                uid: 0,
                gid: 106,
                mode: 0o660,
            }),
            vhost: Ok(()),
            vlans: Ok([("eth0".to_owned(), vec![range(1, 1), range(100, 200)])].into()),
        },
        storage: storage::Facts {
            io_uring: Ok(()),
            directories: vec![(
                "/vms".into(),
                Ok(DirectoryOffer {
                    direct: Ok(512),
                    lock: Lock::Works,
                    discard: true,
                }),
            )],
        },
        synchronized: Some(true),
    }
}

/// VLANs of a port; of a single one, the PVID.
fn range(first: u16, last: u16) -> VlanRange {
    VlanRange {
        first,
        last,
        pvid: first == last,
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn below(name: &str) -> Signatures {
    Signatures {
        present: true,
        names: vec![name.to_owned()],
    }
}

/// No KVM module, and a processor that shows neither VT-x nor AMD-V.
fn without_virtualization(fake: &FakeHost) -> kvm::Facts {
    std::fs::remove_dir_all(fake.path("sys/module")).unwrap();
    fake.write(
        "proc/cpuinfo",
        "vendor_id: GenuineIntel\nmodel name: Xeon\nflags: fpu hypervisor\n",
    );
    kvm::Facts {
        owner: None,
        offer: Err(KvmError::Open(errno(libc::ENOENT))),
    }
}

/// The row, and that it came to this.
fn row<'a>(report: &'a Report, group: &str, name: &str, verdict: Verdict) -> &'a Check {
    let check = report.check(group, name).unwrap();
    assert_eq!(check.verdict, verdict, "{check:?}");
    check
}

fn commands(check: &Check) -> &[String] {
    &check.fix.as_ref().unwrap().commands
}

/// What holds for every report: no row twice, whatever is not well is explained, whatever blocks can be mended, and it prints.
fn check_invariants(report: &Report) {
    let mut seen = std::collections::BTreeSet::new();
    for group in &report.groups {
        assert!(!group.checks.is_empty(), "{}", group.name);
        for check in &group.checks {
            let about = (group.name, check.name, &check.subject);
            assert!(seen.insert(about), "{about:?} twice");
            assert!(!check.found.is_empty(), "{check:?}");
            assert!(
                check.verdict == Verdict::Ok || check.means.is_some(),
                "{check:?}"
            );
            assert!(
                check.verdict != Verdict::Ok || check.fix.is_none(),
                "{check:?}"
            );
            assert!(
                !check.blocks || (check.verdict == Verdict::Missing && check.fix.is_some()),
                "{check:?}"
            );
            let commands = check.fix.iter().flat_map(|fix| &fix.commands);
            assert!(commands.into_iter().all(|c| !c.is_empty()), "{check:?}");
        }
    }
    serde_json::to_string(report).unwrap();
    let page = print(
        report,
        Style {
            colours: false,
            width: 80,
        },
    );
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page}");
}

#[test]
fn a_server_with_everything() {
    let report = judge(&server().host(), &good());
    check_invariants(&report);
    assert!(report.can_run);
    assert_eq!(report.kernel.as_deref(), Some("6.1.0-32-amd64"));
    for group in &report.groups {
        for check in &group.checks {
            assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        }
    }
}

/// The names are an interface: programs look rows up by them.
#[test]
fn the_rows_keep_their_names() {
    let report = judge(&server().host(), &good());
    let names: Vec<_> = report
        .groups
        .iter()
        .flat_map(|group| {
            group
                .checks
                .iter()
                .map(|check| format!("{}.{}", group.name, check.name))
        })
        .collect();
    assert_eq!(
        names.join(" "),
        "processor.hypervisor processor.virtualization processor.nested-paging processor.real-mode processor.acceleration \
         processor.nesting \
         kvm.device kvm.capabilities kvm.guest kvm.vcpus kvm.extras \
         firmware.flash firmware.uefi \
         memory.available memory.transparent-huge-pages memory.huge-pages-2m memory.huge-pages-1g memory.overcommit \
         storage.io-uring storage.direct storage.locks storage.discard \
         network.tun network.net-admin network.vhost-net network.bridge network.vlan-filtering network.bridge-netfilter \
         limits.cgroup-memory limits.cgroup-pids limits.descriptors limits.locked-memory limits.address-space \
         time.clocksource time.tsc time.synchronization \
         migration.dirty-pages migration.tsc migration.clock migration.nested-state migration.post-copy"
    );
}

#[test]
fn esxi_that_does_not_nest() {
    let fake = server();
    let facts = Facts {
        signatures: below("VMwareVMware"),
        kvm: without_virtualization(&fake),
        ..good()
    };
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert!(!report.can_run);
    for (group, name) in [("processor", "virtualization"), ("kvm", "device")] {
        let check = row(&report, group, name, Verdict::Missing);
        assert_eq!(commands(check), ["vhv.enable = \"TRUE\""]);
    }
    assert_eq!(
        row(&report, "processor", "hypervisor", Verdict::Degraded).facts["hypervisor"],
        "vmware"
    );
    let addresses = row(&report, "network", "foreign-addresses", Verdict::Unknown);
    assert!(commands(addresses)[0].contains("--allow-forged-transmits=true"));
    row(&report, "migration", "capabilities", Verdict::Unknown);
}

#[test]
fn each_hypervisor_has_its_fix() {
    for (signature, key, part) in [
        ("KVMKVMKVM", "kvm", "options kvm_intel nested=1"),
        (
            "Microsoft Hv",
            "hyperv",
            "-ExposeVirtualizationExtensions $true",
        ),
        ("TCGTCGTCGTCG", "tcg", "-cpu max"),
        ("XenVMMXenVMM", "xen", "nestedhvm = 1"),
        ("VBoxVBoxVBox", "virtualbox", "--nested-hw-virt on"),
        (" lrpepyh  vr", "parallels", "--nested-virt on"),
        ("bhyve bhyve ", "bhyve", "does not nest"),
        ("Mystery", "unknown", "settings of the hypervisor"),
    ] {
        let fake = server();
        let facts = Facts {
            signatures: below(signature),
            kvm: without_virtualization(&fake),
            ..good()
        };
        let report = judge(&fake.host(), &facts);
        check_invariants(&report);
        let check = row(&report, "processor", "hypervisor", Verdict::Degraded);
        assert_eq!(check.facts["hypervisor"], key);
        let fix = row(&report, "kvm", "device", Verdict::Missing)
            .fix
            .as_ref()
            .unwrap();
        let text = format!("{} {}", fix.text, fix.commands.join("\n"));
        assert!(text.contains(part), "{signature}: {text}");
    }
}

#[test]
fn clouds_have_ways_of_their_own() {
    for (file, text, part) in [
        ("sys_vendor", "Amazon EC2", ".metal"),
        ("sys_vendor", "Google", "--enable-nested-virtualization"),
        (
            "chassis_asset_tag",
            "7783-7084-3265-9085-8269-3286-77",
            "Trusted Launch",
        ),
    ] {
        let fake = server();
        fake.write(format!("sys/class/dmi/id/{file}"), text);
        let facts = Facts {
            signatures: below("KVMKVMKVM"),
            kvm: without_virtualization(&fake),
            ..good()
        };
        let report = judge(&fake.host(), &facts);
        let fix = row(&report, "kvm", "device", Verdict::Missing)
            .fix
            .as_ref()
            .unwrap();
        let text = format!("{} {}", fix.text, fix.commands.join("\n"));
        assert!(text.contains(part), "{text}");
        row(&report, "network", "foreign-addresses", Verdict::Unknown);
    }
}

#[test]
fn bare_metal_with_virtualization_off_or_kvm_not_loaded() {
    let fake = server();
    let facts = Facts {
        kvm: without_virtualization(&fake),
        ..good()
    };
    let report = judge(&fake.host(), &facts);
    let fix = row(&report, "kvm", "device", Verdict::Missing)
        .fix
        .as_ref()
        .unwrap();
    assert!(fix.text.contains("firmware setup"), "{fix:?}");
    fake.write("proc/cpuinfo", "vendor_id: AuthenticAMD\nflags: svm npt\n");
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert_eq!(
        commands(row(&report, "kvm", "device", Verdict::Missing))[0],
        "modprobe kvm_amd"
    );
}

/// As in kernels that have both built in: the wrong one is there, and says what it was told.
#[test]
fn both_modules() {
    let fake = server();
    fake.write("sys/module/kvm_amd/parameters/npt", "N");
    let report = judge(&fake.host(), &good());
    check_invariants(&report);
    assert!(
        row(&report, "processor", "nested-paging", Verdict::Ok)
            .found
            .contains("EPT")
    );
    fake.write(
        "proc/cpuinfo",
        "vendor_id: AuthenticAMD\nflags: hypervisor\n",
    );
    let mut facts = good();
    facts.signatures = below("KVMKVMKVM");
    facts.kvm.offer = Err(KvmError::Open(errno(libc::ENOENT)));
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert!(
        commands(row(&report, "kvm", "device", Verdict::Missing))[0].contains("kvm_amd nested=1")
    );
}

#[test]
fn pvm() {
    let fake = server();
    without_virtualization(&fake);
    fake.write("sys/module/kvm_pvm/parameters/force", "N");
    let facts = Facts {
        signatures: below("KVMKVMKVM"),
        ..good()
    };
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert!(report.can_run, "a trial guest ran");
    let check = row(&report, "processor", "virtualization", Verdict::Degraded);
    assert!(
        check.found.contains("PVM") && check.facts["pvm"] == true,
        "{check:?}"
    );
    assert!(
        row(&report, "kvm", "device", Verdict::Ok)
            .found
            .contains("kvm_pvm")
    );
}

#[test]
fn a_host_without_files() {
    let facts = Facts {
        synchronized: None,
        ..good()
    };
    let report = judge(&FakeHost::new::<&str, &str>(&[]).host(), &facts);
    check_invariants(&report);
    assert!(report.can_run, "a guest ran, whatever could not be read");
    assert_eq!(report.kernel, None);
}

/// The host that runs the tests, whatever it is.
#[test]
fn this_host() {
    let place = tempfile::tempdir().unwrap();
    let report = examine(&[place.path().to_owned(), place.path().join("absent")]);
    check_invariants(&report);
    assert!(report.check("storage", "direct").is_some());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
