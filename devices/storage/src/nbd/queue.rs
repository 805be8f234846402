//! A queue that drives a connection of its own, on its user's thread.
//!
//! Everything it waits for is in one epoll instance: the socket, the mailbox, a timer that ticks while something is in flight, and what the user
//! has it watch. What the timer and the mailbox have to say is known without a system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::connection::Connection;
use super::protocol;
use super::requests::{CANCELED, Requests};
use super::session::{Acknowledged, Handle, Mailbox};
use crate::{Completion, DiskQueue, IoError, Operation, Request};

const SOCKET: u64 = 0;
const MAIL: u64 = 1;
const TICK: u64 = 2;
const WATCHED: u64 = 3;

/// The longest time between two looks at deadlines.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// So many times the inactivity deadline a request may take when the server answers others.
const STARVED: u32 = 10;

/// A queue with a connection of its own.
pub(super) struct NbdQueue {
    handle: Arc<Handle>,
    mailbox: Arc<Mailbox>,
    epoll: OwnedFd,
    timer: OwnedFd,
    tick: Duration,
    /// When the timer ticks next; `None` while it is not set.
    looks: Option<Instant>,
    connection: Option<Connection>,
    /// Of the connection, or of the last.
    epoch: u64,
    /// Whether the socket is polled for room.
    polls_room: bool,
    /// Why the connection is to be given up.
    broken: Option<io::Error>,
    requests: Requests,
    done: Vec<Completion>,
    /// When something last came.
    heard: Instant,
    /// Since when there is no server that answers; `None` while there is one, and while nobody wants any.
    down: Option<Instant>,
    abandoned: bool,
}

impl NbdQueue {
    pub(super) fn new(handle: Arc<Handle>) -> io::Result<Self> {
        let session = &handle.0;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let options = session.options();
        let tick = options.request_timeout.min(options.reconnect_deadline) / 4;
        let tick = tick.clamp(Duration::from_millis(10), LONGEST_TICK);
        let requests = Requests::new(session.limits);
        let mailbox = session.join()?;
        let queue = Self {
            handle,
            mailbox,
            epoll,
            timer,
            tick,
            looks: None,
            connection: None,
            epoch: 0,
            polls_room: false,
            broken: None,
            requests,
            done: Vec::new(),
            heard: Instant::now(),
            down: None,
            abandoned: false,
        };
        queue.poll(crate::fd::borrow(&queue.mailbox.event), MAIL)?;
        queue.poll(queue.timer.as_fd(), TICK)?;
        Ok(queue)
    }

    fn poll(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Polls the socket for room as long as something is to be sent.
    fn poll_room(&mut self) -> io::Result<()> {
        let Some(connection) = &self.connection else {
            return Ok(());
        };
        let wanted = connection.has_outgoing();
        if wanted != self.polls_room {
            let mut events = epoll::EventFlags::IN;
            events.set(epoll::EventFlags::OUT, wanted);
            let data = epoll::EventData::new_u64(SOCKET);
            epoll::modify(&self.epoll, connection.fd(), data, events)?;
            self.polls_room = wanted;
        }
        Ok(())
    }

    /// An error that is dealt with when the queue is next looked at.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.broken.get_or_insert(error);
            self.mailbox.ring();
        }
    }

    /// Answers at once, and sees to it that somebody looks.
    fn answer(&mut self, tag: u64, result: Result<(), IoError>) {
        self.done.push(Completion { tag, result });
        self.mailbox.ring();
    }

    /// Nobody waits any more for the requests that `whose` finds by their tags.
    pub(super) fn abandon_those(&mut self, whose: impl Fn(u64) -> bool) {
        let connection = self.connection.as_mut();
        self.requests.abandon(whose, connection, &mut self.done);
        self.mailbox.ring();
    }

    fn read_mail(&mut self) {
        if !self.mailbox.heard() {
            return;
        }
        // In this order: an epoch that begins in between is not taken for one that has ended.
        let mail = self.mailbox.take();
        let now = self.handle.0.epoch();
        if self.connection.is_some() && now != Some(self.epoch) {
            self.hang_up();
        }
        if let Some((epoch, connection)) = mail {
            // It may have come from an epoch that has ended since.
            if now == Some(epoch) {
                self.adopt(epoch, connection);
            }
        }
    }

    /// Goes on with a new connection.
    fn adopt(&mut self, epoch: u64, mut connection: Connection) {
        self.epoch = epoch;
        self.polls_room = false;
        self.heard = Instant::now();
        let polled = self.poll(connection.fd(), SOCKET);
        let mark = self.handle.0.mark();
        self.requests.resend(&mut connection, mark);
        self.connection = Some(connection);
        self.note(polled);
    }

    /// Gives the connection up, with nothing said on it any more.
    fn hang_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = epoll::delete(&self.epoll, connection.fd());
        }
        self.broken = None;
        self.requests.rewind();
        self.requests.complete(&mut self.done);
        self.requests.end_abandoned(|_| true, &mut self.done);
        if !self.requests.is_empty() {
            self.down.get_or_insert_with(Instant::now);
        }
    }

    fn lose(&mut self, error: &io::Error) {
        self.hang_up();
        self.handle.0.lost(self.epoch, error);
    }

    /// Takes in what came.
    fn receive(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let received = connection.receive(&mut self.requests);
        if !matches!(received, Ok(false)) {
            self.heard = Instant::now();
        }
        self.acknowledge();
        self.note(received.map(drop));
    }

    /// Answers of the server's become the user's, unless they came too late.
    fn acknowledge(&mut self) {
        if !self.requests.has_answers() {
            return;
        }
        let session = Arc::clone(&self.handle.0);
        let flushed = self.requests.flushed();
        let entries = self.requests.entries();
        let acknowledged = session.acknowledge(self.epoch, entries, flushed.mark);
        if acknowledged == Acknowledged::TooLate {
            self.hang_up();
            return;
        }
        self.down = None;
        self.requests.complete(&mut self.done);
        if flushed.failed {
            // The server's kernel may have forgotten what it could not write, and its next flush would say nothing of that. So all is
            // written anew, and whoever asks next hears the truth.
            let error = io::Error::other("the server fails to flush");
            self.note(Err(error));
        } else if flushed.own {
            session.flushed(self.epoch);
        }
        if acknowledged == Acknowledged::Flush {
            self.requests.submit_own_flush();
        }
    }

    /// Sends what there is room for.
    fn send(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let session = &self.handle.0;
        let full = session.is_full();
        let starves = self.requests.cut(connection, full, || session.mark());
        let sent = connection.send();
        let polled = sent.and_then(|()| self.poll_room());
        self.note(polled);
        if starves && !self.requests.has_own_flush() && self.handle.0.starve() {
            self.requests.submit_own_flush();
            self.mailbox.ring();
        }
    }

    /// Looks at the deadlines.
    fn look(&mut self) {
        let now = Instant::now();
        if self.looks.is_none_or(|looks| now < looks) {
            return;
        }
        let mut ticks = [0; 8];
        let _ = rustix::io::read(&self.timer, &mut ticks);
        // Set again as long as there is something in flight.
        self.looks = None;
        let options = self.handle.0.options();
        let timeout = options.request_timeout;
        if self.connection.is_some() {
            let Some(sent) = self.requests.oldest() else {
                return;
            };
            let quiet = now.saturating_duration_since(self.heard.max(sent));
            let waited = now.saturating_duration_since(sent);
            if quiet >= timeout || waited >= timeout.saturating_mul(STARVED) {
                let text = "the server does not answer a request";
                self.note(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            return;
        }
        self.handle.0.nudge();
        if self.is_given_up(now) {
            let count = self.requests.in_flight();
            if count > 0 {
                let uri = &options.uri;
                tracing::error!(%uri, count, "no server in time: requests fail");
            }
            let error = IoError::Os(libc::ETIMEDOUT);
            self.requests.fail(error, &mut self.done);
        }
    }

    /// Whether the server has been away for longer than requests wait for it.
    fn is_given_up(&self, now: Instant) -> bool {
        let patience = self.handle.0.options().reconnect_deadline;
        let away = |since| now.saturating_duration_since(since) >= patience;
        self.connection.is_none() && self.down.is_some_and(away)
    }

    /// Has the timer tick once more when something is in flight. It is left alone when there is nothing any more: with one request at a time it
    /// would be set twice for each.
    fn set_timer(&mut self) {
        if self.requests.is_empty() || self.looks.is_some() {
            return;
        }
        let timer = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: i64::try_from(self.tick.as_secs()).unwrap_or(1),
                tv_nsec: i64::from(self.tick.subsec_nanos()),
            },
        };
        // Before the timer: when that has ticked, this has passed.
        let looks = Instant::now() + self.tick;
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer) {
            Ok(_) => self.looks = Some(looks),
            Err(error) => tracing::error!(%error, "the timer of an NBD queue cannot be set"),
        }
    }
}

