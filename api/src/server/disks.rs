//! Disks that are there: their size, and how much I/O the guest may do on them.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};

use super::body::json_body;
use super::devices::device_id;
use super::routes::Shared;
use crate::device::{DeviceKind, Disk};
use crate::disk::DiskSize;
use crate::problem::{NoOpenDisk, NotRead, NotServed, Problem};
use crate::spec::{DiskLimits, read_json};

/// Make a disk larger, or look how large it has become
///
/// A file is made longer, which takes no space on the host before the guest writes there; a block device is grown on the host before. The guest
/// is told at once; what it does with the space is its own affair. A disk never shrinks.
#[utoipa::path(
    put,
    path = "/api/v1/vm/disks/{id}/size",
    tag = "devices",
    params(("id" = String, Path, description = "The disk's id.")),
    request_body = DiskSize,
    responses(
        (status = 200, description = "The disk, as it now is.", body = Disk),
        (status = 422, description = "The disk cannot be like that; `errors` has every reason.", body = Problem),
        (status = 500, description = "The host failed to resize it, or did not get it done in time.", body = Problem),
        (status = 502, description = "The replicas of its volume could not be asked, or did not do it.", body = Problem),
        NoOpenDisk,
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn resize_disk(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Disk>, Problem> {
    let text = json_body(request, shared.limits).await?;
    let id = device_id(DeviceKind::Disk, id)?;
    let DiskSize { size } = read_json(&text)?;
    let size = size.map(|size| size.bytes());
    Ok(Json(shared.service.resize_disk(&id, size).await?))
}

/// Limit the guest's I/O on a disk
///
/// From now on, also for requests that wait already; a VM that is made anew begins with its spec's. Nothing (`{}`) lifts all limits.
#[utoipa::path(
    put,
    path = "/api/v1/vm/disks/{id}/limits",
    tag = "devices",
    params(("id" = String, Path, description = "The disk's id.")),
    request_body = DiskLimits,
    responses(
        (status = 200, description = "The disk, as it now is.", body = Disk),
        (status = 422, description = "The limits cannot be like that; `errors` has every reason.", body = Problem),
        NoOpenDisk,
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn limit_disk(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Disk>, Problem> {
    let text = json_body(request, shared.limits).await?;
    let id = device_id(DeviceKind::Disk, id)?;
    let limits = read_json::<DiskLimits>(&text)?.checked()?;
    Ok(Json(shared.service.limit_disk(&id, limits)?))
}
