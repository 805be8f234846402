//! An NBD server in this process: a volatile cache that dies with it, replies in odd pieces, and scripts that break the protocol.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::Dice;
use crate::nbd::protocol::{
    self, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
};

/// Flags of an export that can do everything.
pub(super) const ALL: u16 = protocol::HAS_FLAGS
    | protocol::SEND_FLUSH
    | protocol::SEND_TRIM
    | protocol::SEND_WRITE_ZEROES
    | protocol::CAN_MULTI_CONN;

/// What a server says of itself.
#[derive(Clone)]
pub(super) struct Manner {
    pub size: u64,
    pub flags: u16,
    pub blocks: Option<[u32; 3]>,
    pub structured: bool,
    /// Reads are answered in pieces, the last first, with holes where there are zeros.
    pub odd: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            flags: ALL,
            blocks: None,
            structured: true,
            odd: true,
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub committed: Vec<u8>,
    pub cached: Vec<u8>,
    /// Counts lives: what a request of an earlier one asks is not done.
    life: u64,
    streams: Vec<UnixStream>,
    /// Requests that came, in order: command, flags, offset, length.
    pub seen: Vec<(u16, u16, u64, u32)>,
    /// Error numbers for the next requests of these commands.
    pub errors: Vec<(u16, u32)>,
    pub connections: usize,
}

impl State {
    /// Dies: what was not flushed is gone, and so are all connections, with what came by them and was not answered.
    pub(super) fn die(&mut self) {
        self.life += 1;
        self.cached = self.committed.clone();
        hang_up(self);
    }
}

/// A server that listens on a unix socket.
pub(super) struct Server {
    directory: TempDir,
    pub state: Arc<Mutex<State>>,
    pub manner: Arc<Mutex<Manner>>,
    /// Whether who connects is sent away.
    pub away: Arc<AtomicBool>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn new(manner: Manner) -> Self {
        let size = usize::try_from(manner.size).unwrap_or(0);
        let state = State {
            committed: vec![0; size],
            cached: vec![0; size],
            ..State::default()
        };
        let (state, manner) = (Arc::new(Mutex::new(state)), Arc::new(Mutex::new(manner)));
        let (theirs, manners) = (Arc::clone(&state), Arc::clone(&manner));
        Self::start(state, manner, move |stream| {
            let manner = manners.lock().unwrap().clone();
            // A connection that ends ends this.
            let _ = serve(stream, &manner, &theirs);
        })
    }

    /// A server that does with each connection what the script says.
    pub(super) fn scripted(script: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let (state, manner) = (Arc::default(), Arc::default());
        Self::start(state, manner, script)
    }

    fn start(
        state: Arc<Mutex<State>>,
        manner: Arc<Mutex<Manner>>,
        script: impl Fn(UnixStream) + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
        let (away, ending) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (theirs, sends_away, ends) =
            (Arc::clone(&state), Arc::clone(&away), Arc::clone(&ending));
        let script = Arc::new(script);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                let stream = stream.expect("a connection");
                let script = Arc::clone(&script);
                {
                    let mut state = theirs.lock().unwrap();
                    if sends_away.load(Ordering::Acquire) {
                        continue;
                    }
                    state.connections += 1;
                    state.streams.push(stream.try_clone().expect("a clone"));
                }
                std::thread::spawn(move || script(stream));
            }
        });
        Self {
            directory,
            state,
            manner,
            away,
            ending,
            thread: Some(thread),
        }
    }

    pub(super) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Dies: what was not flushed is gone, and so are all connections.
    pub(super) fn die(&self) {
        self.state.lock().unwrap().die();
    }

    /// Only the connections are gone.
    pub(super) fn cut(&self) {
        hang_up(&mut self.state.lock().unwrap());
    }

    /// The next request of this command fails.
    pub(super) fn fail(&self, command: u16, error: u32) {
        self.state.lock().unwrap().errors.push((command, error));
    }
}

fn hang_up(state: &mut State) {
    for stream in state.streams.drain(..) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        self.cut();
        let _ = UnixStream::connect(self.path());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn array<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The greeting, and the client's answer to it.
pub(super) fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    assert_eq!(array(stream)?, [0, 0, 0, 3], "the client's flags");
    Ok(())
}

/// The next option and its data.
pub(super) fn option(stream: &mut UnixStream) -> std::io::Result<(u32, Vec<u8>)> {
    assert_eq!(&array::<8>(stream)?, b"IHAVEOPT");
    let option = u32::from_be_bytes(array(stream)?);
    let length = u32::from_be_bytes(array(stream)?);
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((option, data))
}

pub(super) fn answer(
    stream: &mut UnixStream,
    option: u32,
    kind: u32,
    data: &[u8],
) -> std::io::Result<()> {
    let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for number in [option, kind, u32::try_from(data.len()).expect("short")] {
        reply.extend(number.to_be_bytes());
    }
    reply.extend(data);
    stream.write_all(&reply)
}

