//! `GET /events`: the journal as server-sent events.
//!
//! The event's number is its `id`, so a client that lost its connection goes on where it was: browsers and most libraries send it back as
//! `Last-Event-ID` by themselves.

use std::convert::Infallible;
use std::num::ParseIntError;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde::Deserialize;

use super::routes::Shared;
use crate::journal::Delivery;
use crate::problem::{Code, NotServed, Problem};

/// Where to begin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    after: Option<String>,
}

/// Follow what happens
///
/// A stream of server-sent events. The `event` is the type, or `gap` where events were lost, because the process keeps only the
/// last 512; the `data` is an `Event`, or a `Gap`; the `id` is the event's number. Comments show that the
/// connection lives. The stream ends when the process does.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    operation_id = "follow_events",
    tag = "events",
    params(
        ("after" = Option<u64>, Query, description = "Begin after the event with this number; 0 begins with the oldest that is kept. Without it and `Last-Event-ID`, begin with the next event that happens."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Like `after`, and stronger: the number of the last event that was received."),
    ),
    responses(
        (status = 200, description = "Events as they happen.", body = String, content_type = "text/event-stream"),
        (status = 400, description = "A number is none.", body = Problem, content_type = "application/problem+json"),
        NotServed,
    )
)]
pub(crate) async fn follow(
    State(shared): State<Shared>,
    query: Result<Query<Begin>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    let Query(begin) = query.map_err(|_| {
        Problem::new(
            Code::InvalidParameter,
            "the only parameter here is after, the number of an event",
        )
    })?;
    // A client that reconnects repeats the URL it was given; the header is newer.
    let after = match headers.get("last-event-id") {
        Some(value) => Some(number(
            "the header Last-Event-ID",
            value.to_str().unwrap_or_default(),
        )?),
        None => begin
            .after
            .map(|text| number("the parameter after", &text))
            .transpose()?,
    };
    let place = Arc::clone(&shared.followers)
        .try_acquire_owned()
        .map_err(|_| {
            let most = shared.limits.followers;
            let detail = format!("{most} clients follow the events, more cannot; try again later");
            Problem::new(Code::TooManyConnections, detail)
        })?;
    let follower = shared.service.journal().follow(after);
    let events = stream::unfold((follower, place), |(mut follower, place)| async move {
        let event = in_words(&follower.next().await?);
        Some((Ok::<_, Infallible>(event), (follower, place)))
    });
    let keep_alive = KeepAlive::new().interval(shared.limits.keep_alive);
    Ok(Sse::new(events).keep_alive(keep_alive))
}

fn number(what: &str, text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_: ParseIntError| {
        let detail = format!("{what} must be the number of an event, from 0 up");
        Problem::new(Code::InvalidParameter, detail)
    })
}

fn in_words(delivery: &Delivery) -> Event {
    let (seq, name, data) = match delivery {
        Delivery::Event(event) => (
            event.seq,
            event.kind.name(),
            serde_json::to_string(&**event),
        ),
        Delivery::Gap { seq, gap } => (*seq, "gap", serde_json::to_string(gap)),
    };
    // Plain data: it always becomes JSON, which has no new lines in it.
    let data = data.unwrap_or_default();
    Event::default().id(seq.to_string()).event(name).data(data)
}
