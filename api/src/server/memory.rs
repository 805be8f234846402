//! The memory: read, and set to grow or to shrink.

use axum::Json;
use axum::extract::{Request, State};

use super::body::json_body;
use super::routes::Shared;
use crate::memory::{Memory, MemoryRequest};
use crate::problem::{NotRead, NotServed, Problem};
use crate::spec::read_json;

/// The memory, as it is
#[utoipa::path(
    get,
    path = "/api/v1/vm/memory",
    tag = "memory",
    responses(
        (status = 200, description = "The memory.", body = Memory),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_memory(State(shared): State<Shared>) -> Result<Json<Memory>, Problem> {
    Ok(Json(shared.service.memory()?))
}

/// Ask the guest to have more memory, or less
///
/// The guest does it by and by, as far as it can: it may not let go of memory that it uses. `plugged` tells how far it is. After a reset
/// the guest starts with the VM's size, and is asked for as much again.
#[utoipa::path(
    put,
    path = "/api/v1/vm/memory",
    tag = "memory",
    request_body = MemoryRequest,
    responses(
        (status = 202, description = "The guest is asked.", body = Memory),
        (status = 404, description = "There is no VM.", body = Problem),
        (status = 409, description = "The VM has ended.", body = Problem),
        (status = 422, description = "The memory cannot be like that; `errors` has every reason.", body = Problem),
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn set_memory(
    State(shared): State<Shared>,
    request: Request,
) -> Result<(axum::http::StatusCode, Json<Memory>), Problem> {
    let text = json_body(request, shared.limits).await?;
    let MemoryRequest { requested } = read_json(&text)?;
    let memory = shared.service.set_memory(requested.bytes())?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(memory)))
}
