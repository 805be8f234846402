//! What the connections to one export have in common: the journal, and who connects anew when one of them is lost.
//!
//! # Epochs
//! When a connection is lost, all of them are, and the epoch ends: which writes a server has forgotten cannot be told by one connection alone. In
//! an epoch that has ended no answer counts any more. A thread of its own, which may block, connects, finds the export as it was, writes
//! the journal anew in its order, flushes, and only then begins the next epoch and hands out connections; the queues send what they
//! had on its way again. The locks here are taken by queues for moments, once for a batch of answers.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connect::{Connected, connect};
use super::connection::Connection;
use super::error::{Failure, NbdErrorKind};
use super::handshake::Export;
use super::journal::{Entry, Journal};
use super::requests::Limits;
use super::{NbdError, NbdOptions, replay, tls};
use crate::Capabilities;

/// Bytes of the stack of the thread that connects: TLS wants some.
const STACK_SIZE: usize = 1 << 20;

/// Bytes of the journal at which it is flushed, and at which nothing more is written until it has been. With what the queues have on its way, it is
/// the most that a disk takes of the process's memory.
const JOURNAL_FLUSH: usize = 8 << 20;
const JOURNAL_FULL: usize = 16 << 20;

/// Time before the second attempt to connect; doubled with each that fails, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What is put where a queue finds it.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Readable when there is something.
    pub event: EventFd,
    /// Set after `event` was written: who finds it set can read the event.
    rung: AtomicBool,
    connection: Mutex<Option<(u64, Connection)>>,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            rung: AtomicBool::new(false),
            connection: Mutex::new(None),
        })
    }

    pub(super) fn ring(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
        self.rung.store(true, Ordering::Release);
    }

    /// Whether there may be something, once for each ring.
    pub(super) fn heard(&self) -> bool {
        let rung = self.rung.swap(false, Ordering::AcqRel);
        if rung {
            let _ = self.event.read();
        }
        rung
    }

    /// A connection, and the epoch that it is of.
    pub(super) fn take(&self) -> Option<(u64, Connection)> {
        lock(&self.connection).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A queue's place.
#[derive(Debug)]
struct Seat {
    mailbox: Arc<Mailbox>,
    /// The epoch of the last connection it was given; 0 for none.
    served: u64,
}

#[derive(Debug)]
struct State {
    /// Counted from 1.
    epoch: u64,
    /// Whether it has begun: the journal has been written anew.
    begun: bool,
    journal: Journal,
    seats: Vec<Seat>,
    /// A connection of the present epoch that no queue has.
    spare: Option<Connection>,
    /// Whether there is a thread that connects.
    connects: bool,
    /// Attempts that failed since one did not.
    failures: u32,
    /// Epochs that ended, one after the other, without a single answer.
    barren: u32,
    /// Whether a server has answered in this epoch.
    answered: bool,
    /// Whether a queue is about to flush the journal.
    flushing: bool,
    closed: bool,
}

/// What an acknowledged batch of answers asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// Nothing.
    Fine,
    /// A flush, for the journal's sake.
    Flush,
    /// The epoch has ended: the answers do not count.
    TooLate,
}

/// An export, and its connections.
#[derive(Debug)]
pub(super) struct Session {
    options: NbdOptions,
    export: Export,
    pub capabilities: Capabilities,
    pub limits: Limits,
    /// Whether the server has a cache that forgets.
    journaled: bool,
    state: Mutex<State>,
    /// For the thread that connects.
    wake: Condvar,
    journal_bytes: AtomicUsize,
    /// Whether a queue waits for the journal to have room.
    starved: AtomicBool,
}

/// A [`Session`] that ends with the last of its users.
#[derive(Debug)]
pub(super) struct Handle(pub Arc<Session>);

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let spare = state.spare.take();
        drop(state);
        self.0.wake.notify_all();
        if let Some(spare) = spare {
            spare.close();
        }
    }
}

/// Reads the certificates anew each time, for they expire.
fn credentials(options: &NbdOptions) -> Result<Option<Arc<ClientConfig>>, Failure> {
    match (&options.tls, options.uri.tls) {
        (Some(tls), true) => {
            tls::server_name(options)?;
            tls::configure(tls).map(Some)
        }
        (None, false) => Ok(None),
        (_, demanded) => Err(NbdErrorKind::TlsOptions { demanded }.into()),
    }
}

fn dial(options: &NbdOptions) -> Result<Connected, Failure> {
    let credentials = credentials(options)?;
    connect(options, credentials.as_ref())
}

