//! Frames between a backend's descriptor and guest RAM, and what the errors of a backend mean.
#![expect(unsafe_code, reason = "readv and writev on guest RAM")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What became of a read or write.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A whole frame of this many bytes, header included.
    Frame(usize),
    /// Not now: wait until the descriptor is ready.
    Blocked,
    /// This frame failed; the next may not.
    Failed(io::Error),
    /// The backend will never carry a frame again.
    Gone(io::Error),
}

/// The most pieces of one frame: the kernel's `UIO_MAXIOV`.
pub(super) const MAX_PIECES: usize = 1024;

/// Reads one frame.
///
/// # Safety
/// Each iovec is memory that may be written for the length of the call.
pub(super) unsafe fn read_frame(fd: BorrowedFd<'_>, iovecs: &[libc::iovec]) -> Outcome {
    transfer(iovecs, |pointer, count| {
        // SAFETY: `pointer` and `count` are a slice of iovecs, and the caller vouches for what they point to.
        unsafe { libc::readv(fd.as_raw_fd(), pointer, count) }
    })
}

/// Writes one frame.
///
/// # Safety
/// Each iovec is memory that may be read for the length of the call.
pub(super) unsafe fn write_frame(fd: BorrowedFd<'_>, iovecs: &[libc::iovec]) -> Outcome {
    transfer(iovecs, |pointer, count| {
        // SAFETY: `pointer` and `count` are a slice of iovecs, and the caller vouches for what they point to.
        unsafe { libc::writev(fd.as_raw_fd(), pointer, count) }
    })
}

fn transfer(
    iovecs: &[libc::iovec],
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> Outcome {
    let Ok(count) = libc::c_int::try_from(iovecs.len()) else {
        return Outcome::Failed(io::ErrorKind::InvalidInput.into());
    };
    loop {
        let done = call(iovecs.as_ptr(), count);
        return match usize::try_from(done) {
            // The end of a socket's stream; a tap has no end, and every frame has a header.
            Ok(0) => Outcome::Gone(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => Outcome::Frame(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                classify(error)
            }
        };
    }
}

fn classify(error: io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Outcome::Blocked,
        Some(
            libc::EBADFD
            | libc::EBADF
            | libc::ENODEV
            | libc::ENXIO
            | libc::EPIPE
            | libc::ECONNRESET
            | libc::ENOTCONN
            | libc::ECONNREFUSED,
        ) => Outcome::Gone(error),
        _ => Outcome::Failed(error),
    }
}
