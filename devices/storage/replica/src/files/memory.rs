//! Page-aligned memory, which O_DIRECT asks for. Any thread; no peer has influence on it but by the sizes of its requests, which are
//! capped before they come here.
#![expect(
    unsafe_code,
    reason = "aligned allocations that the kernel reads and writes"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Fits every alignment that O_DIRECT asks for.
pub const ALIGNMENT: usize = 4096;

/// Memory that begins at a page. It is never uninitialized.
#[derive(Debug)]
pub struct Aligned {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the allocation belongs to no thread.
unsafe impl Send for Aligned {}
// SAFETY: a shared `Aligned` gives shared slices only.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Zeroed memory of `length` bytes, at least one.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(length.max(1), ALIGNMENT) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else {
            handle_alloc_error(layout)
        };
        Self { pointer, layout }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// There is always a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes. Not to be called while the kernel writes there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has this length and was initialized with zeros.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size()) }
    }

    /// The bytes. Not to be called while the kernel works on them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }

    /// The address of the byte `at`, or of the end.
    #[must_use]
    pub fn address(&self, at: usize) -> *mut u8 {
        self.pointer.as_ptr().wrapping_add(at.min(self.len()))
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}
