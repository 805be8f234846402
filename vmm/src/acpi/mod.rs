//! The ACPI tables: made from the shape of the machine, handed to a kernel directly or through firmware.
//!
//! A pure function of [`TablesInput`], called on the control thread (and, with firmware, on the vCPU thread whose guest
//! selects the tables). The guest can move ECAM, the BAR windows and the PM block; where they are is input, and tables of
//! one VM have the same layout wherever they are.
//!
//! Tables are made at address zero, with a list of the pointers in them and of the checksums over them. Direct boot adds
//! an address and sums ([`AcpiTables::write`]); fw_cfg's table loader has the guest's firmware do the same.
//!
//! There is no SRAT, also where the guest may grow: virtio-mem tells Linux where the memory is. From an SRAT it would learn before that
//! there may be some above 4 GiB, and set 64 MiB of its RAM aside for devices that cannot address it, of which there are none here.

mod aml;
mod dsdt;
mod fixed;
mod hotplug;
mod processors;
mod slots;

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

const OEM_ID: [u8; 6] = *b"PADDCK";
const OEM_TABLE_ID: [u8; 8] = *b"Q35LITE ";
/// Raised whenever the tables change in a way a guest might care about.
const OEM_REVISION: u32 = 3;

/// Every table but the FACS has its checksum here.
const CHECKSUM_AT: usize = 9;
const HEADER_LEN: usize = 36;
/// The RSDP: checksum over its first 20 bytes, XSDT address, checksum over all 36.
const RSDP_LEN: usize = 36;
const RSDP_V1_LEN: usize = 20;
const RSDP_CHECKSUM_AT: usize = 8;
const RSDP_XSDT_AT: usize = 24;
const RSDP_EXTENDED_CHECKSUM_AT: usize = 32;
/// The FACS must be 64-byte aligned; the others do not care.
const ALIGNMENT: usize = 64;

/// What the tables describe.
#[derive(Debug, Clone)]
pub struct TablesInput {
    /// APIC ids of the vCPUs; the place in the list is the processor's `_UID`. At most 254.
    pub apic_ids: Vec<u32>,
    /// How many of them are there at first, if the others can come and all but the first can go. `None`: all, for good.
    pub present: Option<usize>,
    /// ECAM window, from bus 0 on: 1 MiB a bus.
    pub ecam: Range<u64>,
    /// Window for 32-bit BARs. Empty: none.
    pub mmio32: Range<u64>,
    /// Window for 64-bit BARs. Empty: none.
    pub mmio64: Range<u64>,
    /// Base of the PM block (PMBASE).
    pub pm_base: u16,
}

/// A field that holds an address inside the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointer {
    /// Offset of the field in [`AcpiTables::tables`].
    pub offset: usize,
    /// Bytes: 4 or 8.
    pub size: usize,
}

/// A byte that makes a range sum to zero, once the pointers in the range are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumField {
    /// Offset of the byte.
    pub offset: usize,
    /// First byte of the range.
    pub start: usize,
    /// Length of the range.
    pub len: usize,
}

/// All tables, as if they lay at address zero, without checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// FACS, DSDT, FADT, MADT, MCFG, WAET, XSDT, each aligned to 64 bytes.
    pub tables: Vec<u8>,
    /// Pointers in `tables`, into `tables`.
    pub pointers: Vec<Pointer>,
    /// Checksums in `tables`.
    pub checksums: Vec<ChecksumField>,
    /// Where the XSDT lies in `tables`.
    pub xsdt: usize,
}

impl AcpiTables {
    /// Makes the tables.
    #[must_use]
    pub fn new(input: &TablesInput) -> Self {
        let mut this = Self {
            tables: Vec::new(),
            pointers: Vec::new(),
            checksums: Vec::new(),
            xsdt: 0,
        };
        let facs = this.append(&fixed::facs(), false);
        let dsdt = this.append(&dsdt::dsdt(input), true);
        let fadt = this.append(&fixed::fadt(input.pm_base), true);
        for (offset, size, target) in fixed::fadt_pointers(facs, dsdt) {
            this.point(fadt + offset, size, target);
        }
        let mut listed = vec![fadt];
        listed.push(this.append(&fixed::madt(&input.apic_ids, input.present), true));
        listed.push(this.append(&fixed::mcfg(&input.ecam), true));
        listed.push(this.append(&fixed::waet(), true));
        this.xsdt = this.append(&fixed::table(*b"XSDT", 1, &vec![0; listed.len() * 8]), true);
        for (i, target) in listed.into_iter().enumerate() {
            this.point(this.xsdt + HEADER_LEN + i * 8, 8, target);
        }
        this
    }

