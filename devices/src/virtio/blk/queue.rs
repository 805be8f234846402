//! The core of a queue: from the available ring to the disk, from the disk's completions to the used ring.
//!
//! Runs on the queue's worker; needs no thread itself, so that tests and fuzzers can call it step by step. The guest decides
//! what is in the rings and when. A broken ring ends service until reset; it never ends the process. At most `queue size`
//! requests are in flight, each head once.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use paddock_storage::{Completion, DiskQueue, IoError, Request};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddressSpace};

use super::counters::{Batch, Counters};
use super::request::{self, Action, Reply, Serial, Status};
use crate::virtio::chain::{self, RingError};
use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};

/// How many requests are taken from the ring before what the disk has completed meanwhile goes to the driver: the driver then works on the
/// first answers while the disk works on the rest, and the first of a full ring does not wait for the last.
const BATCH: u16 = 8;

/// A queue being served: ring, disk queue, and what is between the two.
pub struct BlkQueue {
    id: Arc<str>,
    index: u16,
    queue: Queue,
    memory: GuestRam,
    interrupt: Arc<dyn QueueInterrupt>,
    features: u64,
    serial: Serial,
    disk: Box<dyn DiskQueue>,
    /// What the disk has, by the chain's head.
    in_flight: Vec<Option<InFlight>>,
    /// What the disk has completed and the driver was not told of yet. Not empty between calls only while stopped.
    completions: Vec<Completion>,
    /// The driver broke the ring: nothing is taken from it or put into it any more.
    broken: bool,
    /// The driver has reset the device and knows nothing of the requests in flight.
    orphaned: bool,
    /// Requests that failed on the host, those of earlier lives of the queue included.
    pub(super) host_errors: u64,
    counters: Arc<Counters>,
    /// What this pass has counted.
    counted: Batch,
}

/// A request that the disk has.
struct InFlight {
    reply: Reply,
    /// When it was taken from the ring.
    taken: Instant,
}

/// What was taken from the ring in one go.
struct Taken {
    /// Some requests were answered on the spot.
    answered: bool,
    /// It was a whole batch, and there is more.
    full: bool,
}

impl BlkQueue {
    /// Joins a ring and a disk queue. The ring is checked here; where it is unusable the queue is broken from the start.
    #[must_use]
    pub fn new(
        id: Arc<str>,
        index: u16,
        resources: QueueResources,
        serial: &[u8],
        disk: Box<dyn DiskQueue>,
    ) -> Self {
        let mut padded = Serial::default();
        let length = serial.len().min(padded.len());
        padded[..length].copy_from_slice(&serial[..length]);
        let size = usize::from(resources.queue.size());
        let mut this = Self {
            id,
            index,
            queue: resources.queue,
            memory: resources.memory,
            interrupt: resources.interrupt,
            features: resources.features,
            serial: padded,
            disk,
            in_flight: std::iter::repeat_with(|| None).take(size).collect(),
            completions: Vec::with_capacity(size),
            broken: false,
            orphaned: false,
            host_errors: 0,
            counters: Arc::new(Counters::new(index.saturating_add(1))),
            counted: Batch::default(),
        };
        this.check_ring();
        this
    }

    /// Counts in `counters`, which live longer than the queue.
    #[must_use]
    pub fn counting_in(mut self, counters: Arc<Counters>) -> Self {
        self.counters = counters;
        self
    }

    fn check_ring(&mut self) {
        let event_idx = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.queue.set_event_idx(event_idx);
        if !self.queue.is_valid(&*self.memory.memory()) {
            self.give_up("the rings are not in guest RAM");
        }
    }

