//! The crate's error: what kind, about which interface, what to do, and the cause below it.

use std::fmt;
use std::io;

/// What went wrong, as a stable name that programs may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetworkErrorKind {
    /// No interface can have this name.
    InvalidName,
    /// Not a MAC address a NIC can have.
    InvalidMac,
    /// Not a VLAN id.
    InvalidVlan,
    /// A number of queues or an MTU that cannot be had.
    InvalidSetting,
    /// `/dev/net/tun` is missing or dead.
    NoTunDevice,
    /// There is no interface of this name.
    NotFound,
    /// There already is an interface of this name.
    AlreadyExists,
    /// Another process has the tap open.
    Busy,
    /// The interface is something else than asked for: not a tap, not a bridge.
    WrongType,
    /// The tap has one queue where several are asked for.
    WrongQueueMode,
    /// The process may not do this.
    Permission,
    /// The bridge would not keep VLANs apart.
    VlanFilteringOff,
    /// The host failed in another way.
    Host,
}

impl NetworkErrorKind {
    /// What the subject of such an error is.
    fn subject(self) -> &'static str {
        match self {
            Self::InvalidName => "interface name",
            Self::InvalidMac => "MAC address",
            Self::InvalidVlan => "VLAN",
            Self::VlanFilteringOff => "bridge",
            _ => "interface",
        }
    }
}

/// An error about a tap, a bridge or an address: its message says which and what mends it, its source why.
#[derive(Debug, thiserror::Error)]
#[error("{} {subject}: {message}", kind.subject())]
pub struct NetworkError {
    kind: NetworkErrorKind,
    subject: String,
    message: String,
    source: Option<io::Error>,
}

impl NetworkError {
    pub(crate) fn new(
        kind: NetworkErrorKind,
        subject: &dyn fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            subject: subject.to_string(),
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn because(mut self, source: impl Into<io::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> NetworkErrorKind {
        self.kind
    }

    /// What is wrong and what mends it, without the subject.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The interface or value it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }
}
