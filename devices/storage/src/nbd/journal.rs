//! Writes that the server has acknowledged and no flush has covered: in its cache they may die with it, so they are kept here to be written anew.

use std::collections::VecDeque;

use bytes::Bytes;

use super::connection::Asked;
use super::protocol;

/// What an entry costs beside its payload, in bytes.
const ENTRY: usize = 128;

/// Writes that a flush has not covered, in the order of their acknowledgement. Zeros are written, too; what was discarded may read as anything.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: VecDeque<Entry>,
    /// The number of the first.
    first: u64,
    bytes: usize,
}

/// A write.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
    pub payload: Option<Bytes>,
}

impl Entry {
    /// What has to be remembered of a request that was carried out.
    pub(super) fn of(asked: &Asked) -> Option<Self> {
        let writes = [protocol::CMD_WRITE, protocol::CMD_WRITE_ZEROES];
        writes.contains(&asked.command).then(|| Self {
            command: asked.command,
            flags: asked.flags,
            offset: asked.offset,
            length: asked.length,
            payload: asked.payload.clone(),
        })
    }

    /// As a request.
    pub(super) fn ask(self) -> Asked {
        Asked {
            flags: self.flags,
            payload: self.payload,
            ..Asked::new(self.command, self.offset, self.length)
        }
    }

    fn bytes(&self) -> usize {
        ENTRY + self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// Whether both write the same place.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let end = |entry: &Self| entry.offset.saturating_add(entry.length.into());
        self.offset < end(other) && other.offset < end(self)
    }
}

impl Journal {
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// The number that the next entry gets: a flush that is sent now covers all before it.
    pub(super) fn mark(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Forgets what is before `mark`.
    pub(super) fn flushed(&mut self, mark: u64) {
        while self.first < mark {
            let Some(entry) = self.entries.pop_front() else {
                return;
            };
            self.first += 1;
            self.bytes -= entry.bytes();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(64);
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRY, Entry, Journal};
    use crate::nbd::connection::Asked;
    use crate::nbd::protocol::{CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES};
    use bytes::Bytes;

    fn entry(offset: u64, payload: &'static [u8]) -> Entry {
        let length = u32::try_from(payload.len()).expect("short");
        let mut asked = Asked::new(CMD_WRITE, offset, length);
        asked.payload = Some(Bytes::from_static(payload));
        Entry::of(&asked).expect("a write")
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it() {
        let mut journal = Journal::default();
        journal.push(entry(0, b"first"));
        let mark = journal.mark();
        journal.push(entry(5, b"second"));
        journal.flushed(mark);
        assert_eq!(journal.bytes(), ENTRY + 6);
        // A later flush is answered before an earlier one.
        journal.flushed(journal.mark());
        journal.flushed(mark);
        assert_eq!(journal.bytes(), 0);
        journal.push(entry(0, b"third"));
        assert_eq!(journal.mark(), 3);
        assert_eq!(journal.entries().count(), 1);
    }

    #[test]
    fn only_what_has_contents_is_remembered() {
        for (command, remembered) in [
            (CMD_READ, false),
            (CMD_WRITE, true),
            (CMD_FLUSH, false),
            (CMD_TRIM, false),
            (CMD_WRITE_ZEROES, true),
        ] {
            let asked = Asked::new(command, 0, 512);
            assert_eq!(Entry::of(&asked).is_some(), remembered, "{command}");
        }
        assert!(entry(0, b"1234").overlaps(&entry(3, b"1")));
        assert!(!entry(0, b"1234").overlaps(&entry(4, b"1")));
    }
}