    /// Readable when [`serve`](Self::serve) has completions to look at.
    #[must_use]
    pub fn completion_event(&self) -> BorrowedFd<'_> {
        self.disk.completion_event()
    }

    /// What the event loop waits for where the disk waits for the event loop: see [`DiskQueue::notice`].
    pub(super) fn notice(&self) -> Option<BorrowedFd<'_>> {
        self.disk.notice()
    }

    /// Hands requests to the disk, and waits for it and for what it watches: see [`DiskQueue::wait`].
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> bool {
        self.disk.wait(timeout)
    }

    /// Whether the driver broke the ring.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Requests that the disk has, and not those that were answered on the spot.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }

    /// The ring, as it is now.
    #[must_use]
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// One pass: hands what is available to the disk, and what has completed to the driver. Returns whether to come back
    /// at once because more became available meanwhile; otherwise the next kick or completion event says when.
    pub fn serve(&mut self) -> bool {
        let memory = self.memory.memory().into_inner();
        let more = self.pass(&memory).unwrap_or_else(|error| {
            self.give_up(&error.to_string());
            false
        });
        self.tell_counters();
        more
    }

    fn tell_counters(&mut self) {
        self.counters.add(self.index, &mut self.counted);
    }

    fn pass(&mut self, memory: &Arc<GuestMap>) -> Result<bool, RingError> {
        if self.broken {
            self.hold();
            return Ok(false);
        }
        self.queue.disable_notification(&**memory)?;
        let taken = self.take(memory);
        // Also after an error: what was submitted before it is the disk's.
        self.disk.kick();
        let Taken { answered, full } = taken?;
        let completed = self.complete(memory)?;
        if answered || completed {
            self.notify(memory)?;
        }
        if full {
            return Ok(true);
        }
        // Looks again after asking for kicks: whatever became available before is seen here, whatever comes later kicks.
        Ok(self.queue.enable_notification(&**memory)?)
    }

    /// Takes what is available, at most a batch of it.
    fn take(&mut self, memory: &Arc<GuestMap>) -> Result<Taken, RingError> {
        let mut answered = false;
        // Read once for all of them, which are taken in no time.
        let mut taken = None;
        for _ in 0..BATCH {
            let Some(chain) = chain::pop(&mut self.queue, memory)? else {
                return Ok(Taken {
                    answered,
                    full: false,
                });
            };
            let head = chain.head;
            let slot = usize::from(head);
            if self.in_flight.get(slot).is_none_or(Option::is_some) {
                return Err(RingError::Twice { head });
            }
            let (reply, action) = request::parse(chain, memory, self.features)?;
            match action {
                Action::Submit(operation) => {
                    let taken = *taken.get_or_insert_with(Instant::now);
                    self.in_flight[slot] = Some(InFlight { reply, taken });
                    let tag = u64::from(head);
                    self.disk.submit(Request { tag, operation });
                }
                Action::Answer(status) => {
                    self.answer(memory, &reply, status, Duration::ZERO)?;
                    answered = true;
                }
                Action::Identify => {
                    reply.data.copy_from(memory, 0, &self.serial)?;
                    self.answer(memory, &reply, Status::Ok, Duration::ZERO)?;
                    answered = true;
                }
            }
        }
        let next = self.queue.next_avail();
        Ok(Taken {
            answered,
            full: self.queue.avail_idx(&**memory, Ordering::Acquire)?.0 != next,
        })
    }

    /// Answers what the disk has completed. Returns whether there was something.
    fn complete(&mut self, memory: &GuestMap) -> Result<bool, RingError> {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.reap(&mut completions);
        let result = self.answer_all(memory, &completions);
        let any = !completions.is_empty();
        completions.clear();
        self.completions = completions;
        result.map(|()| any)
    }

    fn answer_all(
        &mut self,
        memory: &GuestMap,
        completions: &[Completion],
    ) -> Result<(), RingError> {
        let Some(now) = (!completions.is_empty()).then(Instant::now) else {
            return Ok(());
        };
        for completion in completions {
            let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
            let Some(InFlight { reply, taken }) =
                self.in_flight.get_mut(slot).and_then(Option::take)
            else {
                tracing::error!(disk = %self.id, queue = self.index, tag = completion.tag,
                    "the backend completed a request that it did not have");
                continue;
            };
            let status = match completion.result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.log_failure(error);
                    error.into()
                }
            };
            if reply.read {
                // A failed read may have written, too.
                reply.data.mark_written(memory, reply.data.len());
            }
            let took = now.saturating_duration_since(taken);
            self.answer(memory, &reply, status, took)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        memory: &GuestMap,
        reply: &Reply,
        status: Status,
        took: Duration,
    ) -> Result<(), RingError> {
        let well = status == Status::Ok;
        self.counted.count(reply.kind, reply.bytes, well, took);
        memory.write_obj(status as u8, reply.status)?;
        // Up to the status byte, which is the last. A failed read's data is undefined, as drivers know from the status.
        let length = u32::try_from(reply.data.len() + 1).unwrap_or(u32::MAX);
        Ok(self.queue.add_used(memory, reply.head, length)?)
    }

    fn notify(&mut self, memory: &GuestMap) -> Result<(), RingError> {
        // First, so that whoever hears of a request by way of the guest finds it counted.
        self.tell_counters();
        if chain::wants_interrupt(&mut self.queue, memory)? {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    fn log_failure(&mut self, error: IoError) {
        let IoError::Os(_) = error else {
            return; // The guest's own doing.
        };
        self.host_errors += 1;
        // Each doubling is news; a guest that repeats a failing request is not.
        if self.host_errors.is_power_of_two() {
            tracing::warn!(disk = %self.id, queue = self.index, failures = self.host_errors, %error,
                "I/O failed on the host");
        }
    }

    /// Takes completions without answering them. A broken ring's are never answered.
    pub(super) fn hold(&mut self) {
        self.disk.reap(&mut self.completions);
        if self.broken {
            for completion in self.completions.drain(..) {
                let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
                if let Some(reply) = self.in_flight.get_mut(slot) {
                    reply.take();
                }
            }
        }
    }

    /// Stops serving and asks the driver for a reset.
    pub(super) fn give_up(&mut self, reason: &str) {
        self.broken = true;
        self.interrupt.needs_reset(reason);
    }

    /// The driver has reset the device: what is in flight will be answered to nobody, and what the host has not got never gets there.
    pub(super) fn orphan(&mut self) {
        self.broken = true;
        self.orphaned = true;
        self.disk.abandon();
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    /// Waits for the disk to complete what it has and answers that. Nothing new is taken from the ring.
    ///
    /// # Errors
    /// `TimedOut` when the disk still has requests at the deadline. They stay where they are: not answered, not forgotten.
    pub fn drain(&mut self, deadline: Duration) -> io::Result<()> {
        let drained = self.disk.drain(deadline, &mut self.completions);
        let memory = self.memory.memory().into_inner();
        if self.broken {
            self.hold();
            return drained;
        }
        let answered = self.complete(&memory).and_then(|any| match any {
            true => self.notify(&memory),
            false => Ok(()),
        });
        if let Err(error) = answered {
            self.give_up(&error.to_string());
        }
        self.tell_counters();
        drained
    }

    /// Continues with requests that were in flight when the queue was stopped, on the same ring.
    ///
    /// # Errors
    /// Gives the resources back when they are not those of the ring that was stopped.
    pub(super) fn resume(&mut self, resources: QueueResources) -> Result<(), Box<QueueResources>> {
        let (theirs, ours) = (resources.queue.state(), self.queue.state());
        let same = theirs.size == ours.size
            && (theirs.next_avail, theirs.next_used) == (ours.next_avail, ours.next_used)
            && (theirs.desc_table, theirs.avail_ring) == (ours.desc_table, ours.avail_ring)
            && theirs.used_ring == ours.used_ring;
        if !same {
            return Err(Box::new(resources));
        }
        self.queue = resources.queue;
        self.memory = resources.memory;
        self.interrupt = resources.interrupt;
        self.features = resources.features;
        self.check_ring();
        Ok(())
    }
}

impl std::fmt::Debug for BlkQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkQueue")
            .field("id", &self.id)
            .field("index", &self.index)
            .field("queue", &self.queue)
            .field("in_flight", &self.in_flight())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
