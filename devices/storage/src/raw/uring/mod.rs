//! The engine on io_uring: one ring per queue, used by the queue's worker alone.
//!
//! The ring's own descriptor is the completion event: it is readable while there are completions, so nothing has to
//! be reset. A user may wait in the ring instead, for a descriptor of its own too: one system call then hands requests to the
//! kernel and waits for whatever comes next. At most as many operations are in the kernel as the completion queue holds; the others wait here.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::event::PollFlags;

use super::Image;
use super::memory::Bounces;
use super::task::{Progress, Step, Task};
use crate::{Completion, DiskQueue, IoError, Request};

/// Bounce buffers of one queue: 4 MiB of them.
const MAX_BOUNCES: usize = 16;

/// Set in the user data of what stands for no task.
const NO_TASK: u64 = 1 << 63;

/// User data of what nobody waits for.
const NOBODY: u64 = u64::MAX;

/// User data of the operation that polls what the user has us watch.
const WATCH: u64 = NO_TASK | 1;

/// Places in the completion queue for what stands for no task.
const SPARE: usize = 8;

/// How long a wait lasts at most that the user's descriptor may not end.
const MOMENT: Duration = Duration::from_millis(10);

/// How long to leave a kernel alone that lacks memory.
const PAUSE: Duration = Duration::from_millis(1);

/// `IORING_ENTER_GETEVENTS` and `IORING_ENTER_EXT_ARG` (linux/io_uring.h).
const GET_EVENTS: u32 = 1 | 1 << 3;

/// How long the kernel may refuse to take anything, for lack of memory, while nothing is in flight.
const BUSY_DEADLINE: Duration = Duration::from_secs(1);

