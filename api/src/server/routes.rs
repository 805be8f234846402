//! The API's paths and what stands behind them.
//!
//! The list in [`all`] and the annotations for the OpenAPI document are held equal by a test.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Json, Router};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;

use super::{Limits, MAX_BODY, balloon, cpus, devices, events, jobs, memory, metrics};
use crate::openapi;
use crate::problem::{Code, NotServed, Problem};
use crate::resource::{Action, Vm};
use crate::service::{Refusal, VmService};
use crate::spec::{Draft, VmConfig, VmSpec};

/// So much of a body that is too large is read before the refusal.
const MAX_DRAINED: usize = 16 << 20;

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(super) service: Arc<dyn VmService>,
    pub(super) limits: Limits,
    /// Places for clients that follow the events.
    pub(super) followers: Arc<Semaphore>,
}

/// Every method of every path.
pub(crate) fn all() -> Vec<(&'static str, &'static str, MethodRouter<Shared>)> {
    vec![
        ("PUT", "/api/v1/vm", put(create_vm)),
        ("GET", "/api/v1/vm", get(read_vm)),
        ("DELETE", "/api/v1/vm", delete(delete_vm)),
        ("POST", "/api/v1/vm/actions/{action}", post(act)),
        ("GET", "/api/v1/vm/disks", get(devices::list_disks)),
        ("POST", "/api/v1/vm/disks", post(devices::add_disk)),
        ("GET", "/api/v1/vm/disks/{id}", get(devices::read_disk)),
        (
            "DELETE",
            "/api/v1/vm/disks/{id}",
            delete(devices::remove_disk),
        ),
        ("GET", "/api/v1/vm/nics", get(devices::list_nics)),
        ("POST", "/api/v1/vm/nics", post(devices::add_nic)),
        ("GET", "/api/v1/vm/nics/{id}", get(devices::read_nic)),
        (
            "DELETE",
            "/api/v1/vm/nics/{id}",
            delete(devices::remove_nic),
        ),
        ("GET", "/api/v1/vm/cpus", get(cpus::read_cpus)),
        ("PUT", "/api/v1/vm/cpus", put(cpus::set_cpus)),
        ("GET", "/api/v1/vm/memory", get(memory::read_memory)),
        ("PUT", "/api/v1/vm/memory", put(memory::set_memory)),
        ("GET", "/api/v1/vm/balloon", get(balloon::read_balloon)),
        ("PUT", "/api/v1/vm/balloon", put(balloon::set_balloon)),
        (
            "GET",
            "/api/v1/vm/balloon/statistics",
            get(balloon::read_memory_statistics),
        ),
        ("GET", "/api/v1/jobs", get(jobs::list_jobs)),
        ("GET", "/api/v1/jobs/{id}", get(jobs::read_job)),
        ("POST", "/api/v1/jobs/{id}/cancel", post(jobs::cancel_job)),
        ("GET", "/api/v1/events", get(events::follow)),
        ("GET", "/api/v1/metrics", get(metrics::read_metrics)),
        ("GET", "/api/v1/openapi.json", get(read_openapi)),
    ]
}

pub(super) fn router(service: Arc<dyn VmService>, limits: Limits) -> Router {
    all()
        .into_iter()
        .fold(Router::new(), |router, (_, path, handler)| {
            router.route(path, handler)
        })
        // Where tools look for them without being told.
        .route("/metrics", get(metrics::read_metrics))
        .route("/openapi.json", get(read_openapi))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(Shared {
            service,
            limits,
            followers: Arc::new(Semaphore::new(limits.followers)),
        })
}

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
        (status = 400, description = "The body is not JSON.", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "There is a VM already.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 1 MiB.", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "No VM can be like that; `errors` has every reason.", body = Problem, content_type = "application/problem+json"),
        NotServed,
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
        (status = 404, description = "There is no VM.", body = Problem, content_type = "application/problem+json"),
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
        (status = 404, description = "There was none.", body = Problem, content_type = "application/problem+json"),
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
        (status = 404, description = "There is no VM, or no such action.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Not in the VM's present state.", body = Problem, content_type = "application/problem+json"),
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

/// This document
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "api",
    responses(
        (status = 200, description = "The API in OpenAPI's words.", body = Object),
        NotServed,
    )
)]
pub(crate) async fn read_openapi() -> Response {
    let media_type = [(header::CONTENT_TYPE, "application/json")];
    (media_type, openapi::CHECKED_IN).into_response()
}

async fn no_such_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    let detail = format!("the API has no {path:?}; GET /api/v1/openapi.json tells what it has");
    Problem::new(Code::NotFound, detail)
}

/// axum adds the header `Allow`.
async fn no_such_method(request: Request<Body>) -> Problem {
    let method: String = request.method().as_str().chars().take(20).collect();
    let detail = format!("this path has no method {method}; the header Allow lists those it has");
    Problem::new(Code::MethodNotAllowed, detail)
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

/// The body, which must be called JSON, come in time, and be neither too large nor other than text.
pub(super) async fn json_body(request: Request, limits: Limits) -> Result<String, Problem> {
    let (parts, body) = request.into_parts();
    let announced = body.size_hint().lower();
    if announced > MAX_BODY as u64 && parts.headers.contains_key(header::EXPECT) {
        // It has not been sent yet, and need not be.
        return Err(too_large());
    }
    let body = tokio::time::timeout(limits.body, collect(body))
        .await
        .map_err(|_| {
            let detail = format!("the body did not come within {:?}", limits.body);
            Problem::new(Code::BodyTimeout, detail)
        })??;
    require_json(&parts.headers)?;
    String::from_utf8(body).map_err(|_| {
        let detail = "the body is not JSON: it is not UTF-8 text";
        Problem::new(Code::InvalidJson, detail)
    })
}

/// Reads a body to its end also when it is too large, if it is not far too large: most clients look for an answer only when they have
/// sent everything.
async fn collect(mut body: Body) -> Result<Vec<u8>, Problem> {
    let mut kept = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            let detail = "the body ended before all of it had come";
            Problem::new(Code::InvalidJson, detail)
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= MAX_BODY {
            kept.extend_from_slice(&data);
        } else if length <= MAX_DRAINED {
            kept = Vec::new();
        } else {
            break;
        }
    }
    if length > MAX_BODY {
        return Err(too_large());
    }
    Ok(kept)
}

fn too_large() -> Problem {
    let detail = "the body is larger than 1 MiB, which no VM spec is";
    Problem::new(Code::BodyTooLarge, detail)
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or("other than ASCII"));
    let media_type = given.map(|value| value.split(';').next().unwrap_or_default().trim());
    if media_type.is_some_and(|name| name.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let given = match given {
        Some(given) => format!("it is {:?}", given.chars().take(80).collect::<String>()),
        None => "there is none".to_owned(),
    };
    let detail = format!("the header Content-Type must be application/json; {given}");
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}
