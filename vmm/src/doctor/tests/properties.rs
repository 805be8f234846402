//! Hosts that no one would make up by hand: nothing in their files or their kernels' answers makes the doctor panic.

use proptest::prelude::*;

use super::*;

/// Every file the doctor reads, of the hosts above.
const FILES: &[&str] = &[
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/net/dev",
    "proc/self/limits",
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/io_uring_disabled",
    "proc/sys/net/bridge/bridge-nf-call-iptables",
    "proc/sys/vm/overcommit_memory",
    "etc/passwd",
    "etc/group",
    "sys/module/kvm_intel/parameters/ept",
    "sys/module/kvm_amd/parameters/npt",
    "sys/module/kvm_amd/parameters/nested",
    "sys/class/dmi/id/sys_vendor",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/chassis_asset_tag",
    "sys/class/net/br0/bridge/vlan_filtering",
    "sys/class/net/br0/bridge/stp_state",
    "sys/class/net/br0/bridge/forward_delay",
    "sys/class/net/br0/brif/eth0/state",
    "sys/class/net/br0/flags",
    "sys/class/net/br0/mtu",
    "sys/class/net/eth0/mtu",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
    "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/pids/pids.max",
    "sys/devices/system/clocksource/clocksource0/current_clocksource",
];

/// What may be in a file: the words of the real ones in any order, extreme numbers, or anything.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        proptest::sample::select(vec![
            "vendor_id",
            "flags",
            "vmx",
            "svm",
            "ept",
            "MemTotal",
            "MemAvailable",
            "CommitLimit",
            "Uid",
            "Gid",
            "Groups",
            "CapEff",
            "0::",
            "4:memory",
            "7:pids",
            "/",
            "/..",
            "Max open files",
            "Max locked memory",
            "unlimited",
            "max",
            "inactive_file",
            "[",
            "]",
            "never",
            "always",
            "Y",
            "N",
            "0x",
            "joe",
            "kvm",
            ":x:",
            ":",
            "\n",
            "\t",
            " ",
            ".",
            "-1",
            "kB",
            "tsc",
            "\u{1b}[31m",
            "é",
        ])
        .prop_map(str::to_owned),
        any::<u64>().prop_map(|number| number.to_string()),
        proptest::sample::select(vec![0, 1, 2, u64::MAX, 1 << 63, 1 << 59])
            .prop_map(|number| number.to_string()),
    ];
    prop_oneof![
        4 => proptest::collection::vec(word, 0..24).prop_map(|words| words.concat().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

/// Any answers of a kernel.
fn facts() -> impl Strategy<Value = Facts> {
    let errno_of = || {
        proptest::sample::select(vec![
            libc::ENOENT,
            libc::EACCES,
            libc::EPERM,
            libc::EBUSY,
            libc::ENODEV,
            libc::ENOSYS,
            libc::ENOMEM,
            libc::EIO,
        ])
    };
    let numbers = (any::<u32>(), any::<u64>(), any::<usize>(), any::<u32>());
    let signature = proptest::sample::select(vec![
        "",
        "KVMKVMKVM",
        "VMwareVMware",
        "Microsoft Hv",
        "TCGTCGTCGTCG",
        "\u{1b}?",
    ]);
    (errno_of(), any::<[bool; 6]>(), numbers, signature).prop_map(
        |(error, flags, (answer, nanos, vcpus, mode), signature)| {
            let mut facts = good();
            let refuse = |yes: bool| if yes { Err(errno(error)) } else { Ok(()) };
            if flags[0] {
                facts.kvm.offer = Err(KvmError::Open(errno(error)));
            } else if let Ok(offer) = &mut facts.kvm.offer {
                let all = migration::CAPABILITIES
                    .into_iter()
                    .map(|number| (number, answer))
                    .collect::<Vec<_>>();
                offer.capabilities = Capabilities::made_up(&all);
                offer.max_vcpus = vcpus;
                let exit = std::time::Duration::from_nanos(nanos);
                offer.trial = Some(Ok(Outcome {
                    exit,
                    tsc_khz: Some(answer),
                }));
            }
            facts.kvm.owner = flags[1].then_some(Owner {
                uid: answer,
                gid: answer,
                mode,
            });
            facts.network.vhost = refuse(flags[2]);
            facts.storage.io_uring = refuse(flags[3]);
            facts.userfaultfd = refuse(flags[4]);
            facts.signatures = Signatures {
                present: flags[5],
                names: vec![signature.to_owned()],
            };
            facts
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_host_is_too_strange(
        files in proptest::collection::vec((proptest::sample::select(FILES), contents()), 0..FILES.len()),
        facts in facts(),
    ) {
        let fake = FakeHost::new(&files);
        check_invariants(&judge(&fake.host(), &facts));
    }
}