/// How long dropping a queue waits for its operations before it leaves them to the kernel.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// Whether the host lets us use what the engine needs of io_uring.
///
/// # Errors
/// `Unsupported` when the kernel is too old, otherwise what the kernel said.
pub(super) fn probe() -> io::Result<()> {
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

/// A descriptor of the user's that the ring waits for: polled by one operation, which completes whenever somebody wakes those who poll it, and
/// stays. The kernel may end it; it is then asked for it again.
struct Watch {
    /// Ours: the kernel may be asked for it again.
    fd: OwnedFd,
    /// The kernel has it, or will with what is in the submission queue.
    armed: bool,
    /// It became ready, and that was not told yet.
    woken: bool,
    /// The kernel cannot do it.
    failed: bool,
}

/// A queue served by a ring.
pub(super) struct UringQueue {
    ring: IoUring,
    /// As many requests will be in flight.
    depth: u16,
    /// The user waits by [`wait`](DiskQueue::wait). The kernel then works on completions only when it is entered for them, by the
    /// thread that made the ring: nothing wakes up whoever polls the ring's descriptor.
    waits: bool,
    image: Arc<Image>,
    /// The image's descriptor. It is not registered with the ring: the kernel frees a ring some time after it is closed, and
    /// until then would hold the image and its lock against whoever opens it next.
    file: types::Fd,
    /// By user data. A task stays here from `submit` to its completion, and with it all that the kernel may touch.
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    /// Tasks whose next step is to be submitted.
    ready: VecDeque<usize>,
    /// Tasks that wait for a bounce buffer.
    starved: VecDeque<usize>,
    bounces: Bounces,
    /// The user data of what is in the submission queue and not yet the kernel's, in order.
    pushed: VecDeque<u64>,
    /// Tasks in the submission queue or in the kernel.
    submitted: usize,
    /// Answered without the kernel, or after it failed us.
    done: Vec<Completion>,
    watch: Option<Watch>,
    /// Since when the kernel takes nothing for want of memory, as far as a user who waits in the ring has seen.
    busy: Option<Instant>,
    /// The kernel no longer takes anything from us, for this reason.
    dead: Option<i32>,
}

/// A wait that was interrupted, or that took its time, is over.
fn over(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => Ok(()),
        other => other.map(drop),
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

impl UringQueue {
    pub(super) fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        Ok(Self {
            ring: make_ring(depth)?,
            depth,
            waits: false,
            file: types::Fd(image.file.as_raw_fd()),
            image,
            tasks: Vec::with_capacity(usize::from(depth)),
            free: Vec::new(),
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            bounces: Bounces::new(MAX_BOUNCES),
            pushed: VecDeque::new(),
            submitted: 0,
            done: Vec::new(),
            watch: None,
            busy: None,
            dead: None,
        })
    }

    /// How many tasks the kernel may have: for each there is a place in the completion queue.
    fn limit(&self) -> usize {
        self.ring.params().cq_entries() as usize - SPARE
    }

    /// Whether the submission queue is to be filled again.
    fn has_more(&self) -> bool {
        !self.ready.is_empty() && self.submitted < self.limit()
    }

    /// Puts steps of ready tasks into the submission queue, and hands it to the kernel.
    fn flush(&mut self) {
        while self.dead.is_none() {
            self.fill();
            if !self.enter() {
                break;
            }
        }
        if let Some(errno) = self.dead {
            self.bury(errno);
        }
    }

    /// Fills the submission queue as far as the completion queue allows.
    fn fill(&mut self) {
        let limit = self.limit();
        while self.submitted < limit && !self.ring.submission().is_full() {
            let Some(index) = self.ready.pop_front() else {
                return;
            };
            let Some(task) = self.tasks.get_mut(index).and_then(Option::as_mut) else {
                continue;
            };
            let Some(step) = task.prepare(&self.image, &mut self.bounces) else {
                self.starved.push_back(index);
                continue;
            };
            let mut entry = entry(step, self.file).user_data(index as u64);
            if task.is_retry() {
                // The kernel said that it would have to wait: let it wait on a thread of its own.
                entry = entry.flags(squeue::Flags::ASYNC);
            }
            // SAFETY: the entry's segments and buffers belong to the task, which stays in `tasks` until its completion,
            // or for good if the queue is dropped before.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                self.ready.push_front(index);
                return;
            }
            self.pushed.push_back(index as u64);
            self.submitted += 1;
        }
    }

    /// Hands the submission queue to the kernel. Returns whether there is more to fill it with.
    fn enter(&mut self) -> bool {
        let mut since = None;
        while !self.ring.submission().is_empty() {
            let result = self.ring.submit();
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
        self.has_more()
    }

    /// Takes note of what the kernel has taken from the submission queue.
    fn note_taken(&mut self) {
        let waiting = self.ring.submission().len();
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

    /// Answers what will never reach the kernel, for `dead` is for good. What is already there stays, and completes.
    fn bury(&mut self, errno: i32) {
        let mut lost: Vec<usize> = self.ready.drain(..).chain(self.starved.drain(..)).collect();
        for user_data in self.pushed.drain(..).filter(|data| data & NO_TASK == 0) {
            self.submitted -= 1;
            lost.extend(usize::try_from(user_data));
        }
        for index in lost {
            self.answer(index, Err(IoError::Os(errno)));
        }
    }

    fn answer(&mut self, index: usize, result: Result<(), IoError>) {
        let Some(task) = self.tasks.get_mut(index).and_then(Option::take) else {
            return;
        };
        let tag = task.tag;
        self.done.push(Completion { tag, result });
        self.free.push(index);
        task.release(&mut self.bounces);
        // A bounce buffer may have become free.
        self.ready.extend(self.starved.pop_front());
    }

    fn completed(&mut self, user_data: u64, result: i32) {
        let Ok(index) = usize::try_from(user_data) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        self.submitted -= 1;
        match task.finish(result, &self.image) {
            Progress::Done(result) => self.answer(index, result),
            Progress::Again => self.ready.push_back(index),
        }
    }

    /// Puts something that stands for no task into the submission queue. Whether there was room: if not, there are others in flight.
    fn push_extra(&mut self, entry: squeue::Entry, user_data: u64) -> bool {
        let entry = entry.user_data(user_data);
        // SAFETY: the entry refers to no memory.
        let pushed = self.dead.is_none() && unsafe { self.ring.submission().push(&entry) }.is_ok();
        if pushed {
            self.pushed.push_back(user_data);
        }
        pushed
    }

    /// Takes a ring to wait with, before the first request. Whether the kernel has one.
    fn turn_into_waiting(&mut self) -> bool {
        if self.waits || self.dead.is_some() || self.in_flight() > 0 {
            return false;
        }
        match make_waiting_ring(self.depth) {
            Ok(ring) => {
                self.ring = ring;
                self.waits = true;
                true
            }
            Err(error) => {
                tracing::debug!(path = %self.image.path.display(), %error, "no ring to wait with");
                false
            }
        }
    }

    /// Asks the kernel for what it is to watch, unless it has that already. Whether a wait ends when there is something.
    fn arm(&mut self) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        if watch.armed || watch.failed {
            return watch.armed;
        }
        let fd = types::Fd(watch.fd.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits())).multi(true);
        let armed = self.push_extra(poll.build(), WATCH);
        if let Some(watch) = &mut self.watch {
            watch.armed = armed;
        }
        armed
    }

    /// What the kernel says of the watch: that it is ready, and whether that was the last word.
    fn hear(&mut self, result: i32, last: bool) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        watch.armed &= !last;
        match result {
            0.. => watch.woken = true,
            // It is asked for again.
            _ if -result == libc::ECANCELED => {}
            errno => {
                watch.failed = true;
                let error = io::Error::from_raw_os_error(-errno);
                tracing::warn!(path = %self.image.path.display(), %error, "io_uring cannot poll");
            }
        }
    }

    /// Enters the kernel once for a user who waits in the ring: hands over what there is, and waits for something to complete.
    fn go_round(&mut self, patience: Option<Duration>) {
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

    /// Has the kernel work on completions, and waits for one if `patience` is not zero. Hands nothing over.
    fn gather(&mut self, patience: Duration) -> io::Result<()> {
        let want = u32::from(!patience.is_zero());
        let patience = types::Timespec::from(patience);
        let arguments = types::SubmitArgs::new().timespec(&patience);
        let submitter = self.ring.submitter();
        // SAFETY: the arguments are what the flags say they are and outlive the call; nothing is submitted.
        let result = unsafe { submitter.enter(0, want, GET_EVENTS, Some(&arguments)) };
        over(result)
    }

    fn die(&mut self, errno: i32) {
        let error = io::Error::from_raw_os_error(errno);
        tracing::error!(path = %self.image.path.display(), %error, "io_uring failed");
        self.dead = Some(errno);
    }

    /// Enters the kernel once: to hand over what is in the submission queue, to have it work on completions, and to wait for one
    /// of them if `patience` is not zero; `None` has no end.
    fn turn(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
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

    fn collect(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            let user_data = entry.user_data();
            if user_data & NO_TASK == 0 {
                self.completed(user_data, entry.result());
            } else if user_data == WATCH {
                self.hear(entry.result(), !cqueue::more(entry.flags()));
            }
        }
    }
}

