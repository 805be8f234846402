//! The requests of a queue, cut into parts that the server takes, and what has become of each.
//!
//! Parts are made when there is room for them: a guest that discards the whole of a disk makes a few at a time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use super::connection::{Asked, Connection, Ledger, Replied};
use super::journal::Entry;
use super::protocol;
use crate::{Completion, IoError, Operation, Request};

/// The most parts of one request on their way.
const MAX_PARTS: u32 = 16;

/// The most bytes of writes on their way.
const MAX_PAYLOADS: usize = 8 << 20;

/// The most bytes that are discarded or zeroed by one part.
const MAX_EXTENT: u32 = 128 << 20;

/// How often a part is sent: one that has the connection lost so often may be what the server dies of.
const MAX_SENDS: u32 = 8;

/// What is said of what nobody waits for and the server has not got, or has perhaps not got.
pub(super) const CANCELED: IoError = IoError::Os(libc::ECANCELED);

/// What is written where the server cannot write zeros by itself.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How requests are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most bytes of a read or write; a multiple of the block size.
    pub payload: u32,
    /// Whether the server writes zeros by itself.
    pub write_zeroes: bool,
}

#[derive(Debug)]
struct Active {
    /// The submitter's; `None` for a flush of our own.
    tag: Option<u64>,
    operation: Operation,
    /// Bytes; 1 for a flush.
    length: u64,
    /// Bytes of which parts were made.
    cut: u64,
    /// Parts on their way.
    parts: u32,
    /// Whether it is among those that wait for room.
    waits: bool,
    /// Nobody waits for it any more.
    abandoned: bool,
    error: Option<IoError>,
}

#[derive(Debug)]
struct Part {
    request: u64,
    /// Where in the request, in bytes.
    at: u64,
    asked: Asked,
    sent: Instant,
    sends: u32,
    /// Of a flush: what it covers of the journal.
    mark: u64,
    answer: Option<Result<(), IoError>>,
}

/// What a queue has in flight.
#[derive(Debug)]
pub(super) struct Requests {
    limits: Limits,
    active: HashMap<u64, Active>,
    /// By their cookies, which is the order of their making.
    parts: BTreeMap<u64, Part>,
    /// Those of which parts are still to be made, in order.
    waiting: VecDeque<u64>,
    answered: Vec<u64>,
    payloads: usize,
    next: u64,
    in_flight: usize,
}

/// What answers say about flushes: what those cover that succeeded, whether one was our own, and whether one failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flushed {
    pub mark: Option<u64>,
    pub own: bool,
    pub failed: bool,
}

