//! One connection of a queue to one replica: frames out, answers in.
//!
//! The replica decides what comes: an answer to nothing, one of another size, a header that is none, all end the connection, and with it the
//! replica's membership.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use paddock_longhorn::wire::{HEADER, Header, Kind, MAX_TEXT};

use super::super::member::{Connection, Member, Socket};
use super::super::text::tells_no_space;
use super::epochs::Epochs;
use crate::Buffer;
use crate::link::{Link, Received};

/// Frames that a replica has to answer at most.
const MAX_FRAMES: usize = 1 << 16;

/// How many bits of a sequence number say which frame; the others change each time that place is used again.
const INDEX_BITS: u32 = 16;

/// What is asked of a replica.
#[derive(Debug)]
pub(super) enum Ask {
    /// To be read into this.
    Read(Buffer),
    /// To be written.
    Write(Bytes),
}

/// A frame that the replica has to answer.
#[derive(Debug)]
struct Frame {
    /// The request that it is a part of.
    request: u32,
    /// Where what is read goes.
    target: Option<Buffer>,
    size: u32,
    /// When it was asked: see [`Epochs`].
    epoch: u64,
}

#[derive(Debug, Default)]
struct Slot {
    uses: u16,
    frame: Option<Frame>,
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Done,
    /// The replica has no space left for it.
    NoSpace,
    /// The replica could not do it, and says why.
    Refused(String),
    /// The connection ended.
    Lost,
}

/// The answer to a frame.
#[derive(Debug)]
pub(super) struct Answer {
    /// The request that it is a part of.
    pub request: u32,
    pub member: u32,
    pub outcome: Outcome,
}

/// What the next bytes are.
#[derive(Debug)]
enum Incoming {
    Header,
    /// The data of a read.
    Data {
        frame: Frame,
        done: u32,
    },
    /// Why something could not be done.
    Text {
        frame: Frame,
        left: u32,
        text: Vec<u8>,
    },
}

/// A connection to a replica.
#[derive(Debug)]
pub(super) struct Session {
    pub member: Arc<Member>,
    socket: Arc<Socket>,
    link: Link,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Frames that were not answered, or not to the end.
    outstanding: usize,
    epochs: Epochs,
    incoming: Incoming,
    /// Whether the queue is told when there is room to send.
    pub polls_room: bool,
}

impl Session {
    pub(super) fn new(member: Arc<Member>, socket: Arc<Socket>) -> Self {
        let link = Link::new(Box::new(Connection(Arc::clone(&socket))));
        Self {
            member,
            socket,
            link,
            slots: Vec::new(),
            free: Vec::new(),
            outstanding: 0,
            epochs: Epochs::default(),
            incoming: Incoming::Header,
            polls_room: false,
        }
    }

    /// Why the replica is to be left, if it is, that was asked here: see [`Member::silence`].
    pub(super) fn silence(&self, now: u64, patience: Duration) -> Option<String> {
        self.socket.silence(now, patience)
    }

    /// Whether answers of the replica are to come.
    pub(super) fn owes(&self) -> bool {
        self.outstanding > 0
    }

    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Asks for something; it is sent with the next [`Link::send`]. Whether there was a place for it.
    pub(super) fn ask(&mut self, request: u32, ask: Ask, offset: u64, now: u64) -> bool {
        let (kind, size, target, payload) = match ask {
            Ask::Read(buffer) => (Kind::Read, buffer.len(), Some(buffer), None),
            Ask::Write(bytes) => (Kind::Write, bytes.len() as u64, None, Some(bytes)),
        };
        let (Ok(offset), Ok(size)) = (i64::try_from(offset), u32::try_from(size)) else {
            return false;
        };
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_FRAMES => {
                self.slots.push(Slot::default());
                // Less than `MAX_FRAMES`.
                u16::try_from(self.slots.len() - 1).unwrap_or(u16::MAX)
            }
            None => return false,
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.uses = slot.uses.wrapping_add(1);
        slot.frame = Some(Frame {
            request,
            target,
            size,
            epoch: self.epochs.ask(now),
        });
        let header = Header {
            sequence: u32::from(slot.uses) << INDEX_BITS | u32::from(index),
            kind,
            offset,
            size,
            payload: if payload.is_some() { size } else { 0 },
        };
        self.link.push(&header.encode(), payload);
        if self.outstanding == 0 {
            self.socket.waits_since(now);
            self.socket.owes_since(self.epochs.oldest());
        }
        self.outstanding += 1;
        true
    }

    /// Receives what has come, and appends the answers.
    ///
    /// # Errors
    /// Why the connection is of no use any more.
    pub(super) fn receive(&mut self, now: u64, answers: &mut Vec<Answer>) -> Result<(), String> {
        loop {
            let received = self.link.receive().map_err(|error| error.to_string())?;
            let before = answers.len();
            self.understand(answers)?;
            if answers.len() > before {
                match self.outstanding {
                    0 => self.socket.rests(),
                    _ => self.socket.waits_since(now),
                }
                self.socket.owes_since(self.epochs.oldest());
            }
            match received {
                Received::More => {}
                Received::Later => return Ok(()),
                Received::End => return Err("it closed the connection".to_owned()),
            }
        }
    }

