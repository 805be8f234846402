//! The VM's memory as the API answers it. Plain data, the same on both sides of the socket.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::ByteSize;

/// The memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// What the VM started with, in bytes.
    pub size: u64,
    /// What it may grow to, in bytes: the size, where the spec tells no more.
    pub max: u64,
    /// How much the guest is asked to have, in bytes; the size at first.
    pub requested: u64,
    /// How much it has, in bytes: the size, and what its driver has plugged in.
    pub plugged: u64,
    /// Whether the guest has a driver that plugs memory in and out.
    pub driver: bool,
}

/// What is wanted of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "an object such as {\"requested\": \"2GiB\"}"
)]
pub struct MemoryRequest {
    /// How much the guest is asked to have: from the VM's size to its max, a multiple of 2 MiB and of the huge pages' size.
    pub requested: ByteSize,
}
