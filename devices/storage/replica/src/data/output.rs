//! The answers of a connection: as many as there are go into one message, the data straight from the buffers it was read into.
#![expect(unsafe_code, reason = "a message header is zeroed memory")]

use std::collections::VecDeque;

use paddock_longhorn::wire::{HEADER, Header, Kind};

use super::buffers::Buffers;
use super::{Call, Driver, SEND};
use crate::files::memory::Aligned;

/// The most answers of a message, with two pieces each: the kernel takes 1024.
const MOST_ANSWERS: usize = 512;

/// What an answer carries.
#[derive(Debug)]
pub(super) enum Payload {
    /// Nothing.
    None,
    /// An error.
    Text(String),
    /// Bytes of a buffer: from, and how many.
    Data(Aligned, usize, usize),
}

/// An answer.
#[derive(Debug)]
struct Answer {
    header: [u8; HEADER],
    payload: Payload,
    /// Bytes that are no longer held once it is sent.
    cost: usize,
}

/// What of the connection's holdings came free.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Freed {
    pub requests: usize,
    pub bytes: usize,
}

/// What is being sent. The kernel has pointers to all of it.
struct Message {
    answers: Vec<Answer>,
    pieces: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
}

/// The answers that were not sent yet.
#[derive(Default)]
pub(super) struct Output {
    waiting: VecDeque<Answer>,
    sending: Option<Message>,
}

impl Output {
    /// Appends the answer to a request.
    pub(super) fn answer(
        &mut self,
        sequence: u32,
        offset: i64,
        size: u32,
        payload: Payload,
        cost: usize,
    ) {
        let (kind, size, length) = match &payload {
            Payload::None => (Kind::Response, size, 0),
            Payload::Text(text) => {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                (Kind::Error, length, length)
            }
            Payload::Data(_, _, length) => {
                let length = u32::try_from(*length).unwrap_or(u32::MAX);
                (Kind::Response, length, length)
            }
        };
        let header = Header {
            sequence,
            kind,
            offset,
            size,
            payload: length,
        };
        self.waiting.push_back(Answer {
            header: header.encode(),
            payload,
            cost,
        });
    }

    /// Whether a message is with the kernel.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Has a message sent, if there is something to send and none is with the kernel.
    pub(super) fn send(&mut self, driver: &mut impl Driver) {
        if self.sending.is_some() || self.waiting.is_empty() {
            return;
        }
        let count = self.waiting.len().min(MOST_ANSWERS);
        let answers: Vec<_> = self.waiting.drain(..count).collect();
        let mut pieces = Vec::with_capacity(2 * count);
        for answer in &answers {
            pieces.push(piece(&answer.header));
            match &answer.payload {
                Payload::Data(buffer, start, length) => {
                    pieces.push(piece(&buffer.bytes()[*start..start + length]));
                }
                Payload::Text(text) => pieces.push(piece(text.as_bytes())),
                Payload::None => {}
            }
        }
        // SAFETY: zeros are a valid header: no name, no pieces, no control data.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        let mut message = Message {
            answers,
            pieces,
            header,
        };
        message.hand_over(driver);
        self.sending = Some(message);
    }

    /// The kernel took so many bytes. Returns what came free when the message is through, or has the rest sent.
    pub(super) fn sent(
        &mut self,
        bytes: usize,
        driver: &mut impl Driver,
        buffers: &mut Buffers,
    ) -> Freed {
        let Some(message) = &mut self.sending else {
            return Freed::default();
        };
        message.advance(bytes);
        if !message.pieces.is_empty() {
            message.hand_over(driver);
            return Freed::default();
        }
        let answers = self.sending.take().map(|message| message.answers);
        release(answers.into_iter().flatten(), buffers)
    }

    /// Nothing can be sent any more, and the kernel is done with the message.
    pub(super) fn abandon(&mut self, buffers: &mut Buffers) -> Freed {
        let sending = self.sending.take().map(|message| message.answers);
        let all = sending.into_iter().flatten().chain(self.waiting.drain(..));
        release(all, buffers)
    }
}

fn release(answers: impl Iterator<Item = Answer>, buffers: &mut Buffers) -> Freed {
    let mut freed = Freed::default();
    for answer in answers {
        freed.requests += 1;
        freed.bytes += answer.cost;
        if let Payload::Data(buffer, ..) = answer.payload {
            buffers.give(buffer);
        }
    }
    freed
}

fn piece(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

impl Message {
    fn hand_over(&mut self, driver: &mut impl Driver) {
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len();
        driver.push(SEND, Call::Send(&raw const *self.header));
    }

    /// Forgets what was sent.
    fn advance(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut whole = 0;
        for piece in &mut self.pieces {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(left).cast();
                piece.iov_len -= left;
                break;
            }
            left -= piece.iov_len;
            whole += 1;
        }
        self.pieces.drain(..whole);
    }
}
