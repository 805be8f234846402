//! Mapped memory that somebody else uses, too: a device's registers, or RAM that a device reads and writes.
//!
//! Each access is one instruction of exactly its width, at any alignment: that is what reaches a device, and what its hypervisor
//! has to understand. Bounds are checked.
#![expect(
    unsafe_code,
    reason = "mappings, and accesses of a chosen width to them"
)]

use rustix::mm::{MapFlags, ProtFlags};
use std::arch::asm;
use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};

/// A mapping, for as long as this lives.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps a file, shared.
    pub fn of_file(file: impl AsFd, offset: u64, length: usize) -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses where, so nothing of ours is mapped over; what the file holds is accessed through `read`
        // and `write` alone, which make no references.
        let base = unsafe {
            rustix::mm::mmap(
                null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        Self::from_raw(base.cast(), length)
    }

    /// Fresh memory, zeroed.
    pub fn anonymous(length: usize, flags: MapFlags) -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = flags | MapFlags::PRIVATE;
        // SAFETY: as for a file.
        let base = unsafe { rustix::mm::mmap_anonymous(null_mut(), length, protection, flags) }?;
        Self::from_raw(base.cast(), length)
    }

    fn from_raw(base: *mut u8, length: usize) -> rustix::io::Result<Self> {
        let base = NonNull::new(base).ok_or(rustix::io::Errno::FAULT)?;
        Ok(Self { base, length })
    }

    /// Has the kernel make it of huge pages, where it can.
    pub fn prefer_huge(&self) {
        // SAFETY: advice about the whole of our own mapping, which does not change what it holds. Where it is not taken, its pages lie
        // where they lie.
        let _ = unsafe {
            rustix::mm::madvise(
                self.base.as_ptr().cast(),
                self.length,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
    }

    /// Makes all of it present, and keeps it so.
    pub fn lock(&self) -> rustix::io::Result<()> {
        // SAFETY: the whole of our own mapping; what it holds does not change.
        unsafe { rustix::mm::mlock(self.base.as_ptr().cast(), self.length) }
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Where it is in this process.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    fn pointer(&self, offset: usize, width: usize) -> *mut u8 {
        let end = offset.checked_add(width);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{width} bytes at {offset:#x} of a mapping of {:#x}",
            self.length
        );
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Reads `width` bytes (1, 2, 4 or 8; anything else reads as 0).
    pub fn read(&self, offset: usize, width: usize) -> u64 {
        let from = self.pointer(offset, width);
        let value: u64;
        // SAFETY: the bytes lie inside the mapping, which is readable. They may change at any time, which is why no reference is made
        // and the compiler does not see the access.
        unsafe {
            match width {
                1 => {
                    asm!("movzx {v:e}, byte ptr [{p}]", v = out(reg) value, p = in(reg) from, options(nostack, preserves_flags));
                }
                2 => {
                    asm!("movzx {v:e}, word ptr [{p}]", v = out(reg) value, p = in(reg) from, options(nostack, preserves_flags));
                }
                4 => {
                    asm!("mov {v:e}, dword ptr [{p}]", v = out(reg) value, p = in(reg) from, options(nostack, preserves_flags));
                }
                8 => {
                    asm!("mov {v}, qword ptr [{p}]", v = out(reg) value, p = in(reg) from, options(nostack, preserves_flags));
                }
                _ => value = 0,
            }
        }
        value
    }

    /// Writes the low `width` bytes (1, 2, 4 or 8; anything else writes nothing).
    pub fn write(&self, offset: usize, width: usize, value: u64) {
        let to = self.pointer(offset, width);
        // SAFETY: the bytes lie inside the mapping, which is writable, and no reference to them exists.
        unsafe {
            match width {
                1 => {
                    asm!("mov byte ptr [{p}], {v}", v = in(reg_byte) value.to_le_bytes()[0], p = in(reg) to, options(nostack, preserves_flags));
                }
                2 => {
                    asm!("mov word ptr [{p}], {v:x}", v = in(reg) value, p = in(reg) to, options(nostack, preserves_flags));
                }
                4 => {
                    asm!("mov dword ptr [{p}], {v:e}", v = in(reg) value, p = in(reg) to, options(nostack, preserves_flags));
                }
                8 => {
                    asm!("mov qword ptr [{p}], {v}", v = in(reg) value, p = in(reg) to, options(nostack, preserves_flags));
                }
                _ => {}
            }
        }
    }

    /// Copies bytes out, by pieces as wide as their alignment allows: a ring's index is read at once.
    pub fn copy_out(&self, offset: usize, data: &mut [u8]) {
        let mut done = 0;
        while done < data.len() {
            let width = piece(offset + done, data.len() - done);
            let bytes = self.read(offset + done, width).to_le_bytes();
            data[done..done + width].copy_from_slice(&bytes[..width]);
            done += width;
        }
    }

    /// Copies bytes in, likewise.
    pub fn copy_in(&self, offset: usize, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let width = piece(offset + done, data.len() - done);
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(&data[done..done + width]);
            self.write(offset + done, width, u64::from_le_bytes(bytes));
            done += width;
        }
    }
}

/// The widest access that `offset` is aligned for and that `left` bytes have room for.
fn piece(offset: usize, left: usize) -> usize {
    [8, 4, 2]
        .into_iter()
        .find(|width| offset.is_multiple_of(*width) && left >= *width)
        .unwrap_or(1)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody has a pointer into it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_alignment() {
        let mapping = Mapping::anonymous(4096, MapFlags::empty()).unwrap();
        for offset in 0..9 {
            for width in [1, 2, 4, 8] {
                mapping.copy_in(0, &[0x5a; 32]);
                mapping.write(offset, width, 0x8877_6655_4433_2211);
                let mut bytes = [0; 32];
                mapping.copy_out(0, &mut bytes);
                let mut expected = [0x5a; 32];
                expected[offset..offset + width]
                    .copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88][..width]);
                assert_eq!(bytes, expected, "{width} bytes at {offset}");
                let value = mapping.read(offset, width);
                let mask = u64::MAX >> (64 - 8 * width);
                assert_eq!(value, 0x8877_6655_4433_2211 & mask);
            }
        }
    }

    #[test]
    fn pieces_are_as_wide_as_they_may_be() {
        assert_eq!(piece(0, 8), 8);
        assert_eq!(piece(2, 2), 2);
        assert_eq!(piece(4, 7), 4);
        assert_eq!(piece(1, 100), 1);
        assert_eq!(piece(8, 3), 2);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 0xfff")]
    fn bounds_are_checked() {
        let mapping = Mapping::anonymous(4096, MapFlags::empty()).unwrap();
        mapping.read(4095, 2);
    }
}
