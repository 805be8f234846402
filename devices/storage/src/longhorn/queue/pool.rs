//! The memory of the copies of what is written, used again while the queue is busy: the heap would give large ones back to the host, and get them
//! anew page by page. An idle queue holds none.

use bytes::{Bytes, BytesMut};

use crate::Buffer;

/// The most bytes that are kept.
const MOST_KEPT: usize = 8 << 20;

/// Memory that is not in use.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Vec<BytesMut>,
    /// Bytes of it.
    kept: usize,
}

impl Pool {
    /// A copy of `length` bytes of a buffer, which has them, from `offset` on.
    pub(super) fn copy(&mut self, buffer: &Buffer, offset: u64, length: usize) -> Bytes {
        let mut memory = self.free.pop().unwrap_or_default();
        self.kept -= memory.capacity();
        if memory.capacity() < length {
            memory = BytesMut::new();
        }
        // Zeroes only what it was not as long as before.
        memory.resize(length, 0);
        buffer.copy_to_from(offset, &mut memory);
        memory.freeze()
    }

    /// Takes a copy back, unless somebody else has it, too.
    pub(super) fn give(&mut self, copy: Bytes) {
        if let Ok(memory) = copy.try_into_mut() {
            if self.kept + memory.capacity() <= MOST_KEPT {
                self.kept += memory.capacity();
                self.free.push(memory);
            }
        }
    }

    /// Gives all of it back to the heap.
    pub(super) fn empty(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_KEPT, Pool};
    use crate::Buffer;

    #[test]
    fn memory_is_used_again() {
        let mut pool = Pool::default();
        let buffer = Buffer::from((0..=255).cycle().take(8192).collect::<Vec<u8>>());
        let first = pool.copy(&buffer, 1, 4096);
        let place = first.as_ptr();
        assert_eq!(&first[..3], &[1, 2, 3]);
        pool.give(first);
        let second = pool.copy(&buffer, 5, 100);
        assert_eq!((second.as_ptr(), second.len()), (place, 100));
        assert_eq!(&second[..3], &[5, 6, 7]);
        pool.give(second);
        let third = pool.copy(&buffer, 0, 8192);
        assert_eq!(&third[8189..], &[253, 254, 255]);
        assert_eq!(pool.kept, 0);
    }

    #[test]
    fn what_somebody_has_is_not_used_again() {
        let mut pool = Pool::default();
        let buffer = Buffer::from(vec![7; 4096]);
        let first = pool.copy(&buffer, 0, 4096);
        pool.give(first.clone());
        buffer.copy_from(&[8; 4096]);
        let second = pool.copy(&buffer, 0, 4096);
        assert_eq!((first[0], second[0]), (7, 8));
    }

    #[test]
    fn not_all_is_kept() {
        let mut pool = Pool::default();
        let buffer = Buffer::zeroed(1 << 20);
        let copies: Vec<_> = (0..20).map(|_| pool.copy(&buffer, 0, 1 << 20)).collect();
        for copy in copies {
            pool.give(copy);
        }
        assert!(pool.kept <= MOST_KEPT && pool.free.len() == MOST_KEPT >> 20);
        pool.empty();
        assert_eq!((pool.kept, pool.free.len()), (0, 0));
    }
}
