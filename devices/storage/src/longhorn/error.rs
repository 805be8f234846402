//! Why something about a volume could not be done.

use super::options::ReplicaAddress;

/// Something about a volume that could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// An address that is none.
    #[error("replica address {address:?}: {problem}; write HOST:PORT or tcp://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Options that cannot be.
    #[error("{problem}")]
    Options {
        /// What is wrong, and what would do.
        problem: String,
    },
    /// A replica could not be asked.
    #[error(
        "replica {replica}: {action}: it cannot be reached: {problem}; is its process running, and this its control port?"
    )]
    Unreachable {
        /// Which one.
        replica: ReplicaAddress,
        /// What was asked.
        action: &'static str,
        /// What happened.
        problem: String,
    },
    /// A replica said no.
    #[error("replica {replica}: {action}: {problem}")]
    Refused {
        /// Which one.
        replica: ReplicaAddress,
        /// What was asked.
        action: &'static str,
        /// What it said, or why it will not do.
        problem: String,
    },
    /// None of the replicas can be used.
    #[error("volume {volume} has no replica that can be used: {}", problems.join("; "))]
    NoReplica {
        /// The volume.
        volume: String,
        /// What is wrong with each.
        problems: Vec<String>,
    },
    /// The volume is not in a state for that.
    #[error("volume {volume}: {problem}")]
    State {
        /// The volume.
        volume: String,
        /// What is in the way, and what to do.
        problem: String,
    },
    /// There is no such replica, or snapshot.
    #[error("volume {volume} has no {what} {name}")]
    NotFound {
        /// The volume.
        volume: String,
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The host did not give what is needed.
    #[error("volume {volume}: {problem}")]
    Host {
        /// The volume.
        volume: String,
        /// What it said.
        problem: String,
    },
}
