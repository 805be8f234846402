//! A connection: receives requests, has them carried out, and sends the answers as they come. Its thread never waits for anything but its
//! driver while something of it is in flight.

mod intake;
mod transfer;
mod unmap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::wire::Kind;

use super::budget::Share;
use super::buffers::Buffers;
use super::input::Input;
use super::output::{Freed, Output, Payload};
use super::registry::Guest;
use super::request::{Part, Request, Slab};
use super::{Driver, MOST_REQUEST, RECEIVE, SEND};
use crate::volume::chain::Chain;
use crate::volume::gate::Pass;
use crate::volume::replica::Replica;

/// How long to leave sectors alone that another connection writes.
const MOMENT: Duration = Duration::from_micros(50);

/// How long to wait for memory of other connections before looking which of them keep it.
const TURN: Duration = Duration::from_secs(1);

/// What becomes of the request at the front.
enum Start {
    /// It was begun, or answered.
    Begun,
    /// It has to wait.
    NotYet,
}

/// A connection.
pub(super) struct Connection<D: Driver> {
    driver: D,
    replica: Arc<Replica>,
    guest: Guest,
    buffers: Buffers,
    input: Input,
    output: Output,
    requests: Slab<Request>,
    parts: Slab<Part>,
    /// Requests that were not begun.
    waiting: VecDeque<usize>,
    /// Requests that are at the disk.
    active: usize,
    /// Being inside the gate, while something is at the disk.
    pass: Option<Pass>,
    /// Requests and bytes that are held until their answers are sent.
    held: Freed,
    /// The same bytes, among those of other connections.
    share: Share,
    /// Bytes of the request before us that has to wait for other connections.
    starved: Option<usize>,
    /// A number of the counter that has to be in its file.
    to_persist: Option<i64>,
    /// Nothing can be sent any more, or what comes makes no sense.
    broken: bool,
    // The last: calls may be in flight until the driver is gone.
    socket: OwnedFd,
}

impl<D: Driver> Connection<D> {
    pub(super) fn new(socket: OwnedFd, driver: D, replica: Arc<Replica>, guest: Guest) -> Self {
        let budget = &guest.registry.budget;
        Self {
            driver,
            replica,
            buffers: Buffers::new(Arc::clone(budget)),
            share: Share::new(Arc::clone(budget)),
            guest,
            input: Input::new(),
            output: Output::default(),
            requests: Slab::default(),
            parts: Slab::default(),
            waiting: VecDeque::new(),
            active: 0,
            pass: None,
            held: Freed::default(),
            starved: None,
            to_persist: None,
            broken: false,
            socket,
        }
    }

    /// Serves it to its end.
    pub(super) fn serve(mut self) {
        if let Err(error) = self.run() {
            tracing::error!(%error, "a data connection cannot go on");
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
            if self.driver.in_flight() > 0 {
                if let Some(pass) = &self.pass {
                    let problem = "io_uring does not say what became of requests at the disk";
                    pass.chain.flags.fail(problem.to_owned());
                }
                // The kernel may still work on its memory and its sectors: nobody else may have them, nor the gate be passed.
                std::mem::forget(self);
            }
        }
    }

    fn run(&mut self) -> io::Result<()> {
        let mut done = Vec::new();
        loop {
            self.parse();
            self.begin();
            if !self.broken {
                self.output.send(&mut self.driver);
                self.receive();
            }
            let is_idle = self.driver.in_flight() == 0 && self.waiting.is_empty();
            if is_idle && (self.broken || self.input.ended && self.starved.is_none()) {
                return Ok(());
            }
            if let Some(number) = self.to_persist.take() {
                self.driver.submit();
                self.persist(number);
            }
            self.leave();
            self.guest.activity.owe(self.owes());
            if let (Some(bytes), true) = (self.starved, is_idle) {
                // Only others can make room.
                if !self.share.wait(bytes, TURN) {
                    self.guest.registry.end_hoarders();
                }
                continue;
            }
            let others = !self.waiting.is_empty() && self.active == 0;
            // Not two where something is being sent: the kernel would not see to the rest of a long message before.
            let want = usize::from(!others).min(self.driver.in_flight());
            let waits = self.active == 0 && self.waiting.is_empty();
            self.guest.activity.hoard(waits && self.share.is_common());
            self.driver.wait(want, &mut done)?;
            self.guest.activity.hoard(false);
            if others && done.is_empty() {
                std::thread::sleep(MOMENT);
            }
            for (token, result) in done.drain(..) {
                self.completed(token, result);
            }
            if let (false, Some(errno)) = (self.broken, self.driver.failed()) {
                let error = io::Error::from_raw_os_error(errno);
                tracing::error!(%error, "io_uring failed, and ends a data connection");
                self.break_off();
            }
        }
    }

