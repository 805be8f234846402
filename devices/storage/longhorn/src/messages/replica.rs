//! The messages of `ReplicaService`.

use std::collections::HashMap;

/// A replica, as it describes itself. Most of it is empty while it is closed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Replica {
    /// It was written since it was opened.
    #[prost(bool, tag = "1")]
    pub dirty: bool,
    /// It is not complete: a rebuild was begun and not finished.
    #[prost(bool, tag = "2")]
    pub rebuilding: bool,
    /// The file that is written: `volume-head-NNN.img`.
    #[prost(string, tag = "3")]
    pub head: String,
    /// The file below it; empty for none.
    #[prost(string, tag = "4")]
    pub parent: String,
    /// Bytes, in decimal.
    #[prost(string, tag = "5")]
    pub size: String,
    /// In bytes.
    #[prost(int64, tag = "6")]
    pub sector_size: i64,
    /// The image at the bottom of the chain; empty for none.
    #[prost(string, tag = "7")]
    pub backing_file: String,
    /// `initial`, `closed`, `open`, `dirty`, `rebuilding` or `error`.
    #[prost(string, tag = "8")]
    pub state: String,
    /// The files from the head down.
    #[prost(string, repeated, tag = "9")]
    pub chain: Vec<String>,
    /// All files, those outside the chain included, by name.
    #[prost(map = "string, message", tag = "10")]
    pub disks: HashMap<String, DiskInfo>,
    /// How many more snapshots it takes.
    #[prost(int32, tag = "11")]
    pub remain_snapshots: i32,
    /// How many writes and unmaps it has seen, where that is counted.
    #[prost(int64, tag = "12")]
    pub revision_counter: i64,
    /// Nanoseconds since 1970: when the head was last written.
    #[prost(int64, tag = "13")]
    pub last_modify_time: i64,
    /// Bytes that the head takes on the host.
    #[prost(int64, tag = "14")]
    pub head_file_size: i64,
    /// Writes are not counted.
    #[prost(bool, tag = "15")]
    pub revision_counter_disabled: bool,
    /// An unmap marks the snapshots below the head as removed.
    #[prost(bool, tag = "16")]
    pub unmap_mark_disk_chain_removed: bool,
    /// Snapshots that users made and that are there.
    #[prost(int32, tag = "17")]
    pub snapshot_count_usage: i32,
    /// Bytes that snapshots take.
    #[prost(int64, tag = "18")]
    pub snapshot_size_usage: i64,
    /// All snapshots.
    #[prost(int32, tag = "19")]
    pub snapshot_count_total: i32,
}

/// A file of a replica.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DiskInfo {
    /// The file's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The file below it.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// The files above it.
    #[prost(map = "string, bool", tag = "3")]
    pub children: HashMap<String, bool>,
    /// A snapshot that is to go.
    #[prost(bool, tag = "4")]
    pub removed: bool,
    /// A snapshot that a user asked for.
    #[prost(bool, tag = "5")]
    pub user_created: bool,
    /// RFC 3339.
    #[prost(string, tag = "6")]
    pub created: String,
    /// Bytes that it takes on the host, in decimal.
    #[prost(string, tag = "7")]
    pub size: String,
    /// The user's.
    #[prost(map = "string, string", tag = "8")]
    pub labels: HashMap<String, String>,
}

/// The answer to most calls.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplicaReply {
    /// The replica, as it is then.
    #[prost(message, optional, tag = "1")]
    pub replica: Option<Replica>,
}

/// Makes a replica's first files.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaCreateRequest {
    /// Bytes, in decimal.
    #[prost(string, tag = "1")]
    pub size: String,
}

/// Opens a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaOpenRequest {
    /// Another process has it open, and is about to go.
    #[prost(bool, tag = "1")]
    pub is_upgrade: bool,
    /// Bytes; of use for encrypted volumes only.
    #[prost(int64, tag = "2")]
    pub expected_backend_size: i64,
}

/// Goes back to a snapshot.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaRevertRequest {
    /// The snapshot's file.
    #[prost(string, tag = "1")]
    pub name: String,
    /// RFC 3339.
    #[prost(string, tag = "2")]
    pub created: String,
}

/// Takes a snapshot.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplicaSnapshotRequest {
    /// The snapshot's name, which the file's name is made of.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A user asked for it.
    #[prost(bool, tag = "2")]
    pub user_created: bool,
    /// RFC 3339. Must not be empty.
    #[prost(string, tag = "3")]
    pub created: String,
    /// The user's.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// Grows a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaExpandRequest {
    /// In bytes, a multiple of 4096.
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// Removes a file from the chain.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DiskRemoveRequest {
    /// The file.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Also one that is not marked as removed.
    #[prost(bool, tag = "2")]
    pub force: bool,
}

/// Puts a file in the place of another.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DiskReplaceRequest {
    /// The file that goes.
    #[prost(string, tag = "1")]
    pub target: String,
    /// The file that takes its name.
    #[prost(string, tag = "2")]
    pub source: String,
}

/// Asks what to do to remove a file.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DiskPrepareRemoveRequest {
    /// The file.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// What to do to remove a file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DiskPrepareRemoveReply {
    /// In this order.
    #[prost(message, repeated, tag = "1")]
    pub operations: Vec<PrepareRemoveAction>,
}

/// A step of removing a file.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PrepareRemoveAction {
    /// `coalesce`, `remove`, `replace` or `prune`.
    #[prost(string, tag = "1")]
    pub action: String,
    /// The file it works on.
    #[prost(string, tag = "2")]
    pub source: String,
    /// The file it goes to.
    #[prost(string, tag = "3")]
    pub target: String,
}

/// Marks a snapshot as one that is to go.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct DiskMarkAsRemovedRequest {
    /// The file.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Says whether the replica is complete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct RebuildingSetRequest {
    /// It is not.
    #[prost(bool, tag = "1")]
    pub rebuilding: bool,
}

/// Sets the number of writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct RevisionCounterSetRequest {
    /// The number.
    #[prost(int64, tag = "1")]
    pub counter: i64,
}
