//! The line protocol between host and probe: one JSON object a line, in both directions.
//!
//! ```text
//! host  → guest   {"id":7,"op":"exec","command":{"shell":"uname -r"}}
//! guest → host    {"id":7,"ok":{"status":{"exited":0},"stdout":"6.1.0\n",...}}
//!                 {"id":7,"error":"what went wrong, and what to do"}
//!                 {"event":"heartbeat","sequence":12,...}
//! ```
//!
//! Requests may overlap: each is answered once, under its own id, in the order in which they finish. `error` means the
//! probe could not do what was asked; what a test is *about*, such as an I/O error of a disk, is part of a reply.
//! Unknown operations, unknown fields and lines that are not JSON are answered with an error and change nothing.

mod bytes;
mod events;
mod ops;
mod replies;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bytes::Bytes;
pub use events::{Event, Heartbeat, Output, OutputStream, PowerButton};
pub use ops::*;
pub use replies::*;

/// Protocol version, raised when an old peer would misunderstand a new one.
pub const VERSION: u32 = 1;

/// Longest line either side accepts, in bytes. Larger payloads belong on a disk or a NIC.
pub const MAX_LINE: usize = 16 << 20;

/// An operation's parameters, tied to the reply it is answered with.
pub trait Call: Into<Op> {
    /// What `ok` holds.
    type Reply: DeserializeOwned + Serialize;
}

/// A request as parsed by the probe.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the host, echoed in the reply.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// A line that is no request, with its id where one could be read.
#[derive(Debug)]
pub struct BadRequest {
    /// The id to answer under; 0 where the line had none.
    pub id: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl Request {
    /// Parses one line.
    ///
    /// # Errors
    /// [`BadRequest`] for anything that is not exactly a known operation with its fields and an unsigned `id`.
    pub fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let bad = |id, reason: String| BadRequest { id, reason };
        let mut object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(bad(0, "not a JSON object".to_owned())),
            Err(error) => return Err(bad(0, format!("not JSON: {error}"))),
        };
        let Some(id) = object.remove("id").as_ref().and_then(Value::as_u64) else {
            return Err(bad(
                0,
                "field `id` is missing or not an unsigned integer".to_owned(),
            ));
        };
        match serde_json::from_value(Value::Object(object)) {
            Ok(op) => Ok(Self { id, op }),
            Err(error) => Err(bad(id, error.to_string())),
        }
    }

    /// The line for this request, without the line feed.
    ///
    /// # Errors
    /// Where the operation cannot be expressed in JSON, which no operation of this crate does.
    pub fn to_line(id: u64, op: &Op) -> serde_json::Result<String> {
        let mut value = serde_json::to_value(op)?;
        if let Value::Object(object) = &mut value {
            object.insert("id".to_owned(), Value::from(id));
        }
        serde_json::to_string(&value)
    }
}

/// A line from the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromGuest {
    /// The answer to a request.
    Reply(Reply),
    /// Something the guest says unasked.
    Event(Event),
}

/// The answer to one request: exactly one of `ok` and `error` is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// The operation's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Value>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_line() {
        let op = Op::from(Exec::shell("echo hi"));
        let line = Request::to_line(7, &op).unwrap();
        let request = Request::parse(line.as_bytes()).unwrap();
        assert_eq!(request.id, 7);
        assert_eq!(request.op, op);
        assert!(line.contains(r#""op":"exec""#), "{line}");
    }

    #[test]
    fn optional_fields_may_be_left_out() {
        let line =
            br#"{"id":1,"op":"blocks.write","area":{"path":"/dev/vda","length":4096,"seed":1}}"#;
        let Op::BlocksWrite(write) = Request::parse(line).unwrap().op else {
            panic!("another operation")
        };
        assert_eq!((write.area.block_size, write.area.generation), (4096, 1));
    }

    #[test]
    fn bad_lines_are_named() {
        for (line, id, reason) in [
            (&b"hello"[..], 0, "not JSON"),
            (b"[1]", 0, "not a JSON object"),
            (br#"{"op":"hello"}"#, 0, "`id`"),
            (br#"{"id":-1,"op":"hello"}"#, 0, "`id`"),
            (br#"{"id":3}"#, 3, "`op`"),
            (
                br#"{"id":4,"op":"teleport"}"#,
                4,
                "unknown variant `teleport`",
            ),
            (
                br#"{"id":5,"op":"random","bytes":4,"extra":1}"#,
                5,
                "unknown field `extra`",
            ),
            (
                br#"{"id":6,"op":"random","bytes":"four"}"#,
                6,
                "invalid type",
            ),
        ] {
            let bad = Request::parse(line).unwrap_err();
            assert_eq!(bad.id, id, "{bad:?}");
            assert!(bad.reason.contains(reason), "{bad:?}");
        }
    }

    #[test]
    fn events_and_replies_are_told_apart() {
        let event = br#"{"event":"power-button","device":"/dev/input/event0","key":116}"#;
        assert!(matches!(
            serde_json::from_slice(event).unwrap(),
            FromGuest::Event(Event::PowerButton(_))
        ));
        let reply = br#"{"id":1,"ok":{}}"#;
        assert!(matches!(
            serde_json::from_slice(reply).unwrap(),
            FromGuest::Reply(_)
        ));
        assert!(serde_json::from_slice::<FromGuest>(br#"{"neither":1}"#).is_err());
    }
}
