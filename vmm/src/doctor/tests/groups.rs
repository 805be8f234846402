//! One thing after the other taken from the server that has everything.

use super::*;

#[test]
fn parameters_of_the_module() {
    let fake = server();
    for parameter in ["ept", "unrestricted_guest", "nested"] {
        fake.write(
            format!("sys/module/kvm_intel/parameters/{parameter}"),
            "N\n",
        );
    }
    let report = judge(&fake.host(), &good());
    check_invariants(&report);
    assert!(report.can_run);
    let paging = row(&report, "processor", "nested-paging", Verdict::Degraded);
    assert_eq!(
        commands(paging)[0],
        "echo 'options kvm_intel ept=1' > /etc/modprobe.d/paddock-ept.conf"
    );
    row(&report, "processor", "real-mode", Verdict::Degraded);
    assert!(
        commands(row(&report, "processor", "nesting", Verdict::Missing))[1]
            .starts_with("modprobe -r kvm_intel")
    );
    // A processor that has none cannot be given it by a parameter.
    fake.write("proc/cpuinfo", "vendor_id: GenuineIntel\nflags: vmx\n");
    let report = judge(&fake.host(), &good());
    assert!(
        commands(row(
            &report,
            "processor",
            "nested-paging",
            Verdict::Degraded
        ))
        .is_empty()
    );
}

#[test]
fn a_user_without_rights() {
    let fake = server();
    fake.write("proc/self/status", STATUS_OF_JOE);
    let mut facts = good();
    facts.kvm.offer = Err(KvmError::Open(errno(libc::EACCES)));
    facts.network.tun = Err(network::Refusal {
        kind: NetworkErrorKind::Permission,
        text: "no".into(),
    });
    facts.network.tun_owner = Some(Owner {
        uid: 0,
        gid: 0,
        mode: 0o600,
    });
    facts.network.vhost = Err(errno(libc::EACCES));
    facts.userfaultfd = Err(errno(libc::EPERM));
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert!(!report.can_run);
    let device = row(&report, "kvm", "device", Verdict::Missing);
    assert_eq!(commands(device), ["usermod -aG kvm joe"]);
    assert!(
        device.found.contains("joe (uid 1000)") && device.found.contains("root:kvm, mode 0660"),
        "{device:?}"
    );
    assert_eq!(
        commands(row(&report, "network", "tun", Verdict::Missing))[0],
        "chmod 0666 /dev/net/tun"
    );
    assert_eq!(
        commands(row(&report, "network", "vhost-net", Verdict::Missing)),
        ["usermod -aG kvm joe"]
    );
    assert!(
        commands(row(&report, "network", "net-admin", Verdict::Missing))[0].ends_with("user joe")
    );
    row(&report, "migration", "post-copy", Verdict::Missing);
}

#[test]
fn no_firmware() {
    let mut facts = good();
    facts.firmware.uefi = Err(firmware::NoUefi::PassedOver(Vec::new()));
    let report = judge(&server().host(), &facts);
    check_invariants(&report);
    assert!(report.can_run, "kernels boot without");
    let check = row(&report, "firmware", "uefi", Verdict::Missing);
    assert_eq!(commands(check), ["apt-get install ovmf"]);

    facts.firmware.uefi = Err(firmware::NoUefi::NoAnswer("no answer within 5 s".into()));
    facts.kvm.offer = Err(KvmError::Open(errno(libc::EACCES)));
    let report = judge(&server().host(), &facts);
    check_invariants(&report);
    row(&report, "firmware", "flash", Verdict::Unknown);
    row(&report, "firmware", "uefi", Verdict::Unknown);
}

