//! A queue of a volume: from the virtqueue straight to the replicas, on the queue's own thread.
//!
//! Each queue has a connection to each replica, and all that is in flight on them belongs to it. Writes go to all replicas, reads to one after the
//! other; a request ends when all that were asked have answered or failed. What a failed replica misses is acknowledged only after it has
//! been left for all threads. Large requests are done piece by piece, and where all I/O is to stand still for a moment, they do between two pieces.
//!
//! The data of a write is copied once, here: a guest may change its memory while the replicas are being sent it, and each would get something else.
//! The guest decides what is asked and when; replicas decide what they answer, and may be anything.

mod epochs;
mod gate;
mod pool;
mod request;
mod session;
mod transfer;
mod watchdog;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::wire::MAX_DATA;
use rustix::event::{Timespec, epoll};

use self::pool::Pool;
use self::request::{InFlight, Phase, What};
use self::session::{Answer, Session};
use self::watchdog::Watchdog;
use super::SECTOR;
use super::member::{Member, Socket};
use super::ranges::{Range, Writer};
use super::shared::{Registered, Shared};
use crate::{Capabilities, Completion, DiskQueue, IoError, Operation, Request};

/// Bytes of writes that a queue holds copies of at most, unless a single one is larger.
const MAX_COPIES: u64 = 32 << 20;

/// What is said of what never got to a replica, or not all of it, when the queue was abandoned.
const CANCELED: IoError = IoError::Os(libc::ECANCELED);

/// How long dropping a queue waits for its requests.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// What [`epoll`] tells us is ready: our letter box, what the user watches, the watchdog, or else a replica, by its id and this.
const LETTERS: u64 = 0;
const WATCHED: u64 = 1;
const WATCHDOG: u64 = 2;
const REPLICAS: u64 = 3;

/// A flush waits until the writes that were begun before it have ended.
#[derive(Debug)]
struct Barrier {
    tag: u64,
    /// The first write that it does not wait for.
    order: u64,
}

/// A queue of a volume.
#[derive(Debug)]
pub(super) struct VolumeQueue {
    shared: Arc<Shared>,
    post: Registered,
    capabilities: Capabilities,
    epoll: OwnedFd,
    sessions: Vec<Session>,
    /// Looks for silence, where no other thread does.
    watchdog: Option<Watchdog>,
    /// By number; requests that were begun.
    requests: Vec<Option<InFlight>>,
    free: Vec<u32>,
    begun: usize,
    /// Requests of which replicas have a piece.
    asked: usize,
    /// The gate knows that replicas may have something of ours.
    entered: bool,
    /// Bytes of a piece at most.
    most: u32,
    /// Bytes of copies that begun writes may need.
    copies: u64,
    /// For these copies.
    pool: Pool,
    /// Requests that were not begun: the gate is shut, or there are too many copies.
    held: VecDeque<Request>,
    /// The order of the next write, and those of writes that have not been acknowledged.
    next_order: u64,
    unacknowledged: BTreeSet<u64>,
    barriers: VecDeque<Barrier>,
    /// Writes that have ended, to be acknowledged once the failures are recorded: their orders with them.
    unrecorded: Vec<(u64, Completion)>,
    done: Vec<Completion>,
    /// Requests whose next piece is to be sent as soon as the gate is open.
    next: VecDeque<u32>,
    /// Submitted and not reaped.
    in_flight: usize,
    /// Nobody waits for results any more: nothing is begun that replicas do not have.
    abandoned: bool,
    /// Whose turn it is to be read.
    turn: usize,
    /// What is ready, as the last wait found it; `None` when it is to be asked for.
    ready: Option<Vec<u64>>,
    /// Filled and emptied in each pass.
    answers: Vec<Answer>,
}

impl VolumeQueue {
    /// Makes the queue of a letter box, with its first connections.
    pub(super) fn new(
        shared: Arc<Shared>,
        post: Registered,
        capabilities: Capabilities,
        connections: Vec<(Arc<Member>, Arc<Socket>)>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = epoll::EventFlags::IN;
        let letters = epoll::EventData::new_u64(LETTERS);
        epoll::add(&epoll, crate::fd::borrow(&post.event), letters, readable)?;
        let mut this = Self {
            shared,
            post,
            capabilities,
            epoll,
            sessions: Vec::new(),
            watchdog: None,
            requests: Vec::new(),
            free: Vec::new(),
            begun: 0,
            asked: 0,
            entered: false,
            most: MAX_DATA,
            copies: 0,
            pool: Pool::default(),
            held: VecDeque::new(),
            next_order: 0,
            unacknowledged: BTreeSet::new(),
            barriers: VecDeque::new(),
            unrecorded: Vec::new(),
            done: Vec::new(),
            next: VecDeque::new(),
            in_flight: 0,
            abandoned: false,
            turn: 0,
            ready: None,
            answers: Vec::new(),
        };
        for (member, socket) in connections {
            this.connect(member, socket);
        }
        Ok(this)
    }

