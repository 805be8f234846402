//! Leaf 0Dh, the extended state: components the guest may not have are taken out, and the sizes follow.

use super::Leaves;

const LEAF: u32 = 0xD;
/// AMX's tile configuration and data.
const XTILE: u64 = 1 << 17 | 1 << 18;
/// Supervisor state KVM can save: CET, user and supervisor. Not processor trace, PASID, UINTR, LBR, HWP.
const CET: u64 = 1 << 11 | 1 << 12;
/// Subleaf 1: XFD serves AMX alone.
const XFD: u32 = 1 << 4;
/// x87 and SSE in the legacy area, and the XSAVE header.
const LEGACY_SIZE: u32 = 576;
/// CET in leaf 7: shadow stack (ECX), indirect branch tracking (EDX).
const CET_SS: u32 = 1 << 7;
const CET_IBT: u32 = 1 << 20;

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

pub(super) fn limit(leaves: &mut Leaves) {
    let has_cet = leaves
        .get(7, 0)
        .is_some_and(|leaf| leaf.ecx & CET_SS != 0 || leaf.edx & CET_IBT != 0);
    let Some(main) = leaves.get_mut(LEAF, 0) else {
        return;
    };
    let user = join(main.eax, main.edx) & !XTILE;
    (main.eax, main.edx) = split(user);
    let mut supervisor = 0;
    if let Some(leaf) = leaves.get_mut(LEAF, 1) {
        leaf.eax &= !XFD;
        supervisor = join(leaf.ecx, leaf.edx) & if has_cet { CET } else { 0 };
        (leaf.ecx, leaf.edx) = split(supervisor);
    }
    leaves.0.retain(|leaf| {
        let component = leaf.index;
        leaf.function != LEAF
            || component < 2
            || (component < 64 && (user | supervisor) >> component & 1 == 1)
    });
    let end = leaves
        .0
        .iter()
        .filter(|leaf| {
            leaf.function == LEAF && (2..64).contains(&leaf.index) && user >> leaf.index & 1 == 1
        })
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax))
        .max();
    if let Some(main) = leaves.get_mut(LEAF, 0) {
        // ECX: room for all components. EBX: for those that are on, which at first is x87 alone; KVM keeps it up to date.
        main.ecx = end.unwrap_or(0).max(LEGACY_SIZE);
        main.ebx = LEGACY_SIZE;
    }
}
