//! The gate between the data path and whoever changes the chain: connections go in with the present chain and come out when they have
//! nothing in flight; a change is made while nobody is inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::chain::Chain;
use crate::error::{Error, Result};

/// The gate, which holds the chain while the replica is open.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody waits until nobody is inside.
    closing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    chain: Option<Arc<Chain>>,
    inside: usize,
    closed: bool,
}

/// Being inside, until it is dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    /// The chain.
    pub chain: Arc<Chain>,
}

impl Pass {
    /// Whether somebody waits for this one to come out.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        self.gate.closing.load(Ordering::Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.gate.changed.notify_all();
        }
    }
}

impl Gate {
    /// Goes in, after whatever change is under way; `None` while the replica is not open. Not to be called by who is inside.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.state.lock();
        while state.closed {
            self.changed.wait(&mut state);
        }
        let chain = Arc::clone(state.chain.as_ref()?);
        state.inside += 1;
        Some(Pass {
            gate: Arc::clone(self),
            chain,
        })
    }

    /// The present chain, for who only looks.
    #[must_use]
    pub fn chain(&self) -> Option<Arc<Chain>> {
        self.state.lock().chain.clone()
    }

    /// Makes a change while nobody is inside. One at a time: the caller holds the lock of what else changes.
    ///
    /// # Errors
    /// The change's own, and when those inside do not come out.
    pub fn alone<T>(
        &self,
        patience: Duration,
        change: impl FnOnce(&mut Option<Arc<Chain>>) -> Result<T>,
    ) -> Result<T> {
        let end = Instant::now() + patience;
        let mut state = self.state.lock();
        state.closed = true;
        self.closing.store(true, Ordering::Relaxed);
        while state.inside > 0 {
            if self.changed.wait_until(&mut state, end).timed_out() && state.inside > 0 {
                self.open(&mut state);
                let problem =
                    "requests are stuck on the disk, and nothing can be changed meanwhile";
                return Err(Error::refused(problem));
            }
        }
        // Who wants in waits on the condition, and who only looks sees the old one, while this one works.
        let mut chain = state.chain.clone();
        let result = parking_lot::MutexGuard::unlocked(&mut state, || change(&mut chain));
        state.chain = chain;
        self.open(&mut state);
        result
    }

    fn open(&self, state: &mut State) {
        state.closed = false;
        self.closing.store(false, Ordering::Relaxed);
        self.changed.notify_all();
    }
}
