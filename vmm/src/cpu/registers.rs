//! The state in which a vCPU starts under direct boot: registers, MSRs, local APIC, and the descriptor and page tables
//! that the registers point to.
//!
//! Only the boot vCPU is set up. The others wait in KVM for INIT and SIPI from the guest's kernel, which takes them
//! through real mode from the state that KVM gives them. Firmware wants KVM's power-on state as it is: nothing here is
//! used then.

use kvm_bindings::{
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::boot::{BootEntry, BootProtocol};
use crate::kvm::{KvmError, call};
use crate::layout;

// Control register and EFER bits (Intel SDM vol. 3, 2.5 and 2.2.1).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 always reads as one.
const RFLAGS_FIXED: u64 = 1 << 1;

// Page table entry bits (4.5).
const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, fixed ranges off, everything write-back: without firmware nobody else says that RAM is cacheable.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

// Local vector table (11.5.1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_DELIVERY_MASK: u32 = 0b111 << 8;
const APIC_DELIVERY_NMI: u32 = 0b100 << 8;
const APIC_DELIVERY_EXTINT: u32 = 0b111 << 8;
const APIC_LVT_MASKED: u32 = 1 << 16;

/// One descriptor of the boot GDT.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    selector: u16,
    /// Type field: code, data or system.
    kind: u8,
    /// Code or data, rather than system.
    s: u8,
    /// Default operand size 32 bits.
    db: u8,
    /// 64-bit code.
    l: u8,
    /// The limit counts 4 KiB pages.
    g: u8,
    limit: u32,
}

/// Linux expects its boot selectors: `__BOOT_CS` 0x10 and `__BOOT_DS` 0x18. PVH leaves them open.
const CODE_64: Descriptor = Descriptor {
    selector: 0x10,
    kind: 0xB,
    s: 1,
    db: 0,
    l: 1,
    g: 1,
    limit: u32::MAX,
};
const CODE_32: Descriptor = Descriptor {
    db: 1,
    l: 0,
    ..CODE_64
};
const DATA: Descriptor = Descriptor {
    selector: 0x18,
    kind: 0x3,
    s: 1,
    db: 1,
    l: 0,
    g: 1,
    limit: u32::MAX,
};
/// A busy TSS at 0, as PVH asks for: VM entry wants one loaded.
const TASK: Descriptor = Descriptor {
    selector: 0x20,
    kind: 0xB,
    s: 0,
    db: 0,
    l: 0,
    g: 0,
    limit: 0x67,
};

impl Descriptor {
    /// As the processor caches it.
    fn segment(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: self.limit,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: self.db,
            s: self.s,
            l: self.l,
            g: self.g,
            avl: 0,
            unusable: 0,
            padding: 0,
        }
    }

    /// As it lies in the GDT; the base is 0.
    fn encode(self) -> u64 {
        let limit = u64::from(if self.g == 1 {
            self.limit >> 12
        } else {
            self.limit
        });
        let access = u64::from(self.kind) | u64::from(self.s) << 4 | 1 << 7;
        let flags = u64::from(self.l) << 1 | u64::from(self.db) << 2 | u64::from(self.g) << 3;
        (limit & 0xFFFF) | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52
    }
}

fn code(protocol: BootProtocol) -> Descriptor {
    match protocol {
        BootProtocol::Linux64 => CODE_64,
        BootProtocol::Pvh => CODE_32,
    }
}

fn gdt(protocol: BootProtocol) -> [u64; 5] {
    [0, 0, code(protocol).encode(), DATA.encode(), TASK.encode()]
}

/// Writes the tables that the boot vCPU's registers point to: the GDT, an empty IDT, and for the 64-bit entry page
/// tables that map the first 4 GiB one to one.
///
/// # Errors
/// When guest RAM does not reach to where they go, which [`crate::memory::create_ram`] excludes.
pub fn write_boot_tables(
    memory: &GuestMemoryMmap,
    protocol: BootProtocol,
) -> Result<(), GuestMemoryError> {
    for (address, descriptor) in (layout::BOOT_GDT..).step_by(8).zip(gdt(protocol)) {
        memory.write_obj(descriptor, GuestAddress(address))?;
    }
    memory.write_obj(0u64, GuestAddress(layout::BOOT_IDT))?;
    match protocol {
        BootProtocol::Linux64 => write_page_tables(memory),
        BootProtocol::Pvh => Ok(()),
    }
}

fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    const LARGE_PAGE: u64 = 2 << 20;
    let directories = [0, 1, 2, 3].map(|i| layout::BOOT_PD + i * layout::PAGE_SIZE);
    let table = |address: u64, entries: &mut dyn Iterator<Item = u64>| {
        let mut page = [0; 4096];
        for (slot, entry) in page.chunks_exact_mut(8).zip(entries) {
            slot.copy_from_slice(&entry.to_le_bytes());
        }
        memory.write_slice(&page, GuestAddress(address))
    };
    table(
        layout::BOOT_PML4,
        &mut std::iter::once(layout::BOOT_PDPT | PTE_PRESENT_WRITABLE),
    )?;
    table(
        layout::BOOT_PDPT,
        &mut directories.iter().map(|pd| pd | PTE_PRESENT_WRITABLE),
    )?;
    let mut pages = (0..)
        .step_by(usize::try_from(LARGE_PAGE).unwrap_or(usize::MAX))
        .map(|page: u64| page | PTE_LARGE | PTE_PRESENT_WRITABLE);
    for directory in directories {
        table(directory, &mut pages.by_ref().take(512))?;
    }
    Ok(())
}

/// General registers of the boot vCPU.
#[must_use]
pub fn boot_regs(entry: &BootEntry) -> kvm_regs {
    let regs = kvm_regs {
        rip: entry.entry,
        rflags: RFLAGS_FIXED,
        ..Default::default()
    };
    match entry.protocol {
        BootProtocol::Linux64 => kvm_regs {
            rsi: entry.argument,
            ..regs
        },
        BootProtocol::Pvh => kvm_regs {
            rbx: entry.argument,
            ..regs
        },
    }
}

/// Segment and control registers of the boot vCPU, over `reset`, what KVM gave it at creation.
#[must_use]
pub fn boot_sregs(protocol: BootProtocol, reset: &kvm_sregs) -> kvm_sregs {
    let data = DATA.segment();
    let sregs = kvm_sregs {
        cs: code(protocol).segment(),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: TASK.segment(),
        gdt: kvm_dtable {
            base: layout::BOOT_GDT,
            limit: 5 * 8 - 1,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: layout::BOOT_IDT,
            limit: 0,
            ..Default::default()
        },
        ..*reset
    };
    match protocol {
        BootProtocol::Linux64 => kvm_sregs {
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: layout::BOOT_PML4,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..sregs
        },
        BootProtocol::Pvh => kvm_sregs {
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            ..sregs
        },
    }
}

/// The wiring of a PC, which the MADT also tells: LINT0 is the PIC, LINT1 the NMI. Other bits of the vectors stay.
#[must_use]
pub fn boot_lapic(mut lapic: kvm_lapic_state) -> kvm_lapic_state {
    for (register, delivery) in [
        (APIC_LVT_LINT0, APIC_DELIVERY_EXTINT),
        (APIC_LVT_LINT1, APIC_DELIVERY_NMI),
    ] {
        let Some(bytes) = lapic.regs.get_mut(register..register + 4) else {
            continue;
        };
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(bytes.iter()) {
            *to = from.to_le_bytes()[0];
        }
        let value = u32::from_le_bytes(value) & !(APIC_DELIVERY_MASK | APIC_LVT_MASKED) | delivery;
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = i8::from_le_bytes([from]);
        }
    }
    lapic
}

/// Puts the boot vCPU at the kernel's entry. CPUID must have been set before.
///
/// # Errors
/// When KVM refuses a step.
pub fn setup_boot_vcpu(vcpu: &VcpuFd, entry: &BootEntry) -> Result<(), KvmError> {
    let sregs = vcpu
        .get_sregs()
        .map_err(call("reading the boot vCPU's segment registers"))?;
    vcpu.set_sregs(&boot_sregs(entry.protocol, &sregs))
        .map_err(call("setting the boot vCPU's segment registers"))?;
    vcpu.set_regs(&boot_regs(entry))
        .map_err(call("setting the boot vCPU's registers"))?;
    let lapic = vcpu
        .get_lapic()
        .map_err(call("reading the boot vCPU's local APIC"))?;
    vcpu.set_lapic(&boot_lapic(lapic))
        .map_err(call("setting the boot vCPU's local APIC"))
}

/// Makes KVM deliver interrupts to a vCPU that was created while others run: it looks APIC ids up in a map, which it makes anew when an
/// APIC's registers are set, and not once a vCPU is there. Without this the INIT that is to start it is lost.
///
/// # Errors
/// When KVM refuses.
pub fn announce_apic(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const ACTION: &str = "making a vCPU's local APIC known";
    let lapic = vcpu.get_lapic().map_err(call(ACTION))?;
    vcpu.set_lapic(&lapic).map_err(call(ACTION))
}

