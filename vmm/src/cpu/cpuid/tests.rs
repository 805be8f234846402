//! CPUIDs of an Intel-like and an AMD-like host, filtered for guests of every shape and read back as Linux reads them.

use std::collections::BTreeSet;

use super::*;

const FLAG: u32 = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
/// The host's APIC id in the data from KVM: it must not survive.
const HOST_APIC: u32 = 0xA7;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = if matches!(function, 4 | 7 | 0xB | 0xD | 0x1D | 0x1F | 0x8000_001D) {
        FLAG
    } else {
        0
    };
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn text(name: &[u8; 12]) -> [u32; 3] {
    let word = |i: usize| u32::from_le_bytes(name[i..i + 4].try_into().unwrap());
    [word(0), word(4), word(8)]
}

/// What both vendors have. Feature registers are all ones, so that a test sees what is left.
fn common(vendor: &[u8; 12], highest: u32, highest_extended: u32) -> Vec<kvm_cpuid_entry2> {
    let [b, d, c] = text(vendor);
    let ones = [u32::MAX; 4];
    let mut leaves = vec![
        leaf(0, 0, [highest, b, c, d]),
        leaf(
            1,
            0,
            [
                0x806F8,
                HOST_APIC << 24 | 0x40 << 16 | 8 << 8,
                u32::MAX,
                u32::MAX,
            ],
        ),
        leaf(5, 0, ones),
        leaf(6, 0, ones),
        leaf(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
        leaf(7, 1, ones),
        leaf(0xB, 0, [1, 2, 0x100, HOST_APIC]),
        leaf(0xB, 1, [7, 64, 0x201, HOST_APIC]),
        // x87, SSE, AVX, AVX-512, PKRU, AMX; 0x2B00 bytes in all.
        leaf(0xD, 0, [0x6_02E7, 0x240, 0x2B00, 0]),
        leaf(0xD, 1, [0x1F, 0, 0x1900, 0]),
        leaf(0xD, 2, [256, 576, 0, 0]),
        leaf(0xD, 5, [64, 1088, 0, 0]),
        leaf(0xD, 6, [512, 1152, 0, 0]),
        leaf(0xD, 7, [1024, 1664, 0, 0]),
        leaf(0xD, 8, [128, 0, 1, 0]),
        leaf(0xD, 9, [8, 2688, 0, 0]),
        leaf(0xD, 11, [16, 0, 1, 0]),
        leaf(0xD, 12, [24, 0, 1, 0]),
        leaf(0xD, 17, [64, 2752, 2, 0]),
        leaf(0xD, 18, [8192, 2816, 6, 0]),
        leaf(0x8000_0000, 0, [highest_extended, b, c, d]),
        leaf(0x8000_0001, 0, ones),
        leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, 0, [0x30_3934, u32::MAX, 0x0707, 0x1_0007]),
    ];
    let [b, c, d] = text(b"KVMKVMKVM\0\0\0");
    leaves.push(leaf(0x4000_0000, 0, [0x4000_0001, b, c, d]));
    leaves.push(leaf(0x4000_0001, 0, ones));
    leaves.push(leaf(0x4000_0010, 0, ones));
    leaves.extend(
        [
            3, 9, 0xA, 0xF, 0x10, 0x12, 0x14, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x23,
        ]
        .map(|function| leaf(function, 0, ones)),
    );
    leaves
}

/// A cache of `level`; sharing and cores as on the host.
fn cache(function: u32, index: u32, kind: u32, level: u32) -> kvm_cpuid_entry2 {
    leaf(
        function,
        index,
        [
            0x3F << 26 | 0x7F << 14 | 1 << 8 | level << 5 | kind,
            0x1C0_003F,
            0x3F,
            0,
        ],
    )
}

fn caches(function: u32) -> Vec<kvm_cpuid_entry2> {
    [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 3, 3)]
        .map(|(i, kind, level)| cache(function, i, kind, level))
        .to_vec()
}

