//! The files and sockets that consoles and ports end in: made at a path, or passed to the process in its place.
//!
//! On the control plane's thread, while a VM is made.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use paddock_api::spec::{PassedFd, ValueError};
use paddock_devices::socket::PrivateSocket;
use rustix::fs::{Mode, OFlags};

use crate::systemd::descriptors::{Descriptors, PassedError};

/// A file that cannot take a console's output.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The one at a path.
    #[error("console output to {path}")]
    File {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The one that was passed.
    #[error(transparent)]
    Passed(#[from] TakeError),
    /// It was opened by somebody who did not know what for.
    #[error(
        "{0}: the passed descriptor is open for reading only; open it for writing, and for appending if it is a file"
    )]
    ReadOnly(PassedFd),
}

/// A console's or port's socket that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket itself.
    #[error(transparent)]
    Socket(#[from] paddock_devices::socket::SocketError),
    /// The one that was passed.
    #[error(transparent)]
    Passed(#[from] TakeError),
}

/// Why what was passed is not used.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It is not there.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// It cannot be.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// Opens a file to append a console's output to; makes it if need be. Does not wait for a reader if it is a pipe; without one, that is
/// an error. A descriptor that was passed is written to as it is. `user` is what it is used as, for people.
///
/// # Errors
/// When it cannot be opened, or was not passed.
pub fn open_file(path: &Path, user: &str, passed: &Descriptors) -> Result<File, FileError> {
    let failed = |source: rustix::io::Errno| FileError::File {
        path: path.display().to_string(),
        source: source.into(),
    };
    let file = match take(path, user, passed)? {
        Some((asked, fd)) => {
            let flags = rustix::fs::fcntl_getfl(&fd).map_err(failed)?;
            if flags.intersection(OFlags::RWMODE) == OFlags::RDONLY {
                return Err(FileError::ReadOnly(asked));
            }
            fd
        }
        None => {
            let flags = OFlags::WRONLY
                | OFlags::APPEND
                | OFlags::CREATE
                | OFlags::CLOEXEC
                | OFlags::NOCTTY
                | OFlags::NONBLOCK;
            rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?
        }
    };
    // Only the opening must not wait; a thread of its own does the writing.
    let flags = rustix::fs::fcntl_getfl(&file).map_err(failed)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(failed)?;
    Ok(File::from(file))
}

/// Makes a console's or port's socket at `path`, or takes the one that was passed, to be used as `user`.
///
/// # Errors
/// When the path is taken, or no listening socket was passed.
pub fn open_socket(
    path: &Path,
    user: &str,
    passed: &Descriptors,
) -> Result<PrivateSocket, SocketError> {
    Ok(match take(path, user, passed)? {
        Some((asked, fd)) => PrivateSocket::adopt(fd, &asked.to_string())?,
        None => PrivateSocket::bind(path)?,
    })
}

/// The descriptor that `path` stands for, if it stands for one.
fn take(
    path: &Path,
    user: &str,
    passed: &Descriptors,
) -> Result<Option<(PassedFd, OwnedFd)>, TakeError> {
    let Some(asked) = PassedFd::in_path(path) else {
        return Ok(None);
    };
    let asked = asked?;
    let fd = passed.take(&asked, user)?;
    Ok(Some((asked, fd)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::systemd::descriptors::Passed;

    fn passed(fds: Vec<(&str, OwnedFd)>) -> Descriptors {
        let fds = fds.into_iter().zip(3..).map(|((name, fd), number)| Passed {
            number,
            listed: true,
            name: Some(name.to_owned()),
            fd,
        });
        Descriptors::new(fds)
    }

    #[test]
    fn a_passed_file_is_written_to() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        let passed = passed(vec![
            ("null", File::open("/dev/null").unwrap().into()),
            ("log", writer.into()),
        ]);
        let open = |text: &str| open_file(Path::new(text), "/console/serial/file", &passed);
        let mut file = open("fd:log").unwrap();
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        file.write_all(b"hello").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        for (text, expected) in [
            ("fd:log", "used already, as /console/serial/file"),
            ("fd:null", "for reading only"),
            ("fd:9", "no descriptor was passed"),
            ("fd:1", "standard input"),
        ] {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_passed_socket_is_listened_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let listener = UnixListener::bind(&path).unwrap();
        let passed = passed(vec![
            ("hvc0", listener.into()),
            ("null", File::open("/dev/null").unwrap().into()),
        ]);
        let open = |text: &str| open_socket(Path::new(text), "/console/hvc0/socket", &passed);
        let socket = open("fd:hvc0").unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().unwrap().is_some());
        drop(socket);
        assert!(path.exists(), "it belongs to who made it");
        for (text, expected) in [
            ("fd:hvc0", "used already, as /console/hvc0/socket"),
            ("fd:null", "fd:null: the passed descriptor is no socket"),
            ("fd:agent", "no descriptor was passed"),
        ] {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
