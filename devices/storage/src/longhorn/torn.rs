//! Where replicas may differ although none of them has failed: a write that had no space on any of them, of which each may have kept another part.
//!
//! The writer was told so, and either content is right, but not now the one and then the other: from then on one replica is read, the primary, until the
//! others have been made like it there. The same goes for a whole volume that was not closed.
//!
//! Used by the threads of queues and of the control side. The guest decides which ranges there are, and how many; they are bounded.

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ranges::Range;

/// Ranges that are told apart. Beyond that, the nearest ones are taken for one.
const MOST: usize = 256;

#[derive(Debug, Default)]
struct State {
    /// All of the volume is being compared.
    whole: bool,
    /// In order; no two overlap or touch.
    ranges: Vec<Range>,
}

/// Where the replicas of a volume may differ.
#[derive(Debug, Default)]
pub(super) struct Torn {
    state: Mutex<State>,
    changed: Notify,
}

impl Torn {
    /// They may differ there.
    pub(super) fn add(&self, range: Range) {
        self.state.lock().add(range);
        self.changed.notify_one();
    }

    /// They may differ anywhere, or not any more, except in what was added and not removed.
    pub(super) fn set_whole(&self, whole: bool) {
        self.state.lock().whole = whole;
    }

    /// They are the same there.
    pub(super) fn remove(&self, range: Range) {
        self.state.lock().remove(range);
    }

    /// The first range where they may differ, if they do not everywhere.
    pub(super) fn first(&self) -> Option<Range> {
        self.state.lock().ranges.first().copied()
    }

    /// Does something if they are the same everywhere; before anybody says otherwise. Whether they are.
    pub(super) fn if_none(&self, action: impl FnOnce()) -> bool {
        let state = self.state.lock();
        let none = !state.whole && state.ranges.is_empty();
        if none {
            action();
        }
        none
    }

    /// Waits until something is added, or was since the last time.
    pub(super) async fn added(&self) {
        self.changed.notified().await;
    }
}

impl State {
    fn add(&mut self, mut range: Range) {
        self.ranges.retain(|other| {
            let touches = other.start <= range.end && range.start <= other.end;
            if touches {
                range.start = range.start.min(other.start);
                range.end = range.end.max(other.end);
            }
            !touches
        });
        let place = self
            .ranges
            .partition_point(|other| other.start < range.start);
        self.ranges.insert(place, range);
        if self.ranges.len() > MOST {
            self.join_nearest();
        }
    }

    fn join_nearest(&mut self) {
        let gap = |index: &usize| self.ranges[index + 1].start - self.ranges[*index].end;
        if let Some(index) = (0..self.ranges.len().saturating_sub(1)).min_by_key(gap) {
            let next = self.ranges.remove(index + 1);
            self.ranges[index].end = next.end;
        }
    }

    fn remove(&mut self, range: Range) {
        let outside = |other: &Range| {
            let before = (other.start, other.end.min(range.start));
            let after = (other.start.max(range.end), other.end);
            [before, after]
        };
        let left = self.ranges.iter().flat_map(outside);
        self.ranges = left
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Range { start, end })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::ranges::Range;
    use super::{MOST, State, Torn};

    fn cells(state: &State) -> BTreeSet<u64> {
        state.ranges.iter().flat_map(|r| r.start..r.end).collect()
    }

    proptest! {
        #[test]
        fn like_a_set(steps in prop::collection::vec((any::<bool>(), 0..64_u64, 1..16_u64), 1..60)) {
            let (mut state, mut model) = (State::default(), BTreeSet::new());
            for (add, start, length) in steps {
                let range = Range { start, end: start + length };
                if add {
                    state.add(range);
                    model.extend(start..range.end);
                } else {
                    state.remove(range);
                    model.retain(|cell| !(start..range.end).contains(cell));
                }
                prop_assert_eq!(cells(&state), model.clone());
                let apart = state.ranges.windows(2).all(|two| two[0].end < two[1].start);
                prop_assert!(apart, "{:?}", state.ranges);
            }
        }
    }

    #[test]
    fn there_are_not_more_than_so_many_and_none_is_forgotten() {
        let mut state = State::default();
        let all: Vec<u64> = (0..10 * MOST as u64).map(|i| i * i).collect();
        for start in &all {
            let end = start + 1;
            state.add(Range { start: *start, end });
        }
        assert_eq!(state.ranges.len(), MOST);
        let held = |start: &u64| {
            state
                .ranges
                .iter()
                .any(|r| (r.start..r.end).contains(start))
        };
        assert!(all.iter().all(held));
    }

    #[test]
    fn nothing_is_the_same_while_all_is_compared() {
        let torn = Torn::default();
        assert!(torn.if_none(|| {}));
        torn.set_whole(true);
        assert!(!torn.if_none(|| panic!("it may differ")));
        let range = Range { start: 0, end: 10 };
        torn.add(range);
        torn.set_whole(false);
        assert!(!torn.if_none(|| panic!("it differs")));
        assert_eq!(torn.first(), Some(range));
        torn.remove(Range { start: 0, end: 5 });
        torn.remove(Range { start: 5, end: 10 });
        assert_eq!(torn.first(), None);
        assert!(torn.if_none(|| {}));
    }
}
