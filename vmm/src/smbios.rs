//! SMBIOS: what the machine calls itself to its guest, in the structures that DMTF's DSP0134 3.0 asks for. Firmware is handed them through
//! fw_cfg; under direct boot they are in RAM, where a kernel looks for them.
//!
//! A pure function of [`SmbiosInput`]. The texts are the user's; what the structures cannot hold is refused.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

/// The most that all structures may take, in bytes: what there is room for below 1 MiB, where a kernel looks for them under direct boot.
pub const SIZE_MAX: u64 = layout::HIGH_MEMORY - layout::SMBIOS_TABLES - ANCHOR_ROOM as u64;

const VENDOR: &str = "Paddock";
const PRODUCT: &str = "Virtual Machine";
const RELEASE_DATE: &str = "01/01/2026";
/// The entry point, and what it takes with alignment.
const ANCHOR: usize = 24;
const ANCHOR_ROOM: usize = 32;
const CHECKSUM_AT: usize = 5;
const SIZE_AT: usize = 12;
const ADDRESS_AT: usize = 16;
/// DSP0134 3.0.0.
const VERSION: [u8; 3] = [3, 0, 0];
/// No such structure.
const NONE: u16 = 0xffff;
const NO_ERRORS: u16 = 0xfffe;
/// In many fields: neither of the choices.
const OTHER: u8 = 1;

/// What the structures are made of.
#[derive(Debug, Clone)]
pub struct SmbiosInput<'a> {
    /// Whether the guest boots by UEFI.
    pub uefi: bool,
    /// The VM's UUID, its bytes in the order in which it is printed.
    pub uuid: [u8; 16],
    /// The serial number. May be empty.
    pub serial: &'a str,
    /// The asset tag. May be empty.
    pub asset_tag: &'a str,
    /// Strings for software in the guest, such as systemd's credentials.
    pub oem_strings: &'a [String],
    /// Paddock's version.
    pub version: &'a str,
    /// The CPUs.
    pub processors: Processors<'a>,
    /// Bytes of RAM in all.
    pub ram_size: u64,
}

/// The CPUs, for [`SmbiosInput`].
#[derive(Debug, Clone)]
pub struct Processors<'a> {
    /// Sockets.
    pub sockets: u16,
    /// Cores of a socket.
    pub cores: u16,
    /// Threads of a core.
    pub threads: u16,
    /// CPUID leaf 0, such as "GenuineIntel".
    pub vendor: &'a str,
    /// CPUID leaves 0x8000_0002 to 4, such as "AMD EPYC 7763 64-Core Processor".
    pub brand: &'a str,
    /// EAX and EDX of CPUID leaf 1.
    pub signature: (u32, u32),
}

/// The structures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smbios {
    tables: Vec<u8>,
}

impl Smbios {
    /// Makes them.
    ///
    /// # Errors
    /// When a text cannot be in them, or all together are too long.
    pub fn new(input: &SmbiosInput<'_>) -> Result<Self, SmbiosError> {
        let mut this = Self { tables: Vec::new() };
        this.add_firmware(input)?;
        this.add_system(input)?;
        for socket in 0..input.processors.sockets {
            this.add_processor(socket, &input.processors)?;
        }
        this.add_oem_strings(input.oem_strings)?;
        this.add_memory(input.ram_size)?;
        // Boot information: no error. Then the end.
        this.add(32, 0x2000, &[0; 7], &Texts::default());
        this.add(127, 0x7f00, &[], &Texts::default());
        let size = this.tables.len() as u64;
        if size > SIZE_MAX {
            return Err(SmbiosError::TooLarge { size });
        }
        Ok(this)
    }

    /// The structures, one after the other.
    #[must_use]
    pub fn tables(&self) -> &[u8] {
        &self.tables
    }

