//! Jobs: listed, read, cancelled.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;

use super::devices::accepted;
use super::routes::Shared;
use crate::jobs::Job;
use crate::problem::{Code, NotServed, Problem};

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
        (status = 404, description = "There is no such job, or it ended long ago.", body = Problem, content_type = "application/problem+json"),
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
        (status = 404, description = "There is no such job, or it ended long ago.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is over, or past the point where it can be undone.", body = Problem, content_type = "application/problem+json"),
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
