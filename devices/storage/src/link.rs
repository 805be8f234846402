//! A connection to a server of blocks, for the thread of one queue: it never blocks and has no thread of its own. What is to be sent waits here until
//! the connection takes it, and what came waits until the protocol has understood it.
//!
//! The peer decides what comes and when; more than a buffer of it is never held.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::{Buf, Bytes};

/// Bytes that are received at once.
const BUFFER: usize = 128 << 10;

/// The most pieces that are sent at once.
const MAX_PIECES: usize = 128;

/// The most bytes of a header.
const MAX_HEADER: usize = 32;

/// What a link runs over: a socket that does not block, or TLS on one. A read gives all there is, up to the buffer's length: one that gives less
/// is the last before more has come.
pub(crate) trait Transport: Read + Write + AsFd + Send {}

impl<T: Read + Write + AsFd + Send> Transport for T {}

/// A piece of what is to be sent.
enum Piece {
    Header {
        bytes: [u8; MAX_HEADER],
        sent: usize,
        length: usize,
    },
    Payload(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Header {
                bytes,
                sent,
                length,
            } => bytes.get(*sent..*length).unwrap_or_default(),
            Self::Payload(bytes) => bytes,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Header { sent, .. } => *sent += count,
            Self::Payload(bytes) => bytes.advance(count),
        }
    }
}

/// Why nothing more comes for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// There may be more at once.
    More,
    /// The peer has sent nothing more yet.
    Later,
    /// The peer has closed the connection.
    End,
}

