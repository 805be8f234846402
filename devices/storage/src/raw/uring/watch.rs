//! What a ring waits for on its user's behalf: descriptors, each polled by one operation that completes whenever somebody wakes its
//! pollers, and stays. The kernel may end such an operation; it is then asked for it again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use io_uring::{opcode, squeue, types};
use rustix::event::PollFlags;

use super::NO_TASK;

/// The most descriptors that are watched.
pub(super) const MAX: usize = 8;

struct Watch {
    /// Ours: the kernel may be asked for it again.
    fd: OwnedFd,
    /// Its number in the upper half, its token in the lowest bits.
    user_data: u64,
    /// The kernel has it, or will with what is in the submission queue.
    armed: bool,
}

impl Watch {
    fn token(&self) -> u32 {
        (self.user_data & 63) as u32
    }
}

/// All watches of a ring.
#[derive(Default)]
pub(super) struct Watches {
    all: Vec<Watch>,
    /// Watches so far: what the kernel still says about one that was removed is not taken for its successor's.
    made: u16,
    /// The tokens of those that became ready and were not told yet: a bit each.
    woken: u64,
}

impl Watches {
    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        if self.all.len() == MAX || token >= 64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.made = self.made.wrapping_add(1);
        self.all.push(Watch {
            fd: fd.try_clone_to_owned()?,
            user_data: NO_TASK | u64::from(self.made) << 32 | u64::from(token),
            armed: false,
        });
        Ok(())
    }

    /// Ends a watch, and says which operation the kernel may give up.
    pub(super) fn remove(&mut self, token: u32) -> Option<u64> {
        let index = self.all.iter().position(|watch| watch.token() == token)?;
        self.woken &= !(1 << token);
        Some(self.all.swap_remove(index).user_data)
    }

    /// An operation that the kernel does not have.
    pub(super) fn next_to_arm(&self) -> Option<(squeue::Entry, u64)> {
        let watch = self.all.iter().find(|watch| !watch.armed)?;
        let fd = types::Fd(watch.fd.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits())).multi(true);
        Some((poll.build(), watch.user_data))
    }

    pub(super) fn note_armed(&mut self, user_data: u64) {
        if let Some(watch) = self.find(user_data) {
            watch.armed = true;
        }
    }

    fn find(&mut self, user_data: u64) -> Option<&mut Watch> {
        self.all
            .iter_mut()
            .find(|watch| watch.user_data == user_data)
    }

    /// What the kernel says about an operation: that its descriptor is ready, and whether that was the last word.
    ///
    /// # Errors
    /// The errno when it cannot be polled.
    pub(super) fn hear(&mut self, user_data: u64, result: i32, last: bool) -> Result<(), i32> {
        let Some(watch) = self.find(user_data) else {
            return Ok(()); // One that was removed, or none at all.
        };
        watch.armed &= !last;
        let token = watch.token();
        match result {
            0.. => self.woken |= 1 << token,
            // It is asked for again.
            _ if -result == libc::ECANCELED => {}
            errno => return Err(-errno),
        }
        Ok(())
    }

    pub(super) fn has_woken(&self) -> bool {
        self.woken != 0
    }

    /// The tokens of those that became ready since it was asked last.
    pub(super) fn take_woken(&mut self) -> u64 {
        std::mem::take(&mut self.woken)
    }

    #[cfg(test)]
    pub(super) fn armed(&self) -> Vec<u64> {
        let armed = self.all.iter().filter(|watch| watch.armed);
        armed.map(|watch| watch.user_data).collect()
    }
}