    /// The entry point as firmware wants it: without address and sum, which it fills in.
    #[must_use]
    pub fn anchor(&self) -> [u8; ANCHOR] {
        let mut anchor = [0; ANCHOR];
        let size = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        let [major, minor, revision] = VERSION;
        anchor[..CHECKSUM_AT].copy_from_slice(b"_SM3_");
        let fields = [ANCHOR.to_le_bytes()[0], major, minor, revision, 1];
        anchor[CHECKSUM_AT + 1..][..fields.len()].copy_from_slice(&fields);
        anchor[SIZE_AT..ADDRESS_AT].copy_from_slice(&size.to_le_bytes());
        anchor
    }

    /// All of it as it is at guest-physical address `base`, a multiple of 16: for direct boot.
    #[must_use]
    pub fn at(&self, base: u64) -> Vec<u8> {
        let mut anchor = self.anchor();
        let tables = base + ANCHOR_ROOM as u64;
        anchor[ADDRESS_AT..].copy_from_slice(&tables.to_le_bytes());
        anchor[CHECKSUM_AT] = anchor
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        let mut all = anchor.to_vec();
        all.resize(ANCHOR_ROOM, 0);
        all.extend(&self.tables);
        all
    }

    /// Writes all of it where direct boot has it.
    ///
    /// # Errors
    /// When guest RAM does not reach there.
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<(), SmbiosError> {
        let base = layout::SMBIOS_TABLES;
        Ok(memory.write_slice(&self.at(base), GuestAddress(base))?)
    }

    /// A structure: type, length, handle and fields, then its strings.
    fn add(&mut self, kind: u8, handle: u16, fields: &[u8], texts: &Texts) {
        let length = u8::try_from(4 + fields.len()).unwrap_or(u8::MAX);
        self.tables.extend([kind, length]);
        self.tables.extend(handle.to_le_bytes());
        self.tables.extend(fields);
        for text in &texts.0 {
            self.tables.extend(text.as_bytes());
            self.tables.push(0);
        }
        if texts.0.is_empty() {
            self.tables.push(0);
        }
        self.tables.push(0);
    }

    /// Firmware: type 0.
    fn add_firmware(&mut self, input: &SmbiosInput<'_>) -> Result<(), SmbiosError> {
        const NOT_TOLD: u64 = 1 << 3;
        const UEFI: u8 = 1 << 3;
        const VIRTUAL_MACHINE: u8 = 1 << 4;

        let mut texts = Texts::default();
        let vendor = texts.add("vendor", VENDOR)?;
        let version = texts.add("version", input.version)?;
        let date = texts.add("release date", RELEASE_DATE)?;
        let flags = VIRTUAL_MACHINE | if input.uefi { UEFI } else { 0 };
        let mut fields = vec![vendor, version, 0, 0, date, 0];
        fields.extend(NOT_TOLD.to_le_bytes());
        fields.extend([0, flags, 0, 0, 0xff, 0xff]);
        self.add(0, 0, &fields, &texts);
        Ok(())
    }

    /// System (type 1) and chassis (3).
    fn add_system(&mut self, input: &SmbiosInput<'_>) -> Result<(), SmbiosError> {
        const POWER_SWITCH: u8 = 6;
        const UNKNOWN: u8 = 2;
        const SAFE: u8 = 3;

        let mut texts = Texts::default();
        let mut fields = vec![
            texts.add("manufacturer", VENDOR)?,
            texts.add("product", PRODUCT)?,
            texts.add("version", input.version)?,
            texts.add("serial number", input.serial)?,
        ];
        fields.extend(mixed_endian(input.uuid));
        fields.extend([POWER_SWITCH, 0, 0]);
        self.add(1, 0x100, &fields, &texts);

        let mut texts = Texts::default();
        let mut fields = vec![
            texts.add("manufacturer", VENDOR)?,
            OTHER,
            texts.add("version", input.version)?,
            texts.add("serial number", input.serial)?,
            texts.add("asset tag", input.asset_tag)?,
        ];
        fields.extend([SAFE, SAFE, SAFE, UNKNOWN]);
        fields.extend([0; 9]);
        self.add(3, 0x300, &fields, &texts);
        Ok(())
    }

