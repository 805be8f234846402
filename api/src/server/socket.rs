//! The API's unix socket, and who may use it: how it is made or taken, and whose clients are served, is [`paddock_socket`]'s.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

pub use paddock_socket::SocketError;
use paddock_socket::{ListeningSocket, SocketFile, stranger};

/// Connections that may wait for the control plane to look.
const BACKLOG: i32 = 128;

/// A listening socket.
#[derive(Debug)]
pub struct ApiSocket(ListeningSocket);

impl ApiSocket {
    /// Makes the socket at `path` and listens.
    ///
    /// # Errors
    /// When the path is taken, too long, or not ours to write to.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        ListeningSocket::bind(path, BACKLOG).map(Self)
    }

    /// Takes a socket that somebody else made, and that listens already. `name` is how it was asked for.
    ///
    /// # Errors
    /// When it is something else.
    pub fn adopt(socket: OwnedFd, name: &str) -> Result<Self, SocketError> {
        ListeningSocket::adopt(socket, name).map(Self)
    }

    /// The parts, for a task that accepts.
    pub(super) fn into_listener(
        self,
    ) -> io::Result<(tokio::net::UnixListener, Option<SocketFile>)> {
        let (listener, file) = self.0.into_parts();
        Ok((tokio::net::UnixListener::from_std(listener)?, file))
    }
}

/// Whether the client is the process's own user or root.
pub(super) fn is_welcome(client: &tokio::net::UnixStream) -> bool {
    stranger(client).is_ok_and(|stranger| stranger.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn made_or_passed_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let made = ApiSocket::bind(&path).unwrap();
        let error = ApiSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("api.sock: another process"), "{error}");
        drop(made);
        assert!(!path.exists());

        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = ApiSocket::adopt(listener.into(), "fd:api").unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (listener, file) = socket.into_listener().unwrap();
        assert!(file.is_none());
        let (client, _) = listener.accept().await.unwrap();
        assert!(is_welcome(&client));
    }
}
