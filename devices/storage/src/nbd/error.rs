//! Why an export cannot be used: its URI, what is wrong, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::protocol::Violation;

/// An export that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("NBD export {uri}: {kind}")]
pub struct NbdError {
    /// The export.
    pub uri: String,
    /// What is wrong.
    pub kind: NbdErrorKind,
    /// What the host, the server or TLS said, where they said something.
    pub source: Option<io::Error>,
}

/// What is wrong with an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdErrorKind {
    /// There is no way to the server.
    Connect,
    /// The server did not answer in time.
    Timeout,
    /// A file with certificates or a key cannot be used.
    Credentials(PathBuf),
    /// The name to check the server's certificate against is missing, or none.
    Hostname,
    /// TLS is demanded and there is no CA, or the other way round.
    TlsOptions {
        /// Whether the URI demands TLS.
        demanded: bool,
    },
    /// The server does no TLS.
    NoTls,
    /// The server wants TLS.
    WantsTls,
    /// TLS failed.
    Tls,
    /// The server refuses, and says why in words of its own.
    Refused {
        /// Whether it does not know the export.
        unknown: bool,
        /// At most 200 characters.
        text: String,
    },
    /// The server breaks the protocol.
    Protocol,
    /// It can only be read.
    ReadOnly,
    /// It has no bytes, or more than there can be.
    Size(u64),
    /// Its size is no multiple of the block size.
    Unaligned {
        /// In bytes.
        size: u64,
        /// In bytes.
        block: u32,
    },
    /// The block size is not a power of two from 512 to 4096, or smaller than the server's.
    BlockSize {
        /// The one asked for, in bytes.
        asked: Option<u32>,
        /// The server's smallest, in bytes.
        minimum: u32,
        /// The largest payload it takes, in bytes.
        max_payload: u32,
    },
    /// It is another one than before.
    Changed,
    /// Something else; the source says what.
    Io,
}

impl fmt::Display for NbdErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("the server cannot be reached; is it running, and is the address right?"),
            Self::Timeout => f.write_str(
                "the server does not answer in time; does something else listen there, or is the server stuck?",
            ),
            Self::Credentials(path) => write!(
                f,
                "{} cannot be used; it must be a readable PEM file with what it is to hold",
                path.display()
            ),
            Self::Hostname => f.write_str(
                "the name in the server's certificate is not known; give the TLS host name",
            ),
            Self::TlsOptions { demanded: true } => {
                f.write_str("demands TLS; give the CA that the server's certificate is checked against")
            }
            Self::TlsOptions { demanded: false } => {
                f.write_str("does not demand TLS, but options for it are given; write nbds:// or nbds+unix://")
            }
            Self::NoTls => f.write_str("the server does no TLS; configure it there, or write nbd:// for a network that is trusted"),
            Self::WantsTls => f.write_str("the server wants TLS; write nbds:// or nbds+unix://"),
            Self::Tls => f.write_str(
                "TLS failed; the server needs TLS 1.3 and a certificate of the CA for its host name, and may want one of ours",
            ),
            Self::Refused { unknown, text } => {
                f.write_str(if *unknown {
                    "the server has no export of that name; correct the path in the URI"
                } else {
                    "the server refuses"
                })?;
                if text.is_empty() { Ok(()) } else { write!(f, " (it says: {text})") }
            }
            Self::Protocol => f.write_str("the server cannot be understood"),
            Self::ReadOnly => f.write_str("is read-only on the server; attach it read-only"),
            Self::Size(size) => write!(f, "has {size} bytes, which cannot be a disk"),
            Self::Unaligned { size, block } => write!(
                f,
                "has {size} bytes, which is not a multiple of the block size of {block}; resize it on the server"
            ),
            Self::BlockSize { asked: Some(asked), minimum, .. } => write!(
                f,
                "block size {asked} is not possible; use a power of two from {} to 4096, or leave it out",
                (*minimum).max(512)
            ),
            Self::BlockSize { asked: None, minimum, max_payload } => write!(
                f,
                "takes requests of {minimum} to {max_payload} bytes, which a disk with blocks of 512 to 4096 bytes cannot keep to"
            ),
            Self::Changed => f.write_str(
                "has another size or other abilities than before; restore it, or restart the VM to use it as it is now",
            ),
            Self::Io => f.write_str("cannot be opened"),
        }
    }
}

/// [`NbdError`] before it is known of which export.
#[derive(Debug)]
pub(super) struct Failure {
    pub kind: NbdErrorKind,
    pub source: Option<io::Error>,
}

impl Failure {
    pub(super) fn because(kind: NbdErrorKind, source: impl Into<io::Error>) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    pub(super) fn of(self, uri: &impl fmt::Display) -> NbdError {
        NbdError {
            uri: uri.to_string(),
            kind: self.kind,
            source: self.source,
        }
    }
}

impl From<NbdErrorKind> for Failure {
    fn from(kind: NbdErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::because(NbdErrorKind::Protocol, violation)
    }
}

/// While a server is negotiated with.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => NbdErrorKind::Timeout.into(),
            io::ErrorKind::UnexpectedEof => {
                let text = "the server closed the connection";
                Self::because(NbdErrorKind::Protocol, io::Error::new(error.kind(), text))
            }
            _ => Self::because(NbdErrorKind::Io, error),
        }
    }
}
