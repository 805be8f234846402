//! Which pages of this process are mapped, for tests of what is given back to the host.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// How many pages of a range of whole pages are mapped or swapped out: bits 63 and 62 of their entries in `/proc/self/pagemap`.
pub fn count(range: &Range<usize>) -> usize {
    let map = File::open("/proc/self/pagemap").unwrap();
    let mut entries = vec![0; range.len() / PAGE * 8];
    let at = range.start / PAGE * 8;
    map.read_exact_at(&mut entries, at as u64).unwrap();
    let highest = entries.iter().skip(7).step_by(8);
    highest.filter(|byte| **byte >> 6 != 0).count()
}
