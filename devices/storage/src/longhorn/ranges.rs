//! Which parts of a volume are being written, so that no two writes to the same sector are under way at once: each replica would do them in an order of
//! its own, and the replicas would differ for good.
//!
//! All queues of a volume share one set, behind a lock that is held for a moment. The guest decides ranges and order.

use std::collections::{BTreeMap, VecDeque};

/// A range of bytes that is not empty: from the first, to before the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    /// The whole blocks that a piece of the volume touches.
    pub(super) fn of_blocks(offset: u64, length: u64, block: u64) -> Self {
        let start = offset - offset % block;
        let end = offset.saturating_add(length.max(1));
        let end = end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        Self { start, end }
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Who writes: a queue, and one of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Writer {
    pub queue: u32,
    pub request: u32,
}

/// The ranges that are being written, and those that wait for them.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Ends and writers, by starts; no two overlap.
    held: BTreeMap<u64, (u64, Writer)>,
    /// In the order in which they came.
    waiting: VecDeque<(Range, Writer)>,
}

impl Ranges {
    /// Asks for a range. Whether it was granted; otherwise [`release`](Self::release) will say so one day. Whoever came first to a part of it
    /// is first.
    pub(super) fn acquire(&mut self, range: Range, writer: Writer) -> bool {
        let behind = self.waiting.iter().any(|(other, _)| range.overlaps(*other));
        if behind || self.is_held(range) {
            self.waiting.push_back((range, writer));
            return false;
        }
        self.held.insert(range.start, (range.end, writer));
        true
    }

    fn is_held(&self, range: Range) -> bool {
        // Those that are held do not overlap, so the last that starts before our end ends last.
        let before = self.held.range(..range.end).next_back();
        before.is_some_and(|(_, (end, _))| *end > range.start)
    }

    /// Gives a range back, or gives up waiting for it, and tells who has been granted theirs.
    pub(super) fn release(&mut self, range: Range, writer: Writer, granted: &mut Vec<Writer>) {
        match self.held.get(&range.start) {
            Some((_, holder)) if *holder == writer => {
                self.held.remove(&range.start);
            }
            _ => self.waiting.retain(|(_, other)| *other != writer),
        }
        self.grant(granted);
    }

    fn grant(&mut self, granted: &mut Vec<Writer>) {
        if self.waiting.is_empty() {
            return;
        }
        let mut still: VecDeque<(Range, Writer)> = VecDeque::new();
        for (wanted, writer) in std::mem::take(&mut self.waiting) {
            let behind = still.iter().any(|(other, _)| wanted.overlaps(*other));
            if behind || self.is_held(wanted) {
                still.push_back((wanted, writer));
            } else {
                self.held.insert(wanted.start, (wanted.end, writer));
                granted.push(writer);
            }
        }
        self.waiting = still;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Range, Ranges, Writer};

    fn writer(request: u32) -> Writer {
        Writer { queue: 0, request }
    }

    #[test]
    fn a_range_is_of_whole_blocks() {
        let range = |start, end| Range { start, end };
        assert_eq!(Range::of_blocks(0, 4096, 4096), range(0, 4096));
        assert_eq!(Range::of_blocks(4095, 2, 4096), range(0, 8192));
        assert_eq!(Range::of_blocks(512, 512, 4096), range(0, 4096));
        let last = Range::of_blocks(u64::MAX - 1, u64::MAX, 4096);
        assert_eq!(last.end, u64::MAX);
    }

    #[test]
    fn first_come_first_served() {
        let mut ranges = Ranges::default();
        let range = |start, end| Range { start, end };
        assert!(ranges.acquire(range(0, 10), writer(1)));
        assert!(!ranges.acquire(range(5, 25), writer(2)));
        // Nobody has it, but the second was there before.
        assert!(!ranges.acquire(range(20, 30), writer(3)));
        assert!(ranges.acquire(range(30, 40), writer(4)));
        let mut granted = Vec::new();
        ranges.release(range(0, 10), writer(1), &mut granted);
        assert_eq!(granted, [writer(2)]);
        granted.clear();
        ranges.release(range(5, 25), writer(2), &mut granted);
        assert_eq!(granted, [writer(3)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire(u64, u64),
        /// Gives back what it has, or gives up waiting.
        End(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..64_u64, 1..16_u64).prop_map(|(start, length)| Step::Acquire(start, length)),
            any::<usize>().prop_map(Step::End),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// Whoever is there holds its range just when nobody who came before and is still there wants a part of it.
        #[test]
        fn like_a_list(steps in steps()) {
            let mut ranges = Ranges::default();
            let mut live: Vec<(u32, Range)> = Vec::new();
            let mut holders = std::collections::BTreeSet::new();
            let holds = |live: &[(u32, Range)], place: usize| {
                live[..place].iter().all(|(_, other)| !live[place].1.overlaps(*other))
            };
            for (id, step) in (0..).zip(steps) {
                let mut granted = Vec::new();
                match step {
                    Step::Acquire(start, length) => {
                        let range = Range { start, end: start + length };
                        live.push((id, range));
                        if ranges.acquire(range, writer(id)) {
                            holders.insert(id);
                        }
                    }
                    Step::End(_) if live.is_empty() => {}
                    Step::End(which) => {
                        let (id, range) = live.remove(which % live.len());
                        holders.remove(&id);
                        ranges.release(range, writer(id), &mut granted);
                    }
                }
                for writer in granted {
                    prop_assert!(holders.insert(writer.request), "granted twice");
                }
                for place in 0..live.len() {
                    prop_assert_eq!(holders.contains(&live[place].0), holds(&live, place));
                }
            }
        }
    }
}
