//! Tells from the first bytes of a file what it is, so that an error can name it.

use super::error::{BootError, BootErrorKind};
use super::image::Image;

/// Bytes that detection and the bzImage header need.
pub(super) const HEAD: usize = 0x270;

/// Kernel formats that can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Elf,
    BzImage,
}

/// Magic numbers of what people mistake for a kernel: where, what, its name, what to do.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (
        0,
        b"\x1f\x8b",
        "a gzip file; unpack it first (an initramfs goes to the initramfs option)",
    ),
    (0, b"\xfd7zXZ\0", "an xz file; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "an LZ4 file; unpack it first"),
    (0, b"BZh", "a bzip2 file; unpack it first"),
    (
        0,
        b"070701",
        "a cpio archive; it belongs to the initramfs option",
    ),
    (0, b"QFI\xfb", "a qcow2 image; attach it as a disk"),
    (
        0,
        b"!<arch>\n",
        "a Debian package or static library; take the kernel out of it",
    ),
    (
        0,
        b"\xed\xab\xee\xdb",
        "an RPM package; take the kernel out of it",
    ),
    (
        40,
        b"_FVH",
        "UEFI firmware; it belongs to the firmware option",
    ),
];

/// What `image` is, or why it cannot be booted. `head` is the first [`HEAD`] bytes of it, or all of it.
pub(super) fn detect(image: &Image, head: &[u8]) -> Result<Format, BootError> {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(0, b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if at(0x1FE, b"\x55\xaa") && at(0x202, b"HdrS") {
        return Ok(Format::BzImage);
    }
    // Both begin like an EFI application, which arm64 and RISC-V kernels also are.
    for (offset, magic, name) in [(56, b"ARM\x64", "64-bit Arm"), (56, b"RSC\x05", "RISC-V")] {
        if at(offset, magic) {
            let message =
                format!("is a kernel for {name}, this VM is x86-64; use a kernel for amd64");
            return Err(image.error(BootErrorKind::WrongArchitecture, message));
        }
    }
    if at(0, b"MZ") {
        return Err(portable_executable(image, head));
    }
    if let Some((_, _, what)) = OTHERS.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return Err(image.error(BootErrorKind::NotAKernel, format!("is {what}")));
    }
    if at(0x1FE, b"\x55\xaa") {
        return Err(image.error(
            BootErrorKind::NotAKernel,
            "is a disk image with a boot sector; attach it as a disk",
        ));
    }
    let what = if is_text(head) {
        "is a text file"
    } else {
        "is neither a bzImage nor an ELF file"
    };
    let message = format!(
        "{what}; give a Linux bzImage (vmlinuz) or an ELF kernel with a PVH entry (vmlinux)"
    );
    Err(image.error(BootErrorKind::NotAKernel, message))
}

fn portable_executable(image: &Image, head: &[u8]) -> BootError {
    if head.len() < HEAD {
        let message = format!(
            "ends after {} bytes, inside its header; was it copied completely?",
            image.size()
        );
        return image.error(BootErrorKind::Truncated, message);
    }
    let word = |offset: usize| {
        head.get(offset..offset + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let header = word(0x3C).map_or(0, usize::from);
    let (kind, message) = match (head.get(header..header + 4), word(header + 4)) {
        (Some(b"PE\0\0"), Some(0x8664)) => (
            BootErrorKind::NotAKernel,
            "is an EFI application without a Linux boot header; boot it through UEFI firmware",
        ),
        (Some(b"PE\0\0"), Some(_)) => (
            BootErrorKind::WrongArchitecture,
            "is an EFI application for another architecture, this VM is x86-64; use a kernel for amd64",
        ),
        _ => (
            BootErrorKind::NotAKernel,
            "is a DOS or EFI program, not a kernel; give a Linux bzImage or an ELF kernel",
        ),
    };
    image.error(kind, message)
}

fn is_text(head: &[u8]) -> bool {
    let printable = |c: char| !c.is_control() || c.is_whitespace();
    match std::str::from_utf8(head) {
        Ok(text) => text.chars().all(printable),
        // The head may cut a character in two.
        Err(e) => {
            e.error_len().is_none()
                && head
                    .get(..e.valid_up_to())
                    .and_then(|head| std::str::from_utf8(head).ok())
                    .is_some_and(|t| t.chars().all(printable))
        }
    }
}
