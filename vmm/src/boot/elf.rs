//! ELF kernels: finding the PVH entry point and loading the segments.
//!
//! Written here rather than taken from `linux-loader`, whose loader ignores the machine, the class and the file's length,
//! and whose note parser can overflow on a crafted file: the file is hostile, and errors are to name what is wrong.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Placement;
use super::error::{BootError, BootErrorKind};
use super::image::Image;
use crate::layout;

const EHDR: usize = 64;
const PHDR: usize = 56;
/// More than any kernel has (Linux: 5), few enough to read without a thought.
const PHDRS_MAX: u16 = 128;
/// Linux's notes take about 500 bytes.
const NOTES_MAX: u64 = 1 << 20;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point, a 32-bit physical address.
const PHYS32_ENTRY: u32 = 18;

/// One loadable segment, checked to lie in the file.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    file_size: u64,
    address: u64,
    /// At least `file_size`; the rest is zeros.
    memory_size: u64,
}

/// An ELF kernel whose headers are consistent with the file.
#[derive(Debug)]
pub(super) struct Elf {
    /// Sorted by address, disjoint.
    segments: Vec<Segment>,
    entry: u64,
}

impl Elf {
    /// Reads the headers. `head` is the beginning of `image`.
    pub(super) fn parse(image: &Image, head: &[u8]) -> Result<Self, BootError> {
        check_ident(image, head)?;
        let headers = read_program_headers(image, head)?;
        let mut segments = Vec::new();
        let mut entry = None;
        for header in headers.chunks_exact(PHDR) {
            let fields = Fields(header);
            match fields.u32(0) {
                PT_LOAD => segments.extend(read_segment(image, fields)?),
                PT_NOTE if entry.is_none() => entry = read_notes(image, fields)?,
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.address);
        check_segments(image, &segments)?;
        let Some(entry) = entry else {
            let message = "has no PVH entry point; use the bzImage (vmlinuz) of this kernel, or build it with CONFIG_PVH=y";
            return Err(image.error(BootErrorKind::NoEntryPoint, message));
        };
        if !segments
            .iter()
            .any(|s| (s.address..s.address + s.file_size).contains(&entry))
        {
            let message = format!(
                "has a PVH entry point at {entry:#x}, outside of its segments; use an intact kernel"
            );
            return Err(image.error(BootErrorKind::Corrupt, message));
        }
        Ok(Self { segments, entry })
    }

    /// Checks that it fits RAM that ends at `low_ram_end`, and says where it goes.
    pub(super) fn place(&self, image: &Image, low_ram_end: u64) -> Result<Placement, BootError> {
        let end = self
            .segments
            .last()
            .map_or(0, |s| s.address + s.memory_size);
        if end > low_ram_end {
            return Err(super::too_big(image, "the kernel needs", end, low_ram_end));
        }
        Ok(Placement {
            entry: self.entry,
            end,
        })
    }

    pub(super) fn load(
        &self,
        image: &mut Image,
        memory: &GuestMemoryMmap,
    ) -> Result<(), BootError> {
        for segment in &self.segments {
            image.load(memory, segment.offset, segment.address, segment.file_size)?;
            // After a reset RAM holds what the previous kernel left in it.
            zero(
                memory,
                segment.address + segment.file_size,
                segment.memory_size - segment.file_size,
            )
            .map_err(|e| {
                image
                    .error(
                        BootErrorKind::GuestMemory,
                        format!("cannot clear the memory after {:#x}", segment.address),
                    )
                    .with_source(std::io::Error::other(e))
            })?;
        }
        Ok(())
    }
}

fn zero(
    memory: &GuestMemoryMmap,
    mut address: u64,
    mut length: u64,
) -> Result<(), vm_memory::GuestMemoryError> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    while length != 0 {
        let step = usize::try_from(length).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
        memory.write_slice(&ZEROS[..step], GuestAddress(address))?;
        address += step as u64;
        length -= step as u64;
    }
    Ok(())
}

fn check_ident(image: &Image, head: &[u8]) -> Result<(), BootError> {
    if head.len() < EHDR {
        let message = format!(
            "ends after {} bytes, inside its ELF header; was it copied completely?",
            image.size()
        );
        return Err(image.error(BootErrorKind::Truncated, message));
    }
    let fields = Fields(head);
    let (class, encoding, kind, machine) = (head[4], head[5], fields.u16(16), fields.u16(18));
    let wrong = |what: &str| {
        let message =
            format!("is an ELF file for {what}, this VM is x86-64; use a kernel for amd64");
        Err(image.error(BootErrorKind::WrongArchitecture, message))
    };
    if encoding == 2 {
        return wrong("a big-endian machine");
    }
    // 64-bit files of machine 386 exist: firmware and unikernels whose PVH entry is 32-bit code.
    match (class, machine) {
        (2, EM_X86_64 | EM_386) if encoding == 1 => {}
        (1, EM_386 | EM_X86_64) => return wrong("32-bit x86"),
        (1 | 2, 183) => return wrong("64-bit Arm"),
        (1 | 2, 40) => return wrong("32-bit Arm"),
        (1 | 2, 243) => return wrong("RISC-V"),
        (1 | 2, other) if encoding == 1 => return wrong(&format!("machine {other}")),
        _ => {
            let message = "has an ELF header of no known class or encoding; use an intact kernel";
            return Err(image.error(BootErrorKind::Corrupt, message));
        }
    }
    // 2: fixed executable, 3: position-independent; both give physical addresses in their segments.
    if !matches!(kind, 2 | 3) {
        let message =
            "is an ELF object, module or core dump, not an executable; give the kernel itself";
        return Err(image.error(BootErrorKind::NotAKernel, message));
    }
    Ok(())
}

