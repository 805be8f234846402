//! The memory a request reads from or writes to, owned by the request.
//!
//! Guest RAM is reached through raw pointers, because the kernel (io_uring, vhost) works on it while the guest
//! runs. A [`Buffer`] therefore carries whatever keeps that memory mapped, and whoever still has an
//! operation in flight still holds the `Buffer`: nothing can be unmapped under the kernel's hands.
#![expect(
    unsafe_code,
    reason = "raw segments of guest RAM are handed to the kernel"
)]

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A scatter list over memory that stays mapped as long as the buffer lives.
pub struct Buffer {
    segments: Vec<libc::iovec>,
    length: u64,
    keep_alive: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are to memory that `keep_alive`, itself Send + Sync, keeps mapped; they are tied to no thread.
unsafe impl Send for Buffer {}
// SAFETY: a shared `Buffer` only hands out the raw segments; whoever dereferences them does so in unsafe code.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Makes a buffer of raw segments.
    ///
    /// # Safety
    /// Each segment must be valid for reads and writes for as long as `keep_alive` lives. It may be changed by
    /// others (the guest) at any time, so it must never be turned into a Rust reference.
    pub unsafe fn from_raw(
        segments: Vec<libc::iovec>,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let length = segments.iter().map(|s| s.iov_len as u64).sum();
        Self {
            segments,
            length,
            keep_alive,
        }
    }

    /// Makes a buffer of `length` zero bytes that it owns, for bounce buffers and tests.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        Self::from(vec![0; length])
    }

    /// A second buffer on the first `length` bytes of the same memory, or on all there are: for one who wants to see what a
    /// request, which owns its buffer, has read.
    #[must_use]
    pub fn part(&self, length: u64) -> Self {
        self.slice(0, length)
    }

    /// A second buffer on `length` bytes of the same memory from byte `offset` on, or on all there are.
    #[must_use]
    pub fn slice(&self, offset: u64, length: u64) -> Self {
        let mut segments = Vec::with_capacity(self.segments.len());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.each_from(offset, length, |bytes, part| {
            segments.push(libc::iovec {
                iov_base: bytes.cast(),
                iov_len: part,
            });
        });
        // SAFETY: each segment is a part of one of ours, and is kept alive by the same.
        unsafe { Self::from_raw(segments, self.keep_alive()) }
    }

    /// What keeps the segments mapped.
    #[must_use]
    pub fn keep_alive(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.keep_alive)
    }

    /// The segments, in order.
    #[must_use]
    pub fn segments(&self) -> &[libc::iovec] {
        &self.segments
    }

    /// The sum of the segments' lengths in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is not a single byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether each segment's address is a multiple of `address` and its length one of `length` (powers of two), as
    /// O_DIRECT wants.
    #[must_use]
    pub fn is_aligned(&self, address: usize, length: usize) -> bool {
        self.segments.iter().all(|s| {
            s.iov_base as usize & address.wrapping_sub(1) == 0
                && s.iov_len & length.wrapping_sub(1) == 0
        })
    }

    /// Copies the first `destination.len()` bytes out; returns how many there were.
    pub fn copy_to(&self, destination: &mut [u8]) -> usize {
        self.copy_to_from(0, destination)
    }

    /// Copies `destination.len()` bytes out from byte `offset` on; returns how many there were.
    pub fn copy_to_from(&self, offset: u64, destination: &mut [u8]) -> usize {
        let mut done = 0;
        self.each_from(offset, destination.len(), |bytes, part| {
            // SAFETY: `bytes` are `part` valid bytes of a segment (see `from_raw`) and `destination` has `part` bytes left; they cannot
            // overlap, for `destination` is an exclusive Rust reference.
            unsafe { std::ptr::copy_nonoverlapping(bytes, destination[done..].as_mut_ptr(), part) };
            done += part;
        });
        done
    }

    /// Copies `source` in from the start; returns how many bytes found room.
    pub fn copy_from(&self, source: &[u8]) -> usize {
        self.copy_from_at(0, source)
    }

    /// Copies `source` in from byte `offset` on; returns how many bytes found room.
    pub fn copy_from_at(&self, offset: u64, source: &[u8]) -> usize {
        let mut done = 0;
        self.each_from(offset, source.len(), |bytes, part| {
            // SAFETY: `bytes` are `part` valid bytes of a segment (see `from_raw`) and `source` has `part` bytes left; they cannot
            // overlap, for nothing of a `Buffer` is ever a Rust reference.
            unsafe { std::ptr::copy_nonoverlapping(source[done..].as_ptr(), bytes, part) };
            done += part;
        });
        done
    }

    /// Goes through at most `length` bytes from byte `offset` on, segment by segment: where they are, and how many.
    fn each_from(&self, offset: u64, length: usize, mut each: impl FnMut(*mut u8, usize)) {
        let (mut skip, mut left) = (offset, length);
        for segment in &self.segments {
            if left == 0 {
                return;
            }
            let before = usize::try_from(skip).map_or(segment.iov_len, |n| n.min(segment.iov_len));
            skip -= before as u64;
            let part = (segment.iov_len - before).min(left);
            if part > 0 {
                each(segment.iov_base.cast::<u8>().wrapping_add(before), part);
            }
            left -= part;
        }
    }
}