    /// Takes a connection to a replica.
    fn connect(&mut self, member: Arc<Member>, socket: Arc<Socket>) {
        let mut session = Session::new(member, socket);
        let token = epoll::EventData::new_u64(REPLICAS + u64::from(session.member.id));
        let fd = session.link().fd();
        match epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN) {
            Ok(()) => self.sessions.push(session),
            Err(error) => {
                let reason = format!("its connection cannot be polled: {error}");
                self.shared.fail(&session.member, &reason);
            }
        }
    }

    fn begin(&mut self, request: Request) {
        self.capabilities.size = self.shared.size();
        let Request { tag, operation } = request;
        if let Err(error) = self.capabilities.check(&operation) {
            self.done.push(Completion {
                tag,
                result: Err(error),
            });
            return;
        }
        let (offset, length) = operation.range().unwrap_or((0, 0));
        let what = match operation {
            Operation::Flush => {
                let order = self.next_order;
                self.barriers.push_back(Barrier { tag, order });
                return;
            }
            _ if length == 0 => {
                self.done.push(Completion {
                    tag,
                    result: Ok(()),
                });
                return;
            }
            Operation::Read { buffer, .. } => What::Read(buffer),
            Operation::Write { buffer, .. } => What::Write(buffer),
            // Refused above: a volume does not offer it.
            Operation::Discard { .. } => return self.refuse(tag, IoError::Unsupported),
            Operation::WriteZeroes { .. } => What::Zero,
        };
        let request = InFlight::new(tag, what, self.next_order, offset, length);
        if request.writes() {
            self.next_order += 1;
            self.unacknowledged.insert(request.order);
            self.copies += request.length.min(u64::from(self.most));
        }
        let writes = request.writes();
        let number = self.place(request);
        self.begun += 1;
        if !writes {
            self.send_piece(number);
            return;
        }
        let range = Range::of_blocks(offset, length, SECTOR);
        if let Some(request) = self.request(number) {
            request.range = Some(range);
        }
        let writer = Writer {
            queue: self.post.id,
            request: number,
        };
        if self.shared.acquire(range, writer) {
            self.send_piece(number);
        }
    }

    fn refuse(&mut self, tag: u64, error: IoError) {
        self.done.push(Completion {
            tag,
            result: Err(error),
        });
    }

    fn place(&mut self, request: InFlight) -> u32 {
        if let Some(number) = self.free.pop() {
            self.requests[number as usize] = Some(request);
            return number;
        }
        self.requests.push(Some(request));
        // As many as are in flight on the queue.
        u32::try_from(self.requests.len() - 1).unwrap_or(u32::MAX)
    }

    fn request(&mut self, number: u32) -> Option<&mut InFlight> {
        self.requests.get_mut(number as usize)?.as_mut()
    }

    /// Ends a request.
    fn end(&mut self, number: u32, result: Result<(), IoError>) {
        let taken = self
            .requests
            .get_mut(number as usize)
            .and_then(Option::take);
        let Some(mut request) = taken else {
            return;
        };
        self.free.push(number);
        self.begun -= 1;
        if result.is_ok() {
            let (writes, took) = (request.writes(), request.since.elapsed());
            self.post.counters.count(writes, request.length, took);
        }
        let tag = request.tag;
        let completion = Completion { tag, result };
        if request.writes() {
            self.copies -= request.length.min(u64::from(self.most));
            if let Some(copy) = request.copy.take() {
                self.pool.give(copy);
            }
            self.unrecorded.push((request.order, completion));
        } else {
            self.done.push(completion);
        }
        if let Some(range) = request.range {
            let mut granted = Vec::new();
            self.shared.release(range, number, &self.post, &mut granted);
            self.next.extend(granted);
        }
        if self.begun == 0 {
            self.pool.empty();
        }
    }

    /// Acknowledges writes, if the record of failures is up to date, and what waited for them.
    fn acknowledge(&mut self) {
        if !self.unrecorded.is_empty() && self.shared.is_recorded() {
            for (order, completion) in self.unrecorded.drain(..) {
                self.unacknowledged.remove(&order);
                self.done.push(completion);
            }
        }
        let first = self.unacknowledged.first().copied();
        while let Some(barrier) = self.barriers.front() {
            if first.is_some_and(|first| first < barrier.order) {
                break;
            }
            let tag = barrier.tag;
            self.barriers.pop_front();
            self.done.push(Completion {
                tag,
                result: Ok(()),
            });
        }
    }

    fn read_mail(&mut self) {
        let Some(mail) = self.post.take_mail() else {
            return;
        };
        for (member, socket) in mail.connections {
            self.connect(member, socket);
        }
        self.next.extend(mail.granted);
    }

    /// Leaves a replica whose connection is of no use any more.
    fn lose(&mut self, index: usize, reason: &str) {
        let session = self.sessions.swap_remove(index);
        self.shared.fail(&session.member, reason);
        session.abandon(&mut self.answers);
    }

    /// Sends what is to be sent.
    fn send(&mut self) {
        let mut index = 0;
        while let Some(session) = self.sessions.get_mut(index) {
            if !session.link().has_outgoing() && !session.polls_room {
                index += 1;
                continue;
            }
            let sent = session.link().send().and_then(|()| {
                let full = session.link().has_outgoing();
                if full != session.polls_room {
                    let token = epoll::EventData::new_u64(REPLICAS + u64::from(session.member.id));
                    let mut flags = epoll::EventFlags::IN;
                    flags.set(epoll::EventFlags::OUT, full);
                    epoll::modify(&self.epoll, session.link().fd(), token, flags)?;
                    session.polls_room = full;
                }
                Ok(())
            });
            match sent {
                Ok(()) => index += 1,
                Err(error) => self.lose(index, &format!("it cannot be sent to: {error}")),
            }
        }
    }

    /// Receives what has come from the replicas that are ready.
    fn receive(&mut self, ready: &[u64]) {
        let now = self.shared.now();
        for token in ready {
            let is = |session: &Session| REPLICAS + u64::from(session.member.id) == *token;
            let Some(index) = self.sessions.iter().position(is) else {
                continue;
            };
            if let Err(reason) = self.sessions[index].receive(now, &mut self.answers) {
                self.lose(index, &reason);
            }
        }
    }

    /// Goes on with whatever there is to go on with, until there is nothing.
    fn go_on(&mut self) {
        loop {
            self.send_next();
            self.begin_held();
            self.send();
            // What has just ended may have made room for what is held, and nothing else would wake us for that.
            if self.answers.is_empty() && !self.could_send() {
                break;
            }
            for answer in std::mem::take(&mut self.answers) {
                self.answered(answer);
            }
        }
        self.rest();
        self.acknowledge();
        if let Some(watchdog) = self.watchdog.as_mut().filter(|_| self.asked > 0) {
            watchdog.arm();
        }
    }

    /// Waits until something is ready.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Vec<u64>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(events[..count]
            .iter()
            .map(|event| event.data.u64())
            .collect())
    }

    /// One pass over what is ready.
    fn pass(&mut self, ready: &[u64]) {
        if ready.contains(&LETTERS) {
            // It is what follows that counts.
            let _ = self.post.event.read();
            self.read_mail();
        }
        self.receive(ready);
        if ready.contains(&WATCHDOG) {
            self.look_for_silence();
        }
        self.go_on();
    }
}

