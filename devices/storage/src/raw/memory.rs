//! Aligned memory for what O_DIRECT cannot do on the guest's own: bounce buffers, and zeros to write.
//!
//! The guest decides how many of its requests are unaligned, so the memory for them is bounded: a request that finds no
//! bounce buffer waits for one.
#![expect(
    unsafe_code,
    reason = "aligned allocations that the kernel reads and writes"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::OnceLock;

/// Fits every alignment that O_DIRECT asks for.
const ALIGNMENT: usize = 4096;

/// Bytes of a bounce buffer: the most of an unaligned request that is under way at once.
pub(super) const BOUNCE_SIZE: usize = 256 << 10;

/// Bytes of the shared zeros.
const ZEROS_SIZE: usize = 64 << 10;

/// Page-aligned memory that Rust never makes a reference to, for the kernel may be working on it.
#[derive(Debug)]
pub(super) struct Aligned {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation belongs to no thread and is reached through raw pointers only.
unsafe impl Send for Aligned {}
// SAFETY: a shared `Aligned` only gives its address away.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Zeroed memory of `length` bytes, which is not 0.
    pub(super) fn new(length: usize) -> Self {
        let layout =
            Layout::from_size_align(length.max(1), ALIGNMENT).unwrap_or(Layout::new::<u8>());
        // SAFETY: the layout's size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else {
            handle_alloc_error(layout)
        };
        Self { pointer, layout }
    }

    /// The first `length` bytes (or all there are) as a segment.
    pub(super) fn segment(&self, length: usize) -> libc::iovec {
        libc::iovec {
            iov_base: self.pointer.as_ptr().cast(),
            iov_len: length.min(self.layout.size()),
        }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

/// Zeros to be written, the same for everybody, allocated when first needed.
pub(super) fn zeros() -> &'static Aligned {
    static ZEROS: OnceLock<Aligned> = OnceLock::new();
    ZEROS.get_or_init(|| Aligned::new(ZEROS_SIZE))
}

/// The bounce buffers of one queue or thread.
#[derive(Debug)]
pub(super) struct Bounces {
    free: Vec<Aligned>,
    /// How many more may be made.
    left: usize,
}

impl Bounces {
    /// At most `limit` of them, made when needed.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            free: Vec::new(),
            left: limit,
        }
    }

    /// One of them, if there is one.
    pub(super) fn take(&mut self) -> Option<Aligned> {
        if let Some(bounce) = self.free.pop() {
            return Some(bounce);
        }
        self.left = self.left.checked_sub(1)?;
        Some(Aligned::new(BOUNCE_SIZE))
    }

    /// Gives one back. One is kept for the next, the others' memory goes back to the host.
    pub(super) fn give(&mut self, bounce: Aligned) {
        if self.free.is_empty() {
            self.free.push(bounce);
        } else {
            self.left += 1;
        }
    }
}
