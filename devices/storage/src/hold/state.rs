//! What the queues of a disk and its supervisor agree on: the phase the disk is in, and the handle in use.
//!
//! A queue looks at one atomic number, the epoch; only when that has changed does it take the lock. Whoever changes what queues must act on
//! raises the epoch and wakes them, both with the lock held: a queue that has seen the new epoch and takes the lock finds its event
//! written, and can reset it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Failure, Listener, News, Opener, Policy, Retry, Status, Then};
use crate::{Capabilities, Disk};

/// What queues do with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// They go to the disk. All is well.
    Open,
    /// They are held.
    Held,
    /// They are held, and queues let go of the handle as soon as it has nothing of theirs.
    Closing,
    /// They go to the disk, those that were held first. Whether it is well is not known yet. With nothing held (it was dropped, as in a
    /// reset) the next request finds out, and nobody else waits for that.
    Trying,
    /// They go to the disk and failures are reported.
    Reporting,
}

/// From the first failure until the disk is well again.
#[derive(Debug)]
pub(super) struct Episode {
    pub failure: Failure,
    /// When the deadline began.
    pub began: Instant,
    pub attempts: u32,
    /// When the last one was made; at first, when it failed.
    pub attempted: Instant,
    /// Nothing is tried without a resume.
    pub stopped: bool,
    /// In this attempt a request has succeeded.
    pub proven: bool,
}

impl Episode {
    /// Requests fail from now on, for the first time or after nobody has waited for a while.
    fn fails(&mut self, policy: Policy) {
        let now = Instant::now();
        (self.began, self.attempted) = (now, now);
        self.stopped = policy == Policy::Stop;
    }
}

pub(super) struct State {
    pub phase: Phase,
    /// `None` once it was closed and could not be opened anew.
    pub disk: Option<Arc<dyn Disk>>,
    /// The last known, for when it is closed.
    pub capabilities: Capabilities,
    pub repeats_flush: bool,
    /// Counts handles.
    pub generation: u64,
    pub episode: Option<Episode>,
    /// Requests that are held, or were and are not answered.
    pub held: usize,
    /// Queues that have the handle open.
    pub users: usize,
    /// By queue, what wakes it.
    wakes: Vec<(u64, OwnedFd)>,
    next_queue: u64,
    /// A supervisor is at work.
    pub supervised: bool,
    /// An attempt is wanted at once.
    pub hurry: bool,
    /// While reporting: the handle is to be replaced.
    pub stale: bool,
    /// The owner is gone.
    pub closed: bool,
}

impl State {
    /// It is not known whether the disk is well, and the next request finds out: nothing is held that could be tried.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Trying && self.held == 0
    }
}

pub(super) struct Shared {
    pub policy: Policy,
    pub opener: Option<Opener>,
    listener: Listener,
    start: StartSupervisor,
    state: Mutex<State>,
    /// Told to the supervisor.
    changed: Condvar,
    pub epoch: AtomicU64,
    errors: AtomicU64,
    /// Writes were acknowledged that no flush has covered. Kept only where flushes cannot be repeated.
    pub unflushed: AtomicBool,
    /// Such writes may be lost: the next flush says so.
    pub lost: AtomicBool,
}

/// Starts a thread that makes attempts. Tests have one that fails.
pub(super) type StartSupervisor = fn(Arc<Shared>) -> io::Result<()>;

