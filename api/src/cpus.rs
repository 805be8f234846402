//! The VM's CPUs as the API answers them. Plain data, the same on both sides of the socket.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cpus {
    /// How many the VM started with.
    pub count: u64,
    /// How many there may be: the count, where the spec tells no more.
    pub max: u64,
    /// How many are wanted; the count at first.
    pub wanted: u64,
    /// How many are there: plugged in, and not let go of by the guest. Which of them it uses is the guest's choice.
    pub present: u64,
    /// The job that changes their number, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// What is wanted of the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"wanted\": 2}")]
pub struct CpusRequest {
    /// How many there are to be: from 1 to the VM's max.
    #[schema(minimum = 1, maximum = 254)]
    pub wanted: u64,
}
