//! Sends a file to a receiver, of ours or of Longhorn's: its holes, and its data in pieces by several connections at once. What the receiver has
//! already is found by checksums and not sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Method;
use parking_lot::Mutex;
use sha2::{Digest, Sha512};
use tokio::task::JoinSet;

use super::http::Connection;
use super::{PIECE, check_transferable};
use crate::control::blocking;
use crate::files::image::{Image, SECTOR};
use crate::files::memory::Aligned;
use crate::files::names::META;
use crate::volume::replica::Replica;

/// Connections at once.
const CONNECTIONS: usize = 4;

/// How long a receiver may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);

/// What is sent.
#[derive(Debug)]
enum Source {
    Image(Image),
    /// Metadata.
    Bytes(Vec<u8>),
}

/// A piece of a file.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
    hole: bool,
}

impl Source {
    fn open(replica: &Replica, name: &str) -> crate::Result<Self> {
        check_transferable(name)?;
        let directory = replica.directory()?;
        if !name.ends_with(META) {
            return Ok(Self::Image(Image::open(&directory, name, true)?));
        }
        let missing = || crate::Error::refused(format!("there is no file {name}"));
        Ok(Self::Bytes(directory.read(name)?.ok_or_else(missing)?))
    }

    fn size(&self) -> u64 {
        match self {
            Self::Image(image) => image.size(),
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn pieces(&self) -> crate::Result<VecDeque<Piece>> {
        let size = self.size();
        let mut pieces = VecDeque::new();
        let Self::Image(image) = self else {
            pieces.push_back(Piece {
                start: 0,
                end: size,
                hole: false,
            });
            return Ok(pieces);
        };
        let data = image.data(0, size);
        let data =
            data.map_err(|error| crate::Error::io("look at", image.name().as_ref(), error))?;
        let mut next = 0;
        for range in data {
            let start = (range.start / SECTOR * SECTOR).max(next);
            let end = range.end.next_multiple_of(SECTOR).min(size);
            hole(&mut pieces, next, start);
            next = start;
            while next < end {
                let stop = end.min(next + PIECE);
                pieces.push_back(Piece {
                    start: next,
                    end: stop,
                    hole: false,
                });
                next = stop;
            }
        }
        hole(&mut pieces, next, size);
        Ok(pieces)
    }

    fn read(&self, piece: Piece) -> crate::Result<Vec<u8>> {
        let length = usize::try_from(piece.end - piece.start).unwrap_or(0);
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Image(image) => {
                let mut buffer = Aligned::new(length);
                image
                    .read_at(buffer.bytes_mut(), piece.start)
                    .map_err(|error| crate::Error::io("read", image.name().as_ref(), error))?;
                Ok(buffer.bytes()[..length].to_vec())
            }
        }
    }
}

fn hole(pieces: &mut VecDeque<Piece>, start: u64, end: u64) {
    if start < end {
        pieces.push_back(Piece {
            start,
            end,
            hole: true,
        });
    }
}

/// Connects to a receiver, which may not listen yet.
async fn connect(address: SocketAddr, patience: Duration) -> Result<Connection, String> {
    let end = Instant::now() + LISTEN_DEADLINE;
    loop {
        match Connection::open(address, patience).await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Sends a file; the receiver has all of it when it is done.
///
/// # Errors
/// The receiver has been told that it is over, and has nothing, or what it had.
pub(super) async fn send(
    replica: Arc<Replica>,
    name: String,
    address: SocketAddr,
    patience: Duration,
) -> Result<(), String> {
    let opened = blocking(move || {
        let source = Source::open(&replica, &name)?;
        let pieces = source.pieces()?;
        Ok((source, pieces))
    });
    let (source, pieces) = opened.await.map_err(|status| status.message().to_owned())?;
    let mut connection = connect(address, patience).await?;
    let result = send_to(&mut connection, source, pieces, address, patience).await;
    // It ends the receiver, too, which knows by itself whether it has everything.
    let closed = connection
        .call(
            Method::POST,
            "close",
            "checksumMethod=&checksum=",
            Vec::new(),
        )
        .await;
    result.and(closed.map(drop))
}

async fn send_to(
    connection: &mut Connection,
    source: Source,
    pieces: VecDeque<Piece>,
    address: SocketAddr,
    patience: Duration,
) -> Result<(), String> {
    let direct = matches!(source, Source::Image(_));
    let query = format!("begin=0&end={}&directIO={direct}", source.size());
    let answer = connection
        .call(Method::GET, "open", &query, Vec::new())
        .await?;
    let exists = answer == b"true";
    let source = Arc::new(source);
    let connections = CONNECTIONS.min(pieces.len());
    let pieces = Arc::new(Mutex::new(pieces));
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (source, pieces) = (Arc::clone(&source), Arc::clone(&pieces));
        workers.spawn(async move {
            let mut connection = Connection::open(address, patience).await?;
            loop {
                let Some(piece) = pieces.lock().pop_front() else {
                    return Ok(());
                };
                send_piece(&mut connection, &source, piece, exists).await?;
            }
        });
    }
    while let Some(result) = workers.join_next().await {
        // The first error ends them all.
        result
            .map_err(|error| error.to_string())
            .and_then(|result: Result<(), String>| result)?;
    }
    Ok(())
}

async fn send_piece(
    connection: &mut Connection,
    source: &Arc<Source>,
    piece: Piece,
    exists: bool,
) -> Result<(), String> {
    let query = format!("begin={}&end={}", piece.start, piece.end);
    if piece.hole {
        return connection
            .call(Method::POST, "sendHole", &query, Vec::new())
            .await
            .map(drop);
    }
    let source = Arc::clone(source);
    let read = blocking(move || {
        let data = source.read(piece)?;
        let sum = exists.then(|| BASE64.encode(Sha512::digest(&data)));
        Ok((data, sum))
    });
    let (data, ours) = read.await.map_err(|status| status.message().to_owned())?;
    if let Some(ours) = ours {
        let theirs = connection
            .call(Method::GET, "getChecksum", &query, Vec::new())
            .await?;
        if serde_json::from_slice::<Option<String>>(&theirs)
            .ok()
            .flatten()
            == Some(ours)
        {
            return Ok(());
        }
    }
    connection
        .call(Method::POST, "writeData", &query, data)
        .await
        .map(drop)
}