    /// Goes through what was received.
    fn understand(&mut self, answers: &mut Vec<Answer>) -> Result<(), String> {
        loop {
            match std::mem::replace(&mut self.incoming, Incoming::Header) {
                Incoming::Header => {
                    let Some(bytes) = self.link.take_array::<HEADER>() else {
                        return Ok(());
                    };
                    self.begin(&bytes, answers)?;
                }
                Incoming::Data { frame, mut done } => {
                    if let Some(target) = &frame.target {
                        let left = usize::try_from(frame.size - done).unwrap_or(usize::MAX);
                        let received = self.link.received();
                        let part = &received[..received.len().min(left)];
                        target.copy_from_at(u64::from(done), part);
                        let count = part.len();
                        self.link.take(count);
                        // No more than what is left.
                        done += u32::try_from(count).unwrap_or(0);
                    }
                    if done < frame.size {
                        self.incoming = Incoming::Data { frame, done };
                        return Ok(());
                    }
                    answers.push(self.answered(&frame, Outcome::Done));
                }
                Incoming::Text {
                    frame,
                    mut left,
                    mut text,
                } => {
                    let received = self.link.received();
                    let count = received.len().min(usize::try_from(left).unwrap_or(0));
                    text.extend_from_slice(&received[..count]);
                    self.link.take(count);
                    left -= u32::try_from(count).unwrap_or(left);
                    if left > 0 {
                        self.incoming = Incoming::Text { frame, left, text };
                        return Ok(());
                    }
                    let text = String::from_utf8_lossy(&text);
                    let outcome = if tells_no_space(&text) {
                        Outcome::NoSpace
                    } else {
                        Outcome::Refused(text.trim().to_owned())
                    };
                    answers.push(self.answered(&frame, outcome));
                }
            }
        }
    }

    /// Looks at a header.
    fn begin(&mut self, bytes: &[u8; HEADER], answers: &mut Vec<Answer>) -> Result<(), String> {
        let header = Header::decode(bytes).map_err(|error| error.to_string())?;
        if header.kind == Kind::Close {
            return Err("it said farewell".to_owned());
        }
        let index = header.sequence & ((1 << INDEX_BITS) - 1);
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.slots.get_mut(index))
            .filter(|slot| u32::from(slot.uses) == header.sequence >> INDEX_BITS);
        let Some(frame) = slot.and_then(|slot| slot.frame.take()) else {
            return Err(format!(
                "it answered a request {} that it did not have",
                header.sequence
            ));
        };
        // Less than `MAX_FRAMES`.
        self.free.push(u16::try_from(index).unwrap_or(u16::MAX));
        match header.kind {
            Kind::Response => {
                let expected = frame.target.as_ref().map_or(0, |_| frame.size);
                if header.payload != expected {
                    let got = header.payload;
                    answers.push(self.answer(&frame, Outcome::Lost));
                    return Err(format!(
                        "it answered with {got} bytes instead of {expected}"
                    ));
                }
                self.incoming = if expected > 0 {
                    Incoming::Data { frame, done: 0 }
                } else {
                    answers.push(self.answered(&frame, Outcome::Done));
                    Incoming::Header
                };
                Ok(())
            }
            Kind::Error | Kind::Eof | Kind::NoSpace if header.payload <= MAX_TEXT => {
                let text = match header.kind {
                    Kind::NoSpace => b"no space left on device ".to_vec(),
                    _ => Vec::new(),
                };
                self.incoming = Incoming::Text {
                    frame,
                    left: header.payload,
                    text,
                };
                Ok(())
            }
            kind => {
                answers.push(self.answer(&frame, Outcome::Lost));
                Err(format!(
                    "it answered with a frame of type {kind:?} and {} bytes",
                    header.payload
                ))
            }
        }
    }

    /// Takes note of a frame that was answered to the end.
    fn answered(&mut self, frame: &Frame, outcome: Outcome) -> Answer {
        self.outstanding -= 1;
        self.epochs.answer(frame.epoch);
        self.answer(frame, outcome)
    }

    fn answer(&self, frame: &Frame, outcome: Outcome) -> Answer {
        Answer {
            request: frame.request,
            member: self.member.id,
            outcome,
        }
    }

    /// Answers what will not be answered any more.
    pub(super) fn abandon(mut self, answers: &mut Vec<Answer>) {
        self.socket.shut_down();
        self.socket.rests();
        self.socket.owes_since(None);
        let slots = std::mem::take(&mut self.slots);
        let begun = match std::mem::replace(&mut self.incoming, Incoming::Header) {
            Incoming::Header => None,
            Incoming::Data { frame, .. } | Incoming::Text { frame, .. } => Some(frame),
        };
        let frames = slots.into_iter().filter_map(|slot| slot.frame).chain(begun);
        for frame in frames {
            answers.push(self.answer(&frame, Outcome::Lost));
        }
    }
}
