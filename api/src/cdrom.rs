//! The VM's CD-ROM drives as the API answers them. Plain data, the same on both sides of the socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::{CdromConfig, InvalidSpec};

/// A CD-ROM drive of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cdrom {
    /// Its name, unique among all devices of the VM.
    pub id: String,
    /// The medium in the tray, by its path; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub medium: Option<PathBuf>,
    /// The medium's size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether the guest has opened the tray: the medium is still in it, but the guest does not see it.
    pub open: bool,
    /// Whether the guest has locked the tray: it uses the medium.
    pub locked: bool,
    /// Whether the guest has a driver.
    pub driver: bool,
    /// What it is made of, with all defaults. Its `path` is the medium that was there at first.
    pub spec: CdromConfig,
}

/// What is to lie in the tray.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"install.iso\"}"
)]
pub struct Medium {
    /// An image file or a block device; or `fd:N`, `fd:NAME`: a descriptor of one, passed to the process and used for nothing else.
    #[schema(value_type = String, min_length = 1)]
    pub path: PathBuf,
}

impl Medium {
    /// The path, if it can be one.
    ///
    /// # Errors
    /// What is wrong with it, at `/path`.
    pub fn checked(&self) -> Result<PathBuf, InvalidSpec> {
        crate::spec::medium_path(&self.path)
    }
}