fn read_program_headers(image: &Image, head: &[u8]) -> Result<Vec<u8>, BootError> {
    let fields = Fields(head);
    let (offset, size, count) = (fields.u64(32), usize::from(fields.u16(54)), fields.u16(56));
    if count == 0 || offset == 0 {
        let message =
            "is an ELF file without program headers, so not a kernel; give the kernel itself";
        return Err(image.error(BootErrorKind::NotAKernel, message));
    }
    if size != PHDR || count > PHDRS_MAX {
        let message = format!(
            "has {count} program headers of {size} bytes, which no kernel has; use an intact kernel"
        );
        return Err(image.error(BootErrorKind::Corrupt, message));
    }
    let length = PHDR * usize::from(count);
    let headers = image.read_up_to(offset, length)?;
    if headers.len() < length {
        let message = format!(
            "has {} bytes, its program headers lie beyond; was it copied completely?",
            image.size()
        );
        return Err(image.error(BootErrorKind::Truncated, message));
    }
    Ok(headers)
}

/// Checks that a stretch the headers name is in the file.
fn check_in_file(image: &Image, offset: u64, size: u64, what: &str) -> Result<(), BootError> {
    match offset.checked_add(size) {
        Some(end) if end <= image.size() => Ok(()),
        Some(end) => {
            let message = format!(
                "has {} bytes, its headers promise {end} for a {what}; was it copied completely?",
                image.size()
            );
            Err(image.error(BootErrorKind::Truncated, message))
        }
        None => Err(image.error(
            BootErrorKind::Corrupt,
            format!("has a {what} at an impossible place; use an intact kernel"),
        )),
    }
}

fn read_segment(image: &Image, fields: Fields<'_>) -> Result<Option<Segment>, BootError> {
    let segment = Segment {
        offset: fields.u64(8),
        address: fields.u64(24),
        file_size: fields.u64(32),
        memory_size: fields.u64(40),
    };
    if segment.memory_size == 0 {
        return Ok(None);
    }
    check_in_file(image, segment.offset, segment.file_size, "segment")?;
    let corrupt = |message: String| Err(image.error(BootErrorKind::Corrupt, message));
    let Segment {
        address,
        file_size,
        memory_size,
        ..
    } = segment;
    if file_size > memory_size || address.checked_add(memory_size).is_none() {
        return corrupt(format!(
            "has a segment at {address:#x} of an impossible size; use an intact kernel"
        ));
    }
    if address < layout::HIGH_MEMORY {
        return corrupt(format!(
            "has a segment at {address:#x}; below 1 MiB lies boot data, link it higher"
        ));
    }
    Ok(Some(segment))
}

fn check_segments(image: &Image, segments: &[Segment]) -> Result<(), BootError> {
    if segments.is_empty() {
        let message =
            "is an ELF file with nothing to load, so not a kernel; give the kernel itself";
        return Err(image.error(BootErrorKind::NotAKernel, message));
    }
    // Disjoint segments also bound the work: together they read no more than RAM holds.
    for pair in segments.windows(2) {
        if pair[0].address + pair[0].memory_size > pair[1].address {
            let message = format!(
                "has segments that overlap at {:#x}; use an intact kernel",
                pair[1].address
            );
            return Err(image.error(BootErrorKind::Corrupt, message));
        }
    }
    Ok(())
}

/// The PVH entry point in a note segment, if it has one.
fn read_notes(image: &Image, fields: Fields<'_>) -> Result<Option<u64>, BootError> {
    let (offset, size, align) = (fields.u64(8), fields.u64(32), fields.u64(48));
    check_in_file(image, offset, size, "note")?;
    let Some(length) = usize::try_from(size).ok().filter(|_| size <= NOTES_MAX) else {
        return Err(image.error(
            BootErrorKind::Corrupt,
            format!("has {size} bytes of notes; use an intact kernel"),
        ));
    };
    let notes = image.read_up_to(offset, length)?;
    // Notes are padded to 4 bytes; some linkers say 8 and mean it, others say 8 and do not.
    let found = if align == 8 {
        find_entry(&notes, 8).or_else(|| find_entry(&notes, 4))
    } else {
        find_entry(&notes, 4)
    };
    found.transpose().map_err(|()| {
        image.error(
            BootErrorKind::Corrupt,
            "has a PVH note that holds no 32-bit address; use an intact kernel",
        )
    })
}

fn find_entry(notes: &[u8], align: usize) -> Option<Result<u64, ()>> {
    let mut rest = notes;
    loop {
        let header = rest.get(..12)?;
        let fields = Fields(header);
        let name_size = usize::try_from(fields.u32(0)).ok()?;
        let value_size = usize::try_from(fields.u32(4)).ok()?;
        let value_start = 12usize
            .checked_add(name_size)?
            .checked_next_multiple_of(align)?;
        let value_end = value_start.checked_add(value_size)?;
        let (name, value) = (
            rest.get(12..12usize.checked_add(name_size)?)?,
            rest.get(value_start..value_end)?,
        );
        if fields.u32(8) == PHYS32_ENTRY && name == b"Xen\0" {
            return Some(match value {
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => {
                    Ok(u64::from(u32::from_le_bytes([*a, *b, *c, *d])))
                }
                _ => Err(()),
            });
        }
        // At least 12 bytes on, so this ends.
        rest = rest.get(value_end.checked_next_multiple_of(align)?..)?;
    }
}

/// Little-endian fields; reading outside gives zero, which every caller treats as absent or has excluded.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, offset: usize) -> [u8; N] {
        self.0
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }

    fn u16(self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }
}
