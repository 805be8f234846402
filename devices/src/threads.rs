//! How the threads of a VM are made: their names, and a stack that costs what is used of it.

use std::thread::Builder;

/// Bytes of a thread's stack. Linux backs an anonymous mapping with a transparent huge page where it contains an aligned 2 MiB, so the
/// usual stack of 2 MiB costs all of that whenever chance aligns it; below that, it costs the pages that are used.
pub const STACK_SIZE: usize = 1 << 20;

/// What Linux keeps of a thread's name.
const NAME_MAX: usize = 15;

/// A thread with the beginning of this name.
pub fn named(name: &str) -> Builder {
    Builder::new()
        .name(name.chars().take(NAME_MAX).collect())
        .stack_size(STACK_SIZE)
}
