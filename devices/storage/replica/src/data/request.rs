//! A request of a connection, from its header to its answer.

use std::io;

use paddock_longhorn::wire::Kind;

use crate::files::memory::Aligned;

/// Bytes of a sector.
pub(super) const SECTOR_BYTES: usize = 4096;

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub sequence: u32,
    pub kind: Kind,
    /// As the peer gave it.
    pub offset: i64,
    /// Bytes of the volume that it is about.
    pub length: u32,
    /// A write's data, and later the whole sectors around it; what a read reads.
    pub buffer: Option<Aligned>,
    /// Bytes it holds.
    pub cost: usize,
    /// The whole sectors around it: the first byte, and the one after the last.
    pub range: (u64, u64),
    /// Parts that are under way.
    pub parts: usize,
    /// What the host said of a part that failed.
    pub failed: Option<i32>,
    /// Where a write is.
    pub stage: Stage,
    /// The number that the counter of writes must reach before it is answered.
    pub revision: Option<i64>,
}

/// Where a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The rest of its first and its last sector is being read; its sectors are taken.
    Edges,
    /// Whole sectors are being written, or read.
    Main,
}

/// A piece of a request that is under way.
#[derive(Debug)]
pub(super) struct Part {
    pub request: usize,
    pub file: libc::c_int,
    /// Where in the buffer it is, and how many bytes are left.
    pub at: usize,
    pub left: usize,
    /// Where in the file it is.
    pub offset: u64,
    /// Where it began.
    pub first: u64,
    /// The sector that is read to complete what is written, instead of the request's buffer.
    pub sector: Option<Aligned>,
}

impl Request {
    /// Where in the first sector it begins.
    pub(super) fn shift(&self) -> usize {
        // Less than a sector.
        usize::try_from(self.offset.rem_euclid(4096)).unwrap_or(0)
    }

    /// Completes the data of a write by a sector that was read, of which the first byte is the volume's byte `offset`.
    pub(super) fn merge(&mut self, sector: &[u8], offset: u64) {
        let (start, end) = self.range;
        let shift = self.shift();
        let data_end = shift + self.length as usize;
        let Some(buffer) = &mut self.buffer else {
            return;
        };
        let at = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
        let all = usize::try_from(end - start).unwrap_or(0);
        let bytes = buffer.bytes_mut();
        // Before the data, and after it, as far as this sector goes.
        for place in [
            at..shift.min(at + sector.len()),
            data_end.max(at)..all.min(at + sector.len()),
        ] {
            if place.start < place.end {
                bytes[place.clone()].copy_from_slice(&sector[place.start - at..place.end - at]);
            }
        }
    }
}

/// The text of an error, as engines know it.
pub(super) fn error_text(doing: &str, errno: i32) -> String {
    match errno {
        libc::ENOSPC => format!("{doing}: no space left on device"),
        errno => format!("{doing}: {}", io::Error::from_raw_os_error(errno)),
    }
}

/// Things by number, whose numbers are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, thing: T) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.places[index] = Some(thing);
                index
            }
            None => {
                self.places.push(Some(thing));
                self.places.len() - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.places.get_mut(index)?.as_mut()
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let thing = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(thing)
    }
}
