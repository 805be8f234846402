//! A server that answers what a test says, right or wrong.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use clap::Parser;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::args::{Cli, Command};
use crate::cli::ctl::output::Output;
use crate::cli::ctl::{CtlError, execute, told};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub head: String,
    pub body: Value,
}

impl Request {
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    fn read(stream: &UnixStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let mut words = head.split(' ');
        Some(Self {
            method: words.next()?.to_owned(),
            target: words.next()?.to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            head,
        })
    }
}

/// An answer with a JSON body.
pub fn answer(status: u16, body: &Value) -> Vec<u8> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let length = body.len();
    format!("HTTP/1.1 {status} Word\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// Metrics.
pub fn text(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// The beginning of a stream of events, and these messages; its end is missing.
pub fn stream(messages: &str) -> Vec<u8> {
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    [head.as_bytes(), &chunk(messages)].concat()
}

/// More messages of such a stream.
pub fn chunk(messages: &str) -> Vec<u8> {
    format!("{:x}\r\n{messages}\r\n", messages.len()).into_bytes()
}

#[derive(Debug)]
pub struct Fake {
    directory: TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    /// Answers each request with what `respond` gives for it and its number, from 0 up, and ends the connection.
    pub fn start(respond: impl Fn(usize, &Request) -> Vec<u8> + Send + 'static) -> Self {
        Self::with(move |number, request, mut stream| {
            // Not every client reads to the end.
            let _ = stream.write_all(&respond(number, request));
        })
    }

    /// Does with each connection what `serve` does.
    pub fn with(serve: impl Fn(usize, &Request, UnixStream) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let kept = Arc::clone(&requests);
        // Ends with the tests' process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let Some(request) = Request::read(&stream) else {
                    continue;
                };
                let number = kept.lock().len();
                kept.lock().push(request.clone());
                serve(number, &request, stream);
            }
        });
        Self {
            directory,
            requests,
        }
    }

    /// Answers these one after the other, and the last one for ever.
    pub fn script(answers: Vec<Vec<u8>>) -> Self {
        Self::start(move |number, _| answers[number.min(answers.len() - 1)].clone())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api.sock")
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    /// Runs `paddock ctl` with these words.
    pub fn ctl(&self, words: &str) -> Done {
        self.ctl_to(words, |output| output)
    }

    /// Runs it as on a terminal.
    pub fn ctl_on_terminal(&self, words: &str) -> Done {
        self.ctl_to(words, Output::on_terminal)
    }

    fn ctl_to(&self, words: &str, change: impl FnOnce(Output) -> Output) -> Done {
        let socket = self.socket();
        let words = words.split_whitespace().collect::<Vec<_>>();
        let words = [
            &["--api-socket", socket.to_str().unwrap()],
            words.as_slice(),
        ]
        .concat();
        ctl_to(&words, change)
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub result: Result<(), CtlError>,
    pub printed: String,
}

impl Done {
    /// What it printed, if it was done.
    #[track_caller]
    pub fn well(self) -> String {
        match self.result {
            Ok(()) => self.printed,
            Err(error) => panic!("{}", told(&error)),
        }
    }

    /// Why it was not done.
    #[track_caller]
    pub fn error(&self) -> String {
        told(self.result.as_ref().unwrap_err())
    }
}

/// Runs `paddock ctl` with these words.
pub fn ctl(words: &[&str]) -> Done {
    ctl_to(words, |output| output)
}

/// Runs it with another output.
fn ctl_to(words: &[&str], change: impl FnOnce(Output) -> Output) -> Done {
    let words = [&["paddock", "ctl"], words].concat();
    let Command::Ctl(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not ctl");
    };
    let printed = Rc::new(RefCell::new(Vec::new()));
    let output = Output::to(Rc::clone(&printed) as Rc<RefCell<dyn Write>>, args.json);
    let result = execute(&args, change(output));
    let printed = String::from_utf8(printed.take()).unwrap();
    Done { result, printed }
}
