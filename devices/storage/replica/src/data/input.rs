//! What a connection receives: frames, first into a small buffer from which the data of writes is copied to where it is written from; what of it
//! is not there yet is received into its place.

use paddock_longhorn::wire::{HEADER, Header, WireError};

use super::{Call, Driver, RECEIVE};
use crate::files::memory::Aligned;

/// Bytes of the buffer.
const STAGING: usize = 64 << 10;

/// From so many bytes on, the rest of a write's data is received into its place.
const DIRECT: usize = 4096;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A header.
    Header,
    /// The data of a request: where it goes in its buffer, and how much.
    Data {
        request: usize,
        at: usize,
        left: usize,
    },
    /// What nobody wants, and then the request that it came with, if it is one.
    Skip { left: usize, then: Option<usize> },
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Input {
    staging: Aligned,
    start: usize,
    end: usize,
    pub next: Next,
    /// A receive is with the kernel, straight into its place or not.
    receiving: Option<bool>,
    /// Nothing more comes.
    pub ended: bool,
}

/// What was received.
pub(super) enum Event {
    /// A header.
    Header(Header),
    /// A header of a frame that nobody knows, with so many bytes behind it.
    Unknown(u32),
    /// Data for a request came to the buffer: so many bytes from here in the buffer, for there in the request's.
    Complete(usize),
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            staging: Aligned::new(STAGING),
            start: 0,
            end: 0,
            next: Next::Header,
            receiving: None,
            ended: false,
        }
    }

    fn available(&self) -> &[u8] {
        &self.staging.bytes()[self.start..self.end]
    }

    /// The next header, which stays until [`take_header`](Self::take_header).
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn header(&self) -> Result<Option<Event>, WireError> {
        let Some(bytes) = self.available().first_chunk::<HEADER>() else {
            return Ok(None);
        };
        match Header::decode(bytes) {
            Ok(header) => Ok(Some(Event::Header(header))),
            // It may be of a later version: it has no answer, and its data is skipped.
            Err(WireError::Kind(_)) => Ok(Some(Event::Unknown(Header::payload_of(bytes)))),
            Err(error) => Err(error),
        }
    }

    pub(super) fn take_header(&mut self) {
        self.start += HEADER;
    }

    /// Gives the data that is there to whom it is for. Returns the request that is complete.
    pub(super) fn take_data(&mut self, destination: Option<&mut Aligned>) -> Option<Event> {
        let available = self.end - self.start;
        match &mut self.next {
            Next::Header => None,
            Next::Data { request, at, left } => {
                let part = available.min(*left);
                if let Some(buffer) = destination {
                    let from = &self.staging.bytes()[self.start..self.start + part];
                    buffer.bytes_mut()[*at..*at + part].copy_from_slice(from);
                }
                self.start += part;
                *at += part;
                *left -= part;
                (*left == 0).then_some(Event::Complete(*request))
            }
            Next::Skip { left, then } => {
                let part = available.min(*left);
                self.start += part;
                *left -= part;
                match (*left, *then) {
                    (0, Some(request)) => Some(Event::Complete(request)),
                    (0, None) => {
                        self.next = Next::Header;
                        None
                    }
                    _ => None,
                }
            }
        }
    }

    /// Whether there is more to look at.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Has more received, unless that is under way. `destination` is the buffer of the request whose data comes next.
    pub(super) fn receive(&mut self, destination: Option<&Aligned>, driver: &mut impl Driver) {
        if self.receiving.is_some() || self.ended {
            return;
        }
        if let (Next::Data { at, left, .. }, Some(buffer), true) =
            (self.next, destination, self.is_empty())
        {
            if left >= DIRECT {
                let length = u32::try_from(left).unwrap_or(u32::MAX);
                driver.push(RECEIVE, Call::Receive(buffer.address(at), length));
                self.receiving = Some(true);
                return;
            }
        }
        if self.start > 0 {
            self.staging
                .bytes_mut()
                .copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = STAGING - self.end;
        if room > 0 {
            let length = u32::try_from(room).unwrap_or(u32::MAX);
            driver.push(
                RECEIVE,
                Call::Receive(self.staging.address(self.end), length),
            );
            self.receiving = Some(false);
        }
    }

    /// So many bytes came, or none any more.
    pub(super) fn received(&mut self, result: i32) {
        let direct = self.receiving.take();
        let bytes = usize::try_from(result).unwrap_or(0);
        self.ended |= bytes == 0 && result != -libc::EINTR && result != -libc::EAGAIN;
        match (direct, &mut self.next) {
            (Some(true), Next::Data { at, left, .. }) => {
                *at += bytes;
                *left -= bytes;
            }
            _ => self.end += bytes,
        }
    }
}
