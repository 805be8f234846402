//! The kernel's side of a queue: the ring, what is in its submission queue, and how much of it the kernel has taken.
//!
//! At most as many operations are in the kernel as the completion queue holds. A kernel that lacks memory takes less, or nothing for a while;
//! where nothing in flight can give memory back, that may last so long and no longer.
#![expect(unsafe_code, reason = "submission entries point to memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};

use crate::raw::Image;

/// Set in the user data of what stands for no task.
const NO_TASK: u64 = 1 << 63;

/// User data of what nobody waits for.
pub(super) const NOBODY: u64 = u64::MAX;

/// User data of the operation that polls what the user has us watch.
pub(super) const WATCH: u64 = NO_TASK | 1;

/// Places in the completion queue for what stands for no task.
const SPARE: usize = 8;

/// How long a wait lasts at most that the user's descriptor may not end.
pub(super) const MOMENT: Duration = Duration::from_millis(10);

/// How long to leave a kernel alone that lacks memory.
pub(super) const PAUSE: Duration = Duration::from_millis(1);

/// `IORING_ENTER_GETEVENTS` and `IORING_ENTER_EXT_ARG` (linux/io_uring.h).
const GET_EVENTS: u32 = 1 | 1 << 3;

/// How long the kernel may refuse to take anything, for lack of memory, while nothing is in flight.
const BUSY_DEADLINE: Duration = Duration::from_secs(1);

/// Whether the host lets us use what the engine needs of io_uring.
///
/// # Errors
/// `Unsupported` when the kernel is too old, otherwise what the kernel said.
pub(in crate::raw) fn probe() -> io::Result<()> {
    let ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Nop::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn entries(depth: u16) -> u32 {
    u32::from(depth).clamp(16, 1024).next_power_of_two()
}

/// A ring whose descriptor can be polled.
fn make_ring(depth: u16) -> io::Result<IoUring> {
    let entries = entries(depth);
    IoUring::builder()
        .dontfork()
        .setup_coop_taskrun()
        .build(entries)
        // Linux before 5.19.
        .or_else(|_| IoUring::builder().dontfork().build(entries))
}

/// A ring to be waited for by entering the kernel; it exists since Linux 6.1.
fn make_waiting_ring(depth: u16) -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries(depth))
}

/// A wait that was interrupted, or that took its time, is over.
fn over(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => Ok(()),
        other => other.map(drop),
    }
}

/// What the kernel has completed.
pub(super) enum Completed {
    /// The step of this task, with this result.
    Task(usize, i32),
    /// The poll of what is watched, with this result; whether it is the last one.
    Watch(i32, bool),
}

/// A ring, and the accounts of what it was given.
pub(super) struct Ring {
    uring: IoUring,
    /// As many requests will be in flight.
    depth: u16,
    /// Whose it is, for the log.
    image: Arc<Image>,
    /// The user waits in it. The kernel then works on completions only when it is entered for them, by the thread that made the ring:
    /// nothing wakes up whoever polls the ring's descriptor.
    pub(super) waits: bool,
    /// The user data of what is in the submission queue and not yet the kernel's, in order.
    pub(super) pushed: VecDeque<u64>,
    /// Tasks in the submission queue or in the kernel.
    pub(super) submitted: usize,
    /// Since when the kernel takes nothing for want of memory, as far as a user who waits in the ring has seen.
    pub(super) busy: Option<Instant>,
    /// The kernel no longer takes anything from us, for this reason.
    pub(super) dead: Option<i32>,
}

