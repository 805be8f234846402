//! Waiting for descriptors, and borrowing those of types that do not implement `AsFd`.
#![expect(
    unsafe_code,
    reason = "vmm_sys_util and io_uring do not implement AsFd"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The descriptor that `owner` owns, for as long as `owner` is borrowed.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: `owner` owns the descriptor and outlives the returned borrow.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Waits until `fd` is readable, `end` has come, or something else woke the thread up.
///
/// # Errors
/// When the host cannot poll it.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, end: Instant) -> io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether `fd` is readable now.
#[cfg(test)]
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready == 1)
}
