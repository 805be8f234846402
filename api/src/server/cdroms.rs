//! CD-ROM drives: read, and their media inserted, changed and ejected while the VM runs.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use serde::Deserialize;

use super::body::json_body;
use super::routes::Shared;
use crate::cdrom::{Cdrom, Medium};
use crate::problem::{Code, NotRead, NotServed, Problem};
use crate::service::Refusal;
use crate::spec::read_json;

/// The parameters of a change of the medium.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Force {
    force: Option<String>,
}

/// All CD-ROM drives
#[utoipa::path(
    get,
    path = "/api/v1/vm/cdroms",
    tag = "cdroms",
    responses(
        (status = 200, description = "The drives.", body = [Cdrom]),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn list_cdroms(State(shared): State<Shared>) -> Result<Json<Vec<Cdrom>>, Problem> {
    Ok(Json(shared.service.cdroms()?))
}

/// One CD-ROM drive
#[utoipa::path(
    get,
    path = "/api/v1/vm/cdroms/{id}",
    tag = "cdroms",
    params(("id" = String, Path, description = "The drive's id.")),
    responses(
        (status = 200, description = "The drive.", body = Cdrom),
        (status = 404, description = "There is no VM, or no such drive.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_cdrom(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Cdrom>, Problem> {
    let id = cdrom_id(id)?;
    let mut drives = shared.service.cdroms()?.into_iter();
    let found = drives.find(|drive| drive.id == id);
    found
        .map(Json)
        .ok_or_else(|| Refusal::NoCdrom { id }.into())
}

/// Insert a medium, in place of the one that is there
///
/// The tray is closed if it was open. A medium that the guest has locked in, for it has it mounted, stays: the guest is asked to
/// eject it, and the request can be made again. By force it is taken away at once.
#[utoipa::path(
    put,
    path = "/api/v1/vm/cdroms/{id}/medium",
    tag = "cdroms",
    params(
        ("id" = String, Path, description = "The drive's id."),
        ("force" = Option<bool>, Query, description = "Whether to take a medium that is locked in away; `false` by default."),
    ),
    request_body = Medium,
    responses(
        (status = 200, description = "It is in the drive.", body = Cdrom),
        NotRead,
        (status = 400, description = "The body is not JSON, or a parameter has no meaning.", body = Problem),
        (status = 404, description = "There is no VM, or no such drive.", body = Problem),
        (status = 409, description = "The VM is neither running nor paused, or the guest has locked the tray.", body = Problem),
        (status = 422, description = "It cannot be a medium; `errors` has every reason.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn insert_medium(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    force: Result<Query<Force>, QueryRejection>,
    request: Request,
) -> Result<Json<Cdrom>, Problem> {
    let text = json_body(request, shared.limits).await?;
    let (id, force) = (cdrom_id(id)?, by_force(force)?);
    let path = read_json::<Medium>(&text)?.checked()?;
    let drive = shared.service.insert_medium(&id, path, force).await?;
    Ok(Json(drive))
}

/// Eject the medium
///
/// The tray is empty then; one that was empty stays so. A medium that the guest has locked in stays: the guest is asked to eject it,
/// and the request can be made again. By force it is taken away at once.
#[utoipa::path(
    delete,
    path = "/api/v1/vm/cdroms/{id}/medium",
    tag = "cdroms",
    params(
        ("id" = String, Path, description = "The drive's id."),
        ("force" = Option<bool>, Query, description = "Whether to take a medium that is locked in away; `false` by default."),
    ),
    responses(
        (status = 200, description = "The tray is empty.", body = Cdrom),
        (status = 400, description = "A parameter has no meaning.", body = Problem),
        (status = 404, description = "There is no VM, or no such drive.", body = Problem),
        (status = 409, description = "The VM is neither running nor paused, or the guest has locked the tray.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn eject_medium(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
    force: Result<Query<Force>, QueryRejection>,
) -> Result<Json<Cdrom>, Problem> {
    let (id, force) = (cdrom_id(id)?, by_force(force)?);
    Ok(Json(shared.service.eject_medium(&id, force).await?))
}

/// What is no text is no id either.
fn cdrom_id(id: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    let no_text = |_| Refusal::NoCdrom { id: String::new() };
    let Path(id) = id.map_err(no_text)?;
    Ok(id)
}

fn by_force(given: Result<Query<Force>, QueryRejection>) -> Result<bool, Problem> {
    let given = given.ok().map(|Query(Force { force })| force);
    match given.as_ref().map(Option::as_deref) {
        Some(None | Some("false")) => Ok(false),
        Some(Some("true")) => Ok(true),
        _ => {
            let detail = "the only parameter here is force, which is true or false";
            Err(Problem::new(Code::InvalidParameter, detail))
        }
    }
}