/// What to do with a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Hold,
    Report,
}

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        policy: Policy,
        opener: Option<Opener>,
        listener: Listener,
        start: StartSupervisor,
    ) -> Self {
        let state = State {
            phase: Phase::Open,
            capabilities: disk.capabilities(),
            repeats_flush: disk.repeats_flush(),
            disk: Some(disk),
            generation: 0,
            episode: None,
            held: 0,
            users: 0,
            wakes: Vec::new(),
            next_queue: 0,
            supervised: false,
            hurry: false,
            stale: false,
            closed: false,
        };
        Self {
            policy,
            opener,
            listener,
            start,
            state: Mutex::new(state),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most until `deadline`.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(deadline) = deadline else {
            let waited = self.changed.wait(state);
            return waited.unwrap_or_else(PoisonError::into_inner);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(state, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells queues and supervisor to look.
    pub(super) fn ring(&self, state: &State) {
        self.epoch.fetch_add(1, Ordering::Release);
        for (_, wake) in &state.wakes {
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
        self.changed.notify_all();
    }

    pub(super) fn enter(&self, state: &mut State, phase: Phase) {
        state.phase = phase;
        self.ring(state);
    }

    pub(super) fn tell(&self, news: News) {
        (self.listener)(news);
    }

    /// Adds a queue that `wake` wakes. Returns its number.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub(super) fn join(&self, wake: impl AsFd) -> io::Result<u64> {
        let wake = wake.as_fd().try_clone_to_owned()?;
        let mut state = self.lock();
        let number = state.next_queue;
        state.next_queue += 1;
        state.wakes.push((number, wake));
        Ok(number)
    }

    /// A queue goes, with so many requests that were held.
    pub(super) fn leave(&self, number: u64, held: usize) {
        let mut state = self.lock();
        state.wakes.retain(|(other, _)| *other != number);
        self.settle(&mut state, held);
    }

    /// A queue has closed its handle.
    pub(super) fn let_go(&self) {
        self.lock().users -= 1;
        self.changed.notify_all();
    }

    /// A request failed on the handle of `generation`. With [`Verdict::Hold`] it counts as held, unless it `counted` already.
    pub(super) fn failed(
        self: &Arc<Self>,
        errno: i32,
        offset: Option<u64>,
        generation: u64,
        counted: bool,
    ) -> Verdict {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        match state.phase {
            Phase::Reporting => {
                if self.opener.is_some() && !state.stale && generation == state.generation {
                    state.stale = true;
                    self.supervise(&mut state);
                }
                return Verdict::Report;
            }
            Phase::Open if generation == state.generation => {
                self.begin(&mut state, errno, offset);
            }
            Phase::Trying if generation == state.generation => {
                let idle = state.is_idle();
                if let Some(episode) = &mut state.episode {
                    episode.failure.errno = errno;
                    if idle {
                        episode.fails(self.policy);
                    }
                }
                self.enter(&mut state, Phase::Held);
                if idle {
                    self.look_after(&mut state);
                }
            }
            // Of a handle that is on its way out: it will be replayed on the present one.
            Phase::Open | Phase::Trying | Phase::Held | Phase::Closing => {}
        }
        if !counted {
            state.held += 1;
        }
        Verdict::Hold
    }

    fn begin(self: &Arc<Self>, state: &mut State, errno: i32, offset: Option<u64>) {
        let now = Instant::now();
        let failure = Failure {
            errno,
            offset,
            since: SystemTime::now(),
        };
        let mut episode = Episode {
            failure,
            began: now,
            attempts: 0,
            attempted: now,
            stopped: false,
            proven: false,
        };
        episode.fails(self.policy);
        state.episode = Some(episode);
        self.enter(state, Phase::Held);
        self.tell(News::Failed(failure));
        self.look_after(state);
    }

    /// Sees to it that what is held from now on is tried again, by a supervisor or the owner.
    fn look_after(self: &Arc<Self>, state: &mut State) {
        match &state.episode {
            Some(episode) if episode.stopped => self.tell(News::Stopped(episode.failure)),
            _ => self.supervise(state),
        }
    }

    /// Counts requests as held that were never tried.
    pub(super) fn hold(&self) {
        self.lock().held += 1;
    }

    /// So many requests that were held have been answered, or dropped.
    pub(super) fn settle(&self, state: &mut State, count: usize) {
        state.held -= count;
        if state.held > 0 || state.phase != Phase::Trying {
            return;
        }
        if state.episode.as_ref().is_some_and(|episode| episode.proven) {
            self.recovered(state);
        } else {
            // Nobody waits for the outcome any more.
            self.changed.notify_all();
        }
    }

    /// A request succeeded on the handle of `generation` while it was not known whether the disk is well.
    pub(super) fn succeeded(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation != generation {
            return;
        }
        match (state.phase, &mut state.episode) {
            (Phase::Reporting, _) => self.recovered(&mut state),
            (Phase::Trying, Some(episode)) => {
                episode.proven = true;
                self.settle(&mut state, 0);
            }
            _ => {}
        }
    }

    fn recovered(&self, state: &mut State) {
        self.enter(state, Phase::Open);
        state.stale = false;
        if let Some(episode) = state.episode.take() {
            let after = episode.failure.since.elapsed().unwrap_or_default();
            let attempts = episode.attempts;
            self.tell(News::Recovered { after, attempts });
        }
    }

    /// The deadline is over.
    pub(super) fn expire(&self, state: &mut State, retry: Retry) {
        let Some(episode) = &mut state.episode else {
            return;
        };
        let failure = episode.failure;
        if retry.then == Then::Stop {
            episode.stopped = true;
            self.enter(state, Phase::Held);
            self.tell(News::Stopped(failure));
        } else {
            state.stale = self.opener.is_some();
            self.enter(state, Phase::Reporting);
            self.tell(News::Reporting(failure));
        }
    }

    /// When the time for attempts is over, and how it goes on then.
    pub(super) fn deadline(&self, state: &State) -> Option<(Instant, Retry)> {
        match (self.policy, &state.episode) {
            (Policy::Retry(retry), Some(episode)) => {
                // A deadline beyond what the clock counts is none.
                Some((episode.began.checked_add(retry.deadline)?, retry))
            }
            _ => None,
        }
    }

    pub(super) fn resume(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.lock();
        if state.is_idle() {
            // It is the next request's to try.
            return Ok(());
        }
        let Some(episode) = &mut state.episode else {
            return Ok(());
        };
        if episode.stopped {
            episode.stopped = false;
            episode.began = Instant::now();
        }
        state.hurry = true;
        let started = self.start_supervisor(&mut state);
        if let (Err(_), Some(episode)) = (&started, &mut state.episode) {
            episode.stopped = true;
            let failure = episode.failure;
            state.hurry = false;
            self.tell(News::Stopped(failure));
        }
        self.changed.notify_all();
        started
    }

    fn supervise(self: &Arc<Self>, state: &mut State) {
        if let Err(error) = self.start_supervisor(state) {
            tracing::error!(%error, "no thread for a disk that fails; its requests are held until it is resumed");
            if let Some(episode) = &mut state.episode {
                episode.stopped = true;
                self.tell(News::Stopped(episode.failure));
            }
        }
    }

    fn start_supervisor(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if !state.supervised {
            (self.start)(Arc::clone(self))?;
            state.supervised = true;
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Status {
        let state = self.lock();
        let episode = state.episode.as_ref();
        Status {
            failure: episode.map(|episode| episode.failure),
            stopped: episode.is_some_and(|episode| episode.stopped),
            reporting: state.phase == Phase::Reporting,
            requests: state.held,
            attempts: episode.map_or(0, |episode| episode.attempts),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let mut state = self.lock();
        if let Some(disk) = &state.disk {
            state.capabilities = disk.capabilities();
        }
        state.capabilities.clone()
    }

    pub(super) fn repeats_flush(&self) -> bool {
        self.lock().repeats_flush
    }

    /// Writes were acknowledged, or a flush of them failed, where flushes cannot be repeated. Those of a handle that has been replaced since are lost: no
    /// flush of the new one covers them.
    pub(super) fn note_unflushed(&self, generation: u64) {
        // Under the lock, as the handle is replaced under it.
        let state = self.lock();
        let noted = match state.generation == generation {
            true => &self.unflushed,
            false => &self.lost,
        };
        noted.store(true, Ordering::Release);
    }

    /// Asked before a flush where flushes cannot be repeated. `false` if it has to fail, once.
    pub(super) fn may_flush(&self) -> bool {
        if self.lost.swap(false, Ordering::AcqRel) {
            tracing::error!(
                "writes that no flush had covered may be lost with the page cache of a disk that vanished"
            );
            return false;
        }
        self.unflushed.store(false, Ordering::Release);
        true
    }

    /// The owner is gone: nothing is tried any more. The handle is closed here, unless queues have it: the supervisor may take a while to end.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let unused = if state.users == 0 {
            state.disk.take()
        } else {
            None
        };
        drop(state);
        self.changed.notify_all();
        drop(unused);
    }
}

/// How long queues may take to let go of the handle.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
