//! Direct boot: puts a kernel, its initramfs and its command line into guest RAM, without firmware.
//!
//! Runs on the control thread, before the first vCPU runs and again at every reset (the same files are read anew, into
//! the same RAM). Two kinds of file and protocol:
//!
//! | file | entry | argument |
//! |---|---|---|
//! | ELF with Xen note 18 (`vmlinux`) | PVH: 32-bit protected mode, paging off | EBX = `hvm_start_info` |
//! | bzImage, protocol 2.12 or later | Linux's 64-bit entry: long mode, memory mapped one to one | RSI = zero page |
//!
//! The files are hostile: every length and address in them is checked against the file and against RAM before anything
//! is written, and each way to be wrong has an error that names the file, the cause and what to do.

mod bzimage;
mod detect;
mod elf;
mod error;
mod image;
mod params;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use error::{BootError, BootErrorKind, Subject};

use self::bzimage::BzImage;
use self::detect::Format;
use self::elf::Elf;
use self::image::Image;
use self::params::{Handover, Ramdisk};
use crate::layout;
use crate::memory::{Bytes, E820Entry};

/// PVH declares no limit for the command line; Linux cuts at this length without a word.
const PVH_CMDLINE_MAX: u64 = 2047;

/// The opened kernel and initramfs. Kept as long as the VM lives: a reset boots what the VM was started with, whatever the files'
/// names stand for by then.
#[derive(Debug)]
pub struct BootFiles {
    kernel: Image,
    initramfs: Option<Image>,
}

/// Where a file to boot from comes from.
#[derive(Debug)]
pub struct BootSource<'a> {
    /// Its path, or what to call it.
    pub path: &'a Path,
    /// The file itself, where it was opened by somebody else.
    pub file: Option<File>,
}

impl<'a> From<&'a Path> for BootSource<'a> {
    fn from(path: &'a Path) -> Self {
        Self { path, file: None }
    }
}

impl BootFiles {
    /// Opens both, where they are not open.
    ///
    /// # Errors
    /// When one is missing, unreadable, empty, or no file.
    pub fn open<'a>(
        kernel: impl Into<BootSource<'a>>,
        initramfs: Option<BootSource<'a>>,
    ) -> Result<Self, BootError> {
        Ok(Self {
            kernel: Image::of(kernel.into(), Subject::Kernel)?,
            initramfs: initramfs
                .map(|source| Image::of(source, Subject::Initramfs))
                .transpose()?,
        })
    }
}

/// What to tell the kernel.
#[derive(Debug, Clone, Copy)]
pub struct BootRequest<'a> {
    /// The kernel command line, without NUL.
    pub cmdline: &'a str,
    /// The memory map to pass on (see [`crate::memory::e820`]); at most 128 entries.
    pub e820: &'a [E820Entry],
    /// Guest-physical address of the ACPI RSDP.
    pub rsdp: u64,
}

/// How the boot vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// Long mode, memory mapped one to one, RSI = zero page.
    Linux64,
    /// 32-bit protected mode, paging off, EBX = start info.
    Pvh,
}

/// Where the boot vCPU begins; `cpu::registers` turns it into registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// The state to enter in.
    pub protocol: BootProtocol,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// Guest-physical address of the zero page or the start info.
    pub argument: u64,
}

/// Where a kernel goes.
#[derive(Debug, Clone, Copy)]
struct Placement {
    entry: u64,
    /// One past the last address that the kernel uses before it knows of the initramfs.
    end: u64,
}

enum Kernel {
    Elf(Elf),
    BzImage(Box<BzImage>),
}

impl Kernel {
    fn parse(image: &Image) -> Result<Self, BootError> {
        let head = image.read_up_to(0, detect::HEAD)?;
        Ok(match detect::detect(image, &head)? {
            Format::Elf => Self::Elf(Elf::parse(image, &head)?),
            Format::BzImage => Self::BzImage(Box::new(BzImage::parse(image, &head)?)),
        })
    }

    fn place(&self, image: &Image, low_ram_end: u64) -> Result<Placement, BootError> {
        match self {
            Self::Elf(elf) => elf.place(image, low_ram_end),
            Self::BzImage(bzimage) => bzimage.place(image, low_ram_end),
        }
    }