fn entry(step: Step, file: types::Fd) -> squeue::Entry {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    match step {
        Step::Read(segments, n, offset) => opcode::Readv::new(file, segments, count(n))
            .offset(offset)
            .build(),
        Step::Write(segments, n, offset) => opcode::Writev::new(file, segments, count(n))
            .offset(offset)
            .build(),
        Step::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Step::Allocate(mode, offset, length) => opcode::Fallocate::new(file, length)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}

impl DiskQueue for UringQueue {
    fn submit(&mut self, request: Request) {
        let tag = request.tag;
        match Task::new(request, &self.image) {
            Err(result) => self.done.push(Completion { tag, result }),
            Ok(task) => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.tasks.push(None);
                    self.tasks.len() - 1
                });
                self.tasks[index] = Some(task);
                self.ready.push_back(index);
            }
        }
    }

    fn kick(&mut self) {
        if self.waits && self.dead.is_none() {
            // The next wait hands it over.
            self.fill();
            if !self.has_more() {
                return;
            }
        } else if !self.done.is_empty() {
            // Makes the ring readable.
            self.push_extra(opcode::Nop::new().build(), NOBODY);
        }
        self.flush();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.ring)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.collect();
        let all_handed_over = self.ready.is_empty() && self.pushed.is_empty();
        if self.dead.is_some() || !self.waits && !all_handed_over {
            self.flush();
        }
        completions.append(&mut self.done);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let watch = Watch {
            fd: fd.try_clone_to_owned()?,
            armed: false,
            woken: false,
            failed: false,
        };
        if !self.turn_into_waiting() {
            return Ok(false);
        }
        self.watch = Some(watch);
        Ok(true)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let mut timeout = timeout;
        if self.dead.is_none() {
            if !self.arm() {
                timeout = Some(timeout.map_or(MOMENT, |timeout| timeout.min(MOMENT)));
            }
            self.fill();
        }
        let woken = self.watch.as_ref().is_some_and(|watch| watch.woken);
        if woken || !self.done.is_empty() || self.has_more() {
            timeout = Some(Duration::ZERO);
        }
        let ring = self.ring.submission();
        let idle = ring.is_empty() && !ring.taskrun() && !ring.cq_overflow();
        drop(ring);
        if !(idle && timeout == Some(Duration::ZERO)) {
            self.go_round(timeout);
        }
        self.collect();
        let told = self
            .watch
            .as_mut()
            .is_none_or(|watch| std::mem::take(&mut watch.woken) || !watch.armed);
        // Where the kernel does not watch it, the user has to look; a dead ring may never have handed the watch over.
        told || self.dead.is_some()
    }

    fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len() + self.done.len()
    }

    fn await_completion(&mut self, end: Instant) -> io::Result<()> {
        if !self.waits {
            return crate::fd::wait_readable(self.completion_event(), end);
        }
        if self.dead.is_none() {
            self.fill();
        }
        self.go_round(Some(end.saturating_duration_since(Instant::now())));
        Ok(())
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        if self.submitted == 0 {
            return;
        }
        // Not everything can be cancelled; nothing may be freed that the kernel still has.
        let any = types::CancelBuilder::any();
        self.push_extra(opcode::AsyncCancel2::new(any).build(), NOBODY);
        let _ = self.drain(DROP_DEADLINE, &mut Vec::new());
        if self.submitted > 0 {
            tracing::error!(path = %self.image.path.display(), requests = self.submitted,
                "the host still works on requests of a closed disk; their memory is left to it");
            std::mem::forget(std::mem::take(&mut self.tasks));
        }
    }
}

#[cfg(test)]
mod tests;
