//! A connection: receives requests, has them carried out, and sends the answers as they come. Its thread never waits for anything but its
//! driver while something of it is in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paddock_longhorn::wire::{Header, Kind};

use super::buffers::Buffers;
use super::input::{Event, Input, Next};
use super::output::{Freed, Output, Payload};
use super::request::{Part, Request, SECTOR_BYTES, Slab, Stage, error_text};
use super::{Call, Driver, MOST_HELD, MOST_REQUEST, MOST_REQUESTS, RECEIVE, SEND};
use crate::files::image::{Image, SECTOR};
use crate::files::memory::Aligned;
use crate::volume::chain::Chain;
use crate::volume::gate::Pass;
use crate::volume::state::Replica;

/// How long to leave sectors alone that another connection writes.
const MOMENT: Duration = Duration::from_micros(50);

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
    /// A number of the counter that has to be in its file.
    to_persist: Option<i64>,
    /// Nothing can be sent any more, or what comes makes no sense.
    broken: bool,
    // The last: calls may be in flight until the driver is gone.
    socket: OwnedFd,
}

impl<D: Driver> Connection<D> {
    pub(super) fn new(socket: OwnedFd, driver: D, replica: Arc<Replica>) -> Self {
        Self {
            driver,
            replica,
            buffers: Buffers::default(),
            input: Input::new(),
            output: Output::default(),
            requests: Slab::default(),
            parts: Slab::default(),
            waiting: VecDeque::new(),
            active: 0,
            pass: None,
            held: Freed::default(),
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
                // The kernel may still work on its memory.
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
            if self.driver.in_flight() == 0
                && self.waiting.is_empty()
                && (self.input.ended || self.broken)
            {
                return Ok(());
            }
            if let Some(number) = self.to_persist.take() {
                self.driver.submit()?;
                self.persist(number);
            }
            self.leave();
            let others = !self.waiting.is_empty() && self.active == 0;
            // Not two where something is being sent: the kernel would not see to the rest of a long message before.
            let want = usize::from(!others).min(self.driver.in_flight());
            self.driver.wait(want, &mut done)?;
            if others && done.is_empty() {
                std::thread::sleep(MOMENT);
            }
            for (token, result) in done.drain(..) {
                self.completed(token, result);
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

    /// Takes what was received apart.
    fn parse(&mut self) {
        while !self.broken {
            let event = match self.input.next {
                Next::Header => match self.input.header() {
                    Ok(Some(event)) => event,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "dropping a data connection");
                        self.break_off();
                        return;
                    }
                },
                Next::Data { request, .. } => {
                    let buffer = self
                        .requests
                        .get_mut(request)
                        .and_then(|request| request.buffer.as_mut());
                    match self.input.take_data(buffer) {
                        Some(event) => event,
                        None => return,
                    }
                }
                Next::Skip { .. } => match self.input.take_data(None) {
                    Some(event) => event,
                    None if self.input.next == Next::Header => continue,
                    None => return,
                },
            };
            match event {
                Event::Complete(request) => {
                    self.waiting.push_back(request);
                    self.input.next = Next::Header;
                }
                Event::Unknown(payload) => {
                    self.input.take_header();
                    self.skip(payload, None);
                }
                Event::Header(header) if self.has_room(&header) => {
                    self.input.take_header();
                    self.accept(&header);
                }
                Event::Header(_) => return,
            }
        }
    }

    /// Bytes that a request will hold.
    fn cost(header: &Header) -> usize {
        let length = match header.kind {
            Kind::Read => header.size,
            Kind::Write => header.payload,
            _ => 0,
        };
        match length as usize {
            length if length > MOST_REQUEST => 0,
            length => length + 2 * SECTOR_BYTES,
        }
    }

    /// Whether another request may be held. A large one is, if it is alone.
    fn has_room(&self, header: &Header) -> bool {
        let cost = Self::cost(header);
        self.held.requests < MOST_REQUESTS
            && (self.held.bytes == 0 || self.held.bytes + cost <= MOST_HELD)
    }

    fn skip(&mut self, payload: u32, then: Option<usize>) {
        let left = payload as usize;
        self.input.next = Next::Skip { left, then };
    }

    /// Takes a request over.
    fn accept(&mut self, header: &Header) {
        if !matches!(
            header.kind,
            Kind::Read | Kind::Write | Kind::Ping | Kind::Unmap
        ) {
            // Not for a server.
            self.skip(header.payload, None);
            return;
        }
        let cost = Self::cost(header);
        self.held.requests += 1;
        self.held.bytes += cost;
        let length = match header.kind {
            Kind::Write => header.payload,
            _ => header.size,
        };
        let mut request = Request {
            sequence: header.sequence,
            kind: header.kind,
            offset: header.offset,
            length,
            buffer: None,
            cost,
            range: (0, 0),
            parts: 0,
            failed: None,
            stage: Stage::Main,
            revision: None,
        };
        let takes = header.kind == Kind::Write && length as usize <= MOST_REQUEST;
        let shift = request.shift();
        if takes {
            let all = (shift + length as usize).next_multiple_of(4096).max(4096);
            request.buffer = Some(self.buffers.take(all));
        }
        let request = self.requests.insert(request);
        match (takes, header.payload) {
            (_, 0) => self.waiting.push_back(request),
            (true, left) => {
                self.input.next = Next::Data {
                    request,
                    at: shift,
                    left: left as usize,
                };
            }
            (false, left) => self.skip(left, Some(request)),
        }
    }

    fn receive(&mut self) {
        // With a request before us that there is no room for, nothing more is to come.
        if self.input.next == Next::Header {
            if let Ok(Some(_)) = self.input.header() {
                return;
            }
        }
        let buffer = match self.input.next {
            Next::Data { request, .. } => self
                .requests
                .get_mut(request)
                .and_then(|request| request.buffer.as_ref()),
            _ => None,
        };
        self.input.receive(buffer, &mut self.driver);
    }

    fn completed(&mut self, token: u64, result: i32) {
        match token {
            RECEIVE => self.input.received(result),
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

    fn begin_read(&mut self, index: usize, chain: &Chain) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let (start, end) = request.range;
        // At most MOST_REQUEST and two sectors.
        let all = usize::try_from(end - start).unwrap_or(0);
        let mut buffer = self.buffers.take(all);
        let mut pieces = Vec::new();
        chain.runs(start, end, |run| {
            let image = &chain.layers[run.layer];
            let at = usize::try_from(run.offset - start).unwrap_or(0);
            let length = usize::try_from(run.length).unwrap_or(0);
            let there = readable(image, run.offset, length);
            // What the layer is too short for, and what a read may be too short for.
            buffer.bytes_mut()[at + there.min(length)..at + length].fill(0);
            if there > 0 {
                pieces.push((image.descriptor(), at, there.min(length), run.offset));
            }
        });
        request.buffer = Some(buffer);
        self.active += 1;
        request.parts = pieces.len();
        if pieces.is_empty() {
            self.finish(index);
            return;
        }
        for (file, at, left, offset) in pieces {
            let part = self.parts.insert(Part {
                request: index,
                file,
                at,
                left,
                offset,
                first: offset,
                sector: None,
            });
            self.push(part);
        }
    }

    fn begin_write(&mut self, index: usize, chain: &Chain) -> Start {
        let Some(request) = self.requests.get_mut(index) else {
            return Start::Begun;
        };
        let (start, end) = request.range;
        if !chain.table.take(start / SECTOR, end.div_ceil(SECTOR)) {
            return Start::NotYet;
        }
        if !chain.flags.dirty.load(Ordering::Relaxed) {
            chain.flags.dirty.store(true, Ordering::Relaxed);
        }
        request.revision = chain.counter.as_ref().map(|counter| counter.count(1));
        self.to_persist = request.revision.or(self.to_persist);
        self.active += 1;
        // Checked: it is not negative.
        let data_start = request.offset.unsigned_abs();
        let data_end = data_start + u64::from(request.length);
        let first = (data_start > start).then_some(start);
        let last = (data_end < end).then_some((end - 1) / SECTOR * SECTOR);
        let edges = first
            .into_iter()
            .chain(last.filter(|&last| Some(last) != first));
        let mut parts = Vec::new();
        for offset in edges {
            chain.runs(offset, (offset + SECTOR).min(end), |run| {
                let image = &chain.layers[run.layer];
                let length = usize::try_from(run.length).unwrap_or(0);
                let there = readable(image, run.offset, length);
                parts.push((image.descriptor(), there.min(length), run.offset));
            });
        }
        request.stage = Stage::Edges;
        request.parts = parts.len();
        if parts.is_empty() {
            self.write_main(index);
        }
        for (file, left, offset) in parts {
            let mut sector = self.buffers.take(SECTOR_BYTES);
            sector.bytes_mut()[left..].fill(0);
            let part = self.parts.insert(Part {
                request: index,
                file,
                at: 0,
                left,
                offset,
                first: offset,
                sector: Some(sector),
            });
            match left {
                0 => self.part_ended(part),
                _ => self.push(part),
            }
        }
        Start::Begun
    }

    /// Writes the whole sectors of a request.
    fn write_main(&mut self, index: usize) {
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        if request.failed.is_some() {
            self.finish(index);
            return;
        }
        let Some(pass) = &self.pass else {
            return;
        };
        let head = &pass.chain.layers[pass.chain.head()];
        let (start, end) = request.range;
        request.stage = Stage::Main;
        request.parts = 1;
        let part = self.parts.insert(Part {
            request: index,
            file: head.descriptor(),
            at: 0,
            left: usize::try_from(end - start).unwrap_or(0),
            offset: start,
            first: start,
            sector: None,
        });
        self.push(part);
    }

    /// Has a part read or written.
    fn push(&mut self, index: usize) {
        let Some(part) = self.parts.get_mut(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        let writes = request.kind == Kind::Write && request.stage == Stage::Main;
        let memory: Option<&Aligned> = part.sector.as_ref().or(request.buffer.as_ref());
        let Some(address) = memory.map(|memory| memory.address(part.at)) else {
            return;
        };
        let length = u32::try_from(part.left).unwrap_or(u32::MAX);
        let call = match writes {
            true => Call::Write(part.file, address, length, part.offset),
            false => Call::Read(part.file, address, length, part.offset),
        };
        self.driver.push(index as u64, call);
    }

    fn part_completed(&mut self, index: usize, result: i32) {
        let Some(part) = self.parts.get_mut(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        let writes = request.kind == Kind::Write && request.stage == Stage::Main;
        let Ok(bytes) = usize::try_from(result) else {
            if [-libc::EINTR, -libc::EAGAIN].contains(&result) {
                self.push(index);
                return;
            }
            request.failed = Some(-result);
            self.part_ended(index);
            return;
        };
        let bytes = bytes.min(part.left);
        part.at += bytes;
        part.left -= bytes;
        part.offset += bytes as u64;
        if part.left > 0 && bytes > 0 && bytes % 512 == 0 {
            self.push(index);
            return;
        }
        if part.left > 0 && writes {
            request.failed = Some(libc::EIO);
        } else if part.left > 0 {
            // The layer ends before, in the middle of a sector.
            let (at, left) = (part.at, part.left);
            if let Some(memory) = part.sector.as_mut().or(request.buffer.as_mut()) {
                memory.bytes_mut()[at..at + left].fill(0);
            }
        }
        self.part_ended(index);
    }

    fn part_ended(&mut self, index: usize) {
        let Some(part) = self.parts.remove(index) else {
            return;
        };
        let Some(request) = self.requests.get_mut(part.request) else {
            return;
        };
        if let Some(sector) = part.sector {
            request.merge(sector.bytes(), part.first);
            self.buffers.give(sector);
        }
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        match (request.kind, request.stage) {
            (Kind::Write, Stage::Edges) => self.write_main(part.request),
            _ => self.finish(part.request),
        }
    }

    /// Answers what was at the disk.
    fn finish(&mut self, index: usize) {
        self.active -= 1;
        let Some(chain) = self.pass.as_ref().map(|pass| Arc::clone(&pass.chain)) else {
            return;
        };
        let Some(request) = self.requests.get_mut(index) else {
            return;
        };
        let length = request.length;
        if request.kind == Kind::Read {
            let payload = match (request.failed, request.buffer.take()) {
                (None, Some(buffer)) => Payload::Data(buffer, request.shift(), length as usize),
                (errno, _) => Payload::Text(error_text("cannot read", errno.unwrap_or(libc::EIO))),
            };
            self.answer(index, 0, payload);
            return;
        }
        let (start, end) = request.range;
        match request.failed {
            None => chain.written(start, end),
            Some(_) => {
                if let Err(error) = chain.failed(start, end) {
                    chain
                        .flags
                        .fail(format!("cannot find out what was written: {error}"));
                }
            }
        }
        chain.table.give(start / SECTOR, end.div_ceil(SECTOR));
        let failed = request
            .failed
            .map(|errno| error_text("cannot write", errno));
        let failed = failed.or_else(|| counted(&chain, request.revision).err());
        if let Some(buffer) = request.buffer.take() {
            self.buffers.give(buffer);
        }
        self.answer(index, length, failed.map_or(Payload::None, Payload::Text));
    }

    /// Gives space back. Nothing of this connection's is at the disk then: the file system waits until the file is at rest, and this thread could
    /// not see to its own requests meanwhile.
    fn unmap(&mut self, index: usize, chain: &Chain) -> Start {
        if self.active > 0 {
            return Start::NotYet;
        }
        if chain.mark_before_unmap {
            self.pass = None;
            if let Err(error) = self.replica.mark_chain_as_removed() {
                let text = format!(
                    "cannot mark snapshots as removed before an unmap: {}",
                    error.text()
                );
                self.answer(index, 0, Payload::Text(text));
                return Start::Begun;
            }
            return self.begin_inside(index, Kind::Unmap);
        }
        let Some(request) = self.requests.get_mut(index) else {
            return Start::Begun;
        };
        let Ok(offset) = u64::try_from(request.offset) else {
            let text = format!("cannot unmap at {}", request.offset);
            self.answer(index, 0, Payload::Text(text));
            return Start::Begun;
        };
        let freed = match chain.narrow(offset, u64::from(request.length)) {
            None => Ok(0),
            Some((start, end)) => match self.punch(chain, start, end) {
                Some(freed) => freed,
                None => return Start::NotYet,
            },
        };
        let revision = chain.counter.as_ref().map(|counter| counter.count(1));
        let result = freed.and_then(|freed| counted(chain, revision).map(|()| freed));
        match result {
            Ok(freed) => self.answer(
                index,
                u32::try_from(freed).unwrap_or(u32::MAX),
                Payload::None,
            ),
            Err(text) => self.answer(index, 0, Payload::Text(text)),
        }
        Start::Begun
    }

    /// Punches whole sectors, unless some of them are being written.
    fn punch(&mut self, chain: &Chain, start: u64, end: u64) -> Option<Result<u64, String>> {
        if let Err(error) = chain.load(start, end) {
            return Some(Err(format!("cannot find the data: {error}")));
        }
        if !chain.table.take(start / SECTOR, end / SECTOR) {
            return None;
        }
        chain.flags.dirty.store(true, Ordering::Relaxed);
        let freed = chain.punch(start, end);
        chain.table.give(start / SECTOR, end / SECTOR);
        Some(freed.map_err(|error| format!("cannot unmap: {error}")))
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

/// How many bytes of a layer can be read from `offset` on, of `length`; a multiple of 512, as O_DIRECT asks for.
fn readable(image: &Image, offset: u64, length: usize) -> usize {
    let there = image.size().saturating_sub(offset);
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(length);
    there.next_multiple_of(512)
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
