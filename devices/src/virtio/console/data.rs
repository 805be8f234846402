//! Moving bytes between a port's queues and what stands behind it, and control messages into their queue.
//!
//! On the worker's thread, a bounded number of bytes at a time. Nothing is kept here: what the other end does not take stays in the
//! guest's chain, what the guest has no buffer for stays in the socket.

use super::control::HEADER;
use super::ports::Port;
use crate::socket::Transfer;
use crate::virtio::ring::Ring;

/// Bytes moved at once.
pub(super) const PIECE: usize = 64 << 10;
/// Chains served before other ports get their turn.
const BATCH: usize = 32;

/// The guest's side of sending.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Bytes of the next chain that the other end has taken already. Survives stopping and starting the queue.
    done: u64,
    /// The other end takes no more for now.
    pub(super) blocked: bool,
}

impl Sending {
    /// The one who got the first part of a chain has gone: nobody else gets the rest.
    pub(super) fn cut_off(&mut self) {
        if self.done > 0 {
            self.done = u64::MAX;
        }
        self.blocked = false;
    }
}

/// Sends what the guest has written; whether there may be more.
pub(super) fn send(port: &Port, state: &mut Sending, ring: &mut Ring, scratch: &mut [u8]) -> bool {
    let memory = ring.memory();
    state.blocked = false;
    let mut budget = PIECE * 4;
    for _ in 0..BATCH {
        let Some(chain) = ring.pop(&memory) else {
            ring.flush(&memory);
            return ring.arm(&memory);
        };
        while state.done < chain.readable.len() {
            let copied = chain.readable.copy_to(&memory, state.done, scratch);
            let count = ring.check(copied).unwrap_or(0);
            let bytes = scratch.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            match port.write(bytes) {
                Transfer::Done(count) => {
                    state.done += count as u64;
                    budget = budget.saturating_sub(count);
                }
                Transfer::Later => state.blocked = true,
                Transfer::Never => state.done = u64::MAX,
            }
            if state.blocked || budget == 0 && state.done < chain.readable.len() {
                ring.unpop();
                ring.flush(&memory);
                return !state.blocked;
            }
        }
        state.done = 0;
        ring.push_used(&memory, chain.head, 0);
    }
    ring.flush(&memory);
    true
}

/// What came of giving the guest data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// All there is for now.
    All,
    /// The guest has no buffer.
    Starved,
    /// There may be more of both.
    More,
}

/// Gives the guest what has come for it.
pub(super) fn receive(port: &Port, ring: &mut Ring, scratch: &mut [u8]) -> Received {
    let memory = ring.memory();
    let mut result = Received::More;
    for _ in 0..BATCH {
        let Some(chain) = ring.pop(&memory) else {
            result = Received::Starved;
            break;
        };
        let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
        let Some(buffer) = scratch.get_mut(..room.min(PIECE)).filter(|b| !b.is_empty()) else {
            // A chain with no room: useless, but the guest's to have back.
            ring.push_used(&memory, chain.head, 0);
            continue;
        };
        let Transfer::Done(count) = port.read(buffer) else {
            ring.unpop();
            result = Received::All;
            break;
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let copied = chain.writable.copy_from(&memory, 0, bytes);
        let written = ring.check(copied).unwrap_or(0);
        ring.push_used(&memory, chain.head, written as u64);
    }
    ring.flush(&memory);
    if result == Received::Starved && ring.arm(&memory) {
        result = Received::More;
    }
    result
}

/// What came of telling the driver something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It was told.
    Yes,
    /// There is no buffer.
    NoBuffer,
    /// The buffer was too small and has gone back empty.
    TooSmall,
}

/// Puts a control message into a buffer of the driver. Call [`Ring::flush`] after a batch.
pub(super) fn tell(ring: &mut Ring, message: &[u8]) -> Told {
    let memory = ring.memory();
    let Some(chain) = ring.pop(&memory) else {
        return Told::NoBuffer;
    };
    if chain.writable.len() < message.len() as u64 {
        ring.push_used(&memory, chain.head, 0);
        return Told::TooSmall;
    }
    let copied = chain.writable.copy_from(&memory, 0, message);
    let written = ring.check(copied).unwrap_or(0);
    ring.push_used(&memory, chain.head, written as u64);
    Told::Yes
}

/// Takes control messages from the driver, some at a time; whether there may be more.
pub(super) fn hear(ring: &mut Ring, mut each: impl FnMut([u8; HEADER])) -> bool {
    let memory = ring.memory();
    for _ in 0..BATCH {
        let Some(chain) = ring.pop(&memory) else {
            ring.flush(&memory);
            return ring.arm(&memory);
        };
        let mut message = [0; HEADER];
        let copied = chain.readable.copy_to(&memory, 0, &mut message);
        if ring.check(copied) == Some(HEADER) {
            each(message);
        }
        ring.push_used(&memory, chain.head, 0);
    }
    ring.flush(&memory);
    true
}