impl Session {
    /// Connects for the first time.
    pub(super) fn open(options: NbdOptions) -> Result<Handle, NbdError> {
        let opened = dial(&options).and_then(|connected| {
            let (connection, export) = Connection::new(connected);
            let (capabilities, limits) = super::examine(&export, &options)?;
            Ok((connection, export, capabilities, limits))
        });
        let (connection, export, capabilities, limits) =
            opened.map_err(|failure| failure.of(&options.uri))?;
        let state = State {
            epoch: 1,
            begun: true,
            journal: Journal::default(),
            seats: Vec::new(),
            spare: Some(connection),
            connects: false,
            failures: 0,
            barren: 0,
            answered: true,
            flushing: false,
            closed: false,
        };
        Ok(Handle(Arc::new(Self {
            options,
            export,
            journaled: capabilities.flush && !capabilities.read_only,
            capabilities,
            limits,
            state: Mutex::new(state),
            wake: Condvar::new(),
            journal_bytes: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn options(&self) -> &NbdOptions {
        &self.options
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Adds a queue, which gets a connection by its mailbox.
    pub(super) fn join(self: &Arc<Self>) -> io::Result<Arc<Mailbox>> {
        let mailbox = Arc::new(Mailbox::new()?);
        let mut state = self.lock();
        state.seats.push(Seat {
            mailbox: Arc::clone(&mailbox),
            served: 0,
        });
        if let Some(spare) = state.spare.take() {
            self.serve(&mut state, spare);
        }
        self.reconnect(&mut state);
        Ok(mailbox)
    }

    /// Removes a queue, and keeps its connection for the next if it is clean. `flushing` says that the queue was about to flush the journal.
    pub(super) fn leave(
        &self,
        mailbox: &Arc<Mailbox>,
        connection: Option<(u64, Connection)>,
        flushing: bool,
    ) {
        let mut state = self.lock();
        state
            .seats
            .retain(|seat| !Arc::ptr_eq(&seat.mailbox, mailbox));
        if flushing {
            state.flushing = false;
            self.feed(&state);
        }
        let (connection, rest) = match connection.or_else(|| mailbox.take()) {
            Some((epoch, connection))
                if epoch == state.epoch
                    && state.begun
                    && state.spare.is_none()
                    && connection.is_quiet() =>
            {
                (Some(connection), None)
            }
            other => (None, other),
        };
        if connection.is_some() {
            state.spare = connection;
        }
        drop(state);
        if let Some((_, connection)) = rest {
            connection.close();
        }
    }

    /// The epoch now, if it has begun.
    pub(super) fn epoch(&self) -> Option<u64> {
        let state = self.lock();
        state.begun.then_some(state.epoch)
    }

    /// A connection of this epoch was lost.
    pub(super) fn lost(self: &Arc<Self>, epoch: u64, error: &io::Error) {
        let mut state = self.lock();
        if state.epoch != epoch || !state.begun {
            return;
        }
        let uri = &self.options.uri;
        tracing::warn!(%uri, %error, unflushed = state.journal.bytes(), "connection lost; connecting again");
        state.epoch += 1;
        state.begun = false;
        state.barren = match state.answered {
            true => 0,
            false => state.barren.saturating_add(1),
        };
        state.failures = state.barren;
        state.answered = false;
        state.flushing = false;
        drop(state.spare.take());
        for seat in &state.seats {
            seat.mailbox.ring();
        }
        self.reconnect(&mut state);
    }

    /// Takes note of answers, before anybody hears of them: what was written and `mark`, what was flushed.
    pub(super) fn acknowledge(
        &self,
        epoch: u64,
        entries: impl Iterator<Item = Entry>,
        mark: Option<u64>,
    ) -> Acknowledged {
        let mut state = self.lock();
        if state.epoch != epoch || !state.begun {
            return Acknowledged::TooLate;
        }
        state.answered = true;
        if !self.journaled {
            return Acknowledged::Fine;
        }
        entries.for_each(|entry| state.journal.push(entry));
        if let Some(mark) = mark {
            state.journal.flushed(mark);
        }
        let bytes = state.journal.bytes();
        self.journal_bytes.store(bytes, Ordering::Release);
        if bytes < JOURNAL_FLUSH {
            self.feed(&state);
        } else if !std::mem::replace(&mut state.flushing, true) {
            return Acknowledged::Flush;
        }
        Acknowledged::Fine
    }

    /// A flush for the journal's sake was answered.
    pub(super) fn flushed(&self, epoch: u64) {
        let mut state = self.lock();
        if state.epoch == epoch {
            state.flushing = false;
        }
        self.feed(&state);
    }

    /// What a flush that is sent now covers.
    pub(super) fn mark(&self) -> u64 {
        self.lock().journal.mark()
    }

    /// Whether nothing more is to be written before the journal has been flushed.
    pub(super) fn is_full(&self) -> bool {
        self.journal_bytes.load(Ordering::Acquire) >= JOURNAL_FULL
    }

    /// A queue waits for room in the journal; it is rung for then. Whether it is to flush it: also where another queue does already, for that hears of
    /// the answer only when its user looks.
    pub(super) fn starve(&self) -> bool {
        self.starved.store(true, Ordering::Release);
        let mut state = self.lock();
        if state.journal.bytes() < JOURNAL_FULL {
            self.feed(&state);
            return false;
        }
        state.flushing = true;
        true
    }

    fn feed(&self, state: &State) {
        if self.starved.swap(false, Ordering::AcqRel) {
            for seat in &state.seats {
                seat.mailbox.ring();
            }
        }
    }

    /// Gives a connection to a queue that has none, or keeps it.
    fn serve(&self, state: &mut State, connection: Connection) {
        let epoch = state.epoch;
        match state.seats.iter_mut().find(|seat| seat.served != epoch) {
            Some(seat) => {
                seat.served = epoch;
                *lock(&seat.mailbox.connection) = Some((epoch, connection));
                seat.mailbox.ring();
            }
            None => state.spare = Some(connection),
        }
    }

    /// Starts the thread that connects, if it is needed.
    fn reconnect(self: &Arc<Self>, state: &mut State) {
        if state.connects || !wants(state) {
            return;
        }
        let session = Arc::clone(self);
        let thread = std::thread::Builder::new().name("nbd-connect".to_owned());
        match thread.stack_size(STACK_SIZE).spawn(move || session.run()) {
            Ok(_) => state.connects = true,
            // A queue that waits asks again.
            Err(error) => {
                tracing::warn!(uri = %self.options.uri, %error, "no thread to connect with");
            }
        }
    }

    /// Asks for a connection once more.
    pub(super) fn nudge(self: &Arc<Self>) {
        self.reconnect(&mut self.lock());
    }

    /// The thread that connects, until every queue has a connection.
    fn run(&self) {
        let mut state = self.lock();
        while wants(&state) {
            let failures = state.failures;
            if failures > 0 {
                let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10));
                let pause = pause.min(LONGEST_PAUSE);
                let over = |state: &mut State| !state.closed;
                let waited = self.wake.wait_timeout_while(state, pause, over);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !wants(&state) {
                    break;
                }
            }
            let (epoch, begun) = (state.epoch, state.begun);
            let entries: Vec<Entry> = match begun {
                true => Vec::new(),
                false => state.journal.entries().cloned().collect(),
            };
            drop(state);
            let result = self.attempt(begun, entries);
            state = self.lock();
            match result {
                // The epoch may have ended meanwhile; then this connection is of no use.
                Ok(connection) if state.epoch == epoch && state.begun == begun => {
                    state.failures = 0;
                    if !begun {
                        self.begin(&mut state);
                    }
                    self.serve(&mut state, connection);
                }
                Ok(_) => {}
                Err(failure) => {
                    state.failures = state.failures.saturating_add(1);
                    let error = failure.of(&self.options.uri);
                    let source = error.source.as_ref().map(tracing::field::display);
                    if failures == 0 {
                        tracing::warn!(%error, source, "cannot connect; trying again");
                    } else {
                        tracing::debug!(%error, source, failures, "cannot connect; trying again");
                    }
                }
            }
        }
        state.connects = false;
    }

    /// Begins an epoch: everything that was acknowledged is on stable storage.
    fn begin(&self, state: &mut State) {
        let mark = state.journal.mark();
        state.journal.flushed(mark);
        self.journal_bytes.store(0, Ordering::Release);
        state.begun = true;
        self.feed(state);
        tracing::info!(uri = %self.options.uri, "connected again");
    }

    /// Connects, and writes the journal anew unless the epoch has begun.
    fn attempt(&self, begun: bool, entries: Vec<Entry>) -> Result<Connection, Failure> {
        let (mut connection, export) = Connection::new(dial(&self.options)?);
        if !self.export.is_same(&export) {
            return Err(NbdErrorKind::Changed.into());
        }
        if !begun && self.journaled {
            replay::replay(&mut connection, entries, self.options.request_timeout)?;
        }
        Ok(connection)
    }
}

/// Whether there is somebody without a connection.
fn wants(state: &State) -> bool {
    let unserved = |seat: &Seat| seat.served != state.epoch;
    !state.closed && state.seats.iter().any(unserved)
}
