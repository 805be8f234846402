//! A connection in the transmission phase: requests go out, replies are understood piece by piece as they come. It never blocks.
//!
//! What was asked is in a [`Ledger`], which the replies' cookies point into. The server decides what comes: whatever does not fit what was
//! asked ends the connection.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::net::sockopt;

use super::connect::Connected;
use super::coverage::Coverage;
use super::handshake::Export;
use super::protocol::{self, Content, Reply, ServerError, Violation};
use crate::IoError;
use crate::link::{Link, Received};

/// The most error chunks in one reply.
const MAX_ERRORS: u32 = 64;

/// One request on its way.
#[derive(Debug)]
pub(super) struct Asked {
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
    /// Of a write. Sent again as it is when the connection is lost, whatever the guest has done to its memory.
    pub payload: Option<Bytes>,
    pub reply: Replied,
}

impl Asked {
    pub(super) fn new(command: u16, offset: u64, length: u32) -> Self {
        Self {
            command,
            flags: 0,
            offset,
            length,
            payload: None,
            reply: Replied::default(),
        }
    }
}

/// What has come of the reply to a request.
#[derive(Debug, Default)]
pub(super) struct Replied {
    coverage: Coverage,
    error: Option<IoError>,
    errors: u32,
}

/// What was asked, and what becomes of the answers.
pub(super) trait Ledger {
    /// The request with this cookie, if it is on its way.
    fn asked(&mut self, cookie: u64) -> Option<&mut Asked>;
    /// Bytes of a read, from `at` on.
    fn data(&mut self, cookie: u64, at: u32, bytes: &[u8]);
    /// So many zeros of a read, from `at` on.
    fn zeros(&mut self, cookie: u64, at: u32, length: u32);
    /// A request was answered; it is no longer on its way.
    fn answered(&mut self, cookie: u64, result: Result<(), IoError>);
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Header,
    /// Data of a read from `at` on.
    Data {
        cookie: u64,
        at: u32,
        left: u32,
        done: bool,
    },
    /// Text that says more about an error.
    Text {
        cookie: u64,
        left: u32,
        done: bool,
    },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    next: Next,
    structured: bool,
}

