//! Leaves and bits that are taken away, as tables.

use super::{CpuidOptions, Leaves, Vendor, set};

/// Leaves no guest gets: performance monitoring, cache and memory bandwidth allocation, SGX, processor trace, key locker,
/// hybrid cores, PCONFIG, last-branch records, AMX, and on AMD IBS, LWP, memory encryption, PMU v2 and a topology of its own.
const REMOVED: &[u32] = &[
    0x3,
    0x5,
    0x9,
    0xA,
    0xF,
    0x10,
    0x12,
    0x14,
    0x19,
    0x1A,
    0x1B,
    0x1C,
    0x1D,
    0x1E,
    0x20,
    0x23,
    0x8000_001B,
    0x8000_001C,
    0x8000_001F,
    0x8000_0020,
    0x8000_0022,
    0x8000_0026,
];
/// SVM's features.
const SVM: u32 = 0x8000_000A;
/// KVM's own leaves: signature and features. What other hypervisors' interfaces put beyond is not for this guest.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const HYPERVISOR_LEAVES: std::ops::Range<u32> = KVM_SIGNATURE..0x4001_0000;

/// KVM features the kernel serves alone: clock sources (0, 3, 24), no delay on port I/O (1), asynchronous page faults (4,
/// 10, 14), steal time (5), EOI without exit (6), unhalt (7), TLB flush (9), IPIs (11), halt polling control (12), yield to
/// preempted vCPUs (13). Not 16 and 17, which are for encrypted guests and need this process, nor 2, which is gone.
const KVM_KEPT: u32 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 0b11_1111 << 9 | 1 << 24;

#[derive(Debug, Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Bits to clear: leaf, subleaf, register, bits.
const CLEARED: &[(u32, u32, Register, &[u32])] = &[
    // DTES64, MONITOR, DS-CPL, SMX, EIST, TM2, SDBG, xTPR, PDCM, DCA; OSXSAVE, which KVM keeps up to date.
    (1, 0, Ecx, &[2, 3, 4, 6, 7, 8, 11, 14, 15, 18, 27]),
    // PSN, DS, ACPI thermal control, TM, PBE.
    (1, 0, Edx, &[18, 21, 22, 29, 31]),
    // SGX, RDT monitoring, RDT allocation, processor trace.
    (7, 0, Ebx, &[2, 12, 15, 25]),
    // OSPKE, which KVM keeps up to date; WAITPKG, TME, key locker, ENQCMD, SGX launch control.
    (7, 0, Ecx, &[4, 5, 13, 23, 29, 30]),
    // UINTR, hybrid, PCONFIG, architectural LBR, AMX-BF16, AMX-TILE, AMX-INT8.
    (7, 0, Edx, &[5, 15, 18, 19, 22, 24, 25]),
    // Architectural performance monitoring, AMX-FP16, HRESET, MSRLIST.
    (7, 1, Eax, &[8, 21, 22, 27]),
    // AMX-COMPLEX, USER_MSR, UIRET.
    (7, 1, Edx, &[8, 15, 17]),
    // ExtApicSpace, IBS, SKINIT, WDT, LWP, PMU extensions (core, northbridge, data breakpoint, last level), MONITORX.
    (
        0x8000_0001,
        0,
        Ecx,
        &[3, 10, 12, 13, 15, 23, 24, 26, 28, 29],
    ),
    // RDPRU, MBE.
    (0x8000_0008, 0, Ebx, &[4, 6]),
];

/// Only the always-running APIC timer is left of thermal and power management.
const ARAT: u32 = 1 << 2;
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const EXT1_ECX_SVM: u32 = 1 << 2;
const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
/// AMD's bits that open MSR `SPEC_CTRL`: IBRS, STIBP, SSBD; and PSFD, which is in that MSR.
const EXT8_EBX_SPEC_CTRL: u32 = 1 << 14 | 1 << 15 | 1 << 24;
const EXT8_EBX_PSFD: u32 = 1 << 28;
/// Intel's: IBRS/IBPB, STIBP, SSBD.
const LEAF7_EDX_SPEC_CTRL: u32 = 1 << 26 | 1 << 27 | 1 << 31;

pub(super) fn remove_leaves(leaves: &mut Leaves, options: &CpuidOptions) {
    leaves.0.retain(|leaf| {
        let foreign = HYPERVISOR_LEAVES.contains(&leaf.function) && leaf.function > KVM_FEATURES;
        !foreign && !REMOVED.contains(&leaf.function) && (options.nested || leaf.function != SVM)
    });
}

pub(super) fn clear_bits(leaves: &mut Leaves, vendor: Vendor, options: &CpuidOptions) {
    for &(function, index, register, bits) in CLEARED {
        let mask = bits.iter().fold(0, |mask, bit| mask | 1u32 << bit);
        let Some(leaf) = leaves.get_mut(function, index) else {
            continue;
        };
        let register = match register {
            Eax => &mut leaf.eax,
            Ebx => &mut leaf.ebx,
            Ecx => &mut leaf.ecx,
            Edx => &mut leaf.edx,
        };
        *register &= !mask;
    }
    if let Some(leaf) = leaves.get_mut(1, 0) {
        leaf.ecx |= LEAF1_ECX_HYPERVISOR;
        set(&mut leaf.ecx, LEAF1_ECX_TSC_DEADLINE, options.tsc_deadline);
        leaf.ecx &= keep(LEAF1_ECX_VMX, options.nested);
    }
    if let Some(leaf) = leaves.get_mut(6, 0) {
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & ARAT, 0, 0, 0);
    }
    if let Some(leaf) = leaves.get_mut(7, 0) {
        leaf.edx &= keep(LEAF7_EDX_ARCH_CAPABILITIES, vendor == Vendor::Intel);
    }
    if let Some(leaf) = leaves.get_mut(0x8000_0001, 0) {
        leaf.ecx &= keep(EXT1_ECX_SVM, options.nested);
    }
    // Invariant TSC, and power and RAS reporting.
    leaves.remove(0x8000_0007);
    clear_psfd(leaves);
    if let Some(leaf) = leaves.get_mut(KVM_SIGNATURE, 0) {
        leaf.eax = KVM_FEATURES;
    }
    if let Some(leaf) = leaves.get_mut(KVM_FEATURES, 0) {
        // EDX holds hints that this vCPU has a CPU to itself.
        (leaf.eax, leaf.edx) = (leaf.eax & KVM_KEPT, 0);
    }
}

/// KVM offers PSFD even where it refuses the MSR that it is in.
fn clear_psfd(leaves: &mut Leaves) {
    let intel = leaves
        .get(7, 0)
        .is_some_and(|leaf| leaf.edx & LEAF7_EDX_SPEC_CTRL != 0);
    if let Some(leaf) = leaves.get_mut(0x8000_0008, 0) {
        let usable = intel || leaf.ebx & EXT8_EBX_SPEC_CTRL != 0;
        leaf.ebx &= keep(EXT8_EBX_PSFD, usable);
    }
}

/// A mask that keeps `bit` only if `wanted`, and all others.
const fn keep(bit: u32, wanted: bool) -> u32 {
    if wanted { u32::MAX } else { !bit }
}
