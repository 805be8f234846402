//! The memory that all connections of a server share, for requests and their answers. Each connection may hold a little of its own, so that none
//! ever waits for the others with one request of an engine's usual size. What is more comes from the common part, first come, first served:
//! who cannot have what it asks for takes no further request until it has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::request::SECTOR_BYTES;
use super::{MOST_HELD, MOST_REQUEST};

/// Bytes that a connection may always hold: a request of 1 MiB, with the sectors at its edges.
pub(super) const OWN: usize = (1 << 20) + 2 * SECTOR_BYTES;

/// Bytes that connections share: enough for the largest request, and for several engines that ask for all they may.
pub(super) const COMMON: usize = 256 << 20;

/// The most bytes of buffers that are kept for requests to come, of all connections.
const MOST_KEPT: usize = 64 << 20;

const _: () = assert!(COMMON >= MOST_REQUEST + 2 * SECTOR_BYTES && COMMON >= MOST_HELD);

/// The memory.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    /// Something came back, or somebody at the front of the queue has gone.
    changed: Condvar,
    kept: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Bytes of the common part that nobody has.
    left: usize,
    /// Who waits, in order.
    queue: VecDeque<u64>,
    next: u64,
}

impl Budget {
    pub(super) fn new(common: usize) -> Self {
        Self {
            state: Mutex::new(State {
                left: common,
                queue: VecDeque::new(),
                next: 0,
            }),
            changed: Condvar::new(),
            kept: AtomicUsize::new(0),
        }
    }

    /// Whether a buffer of so many bytes may be kept.
    pub(super) fn keep(&self, bytes: usize) -> bool {
        let kept = self.kept.fetch_add(bytes, Ordering::Relaxed);
        let may = kept + bytes <= MOST_KEPT;
        if !may {
            self.release(bytes);
        }
        may
    }

    /// Buffers of so many bytes are no longer kept.
    pub(super) fn release(&self, bytes: usize) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What a connection holds.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
    /// Its place in the queue.
    ticket: Option<u64>,
}

/// How much of what a connection holds is of the common part.
fn drawn(held: usize) -> usize {
    held.saturating_sub(OWN)
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            held: 0,
            ticket: None,
        }
    }

    /// Whether its turn has come, and so much is left.
    fn is_served(&self, state: &State, need: usize) -> bool {
        let is_first = state
            .queue
            .front()
            .is_none_or(|&first| self.ticket == Some(first));
        is_first && need <= state.left
    }

    /// Takes so many bytes more, if they are to be had.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let need = drawn(self.held + bytes) - drawn(self.held);
        if need > 0 {
            let budget = Arc::clone(&self.budget);
            let mut state = budget.state.lock();
            if !self.is_served(&state, need) {
                return false;
            }
            state.left -= need;
            self.step_out(&mut state);
        }
        self.held += bytes;
        true
    }

    /// Whether it holds something of the common part.
    pub(super) fn is_common(&self) -> bool {
        drawn(self.held) > 0
    }

    /// Waits in the queue until so many bytes more can be taken, for so long at most, and returns whether they can. It must not wait for what it
    /// holds itself.
    pub(super) fn wait(&mut self, bytes: usize, patience: Duration) -> bool {
        let need = drawn(self.held + bytes) - drawn(self.held);
        let budget = Arc::clone(&self.budget);
        let mut state = budget.state.lock();
        if self.ticket.is_none() {
            let ticket = state.next;
            state.next += 1;
            state.queue.push_back(ticket);
            self.ticket = Some(ticket);
        }
        let waits = |state: &mut State| !self.is_served(state, need);
        let result = budget.changed.wait_while_for(&mut state, waits, patience);
        !result.timed_out()
    }

    /// Gives so many bytes back.
    pub(super) fn give(&mut self, bytes: usize) {
        let less = drawn(self.held) - drawn(self.held - bytes);
        self.held -= bytes;
        if less > 0 {
            self.budget.state.lock().left += less;
            self.budget.changed.notify_all();
        }
    }

    fn step_out(&mut self, state: &mut State) {
        if let Some(ticket) = self.ticket.take() {
            state.queue.retain(|&other| other != ticket);
            self.budget.changed.notify_all();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let budget = Arc::clone(&self.budget);
        self.step_out(&mut budget.state.lock());
        self.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn shares<const N: usize>(common: usize) -> [Share; N] {
        let budget = Arc::new(Budget::new(common));
        std::array::from_fn(|_| Share::new(Arc::clone(&budget)))
    }

    #[test]
    fn one_request_of_the_usual_size_never_waits() {
        let [mut greedy, mut other] = shares(4 * MIB);
        assert!(greedy.take(OWN + 4 * MIB));
        assert!(!greedy.take(1));
        for _ in 0..3 {
            assert!(other.take(OWN));
            assert!(!other.take(1));
            other.give(OWN);
        }
        drop(greedy);
        assert!(other.take(OWN + 4 * MIB));
    }

    #[test]
    fn who_came_first_is_served_first_however_large() {
        let [mut holds, mut large, mut small] = shares(4 * MIB);
        assert!(holds.take(OWN + 2 * MIB));
        assert!(!large.wait(OWN + 4 * MIB, Duration::ZERO));
        assert!(!large.take(OWN + 4 * MIB));
        // There is enough for it, but it is not its turn.
        assert!(!small.take(OWN + MIB));
        assert!(!small.wait(OWN + MIB, Duration::ZERO));
        holds.give(OWN + 2 * MIB);
        assert!(!small.take(OWN + MIB));
        assert!(large.take(OWN + 4 * MIB));
        large.give(OWN + 4 * MIB);
        assert!(small.take(OWN + MIB));
    }

    #[test]
    fn who_gives_up_lets_the_next_go() {
        let [mut holds, mut first, mut second] = shares(4 * MIB);
        assert!(holds.take(OWN + MIB));
        assert!(!first.wait(OWN + 4 * MIB, Duration::ZERO));
        assert!(!second.wait(OWN + MIB, Duration::ZERO));
        assert!(!second.take(OWN + MIB));
        drop(first);
        assert!(second.take(OWN + MIB));
    }

    #[test]
    fn who_waits_is_woken() {
        let [mut holds, mut waits] = shares(4 * MIB);
        assert!(holds.take(OWN + 4 * MIB));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                waits.wait(OWN + MIB, Duration::from_secs(60)) && waits.take(OWN + MIB)
            });
            holds.give(OWN + 4 * MIB);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let budget = Budget::new(0);
        assert!(budget.keep(MOST_KEPT));
        assert!(!budget.keep(1));
        budget.release(1);
        assert!(budget.keep(1));
    }
}