    /// Adds a table, and the checksum it has unless it is the FACS. Returns where it lies.
    fn append(&mut self, table: &[u8], summed: bool) -> usize {
        let offset = self.tables.len().next_multiple_of(ALIGNMENT);
        self.tables.resize(offset, 0);
        self.tables.extend_from_slice(table);
        if summed {
            self.tables[offset + CHECKSUM_AT] = 0;
            self.checksums.push(ChecksumField {
                offset: offset + CHECKSUM_AT,
                start: offset,
                len: table.len(),
            });
        }
        offset
    }

    fn point(&mut self, offset: usize, size: usize, target: usize) {
        self.tables[offset..offset + size].copy_from_slice(&(target as u64).to_le_bytes()[..size]);
        self.pointers.push(Pointer { offset, size });
    }

    /// The tables as they are at guest-physical address `base` (below 4 GiB).
    #[must_use]
    pub fn at(&self, base: u32) -> Vec<u8> {
        let mut tables = self.tables.clone();
        for &Pointer { offset, size } in &self.pointers {
            let field = &mut tables[offset..offset + size];
            let mut value = [0; 8];
            value[..size].copy_from_slice(field);
            let value = u64::from_le_bytes(value) + u64::from(base);
            field.copy_from_slice(&value.to_le_bytes()[..size]);
        }
        for &ChecksumField { offset, start, len } in &self.checksums {
            tables[offset] = checksum(&tables[start..start + len]);
        }
        tables
    }

    /// The RSDP for tables at `base`.
    #[must_use]
    pub fn rsdp(&self, base: u32) -> [u8; RSDP_LEN] {
        let mut rsdp = [0; RSDP_LEN];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[9..15].copy_from_slice(&OEM_ID);
        rsdp[15] = 2;
        rsdp[20] = RSDP_LEN.to_le_bytes()[0];
        let xsdt = u64::from(base) + self.xsdt as u64;
        rsdp[RSDP_XSDT_AT..RSDP_XSDT_AT + 8].copy_from_slice(&xsdt.to_le_bytes());
        rsdp[RSDP_CHECKSUM_AT] = checksum(&rsdp[..RSDP_V1_LEN]);
        rsdp[RSDP_EXTENDED_CHECKSUM_AT] = checksum(&rsdp);
        rsdp
    }

    /// Writes RSDP and tables where direct boot has them, and returns the RSDP's guest-physical address.
    ///
    /// # Errors
    /// When they do not fit (254 vCPUs do) or guest RAM does not reach there.
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<u64, AcpiError> {
        // The RSDP takes the first 64 bytes.
        let base = layout::ACPI_TABLES + ALIGNMENT as u64;
        let room = layout::ACPI_TABLES_END - base;
        if self.tables.len() as u64 > room {
            return Err(AcpiError::TooLarge {
                size: self.tables.len(),
                room,
            });
        }
        let base32 = u32::try_from(base).unwrap_or(u32::MAX);
        memory.write_slice(&self.at(base32), GuestAddress(base))?;
        memory.write_slice(&self.rsdp(base32), GuestAddress(layout::ACPI_TABLES))?;
        Ok(layout::ACPI_TABLES)
    }
}

/// Makes the tables and writes them where direct boot has them; returns the RSDP's guest-physical address.
///
/// # Errors
/// As [`AcpiTables::write`].
pub fn write(memory: &GuestMemoryMmap, input: &TablesInput) -> Result<u64, AcpiError> {
    AcpiTables::new(input).write(memory)
}

/// Why the tables could not be written to guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They outgrew their place.
    #[error("ACPI tables take {size} bytes, {room} are set aside: give the VM fewer vCPUs")]
    TooLarge {
        /// Bytes they take.
        size: usize,
        /// Bytes there are.
        room: u64,
    },
    /// Guest RAM ends before.
    #[error("ACPI tables cannot be written to guest RAM")]
    Memory(#[from] GuestMemoryError),
}

/// The byte that makes `bytes`, in which it counts as it is now, sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests;
