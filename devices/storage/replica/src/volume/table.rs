//! Which layer holds each sector of 4096 bytes, and which sectors are being written.
//!
//! The table is filled in windows of 4 MiB when they are first touched. A window is always complete, and a write begins only once its window is
//! there: so nobody looks for data in the files while it is being written, and what is found is never older than what was answered.
//! Used by all connections at once, without locks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::files::image::SECTOR;

/// Sectors of a window.
pub const WINDOW: u64 = 1024;

/// The same, for arrays.
pub const WINDOW_SECTORS: usize = 1024;

/// Windows of a group, which is allocated at once.
const GROUP: u64 = 1024;

/// Bytes of the largest volume: 1 PiB.
pub const MOST_BYTES: u64 = 1 << 50;

/// The layers of a window's sectors.
#[derive(Debug)]
pub struct Window {
    layers: Box<[AtomicU8]>,
    busy: [AtomicU64; WINDOW_SECTORS / 64],
}

impl Window {
    /// A window whose sectors are in these layers.
    #[must_use]
    pub fn new(layers: &[u8]) -> Self {
        Self {
            layers: layers.iter().copied().map(AtomicU8::new).collect(),
            busy: [const { AtomicU64::new(0) }; WINDOW_SECTORS / 64],
        }
    }

    /// Takes sectors for a write. Returns whether none of them was taken.
    fn take(&self, from: u64, to: u64) -> bool {
        let taken_until = words(from, to).find(|&(word, mask)| {
            let before = self.busy[word].fetch_or(mask, Ordering::Acquire);
            let conflict = before & mask != 0;
            if conflict {
                // Only what was not taken before is ours.
                self.busy[word].fetch_and(!(mask & !before), Ordering::Relaxed);
            }
            conflict
        });
        let Some((conflict, _)) = taken_until else {
            return true;
        };
        for (word, mask) in words(from, to).take_while(|&(word, _)| word < conflict) {
            self.busy[word].fetch_and(!mask, Ordering::Release);
        }
        false
    }

    fn give(&self, from: u64, to: u64) {
        for (word, mask) in words(from, to) {
            self.busy[word].fetch_and(!mask, Ordering::Release);
        }
    }
}

/// The words of a bitmap that `from..to` touches, each with its bits.
fn words(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let low = from.saturating_sub(word * 64);
        let high = (to - word * 64).min(64);
        let mask = u64::MAX >> (64 - (high - low)) << low;
        (usize::try_from(word).unwrap_or(usize::MAX), mask)
    })
}

type Group = Box<[OnceLock<Window>]>;

/// The windows of a volume.
#[derive(Debug)]
pub struct Table {
    groups: Vec<OnceLock<Group>>,
}

impl Table {
    /// A table of which nothing is known, for a volume of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let groups = size.min(MOST_BYTES).div_ceil(SECTOR * WINDOW * GROUP);
        Self {
            groups: (0..groups).map(|_| OnceLock::new()).collect(),
        }
    }

    fn slot(&self, window: u64) -> Option<&OnceLock<Window>> {
        let group = self.groups.get(usize::try_from(window / GROUP).ok()?)?;
        let group = group.get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
        group.get(usize::try_from(window % GROUP).ok()?)
    }

    /// A window, if it is known.
    #[must_use]
    pub fn window(&self, window: u64) -> Option<&Window> {
        self.slot(window)?.get()
    }

    /// Makes a window known, unless another thread did.
    pub fn learn(&self, window: u64, content: Window) {
        if let Some(slot) = self.slot(window) {
            let _ = slot.set(content);
        }
    }

    /// The layer of a sector. Its window is known.
    #[must_use]
    pub fn layer(&self, sector: u64) -> Option<u8> {
        let window = self.window(sector / WINDOW)?;
        let place = usize::try_from(sector % WINDOW).ok()?;
        Some(window.layers.get(place)?.load(Ordering::Acquire))
    }

    /// The sectors `from..to` are in this layer. Their windows are known.
    pub fn set(&self, from: u64, to: u64, layer: u8) {
        for_windows(from, to, |window, from, to| {
            let Some(window) = self.window(window) else {
                return;
            };
            let place = |sector| usize::try_from(sector).unwrap_or(usize::MAX);
            for sector in window
                .layers
                .get(place(from)..place(to))
                .into_iter()
                .flatten()
            {
                sector.store(layer, Ordering::Release);
            }
        });
    }

    /// Takes the sectors `from..to` for a write. Returns whether none of them was taken; if one was, none is. Their windows are known.
    #[must_use]
    pub fn take(&self, from: u64, to: u64) -> bool {
        let mut end = from;
        let mut free = true;
        for_windows(from, to, |window, first, last| {
            free = free
                && self
                    .window(window)
                    .is_some_and(|window| window.take(first, last));
            if free {
                end = window * WINDOW + last;
            }
        });
        if !free {
            self.give(from, end);
        }
        free
    }

    /// Gives back what was taken.
    pub fn give(&self, from: u64, to: u64) {
        for_windows(from, to, |window, from, to| {
            if let Some(window) = self.window(window) {
                window.give(from, to);
            }
        });
    }
}

/// Calls for each window that `from..to` touches, with the first sector within it and the one after the last.
pub fn for_windows(from: u64, to: u64, mut each: impl FnMut(u64, u64, u64)) {
    let mut next = from;
    while next < to {
        let window = next / WINDOW;
        let start = window * WINDOW;
        let end = to.min(start + WINDOW);
        each(window, next - start, end - start);
        next = end;
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> Table {
        let table = Table::new(3 * WINDOW * SECTOR);
        for window in 0..3 {
            table.learn(window, Window::new(&[0; WINDOW_SECTORS]));
        }
        table
    }

    proptest! {
        #[test]
        fn sectors_are_taken_once(ranges in prop::collection::vec((0..3 * WINDOW, 1_u64..200), 1..40)) {
            let table = table();
            let mut model = vec![false; 3 * WINDOW as usize];
            let mut ours = Vec::new();
            for (from, length) in ranges {
                let to = (from + length).min(3 * WINDOW);
                let range = from as usize..to as usize;
                let free = model[range.clone()].iter().all(|&taken| !taken);
                prop_assert_eq!(table.take(from, to), free);
                if free {
                    model[range].fill(true);
                    ours.push((from, to));
                }
                if ours.len() > 5 {
                    let (from, to) = ours.remove(0);
                    table.give(from, to);
                    model[from as usize..to as usize].fill(false);
                }
            }
            for (from, to) in ours {
                table.give(from, to);
            }
            prop_assert!(table.take(0, 3 * WINDOW));
        }
    }

    #[test]
    fn layers_are_set_across_windows() {
        let table = table();
        table.set(WINDOW - 2, WINDOW + 3, 7);
        let layers: Vec<_> = (WINDOW - 3..WINDOW + 4)
            .map(|sector| table.layer(sector))
            .collect();
        assert_eq!(layers, [0, 7, 7, 7, 7, 7, 0].map(Some));
        assert_eq!(table.layer(99 * WINDOW), None);
    }

    #[test]
    fn a_large_volume_costs_nothing_yet() {
        let table = Table::new(MOST_BYTES);
        assert_eq!(table.groups.len(), 1 << 18);
        assert!(table.window((1 << 28) - 1).is_none());
    }
}
