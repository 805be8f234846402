//! What the user waits for beside the disk, by its descriptor: polled by one operation of the ring, which completes whenever somebody wakes
//! those who poll it, and stays. The kernel may end it; it is then asked for it again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use io_uring::{opcode, types};
use rustix::event::PollFlags;

use super::ring::{Ring, WATCH};

/// A descriptor of the user's that the ring waits for.
pub(super) struct Watch {
    /// Ours: the kernel may be asked for it again.
    fd: OwnedFd,
    /// The kernel has it, or will with what is in the submission queue.
    pub(super) armed: bool,
    /// It became ready, and that was not told yet.
    woken: bool,
    /// The kernel cannot do it.
    failed: bool,
}

impl Watch {
    pub(super) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            fd: fd.try_clone_to_owned()?,
            armed: false,
            woken: false,
            failed: false,
        })
    }

    /// Asks the kernel for it, unless it has that already. Whether a wait ends when there is something.
    pub(super) fn arm(&mut self, ring: &mut Ring) -> bool {
        if !self.armed && !self.failed {
            let fd = types::Fd(self.fd.as_raw_fd());
            let poll = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits())).multi(true);
            self.armed = ring.push_extra(poll.build(), WATCH);
        }
        self.armed
    }

    /// What the kernel says of it: that it is ready, and whether that was the last word. `path` is the disk's, for the log.
    pub(super) fn hear(&mut self, result: i32, last: bool, path: &Path) {
        self.armed &= !last;
        match result {
            0.. => self.woken = true,
            // It is asked for again.
            _ if -result == libc::ECANCELED => {}
            errno => {
                self.failed = true;
                let error = io::Error::from_raw_os_error(-errno);
                tracing::warn!(path = %path.display(), %error, "io_uring cannot poll");
            }
        }
    }

    /// Whether it became ready, which was not told yet.
    pub(super) fn is_woken(&self) -> bool {
        self.woken
    }

    /// Whether the user has to look: it became ready, or the kernel does not watch it. Told once.
    pub(super) fn tell(&mut self) -> bool {
        std::mem::take(&mut self.woken) || !self.armed
    }
}
