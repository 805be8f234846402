//! Receives one file, by HTTP, on a port of its own. A new file is received beside its place, and put there once all of its bytes have been said
//! to be holes or data and are on stable storage. One that is there is changed in place, as Longhorn does it to send only what
//! differs: its replica is marked as rebuilding meanwhile.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags};
use sha2::{Digest, Sha512};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Port, Progress, check_transferable};
use crate::error::{Error, Result};
use crate::files::directory::Directory;
use crate::files::extents::extents;
use crate::files::names::{self, CHECKSUM, META};
use crate::volume::table::MOST_BYTES;

/// How often a receiver looks whether it has waited too long.
const LOOK: Duration = Duration::from_secs(1);

/// How often a sender may run out of the time for a request before it is taken for gone: it may be looking for what there is to send.
const SILENCES: u32 = 4;

/// How long to leave a host alone that has no descriptors for us.
const PAUSE: Duration = Duration::from_millis(100);

/// The most bytes of a piece of data, and of one that is summed up.
const MOST_PIECE: u64 = 16 << 20;

/// The most connections at once.
const MOST_CONNECTIONS: usize = 16;

/// How it ended: the file is there, or why it is not.
pub(super) type Outcome = std::result::Result<(), Failure>;

/// Why a file is not there.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub text: String,
    /// The sender is gone, or hangs: it is not worth asking again.
    pub silent: bool,
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        let silent = false;
        Self { text, silent }
    }
}

/// A file that is being received.
pub(super) struct Reception {
    receiver: Arc<Receiver>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Reception {
    /// Waits until the file is there, or will not be.
    pub(super) async fn outcome(&mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err("the receiver is gone".to_owned().into()),
        }
    }

    /// Nothing more is to come.
    pub(super) fn abandon(&self) {
        self.receiver
            .end(Err("the sender failed".to_owned().into()));
    }
}

/// A receiver.
struct Receiver {
    directory: Directory,
    name: String,
    /// What the file is called on its way.
    beside: String,
    /// The file is there and is changed in place.
    exists: bool,
    progress: Option<Arc<Progress>>,
    /// What is being received.
    incoming: Mutex<Option<Coming>>,
    /// How long a request, and each piece of its data, may be on its way.
    patience: Duration,
    /// When a request was last begun or answered, and how many are being carried out.
    used: Mutex<Instant>,
    working: AtomicUsize,
    ended: watch::Sender<Option<Outcome>>,
}

/// A file on its way.
struct Coming {
    file: Arc<File>,
    size: u64,
    /// What was told of, as ranges that do not touch.
    told: Vec<(u64, u64)>,
}

/// A request that is being carried out, which is no silence.
struct Working<'a>(&'a Receiver);

