//! A relay before a replica, which passes on what is asked and spoils an answer when it is told to: the replica seems to be one that does not keep to the
//! protocol.
//!
//! It stands for the replica's control service, its data connections and its sync agent, on ports of its own. What another replica sends to a sync agent's
//! receivers goes past it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use paddock_longhorn::wire::{HEADER, Header, Kind};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};

use super::ports::Ports;

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoiled {
    /// It says with these words that nothing was done.
    Error(&'static str),
    /// Half of it comes, and then the connection ends.
    Short,
    /// It is for a request that nobody made.
    OtherSequence,
    /// It does not begin as an answer.
    OtherMagic,
}

/// What an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Data were asked for.
    Read,
    /// Data were sent.
    Write,
}

/// The answer that is spoiled next.
type Next = Arc<Mutex<Option<(Request, Spoiled)>>>;

/// A relay; gone on drop, with all its connections.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens for what goes to the control service.
    address: SocketAddr,
    next: Next,
    _runtime: Runtime,
    _ports: Ports,
}

impl Relay {
    /// Stands before the replica with these addresses: those of its control service, its data connections and its sync agent.
    ///
    /// # Panics
    /// When it cannot listen.
    pub(super) fn before(served: [SocketAddr; 3]) -> Self {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .build()
            .unwrap_or_else(|error| panic!("a relay's thread: {error}"));
        let (ports, next) = (Ports::free(), Next::default());
        let at = |number| SocketAddr::new(served[0].ip(), ports.address(number).port());
        for (number, to) in (0..).zip(served) {
            let from = at(number);
            let listener = runtime
                .block_on(TcpListener::bind(from))
                .unwrap_or_else(|error| panic!("a relay at {from}: {error}"));
            let next = (number == 1).then(|| Arc::clone(&next));
            runtime.spawn(serve(listener, to, next));
        }
        Self {
            address: at(0),
            next,
            _runtime: runtime,
            _ports: ports,
        }
    }

    /// Where engines believe the replica to be.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spoils the next answer to such a request.
    pub(super) fn spoil(&self, request: Request, how: Spoiled) {
        *self.next.lock() = Some((request, how));
    }
}

/// Takes connections. With `next` they are data connections.
async fn serve(listener: TcpListener, to: SocketAddr, next: Option<Next>) {
    while let Ok((near, _)) = listener.accept().await {
        let next = next.clone();
        tokio::spawn(async move {
            // Of a replica that is not there, and of one that goes, its engine hears by the end of the connection.
            if let Ok(far) = connect(&near, to).await {
                let _ = match next {
                    Some(next) => pass_frames(near, far, next).await,
                    None => pass_all(near, far).await,
                };
            }
        });
    }
}

async fn connect(near: &TcpStream, to: SocketAddr) -> io::Result<TcpStream> {
    near.set_nodelay(true)?;
    let far = TcpStream::connect(to).await?;
    far.set_nodelay(true)?;
    Ok(far)
}

async fn pass_all(mut near: TcpStream, mut far: TcpStream) -> io::Result<()> {
    copy_bidirectional(&mut near, &mut far).await.map(drop)
}

/// Passes on a data connection until either end goes.
async fn pass_frames(near: TcpStream, far: TcpStream, next: Next) -> io::Result<()> {
    let (mut requests, near) = near.into_split();
    let (answers, mut far) = far.into_split();
    tokio::select! {
        ended = copy(&mut requests, &mut far) => ended.map(drop),
        ended = pass_answers(answers, near, next) => ended,
    }
}

async fn pass_answers(from: OwnedReadHalf, mut to: OwnedWriteHalf, next: Next) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).await?;
        let mut frame = header.to_vec();
        frame.resize(HEADER + Header::payload_of(&header) as usize, 0);
        from.read_exact(&mut frame[HEADER..]).await?;
        let spoiled = next_for(&next, &header);
        if let Some(how) = spoiled {
            spoil(&mut frame, &header, how);
        }
        to.write_all(&frame).await?;
        if spoiled == Some(Spoiled::Short) {
            return Ok(());
        }
    }
}

/// What is to be done to an answer, if it is the one that is waited for.
fn next_for(next: &Next, bytes: &[u8; HEADER]) -> Option<Spoiled> {
    let header = Header::decode(bytes).ok()?;
    let request = match header {
        _ if header.kind != Kind::Response => return None,
        Header { payload: 1.., .. } => Request::Read,
        Header { size: 1.., .. } => Request::Write,
        // That of a ping.
        _ => return None,
    };
    let how = next.lock().take_if(|(wanted, _)| *wanted == request);
    how.map(|(_, how)| how)
}

fn spoil(frame: &mut Vec<u8>, header: &[u8; HEADER], how: Spoiled) {
    match how {
        Spoiled::Error(text) => {
            if let (Ok(answer), Ok(length)) = (Header::decode(header), u32::try_from(text.len())) {
                let answer = Header {
                    kind: Kind::Error,
                    size: length,
                    payload: length,
                    ..answer
                };
                *frame = [&answer.encode(), text.as_bytes()].concat();
            }
        }
        Spoiled::Short => frame.truncate(frame.len() / 2),
        // The highest bit of the number.
        Spoiled::OtherSequence => frame[5] ^= 0x80,
        Spoiled::OtherMagic => frame[0] ^= 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, size: u32, payload: u32) -> [u8; HEADER] {
        let header = Header {
            payload,
            ..Header::request(7, kind, 4096, size)
        };
        header.encode()
    }

    #[test]
    fn only_the_answer_that_was_named_is_spoiled_and_once() {
        let next = Next::default();
        let (read, write) = (
            header(Kind::Response, 512, 512),
            header(Kind::Response, 512, 0),
        );
        for (request, answer, others) in [
            (Request::Read, read, [write, header(Kind::Response, 0, 0)]),
            (Request::Write, write, [read, header(Kind::Error, 9, 9)]),
        ] {
            *next.lock() = Some((request, Spoiled::Short));
            for other in others {
                assert_eq!(next_for(&next, &other), None);
            }
            assert_eq!(next_for(&next, &answer), Some(Spoiled::Short));
            assert_eq!(next_for(&next, &answer), None);
        }
    }

    #[test]
    fn what_is_spoiled_is_an_error_or_no_answer_any_more() {
        let answer = header(Kind::Response, 4, 4);
        let spoiled = |how| {
            let mut frame = [&answer[..], b"data"].concat();
            spoil(&mut frame, &answer, how);
            frame
        };
        let decoded = |frame: &[u8]| {
            let (header, rest) = frame.split_first_chunk().expect("a header");
            (Header::decode(header), rest.to_vec())
        };
        let (error, text) = decoded(&spoiled(Spoiled::Error("broken")));
        let error = error.expect("an answer");
        assert_eq!((error.kind, error.sequence), (Kind::Error, 7));
        assert_eq!((error.payload, text.as_slice()), (6, &b"broken"[..]));
        assert_eq!(spoiled(Spoiled::Short).len(), 15);
        let (other, data) = decoded(&spoiled(Spoiled::OtherSequence));
        assert_eq!(
            (other.expect("an answer").sequence, data.as_slice()),
            (7 | 1 << 31, &b"data"[..])
        );
        assert!(decoded(&spoiled(Spoiled::OtherMagic)).0.is_err());
    }
}
