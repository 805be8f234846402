//! What can be wrong with the console ports of a spec, or with the host they are to live on.

use std::io;

use super::ports::{MAX_NAME, MAX_PORTS};

/// Why console ports could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// No port, or too many.
    #[error("{count} console ports: a console device has 1 to {MAX_PORTS}")]
    Count {
        /// How many were given.
        count: usize,
    },
    /// A name the guest could not show.
    #[error(
        "port {port}: the name {name:?} must be up to {MAX_NAME} printable ASCII characters without spaces or slashes"
    )]
    Name {
        /// The port's number.
        port: usize,
        /// Its name.
        name: String,
    },
    /// Two ports of one name.
    #[error("ports {first} and {second} are both named {name:?}: give each a name of its own")]
    Duplicate {
        /// The first port's number.
        first: usize,
        /// The second's.
        second: usize,
        /// Their name.
        name: String,
    },
    /// The host has no descriptor left.
    #[error("creating an event descriptor")]
    Event(#[source] io::Error),
}
