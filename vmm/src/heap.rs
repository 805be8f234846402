//! What the C library's heap costs: kept small, for there is a process of this for every VM.
#![expect(unsafe_code, reason = "the C library is told how to allocate")]

/// Heaps that threads share. The C library would give each of them one, of which it never gives anything back; ours allocate little.
const HEAPS: libc::c_int = 2;

/// Limits the number of heaps. To be called before there is a second thread.
pub fn limit() {
    // SAFETY: it sets a number.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}

/// Gives back to the host what is free, of which much is left once a VM was made: its specification, its tables, what loaded its kernel.
/// It walks through every heap, locked meanwhile: for once in a VM's life, not for where anybody waits.
pub fn trim() {
    // SAFETY: it works on free memory, under the heaps' own locks.
    unsafe { libc::malloc_trim(0) };
}
