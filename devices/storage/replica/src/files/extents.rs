//! Which parts of a sparse file hold data, by the FIEMAP ioctl. Any thread; may wait for the disk.
//!
//! FIEMAP, and not SEEK_DATA, because it tells extents that were allocated and never written from data. Such are left by a write that a crash
//! cut off, and around a write by file systems that allocate more than was asked for. They read as zeros and stand for nothing: the data is
//! in the layer below. SEEK_DATA tells them too, but takes them for data once somebody read them through the page cache.
#![expect(unsafe_code, reason = "an ioctl that fills a buffer")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `FS_IOC_FIEMAP` (linux/fs.h).
const FIEMAP: libc::c_ulong = 0xc020_660b;

/// `FIEMAP_FLAG_SYNC` (linux/fiemap.h): what the page cache has is allocated first.
const SYNC: u32 = 1;

/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;

/// `FIEMAP_EXTENT_UNWRITTEN`.
const UNWRITTEN: u32 = 0x800;

/// Extents that are asked for at once.
const ROOM: u32 = 256;
const BATCH: usize = ROOM as usize;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// A range of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// The ranges of `file` within `start..end` that hold data, in order, and those that were allocated only if `unwritten`.
///
/// # Errors
/// Also where the file system cannot tell.
pub fn extents(file: &File, start: u64, end: u64, unwritten: bool) -> io::Result<Vec<Range>> {
    let mut found: Vec<Range> = Vec::new();
    let empty = RawExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved64: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut map = Box::new(Map {
        start,
        length: 0,
        flags: 0,
        mapped: 0,
        room: ROOM,
        reserved: 0,
        extents: [empty; BATCH],
    });
    let mut next = start;
    while next < end {
        map.start = next;
        map.length = end - next;
        map.flags = SYNC;
        map.mapped = 0;
        // SAFETY: the structure is as the kernel knows it, with room for as many extents as it says.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *map) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = (map.mapped as usize).min(BATCH);
        let Some(last) = map.extents[..mapped].last() else {
            break;
        };
        let after = last.logical.saturating_add(last.length);
        for extent in &map.extents[..mapped] {
            let range = Range {
                start: extent.logical.max(start),
                end: extent.logical.saturating_add(extent.length).min(end),
            };
            if range.start >= range.end || (extent.flags & UNWRITTEN != 0 && !unwritten) {
                continue;
            }
            match found.last_mut() {
                Some(before) if before.end == range.start => before.end = range.end,
                _ => found.push(range),
            }
        }
        if last.flags & LAST != 0 || after <= next {
            break;
        }
        next = after;
    }
    Ok(found)
}
