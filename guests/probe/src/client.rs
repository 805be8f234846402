//! The host's end: a typed client over the unix socket on which the VMM offers the guest's port.
//!
//! Every call has a deadline, and a guest that answers nonsense gets an error, never a panic or an endless wait. One
//! thread reads; replies go to whoever waits for them, events to a queue that is bounded, the oldest first to go.
//! A [`Client`] is for one connection: after a reset of the guest it goes on working, after a restart of the VMM or a
//! migration another one is made.

use crate::protocol::{Call, Event, FromGuest, Hello, HelloReply, MAX_LINE, Op, Reply, Request};
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Events kept for a reader who does not come.
const MAX_EVENTS: usize = 10_000;

/// How often a hello is repeated while the guest boots: it may have come before anybody had opened the port.
const HELLO_AGAIN: Duration = Duration::from_millis(500);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be connected to, or not in time.
    #[error("cannot connect to the probe's socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The request could not be written.
    #[error("cannot send `{op}` to the probe")]
    Send {
        /// The operation.
        op: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the probe did not answer `{op}` within {limit:?}")]
    TimedOut {
        /// The operation.
        op: &'static str,
        /// The deadline that passed.
        limit: Duration,
    },
    /// The connection ended first.
    #[error("the connection ended before the probe answered `{op}`: {reason}")]
    Closed {
        /// The operation.
        op: &'static str,
        /// What was seen.
        reason: String,
    },
    /// The probe could not do it.
    #[error("the probe cannot do `{op}`: {message}")]
    Refused {
        /// The operation.
        op: &'static str,
        /// The probe's own words.
        message: String,
    },
    /// The answer is not what this operation is answered with.
    #[error("the probe's answer to `{op}` makes no sense")]
    Nonsense {
        /// The operation.
        op: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// No such event in time.
    #[error("no {what} came within {limit:?}")]
    NoEvent {
        /// What was waited for.
        what: &'static str,
        /// The deadline that passed.
        limit: Duration,
    },
}

/// A connection to a guest's probe.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    socket: UnixStream,
    writing: Mutex<()>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The answers of the calls that run: `None` until they come.
    replies: HashMap<u64, Option<Reply>>,
    events: VecDeque<Event>,
    /// Why nothing will come any more.
    closed: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, for no longer than `limit`.
    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())?;
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn take(&self, message: FromGuest) {
        let mut state = self.lock();
        match message {
            FromGuest::Reply(reply) => {
                // An answer nobody waits for any more is let go.
                if let Some(slot) = state.replies.get_mut(&reply.id) {
                    *slot = Some(reply);
                }
            }
            FromGuest::Event(event) => {
                if state.events.len() == MAX_EVENTS {
                    state.events.pop_front();
                }
                state.events.push_back(event);
            }
        }
        self.changed.notify_all();
    }

    fn read_all(&self, socket: UnixStream) {
        let mut reader = BufReader::new(socket);
        let reason = loop {
            let mut line = Vec::new();
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            match (&mut reader).take(limit).read_until(b'\n', &mut line) {
                Ok(0) => break "end of file".to_owned(),
                Ok(_) if line.last() != Some(&b'\n') => break "a line without an end".to_owned(),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
            match serde_json::from_slice(&line) {
                Ok(message) => self.take(message),
                // A reset may cut a line off: the rest of the connection is still good.
                Err(error) => note_nonsense(&line, &error),
            }
        };
        self.lock().closed = Some(reason);
        self.changed.notify_all();
    }
}

/// Tests read stderr; a library without a logger of its own has no better place.
fn note_nonsense(line: &[u8], error: &serde_json::Error) {
    let start = &line[..line.len().min(200)];
    eprintln!(
        "probe client: not a message ({error}): {}",
        start.escape_ascii()
    );
}

