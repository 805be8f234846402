//! The API's paths and what stands behind them.
//!
//! The list in [`all`] and the annotations for the OpenAPI document are held equal by a test.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use tokio::sync::Semaphore;

use super::{
    Limits, balloon, cdroms, cpus, devices, disks, events, jobs, memory, metrics, vm, volumes,
};
use crate::openapi;
use crate::problem::{Code, NotServed, Problem};
use crate::service::VmService;

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
        ("PUT", "/api/v1/vm", put(vm::create_vm)),
        ("GET", "/api/v1/vm", get(vm::read_vm)),
        ("DELETE", "/api/v1/vm", delete(vm::delete_vm)),
        ("POST", "/api/v1/vm/actions/{action}", post(vm::act)),
        ("GET", "/api/v1/vm/disks", get(devices::list_disks)),
        ("POST", "/api/v1/vm/disks", post(devices::add_disk)),
        ("GET", "/api/v1/vm/disks/{id}", get(devices::read_disk)),
        (
            "DELETE",
            "/api/v1/vm/disks/{id}",
            delete(devices::remove_disk),
        ),
        ("PUT", "/api/v1/vm/disks/{id}/size", put(disks::resize_disk)),
        (
            "PUT",
            "/api/v1/vm/disks/{id}/limits",
            put(disks::limit_disk),
        ),
        (
            "GET",
            "/api/v1/vm/disks/{id}/replicas",
            get(volumes::list_replicas),
        ),
        (
            "POST",
            "/api/v1/vm/disks/{id}/replicas",
            post(volumes::add_replica),
        ),
        (
            "DELETE",
            "/api/v1/vm/disks/{id}/replicas/{address}",
            delete(volumes::remove_replica),
        ),
        (
            "GET",
            "/api/v1/vm/disks/{id}/snapshots",
            get(volumes::list_snapshots),
        ),
        (
            "POST",
            "/api/v1/vm/disks/{id}/snapshots",
            post(volumes::take_snapshot),
        ),
        (
            "DELETE",
            "/api/v1/vm/disks/{id}/snapshots/{name}",
            delete(volumes::remove_snapshot),
        ),
        ("GET", "/api/v1/vm/nics", get(devices::list_nics)),
        ("POST", "/api/v1/vm/nics", post(devices::add_nic)),
        ("GET", "/api/v1/vm/nics/{id}", get(devices::read_nic)),
        (
            "DELETE",
            "/api/v1/vm/nics/{id}",
            delete(devices::remove_nic),
        ),
        ("GET", "/api/v1/vm/cdroms", get(cdroms::list_cdroms)),
        ("GET", "/api/v1/vm/cdroms/{id}", get(cdroms::read_cdrom)),
        (
            "PUT",
            "/api/v1/vm/cdroms/{id}/medium",
            put(cdroms::insert_medium),
        ),
        (
            "DELETE",
            "/api/v1/vm/cdroms/{id}/medium",
            delete(cdroms::eject_medium),
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
