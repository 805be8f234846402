//! How soon a thread runs once it has something to do, on a host whose CPUs are all busy. A request of a guest waits for each thread on its way, and
//! each would wait until a busy thread has used up its time slice, which is some milliseconds. One that asks for short slices itself comes first,
//! and gets no more CPU time than before: Linux has that since 6.12 (`sched_setattr(2)`, EEVDF).
#![expect(unsafe_code, reason = "system calls that libc has no functions for")]

use std::io;

/// The slice, in nanoseconds: the shortest there is.
const SLICE: u64 = 100_000;

/// Asks for short slices for the calling thread. Where the host has none, or somebody has chosen how the thread is scheduled, all stays as it is.
pub(super) fn shorten() {
    if let Err(error) = attributes().and_then(ask) {
        tracing::debug!(%error, "no short time slices");
    }
}

fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: it is plain numbers, of which zeros are valid.
    let mut attributes = unsafe { std::mem::zeroed::<libc::sched_attr>() };
    // SAFETY: the kernel writes at most the size that it is told into the structure, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size(), 0) };
    match result {
        0 => Ok(attributes),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ask(mut attributes: libc::sched_attr) -> io::Result<()> {
    if i32::try_from(attributes.sched_policy) != Ok(libc::SCHED_OTHER) {
        return Ok(());
    }
    attributes.size = size();
    attributes.sched_runtime = SLICE;
    // SAFETY: the kernel reads as many bytes of the structure as it says it has.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn size() -> u32 {
    // Some dozens.
    u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{SLICE, attributes, shorten};

    #[test]
    fn only_the_slice_changes() {
        let thread = std::thread::spawn(|| {
            let before = attributes().expect("attributes");
            shorten();
            let after = attributes().expect("attributes");
            // A host without slices to choose says none.
            let expected = if before.sched_runtime == 0 { 0 } else { SLICE };
            assert_eq!(after.sched_runtime, expected);
            assert_eq!(
                (after.sched_policy, after.sched_nice, after.sched_flags),
                (before.sched_policy, before.sched_nice, before.sched_flags)
            );
        });
        thread.join().expect("the thread ends");
    }
}
