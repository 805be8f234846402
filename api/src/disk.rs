//! What there is to a disk beside its place in the spec: its size, and how it fails. Plain data, the same on both sides of the socket.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::ByteSize;

/// The size that a disk is to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"size\": \"20GiB\"}, or {} to look how large it has become"
)]
pub struct DiskSize {
    /// A multiple of the disk's block size, no less than it has; a file is made longer. Without it the disk is as large as its file or block
    /// device has become.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
}

/// What is done about a disk that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureHandling {
    /// Its requests are held, and the VM is to stand still until it is resumed.
    Stopped,
    /// Its requests are held and tried again. With none that waits (a reset has dropped them) the guest's next one is the attempt.
    Retrying,
    /// The time to try again is over: its errors are reported to the guest, until a request succeeds.
    Reporting,
}

/// A disk that fails on the host, since its policy does not simply report that to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFailure {
    /// The disk's id.
    pub disk: String,
    /// What the host said last, by its number in Linux.
    pub errno: i32,
    /// The same in words.
    pub error: String,
    /// First byte on the disk of the request that failed first; absent for a flush.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// When it failed first, in milliseconds since 1970.
    pub since_ms: u64,
    /// What is done about it.
    pub handling: FailureHandling,
    /// Requests of the guest that wait.
    pub requests: u64,
    /// Attempts since then.
    pub attempts: u64,
}
