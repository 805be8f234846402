//! A queue served by threads: for backends whose way to do I/O blocks.
//!
//! Threads are started when there is work for them, up to [`MAX_THREADS`] a queue, and end with the queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{Completion, DiskQueue, IoError, Request};

/// What the threads work on: an open image, shared by the queues of a disk.
pub(crate) trait Work: Send + Sync + 'static {
    /// A request that was taken over.
    type Task: Send + 'static;
    /// Memory that a thread uses for one task after the other.
    type Scratch;

    /// What to call it in the log.
    fn path(&self) -> &Path;

    /// The memory of a new thread.
    fn scratch() -> Self::Scratch;

    /// Takes a request over, or answers it at once: out of range, refused, or nothing to do. Never blocks.
    fn accept(&self, request: Request) -> Result<Self::Task, Result<(), IoError>>;

    /// Does what was asked for, and lets go of the request's memory: whoever gets the answer may take it to be free.
    fn carry_out(&self, task: Self::Task, scratch: &mut Self::Scratch) -> Result<(), IoError>;
}

/// The most threads of one queue.
const MAX_THREADS: usize = 4;

/// Bytes of a thread's stack. Below 2 MiB: one that chance aligns to that would become a huge page.
const STACK_SIZE: usize = 1 << 20;

/// How long dropping a queue waits for system calls to end before it leaves them alone.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

struct State<T> {
    tasks: VecDeque<(u64, T)>,
    done: Vec<Completion>,
    threads: usize,
    idle: usize,
    closing: bool,
}

struct Pool<W: Work> {
    state: Mutex<State<W::Task>>,
    /// Signalled when there is a task, and when the queue closes.
    work: Condvar,
    /// Signalled when a thread has ended.
    ended: Condvar,
    event: EventFd,
    image: Arc<W>,
}

impl<W: Work> Pool<W> {
    fn lock(&self) -> MutexGuard<'_, State<W::Task>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, state: &mut State<W::Task>, tag: u64, result: Result<(), IoError>) {
        if state.done.is_empty() {
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
        state.done.push(Completion { tag, result });
    }
}

/// A queue served by threads.
pub(crate) struct ThreadQueue<W: Work> {
    pool: Arc<Pool<W>>,
    staged: Vec<(u64, W::Task)>,
    in_flight: usize,
    abandoned: bool,
}

const CANCELED: Result<(), IoError> = Err(IoError::Os(libc::ECANCELED));

impl<W: Work> ThreadQueue<W> {
    /// A queue of `image` on which up to `depth` requests will be in flight.
    ///
    /// # Errors
    /// When the host gives no descriptor or no thread.
    pub(crate) fn new(image: Arc<W>, depth: u16) -> io::Result<Self> {
        let pool = Arc::new(Pool {
            state: Mutex::new(State {
                tasks: VecDeque::new(),
                done: Vec::new(),
                threads: 0,
                idle: 0,
                closing: false,
            }),
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
            abandoned: false,
        })
    }
}

fn spawn<W: Work>(pool: &Arc<Pool<W>>, state: &mut State<W::Task>) -> io::Result<()> {
    let theirs = Arc::clone(pool);
    std::thread::Builder::new()
        .name("disk-io".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(move || work(&theirs))?;
    state.threads += 1;
    Ok(())
}

/// A thread: takes one task after the other until the queue closes.
fn work<W: Work>(pool: &Pool<W>) {
    let mut scratch = W::scratch();
    let mut state = pool.lock();
    while !state.closing {
        let Some((tag, task)) = state.tasks.pop_front() else {
            state.idle += 1;
            state = pool
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        drop(state);
        let result = pool.image.carry_out(task, &mut scratch);
        state = pool.lock();
        pool.answer(&mut state, tag, result);
    }
    state.threads -= 1;
    pool.ended.notify_all();
}

impl<W: Work> DiskQueue for ThreadQueue<W> {
    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        let tag = request.tag;
        if self.abandoned {
            return self.pool.answer(&mut self.pool.lock(), tag, CANCELED);
        }
        match self.pool.image.accept(request) {
            Ok(task) => self.staged.push((tag, task)),
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

    fn abandon(&mut self) {
        self.abandoned = true;
        let mut state = self.pool.lock();
        // No thread has begun these.
        let waiting = std::mem::take(&mut state.tasks);
        for (tag, _) in waiting.into_iter().chain(self.staged.drain(..)) {
            self.pool.answer(&mut state, tag, CANCELED);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl<W: Work> Drop for ThreadQueue<W> {
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
            tracing::error!(path = %self.pool.image.path().display(), threads = state.threads,
                "the host still works on requests of a closed disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::Operation;

    /// Work that is done when the test says so.
    struct Slow {
        begun: Mutex<Sender<()>>,
        go_on: Mutex<Receiver<()>>,
    }

    impl Work for Slow {
        type Task = ();
        type Scratch = ();

        fn path(&self) -> &Path {
            Path::new("slow")
        }

        fn scratch() {}

        fn accept(&self, _request: Request) -> Result<(), Result<(), IoError>> {
            Ok(())
        }

        fn carry_out(&self, _task: (), _scratch: &mut ()) -> Result<(), IoError> {
            self.begun.lock().unwrap().send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }

    #[test]
    fn what_no_thread_has_begun_when_it_is_abandoned_is_never_done() {
        let (begun, has_begun) = channel();
        let (say, go_on) = channel();
        let work = Arc::new(Slow {
            begun: Mutex::new(begun),
            go_on: Mutex::new(go_on),
        });
        let mut queue = ThreadQueue::new(work, 16).unwrap();
        let operation = Operation::Flush;
        let submit = |queue: &mut ThreadQueue<Slow>, tag| {
            let operation = operation.share();
            queue.submit(Request { tag, operation });
        };
        for tag in 0..8 {
            submit(&mut queue, tag);
        }
        queue.kick();
        for _ in 0..MAX_THREADS {
            has_begun.recv().unwrap();
        }
        submit(&mut queue, 8);
        queue.abandon();
        submit(&mut queue, 9);
        queue.kick();
        let mut done = Vec::new();
        queue.reap(&mut done);
        let mut canceled: Vec<_> = done.iter().map(|c| (c.tag, c.result)).collect();
        canceled.sort_by_key(|(tag, _)| *tag);
        let wanted: Vec<_> = (4..10).map(|tag| (tag, CANCELED)).collect();
        assert_eq!(canceled, wanted);
        for _ in 0..MAX_THREADS {
            say.send(()).unwrap();
        }
        let mut rest = Vec::new();
        queue.drain(Duration::from_secs(20), &mut rest).unwrap();
        assert_eq!(rest.len(), MAX_THREADS);
        assert!(rest.iter().all(|completion| completion.result.is_ok()));
        assert!(has_begun.try_recv().is_err(), "nothing more was begun");
    }
}
