//! Unix sockets on which the host's programs reach a guest, and their clients; both never block.
//!
//! A socket is made with mode 0600 from the start, and removed when its owner goes; a leftover that nobody listens on is replaced. Used by
//! the threads that serve the guest's ports and consoles. Clients are processes of our user's and root's, whatever becomes of the file's
//! mode: they come, send and leave as they like.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::throttle::Throttle;

/// Clients that may wait for their turn.
const WAITING_CLIENTS: i32 = 8;

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody listens on the path.
    #[error("{}: another process listens on this socket; stop it or choose another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else is at the path.
    #[error("{}: exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The host refused.
    #[error("{}: {action}", path.display())]
    Host {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket in the file system.
#[derive(Debug)]
pub struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file we made: a successor's is left alone.
    file: Option<(u64, u64)>,
    log: Throttle,
}

impl PrivateSocket {
    /// Makes the socket at `path`.
    ///
    /// # Errors
    /// When somebody listens there, something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |action| {
            move |source: io::Error| SocketError::Host {
                path: path.to_owned(),
                action,
                source,
            }
        };
        remove_leftover(path)?;
        let listener = listen(path).map_err(failed("listening on the socket"))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("looking at the new socket"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: Some((metadata.dev(), metadata.ino())),
            log: Throttle::new(),
        })
    }

    /// For waiting for clients.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next client, if one waits. A process of another user's, root excepted, is hung up on.
    ///
    /// # Errors
    /// When the host has no descriptor left; the client waits on.
    pub fn accept(&self) -> io::Result<Option<Client>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                let peer = peer_user(&stream)?;
                if !admits(rustix::process::geteuid().as_raw(), peer) {
                    if let Some(held_back) = self.log.pass() {
                        let path = self.path.display();
                        tracing::warn!(%path, user = peer, held_back, "a client of another user's was refused");
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

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| self.file == Some((metadata.dev(), metadata.ino())));
        if ours {
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(path = %self.path.display(), %error, "removing a console socket");
            }
        }
    }
}

/// Whether a process of `own`'s serves one of `peer`'s.
fn admits(own: u32, peer: u32) -> bool {
    peer == own || peer == 0
}

/// The user that the process at the other end had when it connected.
///
/// Not by rustix, whose answer has a process id that cannot be 0: it is 0 when the peer is in a PID namespace that we do not see, such as
/// the host's seen from a container.
#[expect(
    unsafe_code,
    reason = "rustix cannot tell of a peer without a process id"
)]
fn peer_user(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let size = size_of::<libc::ucred>();
    let mut length = libc::socklen_t::try_from(size).unwrap_or(0);
    // SAFETY: `peer` and `length` live across the call, and `length` says how much of `peer` may be written, which is plain integers.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(peer.uid)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The mode is set before the file exists: Linux gives the file that of the socket.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, WAITING_CLIENTS)?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket that nobody listens on any more.
fn remove_leftover(path: &Path) -> Result<(), SocketError> {
    let failed = |action, source| SocketError::Host {
        path: path.to_owned(),
        action,
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking for a leftover socket", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match connect(path) {
        // Its queue of waiting clients may be full: somebody listens all the same.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(rustix::io::Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(|error| failed("removing the leftover socket", error))
        }
        Err(error) => Err(failed(
            "asking whether somebody listens on the existing socket",
            error.into(),
        )),
    }
}

/// Connects without waiting.
fn connect(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_replaced_when_stale_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let socket = PrivateSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            PrivateSocket::bind(&path),
            Err(SocketError::InUse { .. })
        ));
        drop(socket);
        assert!(!path.exists());

        // A leftover: bound once, its listener gone without removing the file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = PrivateSocket::bind(&path).unwrap();
        // Replaced behind our back: the successor's file stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x").unwrap();
        drop(socket);
        assert!(path.exists());
        let error = PrivateSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }));
    }

    #[test]
    fn clients_are_of_our_user_or_root() {
        assert!(admits(1000, 1000) && admits(1000, 0) && admits(0, 0));
        assert!(!admits(1000, 1001) && !admits(0, 1000));
        // One whom a user namespace does not know.
        assert!(!admits(1000, 65534));
        let (stream, _peer) = UnixStream::pair().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(peer_user(&stream).unwrap(), own);
    }

    #[test]
    fn bad_paths_are_named() {
        let missing = PrivateSocket::bind(Path::new("/nonexistent/port")).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "/nonexistent/port: listening on the socket"
        );
        let long = format!("/tmp/{}", "x".repeat(200));
        let error = PrivateSocket::bind(Path::new(&long)).unwrap_err();
        assert!(error.to_string().starts_with(&long), "{error}");
    }

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