impl Client {
    /// Connects to the socket at `path`, which may take a while to appear, and waits until the probe answers.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::TimedOut`] when that does not happen within `limit`.
    pub fn connect(path: impl AsRef<Path>, limit: Duration) -> Result<(Self, HelloReply), Error> {
        let deadline = Instant::now() + limit;
        let client = Self::open(path, limit)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match client.call(Hello {}, left.min(HELLO_AGAIN)) {
                Ok(hello) => return Ok((client, hello)),
                Err(Error::TimedOut { op, .. }) if left <= HELLO_AGAIN => {
                    return Err(Error::TimedOut { op, limit });
                }
                Err(Error::TimedOut { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects to the socket without waiting for the guest.
    ///
    /// # Errors
    /// [`Error::Connect`] when the socket is not there within `limit`.
    pub fn open(path: impl AsRef<Path>, limit: Duration) -> Result<Self, Error> {
        let (path, deadline) = (path.as_ref(), Instant::now() + limit);
        let connect_error = |source| Error::Connect {
            path: path.to_owned(),
            source,
        };
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Err(source) => return Err(connect_error(source)),
            }
        };
        let reader = socket.try_clone().map_err(connect_error)?;
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        thread::Builder::new()
            .name("probe client".to_owned())
            .spawn(move || mine.read_all(reader))
            .map_err(connect_error)?;
        Ok(Self {
            shared,
            socket,
            writing: Mutex::default(),
            next_id: AtomicU64::new(first_id()),
        })
    }

    /// Has the probe do something and waits for its answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn call<C: Call>(&self, call: C, limit: Duration) -> Result<C::Reply, Error> {
        let deadline = Instant::now() + limit;
        self.send(&call.into(), limit)?
            .wait(deadline.saturating_duration_since(Instant::now()))
    }

    /// Has the probe do something that takes its time; the answer is fetched later.
    ///
    /// # Errors
    /// [`Error::Send`] when the request cannot be written within ten seconds.
    pub fn start<C: Call>(&self, call: C) -> Result<Pending<'_, C::Reply>, Error> {
        self.send(&call.into(), Duration::from_secs(10))
    }

    fn send<R>(&self, op: &Op, limit: Duration) -> Result<Pending<'_, R>, Error> {
        let name = op.name();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line =
            Request::to_line(id, op).map_err(|source| Error::Nonsense { op: name, source })?;
        line.push('\n');
        self.shared.lock().replies.insert(id, None);
        let pending = Pending {
            client: self,
            id,
            op: name,
            reply: PhantomData,
        };
        let one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self
            .socket
            .set_write_timeout(Some(limit.max(Duration::from_millis(1))))
            .and_then(|()| (&self.socket).write_all(line.as_bytes()));
        if written.is_err() {
            // Half a request may have gone out: what follows would be taken for its end.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        drop(one_at_a_time);
        written
            .map(|()| pending)
            .map_err(|source| Error::Send { op: name, source })
    }

    /// Takes the first event in the queue for which `select` gives something, waiting for it if need be. Other events
    /// stay where they are.
    ///
    /// # Errors
    /// [`Error::NoEvent`], which names `what`, when none comes within `limit`.
    pub fn wait_event<T>(
        &self,
        what: &'static str,
        limit: Duration,
        mut select: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, Error> {
        let found = self.shared.wait(limit, |state| {
            let found = state
                .events
                .iter()
                .enumerate()
                .find_map(|(at, event)| Some((at, select(event)?)));
            match found {
                Some((at, value)) => {
                    state.events.remove(at);
                    Some(Some(value))
                }
                None => state.closed.as_ref().map(|_| None),
            }
        });
        found.flatten().ok_or(Error::NoEvent { what, limit })
    }

    /// Takes all events that have come so far.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.shared.lock().events.drain(..).collect()
    }

    /// Waits until the other side closes the connection; whether it did.
    #[must_use]
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.shared
            .wait(limit, |state| state.closed.is_some().then_some(()))
            .is_some()
    }
}

/// Answers to an earlier connection may still be on their way: ids start where that one's do not reach.
fn first_id() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (u64::from(now.subsec_millis()) << 20) | ((now.as_secs() & 0xf_ffff) << 30)
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the reading thread.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A request that has been sent. Dropping it gives up on the answer, not on the work.
#[derive(Debug)]
#[must_use = "the answer says whether it worked"]
pub struct Pending<'a, R> {
    client: &'a Client,
    id: u64,
    op: &'static str,
    reply: PhantomData<fn() -> R>,
}

impl<R: serde::de::DeserializeOwned> Pending<'_, R> {
    /// The request's id, by which other operations refer to it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether the answer has come.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(
            self.client.shared.lock().replies.get(&self.id),
            Some(Some(_))
        )
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn wait(self, limit: Duration) -> Result<R, Error> {
        let (id, op) = (self.id, self.op);
        let outcome = self.client.shared.wait(limit, |state| {
            match state.replies.get_mut(&id).and_then(Option::take) {
                Some(reply) => Some(Ok(reply)),
                None => state.closed.clone().map(Err),
            }
        });
        let reply = match outcome {
            Some(Ok(reply)) => reply,
            Some(Err(reason)) => return Err(Error::Closed { op, reason }),
            None => return Err(Error::TimedOut { op, limit }),
        };
        if let Some(message) = reply.error {
            return Err(Error::Refused { op, message });
        }
        serde_json::from_value(reply.ok.unwrap_or_default())
            .map_err(|source| Error::Nonsense { op, source })
    }
}

