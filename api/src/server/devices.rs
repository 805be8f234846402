//! Disks and NICs: read, added to the running VM, removed from it. Adding and removing are jobs.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;

use super::body::json_body;
use super::jobs::{Deadline, accepted, deadline_of};
use super::routes::Shared;
use crate::device::{DeviceKind, Disk, Nic};
use crate::jobs::Job;
use crate::problem::{NotRead, NotServed, Problem};
use crate::service::Refusal;
use crate::spec::{DiskConfig, NicConfig};

/// All disks, in the order in which they were added
#[utoipa::path(
    get,
    path = "/api/v1/vm/disks",
    tag = "devices",
    responses(
        (status = 200, description = "The disks.", body = [Disk]),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn list_disks(State(shared): State<Shared>) -> Result<Json<Vec<Disk>>, Problem> {
    Ok(Json(shared.service.disks()?))
}

/// All network interfaces, in the order in which they were added
#[utoipa::path(
    get,
    path = "/api/v1/vm/nics",
    tag = "devices",
    responses(
        (status = 200, description = "The network interfaces.", body = [Nic]),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn list_nics(State(shared): State<Shared>) -> Result<Json<Vec<Nic>>, Problem> {
    Ok(Json(shared.service.nics()?))
}

/// One disk
#[utoipa::path(
    get,
    path = "/api/v1/vm/disks/{id}",
    tag = "devices",
    params(("id" = String, Path, description = "The disk's id.")),
    responses(
        (status = 200, description = "The disk.", body = Disk),
        (status = 404, description = "There is no VM, or no such disk.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_disk(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Disk>, Problem> {
    let id = device_id(DeviceKind::Disk, id)?;
    let found = shared
        .service
        .disks()?
        .into_iter()
        .find(|disk| disk.id == id);
    Ok(Json(found.ok_or_else(|| no_device(DeviceKind::Disk, id))?))
}

/// One network interface
#[utoipa::path(
    get,
    path = "/api/v1/vm/nics/{id}",
    tag = "devices",
    params(("id" = String, Path, description = "The network interface's id.")),
    responses(
        (status = 200, description = "The network interface.", body = Nic),
        (status = 404, description = "There is no VM, or no such network interface.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_nic(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Nic>, Problem> {
    let id = device_id(DeviceKind::Nic, id)?;
    let found = shared.service.nics()?.into_iter().find(|nic| nic.id == id);
    Ok(Json(found.ok_or_else(|| no_device(DeviceKind::Nic, id))?))
}

/// Add a disk to the running VM
///
/// The guest finds it by itself. The job ends when the disk is plugged in, not when the guest uses it.
#[utoipa::path(
    post,
    path = "/api/v1/vm/disks",
    tag = "devices",
    request_body = DiskConfig,
    responses(
        (status = 202, description = "It is being added.", body = Job),
        (status = 404, description = "There is no VM.", body = Problem),
        (status = 409, description = "The VM is not running.", body = Problem),
        (status = 422, description = "The VM cannot have such a disk; `errors` has every reason.", body = Problem),
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn add_disk(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    add(DeviceKind::Disk, &shared, request).await
}

/// Add a network interface to the running VM
///
/// The guest finds it by itself. The job ends when the interface is plugged in, not when the guest uses it.
#[utoipa::path(
    post,
    path = "/api/v1/vm/nics",
    tag = "devices",
    request_body = NicConfig,
    responses(
        (status = 202, description = "It is being added.", body = Job),
        (status = 404, description = "There is no VM.", body = Problem),
        (status = 409, description = "The VM is not running.", body = Problem),
        (status = 422, description = "The VM cannot have such an interface; `errors` has every reason.", body = Problem),
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn add_nic(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    add(DeviceKind::Nic, &shared, request).await
}

/// Remove a disk from the running VM
///
/// The guest is asked to let go of it. The job ends when it has and the disk is closed, so that it can be used elsewhere; it fails when
/// the guest has not let go by the deadline. Then the disk stays, and can be removed again later.
#[utoipa::path(
    delete,
    path = "/api/v1/vm/disks/{id}",
    tag = "devices",
    params(
        ("id" = String, Path, description = "The disk's id."),
        ("deadline_ms" = Option<u64>, Query, minimum = 1, maximum = 3_600_000, description = "How long the guest may take, 1 to 3600000 milliseconds; 30000 by default."),
    ),
    responses(
        (status = 202, description = "It is being removed.", body = Job),
        (status = 400, description = "A parameter has no meaning.", body = Problem),
        (status = 404, description = "There is no VM, or no such disk.", body = Problem),
        (status = 409, description = "The VM is not running, or the disk is being added or removed already.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn remove_disk(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    deadline: Result<Query<Deadline>, QueryRejection>,
) -> Result<Response, Problem> {
    remove(DeviceKind::Disk, &shared, id, deadline)
}

/// Remove a network interface from the running VM
///
/// The guest is asked to let go of it. The job ends when it has and the tap is closed; it fails when the guest has not let go by the
/// deadline. Then the interface stays, and can be removed again later.
#[utoipa::path(
    delete,
    path = "/api/v1/vm/nics/{id}",
    tag = "devices",
    params(
        ("id" = String, Path, description = "The network interface's id."),
        ("deadline_ms" = Option<u64>, Query, minimum = 1, maximum = 3_600_000, description = "How long the guest may take, 1 to 3600000 milliseconds; 30000 by default."),
    ),
    responses(
        (status = 202, description = "It is being removed.", body = Job),
        (status = 400, description = "A parameter has no meaning.", body = Problem),
        (status = 404, description = "There is no VM, or no such network interface.", body = Problem),
        (status = 409, description = "The VM is not running, or the interface is being added or removed already.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn remove_nic(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    deadline: Result<Query<Deadline>, QueryRejection>,
) -> Result<Response, Problem> {
    remove(DeviceKind::Nic, &shared, id, deadline)
}

async fn add(kind: DeviceKind, shared: &Shared, request: Request) -> Result<Response, Problem> {
    let text = json_body(request, shared.limits).await?;
    let job = shared.service.add_device(kind, text).await?;
    Ok(accepted(job))
}

fn remove(
    kind: DeviceKind,
    shared: &Shared,
    id: Result<Path<String>, PathRejection>,
    deadline: Result<Query<Deadline>, QueryRejection>,
) -> Result<Response, Problem> {
    let id = device_id(kind, id)?;
    let deadline = deadline_of(deadline)?;
    let job = shared.service.remove_device(kind, &id, deadline)?;
    Ok(accepted(job))
}

/// What is no text is no id either.
pub(super) fn device_id(
    kind: DeviceKind,
    id: Result<Path<String>, PathRejection>,
) -> Result<String, Problem> {
    let Path(id) = id.map_err(|_| no_device(kind, String::new()))?;
    Ok(id)
}

fn no_device(kind: DeviceKind, id: String) -> Problem {
    Refusal::NoDevice { kind, id }.into()
}
