//! Server-sent events, taken apart (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::client::{Call, CallError, Client, ClientError};

/// One event has at most this many bytes.
const MAX_EVENT: usize = 1 << 20;
/// The server shows that it lives every ten seconds.
const LIFE_SIGN: Duration = Duration::from_secs(35);

/// An event as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub id: Option<u64>,
    /// Its type.
    pub name: String,
    /// What it says.
    pub data: String,
}

/// A stream of them.
#[derive(Debug)]
pub struct Messages {
    client: Client,
    body: Incoming,
    parser: Parser,
}

impl Messages {
    /// Follows what a call answers.
    ///
    /// # Errors
    /// When it is refused, or answers something else.
    pub async fn follow(client: &Client, call: Call) -> Result<Self, CallError> {
        Ok(Self {
            body: client.stream(call).await?,
            client: client.clone(),
            parser: Parser::default(),
        })
    }

    /// The next one; `None` when the server ends the stream.
    ///
    /// # Errors
    /// When the connection ends, nothing is heard for long, or what comes is no such stream.
    pub async fn next(&mut self) -> Result<Option<Message>, ClientError> {
        loop {
            if let Some(message) = self.parser.next() {
                return Ok(Some(message));
            }
            if self.parser.buffer.len() > MAX_EVENT {
                return Err(self.client.nonsense("an event is larger than 1 MiB"));
            }
            let frame = tokio::time::timeout(LIFE_SIGN, self.body.frame());
            let Ok(frame) = frame.await else {
                return Err(self.client.silent(LIFE_SIGN));
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.parser.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(self.client.broken(error)),
            }
        }
    }
}

/// Takes messages out of bytes.
#[derive(Debug, Default)]
struct Parser {
    /// What has come and is not a line yet.
    buffer: Vec<u8>,
    /// The lines of a message that is not complete.
    message: Message,
    /// Whether it has data; without it is none, but a sign of life.
    has_data: bool,
}

impl Parser {
    fn next(&mut self) -> Option<Message> {
        let mut begin = 0;
        let mut complete = None;
        while let Some(length) = self.buffer[begin..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[begin..begin + length]).into_owned();
            begin += length + 1;
            complete = self.line(line.strip_suffix('\r').unwrap_or(&line));
            if complete.is_some() || self.message.data.len() > MAX_EVENT {
                break;
            }
        }
        self.buffer.drain(..begin);
        complete
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = value.parse().ok(),
            "event" => value.clone_into(&mut self.message.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // A comment is a line without a field's name.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = ": alive\n\nid: 1\nevent: state\ndata: {\"seq\": 1}\n\nevent:gap\r\nid:9\r\ndata:a\r\ndata: b\r\nretry: 3\r\n\r\n:\n\n\
                          id: x\ndata\n\nid: 4\n\nevent: cut\ndata: off\n";

    fn messages(chunks: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for chunk in chunks {
            parser.buffer.extend_from_slice(chunk);
            found.extend(std::iter::from_fn(|| parser.next()));
        }
        found
    }

    #[test]
    fn messages_come_out_however_they_are_cut() {
        let message = |id, name: &str, data: &str| Message {
            id,
            name: name.to_owned(),
            data: data.to_owned(),
        };
        let expected = [
            message(Some(1), "state", "{\"seq\": 1}"),
            message(Some(9), "gap", "a\nb"),
            message(None, "", ""),
        ];
        let bytes = STREAM.as_bytes();
        assert_eq!(messages(&[bytes]), expected);
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(messages(&[a, b]), expected, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_stream_is_read(bytes: Vec<u8>) {
            messages(&[&bytes]);
        }
    }
}
