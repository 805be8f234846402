//! ACPI through firmware: the tables as files, and the script by which the guest's firmware puts them into memory
//! (QEMU's `hw/acpi/bios-linker-loader.c`, edk2's `QemuLoader.h`).
//!
//! The script says: allocate the files, add the tables' address to every pointer in them, and sum. It is read before the tables, so
//! their size, their pointers and their sums are settled when the machine is built; what they say is not: where ECAM and the windows for
//! BARs are, firmware decides, and then selects the tables, which are made again at that moment, on its vCPU thread.

use std::fmt;
use std::sync::Arc;

use paddock_devices::firmware::fw_cfg::{LateItem, NAME_MAX};
use paddock_devices::throttle::Throttle;

use crate::acpi::{AcpiTables, ChecksumField, Pointer, TablesInput};

/// The file with the RSDP.
pub const RSDP: &str = "etc/acpi/rsdp";
/// The file with all other tables.
pub const TABLES: &str = "etc/acpi/tables";

/// One command.
const COMMAND: usize = 128;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Where a file goes: anywhere below 4 GiB, or where a BIOS's operating system looks for the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;
const TABLES_ALIGNMENT: u32 = 64;
const RSDP_ALIGNMENT: u32 = 16;
/// Fields of the RSDP.
const RSDP_XSDT: Pointer = Pointer {
    offset: 24,
    size: 8,
};
/// Over the first 20 bytes, then over all 36, the first sum included.
const RSDP_CHECKSUMS: [ChecksumField; 2] = [
    ChecksumField {
        offset: 8,
        start: 0,
        len: 20,
    },
    ChecksumField {
        offset: 32,
        start: 0,
        len: 36,
    },
];

/// What the ACPI tables are made of, as the machine is now. Asked on vCPU threads.
pub trait MachineShape: Send + Sync + fmt::Debug {
    /// ECAM, windows and ports as the guest has put them. Before it has put them anywhere: as under direct boot, so that there are
    /// windows, because what there is at first decides the layout of the tables. (For the 32-bit window: [`super::super::windows`].)
    fn tables_input(&self) -> TablesInput;
}

/// The tables' file.
#[derive(Debug)]
pub struct LateTables {
    shape: Arc<dyn MachineShape>,
    /// As the script describes them.
    announced: AcpiTables,
    log: Throttle,
}

impl LateTables {
    /// Settles the layout by what the machine is now.
    #[must_use]
    pub fn new(shape: Arc<dyn MachineShape>) -> Self {
        let announced = AcpiTables::new(&shape.tables_input());
        Self {
            shape,
            announced,
            log: Throttle::new(),
        }
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> usize {
        self.announced.tables.len()
    }

    /// The file with the RSDP: without sums, as the script makes them.
    #[must_use]
    pub fn rsdp(&self) -> Vec<u8> {
        let mut rsdp = self.announced.rsdp(0).to_vec();
        for field in RSDP_CHECKSUMS {
            rsdp[field.offset] = 0;
        }
        rsdp
    }

    /// The script.
    #[must_use]
    pub fn loader(&self) -> Vec<u8> {
        let mut script = Vec::new();
        allocate(&mut script, RSDP, RSDP_ALIGNMENT, ZONE_FSEG);
        allocate(&mut script, TABLES, TABLES_ALIGNMENT, ZONE_HIGH);
        for pointer in &self.announced.pointers {
            add_pointer(&mut script, TABLES, *pointer);
        }
        for field in &self.announced.checksums {
            add_checksum(&mut script, TABLES, *field);
        }
        add_pointer(&mut script, RSDP, RSDP_XSDT);
        for field in RSDP_CHECKSUMS {
            add_checksum(&mut script, RSDP, field);
        }
        script
    }
}

impl LateItem for LateTables {
    fn make(&self) -> Vec<u8> {
        let now = AcpiTables::new(&self.shape.tables_input());
        let shape = |tables: &AcpiTables| {
            (
                tables.tables.len(),
                tables.xsdt,
                tables.pointers.clone(),
                tables.checksums.clone(),
            )
        };
        if shape(&now) == shape(&self.announced) {
            now.tables
        } else {
            // What the script would do to tables of another layout ends in chaos.
            if let Some(held_back) = self.log.pass() {
                tracing::warn!(
                    held_back,
                    "guest reads ACPI tables while ECAM or a window is missing; they are as at power-on"
                );
            }
            self.announced.tables.clone()
        }
    }
}

/// A command: its number, then fields that `fill` adds.
fn command(script: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let end = script.len() + COMMAND;
    script.extend(number.to_le_bytes());
    fill(script);
    script.resize(end, 0);
}

fn file_name(script: &mut Vec<u8>, name: &str) {
    let end = script.len() + NAME_MAX + 1;
    script.extend(name.bytes().take(NAME_MAX));
    script.resize(end, 0);
}

/// An offset or a length in a file, which is never larger than 4 GiB.
fn number(script: &mut Vec<u8>, value: usize) {
    script.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

fn allocate(script: &mut Vec<u8>, file: &str, alignment: u32, zone: u8) {
    command(script, ALLOCATE, |script| {
        file_name(script, file);
        script.extend(alignment.to_le_bytes());
        script.push(zone);
    });
}

/// Adds the tables' address to a field in `file`.
fn add_pointer(script: &mut Vec<u8>, file: &str, pointer: Pointer) {
    command(script, ADD_POINTER, |script| {
        file_name(script, file);
        file_name(script, TABLES);
        number(script, pointer.offset);
        script.push(pointer.size.to_le_bytes()[0]);
    });
}

fn add_checksum(script: &mut Vec<u8>, file: &str, field: ChecksumField) {
    command(script, ADD_CHECKSUM, |script| {
        file_name(script, file);
        number(script, field.offset);
        number(script, field.start);
        number(script, field.len);
    });
}
