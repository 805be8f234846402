//! Who is being served: the accept loop, the table of connections, and one task for each.
//!
//! A connection is *idle* while it has sent no complete head of a request since its last answer. Where the table is full, a new client takes the place of the
//! one that has been idle for longest: clients that only sit there cannot keep others out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;

use super::Limits;
use super::socket::is_welcome;
use crate::problem::{Code, MEDIA_TYPE, Problem};

/// A head of a request, with its path and headers, has at most this many bytes.
const MAX_HEAD: usize = 16 << 10;
/// Refused clients that are seen off at once.
const REFUSED: usize = 16;
/// How long a refused client may take to go.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait when the host has no more descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Accepts and serves until told to end, and then until all that is being answered is answered.
pub(super) async fn serve(
    listener: &UnixListener,
    app: &Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) {
    let table = Arc::<Table>::default();
    let refused = Arc::new(Semaphore::new(REFUSED));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match table.admit(&stream, limits.connections) {
                    Ok(place) => {
                        tasks.spawn(converse(stream, app.clone(), place, limits, ending.clone()));
                    }
                    Err(problem) => {
                        refuse(&stream, &problem);
                        if let Ok(place) = Arc::clone(&refused).try_acquire_owned() {
                            tasks.spawn(see_off(stream, place));
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting an API client");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = tasks.join_next() => {}
            () = told(&mut ending) => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Waits for the end; a server that is gone has ended, too.
async fn told(ending: &mut watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

/// The connections that are there.
#[derive(Debug, Default)]
struct Table {
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, Arc<Connection>>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Connection {
    busy: AtomicBool,
    /// Since when it is as it is.
    since: Mutex<Instant>,
    /// It must go.
    cut: Notify,
}

impl Table {
    /// A place for a new client, if need be another's.
    fn admit(self: &Arc<Self>, stream: &UnixStream, limit: usize) -> Result<Place, Problem> {
        if !is_welcome(stream) {
            let detail = "the API serves the user of its process, and root";
            return Err(Problem::new(Code::Forbidden, detail));
        }
        let mut places = self.places.lock();
        if places.taken.len() >= limit && !places.cut_longest_idle() {
            let detail = format!("{limit} clients are being served; try again later");
            return Err(Problem::new(Code::TooManyConnections, detail));
        }
        let connection = Arc::new(Connection {
            busy: AtomicBool::new(false),
            since: Mutex::new(Instant::now()),
            cut: Notify::new(),
        });
        let id = places.next;
        places.next += 1;
        places.taken.insert(id, Arc::clone(&connection));
        drop(places);
        Ok(Place {
            table: Arc::clone(self),
            id,
            connection,
        })
    }
}

impl Places {
    /// Makes room; `false` if everyone is being served.
    fn cut_longest_idle(&mut self) -> bool {
        let idle = self
            .taken
            .iter()
            .filter(|(_, connection)| !connection.busy.load(Ordering::Acquire));
        // Where the clock cannot tell, whoever came first: ids count up.
        let longest = idle.min_by_key(|(id, connection)| (*connection.since.lock(), **id));
        let Some(id) = longest.map(|(id, _)| *id) else {
            return false;
        };
        if let Some(connection) = self.taken.remove(&id) {
            connection.cut.notify_one();
        }
        true
    }
}

/// A connection's place in the table; free when it is dropped.
#[derive(Debug)]
struct Place {
    table: Arc<Table>,
    id: u64,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.places.lock().taken.remove(&self.id);
    }
}

impl Connection {
    fn set_busy(&self, busy: bool) {
        *self.since.lock() = Instant::now();
        self.busy.store(busy, Ordering::Release);
    }
}

/// A request is being served as long as this exists.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.set_busy(true);
        Self(Arc::clone(connection))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set_busy(false);
    }
}

/// Serves one connection to its end.
async fn converse(
    stream: UnixStream,
    app: Router,
    place: Place,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.unread));
    let app = TowerToHyperService::new(app);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let busy = Busy::new(&place.connection);
        let answer = app.call(request);
        async move {
            // `busy` goes with the body, when the last of it has been taken.
            Ok::<_, Infallible>(match answer.await {
                Ok(response) => response.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        let _ = &busy;
                        frame
                    }))
                }),
                Err(never) => match never {},
            })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(MAX_HEAD)
        // A client may say that it sends no more, and still wait for its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.connection.cut.notified() => return,
        () = told(&mut ending) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API client's connection");
    }
}

/// Tells a client that it is not served. What does not fit the socket at once is lost.
fn refuse(stream: &UnixStream, problem: &Problem) {
    let body = serde_json::to_string(problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        problem.status,
        problem.title,
        body.len()
    );
    match stream.try_write(answer.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            tracing::debug!(%error, "refusing an API client");
        }
        _ => {}
    }
}

/// Lets a refused client send its request, which goes nowhere: if its sending failed, most clients would not look for an answer.
async fn see_off(stream: UnixStream, _place: OwnedSemaphorePermit) {
    let drained = async {
        let mut buffer = [0; 4096];
        let mut taken = 0;
        while taken < MAX_HEAD && stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(count @ 1..) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => break,
            }
        }
    };
    // Its end, or that of our patience.
    let _ = tokio::time::timeout(PATIENCE, drained).await;
}
