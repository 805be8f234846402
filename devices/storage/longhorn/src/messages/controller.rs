//! The messages of `ControllerService`.

use std::collections::HashMap;

use super::SyncFileInfo;

/// A volume, as its engine describes it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Volume {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// In bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// Replicas, the failed ones included.
    #[prost(int32, tag = "3")]
    pub replica_count: i32,
    /// Where it is to be had.
    #[prost(string, tag = "4")]
    pub endpoint: String,
    /// How.
    #[prost(string, tag = "5")]
    pub frontend: String,
    /// `up` or `down`.
    #[prost(string, tag = "6")]
    pub frontend_state: String,
    /// It is about to grow.
    #[prost(bool, tag = "7")]
    pub is_expanding: bool,
    /// Why it last did not grow.
    #[prost(string, tag = "8")]
    pub last_expansion_error: String,
    /// When that was.
    #[prost(string, tag = "9")]
    pub last_expansion_failed_at: String,
    /// An unmap marks the snapshots below the head as removed.
    #[prost(bool, tag = "10")]
    pub unmap_mark_snap_chain_removed: bool,
    /// Snapshots at most.
    #[prost(int32, tag = "11")]
    pub snapshot_max_count: i32,
    /// Bytes of snapshots at most; 0 for any.
    #[prost(int64, tag = "12")]
    pub snapshot_max_size: i64,
}

/// Which replica.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReplicaAddress {
    /// `tcp://HOST:PORT`.
    #[prost(string, tag = "1")]
    pub address: String,
    /// The name of its process; empty for any.
    #[prost(string, tag = "2")]
    pub instance_name: String,
}

/// What an engine does with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ReplicaMode {
    /// Writes it only: it is being rebuilt.
    Wo = 0,
    /// Reads and writes it.
    Rw = 1,
    /// Neither: it has failed.
    Err = 2,
}

/// A replica, as an engine sees it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ControllerReplica {
    /// Which one.
    #[prost(message, optional, tag = "1")]
    pub address: Option<ReplicaAddress>,
    /// What the engine does with it.
    #[prost(enumeration = "ReplicaMode", tag = "2")]
    pub mode: i32,
}

/// Starts a volume.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VolumeStartRequest {
    /// `tcp://HOST:PORT` each.
    #[prost(string, repeated, tag = "1")]
    pub replica_addresses: Vec<String>,
    /// Bytes that it is to have.
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// Bytes that it had.
    #[prost(int64, tag = "3")]
    pub current_size: i64,
}

/// Takes a snapshot.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VolumeSnapshotRequest {
    /// Its name; empty for one that the engine makes.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The user's.
    #[prost(map = "string, string", tag = "2")]
    pub labels: HashMap<String, String>,
    /// Whether a file system that the engine's host has mounted from the volume is to be frozen.
    #[prost(bool, tag = "3")]
    pub freeze_filesystem: bool,
}

/// The replicas.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplicaListReply {
    /// In the engine's order.
    #[prost(message, repeated, tag = "1")]
    pub replicas: Vec<ControllerReplica>,
}

/// Adds a replica.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ControllerReplicaCreateRequest {
    /// `tcp://HOST:PORT`.
    #[prost(string, tag = "1")]
    pub address: String,
    /// A snapshot is to be taken first, which it then has in common with the others.
    #[prost(bool, tag = "2")]
    pub snapshot_required: bool,
    /// What it is to be added as.
    #[prost(enumeration = "ReplicaMode", tag = "3")]
    pub mode: i32,
}

/// What a rebuild has to transfer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReplicaPrepareRebuildReply {
    /// The replica that is rebuilt from.
    #[prost(message, optional, tag = "1")]
    pub replica: Option<ControllerReplica>,
    /// The files.
    #[prost(message, repeated, tag = "2")]
    pub sync_file_info_list: Vec<SyncFileInfo>,
}

/// Asks for what was done last to be logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct JournalListRequest {
    /// Entries at most.
    #[prost(int64, tag = "1")]
    pub limit: i64,
}

/// Which version an engine is of, and which languages it speaks.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Version {
    /// For people.
    #[prost(string, tag = "1")]
    pub version: String,
    /// For people.
    #[prost(string, tag = "2")]
    pub git_commit: String,
    /// For people.
    #[prost(string, tag = "3")]
    pub build_date: String,
    /// Of the command line.
    #[prost(int64, tag = "4")]
    pub cli_api_version: i64,
    /// The oldest it still speaks.
    #[prost(int64, tag = "5")]
    pub cli_api_min_version: i64,
    /// Of this service.
    #[prost(int64, tag = "6")]
    pub controller_api_version: i64,
    /// The oldest it still speaks.
    #[prost(int64, tag = "7")]
    pub controller_api_min_version: i64,
    /// Of a replica's directory.
    #[prost(int64, tag = "8")]
    pub data_format_version: i64,
    /// The oldest it still reads.
    #[prost(int64, tag = "9")]
    pub data_format_min_version: i64,
}

/// The version.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct VersionDetailReply {
    /// The version.
    #[prost(message, optional, tag = "1")]
    pub version: Option<Version>,
}

/// What an engine did in the last second.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Metrics {
    /// Bytes.
    #[prost(uint64, tag = "1")]
    pub read_throughput: u64,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub write_throughput: u64,
    /// Nanoseconds of one read.
    #[prost(uint64, tag = "3")]
    pub read_latency: u64,
    /// Nanoseconds of one write.
    #[prost(uint64, tag = "4")]
    pub write_latency: u64,
    /// Reads.
    #[prost(uint64, tag = "5")]
    pub read_iops: u64,
    /// Writes.
    #[prost(uint64, tag = "6")]
    pub write_iops: u64,
}

/// The metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct MetricsReply {
    /// The metrics.
    #[prost(message, optional, tag = "1")]
    pub metrics: Option<Metrics>,
}
