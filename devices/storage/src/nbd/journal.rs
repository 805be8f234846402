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
    /// How many connections there were when it was sent. The server lived after that, for it answered: it is the one that these connections are to.
    /// One that was made later may be to a server that came after it, as long as nobody has noticed its death.
    pub connections: u64,
}

impl Entry {
    /// What has to be remembered of a request that was carried out, and was sent when there were so many connections.
    pub(super) fn of(asked: &Asked, connections: u64) -> Option<Self> {
        let writes = [protocol::CMD_WRITE, protocol::CMD_WRITE_ZEROES];
        writes.contains(&asked.command).then(|| Self {
            command: asked.command,
            flags: asked.flags,
            offset: asked.offset,
            length: asked.length,
            payload: asked.payload.clone(),
            connections,
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

    /// The number that the next entry gets: a flush that is sent now covers nothing from it on.
    pub(super) fn mark(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Forgets what a flush covers that was sent by this connection at that [`mark`](Self::mark), but nothing behind what it does not: written
    /// anew alone, an older write would be over a newer.
    pub(super) fn flushed(&mut self, mark: u64, connection: u64) {
        while self.first < mark && connection <= self.oldest() {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.first += 1;
            self.bytes -= entry.bytes();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(64);
        }
    }

    /// How many connections there were when the first was sent: by each of these it can be flushed.
    pub(super) fn oldest(&self) -> u64 {
        let first = self.entries.front();
        first.map_or(u64::MAX, |entry| entry.connections)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.first = self.mark();
        self.entries = VecDeque::new();
        self.bytes = 0;
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

    /// A write that was sent when there was one connection.
    fn entry(offset: u64, payload: &'static [u8]) -> Entry {
        let length = u32::try_from(payload.len()).expect("short");
        let mut asked = Asked::new(CMD_WRITE, offset, length);
        asked.payload = Some(Bytes::from_static(payload));
        Entry::of(&asked, 1).expect("a write")
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it() {
        let mut journal = Journal::default();
        journal.push(entry(0, b"first"));
        let mark = journal.mark();
        journal.push(entry(5, b"second"));
        journal.flushed(mark, 1);
        assert_eq!(journal.bytes(), ENTRY + 6);
        // A later flush is answered before an earlier one.
        journal.flushed(journal.mark(), 1);
        journal.flushed(mark, 1);
        assert_eq!(journal.bytes(), 0);
        journal.push(entry(0, b"third"));
        assert_eq!(journal.mark(), 3);
        assert_eq!(journal.entries().count(), 1);
        journal.clear();
        assert_eq!((journal.bytes(), journal.mark()), (0, 3));
    }

    #[test]
    fn a_flush_covers_nothing_from_before_its_connection() {
        let mut journal = Journal::default();
        let sent = |connections| Entry {
            connections,
            ..entry(0, b"text")
        };
        for connections in [2, 1, 2] {
            journal.push(sent(connections));
        }
        let mark = journal.mark();
        journal.push(sent(2));
        journal.flushed(mark, 2);
        let left: Vec<_> = journal.entries().map(|entry| entry.connections).collect();
        assert_eq!(left, [1, 2, 2], "and nothing behind that");
        assert_eq!((journal.bytes(), journal.oldest()), (3 * (ENTRY + 4), 1));
        journal.flushed(mark, 1);
        assert_eq!((journal.bytes(), journal.oldest()), (ENTRY + 4, 2));
        journal.flushed(journal.mark(), 2);
        assert_eq!((journal.bytes(), journal.oldest()), (0, u64::MAX));
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
            assert_eq!(Entry::of(&asked, 1).is_some(), remembered, "{command}");
        }
        assert!(entry(0, b"1234").overlaps(&entry(3, b"1")));
        assert!(!entry(0, b"1234").overlaps(&entry(4, b"1")));
    }
}