/// A vCPU as it is while it waits for INIT and SIPI: what a CPU that was unplugged and comes back starts from.
///
/// MSRs are not part of it, nor are the FPU's registers: INIT leaves them as they are (Intel SDM vol. 3, 10.1), and so a kernel that
/// wakes a CPU sets those that it relies on. The TSC has gone on as it has on the others.
#[derive(Debug)]
pub struct WaitingForInit {
    regs: kvm_regs,
    sregs: kvm_sregs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
}

impl WaitingForInit {
    /// Of a vCPU that was created and has not run.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn of(vcpu: &VcpuFd) -> Result<Self, KvmError> {
        const ACTION: &str = "reading a vCPU's first state";
        Ok(Self {
            regs: vcpu.get_regs().map_err(call(ACTION))?,
            sregs: vcpu.get_sregs().map_err(call(ACTION))?,
            debug: vcpu.get_debug_regs().map_err(call(ACTION))?,
            lapic: vcpu.get_lapic().map_err(call(ACTION))?,
            events: vcpu.get_vcpu_events().map_err(call(ACTION))?,
        })
    }

    /// Puts the same vCPU back into this state.
    ///
    /// # Errors
    /// When KVM refuses a step; the others are taken all the same, the last of which makes it wait.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let waiting = kvm_mp_state {
            mp_state: KVM_MP_STATE_UNINITIALIZED,
        };
        let steps = [
            // With the APIC's mode, which decides what its registers mean.
            vcpu.set_sregs(&self.sregs),
            vcpu.set_regs(&self.regs),
            vcpu.set_debug_regs(&self.debug),
            vcpu.set_lapic(&self.lapic),
            vcpu.set_vcpu_events(&self.events),
            vcpu.set_mp_state(waiting),
        ];
        let result: Result<(), _> = steps.into_iter().collect();
        result.map_err(call("setting a vCPU back to its first state"))
    }
}

/// Which MSRs a vCPU starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstMsrs {
    /// Those of a processor at power-on: firmware sets MTRRs itself, and expects them to be off.
    PowerOn,
    /// As firmware leaves them.
    AfterFirmware,
}