/// Options until the client enters the export.
pub(super) fn negotiate(stream: &mut UnixStream, manner: &Manner) -> std::io::Result<()> {
    greet(stream)?;
    loop {
        match option(stream)? {
            (protocol::STRUCTURED_REPLY, _) if manner.structured => {
                answer(stream, protocol::STRUCTURED_REPLY, protocol::REP_ACK, &[])?;
            }
            (protocol::GO, _) => {
                let mut info = vec![0, 0];
                info.extend(manner.size.to_be_bytes());
                info.extend(manner.flags.to_be_bytes());
                answer(stream, protocol::GO, protocol::REP_INFO, &info)?;
                if let Some(blocks) = manner.blocks {
                    let mut info = vec![0, 3];
                    info.extend(blocks.iter().flat_map(|number| number.to_be_bytes()));
                    answer(stream, protocol::GO, protocol::REP_INFO, &info)?;
                }
                return answer(stream, protocol::GO, protocol::REP_ACK, &[]);
            }
            (other, _) => answer(stream, other, protocol::REP_ERR_UNSUP, b"no")?,
        }
    }
}

/// A request: command, flags, cookie, offset, length, payload.
pub(super) type Wire = (u16, u16, u64, u64, u32, Vec<u8>);

pub(super) fn request(stream: &mut UnixStream) -> std::io::Result<Wire> {
    assert_eq!(array(stream)?, 0x2560_9513_u32.to_be_bytes());
    let flags = u16::from_be_bytes(array(stream)?);
    let command = u16::from_be_bytes(array(stream)?);
    let cookie = u64::from_be_bytes(array(stream)?);
    let offset = u64::from_be_bytes(array(stream)?);
    let length = u32::from_be_bytes(array(stream)?);
    let mut payload = vec![
        0;
        if command == CMD_WRITE {
            length as usize
        } else {
            0
        }
    ];
    stream.read_exact(&mut payload)?;
    Ok((command, flags, cookie, offset, length, payload))
}

pub(super) fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply
}

pub(super) fn chunk(cookie: u64, done: bool, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut reply = 0x668e_33ef_u32.to_be_bytes().to_vec();
    reply.extend(u16::from(done).to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply.extend(u32::try_from(payload.len()).expect("short").to_be_bytes());
    reply.extend(payload);
    reply
}

fn error(cookie: u64, structured: bool, number: u32) -> Vec<u8> {
    if !structured {
        return simple(cookie, number);
    }
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend([0, 4]);
    payload.extend(b"oops");
    chunk(cookie, true, 1 << 15 | 1, &payload)
}

fn serve(mut stream: UnixStream, manner: &Manner, state: &Mutex<State>) -> std::io::Result<()> {
    let life = state.lock().unwrap().life;
    negotiate(&mut stream, manner)?;
    let mut dice = Dice(1 << 40 | 7);
    loop {
        let (command, flags, cookie, offset, length, payload) = request(&mut stream)?;
        let range = usize::try_from(offset).expect("small")
            ..usize::try_from(offset).expect("small") + length as usize;
        let mut reply = Vec::new();
        {
            let mut state = state.lock().unwrap();
            if state.life != life {
                return Ok(());
            }
            state.seen.push((command, flags, offset, length));
            if let Some(at) = state
                .errors
                .iter()
                .position(|(failing, _)| *failing == command)
            {
                let number = state.errors.remove(at).1;
                reply = error(cookie, manner.structured, number);
            } else {
                match command {
                    CMD_READ if manner.structured && manner.odd => {
                        reply = pieces(cookie, offset, &state.cached[range], &mut dice);
                    }
                    CMD_READ if manner.structured => {
                        let payload = [&offset.to_be_bytes()[..], &state.cached[range]].concat();
                        reply = chunk(cookie, true, 1, &payload);
                    }
                    CMD_READ => {
                        reply = simple(cookie, 0);
                        reply.extend(&state.cached[range]);
                    }
                    CMD_WRITE => state.cached[range].copy_from_slice(&payload),
                    CMD_WRITE_ZEROES => state.cached[range].fill(0),
                    CMD_TRIM => state.cached[range].fill(0xdd),
                    CMD_FLUSH => state.committed = state.cached.clone(),
                    CMD_DISC => return Ok(()),
                    other => panic!("command {other}"),
                }
                if command != CMD_READ {
                    reply = if manner.structured && dice.below(2) == 0 {
                        chunk(cookie, true, 0, &[])
                    } else {
                        simple(cookie, 0)
                    };
                }
            }
        }
        stream.write_all(&reply)?;
    }
}

/// A read in pieces of odd lengths, the last first.
fn pieces(cookie: u64, offset: u64, bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let most = (bytes.len() - at).min(3000) as u64;
        let length = 1 + usize::try_from(dice.below(most)).expect("small");
        let piece = &bytes[at..at + length];
        let mut payload = (offset + at as u64).to_be_bytes().to_vec();
        if piece.iter().all(|byte| *byte == 0) {
            payload.extend(u32::try_from(length).expect("small").to_be_bytes());
            chunks.push(chunk(cookie, false, 2, &payload));
        } else {
            payload.extend(piece);
            chunks.push(chunk(cookie, false, 1, &payload));
        }
        at += length;
    }
    chunks.reverse();
    chunks.push(chunk(cookie, true, 0, &[]));
    chunks.concat()
}