    /// A socket: type 4.
    fn add_processor(&mut self, socket: u16, all: &Processors<'_>) -> Result<(), SmbiosError> {
        const CENTRAL: u8 = 3;
        const POPULATED_AND_ENABLED: u8 = 0x41;
        const CAN_64_BIT: u16 = 1 << 2;
        const MULTI_CORE: u16 = 1 << 3;
        const MULTI_THREAD: u16 = 1 << 4;

        let threads = all.cores.saturating_mul(all.threads);
        let byte = |count: u16| u8::try_from(count).unwrap_or(u8::MAX);
        let several = |count: u16, flag: u16| if count > 1 { flag } else { 0 };
        let flags =
            CAN_64_BIT | several(all.cores, MULTI_CORE) | several(all.threads, MULTI_THREAD);
        let mut texts = Texts::default();
        let name = texts.add("socket", &format!("CPU {socket}"))?;
        let vendor = texts.add("processor vendor", all.vendor.trim())?;
        let mut fields = vec![name, CENTRAL, OTHER, vendor];
        fields.extend(all.signature.0.to_le_bytes());
        fields.extend(all.signature.1.to_le_bytes());
        fields.push(texts.add("processor brand", all.brand.trim())?);
        // Voltage and clocks are not told.
        fields.extend([0; 7]);
        fields.extend([POPULATED_AND_ENABLED, OTHER]);
        for _cache in 1..=3 {
            fields.extend(NONE.to_le_bytes());
        }
        // Serial number, asset tag, part number.
        fields.extend([0; 3]);
        fields.extend([byte(all.cores), byte(all.cores), byte(threads)]);
        for word in [flags, OTHER.into(), all.cores, all.cores, threads] {
            fields.extend(word.to_le_bytes());
        }
        self.add(4, 0x400 + socket, &fields, &texts);
        Ok(())
    }

    /// Type 11.
    fn add_oem_strings(&mut self, strings: &[String]) -> Result<(), SmbiosError> {
        if strings.is_empty() {
            return Ok(());
        }
        let mut texts = Texts::default();
        let mut count = 0;
        for text in strings {
            if text.is_empty() {
                return Err(refused("OEM string", "is empty; leave it out"));
            }
            count = texts.add("OEM string", text)?;
        }
        self.add(11, 0xb00, &[count], &texts);
        Ok(())
    }

    /// One array (type 16) of one module (17), mapped below and above the hole (19).
    fn add_memory(&mut self, ram_size: u64) -> Result<(), SmbiosError> {
        const SYSTEM_MEMORY: u8 = 3;
        const MULTI_BIT_ECC: u8 = 6;
        const DIMM: u8 = 9;
        const RAM: u8 = 7;
        const DETAIL_OTHER: u16 = 1 << 1;
        const ARRAY: u16 = 0x1000;
        const KIB_MAX: u32 = 0x8000_0000;
        const MIB_MAX: u16 = 0x7fff;

        let kib = u32::try_from(ram_size >> 10)
            .unwrap_or(KIB_MAX)
            .min(KIB_MAX);
        let extended = if kib == KIB_MAX { ram_size } else { 0 };
        let mut fields = vec![OTHER, SYSTEM_MEMORY, MULTI_BIT_ECC];
        fields.extend(kib.to_le_bytes());
        fields.extend(NO_ERRORS.to_le_bytes());
        fields.extend(1u16.to_le_bytes());
        fields.extend(extended.to_le_bytes());
        self.add(16, ARRAY, &fields, &Texts::default());

        let mib = ram_size >> 20;
        let short = u16::try_from(mib).unwrap_or(MIB_MAX).min(MIB_MAX);
        let long = if short == MIB_MAX { mib } else { 0 };
        let mut texts = Texts::default();
        let mut fields = Vec::new();
        for word in [ARRAY, NO_ERRORS, NONE, NONE, short] {
            fields.extend(word.to_le_bytes());
        }
        fields.extend([DIMM, 0, texts.add("memory", "DIMM 0")?, 0, RAM]);
        fields.extend(DETAIL_OTHER.to_le_bytes());
        fields.extend([0; 2]);
        fields.push(texts.add("manufacturer", VENDOR)?);
        fields.extend([0; 4]);
        fields.extend(u32::try_from(long).unwrap_or(u32::MAX).to_le_bytes());
        fields.extend([0; 8]);
        self.add(17, 0x1100, &fields, &texts);

        let ranges = [
            0..layout::low_ram_end(ram_size),
            layout::HIGH_RAM_START..layout::ram_end(ram_size),
        ];
        let ranges = ranges.into_iter().filter(|range| !range.is_empty());
        for (handle, range) in (0x1300..).zip(ranges) {
            self.add(19, handle, &mapping(&range, ARRAY), &Texts::default());
        }
        Ok(())
    }
}

