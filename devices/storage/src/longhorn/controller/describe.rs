//! What the service says, in Longhorn's words.

use paddock_longhorn::messages as m;
use tonic::Status;

use crate::longhorn::error::VolumeError;
use crate::longhorn::member::Mode;
use crate::longhorn::options::ReplicaAddress;
use crate::longhorn::status::ReplicaStatus;

/// The versions of the languages that Longhorn's engine 1.13 speaks, and the oldest that it does.
const CLI_API: (i64, i64) = (12, 8);
const CONTROLLER_API: (i64, i64) = (6, 4);
const DATA_FORMAT: (i64, i64) = (1, 1);

pub(super) fn version() -> m::Version {
    m::Version {
        version: format!("paddock {}", env!("CARGO_PKG_VERSION")),
        cli_api_version: CLI_API.0,
        cli_api_min_version: CLI_API.1,
        controller_api_version: CONTROLLER_API.0,
        controller_api_min_version: CONTROLLER_API.1,
        data_format_version: DATA_FORMAT.0,
        data_format_min_version: DATA_FORMAT.1,
        ..m::Version::default()
    }
}

pub(super) fn mode(mode: Mode) -> m::ReplicaMode {
    match mode {
        Mode::WriteOnly => m::ReplicaMode::Wo,
        Mode::ReadWrite => m::ReplicaMode::Rw,
        Mode::Failed => m::ReplicaMode::Err,
    }
}

pub(super) fn replica(status: &ReplicaStatus) -> m::ControllerReplica {
    m::ControllerReplica {
        address: Some(m::ReplicaAddress {
            address: status.address.url(),
            instance_name: String::new(),
        }),
        mode: mode(status.mode).into(),
    }
}

pub(super) fn address(text: &str) -> Result<ReplicaAddress, Status> {
    text.parse()
        .map_err(|error: VolumeError| Status::invalid_argument(error.to_string()))
}

/// An error as gRPC says it. `UNAVAILABLE` would mean that this service is.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn status(error: VolumeError) -> Status {
    let text = error.to_string();
    match error {
        VolumeError::Address { .. } | VolumeError::Options { .. } => Status::invalid_argument(text),
        VolumeError::NotFound { .. } => Status::not_found(text),
        VolumeError::Host { .. } => Status::internal(text),
        VolumeError::Unreachable { .. }
        | VolumeError::Refused { .. }
        | VolumeError::NoReplica { .. }
        | VolumeError::State { .. } => Status::failed_precondition(text),
    }
}
