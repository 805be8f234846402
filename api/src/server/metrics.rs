//! `GET /metrics`: the service's metrics, and those of what it has in common with every other: jobs and events.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::routes::Shared;
use crate::jobs::Jobs;
use crate::journal::Journal;
use crate::metrics::{CONTENT_TYPE, Exposition};
use crate::problem::NotServed;

/// Metrics for Prometheus
///
/// In its text format, version 0.0.4; also at `/metrics`. In every state of the VM and without one. Counters are the VM's: they go on
/// through its resets. Those of a device go with it.
#[utoipa::path(
    get,
    path = "/api/v1/metrics",
    tag = "metrics",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "text/plain"),
        NotServed,
    )
)]
pub(crate) async fn read_metrics(State(shared): State<Shared>) -> Response {
    let mut exposition = shared.service.metrics().await;
    describe(
        &mut exposition,
        shared.service.jobs(),
        shared.service.journal(),
    );
    let media_type = [(header::CONTENT_TYPE, CONTENT_TYPE)];
    (media_type, exposition.into_text()).into_response()
}

fn describe(exposition: &mut Exposition, jobs: &Jobs, journal: &Journal) {
    let tally = jobs.tally();
    exposition
        .gauge("paddock_jobs_running", "Jobs that run.")
        .sample(&[], tally.running);
    exposition
        .counter("paddock_jobs_ended_total", "Jobs that ended, by how.")
        .sample(&[("state", &"succeeded")], tally.succeeded)
        .sample(&[("state", &"failed")], tally.failed)
        .sample(&[("state", &"cancelled")], tally.cancelled);
    exposition
        .counter("paddock_events_total", "Events of the process.")
        .sample(&[], journal.last());
}
