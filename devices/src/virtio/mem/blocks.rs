//! Which blocks of the region are plugged in: one bit each.

use std::ops::Range;

/// Bits of a word.
const WORD: usize = 64;

/// A set of blocks, each plugged in or not.
#[derive(Debug)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: usize,
    plugged: usize,
}

impl Blocks {
    /// `count` blocks, none plugged in.
    pub(super) fn new(count: usize) -> Self {
        Self {
            words: vec![0; count.div_ceil(WORD)],
            count,
            plugged: 0,
        }
    }

    /// How many are plugged in.
    pub(super) fn plugged(&self) -> usize {
        self.plugged
    }

    fn is_plugged(&self, block: usize) -> bool {
        let word = self.words.get(block / WORD).copied().unwrap_or(0);
        word & (1 << (block % WORD)) != 0
    }

    /// How many of `range` are plugged in.
    pub(super) fn plugged_in(&self, range: Range<usize>) -> usize {
        range.filter(|block| self.is_plugged(*block)).count()
    }

    /// Marks all of `range`; what lies beyond the last block is left out.
    pub(super) fn mark(&mut self, range: Range<usize>, plugged: bool) {
        for block in range.start..range.end.min(self.count) {
            if self.is_plugged(block) == plugged {
                continue;
            }
            if let Some(word) = self.words.get_mut(block / WORD) {
                *word ^= 1 << (block % WORD);
            }
            if plugged {
                self.plugged += 1;
            } else {
                self.plugged -= 1;
            }
        }
    }

    /// None is plugged in any more.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.plugged = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(
            count in 1_usize..200,
            marks in prop::collection::vec((0_usize..220, 0_usize..90, any::<bool>()), 0..20),
        ) {
            let mut blocks = Blocks::new(count);
            let mut model = vec![false; count];
            for (start, length, plugged) in marks {
                blocks.mark(start..start + length, plugged);
                for block in model.iter_mut().skip(start).take(length) {
                    *block = plugged;
                }
                prop_assert_eq!(blocks.plugged(), model.iter().filter(|plugged| **plugged).count());
                let inside = model.iter().skip(start).take(length).filter(|plugged| **plugged).count();
                prop_assert_eq!(blocks.plugged_in(start..start + length), inside);
            }
            blocks.clear();
            prop_assert_eq!((blocks.plugged(), blocks.plugged_in(0..count)), (0, 0));
        }
    }
}