impl Connection {
    pub(super) fn new(connected: Connected) -> (Self, Export) {
        let connection = Self {
            link: Link::new(connected.transport),
            next: Next::Header,
            structured: connected.export.structured,
        };
        (connection, connected.export)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    pub(super) fn has_outgoing(&self) -> bool {
        self.link.has_outgoing()
    }

    /// Whether nothing is on its way out, nor half understood.
    pub(super) fn is_quiet(&self) -> bool {
        !self.link.has_outgoing() && self.next == Next::Header && self.link.received().is_empty()
    }

    /// Puts a request on its way.
    pub(super) fn ask(&mut self, cookie: u64, asked: &Asked) {
        let header = protocol::request(
            asked.command,
            asked.flags,
            cookie,
            asked.offset,
            asked.length,
        );
        self.link.push(&header, asked.payload.clone());
    }

    /// Takes back the requests that `whose` finds by their cookies and of which nothing was sent yet.
    pub(super) fn withdraw(&mut self, mut whose: impl FnMut(u64) -> bool) {
        let cookie = protocol::cookie_of_request;
        self.link
            .withdraw(|header| cookie(header).is_some_and(&mut whose));
    }

    /// Sends what the connection takes.
    ///
    /// # Errors
    /// When it is broken.
    pub(super) fn send(&mut self) -> io::Result<()> {
        self.link.send()
    }

    /// Takes in what has come. Whether there was anything.
    ///
    /// # Errors
    /// When the connection is broken, the server has closed it or goes down, or cannot be understood. What was answered before counts.
    pub(super) fn receive(&mut self, ledger: &mut impl Ledger) -> io::Result<bool> {
        let mut any = false;
        loop {
            let before = self.link.received().len();
            let received = self.link.receive()?;
            any |= self.link.received().len() > before;
            while self.understand(ledger)? {}
            match received {
                Received::More => {}
                Received::Later => return Ok(any),
                Received::End => {
                    let text = "the server has closed the connection";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
            }
        }
    }

    /// One step. Whether there may be another.
    fn understand(&mut self, ledger: &mut impl Ledger) -> io::Result<bool> {
        match self.next {
            Next::Header => match protocol::reply(self.link.received())? {
                None => return Ok(false),
                Some((reply, length)) => {
                    self.link.take(length);
                    self.next = self.begin(reply, ledger)?;
                }
            },
            Next::Data {
                cookie,
                at,
                left,
                done,
            } => {
                let bytes = self.link.received();
                // Not more than `left`, which is 32 bits.
                let count = u32::try_from(bytes.len()).map_or(left, |n| n.min(left));
                if count == 0 {
                    return Ok(false);
                }
                let size = usize::try_from(count).unwrap_or(0);
                ledger.data(cookie, at, &bytes[..size]);
                self.link.take(size);
                let (at, left) = (at + count, left - count);
                self.next = if left > 0 {
                    Next::Data {
                        cookie,
                        at,
                        left,
                        done,
                    }
                } else {
                    finish(cookie, done, ledger)?
                };
            }
            Next::Text { cookie, left, done } => {
                let here = self.link.received().len();
                let count = u32::try_from(here).map_or(left, |n| n.min(left));
                if count == 0 && left > 0 {
                    return Ok(false);
                }
                self.link.take(usize::try_from(count).unwrap_or(0));
                let left = left - count;
                self.next = if left > 0 {
                    Next::Text { cookie, left, done }
                } else {
                    finish(cookie, done, ledger)?
                };
            }
        }
        Ok(true)
    }

    /// What follows a header.
    fn begin(&self, reply: Reply, ledger: &mut impl Ledger) -> io::Result<Next> {
        let (Reply::Simple { cookie, .. } | Reply::Chunk { cookie, .. }) = reply;
        let asked = find(ledger, cookie)?;
        let reads = asked.command == protocol::CMD_READ;
        match reply {
            Reply::Simple { .. } if self.structured && reads => {
                Err(Violation("a read has a simple reply").into())
            }
            Reply::Simple { result: Ok(()), .. } if reads => {
                let left = asked.length;
                if asked.reply.coverage.add(0, left) {
                    let (at, done) = (0, true);
                    return Ok(Next::Data {
                        cookie,
                        at,
                        left,
                        done,
                    });
                }
                Err(Violation("a read has data twice").into())
            }
            Reply::Simple { result, .. } => {
                if let Err(error) = result {
                    asked.reply.error = Some(known(error)?);
                }
                Ok(finish(cookie, true, ledger)?)
            }
            Reply::Chunk { .. } if !self.structured => {
                Err(Violation("a reply is structured, which was not agreed upon").into())
            }
            Reply::Chunk { done, content, .. } => chunk(cookie, done, content, ledger),
        }
    }

    /// Says that nothing more is asked, as far as that can be said without waiting, and closes.
    pub(super) fn close(mut self) {
        let farewell = Asked::new(protocol::CMD_DISC, 0, 0);
        self.ask(0, &farewell);
        if self.send().is_ok() && !self.has_outgoing() {
            let _ = sockopt::set_socket_linger(self.fd(), None);
        }
    }
}

fn find(ledger: &mut impl Ledger, cookie: u64) -> Result<&mut Asked, Violation> {
    let asked = ledger.asked(cookie);
    asked.ok_or(Violation("it replies to what was not asked"))
}

/// What an error of the server's means for a request. That it goes down means nothing: the request is to be asked again.
fn known(error: ServerError) -> io::Result<IoError> {
    match error {
        ServerError::Io(error) => Ok(error),
        ServerError::Shutdown => Err(io::Error::other("the server goes down")),
    }
}

/// What follows the header of a chunk.
fn chunk(cookie: u64, done: bool, content: Content, ledger: &mut impl Ledger) -> io::Result<Next> {
    match content {
        Content::None => {}
        Content::Error(error, left) => {
            let asked = find(ledger, cookie)?;
            asked.reply.errors += 1;
            if asked.reply.errors > MAX_ERRORS {
                return Err(Violation("a reply has errors without end").into());
            }
            let error = known(error)?;
            asked.reply.error.get_or_insert(error);
            return Ok(Next::Text { cookie, left, done });
        }
        Content::Data(offset, length) => {
            let at = place(find(ledger, cookie)?, offset, length)?;
            let left = length;
            return Ok(Next::Data {
                cookie,
                at,
                left,
                done,
            });
        }
        Content::Hole(offset, length) => {
            let at = place(find(ledger, cookie)?, offset, length)?;
            ledger.zeros(cookie, at, length);
        }
    }
    Ok(finish(cookie, done, ledger)?)
}

/// Where in a read a chunk belongs.
fn place(asked: &mut Asked, offset: u64, length: u32) -> Result<u32, Violation> {
    if asked.command != protocol::CMD_READ {
        return Err(Violation("what was not a read has data"));
    }
    let inside = offset
        .checked_sub(asked.offset)
        .and_then(|at| u32::try_from(at).ok())
        .and_then(|at| Some((at, at.checked_add(length)?)))
        .filter(|(_, end)| *end <= asked.length);
    let (at, end) = inside.ok_or(Violation("data is not where it was asked for"))?;
    if !asked.reply.coverage.add(at, end) {
        return Err(Violation("a read has data twice, or in too many pieces"));
    }
    Ok(at)
}

/// Ends a chunk, and perhaps the reply.
fn finish(cookie: u64, done: bool, ledger: &mut impl Ledger) -> Result<Next, Violation> {
    if done {
        let asked = find(ledger, cookie)?;
        let result = match asked.reply.error {
            Some(error) => Err(error),
            None if asked.command != protocol::CMD_READ
                || asked.reply.coverage.is_complete(asked.length) =>
            {
                Ok(())
            }
            None => return Err(Violation("a read lacks data")),
        };
        ledger.answered(cookie, result);
    }
    Ok(Next::Header)
}
