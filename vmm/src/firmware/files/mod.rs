//! What a guest's firmware is told through fw_cfg: the set of files that stock OVMF and `SeaBIOS` look for.
//!
//! | name | what |
//! |---|---|
//! | item 5, item 15 | CPUs that are there, CPUs that can be there |
//! | `etc/e820` | where RAM is |
//! | `etc/acpi/tables`, `etc/acpi/rsdp`, `etc/table-loader` | ACPI, and how to put it into memory |
//! | `bootorder` | which disks, CD-ROM drives and NICs to boot from |
//! | `etc/smbios/smbios-anchor`, `-tables` | SMBIOS |
//! | `etc/reserved-memory-end` | where memory for growth ends, if the guest may grow |
//! | `etc/sercon-port`, item 0x8002 | for a BIOS: its console on COM1, and that the PIT is wired as on every PC |
//!
//! Firmware reads the directory again for each name it looks for, so no file is there that nobody reads.

pub mod boot_order;
pub mod loader;

use std::sync::Arc;

use paddock_devices::firmware::fw_cfg::{FwCfgError, FwCfgItems};

use self::boot_order::BootPlace;
use self::loader::{LateTables, MachineShape};
use super::image::FirmwareKind;
use crate::layout;
use crate::memory::E820Kind;
use crate::smbios::Smbios;

/// Numbers of items without names.
const CPUS: u16 = 0x05;
const MAX_CPUS: u16 = 0x0f;
const IRQ0_OVERRIDE: u16 = 0x8002;

/// What the files are made of.
#[derive(Debug)]
pub struct FilesInput<'a> {
    /// What they are for.
    pub kind: FirmwareKind,
    /// Bytes of RAM in all.
    pub ram_size: u64,
    /// Bytes of memory that the guest may grow to; no more than its RAM: it may not grow.
    pub memory_max: u64,
    /// How many CPUs are there at first, and at most.
    pub cpus: (u16, u16),
    /// What the ACPI tables are made of, asked again whenever the guest selects them.
    pub shape: Arc<dyn MachineShape>,
    /// What to boot from, the first choice first. Empty: whatever firmware finds.
    pub boot_order: &'a [BootPlace],
    /// What the machine calls itself.
    pub smbios: &'a Smbios,
}

/// Makes the files.
///
/// # Errors
/// When fw_cfg cannot hold them: a mistake in this module.
pub fn items(input: &FilesInput<'_>) -> Result<FwCfgItems, FwCfgError> {
    let mut items = FwCfgItems::new();
    let (present, max) = input.cpus;
    items.add_item(CPUS, &present.to_le_bytes())?;
    items.add_item(MAX_CPUS, &max.max(present).to_le_bytes())?;
    items.add_file("etc/e820", e820(input.ram_size))?;
    let growth = layout::growth(input.ram_size, input.memory_max);
    if !growth.is_empty() {
        items.add_file("etc/reserved-memory-end", growth.end.to_le_bytes())?;
    }
    let tables = LateTables::new(Arc::clone(&input.shape));
    items.add_file(loader::RSDP, tables.rsdp())?;
    items.add_file("etc/table-loader", tables.loader())?;
    items.add_late_file(loader::TABLES, tables.size(), Arc::new(tables))?;
    if !input.boot_order.is_empty() {
        items.add_file("bootorder", boot_order::list(input.boot_order))?;
    }
    items.add_file("etc/smbios/smbios-anchor", input.smbios.anchor())?;
    items.add_file("etc/smbios/smbios-tables", input.smbios.tables())?;
    if input.kind == FirmwareKind::Bios {
        items.add_item(IRQ0_OVERRIDE, &[1])?;
        items.add_file("etc/sercon-port", layout::COM1_PORT.to_le_bytes())?;
    }
    Ok(items)
}

/// `etc/e820`: RAM below and above the hole, and what KVM keeps for itself. The rest of the map is firmware's to make.
fn e820(ram_size: u64) -> Vec<u8> {
    let ram = [
        0..layout::low_ram_end(ram_size),
        layout::HIGH_RAM_START..layout::ram_end(ram_size),
    ];
    let ram = ram.map(|range| (range, E820Kind::Usable));
    let all = ram
        .into_iter()
        .chain([(layout::KVM_RESERVED, E820Kind::Reserved)]);
    let mut bytes = Vec::new();
    for (range, kind) in all.filter(|(range, _)| !range.is_empty()) {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
        bytes.extend((kind as u32).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
