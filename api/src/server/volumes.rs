//! Disks that are replicated volumes: their replicas and their snapshots. Going back to a snapshot is not among it: nobody may use the volume then.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::body::json_body;
use super::devices::device_id;
use super::jobs::accepted;
use super::routes::Shared;
use crate::device::DeviceKind;
use crate::jobs::Job;
use crate::problem::{NoVolume, NotRead, NotServed, Problem};
use crate::service::Refusal;
use crate::spec::{quoted, read_json};
use crate::volume::{Replica, ReplicaRequest, Snapshot, SnapshotRequest, SnapshotTaken};

/// The replicas of a disk's volume
#[utoipa::path(
    get,
    path = "/api/v1/vm/disks/{id}/replicas",
    tag = "volumes",
    params(("id" = String, Path, description = "The disk's id.")),
    responses(
        (status = 200, description = "The replicas, those that failed included.", body = [Replica]),
        (status = 409, description = "The disk is not open.", body = Problem),
        NoVolume,
        NotServed,
    )
)]
pub(crate) async fn list_replicas(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Vec<Replica>>, Problem> {
    let id = device_id(DeviceKind::Disk, id)?;
    Ok(Json(shared.service.replicas(&id)?))
}

/// Add a replica to a disk's volume, and rebuild it
///
/// The guest goes on: it stands still three times for a moment. The replica is written at once, and read when the job has succeeded. What it has is lost. Where
/// the job fails or is cancelled, the volume lets go of the replica again. The VM's spec stays as it is: name the replica there before the VM is made anew.
#[utoipa::path(
    post,
    path = "/api/v1/vm/disks/{id}/replicas",
    tag = "volumes",
    params(("id" = String, Path, description = "The disk's id.")),
    request_body = ReplicaRequest,
    responses(
        (status = 202, description = "It is being added.", body = Job),
        (status = 409, description = "The disk is not open, the volume has the replica already, or its replicas are being compared or changed.", body = Problem),
        (status = 422, description = "It cannot be an address; `errors` says why.", body = Problem),
        NoVolume,
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn add_replica(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let text = json_body(request, shared.limits).await?;
    let id = device_id(DeviceKind::Disk, id)?;
    let address = read_json::<ReplicaRequest>(&text)?.checked()?;
    Ok(accepted(shared.service.add_replica(&id, address)?))
}

/// Let go of a replica of a disk's volume
///
/// What is written from now on, it misses; it can only be added again as a new one. The last one that has everything stays. One that is being rebuilt
/// is let go of by cancelling the job, or by this.
#[utoipa::path(
    delete,
    path = "/api/v1/vm/disks/{id}/replicas/{address}",
    tag = "volumes",
    params(
        ("id" = String, Path, description = "The disk's id."),
        ("address" = String, Path, description = "`HOST:PORT` of the replica's control service."),
    ),
    responses(
        (status = 200, description = "The replicas that are left.", body = [Replica]),
        (status = 404, description = "There is no VM, no such disk, it is no replicated volume, or it has no such replica.", body = Problem),
        (status = 409, description = "The disk is not open, or no other replica has everything.", body = Problem),
        (status = 502, description = "The volume's thread does not answer in time; it goes on.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn remove_replica(
    State(shared): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Vec<Replica>>, Problem> {
    let (id, address) = two(path)?;
    // A disk that is not there is told first.
    shared.service.replicas(&id)?;
    let address = address.parse().map_err(|_| {
        let detail = format!("the volume has no replica {}", quoted(&address));
        Refusal::NoReplica(detail)
    })?;
    Ok(Json(shared.service.remove_replica(&id, address).await?))
}

/// The snapshots of a disk's volume, the oldest first
#[utoipa::path(
    get,
    path = "/api/v1/vm/disks/{id}/snapshots",
    tag = "volumes",
    params(("id" = String, Path, description = "The disk's id.")),
    responses(
        (status = 200, description = "The snapshots.", body = [Snapshot]),
        (status = 409, description = "The disk is not open, or the volume is closed.", body = Problem),
        (status = 502, description = "No replica answers.", body = Problem),
        NoVolume,
        NotServed,
    )
)]
pub(crate) async fn list_snapshots(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Vec<Snapshot>>, Problem> {
    let id = device_id(DeviceKind::Disk, id)?;
    Ok(Json(shared.service.snapshots(&id).await?))
}

/// Take a snapshot of a disk's volume
///
/// It has what the guest was told to be written; the guest's I/O stands still for a moment. File systems in it are as after a loss of power, unless the guest has frozen
/// them. To go back to it, stop the VM and use `paddock volume`: a disk does not become another while somebody uses it.
#[utoipa::path(
    post,
    path = "/api/v1/vm/disks/{id}/snapshots",
    tag = "volumes",
    params(("id" = String, Path, description = "The disk's id.")),
    request_body = SnapshotRequest,
    responses(
        (status = 201, description = "It was taken.", body = SnapshotTaken),
        (status = 409, description = "The disk is not open, there is such a snapshot already, there are too many, or a replica is being rebuilt or compared.", body = Problem),
        (status = 422, description = "There cannot be such a snapshot; `errors` has every reason.", body = Problem),
        (status = 502, description = "No replica took it, or they have not answered in time.", body = Problem),
        NoVolume,
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn take_snapshot(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<(StatusCode, Json<SnapshotTaken>), Problem> {
    let text = json_body(request, shared.limits).await?;
    let id = device_id(DeviceKind::Disk, id)?;
    let request = read_json::<SnapshotRequest>(&text)?.checked()?;
    let taken = shared.service.take_snapshot(&id, request).await?;
    Ok((StatusCode::CREATED, Json(taken)))
}

/// Remove a snapshot of a disk's volume
///
/// It is marked as removed, and the replicas give back what it and those that nobody asked for take, while the guest goes on. The youngest one stays, marked, until
/// there is another above it.
#[utoipa::path(
    delete,
    path = "/api/v1/vm/disks/{id}/snapshots/{name}",
    tag = "volumes",
    params(
        ("id" = String, Path, description = "The disk's id."),
        ("name" = String, Path, description = "The snapshot's name."),
    ),
    responses(
        (status = 202, description = "It is marked, and its space is being given back.", body = Job),
        (status = 404, description = "There is no VM, no such disk, it is no replicated volume, or it has no such snapshot.", body = Problem),
        (status = 409, description = "The disk is not open, or the volume's replicas are being compared or changed.", body = Problem),
        (status = 502, description = "A replica did not take note of it; it can be asked for again.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn remove_snapshot(
    State(shared): State<Shared>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Problem> {
    let (id, name) = two(path)?;
    Ok(accepted(shared.service.remove_snapshot(&id, &name).await?))
}

/// A disk's id and a name of something that it has. What is no text is none of both.
fn two(path: Result<Path<(String, String)>, PathRejection>) -> Result<(String, String), Problem> {
    let none = |_| Refusal::NoDevice {
        kind: DeviceKind::Disk,
        id: String::new(),
    };
    let Path(both) = path.map_err(none)?;
    Ok(both)
}
