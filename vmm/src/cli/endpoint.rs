//! Where the API is served: a socket that is made at a path, or one that was passed in.

use std::fmt;
use std::path::{Path, PathBuf};

use paddock_api::server::{ApiSocket, SocketError};
use paddock_api::spec::{PassedFd, ValueError};

use crate::systemd::descriptors::{Descriptors, PassedError};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// What was asked for is no descriptor.
    #[error("--api-socket")]
    Wrong(#[source] ValueError),
    /// It was not passed in.
    #[error("--api-socket")]
    Passed(#[from] PassedError),
    /// It cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl EndpointError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }
}

/// A place for the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to be made.
    Path(PathBuf),
    /// A socket that is there.
    Passed(PassedFd),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Passed(asked) => asked.fmt(f),
        }
    }
}

impl Endpoint {
    /// What the command line says, and where it says nothing, what the service manager passed in as the API's socket. That is none of
    /// `spoken_for`, which the VM uses.
    ///
    /// # Errors
    /// When the command line names a descriptor that cannot be.
    pub fn choose(
        argument: Option<&Path>,
        descriptors: &Descriptors,
        spoken_for: &[PassedFd],
    ) -> Result<Option<Self>, EndpointError> {
        let Some(path) = argument else {
            return Ok(descriptors.api_socket(spoken_for).map(Self::Passed));
        };
        Ok(Some(match PassedFd::in_path(path) {
            Some(asked) => Self::Passed(asked.map_err(EndpointError::Wrong)?),
            None => Self::Path(path.to_owned()),
        }))
    }

    /// Makes the socket, or takes it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(&self, descriptors: &Descriptors) -> Result<ApiSocket, EndpointError> {
        Ok(match self {
            Self::Path(path) => ApiSocket::bind(path)?,
            Self::Passed(asked) => {
                let socket = descriptors.take(asked, "the API's socket")?;
                ApiSocket::adopt(socket, &asked.to_string())?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::error::chain;
    use crate::systemd::descriptors::Passed;

    fn choose(argument: Option<&str>, descriptors: &Descriptors) -> Option<Endpoint> {
        Endpoint::choose(argument.map(Path::new), descriptors, &[]).unwrap()
    }

    fn descriptors(directory: &Path) -> Descriptors {
        let listener = UnixListener::bind(directory.join("api.sock")).unwrap();
        let file = File::open("/dev/null").unwrap();
        let passed = |number, name: &str, fd| Passed {
            number,
            listed: true,
            name: Some(name.to_owned()),
            fd,
        };
        Descriptors::new([
            passed(3, "root", file.into()),
            passed(4, "web.socket", listener.into()),
        ])
    }

    #[test]
    fn the_command_line_decides() {
        let directory = tempfile::tempdir().unwrap();
        let passed = descriptors(directory.path());
        let path = Endpoint::Path("/run/a.sock".into());
        assert_eq!(choose(Some("/run/a.sock"), &passed), Some(path));
        let named = choose(Some("fd:root"), &passed).unwrap();
        assert_eq!(named.to_string(), "fd:root");
        assert_eq!(choose(None, &Descriptors::default()), None);
        let only = choose(None, &passed).unwrap();
        assert_eq!(only, Endpoint::Passed(PassedFd::Number(4)));
        let consoles = [PassedFd::Name("web.socket".to_owned())];
        let left = Endpoint::choose(None, &passed, &consoles).unwrap();
        assert_eq!(left, None, "it is the VM's");
        only.open(&passed).unwrap();
        assert_eq!(choose(None, &passed), None, "it is in use");
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let passed = descriptors(directory.path());
        let wrong = Endpoint::choose(Some(Path::new("fd:1")), &passed, &[]).unwrap_err();
        assert!(wrong.is_usage());
        let text = chain(&wrong);
        assert!(
            text.starts_with("--api-socket: \"fd:1\" is standard"),
            "{text}"
        );
        let open = |text: &str| {
            let endpoint = choose(Some(text), &passed).unwrap();
            chain(&endpoint.open(&passed).unwrap_err())
        };
        let text = open("fd:9");
        assert!(
            text.starts_with("--api-socket: fd:9: no descriptor was passed"),
            "{text}"
        );
        let text = open("fd:root");
        assert!(
            text.starts_with("fd:root: the passed descriptor is no socket"),
            "{text}"
        );
    }
}