fn intel() -> CpuId {
    let mut leaves = common(b"GenuineIntel", 0x20, 0x8000_0008);
    leaves.extend(caches(4));
    leaves.push(leaf(0x1F, 0, [1, 2, 0x100, HOST_APIC]));
    leaves.push(leaf(0x1F, 1, [6, 64, 0x201, HOST_APIC]));
    leaves.push(leaf(0x1F, 2, [7, 128, 0x502, HOST_APIC]));
    CpuId::from_entries(&leaves).unwrap()
}

fn amd() -> CpuId {
    let mut leaves = common(b"AuthenticAMD", 0xD, 0x8000_0026);
    leaves.extend(caches(0x8000_001D));
    let ones = [u32::MAX; 4];
    leaves.extend(
        [
            0x8000_000A,
            0x8000_001B,
            0x8000_001F,
            0x8000_0022,
            0x8000_0026,
        ]
        .map(|function| leaf(function, 0, ones)),
    );
    leaves.push(leaf(0x8000_001E, 0, [HOST_APIC, 0x153, 3, 0]));
    CpuId::from_entries(&leaves).unwrap()
}

/// CPUID as the instruction answers under KVM.
fn ask(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let found = cpuid
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == function && (leaf.flags & FLAG == 0 || leaf.index == index));
    found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
}

fn bit(value: u32, bit: u32) -> bool {
    value >> bit & 1 == 1
}

fn filtered(host: &CpuId, topology: &Topology, index: u32) -> CpuId {
    filter(
        host,
        topology,
        index,
        &CpuidOptions {
            nested: false,
            tsc_deadline: true,
        },
    )
}

fn order(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// A vCPU's (socket, core, thread), and the widths it was read with.
type Decoded = (u32, u32, u32);

/// Linux's `parse_topology_leaf`: the levels of leaf 0Bh or 1Fh.
fn decode_extended(cpuid: &CpuId, function: u32) -> Decoded {
    let (mut shifts, mut last) = ([0; 2], 0);
    let apic_id = ask(cpuid, function, 0)[3];
    for index in 0.. {
        let [eax, ebx, ecx, edx] = ask(cpuid, function, index);
        let kind = ecx >> 8 & 0xFF;
        if kind == 0 {
            break;
        }
        assert!(index < 2 && ebx & 0xFFFF != 0 && ecx & 0xFF == index && edx == apic_id);
        assert!(eax & 0x1F >= last, "levels must grow");
        last = eax & 0x1F;
        shifts[if kind == 1 { 0 } else { 1 }] = last;
    }
    let [core, socket] = shifts;
    (
        apic_id >> socket,
        (apic_id & ((1 << socket) - 1)) >> core,
        apic_id & ((1 << core) - 1),
    )
}

/// Linux's way on Intel before leaf 0Bh: `parse_legacy`, leaves 1 and 4.
fn decode_intel_legacy(cpuid: &CpuId) -> Decoded {
    let [_, ebx, _, edx] = ask(cpuid, 1, 0);
    let apic_id = ebx >> 24;
    let ids = if bit(edx, 28) {
        order(ebx >> 16 & 0xFF)
    } else {
        0
    };
    let cores = order((ask(cpuid, 4, 0)[0] >> 26) + 1);
    // The number of vCPUs is not always the number of ids: the cores' width decides where it is larger.
    let threads = order((ask(cpuid, 4, 0)[0] >> 14 & 0xFFF) + 1);
    let socket = ids.max(cores + threads);
    (
        apic_id >> socket,
        (apic_id & ((1 << socket) - 1)) >> threads,
        apic_id & ((1 << threads) - 1),
    )
}

/// Linux's way on AMD without leaf 0Bh: `parse_8000_0008` and `parse_8000_001e`.
fn decode_amd_legacy(cpuid: &CpuId) -> Decoded {
    let sizes = ask(cpuid, 0x8000_0008, 0)[2];
    let [apic_id, ebx, ecx, _] = ask(cpuid, 0x8000_001E, 0);
    let socket = sizes >> 12 & 0xF;
    assert!(
        1 << socket > (sizes & 0xFF),
        "ids of a socket do not suffice"
    );
    let threads = (ebx >> 8 & 0xFF) + 1;
    assert_eq!(ecx & 0xFF, apic_id >> socket, "node");
    let id_of_socket = apic_id & ((1 << socket) - 1);
    assert_eq!(ebx & 0xFF, id_of_socket >> order(threads), "core");
    (
        apic_id >> socket,
        ebx & 0xFF,
        id_of_socket & ((1 << order(threads)) - 1),
    )
}

/// The id of the group that shares a cache with `apic_id`, and the group's level.
fn cache_groups(cpuid: &CpuId, function: u32, apic_id: u32) -> Vec<(u32, u32)> {
    let mut groups = Vec::new();
    for index in 0.. {
        let [eax, ..] = ask(cpuid, function, index);
        if eax & 0x1F == 0 {
            return groups;
        }
        groups.push((eax >> 5 & 7, apic_id >> order((eax >> 14 & 0xFFF) + 1)));
    }
    unreachable!()
}

/// Every shape of up to 254 vCPUs with few sockets and threads.
fn shapes() -> impl Iterator<Item = Topology> {
    let pairs = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 2), (2, 3)];
    pairs.into_iter().flat_map(|(sockets, threads)| {
        (1..=254).filter_map(move |cores| Topology::new(sockets, cores, threads).ok())
    })
}

