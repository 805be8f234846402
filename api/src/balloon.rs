//! The VM's balloon as the API answers it. Plain data, the same on both sides of the socket.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::ByteSize;

/// The balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balloon {
    /// How much of its memory the guest is asked to give, in bytes.
    pub target: u64,
    /// How much the guest says it has given, in bytes.
    pub actual: u64,
    /// Whether the guest has a driver that tells its memory statistics.
    pub driver: bool,
    /// Bytes given back to the host because the guest put them into the balloon, since the VM was started.
    pub inflated_bytes: u64,
    /// Bytes given back to the host because the guest reported them free, since the VM was started.
    pub reported_bytes: u64,
}

/// What is wanted of the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "an object such as {\"target\": \"256MiB\"}"
)]
pub struct BalloonTarget {
    /// How much of its memory the guest is asked to give: a multiple of 4 KiB, less than its memory. Nothing gives all back.
    pub target: ByteSize,
}

/// What the guest says of its memory. What it does not tell is absent; nothing of it is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MemoryStatistics {
    /// Bytes of memory the guest has, what the balloon took excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes that are in no use at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Bytes that could be had for new programs without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Bytes of disk cache, which can be dropped quickly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Bytes swapped in, since the guest's boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out, since the guest's boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that waited for a disk, since the guest's boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not, since the guest's boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Processes killed for want of memory, since the guest's boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
}
