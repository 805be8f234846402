//! Waiting for descriptors, joining them, connecting them, and borrowing those of types that do not implement `AsFd`.
#![expect(
    unsafe_code,
    reason = "vmm_sys_util and io_uring do not implement AsFd"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The descriptor that `owner` owns, for as long as `owner` is borrowed.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: `owner` owns the descriptor and outlives the returned borrow.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Descriptors as one, which is readable while any of them is.
#[derive(Debug)]
pub(crate) struct Joined(OwnedFd);

impl Joined {
    /// Of nothing yet.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor.
    ///
    /// # Errors
    /// When the host refuses it.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        Ok(epoll::add(&self.0, fd, data, epoll::EventFlags::IN)?)
    }

    /// Removes a descriptor, if it is one of them.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, fd);
    }
}

impl AsFd for Joined {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of two is readable, or something else woke the thread up; `None` has no end. Whether the first is.
pub(crate) fn wait_either(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> bool {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let mut fds = [first, second].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    // An error, too, lets the caller look.
    poll(&mut fds, timeout.as_ref()).is_err() || !fds[0].revents().is_empty()
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
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Connects a stream socket that does not block to one on this host.
///
/// # Errors
/// When nobody listens, or who does has not accepted others until `end` and has no room for one more.
pub(crate) fn connect_unix(address: &SocketAddrUnix, end: Instant) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&socket, address) {
            Ok(()) => return Ok(socket),
            // The server is slow to accept, and there is nothing to poll for.
            Err(Errno::AGAIN) => match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Err(io::ErrorKind::TimedOut.into()),
                left => std::thread::sleep(left.min(Duration::from_millis(10))),
            },
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
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