#[test]
fn kvm_that_cannot() {
    let with = |change: &dyn Fn(&mut Offer)| {
        let mut facts = good();
        change(facts.kvm.offer.as_mut().unwrap());
        let report = judge(&server().host(), &facts);
        check_invariants(&report);
        report
    };
    let report = with(&|offer| {
        offer.missing = vec!["KVM_CAP_IRQFD"];
        offer.trial = None;
    });
    assert!(!report.can_run);
    assert!(
        row(&report, "kvm", "capabilities", Verdict::Missing)
            .found
            .contains("KVM_CAP_IRQFD")
    );
    assert!(report.check("kvm", "guest").is_none());

    let busy = Failure {
        what: "busy".into(),
        errno: Some(libc::EBUSY),
    };
    let report = with(&|offer| offer.trial = Some(Err(busy.clone())));
    assert!(!report.can_run);
    assert!(
        row(&report, "kvm", "guest", Verdict::Missing)
            .fix
            .as_ref()
            .unwrap()
            .text
            .contains("Another hypervisor")
    );

    for (errno, part) in [(libc::ENOMEM, "no memory"), (libc::EAGAIN, "threads")] {
        let report = with(&|offer| {
            offer.trial = Some(Err(Failure {
                what: "refused".into(),
                errno: Some(errno),
            }));
        });
        let guest = row(&report, "kvm", "guest", Verdict::Missing);
        let fix = guest.fix.as_ref().unwrap();
        assert!(fix.text.contains(part), "{fix:?}");
    }

    let slow = Outcome {
        exit: std::time::Duration::from_micros(95),
        tsc_khz: None,
    };
    let report = with(&|offer| offer.trial = Some(Ok(slow)));
    assert!(report.can_run);
    assert!(
        row(&report, "kvm", "guest", Verdict::Degraded)
            .found
            .contains("95.0 µs")
    );

    let report = with(&|offer| offer.capabilities = Capabilities::default());
    assert!(report.can_run);
    row(&report, "kvm", "extras", Verdict::Missing);
    let flash = row(&report, "firmware", "flash", Verdict::Missing);
    assert!(flash.found.contains("KVM_CAP_READONLY_MEM") && !flash.blocks);
    row(&report, "migration", "dirty-pages", Verdict::Degraded);
    row(&report, "migration", "tsc", Verdict::Missing);
    row(&report, "migration", "clock", Verdict::Degraded);
    row(&report, "migration", "nested-state", Verdict::Missing);

    let report = with(&|offer| offer.max_vcpus = 8);
    assert_eq!(
        row(&report, "kvm", "vcpus", Verdict::Degraded).facts["max_vcpus"],
        8
    );
}

#[test]
fn io_uring_that_is_refused() {
    let judged = |level: &str, error: io::Error| {
        let fake = server();
        fake.write("proc/sys/kernel/io_uring_disabled", level);
        let mut facts = good();
        facts.storage.io_uring = Err(error);
        let report = judge(&fake.host(), &facts);
        check_invariants(&report);
        assert!(report.can_run);
        row(&report, "storage", "io-uring", Verdict::Degraded).clone()
    };
    let check = judged("2", errno(libc::EPERM));
    assert_eq!(commands(&check)[0], "sysctl -w kernel.io_uring_disabled=0");
    assert!(check.means.unwrap().contains("threads"));
    assert!(judged("0", errno(libc::EPERM)).found.contains("seccomp"));
    assert!(
        judged("0", errno(libc::ENOMEM))
            .found
            .contains("locked memory")
    );
    assert!(
        judged("0", errno(libc::ENOSYS))
            .found
            .contains("kernel has none")
    );
    assert!(
        judged("0", io::ErrorKind::Unsupported.into())
            .found
            .contains("operations")
    );
}

#[test]
fn directories() {
    let mut facts = good();
    facts.storage.directories = vec![
        (
            "/poor".into(),
            Ok(DirectoryOffer {
                direct: Err(errno(libc::EINVAL)),
                lock: Lock::Useless,
                discard: false,
            }),
        ),
        ("/none".into(), Err("no such directory".into())),
    ];
    let report = judge(&server().host(), &facts);
    check_invariants(&report);
    assert_eq!(
        row(&report, "storage", "direct", Verdict::Degraded)
            .subject
            .as_deref(),
        Some("/poor")
    );
    row(&report, "storage", "locks", Verdict::Degraded);
    row(&report, "storage", "discard", Verdict::Missing);
    row(&report, "storage", "directory", Verdict::Unknown);
}

