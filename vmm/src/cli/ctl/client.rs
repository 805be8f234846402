//! A client of the API: one connection a call, HTTP/1.1 on a unix socket.
//!
//! Runs on the control plane's runtime. The server is not trusted: it may be another program, or not answer at all. So every answer has
//! a deadline and a size, and what is no answer of the API is an error that says so.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::patient::Patient;
use super::problem::Problem;

/// An answer has at most this many bytes. The largest real ones are the OpenAPI document and a full list of jobs.
const MAX_ANSWER: usize = 16 << 20;
/// How long a server may take to accept, if its queue is full.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// What needs no escape in a part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why there is no answer, or none that can be understood.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection to be had.
    #[error("{}: {}", .socket.display(), why_no_connection(.source))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error(
        "{}: no answer within {}; --timeout gives it longer",
        .socket.display(),
        humantime::format_duration(*.deadline)
    )]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long it had.
        deadline: Duration,
    },
    /// The connection ended first.
    #[error("{}: the connection ended before the answer was complete", .socket.display())]
    Cut {
        /// The socket.
        socket: PathBuf,
        /// How.
        source: hyper::Error,
    },
    /// What came is no answer of the API.
    #[error("{}: what listens there does not answer as Paddock's API does: {detail}", .socket.display())]
    Nonsense {
        /// The socket.
        socket: PathBuf,
        /// What it did.
        detail: String,
    },
}

/// [`ClientError::Connect`] says why in words that help, and then what the system said.
fn why_no_connection(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            "there is no API here (is the process running, and is this its socket?)"
        }
        ErrorKind::ConnectionRefused => {
            "nobody listens there any more (the process that made the socket has ended)"
        }
        ErrorKind::PermissionDenied => {
            "the API is for the user of its process and root (try as that user, or with sudo)"
        }
        ErrorKind::WouldBlock => "the process accepts no connection (it is stuck or overrun)",
        _ => "connecting to the API",
    }
}

/// A call of the API.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    target: String,
    body: Option<String>,
}

impl Call {
    /// A call of a path below `/api/v1`, made of these parts, which may have any characters.
    pub fn new(method: Method, parts: &[&str]) -> Self {
        let mut target = "/api/v1".to_owned();
        for part in parts {
            target.push('/');
            target.extend(utf8_percent_encode(part, PART));
        }
        Self {
            method,
            target,
            body: None,
        }
    }

    /// `GET`
    pub fn get(parts: &[&str]) -> Self {
        Self::new(Method::GET, parts)
    }

    /// With a parameter that is a number.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.target.push_str(&format!("?{name}={value}"));
        self
    }

    /// With a JSON body.
    pub fn body(mut self, json: String) -> Self {
        self.body = Some(json);
        self
    }
}

/// An answer that says that it was done: its body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The body as it came; empty if there is none.
    pub text: String,
    socket: PathBuf,
}

impl Answer {
    /// What the body means.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.text).map_err(|error| ClientError::Nonsense {
            socket: self.socket.clone(),
            detail: format!("its answer is not understood: {error}"),
        })
    }
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no answer, or none that can be understood.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It was refused.
    #[error("{0}")]
    Refused(Box<Problem>),
}

/// The API of a process.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

impl Client {
    /// The API at `socket`, each answer within `deadline`. Nothing is done yet.
    pub fn new(socket: PathBuf, deadline: Duration) -> Self {
        Self { socket, deadline }
    }

    /// Where it is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes a call and waits for all of its answer.
    ///
    /// # Errors
    /// When it is refused, or there is no such answer in time.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let answer = self.in_time(async {
            let response = self.send(call).await?;
            let status = response.status();
            Ok((status, self.read(response.into_body()).await?))
        });
        let (status, text) = answer.await?;
        if status.is_success() {
            let socket = self.socket.clone();
            return Ok(Answer { text, socket });
        }
        Err(self.refusal(status, &text))
    }

    /// Makes a call whose answer goes on for as long as the server likes. Only its beginning has the deadline.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn stream(&self, call: Call) -> Result<Incoming, CallError> {
        let response = self.in_time(self.send(call)).await?;
        let status = response.status();
        let media_type = response.headers().get(CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok());
        if status.is_success() {
            let streamed = media_type.is_some_and(|name| name.starts_with("text/event-stream"));
            if !streamed {
                return Err(self.nonsense("it has no stream of events").into());
            }
            return Ok(response.into_body());
        }
        let text = self.in_time(self.read(response.into_body())).await?;
        Err(self.refusal(status, &text))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.deadline, answer)
            .await
            .unwrap_or_else(|_| Err(self.silent(self.deadline)))
    }

    async fn send(&self, call: Call) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(Patient::new(stream)))
            .await
            .map_err(|error| self.broken(error))?;
        // Its end is that of the answer, which says why.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.target)
            .header(HOST, "paddock");
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(call.body.unwrap_or_default()));
        let request = request
            .body(body)
            .map_err(|error| self.nonsense(&error.to_string()))?;
        let response = sender.send_request(request).await;
        response.map_err(|error| self.broken(error))
    }

    /// A full queue is no error at once: it is what a busy server has.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let end = tokio::time::Instant::now() + CONNECT_DEADLINE.min(self.deadline);
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && tokio::time::Instant::now() + CONNECT_AGAIN < end =>
                {
                    tokio::time::sleep(CONNECT_AGAIN).await;
                }
                Err(source) => {
                    let socket = self.socket.clone();
                    return Err(ClientError::Connect { socket, source });
                }
            }
        }
    }

    async fn read(&self, body: Incoming) -> Result<String, ClientError> {
        let limited = Limited::new(body, MAX_ANSWER).collect().await;
        let bytes = limited.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => self.broken(*error),
            Err(error) if error.is::<LengthLimitError>() => {
                self.nonsense("its answer is larger than 16 MiB")
            }
            Err(error) => self.nonsense(&error.to_string()),
        })?;
        String::from_utf8(bytes.to_bytes().into())
            .map_err(|_| self.nonsense("its answer is not UTF-8 text"))
    }

    fn refusal(&self, status: StatusCode, text: &str) -> CallError {
        let refused = status.is_client_error() || status.is_server_error();
        match Problem::read(text) {
            Some(problem) if refused => CallError::Refused(Box::new(problem)),
            _ => {
                let detail = format!("it answers with HTTP status {status}, and gives no reason");
                self.nonsense(&detail).into()
            }
        }
    }

    /// It does what the API does not.
    pub fn nonsense(&self, detail: &str) -> ClientError {
        ClientError::Nonsense {
            socket: self.socket.clone(),
            detail: detail.to_owned(),
        }
    }

    /// Nothing came for so long.
    pub fn silent(&self, deadline: Duration) -> ClientError {
        ClientError::Silent {
            socket: self.socket.clone(),
            deadline,
        }
    }

    /// What became of a connection.
    pub fn broken(&self, error: hyper::Error) -> ClientError {
        if error.is_parse() || error.is_parse_too_large() {
            return self.nonsense(&error.to_string());
        }
        ClientError::Cut {
            socket: self.socket.clone(),
            source: error,
        }
    }
}