impl Requests {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            active: HashMap::new(),
            parts: BTreeMap::new(),
            waiting: VecDeque::new(),
            answered: Vec::new(),
            payloads: 0,
            next: 1,
            in_flight: 0,
        }
    }

    /// Takes a request that was found to be in order, and is not empty.
    pub(super) fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        let id = self.push(Some(request.tag), request.operation);
        self.waiting.push_back(id);
    }

    /// Flushes for ourselves, before anything else: what waits may wait for that.
    pub(super) fn submit_own_flush(&mut self) {
        let id = self.push(None, Operation::Flush);
        self.waiting.push_front(id);
    }

    fn push(&mut self, tag: Option<u64>, operation: Operation) -> u64 {
        let id = self.number();
        let length = operation.range().map_or(1, |(_, length)| length);
        let active = Active {
            tag,
            operation,
            length,
            cut: 0,
            parts: 0,
            waits: true,
            abandoned: false,
            error: None,
        };
        self.active.insert(id, active);
        id
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Requests of the submitter's that have not been answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether there is nothing at all to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn has_own_flush(&self) -> bool {
        self.active.values().any(|active| active.tag.is_none())
    }

    /// When the part that has been on its way longest was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.parts.values().next().map(|part| part.sent)
    }

    /// Puts parts on their way as long as there is room. `full` says whether no more writes are to be made; `mark` what a flush covers. Returns
    /// whether a write was held back by `full`.
    pub(super) fn cut(
        &mut self,
        connection: &mut Connection,
        full: bool,
        mark: impl Fn() -> u64,
    ) -> bool {
        while let Some(&id) = self.waiting.front() {
            let Some(active) = self.active.get_mut(&id) else {
                self.waiting.pop_front();
                continue;
            };
            if active.cut >= active.length || active.parts >= MAX_PARTS {
                active.waits = false;
                self.waiting.pop_front();
                continue;
            }
            let writes = matches!(
                active.operation,
                Operation::Write { .. } | Operation::WriteZeroes { .. }
            );
            if writes && full {
                return true;
            }
            if writes && self.payloads >= MAX_PAYLOADS {
                return false;
            }
            let at = active.cut;
            let asked = make(&active.operation, at, self.limits);
            active.cut += u64::from(asked.length.max(1));
            active.parts += 1;
            self.payloads += payload(&asked);
            let cookie = self.number();
            connection.ask(cookie, &asked);
            let mark = match asked.command {
                protocol::CMD_FLUSH => mark(),
                _ => 0,
            };
            let part = Part {
                request: id,
                at,
                asked,
                sent: Instant::now(),
                sends: 1,
                mark,
                answer: None,
            };
            self.parts.insert(cookie, part);
        }
        false
    }

    /// Sends all parts again, in order, on a new connection.
    pub(super) fn resend(&mut self, connection: &mut Connection, mark: u64) {
        let now = Instant::now();
        for (cookie, part) in &mut self.parts {
            connection.ask(*cookie, &part.asked);
            part.sent = now;
            part.sends += 1;
            part.mark = mark;
        }
    }

    /// The connection was lost: answers of which nobody has heard do not count, nor does half of one. Our own flushes end here, for what is
    /// in the journal is flushed otherwise.
    pub(super) fn rewind(&mut self) {
        self.answered.clear();
        let own: Vec<u64> = self
            .active
            .iter()
            .filter_map(|(id, active)| active.tag.is_none().then_some(*id))
            .collect();
        for id in own {
            self.active.remove(&id);
            self.parts.retain(|_, part| part.request != id);
        }
        for (cookie, part) in &mut self.parts {
            part.asked.reply = Replied::default();
            part.answer = None;
            if part.sends >= MAX_SENDS {
                part.answer = Some(Err(IoError::Os(libc::EIO)));
                self.answered.push(*cookie);
            }
        }
    }

    /// Whether there are answers to be [completed](Self::complete).
    pub(super) fn has_answers(&self) -> bool {
        !self.answered.is_empty()
    }

    fn answers(&self) -> impl Iterator<Item = (&Part, Result<(), IoError>)> {
        let part = |cookie| self.parts.get(cookie);
        let answer = |part: &'_ Part| part.answer;
        let parts = self.answered.iter().filter_map(part);
        parts.filter_map(move |part| Some((part, answer(part)?)))
    }

    /// What of the answers is to be remembered until a flush.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        let worked = self.answers().filter(|(_, answer)| answer.is_ok());
        worked.filter_map(|(part, _)| Entry::of(&part.asked))
    }

    /// What the answers say about flushes.
    pub(super) fn flushed(&self) -> Flushed {
        let mut flushed = Flushed::default();
        for (part, answer) in self.answers() {
            if part.asked.command != protocol::CMD_FLUSH {
                continue;
            }
            let active = self.active.get(&part.request);
            let own = active.is_some_and(|active| active.tag.is_none());
            flushed.own |= own;
            flushed.failed |= answer.is_err();
            if answer.is_ok() {
                flushed.mark = flushed.mark.max(Some(part.mark));
            }
        }
        flushed
    }

    /// Tells the submitter of the answers.
    pub(super) fn complete(&mut self, done: &mut Vec<Completion>) {
        for cookie in std::mem::take(&mut self.answered) {
            let Some(part) = self.parts.remove(&cookie) else {
                continue;
            };
            self.payloads -= payload(&part.asked);
            let Some(active) = self.active.get_mut(&part.request) else {
                continue;
            };
            active.parts -= 1;
            if let Some(Err(error)) = part.answer {
                active.error.get_or_insert(error);
                active.cut = active.length;
            }
            if active.cut < active.length {
                if !active.waits {
                    active.waits = true;
                    self.waiting.push_back(part.request);
                }
            } else if active.parts == 0 {
                self.end(part.request, done);
            }
        }
    }

    fn end(&mut self, id: u64, done: &mut Vec<Completion>) {
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        if let Some(tag) = active.tag {
            self.in_flight -= 1;
            let result = active.error.map_or(Ok(()), Err);
            done.push(Completion { tag, result });
        }
    }

    /// Nobody waits any more for those that `whose` finds by their tags: what of them has not begun to be sent by the connection, if there is one,
    /// never is, and nothing of them is sent again on another.
    pub(super) fn abandon(
        &mut self,
        whose: impl Fn(u64) -> bool,
        connection: Option<&mut Connection>,
        done: &mut Vec<Completion>,
    ) {
        for active in self.active.values_mut() {
            if active.tag.is_some_and(&whose) {
                active.abandoned = true;
                if active.cut < active.length {
                    active.error.get_or_insert(CANCELED);
                    active.cut = active.length;
                }
            }
        }
        let Some(connection) = connection else {
            return self.end_abandoned(|_| true, done);
        };
        let mut unsent = HashSet::new();
        connection.withdraw(|cookie| {
            let part = self.parts.get(&cookie);
            let active = part.and_then(|part| self.active.get(&part.request));
            active.is_some_and(|active| active.abandoned) && unsent.insert(cookie)
        });
        self.end_abandoned(|cookie| unsent.contains(&cookie), done);
    }

    /// No answer is to come to the parts that `lost` finds by their cookies: of what was abandoned, these are forgotten, and what has no others ends.
    pub(super) fn end_abandoned(&mut self, lost: impl Fn(u64) -> bool, done: &mut Vec<Completion>) {
        self.parts.retain(|cookie, part| {
            let active = self.active.get_mut(&part.request);
            let Some(active) = active.filter(|active| active.abandoned && lost(*cookie)) else {
                return true;
            };
            active.error.get_or_insert(CANCELED);
            active.parts -= 1;
            self.payloads -= payload(&part.asked);
            false
        });
        let over = |active: &Active| active.abandoned && active.parts == 0;
        let mut ids: Vec<u64> = self
            .active
            .iter()
            .filter_map(|(id, active)| over(active).then_some(*id))
            .collect();
        ids.sort_unstable();
        for id in ids {
            self.end(id, done);
        }
        self.waiting.retain(|id| self.active.contains_key(id));
    }

    /// Answers everything with an error.
    pub(super) fn fail(&mut self, error: IoError, done: &mut Vec<Completion>) {
        self.parts.clear();
        self.waiting.clear();
        self.answered.clear();
        self.payloads = 0;
        let mut ids: Vec<u64> = self.active.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(active) = self.active.get_mut(&id) {
                active.error.get_or_insert(error);
            }
            self.end(id, done);
        }
    }
}

