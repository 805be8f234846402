//! The worker of a memory device: serves the driver's requests, and tells it when it is asked for something else.
//!
//! Runs while the queue does. It looks whether it is to stop between two requests, and between two steps of one that is about much
//! memory: the host takes a while to give or take it. A request that a stop overtakes stays in the queue.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Supply;
use super::handle::MemHandle;
use crate::throttle::Throttle;
use crate::virtio::GuestMap;
use crate::virtio::chain::{Chain, RingError};
use crate::virtio::ring::Ring;
use crate::virtio::worker::{EventLoop, Wake};

const KICK: u32 = 0;
const DOORBELL: u32 = 1;

/// Bytes of struct virtio_mem_req and struct virtio_mem_resp (§5.15.6).
const REQUEST_LENGTH: usize = 24;
const RESPONSE_LENGTH: usize = 10;

/// What one request can plug in, unless a block is larger, and what is unplugged in one step: the host may have to clear or free all of it,
/// and a stop waits for that long. Linux asks for a memory block at a time, 2 GiB at most.
const MOST_AT_ONCE: u64 = 4 << 30;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Answer {
    /// Done.
    Ack = 0,
    /// Not as long as no more is requested of the driver.
    Nack = 1,
    /// Not now: the host has no memory to give, or does not take it.
    Busy = 2,
    /// Against the rules.
    Error = 3,
}

/// The worker was told to stop in the middle of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stopped;

/// Whether to stop, which is asked between steps.
type IsStopping<'a> = &'a dyn Fn() -> bool;

/// How the blocks of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum State {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// A request as it came: anything.
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: u16,
    address: u64,
    blocks: u16,
}

impl Request {
    /// What a driver left out is zero, which makes a request of no blocks, and that is against the rules.
    fn parse(bytes: &[u8; REQUEST_LENGTH]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = bytes[8..].first_chunk().copied();
        Self {
            kind: word(0),
            address: address.map_or(0, u64::from_le_bytes),
            blocks: word(16),
        }
    }
}

/// Everything the worker has; shared with the device, so that a brake on the log outlasts a restart of the queue.
#[derive(Debug)]
pub(super) struct Engine {
    id: String,
    handle: MemHandle,
    memory: Arc<dyn Supply>,
    refusals: Throttle,
    failures: Throttle,
}

impl Engine {
    pub(super) fn new(id: String, handle: MemHandle, memory: Arc<dyn Supply>) -> Self {
        Self {
            id,
            handle,
            memory,
            refusals: Throttle::new(),
            failures: Throttle::new(),
        }
    }

    pub(super) fn handle(&self) -> &MemHandle {
        &self.handle
    }

    /// The worker's body.
    pub(super) fn run(&self, events: &EventLoop, mut ring: Ring, doorbell: &EventFd) -> Ring {
        if let Err(error) = self.serve(events, &mut ring, doorbell) {
            tracing::error!(device = self.id, %error, "memory device: waiting for events");
        }
        ring
    }

    fn serve(&self, events: &EventLoop, ring: &mut Ring, doorbell: &EventFd) -> io::Result<()> {
        events.add_event(ring.kick(), KICK)?;
        events.add_event(doorbell, DOORBELL)?;
        // The driver may have read what is requested before it was changed, when there was nobody to tell it.
        let mut told = self.handle.plugged();
        let mut more = true;
        loop {
            let requested = self.handle.requested();
            if requested != told {
                told = requested;
                ring.signal_config();
            }
            if more {
                let memory = ring.memory();
                more = self.serve_next(ring, &memory, &|| events.is_stopping());
                ring.flush(&memory);
                more = more || ring.arm(&memory);
            }
            let wake = events.wait(more.then_some(Duration::ZERO))?;
            if wake == Wake::Stop {
                return Ok(());
            }
            if wake.has(KICK) {
                ring.acknowledge();
                more = true;
            }
            if wake.has(DOORBELL) {
                let _ = doorbell.read();
            }
        }
    }

    /// Serves a request; whether there may be more.
    fn serve_next(&self, ring: &mut Ring, memory: &GuestMap, is_stopping: IsStopping<'_>) -> bool {
        let Some(chain) = ring.pop(memory) else {
            return false;
        };
        let written = match self.serve_chain(memory, &chain, is_stopping) {
            Ok(Err(Stopped)) => {
                // Whoever starts the queue again does it from the beginning.
                ring.unpop();
                return true;
            }
            Ok(Ok(written)) => written,
            Err(error) => ring.check(Err(error)).unwrap_or(0),
        };
        ring.push_used(memory, chain.head, written as u64);
        true
    }

    /// Serves one request; the length of the answer.
    fn serve_chain(
        &self,
        memory: &GuestMap,
        chain: &Chain,
        is_stopping: IsStopping<'_>,
    ) -> Result<Result<usize, Stopped>, RingError> {
        if chain.writable.len() < RESPONSE_LENGTH as u64 {
            return Err(RingError::NoAnswer { head: chain.head });
        }
        let mut bytes = [0; REQUEST_LENGTH];
        chain.readable.copy_to(memory, 0, &mut bytes)?;
        let request = Request::parse(&bytes);
        let Ok((answer, state)) = self.execute(request, is_stopping) else {
            return Ok(Err(Stopped));
        };
        if matches!(answer, Answer::Error) {
            self.note_refusal(request);
        }
        let mut response = [0; RESPONSE_LENGTH];
        response[..2].copy_from_slice(&(answer as u16).to_le_bytes());
        response[8..].copy_from_slice(&(state as u16).to_le_bytes());
        chain.writable.copy_from(memory, 0, &response).map(Ok)
    }

