//! The events as they happen, over connections that may be lost.
//!
//! A stream that the server ends is the end of the process, and no connection is made after it: one could start the process anew. One that is
//! cut off is made again; where that was a crash, the service manager restarts the process as well.

use std::time::Duration;

use serde_json::{Value, json};

use super::CtlError;
use super::args::EventsArgs;
use super::client::{Call, CallError, ClientError};
use super::render;
use super::session::Session;
use super::stream::{Message, Messages};

/// How often in a row a connection is made again that brings nothing.
const ATTEMPTS: u32 = 5;
/// Before each, times its number.
const PAUSE: Duration = Duration::from_millis(200);

/// `paddock ctl events`
pub async fn follow(session: &Session, args: &EventsArgs) -> Result<(), CtlError> {
    let mut after = args.after;
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut attempts = 0;
    loop {
        let before = left;
        let lost = match follow_once(session, &mut after, &mut left).await {
            Ok(()) => return enough(args.count, left),
            // A reader of this program that holds it up gets it cut off, and a host that was suspended too.
            Err(CtlError::Call(CallError::Client(
                lost @ (ClientError::Cut { .. } | ClientError::Silent { .. }),
            ))) => lost,
            Err(error) => return Err(error),
        };
        attempts = if left < before { 0 } else { attempts + 1 };
        // Without a number there is no place to go on from.
        if attempts >= ATTEMPTS || after.is_none() {
            return Err(lost.into());
        }
        tokio::time::sleep(PAUSE * attempts).await;
    }
}

/// Whether what was to come has come before the end of the stream, which is that of the process.
fn enough(wanted: Option<u64>, left: u64) -> Result<(), CtlError> {
    match wanted {
        Some(wanted) if left > 0 => {
            let came = wanted.saturating_sub(left);
            let told = format!("the process ended after {came} of {wanted} events");
            Err(CtlError::Failed(told))
        }
        _ => Ok(()),
    }
}

/// Prints events until there are none left to print, or the stream ends.
async fn follow_once(
    session: &Session,
    after: &mut Option<u64>,
    left: &mut u64,
) -> Result<(), CtlError> {
    let mut call = Call::get(&["events"]);
    if let Some(after) = *after {
        call = call.with("after", after);
    }
    let mut messages = Messages::follow(&session.client, call).await?;
    while *left > 0 {
        let Some(message) = messages.next().await? else {
            return Ok(());
        };
        print(session, &message)?;
        *after = message.id.or(*after);
        *left -= 1;
    }
    Ok(())
}

fn print(session: &Session, message: &Message) -> Result<(), CtlError> {
    let mut event: Value = serde_json::from_str(&message.data).map_err(|_| {
        let detail = "an event's data is not JSON";
        CtlError::from(session.client.nonsense(detail))
    })?;
    let mut line = message.data.replace(['\r', '\n'], " ");
    if message.name == "gap" {
        let Some(gap) = event.as_object_mut() else {
            return Err(session.client.nonsense("a gap's data is no object").into());
        };
        // It is no event, so its data has neither.
        gap.insert("seq".to_owned(), json!(message.id));
        gap.insert("type".to_owned(), json!("gap"));
        line = event.to_string();
    }
    if session.json() {
        return session.print_document(&line);
    }
    session.print_page(|page| render::event(page, &event))
}