    fn cmdline_max(&self) -> u64 {
        match self {
            Self::Elf(_) => PVH_CMDLINE_MAX,
            Self::BzImage(bzimage) => bzimage.cmdline_max(),
        }
    }

    fn initramfs_limit(&self) -> u64 {
        match self {
            Self::Elf(_) => u64::MAX,
            Self::BzImage(bzimage) => bzimage.initramfs_limit(),
        }
    }
}

/// Loads a kernel with what belongs to it into `memory`. Nothing is written unless everything was found to be in order.
///
/// # Errors
/// When a file is not what it should be, does not fit, or cannot be read.
pub fn load(
    files: &mut BootFiles,
    request: &BootRequest<'_>,
    memory: &GuestMemoryMmap,
) -> Result<BootEntry, BootError> {
    let BootFiles {
        kernel: image,
        initramfs,
    } = files;
    let low_ram_end = memory
        .find_region(GuestAddress(0))
        .map_or(0, GuestMemoryRegion::len)
        .min(layout::LOW_RAM_END_MAX);
    let kernel = Kernel::parse(image)?;
    let placement = kernel.place(image, low_ram_end)?;
    params::check_cmdline(request.cmdline.as_bytes(), kernel.cmdline_max())?;
    let ramdisk = initramfs
        .as_ref()
        .map(|image| place_initramfs(image, &kernel, placement, low_ram_end))
        .transpose()?;

    if let (Some(image), Some(ramdisk)) = (initramfs, ramdisk) {
        image.load(memory, 0, ramdisk.address, ramdisk.size)?;
    }
    let handover = Handover {
        cmdline: request.cmdline.as_bytes(),
        ramdisk,
        e820: request.e820,
        rsdp: request.rsdp,
    };
    let (protocol, argument) = match kernel {
        Kernel::Elf(elf) => {
            elf.load(image, memory)?;
            (BootProtocol::Pvh, handover.write_pvh(memory)?)
        }
        Kernel::BzImage(bzimage) => {
            bzimage.load(image, memory)?;
            (
                BootProtocol::Linux64,
                handover.write_linux(memory, bzimage.header, bzimage.address())?,
            )
        }
    };
    tracing::debug!(
        ?protocol,
        entry = placement.entry,
        ?ramdisk,
        "kernel loaded"
    );
    Ok(BootEntry {
        protocol,
        entry: placement.entry,
        argument,
    })
}

/// As high as it may be, so that the kernel has the room below to itself; on a page boundary.
fn place_initramfs(
    image: &Image,
    kernel: &Kernel,
    placement: Placement,
    low_ram_end: u64,
) -> Result<Ramdisk, BootError> {
    let (size, limit) = (image.size(), low_ram_end.min(kernel.initramfs_limit()));
    let address = limit
        .checked_sub(size)
        .map(|address| address - address % layout::PAGE_SIZE);
    if let Some(address) = address.filter(|&address| address >= placement.end) {
        return Ok(Ramdisk { address, size });
    }
    if limit < low_ram_end {
        let message = format!(
            "has {size} bytes, more than fits between this kernel and the highest address it accepts ({limit:#x}); make it smaller"
        );
        return Err(image.error(BootErrorKind::TooBig, message));
    }
    let end = placement
        .end
        .saturating_add(size)
        .saturating_add(layout::PAGE_SIZE);
    Err(too_big(
        image,
        "with the kernel below it, this one needs",
        end,
        limit,
    ))
}

/// `what` (ending in a verb) RAM up to `end`, and there is low RAM up to `limit`.
fn too_big(image: &Image, what: &str, end: u64, limit: u64) -> BootError {
    const MIB: u64 = 1 << 20;
    let needed = end.div_ceil(MIB).saturating_mul(MIB);
    let message = if needed <= layout::LOW_RAM_END_MAX {
        format!(
            "{what} {} of RAM, the guest has {}; give it more RAM",
            Bytes(needed),
            Bytes(limit)
        )
    } else {
        let most = Bytes(layout::LOW_RAM_END_MAX);
        format!(
            "{what} {} of RAM below 4 GiB, where a guest has {most} at most; use a smaller one",
            Bytes(needed)
        )
    };
    image.error(BootErrorKind::TooBig, message)
}