impl DiskQueue for NbdQueue {
    fn submit(&mut self, request: Request) {
        if self.abandoned {
            return self.answer(request.tag, Err(CANCELED));
        }
        let session = &self.handle.0;
        if let Err(error) = session.capabilities.check(&request.operation) {
            return self.answer(request.tag, Err(error));
        }
        let empty = match &request.operation {
            Operation::Flush => !session.export().has(protocol::SEND_FLUSH),
            other => other.range().is_none_or(|(_, length)| length == 0),
        };
        if empty {
            return self.answer(request.tag, Ok(()));
        }
        if self.connection.is_none() {
            let now = Instant::now();
            self.down.get_or_insert(now);
            if self.is_given_up(now) {
                return self.answer(request.tag, Err(IoError::Os(libc::ETIMEDOUT)));
            }
        }
        self.requests.submit(request);
    }

    fn kick(&mut self) {
        self.send();
        self.set_timer();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.read_mail();
        self.receive();
        self.look();
        if let Some(error) = self.broken.take() {
            self.lose(&error);
        }
        self.send();
        self.set_timer();
        completions.append(&mut self.done);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        self.poll(fd, WATCHED)?;
        Ok(true)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        self.kick();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = Vec::with_capacity(4);
        let room = rustix::buffer::spare_capacity(&mut events);
        // An error, too, lets the caller look.
        epoll::wait(&self.epoll, room, timeout.as_ref()).is_err()
            || events.iter().any(|event| event.data.u64() == WATCHED)
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        self.abandon_those(|_| true);
    }

    fn in_flight(&self) -> usize {
        self.requests.in_flight() + self.done.len()
    }
}

impl Drop for NbdQueue {
    fn drop(&mut self) {
        let clean = self.requests.is_empty() && self.broken.is_none();
        let connection = self.connection.take();
        if let Some(connection) = &connection {
            let _ = epoll::delete(&self.epoll, connection.fd());
        }
        let (kept, rest) = match connection {
            Some(connection) if clean => (Some((self.epoch, connection)), None),
            other => (None, other),
        };
        let flushing = self.requests.has_own_flush();
        self.handle.0.leave(&self.mailbox, kept, flushing);
        // What it has on its way is nobody's any more; the buffers are ours alone.
        if let Some(rest) = rest {
            rest.close();
            // The server may have died without this queue having noticed, and one that came back is not to be taken for it by whoever connects next.
            let error = io::Error::other("a queue was closed with requests on their way");
            self.handle.0.lost(self.epoch, &error);
        }
    }
}