impl<'a> Working<'a> {
    fn new(receiver: &'a Receiver) -> Self {
        receiver.working.fetch_add(1, Ordering::Relaxed);
        Self(receiver)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.used.lock() = Instant::now();
        self.0.working.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A range of a request.
#[derive(Debug, Clone, Copy)]
struct Interval {
    begin: u64,
    end: u64,
}

/// Starts to receive a file. Returns how it will end. A request may be on its way for as long as `patience`, and so may each piece of its data;
/// the sender is given up when nothing comes from it for a few times as long.
///
/// # Errors
/// When the name is none, or the port cannot be listened on.
pub(super) async fn receive(
    directory: Directory,
    name: String,
    port: Port,
    progress: Option<Arc<Progress>>,
    patience: Duration,
) -> Result<Reception> {
    check_transferable(&name)?;
    let address = std::net::SocketAddr::new(port.shared.address, port.number);
    let fail = |error| Error::io("listen on", address.to_string().as_ref(), error);
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    // A file with two names is not changed for one of them.
    let exists =
        !name.ends_with(META) && directory.stat(&name).is_ok_and(|stat| stat.st_nlink == 1);
    let (ended, ending) = watch::channel(None);
    let receiver = Arc::new(Receiver {
        // Each receiver has its own.
        beside: names::receiving(&name, port.number.into()),
        directory,
        name,
        exists,
        progress,
        incoming: Mutex::new(None),
        patience,
        used: Mutex::new(Instant::now()),
        working: AtomicUsize::new(0),
        ended,
    });
    tokio::spawn(serve(listener, Arc::clone(&receiver), port, ending.clone()));
    Ok(Reception {
        receiver,
        outcome: ending,
    })
}

/// Serves until the file is there, or will not be.
async fn serve(
    listener: TcpListener,
    receiver: Arc<Receiver>,
    port: Port,
    mut ending: watch::Receiver<Option<Outcome>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept(&listener), if connections.len() < MOST_CONNECTIONS => {
                connections.spawn(connection(Arc::clone(&receiver), stream));
            }
            Some(_) = connections.join_next() => {}
            _ = ending.wait_for(Option::is_some) => break,
            () = tokio::time::sleep(LOOK.min(receiver.patience)) => receiver.look(),
        }
    }
    // The answer to the last request is on its way.
    drop(listener);
    let _ = timeout(LOOK, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    connections.shutdown().await;
    receiver.discard();
    drop(port);
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Serves a connection. One on which no request comes in time is ended, for there are few of them: a sender that was idle for that long
/// connects again.
async fn connection(receiver: Arc<Receiver>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let of_service = Arc::clone(&receiver);
    let service = service_fn(move |request| answer(Arc::clone(&of_service), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(receiver.patience)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(file = %receiver.name, %error, "a connection of a sender has ended");
    }
}

async fn answer(
    receiver: Arc<Receiver>,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let _working = Working::new(&receiver);
    let (status, body) = match receiver.carry_out(request).await {
        Ok(body) => (StatusCode::OK, body),
        Err((status, text)) => {
            tracing::warn!(file = %receiver.name, error = %text, "a request of a sender is refused");
            (status, text)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    Ok(response)
}

type Reply = std::result::Result<String, (StatusCode, String)>;

fn bad(text: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, text.into())
}

fn failed(text: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, text.to_string())
}

/// A value of a query.
fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn interval(query: &str) -> std::result::Result<Interval, (StatusCode, String)> {
    let number = |key| value(query, key).and_then(|text| text.parse().ok());
    match (number("begin"), number("end")) {
        (Some(begin), Some(end)) if begin <= end => Ok(Interval { begin, end }),
        _ => Err(bad("begin and end are not an interval")),
    }
}

/// Does what waits for the disk.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::result::Result<T, (StatusCode, String)> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

impl Receiver {
    async fn carry_out(self: &Arc<Self>, request: Request<Incoming>) -> Reply {
        let query = request.uri().query().unwrap_or("").to_owned();
        let action = request
            .uri()
            .path()
            .strip_prefix("/v1-ssync/")
            .unwrap_or("")
            .to_owned();
        match (request.method(), action.as_str()) {
            (&Method::GET, "open") => self.open(&query),
            (&Method::POST, "sendHole") => self.hole(interval(&query)?).await,
            (&Method::POST, "writeData") => self.data(interval(&query)?, request.into_body()).await,
            (&Method::GET, "getChecksum") => self.checksum(interval(&query)?).await,
            // The sender then compares what is there.
            (&Method::GET, "getRecordedMetadata") => Err((
                StatusCode::NOT_FOUND,
                "no checksum of the whole file is recorded".to_owned(),
            )),
            (&Method::POST, "close") => self.close().await,
            _ => Err((StatusCode::NOT_FOUND, "there is no such request".to_owned())),
        }
    }

    fn place(&self) -> &str {
        match self.exists {
            true => &self.name,
            false => &self.beside,
        }
    }

    fn open(&self, query: &str) -> Reply {
        let size = interval(query)?.end;
        let direct = value(query, "directIO") == Some("true");
        if size > MOST_BYTES || (direct && size % 4096 != 0) {
            return Err(bad(format!("a file of {size} bytes is not possible")));
        }
        let open = || -> Result<File> {
            self.directory.remove(&format!("{}{CHECKSUM}", self.name))?;
            let flags = match self.exists {
                true => OFlags::RDWR,
                false => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
            };
            let place = self.place();
            let file = self.directory.open_file(place, flags)?;
            let resized = file.set_len(size);
            resized.map_err(|error| Error::io("resize", &self.directory.path_of(place), error))?;
            Ok(file)
        };
        let file = Arc::new(open().map_err(|error| failed(error.text()))?);
        let told = Vec::new();
        *self.incoming.lock() = Some(Coming { file, size, told });
        Ok(self.exists.to_string())
    }

    /// The file and its size.
    fn file(&self) -> std::result::Result<(Arc<File>, u64), (StatusCode, String)> {
        let incoming = self.incoming.lock();
        let incoming = incoming
            .as_ref()
            .ok_or_else(|| bad("the file is not open"))?;
        Ok((Arc::clone(&incoming.file), incoming.size))
    }

    async fn hole(&self, interval: Interval) -> Reply {
        let (file, size) = self.file()?;
        let end = interval.end.min(size);
        let begin = interval.begin;
        if begin < end {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            on_thread(move || Ok(rustix::fs::fallocate(&*file, flags, begin, end - begin)?))
                .await?;
        }
        self.tell(interval);
        Ok(String::new())
    }

    async fn data(&self, interval: Interval, body: Incoming) -> Reply {
        let (file, size) = self.file()?;
        let length = interval.end - interval.begin;
        if length > MOST_PIECE {
            return Err(bad(format!("{length} bytes in one piece are too many")));
        }
        let data = self.body(body, length).await?;
        let whole = interval.end.min(size).saturating_sub(interval.begin);
        if data.len() as u64 != whole {
            return Err(bad(format!("{} bytes came for {whole}", data.len())));
        }
        on_thread(move || file.write_all_at(&data, interval.begin)).await?;
        if !self.exists {
            self.advance(length);
        }
        self.tell(interval);
        Ok(String::new())
    }

    /// The data of a request, of which at most `most` bytes are wanted.
    async fn body(
        &self,
        body: Incoming,
        most: u64,
    ) -> std::result::Result<Vec<u8>, (StatusCode, String)> {
        // Bounded by the caller.
        let mut body = Limited::new(body, usize::try_from(most).unwrap_or(0));
        let mut data = Vec::new();
        loop {
            let frame = timeout(self.patience, body.frame()).await.map_err(|_| {
                let text = format!(
                    "{} of {most} bytes came, and then nothing for {:?}",
                    data.len(),
                    self.patience
                );
                (StatusCode::REQUEST_TIMEOUT, text)
            })?;
            let Some(frame) = frame else {
                return Ok(data);
            };
            let frame = frame.map_err(|error| bad(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                data.extend_from_slice(&bytes);
            }
        }
    }

    /// What is there of an interval, if all of it is data. Then the sender may have nothing to send.
    async fn checksum(&self, interval: Interval) -> Reply {
        let (file, size) = self.file()?;
        let Interval { begin, end } = interval;
        if end > size || end - begin > MOST_PIECE {
            return Err(bad("the interval is not within the file, or too large"));
        }
        let sum = on_thread(move || {
            let data = extents(&file, begin, end, false)?;
            if data.len() != 1 || data[0].start > begin || data[0].end < end {
                return Ok(None);
            }
            let mut bytes = vec![0; usize::try_from(end - begin).unwrap_or(0)];
            file.read_exact_at(&mut bytes, begin)?;
            Ok(Some(BASE64.encode(Sha512::digest(&bytes))))
        });
        let sum = sum.await?;
        if self.exists {
            self.advance(end - begin);
        }
        if self.exists && sum.is_some() {
            self.tell(interval);
        }
        serde_json::to_string(&sum).map_err(failed)
    }

    fn advance(&self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.add(bytes);
        }
    }

    fn tell(&self, interval: Interval) {
        if let Some(incoming) = &mut *self.incoming.lock() {
            add(
                &mut incoming.told,
                interval.begin,
                interval.end.min(incoming.size),
            );
        }
    }

    /// The sender has nothing more to say, because that was all, or because it failed.
    async fn close(self: &Arc<Self>) -> Reply {
        let Some(incoming) = self.incoming.lock().take() else {
            let text = "the file was not opened".to_owned();
            self.end(Err(text.clone().into()));
            return Err(bad(text));
        };
        let complete = incoming.size == 0 || incoming.told == [(0, incoming.size)];
        let result = match complete {
            false => Err((
                StatusCode::CONFLICT,
                "the file did not come whole".to_owned(),
            )),
            true => {
                let this = Arc::clone(self);
                on_thread(move || {
                    incoming.file.sync_all()?;
                    this.keep()
                        .map_err(|error| std::io::Error::other(error.text()))
                })
                .await
            }
        };
        self.end(result.clone().map_err(|(_, text)| text.into()));
        result.map(|()| String::new())
    }

    /// Puts the file in its place.
    fn keep(&self) -> Result<()> {
        if !self.exists {
            self.directory.rename(self.place(), &self.name)?;
        }
        self.directory.sync()
    }

    fn end(&self, outcome: Outcome) {
        self.ended.send_if_modified(|place| {
            let first = place.is_none();
            if first {
                *place = Some(outcome);
            }
            first
        });
    }

    /// Gives a sender up of which nothing is heard any more.
    fn look(&self) {
        let silence = self.patience.saturating_mul(SILENCES);
        if self.working.load(Ordering::Relaxed) == 0 && self.used.lock().elapsed() > silence {
            let text = format!(
                "nothing came from the sender for {silence:?}; is its process or its host hung?"
            );
            tracing::warn!(file = %self.name, error = %text, "a file is given up");
            self.end(Err(Failure { text, silent: true }));
        }
    }

    /// Removes what did not come whole.
    fn discard(&self) {
        *self.incoming.lock() = None;
        if !self.exists {
            if let Err(error) = self.directory.remove(self.place()) {
                tracing::warn!(error = error.text(), "what did not come whole is left");
            }
        }
    }
}

/// Adds a range to ranges that are in order and do not touch.
fn add(ranges: &mut Vec<(u64, u64)>, begin: u64, end: u64) {
    if begin >= end {
        return;
    }
    let first = ranges.partition_point(|&(_, other)| other < begin);
    let last = ranges.partition_point(|&(other, _)| other <= end);
    let merged = ranges[first..last].iter();
    let range = merged.fold((begin, end), |(begin, end), &(other, stop)| {
        (begin.min(other), end.max(stop))
    });
    ranges.splice(first..last, [range]);
}

#[cfg(test)]
mod tests;
