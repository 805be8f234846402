//! `GET /events`: the journal as server-sent events.
//!
//! The event's number is its `id`, so a client that lost its connection goes on where it was: browsers and most libraries send it back as
//! `Last-Event-ID` by themselves.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde::Deserialize;
use utoipa::ToSchema;

use super::routes::Shared;
use crate::journal::Delivery;
use crate::problem::{Code, NotServed, Problem};

/// Where to begin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    after: Option<String>,
}

/// One server-sent event, as the standard names its fields; the stream is any number of them.
#[derive(ToSchema)]
#[schema(as = EventMessage)]
#[expect(dead_code, reason = "utoipa reads it")]
pub(crate) struct Message {
    /// The event's number, to go on after.
    #[schema(pattern = "^[0-9]+$")]
    id: String,
    /// The event's `type`, or `gap`.
    event: String,
    /// An `Event`, or a `Gap`, as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
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
        (status = 200, description = "Events as they happen.", body = Message, content_type = "text/event-stream"),
        (status = 400, description = "A number is none.", body = Problem),
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
    let after = begin
        .after
        .map(|text| number("the parameter after", &text))
        .transpose()?;
    let last = headers
        .get("last-event-id")
        .map(|value| value.to_str().unwrap_or_default())
        .map(|text| number("the header Last-Event-ID", text))
        .transpose()?;
    // A client that reconnects repeats the URL it was given; the header is newer.
    let after = last.or(after);
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
    // The document calls it an int64, which is what a client in any language can hold.
    let number = text.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok());
    number.ok_or_else(|| {
        let detail = format!("{what} must be the number of an event, 0 to {}", i64::MAX);
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