/// Backing of a buffer that owns its bytes. The bytes are only ever reached through the raw pointer.
struct Owned {
    pointer: *mut [u8],
}

// SAFETY: `Owned` is the only owner of a heap allocation that belongs to no thread.
unsafe impl Send for Owned {}
// SAFETY: it gives no access to the bytes.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` and is freed once, here.
        drop(unsafe { Box::from_raw(self.pointer) });
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let pointer = Box::into_raw(bytes.into_boxed_slice());
        let segments = vec![libc::iovec {
            iov_base: pointer.cast(),
            iov_len: pointer.len(),
        }];
        // SAFETY: the segment is the whole allocation, which `Owned` frees only when the buffer goes.
        unsafe { Self::from_raw(segments, Arc::new(Owned { pointer })) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("segments", &self.segments.len())
            .field("length", &self.length)
            .field("owners", &Arc::strong_count(&self.keep_alive))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Buffer;

    #[test]
    fn bytes_go_in_and_come_out() {
        let buffer = Buffer::zeroed(8);
        assert_eq!(buffer.copy_from(b"paddock!more"), 8);
        let mut out = [0; 12];
        assert_eq!(buffer.copy_to(&mut out), 8);
        assert_eq!(&out[..8], b"paddock!");
        assert_eq!(buffer.len(), 8);
        assert!(!buffer.is_empty());
        let part = buffer.part(3);
        assert_eq!(part.len(), 3);
        assert_eq!(part.copy_from(b"PADDOCK"), 3);
        drop(part);
        buffer.copy_to(&mut out);
        assert_eq!(&out[..8], b"PADdock!");
        assert_eq!((buffer.part(0).len(), buffer.part(99).len()), (0, 8));
    }

    #[test]
    fn bytes_go_in_and_come_out_in_the_middle_of_segments() {
        let buffer = crate::testing::scattered(&[3, 1, 4], 5);
        assert_eq!(buffer.copy_from_at(0, b"abcdefgh"), 8);
        assert_eq!(buffer.copy_from_at(2, b"12345"), 5);
        assert_eq!(buffer.copy_from_at(7, b"xyz"), 1);
        assert_eq!(buffer.copy_from_at(8, b"xyz"), 0);
        assert_eq!(buffer.copy_from_at(u64::MAX, b"xyz"), 0);
        let mut out = [0; 4];
        assert_eq!(buffer.copy_to_from(1, &mut out), 4);
        assert_eq!(&out, b"b123");
        assert_eq!(buffer.copy_to_from(6, &mut out), 2);
        assert_eq!(&out[..2], b"5x");
        assert_eq!(buffer.copy_to_from(99, &mut out), 0);
        let slice = buffer.slice(2, 4);
        assert_eq!(slice.copy_to(&mut out), 4);
        assert_eq!(&out, b"1234");
        assert_eq!(
            (buffer.slice(6, 99).len(), buffer.slice(99, 1).len()),
            (2, 0)
        );
    }
}
