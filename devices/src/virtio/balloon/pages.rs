//! From page numbers to ranges of bytes that can be given back to the host.
//!
//! Where the host's pages are larger than the balloon's, one can go only when all of its parts are in the balloon, which
//! drivers put there over many requests: [`Parts`] keeps count.

use std::collections::BTreeMap;
use std::ops::Range;

use super::PAGE_SIZE;

/// The ranges that page numbers make up, in bytes and by address: neighbours joined, duplicates dropped.
pub(super) fn ranges(pages: &mut Vec<u32>) -> impl Iterator<Item = Range<u64>> {
    pages.sort_unstable();
    pages.dedup();
    pages
        .chunk_by(|page, next| page.checked_add(1) == Some(*next))
        .filter_map(|run| {
            let start = u64::from(*run.first()?) * PAGE_SIZE;
            Some(start..start + run.len() as u64 * PAGE_SIZE)
        })
}

/// The part of a range that consists of whole granules, if there is one.
pub(super) fn whole(range: &Range<u64>, granule: u64) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(granule)?;
    let end = range.end / granule * granule;
    (start < end).then_some(start..end)
}

/// Which parts of the host's large pages are in the balloon. Bounded by RAM: a bit for each of its pages.
#[derive(Debug)]
pub(super) struct Parts {
    granule: u64,
    /// By number of the large page, those with a part in the balloon.
    large: BTreeMap<u64, Part>,
}

#[derive(Debug)]
struct Part {
    bits: Vec<u64>,
    count: u64,
}

impl Parts {
    /// For large pages of `granule` bytes, a power of two above [`PAGE_SIZE`].
    pub(super) fn new(granule: u64) -> Self {
        Self {
            granule,
            large: BTreeMap::new(),
        }
    }

    /// Small pages in a large one.
    fn parts(&self) -> u64 {
        self.granule / PAGE_SIZE
    }

    /// A page goes into the balloon; the range of the large page, if all of it is there now.
    pub(super) fn add(&mut self, page: u32) -> Option<Range<u64>> {
        let parts = self.parts();
        let (number, at) = (u64::from(page) / parts, u64::from(page) % parts);
        let part = self.large.entry(number).or_insert_with(|| Part {
            bits: vec![0; usize::try_from(parts.div_ceil(64)).unwrap_or(0)],
            count: 0,
        });
        let word = part.bits.get_mut(usize::try_from(at / 64).ok()?)?;
        let bit = 1 << (at % 64);
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        part.count += 1;
        let start = number * self.granule;
        (part.count == parts).then(|| start..start + self.granule)
    }

    /// Every page may have been taken out of the balloon.
    pub(super) fn clear(&mut self) {
        self.large.clear();
    }

    /// A page is taken out of the balloon.
    pub(super) fn remove(&mut self, page: u32) {
        let parts = self.parts();
        let (number, at) = (u64::from(page) / parts, u64::from(page) % parts);
        let Some(part) = self.large.get_mut(&number) else {
            return;
        };
        let word = usize::try_from(at / 64).ok();
        let Some(word) = word.and_then(|word| part.bits.get_mut(word)) else {
            return;
        };
        let bit = 1 << (at % 64);
        if *word & bit != 0 {
            *word &= !bit;
            part.count -= 1;
            if part.count == 0 {
                self.large.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let mut pages = vec![9, 3, 2, 3, 4, 0, u32::MAX, u32::MAX - 1];
        let ranges: Vec<_> = ranges(&mut pages).collect();
        let last = u64::from(u32::MAX) * PAGE_SIZE;
        assert_eq!(
            ranges,
            [
                0..0x1000,
                0x2000..0x5000,
                0x9000..0xa000,
                last - 0x1000..last + 0x1000
            ]
        );
    }

    #[test]
    fn whole_granules() {
        assert_eq!(whole(&(0x1000..0x3000), 0x1000), Some(0x1000..0x3000));
        assert_eq!(
            whole(&(0x1f_f000..0x60_1000), 2 << 20),
            Some(0x20_0000..0x60_0000)
        );
        assert_eq!(whole(&(0x1000..0x3f_f000), 2 << 20), None);
        assert_eq!(whole(&(u64::MAX - 5..u64::MAX), 2 << 20), None);
    }

    #[test]
    fn a_large_page_goes_with_its_last_part() {
        let mut parts = Parts::new(2 << 20);
        for page in (512..1023).rev() {
            assert_eq!(parts.add(page), None);
            assert_eq!(parts.add(page), None);
        }
        parts.remove(600);
        parts.remove(600);
        parts.remove(4);
        assert_eq!(parts.add(1023), None);
        assert_eq!(parts.add(600), Some(2 << 20..4 << 20));
        assert_eq!(parts.add(600), None, "it is gone already");
        for page in 512..1024 {
            parts.remove(page);
        }
        assert!(parts.large.is_empty());
    }

    proptest! {
        #[test]
        fn parts_are_counted_as_a_set_would(steps in prop::collection::vec((any::<bool>(), 0_u32..24), 0..200)) {
            // Large pages of 32 KiB: eight parts.
            let mut parts = Parts::new(8 * PAGE_SIZE);
            let mut model = BTreeSet::new();
            for (add, page) in steps {
                let large = page / 8 * 8;
                if add {
                    let new = model.insert(page);
                    let complete = new && (large..large + 8).all(|page| model.contains(&page));
                    let start = u64::from(large) * PAGE_SIZE;
                    prop_assert_eq!(parts.add(page), complete.then(|| start..start + 8 * PAGE_SIZE));
                } else {
                    model.remove(&page);
                    parts.remove(page);
                }
                prop_assert_eq!(parts.large.values().map(|part| part.count).sum::<u64>(), model.len() as u64);
            }
        }

        #[test]
        fn ranges_hold_each_page_once(pages in prop::collection::vec(0_u32..64, 0..64)) {
            let set: BTreeSet<u32> = pages.iter().copied().collect();
            let mut pages = pages;
            let mut found = Vec::new();
            let mut end = None;
            for range in ranges(&mut pages) {
                prop_assert!(end.is_none_or(|end| end < range.start), "joined");
                end = Some(range.end);
                found.extend((range.start / PAGE_SIZE..range.end / PAGE_SIZE).map(|page| u32::try_from(page).unwrap()));
            }
            prop_assert_eq!(found, set.into_iter().collect::<Vec<_>>());
        }
    }
}