#[test]
fn every_vcpu_of_every_shape_finds_its_place() {
    let (intel, amd) = (intel(), amd());
    for topology in shapes() {
        let last = topology.cpus() - 1;
        let mut seen = BTreeSet::new();
        for index in [0, 1, 2, last / 2, last.saturating_sub(1), last]
            .into_iter()
            .filter(|&i| i <= last)
            .collect::<BTreeSet<_>>()
        {
            let place = topology.place(index);
            let expected = (place.socket, place.core, place.thread);
            let cpuid = filtered(&intel, &topology, index);
            let apic_id = ask(&cpuid, 1, 0)[1] >> 24;
            assert!(seen.insert(apic_id), "APIC id {apic_id} twice");
            assert_eq!(apic_id, topology.apic_id(index));
            assert_eq!(decode_extended(&cpuid, 0xB), expected, "{topology:?}");
            assert_eq!(decode_extended(&cpuid, 0x1F), expected, "{topology:?}");
            // Six bits for cores: what cannot be said there is said in leaf 0Bh.
            if topology.socket_shift() - topology.core_shift() <= 6 {
                assert_eq!(decode_intel_legacy(&cpuid), expected, "{topology:?}");
            }
            let cpuid = filtered(&amd, &topology, index);
            assert_eq!(ask(&cpuid, 1, 0)[1] >> 24, apic_id);
            assert_eq!(decode_extended(&cpuid, 0xB), expected, "{topology:?}");
            assert_eq!(decode_amd_legacy(&cpuid), expected, "{topology:?}");
        }
    }
}

#[test]
fn caches_are_shared_by_cores_and_sockets() {
    for (host, function) in [(intel(), 4), (amd(), 0x8000_001D)] {
        for topology in [
            Topology::new(2, 3, 2).unwrap(),
            Topology::new(1, 5, 3).unwrap(),
            Topology::new(2, 4, 1).unwrap(),
        ] {
            for index in 0..topology.cpus() {
                let place = topology.place(index);
                let apic_id = topology.apic_id(index);
                let core = apic_id >> topology.core_shift();
                let groups = cache_groups(&filtered(&host, &topology, index), function, apic_id);
                assert_eq!(groups, [(1, core), (1, core), (2, core), (3, place.socket)]);
            }
        }
    }
}

#[test]
fn nothing_of_the_host_that_answered_is_left() {
    for host in [intel(), amd()] {
        let topology = Topology::new(1, 4, 1).unwrap();
        for index in 0..4 {
            for leaf in filtered(&host, &topology, index).as_slice() {
                let apic = [leaf.eax, leaf.edx, leaf.ebx >> 24];
                assert!(
                    leaf.function >= 0x4000_0000
                        || leaf.function == 0xD
                        || !apic.contains(&HOST_APIC),
                    "{leaf:?}"
                );
            }
        }
    }
}

