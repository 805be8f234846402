//! The tables without code: FACS, FADT, MADT, MCFG, WAET. Fields as in ACPI 6.5 §5.2; checksums come later.

use std::ops::Range;

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, facs::FACS};
use paddock_devices::legacy::acpi_pm;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// FADT fields that hold addresses of other tables: offset and size.
const FADT_FACS: (usize, usize) = (36, 4);
const FADT_DSDT: (usize, usize) = (40, 4);
const FADT_X_DSDT: (usize, usize) = (140, 8);

/// A table of header and body.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

pub(super) fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn facs() -> Vec<u8> {
    bytes(&FACS::new())
}

fn io(bits: u8, access_size: AccessSize, port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access_size, port.into())
}

/// Revision 6. Always in ACPI mode (no SMI command); no 8042, no VGA; the power button is fixed hardware.
pub(super) fn fadt(pm_base: u16) -> Vec<u8> {
    const CENTURY: u8 = 0x32;
    // IA-PC boot architecture flags, §5.2.9.3.
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    /// Above 100 µs, so C2 is not there; above 1000, so C3 is not.
    const NO_C_STATE: u16 = 0xFFF;

    let port = |offset: u16| pm_base.wrapping_add(offset);
    let (event, control, timer, gpe0) = (
        port(acpi_pm::PM1_EVENT),
        port(acpi_pm::PM1_CONTROL),
        port(acpi_pm::PM_TIMER),
        port(acpi_pm::GPE0),
    );
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .gpe_info(gpe0.into(), 0, acpi_pm::GPE0_LENGTH, 0, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::try_from(layout::SCI_GSI).unwrap_or(u16::MAX).into();
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C_STATE.into();
    fadt.p_lvl3_lat = NO_C_STATE.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, event);
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, control);
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, timer);
    fadt.x_gpe0_blk = io(
        acpi_pm::GPE0_LENGTH.saturating_mul(8),
        AccessSize::ByteAccess,
        gpe0,
    );
    bytes(&fadt.finalize())
}

/// Where the FADT points: offset in it, size, target. The DSDT is named twice, for readers of either field.
pub(super) fn fadt_pointers(facs: usize, dsdt: usize) -> [(usize, usize, usize); 3] {
    [(FADT_FACS, facs), (FADT_DSDT, dsdt), (FADT_X_DSDT, dsdt)]
        .map(|((offset, size), target)| (offset, size, target))
}

/// A processor's local APIC, §5.2.12.2 and §5.2.12.12. One that is not there yet can come.
pub(super) fn local_apic(uid: u32, apic_id: u32, is_there: bool) -> Vec<u8> {
    const ENABLED: u32 = 1;
    const ONLINE_CAPABLE: u32 = 1 << 1;
    let flags = if is_there { ENABLED } else { ONLINE_CAPABLE };
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid), Ok(apic_id)) if apic_id != u8::MAX => {
            [[0, 8, uid, apic_id], flags.to_le_bytes()].concat()
        }
        _ => {
            let numbers = [apic_id, flags, uid].map(u32::to_le_bytes);
            [&[X2APIC, 16, 0, 0], numbers.as_flattened()].concat()
        }
    }
}

/// The type of a local APIC with an id of more than 8 bits.
const X2APIC: u8 = 9;

/// Interrupt controllers, §5.2.12. `present` as in [`super::TablesInput`].
pub(super) fn madt(apic_ids: &[u32], present: Option<usize>) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xFF;
    const LINT1: u8 = 1;
    /// MPS INTI flags: active high, level-triggered.
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    const CONFORMS: u16 = 0;

    let lapic_base = u32::try_from(layout::LAPIC_BASE).unwrap_or(u32::MAX);
    let ioapic_base = u32::try_from(layout::IOAPIC_BASE).unwrap_or(u32::MAX);
    let mut body = [lapic_base.to_le_bytes(), PCAT_COMPAT.to_le_bytes()].concat();
    let mut x2apic = false;
    let there = 0..present.unwrap_or(apic_ids.len());
    for ((uid, index), apic_id) in (0u32..).zip(0..).zip(apic_ids) {
        let entry = local_apic(uid, *apic_id, there.contains(&index));
        x2apic |= entry.first() == Some(&X2APIC);
        body.extend(entry);
    }
    body.extend([1, 12, layout::IOAPIC_ID, 0]);
    body.extend([ioapic_base, 0].iter().flat_map(|n| n.to_le_bytes()));
    for (isa, gsi, flags) in [
        (layout::PIT_GSI, layout::PIT_PIN, CONFORMS),
        (layout::SCI_GSI, layout::SCI_GSI, ACTIVE_HIGH_LEVEL),
    ] {
        body.extend([2, 10, 0, u8::try_from(isa).unwrap_or(u8::MAX)]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    body.extend([4, 6, ALL_PROCESSORS, 0, 0, LINT1]);
    if x2apic {
        body.extend([0x0A, 12, 0, 0]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([LINT1, 0, 0, 0]);
    }
    table(*b"APIC", 5, &body)
}

/// The buses that there are of the ECAM window (PCI Firmware 3.3 §4.1.2).
pub(super) fn mcfg(ecam: &Range<u64>) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(ecam.start.to_le_bytes());
    body.extend([0, 0, 0, layout::PCI_LAST_BUS, 0, 0, 0, 0]);
    table(*b"MCFG", 1, &body)
}

/// Windows' table of emulated devices: the PM timer reads right at once, no need to read it thrice.
pub(super) fn waet() -> Vec<u8> {
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(*b"WAET", 1, &PM_TIMER_GOOD.to_le_bytes())
}