impl DiskQueue for VolumeQueue {
    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        if self.abandoned {
            return self.refuse(request.tag, CANCELED);
        }
        self.held.push_back(request);
    }

    fn kick(&mut self) {
        self.go_on();
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => self.poll(Some(Duration::ZERO)).unwrap_or_default(),
        };
        self.pass(&ready);
        self.in_flight -= self.done.len();
        completions.append(&mut self.done);
    }

    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let token = epoll::EventData::new_u64(WATCHED);
        epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN)?;
        Ok(true)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let timeout = if self.done.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        match self.poll(timeout) {
            Ok(ready) => {
                let watched = ready.contains(&WATCHED);
                self.ready = Some(ready);
                watched
            }
            // It is for the user to look.
            Err(_) => true,
        }
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        for request in std::mem::take(&mut self.held) {
            self.refuse(request.tag, CANCELED);
        }
        for number in 0..u32::try_from(self.requests.len()).unwrap_or(u32::MAX) {
            // It would take the guest's memory only when it gets its range, or through the gate.
            let waits = |request: &mut InFlight| request.phase == Phase::Waiting;
            if self.request(number).is_some_and(waits) {
                self.end(number, Err(CANCELED));
            }
        }
        // They were among those.
        self.next.clear();
        self.post.wake();
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for VolumeQueue {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            let _ = self.drain(DROP_DEADLINE, &mut Vec::new());
        }
        self.leave_debtors();
        for number in 0..self.requests.len() {
            let taken = self.requests[number].take();
            if let Some(range) = taken.and_then(|request| request.range) {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                self.shared
                    .release(range, number, &self.post, &mut Vec::new());
            }
        }
    }
}

impl VolumeQueue {
    /// Leaves replicas that still have writes of a queue that ends: they may yet do them, and would overtake whoever writes there next.
    fn leave_debtors(&self) {
        let asked = |request: &InFlight| request.writes() && request.phase == Phase::Asked;
        if self.requests.iter().flatten().any(asked) {
            for session in self.sessions.iter().filter(|session| session.owes()) {
                let reason = "it did not answer before its queue ended";
                self.shared.fail(&session.member, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests;
