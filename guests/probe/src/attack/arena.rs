//! Memory for rings and buffers whose physical address is known and stays: a huge page, or locked pages that happen to lie in a row.
//!
//! Physical addresses come from `/proc/self/pagemap`, which tells them to root alone.

use super::mapping::Mapping;
use paddock_probe::hostile::machine::Ram;
use rustix::mm::MapFlags;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::sysfs;

const PAGE: usize = 4096;
/// A huge page.
const HUGE: usize = 2 << 20;
/// How much memory a case may want.
const NEEDED: usize = 3 << 19;
/// How much locked memory is looked through for a row of pages that is long enough.
const LOCKED: usize = 32 << 20;
/// What the address must be a multiple of: a BAR's length.
const ALIGNMENT: u64 = 0x1_0000;

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const COMPACT_LOCKED: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// The memory.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    /// The part of the mapping that lies in a row.
    part: Range<usize>,
    physical: u64,
}

impl Arena {
    /// Finds some.
    ///
    /// # Errors
    /// When there is none, or the kernel does not tell where it is.
    pub fn new() -> Result<Self, String> {
        match Self::huge() {
            Ok(arena) => Ok(arena),
            Err(huge) => Self::locked().map_err(|locked| format!("{huge}; {locked}")),
        }
    }

    fn huge() -> Result<Self, String> {
        if sysfs::number::<u64>(FREE_HUGE_PAGES).unwrap_or(0) == 0 {
            // Fails where the kernel has none: the mapping then says so.
            let more = sysfs::number::<u64>(HUGE_PAGES).unwrap_or(0) + 1;
            let _ = std::fs::write(HUGE_PAGES, more.to_string());
        }
        let mapping = Mapping::anonymous(HUGE, MapFlags::HUGETLB | MapFlags::POPULATE)
            .map_err(|error| format!("no huge page: {error}"))?;
        Self::find(mapping)
    }

    fn locked() -> Result<Self, String> {
        // Locked pages are not swapped out, but compaction may still move them.
        let _ = std::fs::write(COMPACT_LOCKED, "0");
        let failed = |error| format!("no locked memory: {error}");
        let mapping = Mapping::anonymous(LOCKED, MapFlags::empty()).map_err(failed)?;
        mapping.prefer_huge();
        mapping.lock().map_err(failed)?;
        Self::find(mapping)
    }

    fn find(mapping: Mapping) -> Result<Self, String> {
        let frames = frames(&mapping)?;
        let part = longest_row(&frames, ALIGNMENT / PAGE as u64);
        if part.len() * PAGE < NEEDED {
            return Err(format!(
                "the longest row of pages has {} KiB, and {} are needed",
                (part.len() * PAGE) >> 10,
                NEEDED >> 10
            ));
        }
        Ok(Self {
            physical: frames[part.start] * PAGE as u64,
            part: part.start * PAGE..part.end * PAGE,
            mapping,
        })
    }

    fn offset(&self, address: u64) -> usize {
        let offset = address.checked_sub(self.physical);
        let offset = offset.and_then(|offset| usize::try_from(offset).ok());
        self.part.start + offset.unwrap_or(usize::MAX / 2)
    }
}

impl Ram for Arena {
    fn base(&self) -> u64 {
        self.physical
    }
    fn length(&self) -> u64 {
        self.part.len() as u64
    }
    fn read(&self, address: u64, data: &mut [u8]) {
        self.mapping.copy_out(self.offset(address), data);
    }
    fn write(&self, address: u64, data: &[u8]) {
        self.mapping.copy_in(self.offset(address), data);
    }
}

/// The page frames behind a mapping (Documentation/admin-guide/mm/pagemap.rst).
fn frames(mapping: &Mapping) -> Result<Vec<u64>, String> {
    const FILE: &str = "/proc/self/pagemap";
    let failed = |error: std::io::Error| format!("{FILE}: {error}");
    let mut entries = vec![0; mapping.length() / PAGE * 8];
    let offset = mapping.address() / PAGE * 8;
    File::open(FILE)
        .and_then(|file| file.read_exact_at(&mut entries, offset as u64))
        .map_err(failed)?;
    let frames: Vec<u64> = entries.chunks_exact(8).map(frame).collect();
    if frames.iter().all(|frame| *frame == 0) {
        return Err(format!("{FILE} hides where pages are: run as root"));
    }
    Ok(frames)
}

/// The frame in an entry: bit 63 says that there is one, bits 54:0 which; 0 where there is none or it is not told.
fn frame(entry: &[u8]) -> u64 {
    let bits = entry.try_into().map(u64::from_le_bytes).unwrap_or_default();
    if bits >> 63 == 1 {
        bits & ((1 << 55) - 1)
    } else {
        0
    }
}

/// The longest row of frames that follow each other, from a multiple of `alignment` frames on.
fn longest_row(frames: &[u64], alignment: u64) -> Range<usize> {
    let mut best = 0..0;
    let mut start = 0;
    for end in 1..=frames.len() {
        let goes_on =
            end < frames.len() && frames[end] == frames[end - 1] + 1 && frames[start] != 0;
        if goes_on {
            continue;
        }
        let aligned =
            (start..end).find(|at| frames[*at] != 0 && frames[*at].is_multiple_of(alignment));
        if let Some(aligned) = aligned.filter(|aligned| end - aligned > best.len()) {
            best = aligned..end;
        }
        start = end;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_row_is_found() {
        assert_eq!(longest_row(&[], 16), 0..0);
        assert_eq!(longest_row(&[0, 0, 0], 1), 0..0);
        assert_eq!(longest_row(&[5, 6, 9, 10, 11, 3], 1), 2..5);
        // From a multiple of four on: 12, 13, 14, and not the longer 5, 6, 7, 8.
        assert_eq!(longest_row(&[5, 6, 7, 8, 11, 12, 13, 14], 4), 5..8);
        // A page that is not there ends a row, and no row begins with it.
        assert_eq!(longest_row(&[0, 1, 2, 0, 4], 1), 1..3);
    }

    #[test]
    fn entries_are_decoded() {
        assert_eq!(
            frame(&(1_u64 << 63 | 1 << 61 | 0x1234).to_le_bytes()),
            0x1234
        );
        assert_eq!(frame(&0x1234_u64.to_le_bytes()), 0, "not present");
        assert_eq!(frame(&[1, 2]), 0);
    }
}
