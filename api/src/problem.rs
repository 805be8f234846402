//! What the API answers when it does not do what was asked: problem bodies after RFC 9457.
//!
//! The one place where a cause gets its HTTP status and its code.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::jobs::JobError;
use crate::service::{AddError, Refusal};
use crate::spec::{
    InvalidSpec, JsonPointer, Problem as SpecProblem, ProblemCode, SpecError, SyntaxError,
};

/// The media type of a [`Problem`].
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What class of problem. The kebab-case names are part of the API: clients may rely on them, so they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The body is not JSON.
    InvalidJson,
    /// The body is JSON, but no VM that can be; `errors` has every reason.
    InvalidSpec,
    /// A parameter or header has no meaning.
    InvalidParameter,
    /// The body did not come in time.
    BodyTimeout,
    /// The body is larger than 1 MiB.
    BodyTooLarge,
    /// The body's `Content-Type` is not `application/json`.
    UnsupportedMediaType,
    /// There is a VM already.
    VmExists,
    /// There is no VM.
    NoVm,
    /// The VM's state does not allow it.
    WrongState,
    /// The VM has no such disk, network interface or CD-ROM drive.
    NoDevice,
    /// The guest has locked the tray of the CD-ROM drive.
    TrayLocked,
    /// The device is being added or removed already, or the number of CPUs or the replicas of a volume are being changed.
    DeviceBusy,
    /// The disk is no replicated volume, or one whose engine is elsewhere.
    NoVolume,
    /// The state of the volume does not allow it; `detail` says what would.
    VolumeState,
    /// The volume has no such replica.
    NoReplica,
    /// The volume has no such snapshot.
    NoSnapshot,
    /// A replica did not do what it was asked for, or does not answer.
    ReplicaError,
    /// The VM was made without a balloon.
    NoBalloon,
    /// The guest has no driver that could answer, or did not answer in time.
    GuestSilent,
    /// There is no such job.
    NoJob,
    /// The job cannot be cancelled any more.
    TooLate,
    /// The API has no such path.
    NotFound,
    /// The path has no such method; the header `Allow` lists those that it has.
    MethodNotAllowed,
    /// Neither the process's own user nor root.
    Forbidden,
    /// Too many requests wait for the VM.
    Busy,
    /// Too many clients are being served.
    TooManyConnections,
    /// The process is about to end.
    Ending,
    /// The VM does not stop.
    Stuck,
    /// The host failed to do it, or did not get it done in time.
    HostFailed,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidJson | Self::InvalidParameter => StatusCode::BAD_REQUEST,
            Self::InvalidSpec => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::VmExists
            | Self::WrongState
            | Self::DeviceBusy
            | Self::VolumeState
            | Self::TooLate
            | Self::TrayLocked
            | Self::GuestSilent => StatusCode::CONFLICT,
            Self::NoVm
            | Self::NoDevice
            | Self::NoVolume
            | Self::NoReplica
            | Self::NoSnapshot
            | Self::NoBalloon
            | Self::NoJob
            | Self::NotFound => StatusCode::NOT_FOUND,
            Self::ReplicaError => StatusCode::BAD_GATEWAY,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Busy | Self::TooManyConnections | Self::Ending | Self::Stuck => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::HostFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request was not served: the body of every answer with a status of 400 and more, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The HTTP status, in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What class of problem, for programs.
    pub code: Code,
    /// What is wrong and what would be right, for people.
    pub detail: String,
    /// Every reason with its place in the body, if the body is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<SpecProblem>,
}