/// A connection.
pub(crate) struct Link {
    transport: Box<dyn Transport>,
    outgoing: VecDeque<Piece>,
    /// Whether the transport has taken bytes that it has not sent: TLS encrypts first.
    withheld: bool,
    /// Received and not yet understood: `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Link {
    /// Takes a connection over.
    pub(crate) fn new(transport: Box<dyn Transport>) -> Self {
        Self {
            transport,
            outgoing: VecDeque::new(),
            withheld: false,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    /// What to poll: readable when there is something to [`receive`](Self::receive), writable when there is room to
    /// [`send`](Self::send).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }

    /// Appends a header of at most 32 bytes, and perhaps a payload, to what is to be sent.
    pub(crate) fn push(&mut self, header: &[u8], payload: Option<Bytes>) {
        debug_assert!(header.len() <= MAX_HEADER);
        let length = header.len().min(MAX_HEADER);
        let mut bytes = [0; MAX_HEADER];
        bytes[..length].copy_from_slice(&header[..length]);
        self.outgoing.push_back(Piece::Header {
            bytes,
            sent: 0,
            length,
        });
        let payload = payload.filter(|payload| !payload.is_empty());
        self.outgoing.extend(payload.map(Piece::Payload));
    }

    /// Takes back what of nothing was sent yet: headers that `whose` finds, and their payloads.
    pub(crate) fn withdraw(&mut self, mut whose: impl FnMut(&[u8]) -> bool) {
        let mut goes = false;
        self.outgoing.retain(|piece| {
            if let Piece::Header { sent, .. } = piece {
                goes = *sent == 0 && whose(piece.bytes());
            }
            !goes
        });
    }

    /// Whether something is still to be sent.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.withheld || !self.outgoing.is_empty()
    }

    /// Sends as much as the connection takes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(piece.bytes());
                count += 1;
            }
            let sent = match self.transport.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.note_sent(sent);
        }
        match self.transport.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            flushed => {
                self.withheld = flushed.is_err();
                Ok(())
            }
        }
    }

    fn note_sent(&mut self, mut sent: usize) {
        while let Some(piece) = self.outgoing.front_mut() {
            let length = piece.bytes().len();
            if sent < length {
                piece.advance(sent);
                return;
            }
            sent -= length;
            self.outgoing.pop_front();
        }
    }

    /// Receives once, if there is room: what was received before is to be [taken](Self::take) first.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn receive(&mut self) -> io::Result<Received> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.buffer.len() - self.end;
        if room == 0 {
            return Ok(Received::More);
        }
        loop {
            return match self.transport.read(&mut self.buffer[self.end..]) {
                Ok(0) => Ok(Received::End),
                Ok(count) => {
                    self.end += count;
                    // A stream that gave less than it was asked for has no more: see epoll(7).
                    Ok(if count < room {
                        Received::Later
                    } else {
                        Received::More
                    })
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Later),
                Err(error) => Err(error),
            };
        }
    }

    /// What was received and not taken.
    pub(crate) fn received(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes the first `N` bytes of what was received, once there are so many.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = self.received().first_chunk().copied()?;
        self.take(N);
        Some(array)
    }

    /// Forgets the first bytes of what was received, at most all of it.
    pub(crate) fn take(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("outgoing", &self.outgoing.len())
            .field("received", &(self.end - self.start))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use bytes::Bytes;

    use super::{BUFFER, Link, Received};

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("does not block");
        (Link::new(Box::new(ours)), theirs)
    }

    #[test]
    fn more_than_the_socket_takes_is_sent_in_order() {
        let (mut link, mut peer) = pair();
        let payload = Bytes::from((0..=255).cycle().take(3 << 20).collect::<Vec<u8>>());
        link.push(b"first", None);
        link.push(b"second", Some(payload.clone()));
        link.push(b"third", Some(Bytes::new()));
        link.send().expect("sent");
        assert!(link.has_outgoing(), "a socket that takes 3 MiB at once");
        let mut got = vec![0; 11 + payload.len() + 5];
        let mut done = 0;
        while done < got.len() {
            done += peer.read(&mut got[done..]).expect("received");
            link.send().expect("sent");
        }
        assert!(!link.has_outgoing());
        assert_eq!(&got[..11], b"firstsecond");
        assert_eq!(&got[11..11 + payload.len()], &payload[..]);
        assert_eq!(&got[11 + payload.len()..], b"third");
    }

    #[test]
    fn only_what_was_not_begun_is_taken_back() {
        let (mut link, mut peer) = pair();
        let payload = Bytes::from(vec![1; 3 << 20]);
        for header in [b"1", b"2", b"3", b"4"] {
            link.push(header, Some(payload.clone()));
        }
        link.send().expect("sent");
        assert!(link.has_outgoing(), "a socket that takes 3 MiB at once");
        link.withdraw(|header| header != b"3");
        let mut got = vec![0; 2 * (1 + payload.len())];
        let mut done = 0;
        while done < got.len() {
            done += peer.read(&mut got[done..]).expect("received");
            link.send().expect("sent");
        }
        assert!(!link.has_outgoing());
        assert_eq!((got[0], got[1 + payload.len()]), (b'1', b'3'));
    }

    #[test]
    fn what_came_waits_until_it_is_taken() {
        let (mut link, mut peer) = pair();
        assert_eq!(link.receive().expect("open"), Received::Later);
        peer.write_all(b"abcdefg").expect("written");
        assert_eq!(link.receive().expect("open"), Received::Later);
        assert_eq!(link.take_array::<8>(), None);
        assert_eq!(link.take_array::<4>(), Some(*b"abcd"));
        peer.write_all(b"h").expect("written");
        assert_eq!(link.receive().expect("open"), Received::Later);
        assert_eq!(link.received(), b"efgh");
        link.take(99);
        drop(peer);
        assert_eq!(link.receive().expect("open"), Received::End);
    }

    #[test]
    fn no_more_than_a_buffer_is_held() {
        let (mut link, mut peer) = pair();
        let writer = std::thread::spawn(move || {
            // Fails when the link goes.
            while peer.write_all(&[1; 4096]).is_ok() {}
        });
        while link.received().len() < BUFFER {
            link.receive().expect("open");
        }
        assert_eq!(link.receive().expect("open"), Received::More);
        assert_eq!(link.received().len(), BUFFER);
        drop(link);
        writer.join().expect("the writer ends");
    }

    #[test]
    fn a_broken_connection_is_an_error() {
        let (mut link, peer) = pair();
        drop(peer);
        link.push(b"hello", None);
        assert!(link.send().is_err());
    }
}
