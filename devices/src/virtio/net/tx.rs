//! A transmit queue: frames from guest RAM to the backend, on a thread of its own.
//!
//! Each chain is one frame behind its header and one `writev`; the kernel checks the header. What the guest makes wrong is
//! dropped and its chain returned. A backend that cannot take a frame is waited for, but not for ever.
#![expect(
    unsafe_code,
    reason = "the backend reads guest RAM through raw segments"
)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_network::{HEADER_SIZE, MAX_FRAME_SIZE};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::counters::CounterValues;
use super::io::{MAX_PIECES, Outcome, write_frame};
use super::{Failure, Shared, Stopped, explain};
use crate::virtio::chain::{self, Chain, RingError};
use crate::virtio::worker::{EventLoop, Wake};
use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};

/// Events the worker waits for.
const KICK: u32 = 0;
const BACKEND: u32 = 1;

/// Frames between two looks at the stop event.
const BATCH: usize = 256;
/// Frames between two interrupts while there is more to do.
const SIGNAL_EVERY: usize = 64;
/// How long a backend that takes nothing is waited for. From then on frames are dropped until it takes one.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// What to do after a pass over the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Go on at once.
    More,
    /// Wait for a kick.
    Kick,
    /// Wait until the backend takes frames, and lose patience then.
    Room(Instant),
}

impl Next {
    fn timeout(self) -> Option<Duration> {
        match self {
            Self::More => Some(Duration::ZERO),
            Self::Kick => None,
            Self::Room(until) => Some(until.saturating_duration_since(Instant::now())),
        }
    }
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Its chain can go back.
    Finished,
    /// The backend takes nothing now.
    Blocked,
}

/// A running transmit queue.
#[derive(Debug)]
pub(super) struct Transmitter {
    shared: Arc<Shared>,
    pair: u16,
    index: u16,
    queue: Queue,
    memory: GuestRam,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn QueueInterrupt>,
    iovecs: Vec<libc::iovec>,
    /// Since when the backend takes nothing.
    blocked: Option<Instant>,
    /// The backend is gone; the queue is drained all the same, as a pulled cable would.
    gone: bool,
    counted: CounterValues,
}

impl Transmitter {
    pub(super) fn new(
        shared: Arc<Shared>,
        pair: u16,
        index: u16,
        resources: QueueResources,
    ) -> Self {
        Self {
            shared,
            pair,
            index,
            queue: resources.queue,
            memory: resources.memory,
            kick: resources.kick,
            interrupt: resources.interrupt,
            iovecs: Vec::new(),
            blocked: None,
            gone: false,
            counted: CounterValues::default(),
        }
    }

    /// The thread's body: serves the queue until stopped, and hands it back.
    pub(super) fn run(mut self, events: &EventLoop) -> Stopped {
        if let Err(error) = self.serve(events) {
            self.interrupt.needs_reset(&explain(&*error));
        }
        self.tell_counters();
        self.queue.into()
    }

    fn serve(&mut self, events: &EventLoop) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let backend = shared
            .backend
            .queue(self.pair)
            .ok_or("the backend has no such queue pair")?;
        events.add_event(&self.kick, KICK)?;
        let mut watched = false;
        let mut next = Next::More;
        loop {
            if watched != matches!(next, Next::Room(_)) {
                watched = !watched;
                if watched {
                    events.add(backend, BACKEND)?;
                    events.modify(backend, BACKEND, false, true)?;
                } else {
                    events.remove(backend)?;
                }
            }
            let wake = events.wait(next.timeout())?;
            if wake == Wake::Stop {
                return Ok(());
            }
            if wake.has(KICK) {
                // Another wake may have read it already.
                let _ = self.kick.read();
            }
            next = self.pass(backend)?;
        }
    }

    /// Sends frames until there are no more or the backend takes none.
    fn pass(&mut self, backend: BorrowedFd<'_>) -> Result<Next, RingError> {
        let map = self.memory.memory();
        self.queue.disable_notification(&*map)?;
        let mut next = Next::More;
        for frame in 1..=BATCH {
            next = self.step(backend, &map)?;
            if next != Next::More {
                break;
            }
            if frame % SIGNAL_EVERY == 0 {
                self.signal(&map)?;
            }
        }
        self.signal(&map)?;
        Ok(next)
    }

    fn step(&mut self, backend: BorrowedFd<'_>, map: &GuestMap) -> Result<Next, RingError> {
        let Some(chain) = chain::pop(&mut self.queue, map)? else {
            let more = self.queue.enable_notification(map)?;
            return Ok(if more { Next::More } else { Next::Kick });
        };
        if self.send(backend, map, &chain)? == Sent::Blocked {
            // Back into the ring, where it is found again, also by a queue that is stopped and started meanwhile.
            self.queue
                .set_next_avail(self.queue.next_avail().wrapping_sub(1));
            let since = self.blocked.unwrap_or_else(Instant::now);
            return Ok(Next::Room(since + self.shared.patience));
        }
        self.queue.add_used(map, chain.head, 0)?;
        Ok(Next::More)
    }

    fn send(
        &mut self,
        backend: BorrowedFd<'_>,
        map: &GuestMap,
        chain: &Chain,
    ) -> Result<Sent, RingError> {
        let length = chain.readable.len();
        let fits =
            (HEADER_SIZE as u64 + 1..=(HEADER_SIZE + MAX_FRAME_SIZE) as u64).contains(&length);
        self.iovecs.clear();
        if fits {
            chain.readable.append_iovecs(map, &mut self.iovecs)?;
        }
        if !fits || !chain.writable.is_empty() || self.iovecs.len() > MAX_PIECES {
            self.counted.tx_malformed += 1;
            return Ok(Sent::Finished);
        }
        if self.gone {
            self.counted.tx_dropped += 1;
            return Ok(Sent::Finished);
        }
        // SAFETY: the iovecs point into guest RAM that `map` keeps mapped. The guest may change it meanwhile, which
        // makes the frame nonsense at worst: the kernel copies the header before it looks at it.
        let outcome = unsafe { write_frame(backend, &self.iovecs) };
        Ok(self.account(outcome, length))
    }

    fn account(&mut self, outcome: Outcome, length: u64) -> Sent {
        if let Outcome::Blocked = outcome {
            let since = *self.blocked.get_or_insert_with(Instant::now);
            if since.elapsed() < self.shared.patience {
                return Sent::Blocked;
            }
            self.counted.tx_dropped += 1;
            return Sent::Finished;
        }
        self.blocked = None;
        match outcome {
            Outcome::Frame(_) => {
                self.counted.tx_frames += 1;
                self.counted.tx_bytes += length - HEADER_SIZE as u64;
            }
            Outcome::Failed(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.counted.tx_malformed += 1;
            }
            Outcome::Failed(_) | Outcome::Blocked => self.counted.tx_dropped += 1,
            Outcome::Gone(error) => {
                self.counted.tx_dropped += 1;
                self.gone = true;
                self.shared.link_lost(&*self.interrupt, &error);
            }
        }
        Sent::Finished
    }

    fn tell_counters(&mut self) {
        let counters = self.shared.counters.transmit(self.pair);
        counters.add(&mut self.counted);
    }

    fn signal(&mut self, map: &GuestMap) -> Result<(), RingError> {
        // First, so that whoever hears of a frame by way of the guest finds it counted.
        self.tell_counters();
        if chain::wants_interrupt(&mut self.queue, map)? {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }
}