#[test]
fn bridges() {
    let bridge = |files: &[(&str, &str)], name, verdict| {
        let fake = server();
        for (file, text) in files {
            fake.write(format!("sys/class/net/{file}"), text);
        }
        let report = judge(&fake.host(), &good());
        check_invariants(&report);
        row(&report, "network", name, verdict).clone()
    };
    let off = bridge(
        &[("br0/bridge/vlan_filtering", "0")],
        "vlan-filtering",
        Verdict::Missing,
    );
    assert_eq!(
        commands(&off),
        ["ip link set br0 type bridge vlan_filtering 1"]
    );
    let stp = bridge(
        &[("br0/bridge/stp_state", "1")],
        "bridge",
        Verdict::Degraded,
    );
    assert!(stp.means.unwrap().contains("30 s"));
    let down = bridge(&[("br0/flags", "0x1002")], "bridge", Verdict::Degraded);
    assert_eq!(commands(&down), ["ip link set br0 up"]);
    let narrow = bridge(&[("br0/mtu", "9000")], "bridge", Verdict::Degraded);
    assert_eq!(
        commands(&narrow),
        ["ip link set eth0 mtu 9000", "ip link set br0 mtu 1500"]
    );

    let fake = server();
    std::fs::remove_file(fake.path("sys/class/net/br0/bridge/vlan_filtering")).unwrap();
    fake.write("proc/sys/net/bridge/bridge-nf-call-iptables", "1");
    let report = judge(&fake.host(), &good());
    assert!(
        row(&report, "network", "vlan-filtering", Verdict::Missing)
            .found
            .contains("kernel")
    );
    row(&report, "network", "bridge-netfilter", Verdict::Degraded);
    std::fs::remove_dir_all(fake.path("sys/class/net/br0")).unwrap();
    let report = judge(&fake.host(), &good());
    assert_eq!(
        commands(row(&report, "network", "bridge", Verdict::Missing))[0],
        "ip link add br0 up type bridge vlan_filtering 1"
    );
}

#[test]
fn memory_and_limits() {
    let fake = server();
    for (file, text) in [
        (
            "proc/meminfo",
            "MemTotal: 100000 kB\nMemAvailable: 50000 kB\nCommitLimit: 3000 kB\nCommitted_AS: 1000 kB\n",
        ),
        ("proc/sys/vm/overcommit_memory", "2"),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always madvise [never]",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
            "512",
        ),
        ("sys/fs/cgroup/user.slice/memory.max", "100000000"),
        ("sys/fs/cgroup/user.slice/pids.max", "40"),
        ("sys/fs/cgroup/user.slice/pids.current", "10"),
        (
            "proc/self/limits",
            "Max open files 1024 2048 files\nMax locked memory 65536 65536 bytes\nMax address space 1000000 unlimited bytes\n",
        ),
        ("proc/sys/kernel/osrelease", "5.10.0"),
    ] {
        fake.write(file, text);
    }
    std::fs::remove_dir_all(fake.path("sys/kernel/mm/hugepages/hugepages-1048576kB")).unwrap();
    let report = judge(&fake.host(), &good());
    check_invariants(&report);
    assert!(
        report.can_run,
        "all of it may be worse than it should and VMs still run"
    );
    row(&report, "memory", "available", Verdict::Degraded);
    row(
        &report,
        "memory",
        "transparent-huge-pages",
        Verdict::Degraded,
    );
    let pool = row(&report, "memory", "huge-pages-2m", Verdict::Missing);
    assert_eq!(
        commands(pool)[0],
        "echo 1024 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    );
    row(&report, "memory", "huge-pages-1g", Verdict::Missing);
    assert_eq!(
        row(&report, "memory", "overcommit", Verdict::Degraded).facts["room_bytes"],
        2000 << 10
    );
    let cgroup = row(&report, "limits", "cgroup-memory", Verdict::Degraded);
    assert_eq!(
        commands(cgroup)[0],
        "systemctl set-property user.slice MemoryMax=VALUE"
    );
    assert_eq!(
        row(&report, "limits", "cgroup-pids", Verdict::Degraded).facts["room"],
        30
    );
    row(&report, "limits", "descriptors", Verdict::Degraded);
    row(&report, "limits", "locked-memory", Verdict::Degraded);
    row(&report, "limits", "address-space", Verdict::Degraded);
    fake.write("sys/fs/cgroup/user.slice/memory.max", "1073741824");
    let report = judge(&fake.host(), &good());
    let roomy = row(&report, "limits", "cgroup-memory", Verdict::Ok);
    assert!(
        roomy.means.as_ref().unwrap().contains("960 MiB"),
        "{roomy:?}"
    );
}