impl Ring {
    pub(super) fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        Ok(Self {
            uring: make_ring(depth)?,
            depth,
            image,
            waits: false,
            pushed: VecDeque::new(),
            submitted: 0,
            busy: None,
            dead: None,
        })
    }

    /// Takes a ring to wait with, before the first request. Whether the kernel has one.
    pub(super) fn turn_into_waiting(&mut self) -> bool {
        if self.waits || self.dead.is_some() {
            return false;
        }
        match make_waiting_ring(self.depth) {
            Ok(ring) => {
                self.uring = ring;
                self.waits = true;
                true
            }
            Err(error) => {
                tracing::debug!(path = %self.image.path.display(), %error, "no ring to wait with");
                false
            }
        }
    }

    /// How many tasks the kernel may have: for each there is a place in the completion queue.
    fn limit(&self) -> usize {
        self.uring.params().cq_entries() as usize - SPARE
    }

    /// Whether the kernel may have one more task.
    pub(super) fn has_place(&self) -> bool {
        self.submitted < self.limit()
    }

    /// Whether one more task fits into the submission queue, too.
    pub(super) fn has_room(&mut self) -> bool {
        self.has_place() && !self.uring.submission().is_full()
    }

    /// Puts a task's step into the submission queue. Whether there was room.
    ///
    /// # Safety
    /// What the entry points to must stay as it is until the completion.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, task: usize) -> bool {
        let user_data = task as u64;
        let entry = entry.user_data(user_data);
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.uring.submission().push(&entry) }.is_ok();
        if pushed {
            self.pushed.push_back(user_data);
            self.submitted += 1;
        }
        pushed
    }

    /// Puts something that stands for no task into the submission queue. Whether there was room: if not, there are others in flight.
    pub(super) fn push_extra(&mut self, entry: squeue::Entry, user_data: u64) -> bool {
        let entry = entry.user_data(user_data);
        // SAFETY: the entry refers to no memory.
        let pushed = self.dead.is_none() && unsafe { self.uring.submission().push(&entry) }.is_ok();
        if pushed {
            self.pushed.push_back(user_data);
        }
        pushed
    }

    /// Takes note of what the kernel has taken from the submission queue.
    fn note_taken(&mut self) {
        let waiting = self.uring.submission().len();
        let taken = self.pushed.len().saturating_sub(waiting);
        if taken > 0 {
            self.busy = None;
        }
        // The kernel takes them in order.
        self.pushed.drain(..taken);
    }

    /// Tasks that the kernel has.
    fn in_kernel(&self) -> usize {
        let waiting = self.pushed.iter().filter(|&data| data & NO_TASK == 0);
        self.submitted - waiting.count()
    }

    /// The tasks in the submission queue of a dead ring, which the kernel will never have.
    pub(super) fn take_back(&mut self) -> Vec<usize> {
        let tasks: Vec<_> = self.pushed.drain(..).filter_map(task_of).collect();
        self.submitted -= tasks.len();
        tasks
    }

    /// Hands the submission queue to the kernel. Whether it has taken all of it.
    pub(super) fn hand_over(&mut self) -> bool {
        let mut since = None;
        while !self.uring.submission().is_empty() {
            let result = self.uring.submit();
            self.note_taken();
            let Err(error) = result else {
                continue;
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Out of memory or room for completions: completions in flight will bring us back here.
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) if self.in_kernel() > 0 => {
                    return false;
                }
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                    if since.get_or_insert_with(Instant::now).elapsed() < BUSY_DEADLINE =>
                {
                    std::thread::sleep(PAUSE);
                }
                errno => {
                    self.die(errno.unwrap_or(libc::EIO));
                    return false;
                }
            }
        }
        true
    }

    /// Whether entering the kernel would do nothing: nothing to hand over, and no completions to work on.
    pub(super) fn is_idle(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
    }

    /// Enters the kernel once for a user who waits in the ring: hands over what there is, and waits for something to complete.
    pub(super) fn go_round(&mut self, patience: Option<Duration>) {
        if self.dead.is_some() {
            // What was answered is still in the submission queue: nothing may be handed over any more.
            let patience = patience.unwrap_or(MOMENT).min(MOMENT);
            if self.gather(patience).is_err() {
                std::thread::sleep(patience);
            }
            return;
        }
        let Err(error) = self.turn(patience) else {
            self.busy = None;
            return;
        };
        match error.raw_os_error() {
            // Out of memory or room for completions, which completions give back.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                if self.in_kernel() > 0
                    || self.busy.get_or_insert_with(Instant::now).elapsed() < BUSY_DEADLINE =>
            {
                if self.gather(PAUSE).is_err() {
                    std::thread::sleep(PAUSE);
                }
            }
            errno => self.die(errno.unwrap_or(libc::EIO)),
        }
    }

    /// Enters the kernel once: to hand over what is in the submission queue, to have it work on completions, and to wait for one
    /// of them if `patience` is not zero; `None` has no end.
    pub(super) fn turn(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let submitter = self.uring.submitter();
        let result = match patience {
            None => submitter.submit_and_wait(1),
            Some(Duration::ZERO) => submitter.submit(),
            Some(patience) => {
                let patience = types::Timespec::from(patience);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&patience))
            }
        };
        self.note_taken();
        over(result)
    }

    /// Has the kernel work on completions, and waits for one if `patience` is not zero. Hands nothing over.
    fn gather(&mut self, patience: Duration) -> io::Result<()> {
        let want = u32::from(!patience.is_zero());
        let patience = types::Timespec::from(patience);
        let arguments = types::SubmitArgs::new().timespec(&patience);
        let submitter = self.uring.submitter();
        // SAFETY: the arguments are what the flags say they are and outlive the call; nothing is submitted.
        let result = unsafe { submitter.enter(0, want, GET_EVENTS, Some(&arguments)) };
        over(result)
    }

    pub(super) fn die(&mut self, errno: i32) {
        let error = io::Error::from_raw_os_error(errno);
        tracing::error!(path = %self.image.path.display(), %error, "io_uring failed");
        self.dead = Some(errno);
    }

    /// The next of what has completed.
    pub(super) fn completed(&mut self) -> Option<Completed> {
        loop {
            let entry = self.uring.completion().next()?;
            let user_data = entry.user_data();
            if user_data == WATCH {
                let last = !cqueue::more(entry.flags());
                return Some(Completed::Watch(entry.result(), last));
            }
            if let Some(task) = task_of(user_data) {
                self.submitted -= 1;
                return Some(Completed::Task(task, entry.result()));
            }
        }
    }
}

fn task_of(user_data: u64) -> Option<usize> {
    (user_data & NO_TASK == 0).then(|| user_data.try_into().ok())?
}

impl AsRawFd for Ring {
    /// Readable while there are completions, unless the user waits in the ring.
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}
