//! What the guest says unasked.

use super::{Bytes, HelloReply};
use serde::{Deserialize, Serialize};

/// An unsolicited line. The guest drops heartbeats rather than wait for a host that does not read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The probe has found its port, or the host has connected to it anew.
    Hello(HelloReply),
    /// See [`super::HeartbeatStart`].
    Heartbeat(Heartbeat),
    /// A key of an ACPI button.
    PowerButton(PowerButton),
    /// A piece of the output of a streaming [`super::Exec`].
    Output(Output),
}

/// A sign of life, from which the downtime of a migration or a snapshot is read. A VMM that stops the guest's clocks
/// with its vCPUs hides a pause from the gaps here; then the times at which heartbeats arrive tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts from 0 since the heartbeat was switched on; a hole is a lost heartbeat.
    pub sequence: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, ns since 1970.
    pub realtime_ns: u64,
    /// The largest time between two runs of the sampler since the last heartbeat, by `CLOCK_MONOTONIC`, ns.
    pub gap_ns: u64,
    /// The same by `CLOCK_REALTIME`: the two differ where the guest's clock was stopped or set.
    pub realtime_gap_ns: u64,
    /// The largest `gap_ns` since the heartbeat was switched on.
    pub largest_gap_ns: u64,
    /// Heartbeats dropped so far because the host did not read.
    pub dropped: u64,
}

/// A button was pressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerButton {
    /// The input device, such as `/dev/input/event0`.
    pub device: String,
    /// The key: 116 (`KEY_POWER`) or 142 (`KEY_SLEEP`).
    pub key: u16,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The id of the [`super::Exec`] request.
    pub id: u64,
    /// Which of the two.
    pub stream: OutputStream,
    /// The bytes, in order within a stream. A piece may end inside a character.
    pub data: Bytes,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}