#[test]
fn clocks() {
    let fake = server();
    fake.write(
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet",
    );
    fake.write("proc/cpuinfo", "flags: svm constant_tsc\n");
    let report = judge(
        &fake.host(),
        &Facts {
            synchronized: Some(false),
            ..good()
        },
    );
    check_invariants(&report);
    row(&report, "time", "clocksource", Verdict::Degraded);
    assert!(
        row(&report, "time", "tsc", Verdict::Degraded)
            .found
            .contains("nonstop")
    );
    row(&report, "time", "synchronization", Verdict::Degraded);
}

#[test]
fn vlans_that_no_uplink_carries() {
    let fake = server();
    for (tap, vlan) in [("tap0", 150), ("tap1", 30), ("tap2", 30)] {
        fake.write(format!("sys/class/net/br0/brif/{tap}/state"), "3");
        fake.write(format!("sys/class/net/{tap}/tun_flags"), "0x5002");
        fake.write(format!("sys/class/net/{tap}/mtu"), vlan.to_string());
    }
    let mut facts = good();
    let vlans = facts.network.vlans.as_mut().unwrap();
    vlans.insert("tap0".into(), vec![range(150, 150)]);
    vlans.insert("tap1".into(), vec![range(30, 30)]);
    vlans.insert("tap2".into(), vec![range(30, 30)]);
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    let check = row(&report, "network", "vlan-filtering", Verdict::Degraded);
    assert!(
        check.found.contains("VLAN 30 of tap1, VLAN 30 of tap2"),
        "{check:?}"
    );
    assert_eq!(commands(check), ["bridge vlan add dev eth0 vid 30"]);
    assert_eq!(check.facts["uplink_vlans"]["eth0"], "1, 100-200");
    // A tap's own MTU is its VM's business.
    row(&report, "network", "bridge", Verdict::Ok);

    let vlans = facts.network.vlans.as_mut().unwrap();
    vlans.insert("br0".into(), vec![range(30, 30)]);
    let report = judge(&fake.host(), &facts);
    row(&report, "network", "vlan-filtering", Verdict::Ok);

    facts.network.vlans = Err("no answer".into());
    let report = judge(&fake.host(), &facts);
    check_invariants(&report);
    assert!(
        row(&report, "network", "vlan-filtering", Verdict::Ok)
            .found
            .contains("no answer")
    );
}

#[test]
fn a_kernel_that_cannot_filter_vlans() {
    let fake = server();
    std::fs::remove_dir_all(fake.path("sys/class/net/br0")).unwrap();
    let filtering = |report: &Report| report.check("network", "vlan-filtering").cloned();
    assert_eq!(
        filtering(&judge(&fake.host(), &good())),
        None,
        "nobody knows"
    );
    let file = "boot/config-6.1.0-32-amd64";
    fake.write(file, "CONFIG_BRIDGE=m\nCONFIG_BRIDGE_VLAN_FILTERING=y\n");
    assert_eq!(filtering(&judge(&fake.host(), &good())), None, "it can");
    fake.write(
        file,
        "CONFIG_BRIDGE=m\n# CONFIG_BRIDGE_VLAN_FILTERING is not set\n",
    );
    let report = judge(&fake.host(), &good());
    check_invariants(&report);
    row(&report, "network", "vlan-filtering", Verdict::Missing);
}

#[test]
fn sysfs_of_another_network_namespace() {
    let fake = server();
    fake.write("sys/class/net/bonding_masters", "");
    for (interfaces, verdict) in [
        ("br0: 1 2 3\n  eth0: 1 2 3\n", Verdict::Ok),
        ("br0: 0\n  eth0: 0\n  br7: 0\n", Verdict::Unknown),
        ("eth0: 0\n", Verdict::Unknown),
    ] {
        let text = format!("Inter-|   Receive\n face |bytes\n  {interfaces}");
        fake.write("proc/self/net/dev", text);
        let report = judge(&fake.host(), &good());
        check_invariants(&report);
        row(&report, "network", "bridge", verdict);
    }
}
