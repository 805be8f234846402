//! The unix sockets that a VM's process makes, alike for the API, the consoles and the guest's ports: the file, and who may use it.
//!
//! A socket is made with mode 0600 from the start, and removed when its owner goes. A leftover that nobody listens on is replaced;
//! whatever else is at the path is left alone. One that somebody else made and passed in keeps the file, owner and mode it has. Clients are
//! processes of our user's and root's, whatever the file's mode. What clients say, and when, is their listener's business; nothing
//! here waits.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes of a socket's path: what fits a `sockaddr_un` with the zero at its end.
const MAX_PATH: usize = 107;

/// Why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{}: another process listens on this socket; give another path, or end that process", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{}: exists and is not a socket; remove it, or give another path", .0.display())]
    NotASocket(PathBuf),
    /// What was passed in is something else.
    #[error(
        "{name}: the passed descriptor is {found}; what is needed is a unix stream socket that listens, such as ListenStream=/PATH in a socket unit makes"
    )]
    NotListening {
        /// How it was asked for.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// The path cannot be a socket's.
    #[error("{}: the path of a unix socket has 1 to {MAX_PATH} bytes", .0.display())]
    Path(PathBuf),
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

/// A socket that listens. It does not block.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    name: PathBuf,
    /// None of ours for a socket that was passed in.
    file: Option<SocketFile>,
}

/// A socket's file; removed on drop.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file we made: a successor's is left alone.
    identity: (u64, u64),
}

impl ListeningSocket {
    /// Makes the socket at `path` and listens; as many as `backlog` clients may wait to be accepted.
    ///
    /// # Errors
    /// When the path is taken, too long, or not ours to write to.
    pub fn bind(path: &Path, backlog: i32) -> Result<Self, SocketError> {
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
        let listener = listen(&address, backlog).map_err(|error| match error {
            Errno::ADDRINUSE => SocketError::InUse(path.to_owned()),
            error => failed("listening on the socket")(error.into()),
        })?;
        let metadata = fs::symlink_metadata(path).map_err(failed("looking at the new socket"))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        };
        Ok(Self {
            listener,
            name: path.to_owned(),
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
                path: name.into(),
                action: "making the passed socket non-blocking",
                source,
            })?;
        Ok(Self {
            listener,
            name: name.into(),
            file: None,
        })
    }

    /// For waiting and accepting.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is, or how it was asked for.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The listener, and the file that was made for it, which is to be kept as long.
    #[must_use]
    pub fn into_parts(self) -> (UnixListener, Option<SocketFile>) {
        (self.listener, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| self.identity == (metadata.dev(), metadata.ino()));
        if ours {
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(path = %self.path.display(), %error, "removing a socket");
            }
        }
    }
}

/// The user of a client that may not use our sockets: one that is neither ours nor root.
///
/// # Errors
/// When the host does not tell whose it is.
pub fn stranger(client: &impl AsFd) -> io::Result<Option<u32>> {
    let peer = peer_user(client)?;
    let own = rustix::process::geteuid().as_raw();
    Ok((!admits(own, peer)).then_some(peer))
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
fn peer_user(stream: &impl AsFd) -> io::Result<u32> {
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
            stream.as_fd().as_raw_fd(),
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

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// The mode is set before the file exists: Linux gives the file that of the socket.
fn listen(address: &SocketAddrUnix, backlog: i32) -> Result<UnixListener, Errno> {
    let socket = new_socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(UnixListener::from(socket))
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
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bind(path: &Path) -> Result<ListeningSocket, SocketError> {
        ListeningSocket::bind(path, 8)
    }

    #[test]
    fn private_from_the_start_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, socket.name()), (0o600, path.as_path()));
        let (listener, file) = socket.into_parts();
        drop(listener);
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_leftover_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // The standard library's listener leaves its file behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(error.to_string().starts_with(path.to_str().unwrap()));
        drop(first);
        bind(&path).unwrap();
    }

    #[test]
    fn one_whose_clients_wait_is_a_live_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _socket = ListeningSocket::bind(&path, 0).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        for _ in 0..3 {
            assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        }
    }

    #[test]
    fn a_successor_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x").unwrap();
        drop(second);
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_place_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        for path in ["", &"x".repeat(108)] {
            let error = bind(Path::new(path)).unwrap_err();
            assert!(matches!(error, SocketError::Path(_)), "{error}");
        }
        let error = bind(Path::new("/nonexistent/socket")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nonexistent/socket: listening on the socket"
        );
    }

    #[test]
    fn a_passed_socket_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        let socket = ListeningSocket::adopt(listener.into(), "fd:api").unwrap();
        assert_eq!(socket.name(), Path::new("fd:api"));
        let waiting = socket.listener().accept().unwrap_err();
        assert_eq!(waiting.kind(), io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        socket.listener().accept().unwrap();
        drop(socket);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[test]
    fn what_was_passed_and_is_no_listening_socket() {
        use std::os::unix::net::UnixDatagram;
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
            let error = ListeningSocket::adopt(fd, "fd:7").unwrap_err().to_string();
            assert!(error.starts_with("fd:7: "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
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
        assert_eq!(stranger(&stream).unwrap(), None);
        assert!(stranger(&fs::File::open("/dev/null").unwrap()).is_err());
    }
}
