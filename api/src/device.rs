//! The VM's disks and NICs as the API answers them. Plain data, the same on both sides of the socket.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::disk::DiskFailure;
use crate::spec::{DiskConfig, DiskLimits, NicConfig};
use crate::volume::VolumeState;

/// What can be added to a running VM and removed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk.
    Disk,
    /// A network interface.
    Nic,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Nic => "NIC",
        })
    }
}

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// The host's side is being opened; the guest does not see it yet.
    Adding,
    /// It is plugged in.
    Present,
    /// The guest has been asked to let go of it, or has let go and it is being closed.
    Removing,
}

/// A disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Its name, unique among all devices of the VM.
    pub id: String,
    /// Where it is in its life.
    pub state: DeviceState,
    /// The job that adds or removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// Its size in bytes, while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How much I/O the guest may do now.
    #[serde(default)]
    pub limits: DiskLimits,
    /// How it fails, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<DiskFailure>,
    /// How its replicas are, if it is a replicated volume that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeState>,
    /// What it is made of, with all defaults. A volume's replicas are those that it began with.
    pub spec: DiskConfig,
}

/// A network interface of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// Its name, unique among all devices of the VM.
    pub id: String,
    /// Where it is in its life.
    pub state: DeviceState,
    /// The job that adds or removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// What it is made of, with all defaults.
    pub spec: NicConfig,
}
