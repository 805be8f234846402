//! Who is connected. When there are as many as there may be, one that has been silent for long makes room for the next; and who keeps memory
//! from others for answers that it does not take loses it.
//!
//! A live engine says something every two seconds, but not on each of its connections: Paddock's asks how a replica is on one of its own. So the
//! others of its host are left alone.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;

use super::budget::{Budget, COMMON};

/// How much all connections together may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most connections at once. Engines have two or three.
    pub connections: usize,
    /// How long a connection is silent before it may have to make room: no engine waits for longer for an answer.
    pub silence: Duration,
    /// Bytes of requests and answers that connections share.
    pub common: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            silence: Duration::from_secs(60),
            common: COMMON,
        }
    }
}

/// What a connection's thread tells of it.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    /// When something last came, in milliseconds.
    heard: AtomicU64,
    /// A request has come.
    spoke: AtomicBool,
    /// It waits for answers.
    owed: AtomicBool,
    /// It holds memory that others could have, and only its peer can have it give that back.
    hoards: AtomicBool,
    /// When it began to wait for its peer for that, in milliseconds.
    waited: AtomicU64,
}

impl Activity {
    fn new(epoch: Instant) -> Self {
        let activity = Self {
            epoch,
            heard: AtomicU64::new(0),
            spoke: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            hoards: AtomicBool::new(false),
            waited: AtomicU64::new(0),
        };
        activity.hear();
        activity
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something came.
    pub(super) fn hear(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// A request came.
    pub(super) fn speak(&self) {
        self.spoke.store(true, Ordering::Relaxed);
    }

    /// Whether there are requests that came whole and whose answers have not been sent.
    pub(super) fn owe(&self, owed: bool) {
        self.owed.store(owed, Ordering::Relaxed);
    }

    /// Whether it holds memory that others could have, and waits for its peer from now on to have it give that back.
    pub(super) fn hoard(&self, hoards: bool) {
        if hoards {
            self.waited.store(self.now(), Ordering::Relaxed);
        }
        self.hoards.store(hoards, Ordering::Release);
    }

    /// How long ago that was.
    fn since(&self, time: &AtomicU64) -> Duration {
        let time = Duration::from_millis(time.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(time)
    }

    /// How long nothing has come.
    fn silence(&self) -> Duration {
        self.since(&self.heard)
    }
}

/// A connection that was taken in, for its thread.
#[derive(Debug)]
pub(super) struct Guest {
    pub activity: Arc<Activity>,
    pub registry: Arc<Registry>,
}

#[derive(Debug)]
struct Peer {
    socket: OwnedFd,
    /// Its host's, unless it came by a unix socket.
    address: Option<IpAddr>,
    activity: Arc<Activity>,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Registry {
    limits: Limits,
    epoch: Instant,
    /// What they share.
    pub budget: Arc<Budget>,
    peers: Mutex<HashMap<u64, Peer>>,
    /// A connection has ended.
    ended: Condvar,
}

impl Registry {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            epoch: Instant::now(),
            budget: Arc::new(Budget::new(limits.common)),
            peers: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Takes a connection in, for which another may have to go.
    ///
    /// # Errors
    /// When there are too many, all of which are in use.
    pub(super) fn enter(
        registry: &Arc<Self>,
        number: u64,
        socket: OwnedFd,
        address: Option<IpAddr>,
    ) -> io::Result<Guest> {
        let most = registry.limits.connections;
        let mut peers = registry.peers.lock();
        if peers.len() >= most {
            let silent = registry.longest_silent(&peers);
            let silent = silent.and_then(|silent| peers.remove(&silent));
            let silent = silent.ok_or_else(|| {
                io::Error::other(format!(
                    "there are {most} already, and all of them are in use"
                ))
            })?;
            let silence = silent.activity.silence();
            tracing::warn!(address = ?silent.address, ?silence, "a silent data connection makes room for another");
            // Its thread ends by that.
            let _ = rustix::net::shutdown(&silent.socket, Shutdown::Both);
        }
        let activity = Arc::new(Activity::new(registry.epoch));
        let peer = Peer {
            socket,
            address,
            activity: Arc::clone(&activity),
        };
        peers.insert(number, peer);
        Ok(Guest {
            activity,
            registry: Arc::clone(registry),
        })
    }

    /// The one that has been silent for the longest time, of those that may go.
    fn longest_silent(&self, peers: &HashMap<u64, Peer>) -> Option<u64> {
        let is_silent = |peer: &Peer| peer.activity.silence() > self.limits.silence;
        let spoke = |peer: &Peer| peer.activity.spoke.load(Ordering::Relaxed);
        let alive: std::collections::HashSet<_> = peers
            .values()
            .filter(|peer| spoke(peer) && !is_silent(peer))
            .map(|peer| peer.address)
            .collect();
        peers
            .iter()
            .filter(|(_, peer)| is_silent(peer) && !peer.activity.owed.load(Ordering::Relaxed))
            .filter(|(_, peer)| !spoke(peer) || !alive.contains(&peer.address))
            .max_by_key(|(_, peer)| peer.activity.silence())
            .map(|(number, _)| *number)
    }

    /// Ends those that keep memory from others and have not moved for longer than any engine waits.
    pub(super) fn end_hoarders(&self) {
        for peer in self.peers.lock().values() {
            let Peer {
                activity, address, ..
            } = peer;
            let hoards = activity.hoards.load(Ordering::Acquire);
            let still = activity.since(&activity.waited);
            if hoards && still > self.limits.silence {
                tracing::warn!(
                    ?address,
                    ?still,
                    "a data connection that does not move holds memory that others wait for, and is ended"
                );
                let _ = rustix::net::shutdown(&peer.socket, Shutdown::Both);
            }
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&self, number: u64) {
        self.peers.lock().remove(&number);
        tracing::info!("a data connection has ended");
        self.ended.notify_all();
    }

    /// Nothing more is to come from anybody.
    pub(super) fn hush(&self) {
        for peer in self.peers.lock().values() {
            let _ = rustix::net::shutdown(&peer.socket, Shutdown::Read);
        }
    }

    /// Waits until all have ended. Whether they were in time.
    pub(super) fn await_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut peers = self.peers.lock();
        while !peers.is_empty() {
            if self.ended.wait_until(&mut peers, deadline).timed_out() {
                return peers.is_empty();
            }
        }
        true
    }
}
