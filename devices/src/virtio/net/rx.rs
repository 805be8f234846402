//! A receive queue: frames from the backend into guest RAM, on a thread of its own.
//!
//! Chains are taken from the ring ahead of time, until they hold the largest frame that may come, and one `readv` fills
//! them. Behind them lies a private spill buffer, so a frame that is too long for what the guest gave is noticed: it is
//! kept for a moment until the guest gives more, and dropped whole otherwise, never cut.
//! While the guest gives nothing, the backend is not looked at; its own queue is where frames then wait or are dropped.
#![expect(
    unsafe_code,
    reason = "the backend fills guest RAM through raw segments"
)]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_network::{HEADER_SIZE, MAX_FRAME_SIZE};
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::counters::CounterValues;
use super::io::{MAX_PIECES, Outcome, read_frame};
use super::used::UsedRing;
use super::{Failure, Shared, Stopped, explain, features, has};
use crate::virtio::chain::{self, Chain, RingError};
use crate::virtio::worker::{EventLoop, Wake};
use crate::virtio::{GuestMap, GuestRam, QueueInterrupt, QueueResources};

/// Events the worker waits for.
const KICK: u32 = 0;
const BACKEND: u32 = 1;

/// The largest frame with its header, and one byte that no frame reaches.
const SPILL_SIZE: usize = HEADER_SIZE + MAX_FRAME_SIZE + 1;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;
/// Ethernet header and two VLAN tags.
const LINK_OVERHEAD: usize = 14 + 8;
/// Frames between two looks at the stop event.
const BATCH: usize = 256;
/// Frames between two interrupts while there is more to do.
const SIGNAL_EVERY: usize = 64;
/// How long a frame is kept for a guest whose buffers are too small for it.
pub(super) const HOLD: Duration = Duration::from_millis(100);
/// How many reads in a row may fail before the backend is left alone for a while, and for how long.
const FAILURES: u32 = 16;
const BACK_OFF: Duration = Duration::from_millis(100);

/// What to do after a step or a pass over the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Go on at once.
    More,
    /// Wait for a frame.
    Frame,
    /// Wait for buffers.
    Buffers,
    /// Wait for buffers, and give the held frame up then.
    HeldUntil(Instant),
    /// Leave the backend alone until then.
    BackOff(Instant),
    /// Wait to be stopped: the backend is gone.
    Done,
}

impl Next {
    fn watches_backend(self) -> bool {
        matches!(self, Self::More | Self::Frame)
    }

    fn timeout(self) -> Option<Duration> {
        match self {
            Self::More => Some(Duration::ZERO),
            // One millisecond more, so as not to wake just before the time has come.
            Self::HeldUntil(then) | Self::BackOff(then) => {
                Some(then.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            }
            Self::Frame | Self::Buffers | Self::Done => None,
        }
    }
}

/// A chain taken from the ring and not yet used.
#[derive(Debug)]
struct Posted {
    chain: Chain,
    /// How many of the iovecs are its.
    pieces: usize,
    /// How many bytes they hold.
    bytes: usize,
}

/// A frame in the spill buffer that waits for room.
#[derive(Debug, Clone, Copy)]
struct Held {
    length: usize,
    until: Instant,
}

/// A running receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    pair: u16,
    index: u16,
    queue: Queue,
    used: UsedRing,
    memory: GuestRam,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn QueueInterrupt>,
    mergeable: bool,
    /// How many bytes of buffers make sure that any frame fits.
    enough: usize,
    /// The map that `iovecs` point into.
    map: Arc<GuestMap>,
    posted: VecDeque<Posted>,
    posted_bytes: usize,
    iovecs: Vec<libc::iovec>,
    spill: Vec<u8>,
    held: Option<Held>,
    heads: Vec<(u16, u32)>,
    failures: u32,
    counted: CounterValues,
}

impl Receiver {
    pub(super) fn new(
        shared: Arc<Shared>,
        pair: u16,
        index: u16,
        resources: QueueResources,
        held: Option<Vec<u8>>,
    ) -> Self {
        let mut spill = vec![0; SPILL_SIZE];
        let held = held.map(|frame| {
            let length = frame.len().min(SPILL_SIZE);
            spill[..length].copy_from_slice(&frame[..length]);
            let until = Instant::now() + shared.hold;
            Held { length, until }
        });
        let long = features::guest_offloads(resources.features).any_segmentation();
        let enough = match shared.backend.mtu() {
            Some(mtu) if !long => HEADER_SIZE + LINK_OVERHEAD + usize::from(mtu),
            _ => HEADER_SIZE + MAX_FRAME_SIZE,
        };
        Self {
            shared,
            pair,
            index,
            used: UsedRing::new(&resources.queue),
            queue: resources.queue,
            map: resources.memory.memory().into_inner(),
            memory: resources.memory,
            kick: resources.kick,
            interrupt: resources.interrupt,
            mergeable: has(resources.features, VIRTIO_NET_F_MRG_RXBUF),
            enough,
            posted: VecDeque::new(),
            posted_bytes: 0,
            iovecs: Vec::new(),
            spill,
            held,
            heads: Vec::new(),
            failures: 0,
            counted: CounterValues::default(),
        }
    }

