//! The engine on io_uring: one ring per queue, used by the queue's worker alone.
//!
//! The ring's own descriptor is the completion event: it is readable while there are completions, so nothing has to
//! be reset. At most as many operations are in the kernel as the completion queue holds; the others wait here.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::Image;
use super::memory::Bounces;
use super::task::{Progress, Step, Task};
use crate::{Completion, DiskQueue, IoError, Request};

/// Bounce buffers of one queue: 4 MiB of them.
const MAX_BOUNCES: usize = 16;

/// User data of operations that stand for no task.
const NO_TASK: u64 = u64::MAX;

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

/// A queue served by a ring.
pub(super) struct UringQueue {
    ring: IoUring,
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
    /// What is in the submission queue and not yet the kernel's, in order: indices of tasks, or [`NO_TASK`].
    pushed: VecDeque<u64>,
    /// Tasks in the submission queue or in the kernel.
    submitted: usize,
    /// Answered without the kernel, or after it failed us.
    done: Vec<Completion>,
    /// The kernel no longer takes anything from us, for this reason.
    dead: Option<i32>,
}

impl UringQueue {
    pub(super) fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth).clamp(4, 1024).next_power_of_two();
        let ring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun()
            .build(entries)
            // Linux before 5.19.
            .or_else(|_| IoUring::builder().dontfork().build(entries))?;
        Ok(Self {
            ring,
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
            dead: None,
        })
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
        let limit = self.ring.params().cq_entries() as usize - 1;
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
            let waiting = self.ring.submission().len();
            // The kernel takes them in order.
            self.pushed
                .drain(..self.pushed.len().saturating_sub(waiting));
            let Err(error) = result else {
                continue;
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Out of memory or room for completions: completions in flight will bring us back here.
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) if self.submitted > waiting => {
                    return false;
                }
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                    if since.get_or_insert_with(Instant::now).elapsed() < BUSY_DEADLINE =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                errno => {
                    tracing::error!(path = %self.image.path.display(), %error, "io_uring failed");
                    self.dead = Some(errno.unwrap_or(libc::EIO));
                    return false;
                }
            }
        }
        let limit = self.ring.params().cq_entries() as usize - 1;
        !self.ready.is_empty() && self.submitted < limit
    }

    /// Answers what will never reach the kernel, for `dead` is for good. What is already there stays, and completes.
    fn bury(&mut self, errno: i32) {
        let mut lost: Vec<usize> = self.ready.drain(..).chain(self.starved.drain(..)).collect();
        for user_data in self.pushed.drain(..).filter(|&data| data != NO_TASK) {
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
            return; // A wake-up or a cancellation.
        };
        self.submitted -= 1;
        match task.finish(result, &self.image) {
            Progress::Done(result) => self.answer(index, result),
            Progress::Again => self.ready.push_back(index),
        }
    }

    /// Submits something that stands for no task. If there is no room there are others in flight.
    fn push_extra(&mut self, entry: &squeue::Entry) {
        if self.dead.is_some() {
            return;
        }
        // SAFETY: the entry refers to no memory.
        let pushed = unsafe { self.ring.submission().push(entry) };
        if pushed.is_ok() {
            self.pushed.push_back(NO_TASK);
        }
    }

    fn collect(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            self.completed(entry.user_data(), entry.result());
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
        if !self.done.is_empty() {
            // Makes the ring readable.
            self.push_extra(&opcode::Nop::new().build().user_data(NO_TASK));
        }
        self.flush();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.ring)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.collect();
        if !self.ready.is_empty() || !self.pushed.is_empty() {
            self.flush();
        }
        completions.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len() + self.done.len()
    }

    fn drain(&mut self, deadline: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let end = Instant::now() + deadline;
        self.kick();
        loop {
            self.reap(completions);
            if self.in_flight() == 0 {
                return Ok(());
            }
            crate::fd::wait_readable(self.completion_event(), end)?;
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        if self.submitted == 0 {
            return;
        }
        // Not everything can be cancelled; nothing may be freed that the kernel still has.
        let any = types::CancelBuilder::any();
        self.push_extra(&opcode::AsyncCancel2::new(any).build().user_data(NO_TASK));
        let _ = self.drain(DROP_DEADLINE, &mut Vec::new());
        if self.submitted > 0 {
            tracing::error!(path = %self.image.path.display(), requests = self.submitted,
                "the host still works on requests of a closed disk; their memory is left to it");
            std::mem::forget(std::mem::take(&mut self.tasks));
        }
    }
}
