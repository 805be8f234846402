//! The CPUID a guest sees: what KVM can do on this host, without what a VM cannot be given, and with the vCPU's own place
//! in the topology.
//!
//! Pure functions, on the control thread. The order is: take away leaves (`features`), take away bits, make the extended
//! state consistent (`xstate`), write the topology (`identity`).
//!
//! Decisions that are not obvious:
//! - *Invariant TSC is hidden*: a guest that sees it uses the TSC alone, and the next host's may run at another rate.
//!   kvmclock is as cheap to read and knows about it.
//! - *No PMU, debug store, processor trace or MWAIT*: they leak between guests, or need state nobody saves.
//! - *AMX is hidden*: its state needs a permission that the process does not ask for.
//! - *`ARCH_CAPABILITIES` only on Intel*: KVM offers it on AMD too, where Windows takes it amiss.

mod features;
mod identity;
mod name;
#[cfg(test)]
mod tests;
mod xstate;

pub use name::ProcessorName;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use super::topology::Topology;
use crate::layout::PHYS_BITS_MIN;

/// What the guest is to have beyond the plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidOptions {
    /// VMX or SVM, so that the guest can run VMs itself.
    pub nested: bool,
    /// The TSC-deadline timer: whether KVM's local APIC has it (`KVM_CAP_TSC_DEADLINE_TIMER`), which CPUID does not tell.
    pub tsc_deadline: bool,
}

/// The vendor decides which leaves carry the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel, and those who follow it.
    Intel,
}

/// Leaves under construction.
#[derive(Debug)]
struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    fn get(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.0
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
    }

    fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .find(|leaf| leaf.function == function && leaf.index == index)
    }

    fn all_mut(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0
            .iter_mut()
            .filter(move |leaf| leaf.function == function)
    }

    fn remove(&mut self, function: u32) {
        self.0.retain(|leaf| leaf.function != function);
    }

    /// The highest leaf of the range that `function` (0 or 8000_0000h) begins.
    fn highest(&self, function: u32) -> u32 {
        self.get(function, 0).map_or(0, |leaf| leaf.eax)
    }

    /// Adds a leaf whose subleaves differ.
    fn push_indexed(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        self.0.push(kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
    }

    fn vendor(&self) -> Vendor {
        let name = self.get(0, 0).map(|leaf| {
            [leaf.ebx, leaf.edx, leaf.ecx]
                .map(u32::to_le_bytes)
                .concat()
        });
        match name.as_deref() {
            Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = if value {
        *register | bit
    } else {
        *register & !bit
    };
}

/// The CPUID of the vCPU `index`, from what `KVM_GET_SUPPORTED_CPUID` gave.
#[must_use]
pub fn filter(supported: &CpuId, topology: &Topology, index: u32, options: &CpuidOptions) -> CpuId {
    let mut leaves = Leaves(supported.as_slice().to_vec());
    let vendor = leaves.vendor();
    features::remove_leaves(&mut leaves, options);
    features::clear_bits(&mut leaves, vendor, options);
    xstate::limit(&mut leaves);
    identity::write(&mut leaves, vendor, topology, index);
    // A leaf that is not there reads as zeros, so these cost only room.
    leaves
        .0
        .retain(|leaf| (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) != (0, 0, 0, 0));
    leaves.0.sort_by_key(|leaf| (leaf.function, leaf.index));
    leaves.0.truncate(KVM_MAX_CPUID_ENTRIES);
    // Only the number of entries can be refused, and it was just limited.
    CpuId::from_entries(&leaves.0)
        .unwrap_or_else(|_| unreachable!("at most KVM_MAX_CPUID_ENTRIES leaves"))
}

/// The width of guest-physical addresses, in bits: what the CPU has, or less where KVM says a guest can map less.
#[must_use]
pub fn physical_bits(supported: &CpuId) -> u8 {
    let sizes = supported
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == 0x8000_0008);
    let [physical, _, guest, _] =
        sizes.map_or([PHYS_BITS_MIN, 0, 0, 0], |leaf| leaf.eax.to_le_bytes());
    if guest == 0 {
        physical
    } else {
        guest.min(physical)
    }
}
