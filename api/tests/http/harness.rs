//! A server on a thread of its own, as in a process, and plain blocking clients.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use paddock_api::server::{ApiSocket, Limits, Server};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::document::Document;
use super::fake::Fake;

/// Nothing here takes as long, on the slowest machine.
pub const LONG: Duration = Duration::from_secs(20);

/// The header of a request with a body.
pub const JSON: &str = "Content-Type: application/json\r\n";

/// A VM spec that is right.
pub const SPEC: &str = r#"{"name": "web", "boot": {"kernel": "/boot/vmlinuz"}}"#;

#[derive(Debug)]
pub struct Harness {
    pub fake: Fake,
    pub document: Document,
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Harness {
    pub fn start() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&directory.path().join("api.sock")).unwrap();
        let fake = Fake::default();
        let service = Arc::new(fake.clone());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = Server::start(socket, service, limits).unwrap();
                let _ = stopped.await;
                server.shut_down(LONG).await;
            });
        });
        Self {
            fake,
            document: Document::load(),
            directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    pub fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.path()).unwrap())
    }

    /// One request on a connection of its own; the answer is in the document.
    #[track_caller]
    pub fn request(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let mut client = self.connect();
        client.send(method, target, headers, body);
        let answer = client.answer();
        self.document.check(method, target, &answer);
        answer
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target, "", b"")
    }

    /// A request with a body of JSON.
    #[track_caller]
    pub fn send(&self, method: &str, target: &str, body: &str) -> Answer {
        self.request(method, target, JSON, body.as_bytes())
    }

    /// Each of these bodies has one thing wrong with it, which is told with this status, at this place and by this code.
    #[track_caller]
    pub fn refuses(&self, method: &str, target: &str, cases: &[(&str, u16, &str, &str)]) {
        for &(body, status, pointer, code) in cases {
            let answer = self.send(method, target, body);
            let errors = [(pointer.to_owned(), code.to_owned())];
            assert_eq!(
                (answer.status, &*answer.errors()),
                (status, &errors[..]),
                "{body}"
            );
        }
    }

    #[track_caller]
    pub fn put(&self, spec: &str) -> Answer {
        self.send("PUT", "/api/v1/vm", spec)
    }

    #[track_caller]
    pub fn post(&self, action: &str) -> Answer {
        let target = format!("/api/v1/vm/actions/{action}");
        self.request("POST", &target, "", b"")
    }

    #[track_caller]
    pub fn delete(&self) -> Answer {
        self.request("DELETE", "/api/v1/vm", "", b"")
    }

    /// Tells the server to end.
    pub fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits for the server's end.
    pub fn join(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            // A test that fails has said why already.
            let _ = thread.join();
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    pub stream: BufReader<UnixStream>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key == name).map(|(_, v)| &**v)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The status, and the code of the problem.
    #[track_caller]
    pub fn refusal(&self) -> (u16, String) {
        let code = self.json()["code"].as_str().unwrap().to_owned();
        (self.status, code)
    }

    /// What is told to people.
    #[track_caller]
    pub fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_owned()
    }

    /// The places and codes of what is wrong with the body.
    #[track_caller]
    pub fn errors(&self) -> Vec<(String, String)> {
        let problem = self.json();
        let errors = problem["errors"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        errors
            .map(|error| (text(&error["pointer"]), text(&error["code"])))
            .collect()
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends bytes; a server that has had enough may be gone.
    pub fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).unwrap();
    }

    /// Sends a request. `headers` are lines.
    pub fn send(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: paddock\r\n{headers}");
        if !body.is_empty() {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        self.write(head.as_bytes());
        self.write(body);
    }

    /// The next line of what comes, without its end; `None` at the end of the connection.
    #[track_caller]
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line came: {error}"),
        }
    }

    /// The head of an answer.
    #[track_caller]
    pub fn head(&mut self) -> Answer {
        let first = self.line().unwrap();
        let mut words = first.split(' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{first}");
        let status = words.next().unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().unwrap();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Answer {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// An answer with its body, which has a length.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer.header("content-length").map(|v| v.parse().unwrap());
        answer.body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// Waits for the server to end the connection, and gives what came before.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // What was sent in vain is a reset.
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                panic!("the connection does not end: {error}")
            }
            _ => rest,
        }
    }
}
