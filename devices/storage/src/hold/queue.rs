//! A queue that keeps a copy of each request until it is answered, so that one that fails can be held and replayed.
//!
//! Runs on its user's thread. While all is well it adds a look at one atomic number and the copy of a list of segments to each request.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::handle::Handle;
use super::state::{Phase, Shared, Verdict};
use crate::fd::{self, Joined};
use crate::{Completion, DiskQueue, IoError, Operation, Request};

/// A request and what it takes to submit it once more.
struct Slot {
    tag: u64,
    operation: Operation,
    /// Its place in the order of submission.
    number: u64,
    /// Its last error, if it was tried.
    failure: Option<IoError>,
    /// It counts as held.
    counted: bool,
}

pub(super) struct HoldQueue {
    pub shared: Arc<Shared>,
    number: u64,
    pub depth: u16,
    /// Written to wake the queue: by whoever changes the phase, and for what was answered without the disk.
    event: EventFd,
    /// The event and the handle's events.
    pub events: Joined,
    /// What the user has us watch, if it waits by `wait`.
    pub watched: Option<OwnedFd>,
    epoch: u64,
    phase: Phase,
    /// The handle is not the one in use any more, but the host still works on requests of ours.
    behind: bool,
    /// `None` while it is closed.
    pub handle: Option<Handle>,
    /// By the tag that the handle's queue knows.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots that are held, in the order of submission.
    held: BTreeMap<u64, usize>,
    submitted: u64,
    /// Answered without the disk.
    done: Vec<Completion>,
    /// The event was written for `done`.
    signalled: bool,
    abandoned: bool,
    /// From the handle's queue; empty between calls.
    reaped: Vec<Completion>,
}

