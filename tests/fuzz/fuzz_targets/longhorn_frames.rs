//! A peer on a data connection of Longhorn's that sends anything, at times answers as it should: each request is answered once, a read that is well has the peer's
//! bytes, and what no frame can be ends the connection.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use paddock_fuzz::{Input, ignore_broken_pipes};
use paddock_longhorn::wire::{HEADER, Header, Kind};
use paddock_storage::longhorn::EngineSocket;
use paddock_storage::{Buffer, Completion, Disk, Operation, Request};
use vmm_sys_util::tempdir::TempDir;

const SIZE: u64 = 1 << 20;
/// What all is that is read.
const BYTE: u8 = 0x5a;

/// Where the peer listens; made once.
fn listener() -> &'static (UnixListener, PathBuf) {
    static LISTENER: OnceLock<(UnixListener, PathBuf)> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let directory = TempDir::new_with_prefix("/dev/shm/paddock-fuzz-").expect("a directory");
        let path = directory.as_path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        // It lives as long as the fuzzer does.
        std::mem::forget(directory);
        (listener, path)
    })
}

/// The peer's side.
struct Peer {
    stream: UnixStream,
    received: Vec<u8>,
    asked: Vec<Header>,
    /// What it sent may have been taken for data.
    lied: bool,
}

impl Peer {
    /// Takes in what was asked.
    fn receive(&mut self) {
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..count]);
        }
        while let Some(bytes) = self.received.first_chunk::<HEADER>() {
            let header = Header::decode(bytes).expect("the engine sends frames");
            let inside =
                u64::try_from(header.offset).is_ok_and(|o| o + u64::from(header.size) <= SIZE);
            assert!(inside, "{header:?} is not on the volume");
            let end = HEADER + header.payload as usize;
            if self.received.len() < end {
                break;
            }
            self.received.drain(..end);
            self.asked.push(header);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        // The engine may have closed it.
        let _ = self.stream.write_all(bytes);
    }

    /// Answers something, as the input says.
    fn answer(&mut self, input: &mut Input) {
        self.receive();
        let way = input.byte();
        if way >= 224 || self.asked.is_empty() {
            self.lied = true;
            let count = usize::from(input.byte() % 64);
            let bytes: Vec<u8> = (0..count).map(|_| input.byte()).collect();
            return self.send(&bytes);
        }
        let which = usize::from(input.byte()) % self.asked.len();
        let header = self.asked.swap_remove(which);
        let mut data = match header.kind {
            Kind::Read => vec![BYTE; header.size as usize],
            _ => Vec::new(),
        };
        let mut answer = Header {
            kind: Kind::Response,
            payload: data.len() as u32,
            ..header
        };
        self.lied |= (3..=5).contains(&(way % 16));
        match way % 16 {
            0 => answer.sequence ^= 1 << (input.byte() % 32),
            1 | 2 => {
                data = b"write: no space left on device"[..usize::from(input.byte() % 31)].to_vec();
                answer.kind =
                    [Kind::Error, Kind::Eof, Kind::NoSpace][usize::from(input.byte() % 3)];
                answer.payload = data.len() as u32;
            }
            3 => answer.payload = u32::from_le_bytes(input.bytes()),
            4 => data.truncate(data.len() / 2),
            _ => {}
        }
        let mut bytes = answer.encode();
        if way % 16 == 5 {
            bytes[usize::from(input.byte()) % HEADER] = input.byte();
        }
        self.send(&bytes);
        self.send(&data);
    }
}

fn operation(input: &mut Input) -> (Operation, Option<Buffer>) {
    // Some are beyond the end, some where no block begins.
    let offset = u64::from(input.word()) * 32;
    let length = usize::from(input.byte()) * 256;
    let buffer = Buffer::zeroed(length);
    match input.byte() % 5 {
        0 | 1 => {
            let ours = buffer.part(buffer.len());
            (Operation::Read { offset, buffer }, Some(ours))
        }
        2 => (Operation::Write { offset, buffer }, None),
        3 => {
            let length = length as u64;
            let may_unmap = false;
            (
                Operation::WriteZeroes {
                    offset,
                    length,
                    may_unmap,
                },
                None,
            )
        }
        _ => (Operation::Flush, None),
    }
}

fuzz_target!(init: ignore_broken_pipes(), |data: &[u8]| {
    let mut input = Input::new(data);
    let (listener, path) = listener();
    let disk = EngineSocket::open(path, SIZE, false).expect("somebody listens");
    // It only tried.
    drop(listener.accept().expect("a connection"));
    let mut queue = disk.open_queue(64).expect("a queue");
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_nonblocking(true).expect("does not block");
    let mut peer = Peer {
        stream,
        received: Vec::new(),
        asked: Vec::new(),
        lied: false,
    };
    let mut reads: Vec<Option<Buffer>> = Vec::new();
    let mut done: Vec<Completion> = Vec::new();
    while !input.is_empty() && reads.len() < 64 {
        if input.byte() % 2 == 0 {
            let (operation, buffer) = operation(&mut input);
            let tag = reads.len() as u64;
            reads.push(buffer);
            queue.submit(Request { tag, operation });
            queue.kick();
        } else {
            peer.answer(&mut input);
            queue.reap(&mut done);
        }
    }
    let lied = peer.lied;
    drop(peer);
    let drained = queue.drain(Duration::from_secs(5), &mut done);
    drained.expect("each request is answered");
    assert_eq!(done.len(), reads.len());
    done.sort_by_key(|completion| completion.tag);
    for (tag, completion) in (0..).zip(done) {
        assert_eq!(completion.tag, tag, "answered once");
        let buffer = reads[tag as usize].take();
        if let (Some(buffer), Ok(()), false) = (buffer, completion.result, lied) {
            let mut bytes = vec![0; buffer.len() as usize];
            buffer.copy_to(&mut bytes);
            assert!(bytes.iter().all(|byte| *byte == BYTE), "not what was sent");
        }
    }
});