    /// The answer, and the state where that was asked for.
    fn execute(
        &self,
        request: Request,
        is_stopping: IsStopping<'_>,
    ) -> Result<(Answer, State), Stopped> {
        let silent = State::Plugged;
        if request.kind == UNPLUG_ALL {
            return Ok((self.unplug_whole(is_stopping)?, silent));
        }
        let Some(blocks) = self.blocks_of(request) else {
            return Ok((Answer::Error, silent));
        };
        Ok(match request.kind {
            PLUG => (self.plug(blocks), silent),
            UNPLUG => (self.unplug(blocks, is_stopping)?, silent),
            STATE => (Answer::Ack, self.state(blocks)),
            _ => (Answer::Error, silent),
        })
    }

    /// The blocks a request is about: at least one, all in the region.
    fn blocks_of(&self, request: Request) -> Option<Range<usize>> {
        let (region, block) = (self.handle.region(), self.handle.block_size());
        let offset = request.address.checked_sub(region.start)?;
        if request.blocks == 0 || !offset.is_multiple_of(block) {
            return None;
        }
        let first = usize::try_from(offset / block).ok()?;
        let end = first.checked_add(usize::from(request.blocks))?;
        let count = usize::try_from((region.end - region.start) / block).ok()?;
        (end <= count).then_some(first..end)
    }

    /// Guest-physical addresses of blocks that are in the region.
    fn addresses(&self, blocks: &Range<usize>) -> Range<u64> {
        let (start, block) = (self.handle.region().start, self.handle.block_size());
        let address = |index: usize| start + index as u64 * block;
        address(blocks.start)..address(blocks.end)
    }

    fn plug(&self, range: Range<usize>) -> Answer {
        let mut blocks = self.handle.blocks();
        if blocks.plugged_in(range.clone()) > 0 {
            return Answer::Error;
        }
        let after = (blocks.plugged() + range.len()) as u64 * self.handle.block_size();
        let addresses = self.addresses(&range);
        let too_much = range.len() > 1 && addresses.end - addresses.start > MOST_AT_ONCE;
        if after > self.handle.requested() || too_much {
            return Answer::Nack;
        }
        if let Err(error) = self.memory.provide(addresses.clone()) {
            self.note_failure(&error, &addresses, "gives no memory for");
            // What came before the failure goes back; what does not is found there when it is tried again.
            let _ = self.memory.reclaim(addresses);
            return Answer::Busy;
        }
        blocks.mark(range, true);
        self.handle.set_blocks(blocks);
        Answer::Ack
    }

    /// Until all of it went back, the blocks count as plugged in: a guest that wants them unplugged has no use for what is in them.
    fn unplug(&self, range: Range<usize>, is_stopping: IsStopping<'_>) -> Result<Answer, Stopped> {
        let mut blocks = self.handle.blocks();
        if blocks.plugged_in(range.clone()) < range.len() {
            return Ok(Answer::Error);
        }
        let answer = self.take_back(self.addresses(&range), is_stopping)?;
        if answer == Answer::Ack {
            blocks.mark(range, false);
            self.handle.set_blocks(blocks);
        }
        Ok(answer)
    }

    /// Takes all blocks back, also what a guest made of memory that was not plugged in.
    fn unplug_whole(&self, is_stopping: IsStopping<'_>) -> Result<Answer, Stopped> {
        let mut blocks = self.handle.blocks();
        let answer = self.take_back(self.handle.region(), is_stopping)?;
        if answer == Answer::Ack {
            blocks.clear();
            self.handle.set_blocks(blocks);
        }
        Ok(answer)
    }

    /// The same before there is a worker that could be stopped. A host that does not take it back was complained of.
    pub(super) fn start_over(&self) {
        // Nobody stops it.
        let _ = self.unplug_whole(&|| false);
    }

    fn state(&self, range: Range<usize>) -> State {
        match self.handle.blocks().plugged_in(range.clone()) {
            0 => State::Unplugged,
            all if all == range.len() => State::Plugged,
            _ => State::Mixed,
        }
    }

    /// Step by step, as there may be hundreds of GiB.
    fn take_back(
        &self,
        addresses: Range<u64>,
        is_stopping: IsStopping<'_>,
    ) -> Result<Answer, Stopped> {
        let mut start = addresses.start;
        while start < addresses.end {
            let end = addresses.end.min(start.saturating_add(MOST_AT_ONCE));
            let step = start..end;
            if let Err(error) = self.memory.reclaim(step.clone()) {
                self.note_failure(&error, &step, "does not take back");
                return Ok(Answer::Busy);
            }
            start = end;
            if start < addresses.end && is_stopping() {
                return Err(Stopped);
            }
        }
        Ok(Answer::Ack)
    }

    fn note_failure(&self, error: &io::Error, addresses: &Range<u64>, what: &str) {
        let errors = &self.handle.counters().errors;
        errors.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = self.failures.pass() {
            let (device, start) = (&self.id, addresses.start);
            let length = addresses.end - start;
            tracing::warn!(
                device,
                %error,
                held_back,
                "memory device: the host {what} {length:#x} bytes at {start:#x}"
            );
        }
    }

    fn note_refusal(&self, request: Request) {
        let refused = &self.handle.counters().refused;
        refused.fetch_add(1, Ordering::Relaxed);
        if let Some(held_back) = self.refusals.pass() {
            let device = &self.id;
            tracing::warn!(
                device,
                ?request,
                held_back,
                "memory device: the guest asks for what is against the rules"
            );
        }
    }
}
