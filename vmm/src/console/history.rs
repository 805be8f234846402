//! The end of everything that a console has printed: what late joiners see first, and what slow viewers still have before them.
//!
//! One ring serves all viewers, so their number costs no memory. Each reads at a [`Place`] of its own; whoever is overtaken by the
//! guest goes on at the history's start and learns how much is missing. Pure, without clocks and threads. The guest chooses all
//! bytes; they are neither changed nor understood, except that a history starts at a line where it can.

use std::collections::VecDeque;

/// Bytes that a late joiner sees, at most.
pub const HISTORY: usize = 64 * 1024;
/// Bytes that are kept: a viewer that is at the start of the history has as much again before the guest overtakes it.
const CAPACITY: usize = 2 * HISTORY;
/// How far a line's start is looked for. What is longer is not a line of text.
const LINE: usize = 4096;

/// The number of bytes printed before the one that is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// The last bytes that a console has printed.
#[derive(Debug)]
pub struct History {
    kept: VecDeque<u8>,
    /// Bytes printed so far.
    printed: u64,
    capacity: usize,
    shown: usize,
    line: usize,
}

impl Default for History {
    fn default() -> Self {
        Self::with_sizes(CAPACITY, HISTORY, LINE)
    }
}

impl History {
    fn with_sizes(capacity: usize, shown: usize, line: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            printed: 0,
            capacity,
            shown,
            line,
        }
    }

    /// Adds what was printed, in place of the oldest bytes if need be.
    pub fn append(&mut self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let excess = (self.kept.len() + last.len()).saturating_sub(self.capacity);
        self.kept.drain(..excess);
        self.kept.extend(last);
        self.printed += as_u64(bytes.len());
    }

    /// Behind the last byte.
    #[must_use]
    pub fn end(&self) -> Place {
        Place(self.printed)
    }

    /// Where a late joiner begins: some way back, at the start of a line if there is one near.
    #[must_use]
    pub fn start(&self) -> Place {
        let from = self.kept.len().saturating_sub(self.shown);
        if from == 0 && as_u64(self.kept.len()) == self.printed {
            // Everything there ever was.
            return Place(0);
        }
        // The byte in front of the first may be the end of a line.
        let front = from.saturating_sub(1);
        let near = self.kept.range(front..).take(self.line);
        let start = near
            .zip(front..)
            .find(|(byte, _)| **byte == b'\n')
            .map_or(from, |(_, at)| at + 1);
        Place(self.oldest() + as_u64(start))
    }

    /// Appends the bytes from `place` on to `bytes`, up to `most`; the place stays, to be moved on by what could be passed on. Where they are
    /// not kept any more, nothing is appended: the place moves to [`start`](Self::start), and the number of bytes missed is given.
    pub fn read(&self, place: &mut Place, most: usize, bytes: &mut Vec<u8>) -> u64 {
        let Some(from) = place.0.checked_sub(self.oldest()) else {
            let start = self.start();
            let missed = start.0 - place.0;
            *place = start;
            return missed;
        };
        let length = self.kept.len();
        let from = usize::try_from(from).map_or(length, |from| from.min(length));
        let to = from.saturating_add(most).min(length);
        bytes.extend(self.kept.range(from..to));
        0
    }

    /// The place of the first byte that is kept.
    fn oldest(&self) -> u64 {
        self.printed - as_u64(self.kept.len())
    }
}

impl Place {
    /// The place `bytes` further on.
    #[must_use]
    pub fn after(self, bytes: usize) -> Self {
        Self(self.0 + as_u64(bytes))
    }
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text_from(history: &History, mut place: Place) -> String {
        let mut bytes = Vec::new();
        assert_eq!(history.read(&mut place, usize::MAX, &mut bytes), 0);
        String::from_utf8(bytes).unwrap()
    }

    fn shown(history: &History) -> String {
        text_from(history, history.start())
    }

    #[test]
    fn all_of_a_short_history_is_shown() {
        let mut history = History::default();
        assert_eq!(history.start(), history.end());
        history.append(b"no line yet");
        assert_eq!(shown(&history), "no line yet");
    }

