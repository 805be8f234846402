//! The CPUs: read, and made more or fewer, which is a job.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;

use super::body::json_body;
use super::jobs::{Deadline, accepted, deadline_of};
use super::routes::Shared;
use crate::cpus::{Cpus, CpusRequest};
use crate::jobs::Job;
use crate::problem::{NotRead, NotServed, Problem};
use crate::spec::read_json;

/// The CPUs, as they are
#[utoipa::path(
    get,
    path = "/api/v1/vm/cpus",
    tag = "cpus",
    responses(
        (status = 200, description = "The CPUs.", body = Cpus),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_cpus(State(shared): State<Shared>) -> Result<Json<Cpus>, Problem> {
    Ok(Json(shared.service.cpus()?))
}

/// Have more CPUs, or fewer
///
/// More are plugged in, and the job ends; the guest finds them by itself, and uses them when it has put them online, which Linux
/// distributions do by a udev rule. For fewer the guest is asked to let go of those with the highest numbers: the job ends when it has,
/// and fails when it has not by the deadline. Then those that it has not let go of stay, and it can be asked again later. A paused guest
/// notices when it is resumed. After a reset the guest starts with as many as are wanted.
#[utoipa::path(
    put,
    path = "/api/v1/vm/cpus",
    tag = "cpus",
    params(
        ("deadline_ms" = Option<u64>, Query, minimum = 1, maximum = 3_600_000, description = "How long the guest may take to let go, 1 to 3600000 milliseconds; 30000 by default."),
    ),
    request_body = CpusRequest,
    responses(
        (status = 202, description = "It is being done.", body = Job),
        NotRead,
        (status = 400, description = "The body is not JSON, or a parameter has no meaning.", body = Problem),
        (status = 404, description = "There is no VM.", body = Problem),
        (status = 409, description = "The VM is neither running nor paused, or the number of CPUs is being changed already.", body = Problem),
        (status = 422, description = "There cannot be so many; `errors` has every reason.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn set_cpus(
    State(shared): State<Shared>,
    deadline: Result<Query<Deadline>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let text = json_body(request, shared.limits).await?;
    let deadline = deadline_of(deadline)?;
    let CpusRequest { wanted } = read_json(&text)?;
    Ok(accepted(shared.service.set_cpus(wanted, deadline)?))
}
