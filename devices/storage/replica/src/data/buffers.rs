//! The buffers of a connection, kept for the next request: in sizes of powers of two, so that a few fit all.

use std::sync::Arc;

use super::budget::Budget;
use crate::files::memory::Aligned;

/// Bytes of the smallest and the largest buffer that is kept.
const SMALLEST: usize = 4096;
const LARGEST: usize = 1 << 20;

/// The most bytes that a connection keeps.
const MOST_KEPT: usize = 8 << 20;

/// Buffers that are not in use.
#[derive(Debug)]
pub(super) struct Buffers {
    free: [Vec<Aligned>; 9],
    kept: usize,
    budget: Arc<Budget>,
}

fn class(length: usize) -> usize {
    let size = length.clamp(SMALLEST, LARGEST).next_power_of_two();
    (size / SMALLEST).trailing_zeros() as usize
}

impl Buffers {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            free: Default::default(),
            kept: 0,
            budget,
        }
    }

    /// A buffer of at least `length` bytes, of which any may have any content.
    pub(super) fn take(&mut self, length: usize) -> Aligned {
        if length > LARGEST {
            return Aligned::new(length.next_multiple_of(SMALLEST));
        }
        let class = class(length);
        match self.free[class].pop() {
            Some(buffer) => {
                self.kept -= buffer.len();
                self.budget.release(buffer.len());
                buffer
            }
            None => Aligned::new(SMALLEST << class),
        }
    }

    /// Gives one back.
    pub(super) fn give(&mut self, buffer: Aligned) {
        let length = buffer.len();
        if length <= LARGEST && self.kept + length <= MOST_KEPT && self.budget.keep(length) {
            self.kept += length;
            self.free[class(length)].push(buffer);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.budget.release(self.kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let mut buffers = Buffers::new(Arc::new(Budget::new(0)));
        for length in [0, 1, 4096, 4097, 65536, LARGEST, LARGEST + 1] {
            let buffer = buffers.take(length);
            assert!(buffer.len() >= length);
            let address = buffer.address(0);
            buffers.give(buffer);
            let again = buffers.take(length);
            assert!(again.address(0) == address || length > LARGEST);
            buffers.give(again);
        }
        for _ in 0..20 {
            buffers.give(Aligned::new(LARGEST));
        }
        assert!(buffers.kept <= MOST_KEPT);
    }
}
