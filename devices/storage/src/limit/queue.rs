//! A queue whose requests wait for their turn.
//!
//! Runs on its user's thread. The timer is one of the descriptors that wake the user, so that nobody looks for the time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::Shared;
use crate::fd::{self, Joined};
use crate::{Completion, DiskQueue, IoError, Request};

/// How long what waits is left alone at most: the limits may have changed.
const LOOK: Duration = Duration::from_millis(100);

/// How short a wait is made a timer of.
const MOMENT: Duration = Duration::from_micros(100);

/// The shortest time that a timer takes: at once.
const NOW: Duration = Duration::from_nanos(1);

pub(super) struct LimitQueue {
    shared: Arc<Shared>,
    queue: Box<dyn DiskQueue>,
    timer: TimerFd,
    /// The timer was set and not reset.
    armed: bool,
    /// The timer and the queue's events.
    events: Joined,
    /// What the user has us watch, if it waits by `wait`.
    watched: Option<OwnedFd>,
    /// Requests before their turn, and since when.
    waiting: VecDeque<(Request, Instant)>,
    /// Answered without the disk.
    done: Vec<Completion>,
    abandoned: bool,
}

impl LimitQueue {
    pub(super) fn new(shared: Arc<Shared>, queue: Box<dyn DiskQueue>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let events = Joined::new()?;
        events.add(fd::borrow(&timer))?;
        events.add(queue.completion_event())?;
        Ok(Self {
            shared,
            queue,
            timer,
            armed: false,
            events,
            watched: None,
            waiting: VecDeque::new(),
            done: Vec::new(),
            abandoned: false,
        })
    }

    /// Has the timer wake the user.
    fn arm(&mut self, wait: Duration) {
        match self.timer.reset(wait, None) {
            Ok(()) => self.armed = true,
            // It takes any time that is not zero.
            Err(error) => tracing::error!(%error, "a disk's limit has no timer"),
        }
    }

    /// Hands over what waits and whose turn it is, all of it by `force`. Whether there was something.
    fn advance(&mut self, force: bool) -> bool {
        let mut any = false;
        while let Some((request, since)) = self.waiting.pop_front() {
            if let Err(wait) = self.shared.admit(&request.operation, force) {
                self.waiting.push_front((request, since));
                self.arm(wait.clamp(MOMENT, LOOK));
                break;
            }
            self.shared.note(since.elapsed());
            self.queue.submit(request);
            any = true;
        }
        any
    }

    fn look(&mut self) {
        if self.armed {
            // Setting it resets it, too.
            let _ = self.timer.clear();
            self.armed = false;
        }
        if self.advance(false) {
            self.queue.kick();
        }
    }
}

impl DiskQueue for LimitQueue {
    fn submit(&mut self, request: Request) {
        if self.abandoned {
            let result = Err(IoError::Os(libc::ECANCELED));
            let tag = request.tag;
            return self.done.push(Completion { tag, result });
        }
        let may_pass = self.waiting.is_empty()
            && (!self.shared.is_active() || self.shared.admit(&request.operation, false).is_ok());
        if may_pass {
            self.queue.submit(request);
        } else {
            self.waiting.push_back((request, Instant::now()));
        }
    }

    fn kick(&mut self) {
        if !self.done.is_empty() {
            self.arm(NOW);
        } else if !self.waiting.is_empty() && !self.armed {
            self.look();
        }
        self.queue.kick();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.queue.reap(completions);
        if self.armed || !self.waiting.is_empty() {
            self.look();
        }
        completions.append(&mut self.done);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let watched = fd.try_clone_to_owned()?;
        self.events.remove(self.queue.completion_event());
        let waits = self.queue.watch(fd)?;
        let event = match waits {
            true => self.queue.notice(),
            false => Some(self.queue.completion_event()),
        };
        if let Some(event) = event {
            self.events.add(event)?;
        }
        self.watched = waits.then_some(watched);
        Ok(waits)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        if self.queue.in_flight() > 0 {
            return self.queue.wait(timeout);
        }
        self.kick();
        let watched = self.watched.as_ref().map(AsFd::as_fd);
        let events = self.events.as_fd();
        fd::wait_either(watched.unwrap_or(events), events, timeout)
    }

    fn notice(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        for (request, _) in self.waiting.drain(..) {
            let (tag, result) = (request.tag, Err(IoError::Os(libc::ECANCELED)));
            self.done.push(Completion { tag, result });
        }
        if !self.done.is_empty() {
            self.arm(NOW);
        }
        self.queue.abandon();
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight() + self.waiting.len() + self.done.len()
    }

    fn await_completion(&mut self, end: Instant) -> io::Result<()> {
        // A drain is not to wait for the limit's sake.
        if self.advance(true) {
            self.queue.kick();
        }
        if self.queue.in_flight() == 0 {
            return Ok(());
        }
        self.queue.await_completion(end)
    }
}
