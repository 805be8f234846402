//! Jobs: listed, read, cancelled; and what all requests have in common that become one.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::routes::Shared;
use crate::jobs::Job;
use crate::problem::{Code, NotServed, Problem};

/// How long a guest may take for what is asked of it, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest it can be told.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// The parameters of what becomes a job that waits for the guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deadline {
    deadline_ms: Option<String>,
}

/// All jobs that run, and the last that ended; oldest first
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    tag = "jobs",
    responses(
        (status = 200, description = "The jobs.", body = [Job]),
        NotServed,
    )
)]
pub(crate) async fn list_jobs(State(shared): State<Shared>) -> Json<Vec<Job>> {
    Json(shared.service.jobs().list())
}

/// One job
///
/// What becomes of it is told by the events too.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = u64, Path, description = "The job's number.")),
    responses(
        (status = 200, description = "The job.", body = Job),
        (status = 404, description = "There is no such job, or it ended long ago.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_job(
    State(shared): State<Shared>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(shared.service.jobs().read(number(id)?)?))
}

/// Cancel a job
///
/// It ends a moment later, as `cancelled` unless it was done first.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(("id" = u64, Path, description = "The job's number.")),
    responses(
        (status = 202, description = "It will be cancelled.", body = Job),
        (status = 404, description = "There is no such job, or it ended long ago.", body = Problem),
        (status = 409, description = "It is over, or past the point where it can be undone.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn cancel_job(
    State(shared): State<Shared>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Response, Problem> {
    Ok(accepted(shared.service.jobs().cancel(number(id)?)?))
}

fn number(id: Result<Path<u64>, PathRejection>) -> Result<u64, Problem> {
    let Path(id) = id.map_err(|_| {
        Problem::new(
            Code::NoJob,
            "a job has a number, from 1 up; GET /api/v1/jobs lists them",
        )
    })?;
    Ok(id)
}

/// How long the guest may take.
pub(super) fn deadline_of(
    given: Result<Query<Deadline>, QueryRejection>,
) -> Result<Duration, Problem> {
    given
        .ok()
        .and_then(|Query(given)| deadline(given.deadline_ms.as_deref()))
        .ok_or_else(|| {
            let most = MAX_DEADLINE.as_millis();
            let detail =
                format!("the only parameter here is deadline_ms, 1 to {most} milliseconds");
            Problem::new(Code::InvalidParameter, detail)
        })
}

fn deadline(given: Option<&str>) -> Option<Duration> {
    let Some(text) = given else {
        return Some(DEADLINE);
    };
    let deadline = Duration::from_millis(text.parse().ok()?);
    (!deadline.is_zero() && deadline <= MAX_DEADLINE).then_some(deadline)
}

/// The answer to what becomes a job.
pub(super) fn accepted(job: Job) -> Response {
    let location = [(header::LOCATION, format!("/api/v1/jobs/{}", job.id))];
    (StatusCode::ACCEPTED, location, Json(job)).into_response()
}
