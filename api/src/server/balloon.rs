//! The balloon: read, set, and the guest's memory statistics that come through it.

use axum::Json;
use axum::extract::{Request, State};

use super::body::json_body;
use super::routes::Shared;
use crate::balloon::{Balloon, BalloonTarget, MemoryStatistics};
use crate::problem::{NotRead, NotServed, Problem};
use crate::spec::read_json;

/// The balloon, as it is
#[utoipa::path(
    get,
    path = "/api/v1/vm/balloon",
    tag = "balloon",
    responses(
        (status = 200, description = "The balloon.", body = Balloon),
        (status = 404, description = "There is no VM, or it has no balloon.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_balloon(State(shared): State<Shared>) -> Result<Json<Balloon>, Problem> {
    Ok(Json(shared.service.balloon()?))
}

/// Ask the guest for memory, or give it back
///
/// The guest does it by and by, as far as it can; `actual` tells how far it is. The target stays over a reset.
#[utoipa::path(
    put,
    path = "/api/v1/vm/balloon",
    tag = "balloon",
    request_body = BalloonTarget,
    responses(
        (status = 202, description = "The guest is asked.", body = Balloon),
        (status = 404, description = "There is no VM, or it has no balloon.", body = Problem),
        (status = 409, description = "The VM has ended.", body = Problem),
        (status = 422, description = "The balloon cannot be like that; `errors` has every reason.", body = Problem),
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn set_balloon(
    State(shared): State<Shared>,
    request: Request,
) -> Result<(axum::http::StatusCode, Json<Balloon>), Problem> {
    let text = json_body(request, shared.limits).await?;
    let BalloonTarget { target } = read_json(&text)?;
    let balloon = shared.service.set_balloon(target.bytes())?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(balloon)))
}

/// What the guest says of its memory, asked now
#[utoipa::path(
    get,
    path = "/api/v1/vm/balloon/statistics",
    tag = "balloon",
    responses(
        (status = 200, description = "The guest's answer.", body = MemoryStatistics),
        (status = 404, description = "There is no VM, or it has no balloon.", body = Problem),
        (status = 409, description = "The guest has no driver to ask, or did not answer in time.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_memory_statistics(
    State(shared): State<Shared>,
) -> Result<Json<MemoryStatistics>, Problem> {
    Ok(Json(shared.service.memory_statistics().await?))
}