impl HoldQueue {
    pub(super) fn open(shared: Arc<Shared>, depth: u16) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let events = Joined::new()?;
        events.add(fd::borrow(&event))?;
        let number = shared.join(fd::borrow(&event))?;
        let mut this = Self {
            number,
            depth,
            event,
            events,
            watched: None,
            // Not yet seen.
            epoch: shared.epoch.load(Ordering::Acquire).wrapping_sub(1),
            phase: Phase::Open,
            behind: false,
            handle: None,
            slots: Vec::new(),
            free: Vec::new(),
            held: BTreeMap::new(),
            submitted: 0,
            done: Vec::new(),
            signalled: false,
            abandoned: false,
            reaped: Vec::new(),
            shared,
        };
        let phase = this.shared.lock().phase;
        if phase != Phase::Closing {
            this.take_handle()?;
        }
        this.follow();
        Ok(this)
    }

    /// Requests that the handle has.
    fn at_disk(&self) -> usize {
        let handle = self.handle.as_ref();
        handle.map_or(0, |handle| handle.queue.in_flight())
    }

    fn has_news(&self) -> bool {
        self.shared.epoch.load(Ordering::Acquire) != self.epoch
    }

    /// Whether requests go to the disk, as far as this queue has seen and done.
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Trying | Phase::Reporting)
    }

    /// Takes note of the phase, and does what it asks for as far as requests at the disk let it.
    fn follow(&mut self) {
        while self.has_news() {
            let state = self.shared.lock();
            // Whoever rang did so with the lock held.
            let _ = self.event.read();
            self.signalled = false;
            self.epoch = self.shared.epoch.load(Ordering::Acquire);
            self.phase = state.phase;
            drop(state);
            self.act();
        }
        self.signal();
    }

    fn act(&mut self) {
        let idle = self.at_disk() == 0;
        if self.phase == Phase::Closing {
            if idle {
                self.close_handle();
            }
            return;
        }
        if !self.is_open() {
            return;
        }
        self.behind = self.is_behind();
        if self.behind && idle {
            self.close_handle();
            if let Err(error) = self.take_handle() {
                self.cannot_open(&error);
            }
            self.behind = self.is_behind();
        }
        if self.phase == Phase::Reporting {
            self.report_held();
        } else if !self.behind {
            self.replay();
        }
    }

    /// The disk is there, but gives no queue.
    fn cannot_open(&mut self, error: &io::Error) {
        tracing::debug!(%error, "no queue on a disk that was opened anew");
        let generation = self.shared.lock().generation;
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // Counted as a request that is settled at once: what is held here counts already.
        if self.shared.failed(errno, None, generation, true) == Verdict::Report {
            self.report_held();
        }
    }

    /// Hands what is held to the disk, in its order.
    fn replay(&mut self) {
        if self.held.is_empty() || self.handle.is_none() {
            return;
        }
        for index in std::mem::take(&mut self.held).into_values() {
            let slot = self.slots.get(index).and_then(Option::as_ref);
            if let Some(operation) = slot.map(|slot| slot.operation.share()) {
                self.hand_over(index, operation);
            }
        }
        if let Some(handle) = &mut self.handle {
            handle.queue.kick();
        }
    }

    /// Hands a slot's operation to the disk, which is open.
    fn hand_over(&mut self, index: usize, operation: Operation) {
        let Some(handle) = &mut self.handle else {
            return;
        };
        if matches!(operation, Operation::Flush)
            && !handle.repeats_flush
            && !self.shared.may_flush()
        {
            self.answer(index, Err(IoError::Os(libc::EIO)));
            return;
        }
        let tag = index as u64;
        handle.queue.submit(Request { tag, operation });
    }

    /// Answers what is held with its error.
    fn report_held(&mut self) {
        let error = self.present_error();
        for index in std::mem::take(&mut self.held).into_values() {
            let failure = self.slots.get(index).and_then(Option::as_ref);
            let error = failure.and_then(|slot| slot.failure).unwrap_or(error);
            self.answer(index, Err(error));
        }
    }

    fn present_error(&self) -> IoError {
        let status = self.shared.status();
        IoError::Os(status.failure.map_or(libc::EIO, |failure| failure.errno))
    }

    /// Answers a slot without the disk, or after it.
    fn answer(&mut self, index: usize, result: Result<(), IoError>) {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else {
            return;
        };
        self.free.push(index);
        let tag = slot.tag;
        self.done.push(Completion { tag, result });
        if slot.counted {
            let mut state = self.shared.lock();
            self.shared.settle(&mut state, 1);
        }
    }

    /// Wakes the user for what was answered without the disk.
    fn signal(&mut self) {
        if !self.done.is_empty() && !self.signalled {
            let _ = self.event.write(1);
            self.signalled = true;
        }
    }

    /// Holds a slot that was never tried.
    fn hold_untried(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
            slot.counted = true;
            self.held.insert(slot.number, index);
            self.shared.hold();
        }
    }

    /// A result from the disk.
    fn completed(&mut self, completion: &Completion) {
        let Ok(index) = usize::try_from(completion.tag) else {
            return;
        };
        let (Some(handle), Some(slot)) = (
            &self.handle,
            self.slots.get_mut(index).and_then(Option::as_mut),
        ) else {
            return;
        };
        let flush = matches!(slot.operation, Operation::Flush);
        let wrote = !flush && !matches!(slot.operation, Operation::Read { .. });
        match completion.result {
            Ok(()) => {
                if !handle.repeats_flush && wrote {
                    self.shared.note_unflushed(handle.generation);
                }
                if slot.counted || self.phase != Phase::Open {
                    self.shared.succeeded(handle.generation);
                }
            }
            Err(IoError::Os(errno)) => {
                if flush && !handle.repeats_flush {
                    self.shared.note_unflushed(handle.generation);
                }
                let held = match slot.operation {
                    Operation::Discard { .. } => false,
                    Operation::Flush => handle.repeats_flush,
                    _ => true,
                };
                let offset = slot.operation.range().map(|(offset, _)| offset);
                if held && !self.abandoned {
                    let counted = slot.counted;
                    let failed = self
                        .shared
                        .failed(errno, offset, handle.generation, counted);
                    if failed == Verdict::Hold {
                        slot.counted = true;
                        slot.failure = Some(IoError::Os(errno));
                        self.held.insert(slot.number, index);
                        return;
                    }
                }
            }
            Err(_) => {}
        }
        self.answer(index, completion.result);
    }

    /// Looks at what the handle's queue has completed.
    fn sort(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        for completion in &reaped {
            self.completed(completion);
        }
        reaped.clear();
        self.reaped = reaped;
    }

    /// Takes a request that cannot go to the disk now: it is refused, reported or held.
    fn keep(&mut self, index: usize) {
        let Some(slot) = self.slots.get(index).and_then(Option::as_ref) else {
            return;
        };
        let checked = self.shared.capabilities().check(&slot.operation);
        if self.abandoned {
            self.answer(index, Err(IoError::Os(libc::ECANCELED)));
        } else if checked.is_err() {
            self.answer(index, checked);
        } else if self.phase == Phase::Reporting {
            let error = self.present_error();
            self.answer(index, Err(error));
        } else {
            self.hold_untried(index);
        }
    }
}