    /// The thread's body: serves the queue until stopped, and hands it back.
    pub(super) fn run(mut self, events: &EventLoop) -> Stopped {
        if let Err(error) = self.serve(events) {
            self.interrupt.needs_reset(&explain(&*error));
        }
        self.tell_counters();
        self.unpost();
        self.spill.truncate(self.held.map_or(0, |held| held.length));
        Stopped {
            queue: self.queue,
            held: self.held.map(|_| self.spill),
        }
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
            // Taken out altogether, for a backend that hangs up wakes whoever has it in, whatever he waits for.
            if watched != next.watches_backend() {
                watched = !watched;
                if watched {
                    events.add(backend, BACKEND)?;
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
            next = self.pass(backend, next)?;
        }
    }

    /// Handles frames until there is something to wait for.
    fn pass(&mut self, backend: BorrowedFd<'_>, before: Next) -> Result<Next, RingError> {
        match before {
            Next::Done => return Ok(before),
            Next::BackOff(until) if Instant::now() < until => return Ok(before),
            _ => {}
        }
        self.refresh_map();
        self.queue.disable_notification(&*self.map)?;
        let mut next = Next::More;
        for frame in 1..=BATCH {
            next = self.step(backend)?;
            if next != Next::More {
                break;
            }
            if frame % SIGNAL_EVERY == 0 {
                self.signal()?;
            }
        }
        self.signal()?;
        Ok(next)
    }

    fn step(&mut self, backend: BorrowedFd<'_>) -> Result<Next, RingError> {
        let full = self.gather()?;
        if let Some(held) = self.held {
            if held.length <= self.posted_bytes {
                self.held = None;
                self.fill_from_spill(held.length)?;
                self.deliver(held.length)?;
                return Ok(Next::More);
            }
            if full || !self.mergeable || Instant::now() >= held.until {
                self.held = None;
                self.counted.rx_dropped += 1;
                return Ok(Next::More);
            }
            return self.starved(Next::HeldUntil(held.until));
        }
        if self.posted.is_empty() {
            return self.starved(Next::Buffers);
        }
        self.receive(backend)
    }

    /// The ring is empty: asks for a kick, and looks once more for what came before the driver could know.
    fn starved(&mut self, next: Next) -> Result<Next, RingError> {
        if self.queue.enable_notification(&*self.map)? {
            return Ok(Next::More);
        }
        Ok(next)
    }

    fn receive(&mut self, backend: BorrowedFd<'_>) -> Result<Next, RingError> {
        let capacity = self.posted_bytes;
        let spills = capacity < self.spill.len();
        if spills {
            // Where its end would be if the frame began at the start of the spill buffer.
            let rest = &mut self.spill[capacity..];
            self.iovecs.push(libc::iovec {
                iov_base: rest.as_mut_ptr().cast(),
                iov_len: rest.len(),
            });
        }
        // SAFETY: all but the last iovec point into guest RAM that `map` keeps mapped, which the guest may change at any
        // time and nobody holds a reference to; the last, if it is the spill buffer, is borrowed by nobody.
        let outcome = unsafe { read_frame(backend, &self.iovecs) };
        if spills {
            self.iovecs.pop();
        }
        match outcome {
            Outcome::Frame(length) => {
                self.failures = 0;
                if length < HEADER_SIZE {
                    self.counted.rx_errors += 1;
                } else if length >= SPILL_SIZE {
                    self.counted.rx_dropped += 1;
                } else if length <= capacity {
                    self.deliver(length)?;
                } else {
                    self.hold(length)?;
                }
                Ok(Next::More)
            }
            Outcome::Blocked => Ok(Next::Frame),
            Outcome::Failed(error) => {
                self.counted.rx_errors += 1;
                self.failures += 1;
                if self.failures < FAILURES {
                    return Ok(Next::More);
                }
                self.failures = 0;
                tracing::debug!(device = self.shared.id, %error, "reading from the NIC's backend fails");
                Ok(Next::BackOff(Instant::now() + BACK_OFF))
            }
            Outcome::Gone(error) => {
                self.shared.link_lost(&*self.interrupt, &error);
                Ok(Next::Done)
            }
        }
    }

    /// Takes chains from the ring until any frame fits (one chain if they cannot be merged). Returns whether no more
    /// can be taken, however many there are.
    fn gather(&mut self) -> Result<bool, RingError> {
        let wanted = match self.held {
            _ if !self.mergeable => 1,
            Some(held) => self.enough.max(held.length),
            None => self.enough,
        };
        // A chain too small to use goes straight back; the bound keeps a guest that only makes those from holding us here.
        for _ in 0..self.queue.size() {
            if self.posted_bytes >= wanted {
                return Ok(true);
            }
            let Some(chain) = chain::pop(&mut self.queue, &self.map)? else {
                return Ok(false);
            };
            if chain.writable.len() < HEADER_SIZE as u64 {
                UsedRing::publish(&mut self.queue, &self.map, &[(chain.head, 0)])?;
                continue;
            }
            if !self.post(chain)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds a chain to those that the next frame fills; `false` if it would be too many pieces, and it is back in the ring.
    fn post(&mut self, chain: Chain) -> Result<bool, RingError> {
        // One is kept for the spill buffer.
        let room = MAX_PIECES - 1;
        let before = self.iovecs.len();
        chain.writable.append_iovecs(&self.map, &mut self.iovecs)?;
        if self.iovecs.len() > room {
            if before > 0 {
                self.iovecs.truncate(before);
                self.queue
                    .set_next_avail(self.queue.next_avail().wrapping_sub(1));
                return Ok(false);
            }
            self.iovecs.truncate(room);
        }
        let bytes = self.iovecs[before..]
            .iter()
            .map(|piece| piece.iov_len)
            .sum();
        self.posted_bytes += bytes;
        self.posted.push_back(Posted {
            chain,
            pieces: self.iovecs.len() - before,
            bytes,
        });
        Ok(true)
    }

    /// Gives the chains that were not used back to the ring.
    fn unpost(&mut self) {
        // There are no more of them than the queue has entries.
        let count = u16::try_from(self.posted.len()).unwrap_or(0);
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
        self.posted.clear();
        self.posted_bytes = 0;
        self.iovecs.clear();
    }

    /// Goes over to the present map of guest RAM if it changed.
    fn refresh_map(&mut self) {
        let present = self.memory.memory();
        if !std::ptr::eq(&raw const *present, Arc::as_ptr(&self.map)) {
            self.map = present.into_inner();
            self.unpost();
        }
    }

    /// Completes the spill buffer with what went into the chains, and keeps the frame for later.
    fn hold(&mut self, length: usize) -> Result<(), RingError> {
        let mut start = 0;
        for posted in &self.posted {
            let part = &mut self.spill[start..start + posted.bytes];
            posted.chain.writable.copy_to(&self.map, 0, part)?;
            posted
                .chain
                .writable
                .mark_written(&self.map, posted.bytes as u64);
            start += posted.bytes;
        }
        self.held = Some(Held {
            length,
            until: Instant::now() + self.shared.hold,
        });
        Ok(())
    }

    fn fill_from_spill(&mut self, length: usize) -> Result<(), RingError> {
        let mut start = 0;
        for posted in &self.posted {
            let end = length.min(start + posted.bytes);
            posted
                .chain
                .writable
                .copy_from(&self.map, 0, &self.spill[start..end])?;
            start = end;
        }
        Ok(())
    }

    /// Hands the frame that fills the first `length` bytes of the posted chains to the driver.
    fn deliver(&mut self, length: usize) -> Result<(), RingError> {
        self.heads.clear();
        let mut left = length;
        let mut pieces = 0;
        let mut first = None;
        while left > 0 {
            let Some(posted) = self.posted.pop_front() else {
                break;
            };
            let part = left.min(posted.bytes);
            left -= part;
            pieces += posted.pieces;
            self.posted_bytes -= posted.bytes;
            posted.chain.writable.mark_written(&self.map, part as u64);
            // Frames are far shorter than 4 GiB.
            self.heads
                .push((posted.chain.head, u32::try_from(part).unwrap_or(u32::MAX)));
            first.get_or_insert(posted.chain);
        }
        self.iovecs.drain(..pieces);
        // Without mergeable buffers this is 1, as it has to be (§5.1.6.4.1).
        let buffers = u16::try_from(self.heads.len()).unwrap_or(u16::MAX);
        if let Some(chain) = first {
            chain
                .writable
                .copy_from(&self.map, NUM_BUFFERS, &buffers.to_le_bytes())?;
        }
        UsedRing::publish(&mut self.queue, &self.map, &self.heads)?;
        self.counted.rx_frames += 1;
        self.counted.rx_bytes += (length - HEADER_SIZE) as u64;
        Ok(())
    }

    fn tell_counters(&mut self) {
        let counters = self.shared.counters.receive(self.pair);
        counters.add(&mut self.counted);
    }

    fn signal(&mut self) -> Result<(), RingError> {
        // First, so that whoever hears of a frame by way of the guest finds it counted.
        self.tell_counters();
        if self.used.wants_interrupt(&self.queue, &self.map)? {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }
}
