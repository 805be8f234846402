//! The bzImage: reading its header and placing it, by Linux's boot protocol (Documentation/arch/x86/boot.rst).
//!
//! `linux-loader` provides the structures. Its loader is not used: it checks neither the file's length against the header
//! nor the room the kernel needs to unpack itself.

use linux_loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::Placement;
use super::detect::HEAD;
use super::error::{BootError, BootErrorKind};
use super::image::Image;
use crate::layout;

/// Where the header begins in the file and in the zero page.
const HEADER: usize = 0x1F1;
/// Protocol 2.12 (Linux 3.8) brought `xloadflags` and with it the promise of a 64-bit entry point.
const PROTOCOL_MIN: u16 = 0x020C;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// A bzImage whose header has been found consistent with the file.
#[derive(Debug)]
pub(super) struct BzImage {
    /// The header, cut to the length it declares.
    pub(super) header: setup_header,
    /// Where the protected-mode part begins in the file.
    payload: u64,
    /// Its length.
    payload_size: u64,
    /// Where it is to be loaded.
    address: u64,
    /// How far the kernel spreads from there while it unpacks itself.
    footprint: u64,
}

impl BzImage {
    /// Reads the header from `head`, the first [`HEAD`] bytes of `image`.
    pub(super) fn parse(image: &Image, head: &[u8]) -> Result<Self, BootError> {
        let header = read_header(image, head)?;
        check_bootable(image, &header)?;
        let (payload, payload_size) = locate_payload(image, &header)?;
        let address = load_address(image, &header)?;
        let footprint = u64::from(header.init_size).max(payload_size);
        Ok(Self {
            header,
            payload,
            payload_size,
            address,
            footprint,
        })
    }

    /// The longest command line in bytes, without NUL.
    pub(super) fn cmdline_max(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// One past the highest address an initramfs may occupy.
    pub(super) fn initramfs_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Checks that it fits RAM that ends at `low_ram_end`, and says where it goes.
    pub(super) fn place(&self, image: &Image, low_ram_end: u64) -> Result<Placement, BootError> {
        // No overflow: the address was checked to be below 4 GiB, the footprint is at most a file's length.
        let end = self.address.saturating_add(self.footprint);
        if end > low_ram_end {
            return Err(super::too_big(
                image,
                "the kernel and the room to unpack it need",
                end,
                low_ram_end,
            ));
        }
        Ok(Placement {
            entry: self.address + ENTRY_64,
            end,
        })
    }

    pub(super) fn load(
        &self,
        image: &mut Image,
        memory: &GuestMemoryMmap,
    ) -> Result<(), BootError> {
        image.load(memory, self.payload, self.address, self.payload_size)
    }

    /// Where the protected-mode part goes.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

fn read_header(image: &Image, head: &[u8]) -> Result<setup_header, BootError> {
    let length = size_of::<setup_header>();
    let (Some(bytes), Some(&jump)) = (head.get(HEADER..HEADER + length), head.get(0x201)) else {
        let message = format!(
            "ends after {} bytes, inside its boot header; was it copied completely?",
            image.size()
        );
        return Err(image.error(BootErrorKind::Truncated, message));
    };
    debug_assert!(HEADER + length <= HEAD);
    // The header ends where the jump at 0x200 leads; what follows is code, and must read as zeros in the zero page.
    let declared = (0x202 - HEADER + usize::from(jump)).min(length);
    let mut header = setup_header::default();
    header.as_mut_slice()[..declared].copy_from_slice(&bytes[..declared]);
    Ok(header)
}

fn check_bootable(image: &Image, header: &setup_header) -> Result<(), BootError> {
    let (version, xloadflags) = (header.version, header.xloadflags);
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(image.error(
            BootErrorKind::NoEntryPoint,
            "is a zImage, loaded below 1 MiB; use a bzImage",
        ));
    }
    if version < PROTOCOL_MIN {
        let message = format!(
            "speaks boot protocol {}.{:02}, without a 64-bit entry; use a kernel of Linux 3.8 or later (2.12)",
            version >> 8,
            version & 0xFF
        );
        return Err(image.error(BootErrorKind::NoEntryPoint, message));
    }
    if xloadflags & XLF_KERNEL_64 == 0 {
        let message = "is a 32-bit kernel without a 64-bit entry; use a kernel for amd64";
        return Err(image.error(BootErrorKind::WrongArchitecture, message));
    }
    Ok(())
}

fn locate_payload(image: &Image, header: &setup_header) -> Result<(u64, u64), BootError> {
    let sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let start = (sectors + 1) * SECTOR;
    // `syssize` counts paragraphs, rounded up. What follows it (a Secure Boot signature) is not loaded.
    let declared = u64::from(header.syssize) * 16;
    let available = image.size().saturating_sub(start);
    if available + 15 < declared || available == 0 {
        let message = format!(
            "has {} bytes, its header promises {}; was it copied completely?",
            image.size(),
            start + declared.max(1)
        );
        return Err(image.error(BootErrorKind::Truncated, message));
    }
    let size = declared.min(available);
    let compressed_end = u64::from(header.payload_offset) + u64::from(header.payload_length);
    if size <= ENTRY_64 || compressed_end > size {
        let message = "has a boot header that contradicts itself (payload outside of the kernel); use an intact kernel";
        return Err(image.error(BootErrorKind::Corrupt, message));
    }
    Ok((start, size))
}

/// Where the kernel wants to be: it would move itself there anyway, and the room counts from there.
fn load_address(image: &Image, header: &setup_header) -> Result<u64, BootError> {
    let (preferred, alignment) = (header.pref_address, u64::from(header.kernel_alignment));
    let corrupt = |message: &str| Err(image.error(BootErrorKind::Corrupt, message));
    if header.relocatable_kernel != 0 && !alignment.is_power_of_two() {
        return corrupt("has a boot header with an impossible alignment; use an intact kernel");
    }
    if preferred >= layout::HIGH_RAM_START {
        return corrupt(
            "has a boot header that asks for an address above 4 GiB; use an intact kernel",
        );
    }
    if preferred >= layout::HIGH_MEMORY {
        return Ok(preferred);
    }
    Ok(if header.relocatable_kernel != 0 {
        layout::HIGH_MEMORY.next_multiple_of(alignment)
    } else {
        layout::HIGH_MEMORY
    })
}