/// Sets the MSRs that every vCPU starts with: Linux complains where MTRRs differ between them.
///
/// # Errors
/// When KVM refuses.
pub fn setup_msrs(vcpu: &VcpuFd, first: FirstMsrs) -> Result<(), KvmError> {
    const ACTION: &str = "setting a vCPU's MSRs";
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let list = |entries: &[kvm_msr_entry]| {
        Msrs::from_entries(entries).map_err(|_| KvmError::Call {
            action: ACTION,
            source: std::io::ErrorKind::InvalidInput.into(),
        })
    };
    let mut wanted = Vec::new();
    if first == FirstMsrs::AfterFirmware {
        wanted.push(entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK));
    }
    // Kept but for one bit: KVM describes there what it does not emulate.
    let mut current = list(&[entry(MSR_MISC_ENABLE, 0)])?;
    if vcpu
        .get_msrs(&mut current)
        .map_err(call("reading a vCPU's MSRs"))?
        == 1
    {
        wanted.extend(
            current
                .as_slice()
                .iter()
                .map(|msr| entry(msr.index, msr.data | MISC_ENABLE_FAST_STRING)),
        );
    }
    let set = vcpu.set_msrs(&list(&wanted)?).map_err(call(ACTION))?;
    if set != wanted.len() {
        let refused = wanted.get(set).map_or(0, |msr| msr.index);
        return Err(KvmError::Call {
            action: ACTION,
            source: std::io::Error::other(format!("KVM refuses MSR {refused:#x}")),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: BootEntry = BootEntry {
        protocol: BootProtocol::Linux64,
        entry: 0x100_0200,
        argument: 0x7000,
    };
    const PVH: BootEntry = BootEntry {
        protocol: BootProtocol::Pvh,
        entry: 0x100_0000,
        argument: 0x6000,
    };

    fn ram() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn descriptors_are_the_well_known_constants() {
        assert_eq!(
            gdt(BootProtocol::Linux64),
            [
                0,
                0,
                0x00AF_9B00_0000_FFFF,
                0x00CF_9300_0000_FFFF,
                0x0000_8B00_0000_0067
            ]
        );
        assert_eq!(gdt(BootProtocol::Pvh)[2], 0x00CF_9B00_0000_FFFF);
    }

    #[test]
    fn gdt_in_memory_matches_the_selectors() {
        let memory = ram();
        for entry in [LINUX, PVH] {
            write_boot_tables(&memory, entry.protocol).unwrap();
            let sregs = boot_sregs(entry.protocol, &kvm_sregs::default());
            assert_eq!(sregs.gdt.limit, 39);
            for segment in [sregs.cs, sregs.ds, sregs.ss, sregs.tr] {
                let descriptor: u64 = memory
                    .read_obj(GuestAddress(sregs.gdt.base + u64::from(segment.selector)))
                    .unwrap();
                assert_eq!(descriptor >> 40 & 0xF, u64::from(segment.type_));
                assert_eq!(descriptor >> 53 & 1, u64::from(segment.l));
                assert_eq!(descriptor >> 54 & 1, u64::from(segment.db));
            }
        }
    }

    /// Walks the tables as the processor does.
    fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> u64 {
        let entry = |table: u64, shift: u32| {
            let at = (table & !0xFFF) + (address >> shift & 0x1FF) * 8;
            let entry: u64 = memory.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(entry & 3, 3, "not present at {address:#x}");
            entry
        };
        let pd = entry(entry(entry(cr3, 39), 30), 21);
        assert_ne!(pd & PTE_LARGE, 0);
        (pd & !0x1F_FFFF & !PTE_LARGE) | (address & 0x1F_FFFF)
    }

    #[test]
    fn long_mode_maps_4_gib_one_to_one_and_no_more() {
        let memory = ram();
        write_boot_tables(&memory, BootProtocol::Linux64).unwrap();
        let sregs = boot_sregs(BootProtocol::Linux64, &kvm_sregs::default());
        for address in [
            0,
            0x7000,
            0x100_0200,
            0x3FFF_FFFF,
            0x4000_0000,
            0xBFFF_F123,
            0xFEE0_0000,
            0xFFFF_FFFF,
        ] {
            assert_eq!(translate(&memory, sregs.cr3, address), address);
        }
        let beyond: u64 = memory
            .read_obj(GuestAddress(layout::BOOT_PDPT + 4 * 8))
            .unwrap();
        assert_eq!(beyond, 0);
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
        assert_eq!((sregs.cr4, sregs.efer), (CR4_PAE, EFER_LME | EFER_LMA));
    }

    #[test]
    fn protocols_pass_their_argument_in_their_register() {
        let regs = boot_regs(&LINUX);
        assert_eq!(
            (regs.rip, regs.rsi, regs.rbx, regs.rflags),
            (0x100_0200, 0x7000, 0, 2)
        );
        let regs = boot_regs(&PVH);
        assert_eq!(
            (regs.rip, regs.rsi, regs.rbx, regs.rflags),
            (0x100_0000, 0, 0x6000, 2)
        );
    }

    #[test]
    fn pvh_starts_without_paging_and_keeps_what_it_does_not_own() {
        let reset = kvm_sregs {
            apic_base: 0xFEE0_0900,
            cr8: 3,
            efer: 0x500,
            cr3: 7,
            ..Default::default()
        };
        let sregs = boot_sregs(BootProtocol::Pvh, &reset);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x11, 0, 0, 0)
        );
        assert_eq!((sregs.apic_base, sregs.cr8), (reset.apic_base, reset.cr8));
        assert_eq!(
            (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l),
            (0, u32::MAX, 1, 0)
        );
        assert_eq!((sregs.tr.limit, sregs.tr.type_), (0x67, 0xB));
    }

    #[test]
    fn lint_pins_are_wired_and_other_bits_kept() {
        let mut lapic = kvm_lapic_state::default();
        // Masked, level-triggered, with delivery bits that must go.
        lapic.regs[APIC_LVT_LINT0..APIC_LVT_LINT0 + 4].copy_from_slice(&[
            0x20,
            -128 + 0x04,
            0x01,
            0,
        ]);
        let lapic = boot_lapic(lapic);
        let bytes = |at: usize| {
            lapic.regs[at..at + 4]
                .iter()
                .map(|b| b.to_le_bytes()[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(bytes(APIC_LVT_LINT0), [0x20, 0x87, 0, 0]);
        assert_eq!(bytes(APIC_LVT_LINT1), [0, 0x04, 0, 0]);
    }
}