impl DiskQueue for HoldQueue {
    fn submit(&mut self, request: Request) {
        if self.has_news() {
            self.follow();
        }
        let Request { tag, operation } = request;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let open = self.is_open() && !self.behind && self.held.is_empty();
        let open = open && self.handle.is_some() && !self.abandoned;
        let copy = open.then(|| operation.share());
        self.slots[index] = Some(Slot {
            tag,
            operation,
            number: self.submitted,
            failure: None,
            counted: false,
        });
        self.submitted += 1;
        match copy {
            Some(operation) => self.hand_over(index, operation),
            None => self.keep(index),
        }
    }

    fn kick(&mut self) {
        if let Some(handle) = &mut self.handle {
            handle.queue.kick();
        }
        self.signal();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        if self.signalled {
            // Before the look at the epoch: whoever rang meanwhile had raised that before.
            let _ = self.event.read();
            self.signalled = false;
        }
        if let Some(handle) = &mut self.handle {
            handle.queue.reap(&mut self.reaped);
        }
        self.sort();
        if self.has_news() {
            self.follow();
        } else if self.phase == Phase::Closing || self.behind || !self.held.is_empty() {
            // It may have waited for what has just completed.
            self.act();
        }
        completions.append(&mut self.done);
        if self.signalled {
            let _ = self.event.read();
            self.signalled = false;
            if self.has_news() {
                let _ = self.event.write(1);
            }
        }
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let watched = fd.try_clone_to_owned()?;
        if let Some(handle) = &mut self.handle {
            self.events.remove(handle.queue.completion_event());
            handle.waits = handle.queue.watch(fd)?;
            let waits = handle.waits;
            if let Some(handle) = &self.handle {
                self.listen(handle.queue.as_ref(), waits)?;
            }
            if !waits {
                return Ok(false);
            }
        }
        self.watched = Some(watched);
        Ok(true)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        if self.has_news() {
            // There is something to do here, and perhaps elsewhere.
            return true;
        }
        match &mut self.handle {
            Some(handle) if handle.waits && handle.queue.in_flight() > 0 => {
                let timeout = if self.done.is_empty() {
                    timeout
                } else {
                    Some(Duration::ZERO)
                };
                handle.queue.wait(timeout)
            }
            _ => {
                self.kick();
                let watched = self.watched.as_ref().map(AsFd::as_fd);
                let events = self.events.as_fd();
                fd::wait_either(watched.unwrap_or(events), events, timeout)
            }
        }
    }

    fn notice(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        for index in std::mem::take(&mut self.held).into_values() {
            self.answer(index, Err(IoError::Os(libc::ECANCELED)));
        }
        if let Some(handle) = &mut self.handle {
            handle.queue.abandon();
        }
        self.signal();
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }

    fn await_completion(&mut self, end: Instant) -> io::Result<()> {
        let news = self.has_news();
        match &mut self.handle {
            Some(handle) if handle.queue.in_flight() > 0 => handle.queue.await_completion(end),
            _ if news => Ok(()),
            // All is held, for as long as it takes; the user need not wait for that.
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for HoldQueue {
    fn drop(&mut self) {
        let counted = self.slots.iter().flatten().filter(|slot| slot.counted);
        let counted = counted.count();
        self.close_handle();
        self.shared.leave(self.number, counted);
    }
}
