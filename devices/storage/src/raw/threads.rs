//! The engine for hosts without io_uring: a few threads per queue that block in system calls.
//!
//! Threads are started when there is work for them, up to [`MAX_THREADS`], and end with the queue.
#![expect(unsafe_code, reason = "preadv and pwritev on raw segments")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Image;
use super::memory::Bounces;
use super::task::{Progress, Step, Task};
use crate::{Completion, DiskQueue, IoError, Request};

/// The most threads of one queue.
const MAX_THREADS: usize = 4;

/// Bytes of a thread's stack. Below 2 MiB: one that chance aligns to that would become a huge page.
const STACK_SIZE: usize = 1 << 20;

/// How long dropping a queue waits for system calls to end before it leaves them alone.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    tasks: VecDeque<Task>,
    done: Vec<Completion>,
    threads: usize,
    idle: usize,
    closing: bool,
}

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
    /// Signalled when there is a task, and when the queue closes.
    work: Condvar,
    /// Signalled when a thread has ended.
    ended: Condvar,
    event: EventFd,
    image: Arc<Image>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, state: &mut State, tag: u64, result: Result<(), IoError>) {
        if state.done.is_empty() {
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
        state.done.push(Completion { tag, result });
    }
}

/// A queue served by threads.
#[derive(Debug)]
pub(super) struct ThreadQueue {
    pool: Arc<Pool>,
    staged: Vec<Task>,
    in_flight: usize,
}

impl ThreadQueue {
    pub(super) fn new(image: Arc<Image>, depth: u16) -> io::Result<Self> {
        let pool = Arc::new(Pool {
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            ended: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            image,
        });
        // The first thread now: a host that gives none says so here.
        spawn(&pool, &mut pool.lock())?;
        Ok(Self {
            pool,
            staged: Vec::with_capacity(usize::from(depth)),
            in_flight: 0,
        })
    }
}

fn spawn(pool: &Arc<Pool>, state: &mut State) -> io::Result<()> {
    let theirs = Arc::clone(pool);
    std::thread::Builder::new()
        .name("disk-io".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(move || work(&theirs))?;
    state.threads += 1;
    Ok(())
}

/// A thread: takes one task after the other until the queue closes.
fn work(pool: &Pool) {
    let mut bounces = Bounces::new(1);
    let mut state = pool.lock();
    while !state.closing {
        let Some(mut task) = state.tasks.pop_front() else {
            state.idle += 1;
            state = pool
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        drop(state);
        let result = carry_out(&mut task, &pool.image, &mut bounces);
        let tag = task.tag;
        // Before the answer: whoever gets it may take the memory to be free.
        task.release(&mut bounces);
        state = pool.lock();
        pool.answer(&mut state, tag, result);
    }
    state.threads -= 1;
    pool.ended.notify_all();
}

fn carry_out(task: &mut Task, image: &Image, bounces: &mut Bounces) -> Result<(), IoError> {
    loop {
        let Some(step) = task.prepare(image, bounces) else {
            // A thread has one task and one bounce buffer.
            return Err(IoError::Os(libc::ENOMEM));
        };
        if let Progress::Done(result) = task.finish(call(step, image), image) {
            return result;
        }
        if task.is_retry() {
            std::thread::yield_now();
        }
    }
}

/// Makes the system call; the result is as io_uring gives it.
fn call(step: Step, image: &Image) -> i32 {
    let fd = image.file.as_raw_fd();
    // Offsets were checked against the disk's size, which is a file offset and so fits.
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let result = match step {
        // SAFETY: the task keeps `segments` of `n` valid segments alive until the step is finished.
        Step::Read(segments, n, offset) => unsafe {
            libc::preadv(fd, segments, count(n), signed(offset))
        },
        // SAFETY: as above.
        Step::Write(segments, n, offset) => unsafe {
            libc::pwritev(fd, segments, count(n), signed(offset))
        },
        // SAFETY: no memory is involved.
        Step::Sync => unsafe { libc::fdatasync(fd) as isize },
        // SAFETY: no memory is involved.
        Step::Allocate(mode, offset, length) => unsafe {
            libc::fallocate(fd, mode, signed(offset), signed(length)) as isize
        },
    };
    if result < 0 {
        -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

impl DiskQueue for ThreadQueue {
    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        let tag = request.tag;
        match Task::new(request, &self.pool.image) {
            Ok(task) => self.staged.push(task),
            Err(result) => self.pool.answer(&mut self.pool.lock(), tag, result),
        }
    }

    fn kick(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut state = self.pool.lock();
        state.tasks.extend(self.staged.drain(..));
        while state.tasks.len() > state.idle && state.threads < MAX_THREADS {
            if let Err(error) = spawn(&self.pool, &mut state) {
                // The threads there are will do.
                tracing::debug!(%error, "no further disk thread");
                break;
            }
        }
        drop(state);
        self.pool.work.notify_all();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.pool.event)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut state = self.pool.lock();
        if !state.done.is_empty() {
            // Written when the list got its first entry, so it is reset where the list is emptied.
            let _ = self.pool.event.read();
            self.in_flight -= state.done.len();
            completions.append(&mut state.done);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for ThreadQueue {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.closing = true;
        state.tasks.clear();
        self.pool.work.notify_all();
        let waited = self
            .pool
            .ended
            .wait_timeout_while(state, DROP_DEADLINE, |state| state.threads > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.threads > 0 {
            // They own their tasks, and with them the buffers and the lock on the image, until the kernel lets them go.
            tracing::error!(path = %self.pool.image.path.display(), threads = state.threads,
                "the host still works on requests of a closed disk");
        }
    }
}
