//! The API's unix socket, and who may use it.
//!
//! How it is made, and whose clients are served, is [`paddock_socket`]'s. A socket that somebody else made and passed in keeps the file,
//! owner and mode it has; its clients are looked at all the same.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use paddock_socket::{OwnSocket, SocketFile, stranger};
use rustix::net::{AddressFamily, SocketType};

/// Connections that may wait for the control plane to look.
const BACKLOG: i32 = 128;
/// Why the API's socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There cannot be one at the path.
    #[error(transparent)]
    Own(#[from] paddock_socket::SocketError),
    /// What was passed in is something else.
    #[error(
        "{name}: the passed descriptor is {found}; the API needs a unix stream socket that listens, such as ListenStream=/PATH in a socket unit makes"
    )]
    NotListening {
        /// How it was asked for.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// The host refuses.
    #[error("{name}: making the passed socket non-blocking")]
    Host {
        /// How it was asked for.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    /// None of ours for a socket that was passed in.
    file: Option<SocketFile>,
}

impl ApiSocket {
    /// Makes the socket at `path` and listens.
    ///
    /// # Errors
    /// When the path is taken, too long, or not ours to write to.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let (listener, file) = OwnSocket::bind(path, BACKLOG)?.into_parts();
        Ok(Self {
            listener,
            file: Some(file),
        })
    }

    /// Takes a socket that somebody else made, and that listens already. `name` is how it was asked for.
    ///
    /// # Errors
    /// When it is something else.
    pub fn adopt(socket: OwnedFd, name: &str) -> Result<Self, SocketError> {
        if let Some(found) = not_listening(&socket) {
            let name = name.to_owned();
            return Err(SocketError::NotListening { name, found });
        }
        let listener = UnixListener::from(socket);
        listener
            .set_nonblocking(true)
            .map_err(|source| SocketError::Host {
                name: name.to_owned(),
                source,
            })?;
        Ok(Self {
            listener,
            file: None,
        })
    }

    /// The parts, for a task that accepts.
    pub(super) fn into_listener(
        self,
    ) -> io::Result<(tokio::net::UnixListener, Option<SocketFile>)> {
        let listener = tokio::net::UnixListener::from_std(self.listener)?;
        Ok((listener, self.file))
    }
}

/// Whether the client is the process's own user or root.
pub(super) fn is_welcome(client: &tokio::net::UnixStream) -> bool {
    stranger(client).is_ok_and(|stranger| stranger.is_none())
}

/// What a descriptor is that is no unix stream socket that listens.
fn not_listening(socket: &OwnedFd) -> Option<&'static str> {
    use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
    match (socket_domain(socket), socket_type(socket)) {
        (Err(_), _) | (_, Err(_)) => Some("no socket"),
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) => match socket_acceptconn(socket) {
            Ok(true) => None,
            _ => Some("a unix stream socket that does not listen"),
        },
        (Ok(AddressFamily::UNIX), Ok(_)) => Some("a unix socket of another type"),
        _ => Some("a socket of another family"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_path_that_is_taken_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = ApiSocket::bind(&path).unwrap();
        let error = ApiSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("api.sock: another process"), "{error}");
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_passed_socket_serves_and_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        let socket = ApiSocket::adopt(listener.into(), "fd:api").unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        let runtime = { tokio::runtime::Builder::new_current_thread() }
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (listener, file) = socket.into_listener().unwrap();
            assert!(file.is_none());
            let (client, _) = listener.accept().await.unwrap();
            assert!(is_welcome(&client));
        });
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[test]
    fn what_was_passed_and_is_no_listening_socket() {
        use std::os::unix::net::{UnixDatagram, UnixStream};
        let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let stream: OwnedFd = UnixStream::pair().unwrap().0.into();
        let datagram: OwnedFd = UnixDatagram::unbound().unwrap().into();
        for (fd, expected) in [
            (file, "is no socket;"),
            (tcp, "another family;"),
            (stream, "does not listen;"),
            (datagram, "another type;"),
        ] {
            let error = ApiSocket::adopt(fd, "fd:7").unwrap_err().to_string();
            assert!(error.starts_with("fd:7: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}
