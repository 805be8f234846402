//! What a kernel is handed: Linux's zero page, or PVH's start info, with the command line and the initramfs.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::error::{BootError, BootErrorKind, Subject};
use crate::layout;
use crate::memory::E820Entry;

/// `HVM_START_MAGIC_VALUE`: "xEn3" with the high bit of the E set.
const PVH_MAGIC: u32 = 0x336E_C578;
/// "Unknown boot loader" in `type_of_loader`.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `vid_mode`: the mode that the display is in.
const VIDEO_NORMAL: u16 = 0xFFFF;

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ramdisk {
    pub(super) address: u64,
    pub(super) size: u64,
}

/// What both protocols carry.
#[derive(Debug)]
pub(super) struct Handover<'a> {
    pub(super) cmdline: &'a [u8],
    pub(super) ramdisk: Option<Ramdisk>,
    pub(super) e820: &'a [E820Entry],
    pub(super) rsdp: u64,
}

impl Handover<'_> {
    /// Writes the zero page and the command line. `address` is where the kernel was loaded.
    pub(super) fn write_linux(
        &self,
        memory: &GuestMemoryMmap,
        mut header: setup_header,
        address: u64,
    ) -> Result<u64, BootError> {
        self.write_cmdline(memory)?;
        let ramdisk = self.ramdisk.unwrap_or(Ramdisk {
            address: 0,
            size: 0,
        });
        header.type_of_loader = LOADER_UNDEFINED;
        header.vid_mode = VIDEO_NORMAL;
        header.code32_start = low(address);
        header.cmd_line_ptr = low(layout::CMDLINE);
        header.ramdisk_image = low(ramdisk.address);
        header.ramdisk_size = low(ramdisk.size);
        let mut params = boot_params {
            hdr: header,
            ext_ramdisk_image: high(ramdisk.address),
            ext_ramdisk_size: high(ramdisk.size),
            acpi_rsdp_addr: self.rsdp,
            ..Default::default()
        };
        let mut table = params.e820_table;
        let count = self.e820.len().min(table.len());
        for (slot, entry) in table.iter_mut().zip(self.e820) {
            *slot = boot_e820_entry {
                addr: entry.base,
                size: entry.size,
                r#type: entry.kind as u32,
            };
        }
        params.e820_table = table;
        params.e820_entries = u8::try_from(count).unwrap_or(u8::MAX);
        write(memory, layout::ZERO_PAGE, params)?;
        Ok(layout::ZERO_PAGE)
    }

    /// Writes the start info with its module list and memory map, and the command line.
    pub(super) fn write_pvh(&self, memory: &GuestMemoryMmap) -> Result<u64, BootError> {
        self.write_cmdline(memory)?;
        if let Some(Ramdisk { address, size }) = self.ramdisk {
            write(
                memory,
                layout::PVH_MODULES,
                hvm_modlist_entry {
                    paddr: address,
                    size,
                    ..Default::default()
                },
            )?;
        }
        let room =
            (layout::ZERO_PAGE - layout::PVH_MEMMAP) / size_of::<hvm_memmap_table_entry>() as u64;
        let mut count: u32 = 0;
        let mut at = layout::PVH_MEMMAP;
        for entry in self.e820 {
            if u64::from(count) == room {
                break;
            }
            let entry = hvm_memmap_table_entry {
                addr: entry.base,
                size: entry.size,
                type_: entry.kind as u32,
                reserved: 0,
            };
            write(memory, at, entry)?;
            at += size_of::<hvm_memmap_table_entry>() as u64;
            count += 1;
        }
        let start_info = hvm_start_info {
            magic: PVH_MAGIC,
            version: 1,
            flags: 0,
            nr_modules: u32::from(self.ramdisk.is_some()),
            modlist_paddr: if self.ramdisk.is_some() {
                layout::PVH_MODULES
            } else {
                0
            },
            cmdline_paddr: layout::CMDLINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: layout::PVH_MEMMAP,
            memmap_entries: count,
            reserved: 0,
        };
        write(memory, layout::PVH_START_INFO, start_info)?;
        Ok(layout::PVH_START_INFO)
    }

    fn write_cmdline(&self, memory: &GuestMemoryMmap) -> Result<(), BootError> {
        let mut bytes = self.cmdline.to_vec();
        bytes.push(0);
        memory
            .write_slice(&bytes, GuestAddress(layout::CMDLINE))
            .map_err(|e| memory_error(layout::CMDLINE, e))
    }
}

/// Checks a command line against what can be passed: `max` bytes without NUL.
pub(super) fn check_cmdline(cmdline: &[u8], max: u64) -> Result<(), BootError> {
    let error = |message: String| {
        Err(BootError::new(
            BootErrorKind::CommandLine,
            Subject::CommandLine,
            message,
        ))
    };
    if let Some(position) = cmdline.iter().position(|&byte| byte == 0) {
        return error(format!(
            "has a NUL byte at offset {position}, which would end it there; remove it"
        ));
    }
    let max = max.min(layout::CMDLINE_ROOM - 1);
    if cmdline.len() as u64 > max {
        return error(format!(
            "has {} bytes, this kernel takes {max}; shorten it",
            cmdline.len()
        ));
    }
    Ok(())
}

fn write<T: ByteValued>(memory: &GuestMemoryMmap, address: u64, value: T) -> Result<(), BootError> {
    memory
        .write_obj(value, GuestAddress(address))
        .map_err(|e| memory_error(address, e))
}

fn memory_error(address: u64, error: vm_memory::GuestMemoryError) -> BootError {
    let message = format!("cannot be written to guest address {address:#x}");
    BootError::new(BootErrorKind::GuestMemory, Subject::BootData, message)
        .with_source(std::io::Error::other(error))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for"
)]
const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    low(value >> 32)
}
