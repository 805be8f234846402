//! What there is to a disk that is a replicated volume: its replicas, its snapshots, and what is done to them. Plain data, the same on both sides of
//! the socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::{InvalidSpec, JsonPointer, Problem, ProblemCode, ReplicaAddress, quoted};

/// The most bytes of a snapshot's name.
const MAX_NAME: usize = 200;
/// The most labels of a snapshot, and the most bytes of a label's key and of its value.
const MAX_LABELS: usize = 32;
const MAX_LABEL: usize = 256;

/// What a volume does with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ReplicaMode {
    /// It is read and written: it has all of the volume.
    #[serde(rename = "rw")]
    ReadWrite,
    /// It is written and not read: it is being rebuilt.
    #[serde(rename = "wo")]
    WriteOnly,
    /// It is neither: it failed, and misses what was written since.
    #[serde(rename = "failed")]
    Failed,
}

impl ReplicaMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ReadWrite, Self::WriteOnly, Self::Failed];

    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::WriteOnly => "wo",
            Self::Failed => "failed",
        }
    }
}

/// Why and since when a replica is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaFailure {
    /// What happened, for people.
    pub reason: String,
    /// When it was noticed, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Why and since when it cannot be recorded which replicas of a volume have everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordFailure {
    /// What the host said last, with the record's path; for people.
    pub error: String,
    /// When it failed first, in milliseconds since 1970.
    pub since_ms: u64,
}

/// How many bytes of something are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ByteProgress {
    /// Bytes, 0 to `total`. Replicas tell a rebuild's by the per cent.
    pub done: u64,
    /// Bytes; 0 while that is not known.
    pub total: u64,
}

/// A replica of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// `HOST:PORT` of its control service.
    pub address: String,
    /// What it is good for.
    pub mode: ReplicaMode,
    /// Why and since when it is not, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ReplicaFailure>,
    /// How far its rebuild is, while files are transferred to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuild: Option<ByteProgress>,
}

/// A disk's replicated volume, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeState {
    /// Its replicas: those of the spec, without the ones that were removed since, and those that were added since. One that could not be used when the volume
    /// was opened is among them, as failed.
    pub replicas: Vec<Replica>,
    /// How far the comparison of the replicas is, which were not closed when the volume was last used. Only one of them is read meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<ByteProgress>,
    /// That the volume's record cannot be written, while a replica has failed of which it does not tell yet. No write is acknowledged until it can: the guest waits. It is
    /// tried each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_failure: Option<RecordFailure>,
    /// The job that adds a replica or removes a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// A replica that is to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "an object such as {\"address\": \"10.0.0.4:10000\"}"
)]
pub struct ReplicaRequest {
    /// `HOST:PORT` of its control service; its data are on the next port, its sync agent on the one after. Its process runs, is used by nobody,
    /// and has nothing that is to be kept.
    #[schema(example = "10.0.0.4:10000")]
    pub address: String,
}

impl ReplicaRequest {
    /// The address, if it can be one.
    ///
    /// # Errors
    /// What is wrong with it, at `/address`.
    pub fn checked(&self) -> Result<ReplicaAddress, InvalidSpec> {
        self.address
            .parse()
            .map_err(|error: crate::spec::ValueError| wrong("address", error.code, error.detail))
    }
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was taken, as the replicas tell it (RFC 3339).
    pub created: String,
    /// Whether somebody asked for it. The others come of rebuilds and resizes, and go with the next removal of a snapshot.
    pub user_created: bool,
    /// Whether it is to go: what it has is given back as soon as that is possible.
    pub removed: bool,
    /// Bytes that it takes on a replica.
    pub size: u64,
    /// The snapshot below it; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What its maker noted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"name\": \"before-upgrade\"}, or {}"
)]
pub struct SnapshotRequest {
    /// Its name: 1 to 200 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`. Without one it gets one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9._-]{1,200}$")]
    pub name: Option<String>,
    /// What is to be noted with it: at most 32, whose keys and values have at most 256 bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl SnapshotRequest {
    /// The same, if it can be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn checked(self) -> Result<Self, InvalidSpec> {
        if let Some(name) = self.name.as_ref().filter(|name| !is_snapshot_name(name)) {
            let detail = format!(
                "{} is not a snapshot's name: 1 to {MAX_NAME} of A-Z, a-z, 0-9, '.', '_' and '-'",
                quoted(name)
            );
            return Err(wrong("name", ProblemCode::Malformed, detail));
        }
        let long = |(key, value): (&String, &String)| key.len().max(value.len()) > MAX_LABEL;
        if self.labels.len() > MAX_LABELS || self.labels.iter().any(long) {
            let detail = format!(
                "there may be {MAX_LABELS} labels, whose keys and values have at most {MAX_LABEL} bytes"
            );
            return Err(wrong("labels", ProblemCode::OutOfRange, detail));
        }
        Ok(self)
    }
}

/// Whether a text can be a snapshot's name.
#[must_use]
pub fn is_snapshot_name(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(letters)
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotTaken {
    /// Its name.
    pub name: String,
    /// How long the guest's I/O stood still for it, in microseconds.
    pub frozen_us: u64,
}

fn wrong(field: &str, code: ProblemCode, detail: String) -> InvalidSpec {
    InvalidSpec::from_problems(vec![Problem {
        pointer: JsonPointer::root().key(field),
        code,
        detail,
    }])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_have_one_name() {
        for mode in ReplicaMode::ALL {
            assert_eq!(json!(mode), json!(mode.as_str()));
        }
    }

    #[test]
    fn names_and_labels_have_bounds() {
        for (name, good) in [("a", true), ("A.b_c-9", true), ("", false), ("a b", false)] {
            assert_eq!(is_snapshot_name(name), good, "{name}");
        }
        assert!(!is_snapshot_name(&"a".repeat(201)) && is_snapshot_name(&"a".repeat(200)));
        let labelled = |count: usize, length: usize| {
            let labels = (0..count).map(|n| (n.to_string(), "v".repeat(length)));
            let request = SnapshotRequest {
                labels: labels.collect(),
                ..SnapshotRequest::default()
            };
            request.checked()
        };
        assert!(labelled(32, 256).is_ok());
        for error in [labelled(33, 1), labelled(1, 257)] {
            let error = error.unwrap_err();
            assert_eq!(error.problems()[0].pointer.to_string(), "/labels");
        }
    }
}