#[test]
fn one_vcpu_has_no_siblings() {
    let topology = Topology::new(1, 1, 1).unwrap();
    for host in [intel(), amd()] {
        let cpuid = filtered(&host, &topology, 0);
        assert!(!bit(ask(&cpuid, 1, 0)[3], 28), "HTT");
        assert!(!bit(ask(&cpuid, 0x8000_0001, 0)[2], 1), "CMP_LEGACY");
        assert_eq!(ask(&cpuid, 1, 0)[1] >> 16 & 0xFF, 1);
    }
}

#[test]
fn what_a_guest_cannot_have_is_gone() {
    let topology = Topology::new(1, 2, 1).unwrap();
    for host in [intel(), amd()] {
        let cpuid = filtered(&host, &topology, 0);
        let [_, _, ecx, edx] = ask(&cpuid, 1, 0);
        for absent in [2, 3, 4, 5, 6, 15, 27] {
            assert!(!bit(ecx, absent), "leaf 1 ECX {absent}");
        }
        for present in [0, 21, 24, 26, 31] {
            assert!(bit(ecx, present), "leaf 1 ECX {present}");
        }
        assert!(bit(edx, 28) && !bit(edx, 21) && !bit(edx, 22));
        assert_eq!(ask(&cpuid, 6, 0), [4, 0, 0, 0]);
        let [_, ebx, ecx, edx] = ask(&cpuid, 7, 0);
        assert!(!bit(ebx, 2) && !bit(ebx, 25) && bit(ebx, 5) && bit(ebx, 16));
        assert!(!bit(ecx, 5) && !bit(ecx, 30) && bit(ecx, 2));
        assert!(!bit(edx, 22) && !bit(edx, 24) && !bit(edx, 25) && !bit(edx, 19) && bit(edx, 26));
        assert_eq!(
            edx >> 29 & 1,
            u32::from(host.as_slice()[0].ebx == text(b"GenuineIntel")[0]),
            "ARCH_CAPABILITIES"
        );
        for gone in [
            3,
            5,
            9,
            0xA,
            0xF,
            0x10,
            0x12,
            0x14,
            0x19,
            0x1A,
            0x1C,
            0x1D,
            0x1E,
            0x23,
            0x4000_0010,
            0x8000_0007,
            0x8000_000A,
            0x8000_001B,
            0x8000_001F,
            0x8000_0022,
            0x8000_0026,
        ] {
            assert_eq!(ask(&cpuid, gone, 0), [0; 4], "leaf {gone:#x}");
        }
        let [_, _, ecx, _] = ask(&cpuid, 0x8000_0001, 0);
        assert!(!bit(ecx, 2) && !bit(ecx, 10) && !bit(ecx, 23) && !bit(ecx, 29));
        assert_eq!(ask(&cpuid, 0x4000_0000, 0)[0], 0x4000_0001);
        let [features, _, _, hints] = ask(&cpuid, 0x4000_0001, 0);
        assert_eq!((features, hints), (0x0100_7EFB, 0));
    }
}

#[test]
fn nested_and_deadline_timer_follow_the_options() {
    let topology = Topology::new(1, 1, 1).unwrap();
    for (host, function, place) in [(intel(), 1, 5), (amd(), 0x8000_0001, 2)] {
        for nested in [false, true] {
            for tsc_deadline in [false, true] {
                let cpuid = filter(
                    &host,
                    &topology,
                    0,
                    &CpuidOptions {
                        nested,
                        tsc_deadline,
                    },
                );
                assert_eq!(bit(ask(&cpuid, function, 0)[2], place), nested);
                assert_eq!(bit(ask(&cpuid, 1, 0)[2], 24), tsc_deadline);
                let svm = ask(&cpuid, 0x8000_000A, 0) != [0; 4];
                assert_eq!(svm, nested && function != 1);
            }
        }
    }
}

