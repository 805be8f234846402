//! The messages of `SyncAgentService`: what a rebuild needs of it. Backups and clones are not spoken, and of checksums
//! only that there are none.

use std::collections::HashMap;

/// Removes a file.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FileRemoveRequest {
    /// Its name in the replica's directory.
    #[prost(string, tag = "1")]
    pub file_name: String,
}

/// Renames a file.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FileRenameRequest {
    /// Its name in the replica's directory.
    #[prost(string, tag = "1")]
    pub old_file_name: String,
    /// The name it gets.
    #[prost(string, tag = "2")]
    pub new_file_name: String,
}

/// Has a file sent to a receiver.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FileSendRequest {
    /// The file.
    #[prost(string, tag = "1")]
    pub from_file_name: String,
    /// Where the receiver is.
    #[prost(string, tag = "2")]
    pub host: String,
    /// Its port.
    #[prost(int32, tag = "3")]
    pub port: i32,
    /// What both sides have by their checksums is not sent.
    #[prost(bool, tag = "4")]
    pub fast_sync: bool,
    /// In seconds.
    #[prost(int32, tag = "5")]
    pub file_sync_http_client_timeout: i32,
}

/// A file to be transferred.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SyncFileInfo {
    /// Its name at the sender.
    #[prost(string, tag = "1")]
    pub from_file_name: String,
    /// Its name at the receiver.
    #[prost(string, tag = "2")]
    pub to_file_name: String,
    /// Bytes that it takes at the sender; 0 for one that does not count.
    #[prost(int64, tag = "3")]
    pub actual_size: i64,
}

/// Two directories of one host.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FileLocalSync {
    /// From here.
    #[prost(string, tag = "1")]
    pub source_path: String,
    /// To here.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// Has files fetched from other replicas.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FilesSyncRequest {
    /// One replica to fetch from. Older than `from_address_map`.
    #[prost(string, tag = "1")]
    pub from_address: String,
    /// What the senders are to connect to.
    #[prost(string, tag = "2")]
    pub to_host: String,
    /// The files.
    #[prost(message, repeated, tag = "3")]
    pub sync_file_info_list: Vec<SyncFileInfo>,
    /// What both sides have by their checksums is not sent.
    #[prost(bool, tag = "4")]
    pub fast_sync: bool,
    /// In seconds.
    #[prost(int32, tag = "5")]
    pub file_sync_http_client_timeout: i32,
    /// In seconds.
    #[prost(int64, tag = "6")]
    pub grpc_timeout_seconds: i64,
    /// Where both are on one host.
    #[prost(message, optional, tag = "7")]
    pub local_sync: Option<FileLocalSync>,
    /// The replicas to fetch from.
    #[prost(map = "string, bool", tag = "8")]
    pub from_address_map: HashMap<String, bool>,
}

/// Has a receiver for one file started.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ReceiverLaunchRequest {
    /// The file.
    #[prost(string, tag = "1")]
    pub to_file_name: String,
}

/// Where it listens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ReceiverLaunchReply {
    /// Its port.
    #[prost(int32, tag = "1")]
    pub port: i32,
}

/// How far the removal of snapshots is.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct PurgeStatus {
    /// It is under way.
    #[prost(bool, tag = "1")]
    pub is_purging: bool,
    /// Why it ended; empty where it went well.
    #[prost(string, tag = "2")]
    pub error: String,
    /// In per cent.
    #[prost(int32, tag = "3")]
    pub progress: i32,
    /// `initial`, `in_progress`, `complete` or `error`.
    #[prost(string, tag = "4")]
    pub state: String,
}

/// How far the transfer of a rebuild is.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RebuildStatus {
    /// It is under way.
    #[prost(bool, tag = "1")]
    pub is_rebuilding: bool,
    /// Why it ended; empty where it went well.
    #[prost(string, tag = "2")]
    pub error: String,
    /// In per cent.
    #[prost(int32, tag = "3")]
    pub progress: i32,
    /// `initial`, `in_progress`, `complete` or `error`.
    #[prost(string, tag = "4")]
    pub state: String,
    /// One replica it comes from. Older than the list.
    #[prost(string, tag = "5")]
    pub from_replica_address: String,
    /// The replicas it comes from.
    #[prost(string, repeated, tag = "6")]
    pub from_replica_address_list: Vec<String>,
}

/// Whether the checksum of a snapshot is being made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct LockState {
    /// It is.
    #[prost(bool, tag = "1")]
    pub is_locked: bool,
}