impl Problem {
    /// A problem that is not in the body.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = code.status();
        Self {
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// A field of the body has a value that cannot be.
    fn at(field: &str, detail: &str) -> Self {
        let problem = SpecProblem {
            pointer: JsonPointer::root().key(field),
            code: ProblemCode::OutOfRange,
            detail: detail.to_owned(),
        };
        InvalidSpec::from_problems(vec![problem]).into()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Exists => Code::VmExists,
            Refusal::NoVm => Code::NoVm,
            Refusal::WrongState { .. }
            | Refusal::NotRunning { .. }
            | Refusal::CpusNotNow { .. }
            | Refusal::MediumNotNow { .. }
            | Refusal::DiskClosed { .. }
            | Refusal::Ended => Code::WrongState,
            Refusal::NoBalloon => Code::NoBalloon,
            Refusal::GuestSilent(_) => Code::GuestSilent,
            Refusal::BalloonTarget(detail) => return Self::at("target", detail),
            Refusal::NoMedium(detail) => return Self::at("path", detail),
            Refusal::CpuCount(detail) => return Self::at("wanted", detail),
            Refusal::DiskSize(detail) => return Self::at("size", detail),
            Refusal::MemoryRequest(detail) => return Self::at("requested", detail),
            Refusal::NoDevice { .. } | Refusal::NoCdrom { .. } => Code::NoDevice,
            Refusal::NoVolume { .. } => Code::NoVolume,
            Refusal::VolumeState(_) => Code::VolumeState,
            Refusal::NoReplica(_) => Code::NoReplica,
            Refusal::NoSnapshot(_) => Code::NoSnapshot,
            Refusal::ReplicaError(_) => Code::ReplicaError,
            Refusal::TrayLocked(_) => Code::TrayLocked,
            Refusal::DeviceBusy { .. } | Refusal::CpusBusy { .. } | Refusal::VolumeBusy { .. } => {
                Code::DeviceBusy
            }
            Refusal::TooManyJobs(_) | Refusal::Busy => Code::Busy,
            Refusal::Ending => Code::Ending,
            Refusal::Stuck => Code::Stuck,
            Refusal::HostFailed(_) => Code::HostFailed,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let code = match error {
            JobError::NoSuchJob(_) => Code::NoJob,
            JobError::TooLate(_) => Code::TooLate,
            JobError::TooMany => Code::Busy,
        };
        Self::new(code, error.to_string())
    }
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        match error {
            SpecError::Syntax(error) => error.into(),
            SpecError::Invalid(error) => error.into(),
        }
    }
}

impl From<AddError> for Problem {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Refused(refusal) => refusal.into(),
            AddError::Wrong(error) => error.into(),
        }
    }
}

impl From<SyntaxError> for Problem {
    fn from(error: SyntaxError) -> Self {
        let detail = format!("the body is not JSON: {error}");
        let whole = SpecProblem {
            pointer: JsonPointer::root(),
            code: ProblemCode::Malformed,
            detail: error.to_string(),
        };
        Self {
            errors: vec![whole],
            ..Self::new(Code::InvalidJson, detail)
        }
    }
}

impl From<InvalidSpec> for Problem {
    fn from(error: InvalidSpec) -> Self {
        let errors = error.problems().to_vec();
        let detail = match errors.as_slice() {
            [one] => format!("the spec is wrong: {one}"),
            many => format!("the spec is wrong in {} places", many.len()),
        };
        Self {
            errors,
            ..Self::new(Code::InvalidSpec, detail)
        }
    }
}

/// What every request may be answered. For the document only.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "utoipa reads it")]
pub(crate) enum NotServed {
    #[response(
        status = 403,
        description = "The client is neither the process's own user nor root."
    )]
    Forbidden(Problem),
    #[response(
        status = 503,
        description = "Not now: too many clients or requests, or the process is about to end. `code` and `detail` tell which."
    )]
    Unavailable(Problem),
}

/// What every request with a body may be answered. For the document only.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "utoipa reads it")]
pub(crate) enum NotRead {
    #[response(status = 400, description = "The body is not JSON.")]
    NotJson(Problem),
    #[response(status = 408, description = "The body did not come in time.")]
    Slow(Problem),
    #[response(status = 413, description = "The body is larger than 1 MiB.")]
    TooLarge(Problem),
    #[response(status = 415, description = "The body is not said to be JSON.")]
    OtherMediaType(Problem),
}

/// What every request for a disk that is there may be answered. For the document only.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "utoipa reads it")]
pub(crate) enum NoOpenDisk {
    #[response(status = 404, description = "There is no VM, or no such disk.")]
    None(Problem),
    #[response(
        status = 409,
        description = "The disk is not open, or its volume is being changed or compared, or is otherwise not in a state for that."
    )]
    Closed(Problem),
}

/// What every request for a disk's volume may be answered. For the document only.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "There is no VM, no such disk, or it is no replicated volume."
)]
#[expect(dead_code, reason = "utoipa reads it")]
pub(crate) struct NoVolume(Problem);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut response = (status, Json(self)).into_response();
        let media_type = HeaderValue::from_static(MEDIA_TYPE);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        response
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_in_json() {
        let problem = Problem::from(Refusal::NoVm);
        assert_eq!(
            json!(problem),
            json!({
                "title": "Not Found",
                "status": 404,
                "code": "no-vm",
                "detail": "there is no VM; PUT /api/v1/vm makes one",
            })
        );
    }

    #[test]
    fn one_reason_is_told_at_once() {
        let error = crate::spec::VmSpec::try_from(crate::spec::VmConfig::default()).unwrap_err();
        let problem = Problem::from(error);
        assert_eq!((problem.status, problem.errors.len()), (422, 1));
        assert!(problem.detail.contains("boot is missing"), "{problem:?}");
    }
}
