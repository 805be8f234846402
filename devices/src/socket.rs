//! Unix sockets on which the host's programs reach a guest, and their clients; both never block.
//!
//! How they are made, and whose clients are served, is [`paddock_socket`]'s. Used by the threads that serve the guest's ports and
//! consoles. Clients come, send and leave as they like.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

pub use paddock_socket::SocketError;
use paddock_socket::{ListeningSocket, stranger};
use rustix::net::RecvFlags;

use crate::throttle::Throttle;

/// Clients that may wait for their turn.
const WAITING_CLIENTS: i32 = 8;

/// A listening socket.
#[derive(Debug)]
pub struct PrivateSocket {
    socket: ListeningSocket,
    log: Throttle,
}

impl PrivateSocket {
    /// Makes the socket at `path`.
    ///
    /// # Errors
    /// When somebody listens there, something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Ok(Self {
            socket: ListeningSocket::bind(path, WAITING_CLIENTS)?,
            log: Throttle::new(),
        })
    }

    /// Takes a socket that somebody else made, and that listens already. `name` is how it was asked for.
    ///
    /// # Errors
    /// When it is something else.
    pub fn adopt(socket: OwnedFd, name: &str) -> Result<Self, SocketError> {
        Ok(Self {
            socket: ListeningSocket::adopt(socket, name)?,
            log: Throttle::new(),
        })
    }

    /// For waiting for clients.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }

    /// The next client, if one waits. A process of another user's, root excepted, is hung up on.
    ///
    /// # Errors
    /// When the host has no descriptor left; the client waits on.
    pub fn accept(&self) -> io::Result<Option<Client>> {
        match self.listener().accept() {
            Ok((stream, _)) => {
                if let Some(user) = stranger(&stream)? {
                    if let Some(held_back) = self.log.pass() {
                        let path = self.socket.name().display();
                        tracing::warn!(%path, user, held_back, "a client of another user's was refused");
                    }
                    return Ok(None);
                }
                stream.set_nonblocking(true)?;
                Ok(Some(Client::new(stream)))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A connected client.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// It sends no more; it may still read.
    input_ended: bool,
    /// It is gone; what it sent last may still be unread.
    gone: bool,
}

/// What became of a read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// This many bytes, at least one.
    Done(usize),
    /// Nothing now; later.
    Later,
    /// Nothing ever again.
    Never,
}

impl Client {
    /// A client at the other end of `stream`, which must not block.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input_ended: false,
            gone: false,
        }
    }

    /// For waiting.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether it may send more.
    #[must_use]
    pub fn sends(&self) -> bool {
        !self.input_ended
    }

    /// Whether it has hung up.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether there is no reason to keep it: gone, and nothing of it unread.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.gone && (self.input_ended || !self.has_unread())
    }

    /// It has hung up.
    pub fn hang_up(&mut self) {
        self.gone = true;
    }

    fn has_unread(&self) -> bool {
        let mut byte = [0_u8];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.stream, &mut byte[..], peek).is_ok_and(|(count, _)| count > 0)
    }

    /// Reads into `buffer`, which is not empty.
    pub fn read(&mut self, buffer: &mut [u8]) -> Transfer {
        if self.input_ended {
            return Transfer::Never;
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => break,
                Ok(count) => return Transfer::Done(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Transfer::Later,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.input_ended = true;
        Transfer::Never
    }

    /// Writes what the socket takes of `bytes`, which is not empty.
    pub fn write(&mut self, bytes: &[u8]) -> Transfer {
        if self.gone {
            return Transfer::Never;
        }
        loop {
            match self.stream.write(bytes) {
                Ok(0) => return Transfer::Later,
                Ok(count) => return Transfer::Done(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Transfer::Later,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return Transfer::Never;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_over_when_gone_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let socket = PrivateSocket::bind(&path).unwrap();
        assert!(socket.accept().unwrap().is_none());
        let mut peer = UnixStream::connect(&path).unwrap();
        let mut client = socket.accept().unwrap().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(client.read(&mut buffer), Transfer::Later);
        peer.write_all(b"bye").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut buffer), Transfer::Done(3));
        assert_eq!(client.read(&mut buffer), Transfer::Never);
        assert!(!client.sends() && !client.is_over());
        assert_eq!(client.write(b"hello"), Transfer::Done(5));
        drop(peer);
        assert_eq!(client.write(b"hello"), Transfer::Never);
        assert!(client.is_over());

        let mut peer = UnixStream::connect(&path).unwrap();
        let mut client = socket.accept().unwrap().unwrap();
        peer.write_all(b"x").unwrap();
        drop(peer);
        client.hang_up();
        assert!(!client.is_over(), "unread");
        assert_eq!(client.read(&mut buffer), Transfer::Done(1));
        assert!(client.is_over());
    }
}
