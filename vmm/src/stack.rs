//! What the calling thread's stack keeps of deeper calls than it will make again.
#![expect(unsafe_code, reason = "the kernel is told what of a stack to forget")]

use rustix::mm::{Advice, madvise};

/// Bytes below what is in use that stay: for what is called here.
const MARGIN: usize = 16 << 10;

/// How far down the stack is looked at. It is never larger where this is called.
const DEPTH: usize = 1 << 20;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Gives back to the host what deeper calls have left behind on this thread's stack.
#[inline(never)]
pub fn trim() {
    let here = std::hint::black_box(0_u8);
    let here = std::ptr::from_ref(&here) as usize;
    let end = here.saturating_sub(MARGIN) / PAGE * PAGE;
    // No lower than where the mapping of the stack begins.
    let start = match lowest() {
        Some(lowest) => end.saturating_sub(DEPTH).max(lowest.next_multiple_of(PAGE)),
        None => return,
    };
    if start < end {
        // SAFETY: it is this thread's own stack, below all that is in use: what is there belongs to calls that have returned.
        let forgotten = unsafe {
            madvise(
                start as *mut std::ffi::c_void,
                end - start,
                Advice::LinuxDontNeed,
            )
        };
        // The kernel says so where a part is not mapped yet, and forgets the rest.
        let _ = forgotten;
    }
}

/// The lowest address that this thread's stack may have.
fn lowest() -> Option<usize> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the C library fills in what it is given, and forgets the attributes again.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let got = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut lowest, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (got == 0).then_some(lowest as usize)
    }
}

#[cfg(test)]
mod tests {
    use crate::mapped::{self, PAGE};

    /// A page of stack a call.
    #[inline(never)]
    fn deep(depth: u32) -> u64 {
        let page = std::hint::black_box([u64::from(depth); 512]);
        match depth {
            0 => 0,
            _ => deep(depth - 1) + page[1],
        }
    }

    #[test]
    fn the_stack_is_used_as_before() {
        let before = deep(64);
        super::trim();
        assert_eq!(deep(64), before);
    }

    #[test]
    fn what_deeper_calls_have_left_is_not_mapped_any_more() {
        let here = std::hint::black_box(0_u8);
        let here = std::ptr::from_ref(&here) as usize;
        // Below what is called here.
        let end = (here - 2 * super::MARGIN) / PAGE * PAGE;
        let start = super::lowest().unwrap().next_multiple_of(PAGE);
        let left = start.max(end - super::DEPTH / 2)..end;
        std::hint::black_box(deep(64));
        let before = mapped::count(&left);
        assert!(before > 32, "{before} pages");
        super::trim();
        assert_eq!(mapped::count(&left), 0);
    }
}
