//! The vCPU's own leaves: APIC id, the levels of the topology, and which vCPUs share a cache.
//!
//! KVM gives here what the CPU said that the question was asked on.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::{Leaves, Vendor, set};
use crate::cpu::topology::Topology;

const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT1_ECX_TOPOEXT: u32 = 1 << 22;
/// Extended topology enumeration, and its second version, which says the same here.
const EXTENDED_TOPOLOGY: [u32; 2] = [0xB, 0x1F];
/// Cache parameters, by Intel and AMD: the same layout.
const CACHES: [u32; 2] = [4, 0x8000_001D];
const AMD_TOPOLOGY: u32 = 0x8000_001E;

pub(super) fn write(leaves: &mut Leaves, vendor: Vendor, topology: &Topology, index: u32) {
    let apic_id = topology.apic_id(index);
    let several = topology.cpus_per_socket() > 1;
    if let Some(leaf) = leaves.get_mut(1, 0) {
        // Initial APIC id, vCPUs of the socket, and CLFLUSH and brand as they are. At most 254, so no bit is lost.
        leaf.ebx = apic_id << 24 | topology.cpus_per_socket() << 16 | leaf.ebx & 0xFFFF;
        set(&mut leaf.edx, LEAF1_EDX_HTT, several);
    }
    write_extended_topology(leaves, topology, apic_id);
    write_caches(leaves, topology);
    write_amd(leaves, vendor, topology, index);
}

fn write_extended_topology(leaves: &mut Leaves, topology: &Topology, apic_id: u32) {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let has_second = leaves.highest(0) >= EXTENDED_TOPOLOGY[1];
    for function in EXTENDED_TOPOLOGY {
        leaves.remove(function);
        if function == EXTENDED_TOPOLOGY[1] && !has_second {
            continue;
        }
        let (core, socket) = (topology.core_shift(), topology.socket_shift());
        leaves.push_indexed(function, 0, [core, topology.threads(), SMT, apic_id]);
        leaves.push_indexed(
            function,
            1,
            [socket, topology.cpus_per_socket(), 1 | CORE, apic_id],
        );
        // The level after the last has type 0.
        leaves.push_indexed(function, 2, [0, 0, 2, apic_id]);
    }
    if let Some(leaf) = leaves.get_mut(0, 0) {
        leaf.eax = leaf.eax.max(EXTENDED_TOPOLOGY[0]);
    }
}

/// Caches of level 1 and 2 belong to a core, higher ones to the socket.
fn write_caches(leaves: &mut Leaves, topology: &Topology) {
    // Fields hold a number less one. Ids, not vCPUs, are counted: gaps included.
    let ids_of_core = (1u32 << topology.core_shift()) - 1;
    let ids_of_socket = (1u32 << topology.socket_shift()) - 1;
    let cores_of_socket = (1u32 << (topology.socket_shift() - topology.core_shift())) - 1;
    for function in CACHES {
        for leaf in leaves.all_mut(function) {
            // A guest asks for one subleaf after the other until the type is 0: they must differ.
            leaf.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            if leaf.eax & 0x1F == 0 {
                continue;
            }
            let level = leaf.eax >> 5 & 0b111;
            let sharing = if level <= 2 {
                ids_of_core
            } else {
                ids_of_socket
            };
            leaf.eax = leaf.eax & 0x3FFF | sharing << 14;
            if function == CACHES[0] {
                leaf.eax |= cores_of_socket.min(0x3F) << 26;
            }
        }
    }
}

fn write_amd(leaves: &mut Leaves, vendor: Vendor, topology: &Topology, index: u32) {
    let amd = vendor == Vendor::Amd;
    let cpus = topology.cpus_per_socket();
    if let Some(leaf) = leaves.get_mut(0x8000_0008, 0) {
        // Threads of a socket less one, and the width of their ids; reserved on Intel.
        leaf.ecx = if amd {
            topology.socket_shift() << 12 | (cpus - 1)
        } else {
            0
        };
        leaf.edx = 0;
    }
    let reaches = leaves.highest(0x8000_0000) >= AMD_TOPOLOGY;
    let mut extended = false;
    if let Some(leaf) = leaves.get_mut(0x8000_0001, 0) {
        set(&mut leaf.ecx, EXT1_ECX_CMP_LEGACY, amd && cpus > 1);
        extended = amd && reaches && leaf.ecx & EXT1_ECX_TOPOEXT != 0;
        set(&mut leaf.ecx, EXT1_ECX_TOPOEXT, extended);
    }
    leaves.remove(AMD_TOPOLOGY);
    if extended {
        let place = topology.place(index);
        // APIC id; core and threads of a core less one; node, one a socket.
        let registers = [
            topology.apic_id(index),
            (topology.threads() - 1) << 8 | place.core,
            place.socket,
            0,
        ];
        leaves.push_indexed(AMD_TOPOLOGY, 0, registers);
        if let Some(leaf) = leaves.get_mut(AMD_TOPOLOGY, 0) {
            leaf.flags = 0;
        }
    } else {
        leaves.remove(CACHES[1]);
    }
}