#[test]
fn extended_state_is_consistent_without_amx() {
    let topology = Topology::new(1, 1, 1).unwrap();
    let cpuid = filtered(&intel(), &topology, 0);
    let [eax, ebx, ecx, edx] = ask(&cpuid, 0xD, 0);
    assert_eq!((eax, edx), (0x2E7, 0));
    // PKRU ends it: offset 2688, 8 bytes.
    assert_eq!((ebx, ecx), (576, 2696));
    let [eax, _, ecx, edx] = ask(&cpuid, 0xD, 1);
    assert_eq!(
        (eax, ecx, edx),
        (0xF, 0x1800, 0),
        "no XFD; of supervisor state CET alone"
    );
    for (component, there) in [
        (2, true),
        (8, false),
        (9, true),
        (11, true),
        (17, false),
        (18, false),
    ] {
        assert_eq!(
            ask(&cpuid, 0xD, component) != [0; 4],
            there,
            "component {component}"
        );
    }
}

#[test]
fn a_host_without_xsave_or_modern_leaves_is_fine() {
    let [b, d, c] = text(b"GenuineIntel");
    let old = CpuId::from_entries(&[
        leaf(0, 0, [4, b, c, d]),
        leaf(1, 0, [0x6F0, HOST_APIC << 24, 0, 0]),
    ])
    .unwrap();
    let topology = Topology::new(1, 6, 1).unwrap();
    let cpuid = filtered(&old, &topology, 5);
    assert_eq!(ask(&cpuid, 0, 0)[0], 0xB);
    assert_eq!(decode_extended(&cpuid, 0xB), (0, 5, 0));
    assert_eq!(ask(&cpuid, 0x1F, 0), [0; 4]);
    assert_eq!(physical_bits(&old), 36);
    let empty = CpuId::from_entries(&[]).unwrap();
    assert_eq!(filtered(&empty, &topology, 0).as_slice().len(), 3);
}

#[test]
fn topoext_needs_its_leaf() {
    let mut leaves = amd().as_slice().to_vec();
    for leaf in &mut leaves {
        if leaf.function == 0x8000_0000 {
            leaf.eax = 0x8000_001C;
        }
    }
    let host = CpuId::from_entries(&leaves).unwrap();
    let cpuid = filtered(&host, &Topology::new(1, 2, 1).unwrap(), 0);
    assert!(!bit(ask(&cpuid, 0x8000_0001, 0)[2], 22));
    assert_eq!(
        (ask(&cpuid, 0x8000_001D, 0), ask(&cpuid, 0x8000_001E, 0)),
        ([0; 4], [0; 4])
    );
}

#[test]
fn psfd_goes_where_its_register_is_closed() {
    let topology = Topology::new(1, 1, 1).unwrap();
    let host = |spec_ctrl: bool| {
        let mut leaves = amd().as_slice().to_vec();
        for leaf in &mut leaves {
            match (leaf.function, leaf.index) {
                (0x8000_0008, 0) if !spec_ctrl => leaf.ebx = 1 << 28 | 1,
                (7, 0) => leaf.edx = 0,
                _ => {}
            }
        }
        CpuId::from_entries(&leaves).unwrap()
    };
    assert!(bit(
        ask(&filtered(&host(true), &topology, 0), 0x8000_0008, 0)[1],
        28
    ));
    assert!(!bit(
        ask(&filtered(&host(false), &topology, 0), 0x8000_0008, 0)[1],
        28
    ));
}

#[test]
fn physical_bits_heed_what_a_guest_can_map() {
    // 52 bits, of which a guest can map 48.
    assert_eq!(physical_bits(&intel()), 48);
    let plain = CpuId::from_entries(&[leaf(0x8000_0008, 0, [0x3028, 0, 0, 0])]).unwrap();
    assert_eq!(physical_bits(&plain), 40);
}

#[test]
fn a_full_table_stays_within_kvm_s_limit() {
    let mut leaves = intel().as_slice().to_vec();
    let free = KVM_MAX_CPUID_ENTRIES - leaves.len();
    leaves.extend(
        (0u32..)
            .take(free)
            .map(|i| leaf(0xC000_0000 + i, 0, [1; 4])),
    );
    let host = CpuId::from_entries(&leaves).unwrap();
    let cpuid = filtered(&host, &Topology::new(1, 1, 1).unwrap(), 0);
    assert!(cpuid.as_slice().len() <= KVM_MAX_CPUID_ENTRIES);
    assert_ne!(ask(&cpuid, 1, 0), [0; 4]);
}
