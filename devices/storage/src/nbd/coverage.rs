//! Which bytes of a read have come: the chunks of a structured reply may come in any order, and a server may leave some out or send some twice.

/// The most pieces with holes between them. Servers send in order, or nearly so.
const MAX_PIECES: usize = 256;

/// The bytes that have come.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Coverage {
    /// All before this.
    prefix: u32,
    /// And these: in order, apart from each other and from the prefix.
    pieces: Vec<(u32, u32)>,
}

impl Coverage {
    /// Adds `start..end`, which is not empty. `false` when some of it was there, or when there are too many pieces.
    pub(super) fn add(&mut self, start: u32, end: u32) -> bool {
        if start < self.prefix {
            return false;
        }
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        let (before, after) = (
            at.checked_sub(1).and_then(|i| self.pieces.get(i)).copied(),
            self.pieces.get(at).copied(),
        );
        if before.is_some_and(|piece| piece.1 > start) || after.is_some_and(|piece| piece.0 < end) {
            return false;
        }
        if start == self.prefix {
            self.prefix = end;
            if let Some(after) = after.filter(|piece| piece.0 == end) {
                self.prefix = after.1;
                self.pieces.remove(at);
            }
            return true;
        }
        let joins_before = before.is_some_and(|piece| piece.1 == start);
        let joins_after = after.is_some_and(|piece| piece.0 == end);
        match (joins_before, joins_after) {
            (true, true) => self.pieces[at - 1].1 = self.pieces.remove(at).1,
            (true, false) => self.pieces[at - 1].1 = end,
            (false, true) => self.pieces[at].0 = start,
            (false, false) if self.pieces.len() >= MAX_PIECES => return false,
            (false, false) => self.pieces.insert(at, (start, end)),
        }
        true
    }

    /// Whether all bytes before `length` have come.
    pub(super) fn is_complete(&self, length: u32) -> bool {
        self.prefix >= length
    }
}

#[cfg(test)]
mod tests {
    use super::{Coverage, MAX_PIECES};
    use proptest::prelude::*;

    #[test]
    fn pieces_are_limited() {
        let mut coverage = Coverage::default();
        let added = (1..).take_while(|n| coverage.add(n * 2, n * 2 + 1)).count();
        assert_eq!(added, MAX_PIECES);
        assert!(coverage.add(0, 2), "what closes a hole is welcome");
    }

    proptest! {
        #[test]
        fn bytes_are_counted_once(chunks in prop::collection::vec((0_u32..48, 1_u32..9), 1..40)) {
            let mut coverage = Coverage::default();
            let mut model = [false; 64];
            for (start, length) in chunks {
                let bytes = &mut model[start as usize..(start + length) as usize];
                let fresh = bytes.iter().all(|byte| !byte);
                prop_assert_eq!(coverage.add(start, start + length), fresh);
                if fresh {
                    bytes.fill(true);
                }
                for length in 1..64 {
                    let all = model[..length as usize].iter().all(|byte| *byte);
                    prop_assert_eq!(coverage.is_complete(length), all);
                }
            }
        }
    }
}