    #[test]
    fn a_long_history_starts_at_a_line() {
        let mut history = History::with_sizes(32, 16, 8);
        history.append(b"first line\nsecond\nthird\nfourth\n");
        assert_eq!(shown(&history), "third\nfourth\n");
        // The cut falls on a line's start by itself.
        history.append(b"123");
        assert_eq!(shown(&history), "third\nfourth\n123");
    }

    #[test]
    fn what_has_no_lines_is_cut_anywhere() {
        let mut history = History::with_sizes(32, 16, 8);
        history.append(&[b'x'; 100]);
        history.append(b"yyyyyyyy\nz");
        assert_eq!(shown(&history), "xxxxxxyyyyyyyy\nz");
    }

    #[test]
    fn the_overtaken_go_on_at_the_start() {
        let mut history = History::with_sizes(8, 4, 4);
        history.append(b"abcd");
        let mut place = history.start();
        history.append(b"efgh");
        assert_eq!(text_from(&history, place), "abcdefgh");
        history.append(b"i\njk");
        let mut bytes = Vec::new();
        assert_eq!(history.read(&mut place, 9, &mut bytes), 10);
        assert!(bytes.is_empty());
        assert_eq!(text_from(&history, place), "jk");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Print(Vec<u8>),
        Join,
        Read(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let byte = prop_oneof![4 => Just(b'\n'), 30 => any::<u8>()];
        prop_oneof![
            3 => prop::collection::vec(byte, 0..50).prop_map(Step::Print),
            1 => Just(Step::Join),
            3 => (any::<usize>(), 0usize..20).prop_map(|(who, most)| Step::Read(who, most)),
        ]
    }

    /// A viewer, and where in the whole stream it must be.
    struct Model {
        place: Place,
        at: usize,
    }

    proptest! {
        #[test]
        fn every_viewer_sees_the_stream_from_somewhere_on(
            steps in prop::collection::vec(step(), 1..80),
            shown in 1usize..40, spare in 0usize..40, line in 1usize..16,
        ) {
            let mut history = History::with_sizes(shown + spare, shown, line);
            let mut stream: Vec<u8> = Vec::new();
            let mut viewers: Vec<Model> = Vec::new();
            let drain: Vec<_> = (0..80).flat_map(|who| (0..20).map(move |_| Step::Read(who, 20))).collect();
            for step in steps.into_iter().chain(drain) {
                match step {
                    Step::Print(bytes) => {
                        history.append(&bytes);
                        stream.extend(&bytes);
                        prop_assert!(history.kept.len() <= shown + spare);
                    }
                    Step::Join => {
                        let place = history.start();
                        let at = usize::try_from(place.0).unwrap();
                        let cut = stream.len().saturating_sub(shown);
                        prop_assert!(at >= cut && at <= stream.len());
                        if at != cut {
                            prop_assert_eq!(stream[at - 1], b'\n');
                        }
                        if at == cut && cut > 0 && spare > 0 {
                            // Not at a line's start only where none is near.
                            let near = &stream[cut - 1..stream.len().min(cut - 1 + line)];
                            prop_assert!(near[0] == b'\n' || !near.contains(&b'\n'));
                        }
                        viewers.push(Model { place, at });
                    }
                    Step::Read(..) if viewers.is_empty() => {}
                    Step::Read(who, most) => {
                        let count = viewers.len();
                        let viewer = &mut viewers[who % count];
                        let behind = stream.len() - viewer.at;
                        let mut bytes = Vec::new();
                        let missed = history.read(&mut viewer.place, most, &mut bytes);
                        prop_assert_eq!(missed > 0, behind > history.kept.len());
                        viewer.at += usize::try_from(missed).unwrap();
                        if missed == 0 {
                            prop_assert_eq!(bytes.len(), most.min(behind));
                            prop_assert_eq!(&bytes[..], &stream[viewer.at..][..bytes.len()]);
                            viewer.at += bytes.len();
                            viewer.place = viewer.place.after(bytes.len());
                        }
                        prop_assert_eq!(viewer.place, Place(as_u64(viewer.at)));
                    }
                }
            }
            for viewer in &viewers {
                prop_assert_eq!(viewer.at, stream.len());
                prop_assert_eq!(viewer.place, history.end());
            }
        }
    }
}