fn payload(asked: &Asked) -> usize {
    asked.payload.as_ref().map_or(0, Bytes::len)
}

/// The part of an operation that begins `at` bytes in it, with what it writes copied.
fn make(operation: &Operation, at: u64, limits: Limits) -> Asked {
    let cut = |length: u64, limit: u32| u32::try_from(length - at).map_or(limit, |n| n.min(limit));
    match operation {
        Operation::Read { offset, buffer } => {
            let length = cut(buffer.len(), limits.payload);
            Asked::new(protocol::CMD_READ, offset + at, length)
        }
        Operation::Write { offset, buffer } => {
            let length = cut(buffer.len(), limits.payload);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            buffer.copy_to_from(at, &mut bytes);
            let mut asked = Asked::new(protocol::CMD_WRITE, offset + at, length);
            asked.payload = Some(bytes.into());
            asked
        }
        Operation::Flush => Asked::new(protocol::CMD_FLUSH, 0, 0),
        Operation::Discard { offset, length } => {
            Asked::new(protocol::CMD_TRIM, offset + at, cut(*length, MAX_EXTENT))
        }
        Operation::WriteZeroes {
            offset,
            length,
            may_unmap,
        } if limits.write_zeroes => {
            let length = cut(*length, MAX_EXTENT);
            let mut asked = Asked::new(protocol::CMD_WRITE_ZEROES, offset + at, length);
            if !may_unmap {
                asked.flags = protocol::FLAG_NO_HOLE;
            }
            asked
        }
        Operation::WriteZeroes { offset, length, .. } => {
            let here = u32::try_from(ZEROS.len()).unwrap_or(limits.payload);
            let length = cut(*length, limits.payload.min(here));
            let mut asked = Asked::new(protocol::CMD_WRITE, offset + at, length);
            let size = usize::try_from(length).unwrap_or(0);
            asked.payload = Some(Bytes::from_static(&ZEROS[..size]));
            asked
        }
    }
}

impl Ledger for Requests {
    fn asked(&mut self, cookie: u64) -> Option<&mut Asked> {
        let part = self.parts.get_mut(&cookie)?;
        part.answer.is_none().then_some(&mut part.asked)
    }

    fn data(&mut self, cookie: u64, at: u32, bytes: &[u8]) {
        let Some(part) = self.parts.get(&cookie) else {
            return;
        };
        let active = self.active.get(&part.request);
        if let Some(Operation::Read { buffer, .. }) = active.map(|active| &active.operation) {
            buffer.copy_from_at(part.at + u64::from(at), bytes);
        }
    }

    fn zeros(&mut self, cookie: u64, at: u32, length: u32) {
        let mut done = 0;
        while done < length {
            let size = usize::try_from(length - done).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
            self.data(cookie, at + done, &ZEROS[..size]);
            done += u32::try_from(size).unwrap_or(length);
        }
    }

    fn answered(&mut self, cookie: u64, result: Result<(), IoError>) {
        if let Some(part) = self.parts.get_mut(&cookie) {
            part.answer = Some(result);
            self.answered.push(cookie);
        }
    }
}