    /// Has the counter written while the data is on its way. Whether that worked is asked again before the answer.
    fn persist(&self, number: i64) {
        if let Some(counter) = self
            .pass
            .as_ref()
            .and_then(|pass| pass.chain.counter.as_ref())
        {
            if let Err(error) = counter.persist(number) {
                tracing::warn!(%error, "the counter of writes cannot be written");
            }
        }
    }

    fn leave(&mut self) {
        if self.active == 0 {
            self.pass = None;
        }
    }

    fn completed(&mut self, token: u64, result: i32) {
        match token {
            RECEIVE => {
                self.guest.activity.hear();
                self.input.received(result);
            }
            SEND => match usize::try_from(result) {
                Ok(bytes) => {
                    let freed = self.output.sent(bytes, &mut self.driver, &mut self.buffers);
                    self.free(freed);
                }
                Err(_) if [-libc::EINTR, -libc::EAGAIN].contains(&result) => {
                    let freed = self.output.sent(0, &mut self.driver, &mut self.buffers);
                    self.free(freed);
                }
                Err(_) => {
                    self.break_off();
                    let freed = self.output.abandon(&mut self.buffers);
                    self.free(freed);
                }
            },
            part => self.part_completed(usize::try_from(part).unwrap_or(usize::MAX), result),
        }
    }

    fn free(&mut self, freed: Freed) {
        self.held.requests -= freed.requests;
        self.held.bytes -= freed.bytes;
        self.share.give(freed.bytes);
    }

    /// Ends the connection; what is at the disk is waited for.
    fn break_off(&mut self) {
        self.broken = true;
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        for request in std::mem::take(&mut self.waiting) {
            self.requests.remove(request);
        }
    }

    /// Begins what waits, in order, as far as it goes.
    fn begin(&mut self) {
        while let Some(&index) = self.waiting.front() {
            let Some(kind) = self.requests.get_mut(index).map(|request| request.kind) else {
                self.waiting.pop_front();
                continue;
            };
            let started = match kind {
                Kind::Ping => {
                    let payload = self
                        .replica
                        .ping()
                        .err()
                        .map_or(Payload::None, Payload::Text);
                    self.answer(index, 0, payload);
                    Start::Begun
                }
                _ => self.begin_inside(index, kind),
            };
            match started {
                Start::Begun => self.waiting.pop_front(),
                Start::NotYet => return,
            };
        }
    }

    /// Begins what needs the chain.
    fn begin_inside(&mut self, index: usize, kind: Kind) -> Start {
        if self.pass.as_ref().is_some_and(Pass::is_recalled) {
            if self.active > 0 {
                return Start::NotYet;
            }
            self.pass = None;
        }
        if self.pass.is_none() {
            self.pass = self.replica.gate().enter();
        }
        let Some(pass) = &self.pass else {
            self.answer(
                index,
                0,
                Payload::Text("replica no longer exist".to_owned()),
            );
            return Start::Begun;
        };
        let chain = Arc::clone(&pass.chain);
        let Some(request) = self.requests.get_mut(index) else {
            return Start::Begun;
        };
        if kind == Kind::Unmap {
            return self.unmap(index, &chain);
        }
        let length = request.length as usize;
        if length > MOST_REQUEST {
            let text =
                format!("{length} bytes in one request are too many; {MOST_REQUEST} are possible");
            self.answer(index, 0, Payload::Text(text));
            return Start::Begun;
        }
        let Some(offset) = chain.check(request.offset, length as u64) else {
            let what = if kind == Kind::Read { "read" } else { "write" };
            let text = format!(
                "unexpected EOF: a {what} of {length} bytes at {} is not within the volume's {} bytes",
                request.offset, chain.size
            );
            self.answer(index, 0, Payload::Text(text));
            return Start::Begun;
        };
        if length == 0 {
            self.answer(index, 0, Payload::None);
            return Start::Begun;
        }
        request.range = chain.widen(offset, length as u64);
        let (start, end) = request.range;
        if let Err(error) = chain.load(start, end) {
            let text = format!("cannot find the data: {error}");
            self.answer(index, 0, Payload::Text(text));
            return Start::Begun;
        }
        match kind {
            Kind::Read => self.begin_read(index, &chain),
            _ => return self.begin_write(index, &chain),
        }
        Start::Begun
    }

    /// Answers a request.
    fn answer(&mut self, index: usize, size: u32, payload: Payload) {
        let Some(request) = self.requests.remove(index) else {
            return;
        };
        if let Some(buffer) = request.buffer {
            self.buffers.give(buffer);
        }
        self.output.answer(
            request.sequence,
            request.offset,
            size,
            payload,
            request.cost,
        );
        if self.broken && !self.output.is_sending() {
            let freed = self.output.abandon(&mut self.buffers);
            self.free(freed);
        }
    }
}

/// Has a write's number in the counter's file.
fn counted(chain: &Chain, revision: Option<i64>) -> Result<(), String> {
    let (Some(counter), Some(number)) = (&chain.counter, revision) else {
        return Ok(());
    };
    counter
        .persist(number)
        .map_err(|error| format!("cannot count the write: {error}"))
}
