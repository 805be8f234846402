//! Replicated volumes behind a disk, in Longhorn's language: as users write them, and as the machine trusts them.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::types::{ByteSize, ReplicaAddress, VolumeName};

/// A replicated volume, whose engine is in the process of the VM: it talks to the replicas itself. They are closed when the VM starts, and nothing else may use
/// them until it has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"name\": \"data\", \"replicas\": [\"10.0.0.1:10000\"]}"
)]
pub struct VolumeConfig {
    /// The name of the volume, which replicas that know theirs check: 1 to 128 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    pub name: Option<String>,
    /// `HOST:PORT` of the control service of each replica, 1 to 16, each once; its data are on the next port, its sync agent on the one after. Required. One that
    /// cannot be used is left out, as long as another can be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = true, min_items = 1, max_items = 16)]
    pub replicas: Vec<String>,
    /// The size of the volume, a multiple of 4 KiB, which the replicas are to have; what they have by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// How long a replica may be silent before it is given up, while another is there to go on with: 8 to 30 seconds, 8 by default. The last one has twice
    /// as long.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 8, maximum = 30)]
    pub timeout: Option<u64>,
    /// Whether the replicas count writes; as they do by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_counter: Option<bool>,
    /// Whether to go on with the best of the replicas where none of them is trusted to have everything, and leave the others; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salvage: Option<bool>,
    /// A file in which the VM records which replicas have everything, before a write is acknowledged that another misses. Replicas that are not in it
    /// are left out the next time: without it, and without a count of writes, one that failed looks like the others once none of them runs. It is made where
    /// there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, min_length = 1, max_length = 4095)]
    pub record: Option<PathBuf>,
    /// `ADDRESS:PORT` on which Longhorn's ControllerService is served, for Longhorn's own tools; it is not by default. Whoever connects is not asked who he is and
    /// may do everything with the volume: an address that only those reach who may.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "127.0.0.1:9501")]
    pub controller: Option<String>,
}

/// A volume behind a running engine of Longhorn's, by its `socket` frontend. Nothing else may write to the volume meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"/var/run/longhorn-data.sock\", \"size\": \"10GiB\"}"
)]
pub struct LonghornSocketConfig {
    /// The engine's socket, usually `/var/run/longhorn-VOLUME.sock`: at most 107 bytes. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, min_length = 1, max_length = 107)]
    pub path: Option<PathBuf>,
    /// The size of the volume, which the socket does not tell: a multiple of 4 KiB. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = ByteSize, required = true)]
    pub size: Option<ByteSize>,
}

/// A replicated volume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Its replicas: 1 to 16, each once.
    pub replicas: Vec<ReplicaAddress>,
    /// Its size, a multiple of 4 KiB; `None`: that of the replicas.
    pub size: Option<ByteSize>,
    /// How long a replica may be silent, in seconds: 8 to 30.
    pub timeout: u16,
    /// Whether the replicas count writes; `None`: as they do.
    pub revision_counter: Option<bool>,
    /// Whether the best of the replicas is taken and the others are left.
    pub salvage: bool,
    /// Where it is recorded which replicas have everything.
    pub record: Option<PathBuf>,
    /// Where Longhorn's ControllerService is served; the port is not 0.
    pub controller: Option<SocketAddr>,
}

impl Volume {
    /// The most replicas of a volume.
    pub const MAX_REPLICAS: usize = 16;
}

/// A volume behind a running engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LonghornSocket {
    /// The engine's socket, at most 107 bytes.
    pub path: PathBuf,
    /// The volume's size, a multiple of 4 KiB, not 0.
    pub size: ByteSize,
}

impl From<&Volume> for VolumeConfig {
    fn from(volume: &Volume) -> Self {
        let replicas = volume.replicas.iter();
        Self {
            name: Some(volume.name.to_string()),
            replicas: replicas.map(ReplicaAddress::to_string).collect(),
            size: volume.size,
            timeout: Some(volume.timeout.into()),
            revision_counter: volume.revision_counter,
            salvage: Some(volume.salvage),
            record: volume.record.clone(),
            controller: volume.controller.as_ref().map(SocketAddr::to_string),
        }
    }
}

impl From<&LonghornSocket> for LonghornSocketConfig {
    fn from(socket: &LonghornSocket) -> Self {
        Self {
            path: Some(socket.path.clone()),
            size: Some(socket.size),
        }
    }
}
