//! The VM: made, read, acted on, deleted.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::body::json_body;
use super::routes::Shared;
use crate::problem::{Code, NotRead, NotServed, Problem};
use crate::resource::{Action, Vm};
use crate::service::Refusal;
use crate::spec::{Draft, VmConfig, VmSpec};

/// Make a VM and start it
///
/// Answers at once, with the VM as it begins: `starting`. How the start goes is told by its state and by the events.
/// The VM has no terminal: `console.serial` is `off` unless it is given.
#[utoipa::path(
    put,
    path = "/api/v1/vm",
    tag = "vm",
    request_body = VmConfig,
    responses(
        (status = 201, description = "The VM is being started.", body = Vm),
        (status = 409, description = "There is a VM already.", body = Problem),
        (status = 422, description = "No VM can be like that; `errors` has every reason.", body = Problem),
        NotServed,
        NotRead,
    )
)]
pub(crate) async fn create_vm(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response, Problem> {
    let text = json_body(request, shared.limits).await?;
    let spec = read_spec(text).await?;
    let vm = shared.service.create(spec)?;
    let location = [(header::LOCATION, "/api/v1/vm")];
    Ok((StatusCode::CREATED, location, Json(vm)).into_response())
}

/// The VM: its spec with all defaults, its state, when it came how far, and how it ended
#[utoipa::path(
    get,
    path = "/api/v1/vm",
    tag = "vm",
    responses(
        (status = 200, description = "The VM.", body = Vm),
        (status = 404, description = "There is no VM.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn read_vm(State(shared): State<Shared>) -> Result<Json<Vm>, Problem> {
    let vm = shared.service.read();
    Ok(Json(vm.ok_or(Refusal::NoVm)?))
}

/// Stop the VM and forget it
///
/// The guest is not asked; use the action `power-button` first where it should be. Answers when all that the VM held is free.
/// A process that was started for one VM ends with it.
#[utoipa::path(
    delete,
    path = "/api/v1/vm",
    tag = "vm",
    responses(
        (status = 204, description = "There is no VM any more."),
        (status = 404, description = "There was none.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn delete_vm(State(shared): State<Shared>) -> Result<StatusCode, Problem> {
    shared.service.delete().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Do something to the VM
///
/// Whether it is possible is decided now; it is done a moment later. What comes of it is told by the events.
#[utoipa::path(
    post,
    path = "/api/v1/vm/actions/{action}",
    operation_id = "act_on_vm",
    tag = "vm",
    params(("action" = Action, Path, description = "What to do.")),
    responses(
        (status = 202, description = "It will be done."),
        (status = 404, description = "There is no VM, or no such action.", body = Problem),
        (status = 409, description = "Not in the VM's present state.", body = Problem),
        NotServed,
    )
)]
pub(crate) async fn act(
    State(shared): State<Shared>,
    action: Result<Path<Action>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path(action) = action.map_err(|_| {
        let detail = format!(
            "no such action; there are {}",
            Action::ALL.map(|a| a.to_string()).join(", ")
        );
        Problem::new(Code::NotFound, detail)
    })?;
    shared.service.act(action)?;
    Ok(StatusCode::ACCEPTED)
}

/// The spec, or all that is wrong with it. A document made to be slow to check takes half a second: so on a thread of its own.
async fn read_spec(text: String) -> Result<VmSpec, Problem> {
    let read = move || {
        let draft = Draft::from_json(&text)?;
        Ok(draft.without_terminal().validate()?)
    };
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(Problem::from(Refusal::Ending)))
}
