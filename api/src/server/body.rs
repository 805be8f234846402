//! The body of a request, as far as it is the same whatever is asked for: it comes in time, is not too large, and is called JSON.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use super::{Limits, MAX_BODY};
use crate::problem::{Code, Problem};

/// So much of a body that is too large is read before the refusal.
const MAX_DRAINED: usize = 16 << 20;

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