/// Fields of a mapped range (type 19): in KiB where that fits into 32 bits, in bytes otherwise.
fn mapping(range: &Range<u64>, array: u16) -> Vec<u8> {
    let last = range.end - 1;
    let in_kib = u32::try_from(range.start >> 10)
        .ok()
        .zip(u32::try_from(last >> 10).ok())
        .filter(|(_, last)| *last != u32::MAX);
    let (kib, bytes) = match in_kib {
        Some((first, last)) => ([first, last], [0, 0]),
        None => ([u32::MAX; 2], [range.start, last]),
    };
    let mut fields = kib.map(u32::to_le_bytes).concat();
    fields.extend(array.to_le_bytes());
    fields.push(1);
    fields.extend(bytes.map(u64::to_le_bytes).concat());
    fields
}

/// A UUID as SMBIOS has it: its first three fields little-endian.
fn mixed_endian(uuid: [u8; 16]) -> [u8; 16] {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    order.map(|at: usize| uuid[at])
}

/// The strings of one structure.
#[derive(Debug, Default)]
struct Texts(Vec<String>);

impl Texts {
    /// The number by which fields refer to it; 0 for none.
    fn add(&mut self, what: &str, text: &str) -> Result<u8, SmbiosError> {
        if text.is_empty() {
            return Ok(0);
        }
        if text.chars().any(char::is_control) {
            let message = "contains a control character, such as the end of a line; leave that out";
            return Err(refused(what, message));
        }
        let number = u8::try_from(self.0.len() + 1)
            .map_err(|_| refused(what, "is one too many: there can be 255"))?;
        self.0.push(text.to_owned());
        Ok(number)
    }
}

/// Why there are no structures in the guest.
#[derive(Debug, thiserror::Error)]
pub enum SmbiosError {
    /// A text that they cannot hold.
    #[error("the {what} {why}")]
    Text {
        /// Which.
        what: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// They outgrew their place.
    #[error("SMBIOS takes {size} bytes, there is room for {SIZE_MAX}: shorten the OEM strings")]
    TooLarge {
        /// Bytes they take.
        size: u64,
    },
    /// Guest RAM ends before.
    #[error("SMBIOS cannot be written to guest RAM")]
    Memory(#[from] GuestMemoryError),
}

fn refused(what: &str, why: &'static str) -> SmbiosError {
    SmbiosError::Text {
        what: what.to_owned(),
        why,
    }
}

/// What the structures are made of, for tests here and of those that hand them on.
#[cfg(test)]
pub mod double {
    use super::{Processors, SmbiosInput};

    /// A machine of two sockets and 3 GiB.
    pub fn input<'a>(oem_strings: &'a [String]) -> SmbiosInput<'a> {
        SmbiosInput {
            uefi: true,
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            serial: "ds=nocloud;s=/x",
            asset_tag: "rack 7",
            oem_strings,
            version: "0.1.0",
            processors: Processors {
                sockets: 2,
                cores: 4,
                threads: 2,
                vendor: "AuthenticAMD",
                brand: "  AMD EPYC 7763 64-Core Processor ",
                signature: (0x00a0_0f11, 0x178b_fbff),
            },
            ram_size: 3 << 30,
        }
    }
}

#[cfg(test)]
mod tests;