impl<R> Drop for Pending<'_, R> {
    fn drop(&mut self) {
        self.client.shared.lock().replies.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Clock, OutputStream, Random};
    use std::os::unix::net::UnixListener;

    const SOON: Duration = Duration::from_secs(10);
    const BRIEF: Duration = Duration::from_millis(50);

    /// A guest that answers each line with what `answer` makes of the request's id, or hangs up.
    fn guest(name: &str, answer: impl Fn(u64) -> Option<String> + Send + 'static) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("paddock-probe-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for line in BufReader::new(socket.try_clone().unwrap()).split(b'\n') {
                let request = Request::parse(&line.unwrap()).unwrap();
                match answer(request.id) {
                    Some(answer) => socket.write_all(answer.as_bytes()).unwrap(),
                    None => return,
                }
            }
        });
        path
    }

    #[test]
    fn answers_find_their_callers() {
        // The second request is answered before the first.
        let first = Mutex::new(None);
        let path = guest("order", move |id| {
            let Some(first) = first.lock().unwrap().replace(id) else {
                return Some(String::new());
            };
            let random = |id, text| {
                format!("{{\"id\":{id},\"ok\":{{\"data\":\"{text}\",\"source\":\"\"}}}}\n")
            };
            Some(random(id, "two") + &random(first, "one"))
        });
        let client = Client::open(path, SOON).unwrap();
        let one = client.start(Random { bytes: 3 }).unwrap();
        let two = client.call(Random { bytes: 3 }, SOON).unwrap();
        assert_eq!(
            (two.data.to_text(), one.wait(SOON).unwrap().data.to_text()),
            ("two".into(), "one".into())
        );
    }

    #[test]
    fn every_failure_is_told() {
        let refusal = guest("refusal", |id| {
            Some(format!("{{\"id\":{id},\"error\":\"no\"}}\n"))
        });
        let client = Client::open(refusal, SOON).unwrap();
        assert!(
            matches!(client.call(Clock {}, SOON), Err(Error::Refused { message, .. }) if message == "no")
        );

        let nonsense = guest("nonsense", |id| {
            Some(format!("junk\n{{\"id\":{id},\"ok\":{{}}}}\n"))
        });
        let client = Client::open(nonsense, SOON).unwrap();
        assert!(matches!(
            client.call(Clock {}, SOON),
            Err(Error::Nonsense { .. })
        ));

        let client = Client::open(guest("silent", |_| Some(String::new())), SOON).unwrap();
        assert!(matches!(
            client.call(Clock {}, BRIEF),
            Err(Error::TimedOut { op: "clock", .. })
        ));
        assert!(matches!(
            client.wait_event("event", BRIEF, |_| Some(())),
            Err(Error::NoEvent { .. })
        ));

        let client = Client::open(guest("gone", |_| None), SOON).unwrap();
        assert!(matches!(
            client.call(Clock {}, SOON),
            Err(Error::Closed { .. })
        ));
        assert!(client.wait_closed(SOON));

        let error = Client::connect("/nonexistent/probe", BRIEF).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect to the probe's socket /nonexistent/probe"
        );
    }

    #[test]
    fn events_wait_in_order() {
        let path = guest("events", |id| {
            let event = |stream, data| {
                format!(
                    "{{\"event\":\"output\",\"id\":{id},\"stream\":\"{stream}\",\"data\":\"{data}\"}}\n"
                )
            };
            Some(event("stdout", "1") + &event("stderr", "2") + &event("stdout", "3"))
        });
        let client = Client::open(path, SOON).unwrap();
        let _pending = client.start(Clock {}).unwrap();
        let stderr = client.wait_event("stderr", SOON, |event| match event {
            Event::Output(output) if output.stream == OutputStream::Stderr => {
                Some(output.data.to_text())
            }
            _ => None,
        });
        assert_eq!(stderr.unwrap(), "2");
        let third = |event: &Event| {
            matches!(event, Event::Output(output) if output.data.0 == b"3").then_some(())
        };
        while client.shared.lock().events.iter().find_map(third).is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.take_events().len(), 2);
    }
}
