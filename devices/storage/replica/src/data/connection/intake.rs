//! What was received, taken apart into requests, as many as there is room for.

use paddock_longhorn::wire::{Header, Kind};

use super::Connection;
use crate::data::input::{Event, Next};
use crate::data::request::{Request, SECTOR_BYTES, Stage};
use crate::data::{Driver, MOST_HELD, MOST_REQUEST, MOST_REQUESTS};

impl<D: Driver> Connection<D> {
    /// Takes what was received apart.
    pub(super) fn parse(&mut self) {
        self.starved = None;
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
                Event::Header(header) if self.take_room(&header) => {
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

    /// Takes room for another request, if there is some. A large one is held if it is alone.
    fn take_room(&mut self, header: &Header) -> bool {
        let cost = Self::cost(header);
        let may = self.held.requests < MOST_REQUESTS
            && (self.held.bytes == 0 || self.held.bytes + cost <= MOST_HELD);
        if !may {
            return false;
        }
        let taken = self.share.take(cost);
        if !taken {
            self.starved = Some(cost);
        }
        taken
    }

    /// Whether requests came whole whose answers have not been sent.
    pub(super) fn owes(&self) -> bool {
        let coming = matches!(
            self.input.next,
            Next::Data { .. } | Next::Skip { then: Some(_), .. }
        );
        self.held.requests > usize::from(coming) || self.starved.is_some()
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
        self.guest.activity.speak();
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

    pub(super) fn receive(&mut self) {
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
}
