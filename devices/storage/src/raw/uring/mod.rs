//! The engine on io_uring: one ring per queue, used by the queue's worker alone.
//!
//! The ring's own descriptor is the completion event: it is readable while there are completions, so nothing has to
//! be reset. A user may wait in the ring instead, for a descriptor of its own too: one system call then hands requests to the
//! kernel and waits for whatever comes next. At most as many operations are in the kernel as the completion queue holds; the others wait here.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

mod ring;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};

use super::Image;
use super::memory::Bounces;
use super::task::{Progress, Step, Task};
use crate::{Completion, DiskQueue, IoError, Request};
pub(super) use ring::probe;
use ring::{Completed, MOMENT, NOBODY, Ring};
use watch::Watch;

/// Bounce buffers of one queue: 4 MiB of them.
const MAX_BOUNCES: usize = 16;

/// So many requests are handed to the kernel at once, without waiting for the kick: the disk works on them while the user submits more.
const BATCH: usize = 16;

/// How long dropping a queue waits for its operations before it leaves them to the kernel.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// A queue served by a ring.
pub(super) struct UringQueue {
    ring: Ring,
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
    /// Answered without the kernel, or after it failed us.
    done: Vec<Completion>,
    watch: Option<Watch>,
}

impl UringQueue {
    pub(super) fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new(Arc::clone(&image), depth)?,
            file: types::Fd(image.file.as_raw_fd()),
            image,
            tasks: Vec::with_capacity(usize::from(depth)),
            free: Vec::new(),
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            bounces: Bounces::new(MAX_BOUNCES),
            done: Vec::new(),
            watch: None,
        })
    }

    /// Whether the submission queue is to be filled again.
    fn has_more(&self) -> bool {
        !self.ready.is_empty() && self.ring.has_place()
    }

    /// Puts steps of ready tasks into the submission queue, and hands it to the kernel.
    fn flush(&mut self) {
        while self.ring.dead.is_none() {
            self.fill();
            if !self.ring.hand_over() || !self.has_more() {
                break;
            }
        }
        if let Some(errno) = self.ring.dead {
            self.bury(errno);
        }
    }

    /// Fills the submission queue as far as the completion queue allows.
    fn fill(&mut self) {
        while self.ring.has_room() {
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
            let mut entry = entry(step, self.file);
            if task.is_retry() {
                // The kernel said that it would have to wait: let it wait on a thread of its own.
                entry = entry.flags(squeue::Flags::ASYNC);
            }
            // SAFETY: the entry's segments and buffers belong to the task, which stays in `tasks` until its completion,
            // or for good if the queue is dropped before.
            if !unsafe { self.ring.push(entry, index) } {
                self.ready.push_front(index);
                return;
            }
        }
    }

    /// Answers what will never reach the kernel, for `dead` is for good. What is already there stays, and completes.
    fn bury(&mut self, errno: i32) {
        let mut lost: Vec<usize> = self.ready.drain(..).chain(self.starved.drain(..)).collect();
        lost.extend(self.ring.take_back());
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

    fn completed(&mut self, index: usize, result: i32) {
        let Some(task) = self.tasks.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        match task.finish(result, &self.image) {
            Progress::Done(result) => self.answer(index, result),
            Progress::Again => self.ready.push_back(index),
        }
    }

    fn collect(&mut self) {
        while let Some(completed) = self.ring.completed() {
            match completed {
                Completed::Task(index, result) => self.completed(index, result),
                Completed::Watch(result, last) => {
                    if let Some(watch) = &mut self.watch {
                        watch.hear(result, last, &self.image.path);
                    }
                }
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
                if self.ready.len() >= BATCH {
                    self.flush();
                }
            }
        }
    }

    fn kick(&mut self) {
        if self.ring.waits && self.ring.dead.is_none() {
            // The next wait hands it over.
            self.fill();
            if !self.has_more() {
                return;
            }
        } else if !self.done.is_empty() {
            // Makes the ring readable.
            self.ring.push_extra(opcode::Nop::new().build(), NOBODY);
        }
        self.flush();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.ring)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.collect();
        let all_handed_over = self.ready.is_empty() && self.ring.pushed.is_empty();
        if self.ring.dead.is_some() || !self.ring.waits && !all_handed_over {
            self.flush();
        }
        completions.append(&mut self.done);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let watch = Watch::new(fd)?;
        if self.in_flight() > 0 || !self.ring.turn_into_waiting() {
            return Ok(false);
        }
        self.watch = Some(watch);
        Ok(true)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let mut timeout = timeout;
        if self.ring.dead.is_none() {
            let armed = self.watch.as_mut();
            if !armed.is_some_and(|watch| watch.arm(&mut self.ring)) {
                timeout = Some(timeout.map_or(MOMENT, |timeout| timeout.min(MOMENT)));
            }
            self.fill();
        }
        let woken = self.watch.as_ref().is_some_and(Watch::is_woken);
        if woken || !self.done.is_empty() || self.has_more() {
            timeout = Some(Duration::ZERO);
        }
        if timeout != Some(Duration::ZERO) || !self.ring.is_idle() {
            self.ring.go_round(timeout);
        }
        self.collect();
        let told = self.watch.as_mut().is_none_or(Watch::tell);
        // A dead ring may never have handed the watch over.
        told || self.ring.dead.is_some()
    }

    fn in_flight(&self) -> usize {
        self.tasks.len() - self.free.len() + self.done.len()
    }

    fn await_completion(&mut self, end: Instant) -> io::Result<()> {
        if !self.ring.waits {
            return crate::fd::wait_readable(self.completion_event(), end);
        }
        if self.ring.dead.is_none() {
            self.fill();
        }
        self.ring
            .go_round(Some(end.saturating_duration_since(Instant::now())));
        Ok(())
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        if self.ring.submitted == 0 {
            return;
        }
        // Not everything can be cancelled; nothing may be freed that the kernel still has.
        let any = types::CancelBuilder::any();
        self.ring
            .push_extra(opcode::AsyncCancel2::new(any).build(), NOBODY);
        let _ = self.drain(DROP_DEADLINE, &mut Vec::new());
        if self.ring.submitted > 0 {
            tracing::error!(path = %self.image.path.display(), requests = self.ring.submitted,
                "the host still works on requests of a closed disk; their memory is left to it");
            std::mem::forget(std::mem::take(&mut self.tasks));
        }
    }
}

#[cfg(test)]
mod tests;
