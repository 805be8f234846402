//! The API's unix socket in the file system, and who may use it.
//!
//! Made with mode 0600 from the start and removed when its owner goes. A leftover that nobody listens on is replaced; whatever else is
//! at the path is left alone. A socket that somebody else made and passed in keeps the file, owner and mode it has; its clients are
//! looked at all the same.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait for the control plane to look.
const BACKLOG: i32 = 128;
/// Bytes of a socket's path: what fits a `sockaddr_un` with the zero at its end.
const MAX_PATH: usize = 107;

/// Why the API's socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves there.
    #[error("{}: another process listens on this socket; give each VM its own path, or end that process", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{}: there is a file that is no socket; remove it, or give another path", .0.display())]
    NotASocket(PathBuf),
    /// The path cannot be a socket's.
    #[error("{}: the path of a unix socket has 1 to {MAX_PATH} bytes", .0.display())]
    Path(PathBuf),
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
    #[error("{}: {action}", path.display())]
    Host {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
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

/// The socket's file; removed on drop.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file we made: a successor's is left alone.
    identity: (u64, u64),
}

impl ApiSocket {
    /// Makes the socket at `path` and listens.
    ///
    /// # Errors
    /// When the path is taken, too long, or not ours to write to.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |action| {
            move |source: io::Error| SocketError::Host {
                path: path.to_owned(),
                action,
                source,
            }
        };
        // The empty path would be a socket without a file; 108 bytes are possible, but not for most clients.
        let usable = (1..=MAX_PATH).contains(&path.as_os_str().len());
        let address = usable
            .then(|| SocketAddrUnix::new(path))
            .and_then(Result::ok);
        let address = address.ok_or_else(|| SocketError::Path(path.to_owned()))?;
        remove_leftover(path, &address)?;
        let listener = listen(&address).map_err(|error| match error {
            Errno::ADDRINUSE => SocketError::InUse(path.to_owned()),
            error => failed("listening on the API's socket")(error.into()),
        })?;
        let metadata =
            fs::symlink_metadata(path).map_err(failed("looking at the API's new socket"))?;
        Ok(Self {
            listener,
            file: Some(SocketFile {
                path: path.to_owned(),
                identity: (metadata.dev(), metadata.ino()),
            }),
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
                path: name.into(),
                action: "making the passed socket non-blocking",
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

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| self.identity == (metadata.dev(), metadata.ino()));
        if ours {
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(path = %self.path.display(), %error, "removing the API's socket");
            }
        }
    }
}

/// Whether the client is the process's own user or root.
pub(super) fn is_welcome(client: &tokio::net::UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    client
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// The mode is set before the file exists: Linux gives the file that of the socket.
fn listen(address: &SocketAddrUnix) -> Result<UnixListener, Errno> {
    let socket = new_socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
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

/// Removes a socket that nobody listens on any more.
fn remove_leftover(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let failed = |action, source| SocketError::Host {
        path: path.to_owned(),
        action,
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking for a leftover socket", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    // Without waiting: the socket does not block.
    match new_socket().and_then(|socket| rustix::net::connect(&socket, address)) {
        // Its queue of waiting clients may be full: somebody listens all the same.
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::InUse(path.to_owned())),
        Err(Errno::CONNREFUSED) => fs::remove_file(path)
            .map_err(|error| failed("removing the leftover of a process that is gone", error)),
        Err(error) => Err(failed(
            "asking whether somebody listens on the existing socket",
            error.into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_from_the_start_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_leftover_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        // The standard library's listener leaves its file behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = ApiSocket::bind(&path).unwrap();
        let error = ApiSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(error.to_string().contains("api.sock"), "{error}");
        drop(first);
        ApiSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_successor_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = ApiSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = ApiSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
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

    #[test]
    fn what_is_no_place_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(
            ApiSocket::bind(&file),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        for path in ["", &"x".repeat(108)] {
            let error = ApiSocket::bind(Path::new(path)).unwrap_err();
            assert!(matches!(error, SocketError::Path(_)), "{error}");
        }
        let absent = dir.path().join("absent/api.sock");
        assert!(matches!(
            ApiSocket::bind(&absent),
            Err(SocketError::Host { .. })
        ));
    }
}
