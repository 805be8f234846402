//! A small client of paddock's HTTP API, of its own making: what it takes for granted is what HTTP says.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::metrics::Metrics;

/// Events shown of those that came instead of the one that was waited for.
const SHOWN: usize = 10;

/// How long any answer may take.
const DEADLINE: Duration = Duration::from_secs(90);

/// How long any event that is waited for may take: what it tells of may be the start of firmware, or a rebuild.
const EVENT_DEADLINE: Duration = Duration::from_secs(240);

/// The API at a socket.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body; null if there is none.
    pub body: Value,
}

impl Answer {
    /// The code of a problem, or nothing.
    #[must_use]
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Api {
    /// The API at `socket`, as soon as it is there.
    ///
    /// # Panics
    /// When it is not there in time.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let this = Self {
            socket: socket.to_owned(),
        };
        let end = Instant::now() + DEADLINE;
        while let Err(error) = UnixStream::connect(socket) {
            assert!(
                Instant::now() < end,
                "{}: no API: {error}",
                socket.display()
            );
            sleep(Duration::from_millis(20));
        }
        this
    }

    /// Where it is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection.
    ///
    /// # Panics
    /// When there is none to be had.
    #[must_use]
    pub fn connect(&self) -> UnixStream {
        let connect = || {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream)
        };
        connect().unwrap_or_else(|e: std::io::Error| panic!("{}: {e}", self.socket.display()))
    }

    /// Sends a request below `/api/v1` and waits for the answer.
    ///
    /// # Panics
    /// When none comes, or none that can be understood.
    #[must_use]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let answer = self.exchange(&format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: paddock\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        parse(&answer).unwrap_or_else(|| panic!("{method} {path}: the answer {answer:?}"))
    }

    /// Sends a request after which the connection ends, and gives what comes.
    fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect();
        let mut answer = String::new();
        let result = stream
            .write_all(request.as_bytes())
            .and_then(|()| stream.read_to_string(&mut answer));
        // A server that has had enough may reset the connection behind its answer.
        assert!(
            result.is_ok() || !answer.is_empty(),
            "{request:?}: {result:?}"
        );
        answer
    }

    /// The metrics, from where Prometheus looks for them.
    ///
    /// # Panics
    /// When there are none, or they are not in its format.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let answer =
            self.exchange("GET /metrics HTTP/1.1\r\nHost: paddock\r\nConnection: close\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let media_type = "content-type: text/plain; version=0.0.4; charset=utf-8";
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains(media_type),
            "{answer}"
        );
        Metrics::parse(body)
    }

    /// `GET`
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    /// Creates a VM.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn create(&self, spec: &Value) -> Answer {
        self.request("PUT", "/vm", Some(spec))
    }

    /// Deletes the VM.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn delete(&self) -> Answer {
        self.request("DELETE", "/vm", None)
    }

    /// Acts on the VM.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn act(&self, action: &str) -> Answer {
        self.request("POST", &format!("/vm/actions/{action}"), None)
    }

    /// The VM's state.
    ///
    /// # Panics
    /// When there is no VM.
    #[must_use]
    pub fn state(&self) -> String {
        let answer = self.get("/vm");
        let state = answer.body["state"].as_str();
        state.map_or_else(|| panic!("no VM: {answer:?}"), ToOwned::to_owned)
    }

    /// Follows the events after number `after`.
    ///
    /// # Panics
    /// When that is refused.
    #[must_use]
    pub fn events(&self, after: u64) -> Events {
        let mut stream = BufReader::new(self.connect());
        let text = format!("GET /api/v1/events?after={after} HTTP/1.1\r\nHost: paddock\r\n\r\n");
        let sent = stream.get_mut().write_all(text.as_bytes());
        let mut line = String::new();
        let result = sent.and_then(|()| stream.read_line(&mut line));
        assert!(line.starts_with("HTTP/1.1 200 "), "{line:?}: {result:?}");
        while line != "\r\n" {
            line.clear();
            let result = stream.read_line(&mut line);
            assert!(matches!(result, Ok(1..)), "the answer's head: {result:?}");
        }
        Events {
            stream,
            text: String::new(),
        }
    }
}

/// An answer with a body of known length, after which the connection ends.
fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(body).ok()?
    };
    Some(Answer { status, body })
}

/// The events as they come.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<UnixStream>,
    /// What has come and not been taken.
    text: String,
}

/// The data of each event. It panics when neither an event nor the end of the stream comes in time.
impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let end = Instant::now() + EVENT_DEADLINE;
        loop {
            let Some((event, rest)) = self.text.split_once("\n\n") else {
                // Signs of life come, too.
                assert!(Instant::now() < end, "no event came in time");
                if !self.read_chunk() {
                    return None;
                }
                continue;
            };
            let data = event.lines().find_map(|line| line.strip_prefix("data: "));
            let data = data.map(serde_json::from_str);
            let whole = event.to_owned();
            self.text = rest.to_owned();
            match data {
                Some(Ok(value)) => return Some(value),
                Some(Err(error)) => panic!("{whole:?}: {error}"),
                // A sign of life.
                None => {}
            }
        }
    }
}

impl Events {
    /// Waits for an event with this `type`, and gives it. A job that gets on is waited for longer.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn wait_for(&mut self, kind: &str) -> Value {
        let mut end = Instant::now() + EVENT_DEADLINE;
        let (mut before, mut most) = (Vec::new(), None);
        while Instant::now() < end {
            let Some(event) = self.next() else {
                break;
            };
            if event["type"] == kind {
                return event;
            }
            let done = event["job"]["progress"]["done"].as_u64();
            if done > most {
                most = done;
                end = Instant::now() + EVENT_DEADLINE;
            }
            before.push(event);
        }
        let last = &before[before.len().saturating_sub(SHOWN)..];
        panic!(
            "no event {kind:?} came, but {}, at last {last:?}",
            before.len()
        );
    }

    /// Waits until the VM has this state, which is not `ended`.
    ///
    /// # Panics
    /// When that does not come in time.
    pub fn wait_for_state(&mut self, state: &str) {
        while self.wait_for("state")["state"] != state {}
    }

    /// Reads a chunk of the stream; `false` at its end.
    fn read_chunk(&mut self) -> bool {
        let mut read = || {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim_end(), 16)
                .map_err(|_| std::io::Error::new(ErrorKind::UnexpectedEof, line))?;
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk)?;
            chunk.truncate(length);
            Ok(chunk)
        };
        let chunk: Vec<u8> =
            read().unwrap_or_else(|e: std::io::Error| panic!("the stream of events: {e}"));
        self.text += &String::from_utf8_lossy(&chunk);
        !chunk.is_empty()
    }
}
