//! A queue, or several, on replicas that a test drives step by step: which request is answered next, how, and when a connection breaks. All on one
//! thread, so that what failed once fails again.

mod abandoned;
mod faults;
mod lost;
mod model;
mod silence;
mod simple;

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use paddock_longhorn::wire::{HEADER, Header, Kind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::member::{Member, Mode, Socket, Stream};
use super::super::shared::{Event, Frozen, Shared};
use super::VolumeQueue;
use crate::longhorn;
use crate::{Buffer, Completion, DiskQueue, IoError, Operation, Request};

/// How a replica answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Well,
    /// It does nothing, and says so.
    Refuse,
    /// There is no space: a write is done up to there.
    Full,
    /// It does it, and the connection breaks before it can say so.
    DoneAndGone,
    /// The connection breaks.
    Gone,
    /// It answers a request that nobody made.
    OtherSequence,
    /// It does not begin as a frame does.
    Garbage,
    /// A read is answered with fewer bytes.
    Short,
}

impl Manner {
    /// Whether an engine has reason to leave a replica that answers a write or a read so.
    fn spoils(self, writes: bool) -> bool {
        match self {
            Self::Well => false,
            Self::Full => writes,
            Self::Short => !writes,
            Self::Refuse | Self::DoneAndGone | Self::Gone | Self::OtherSequence | Self::Garbage => {
                true
            }
        }
    }
}

/// A request that a replica has.
#[derive(Debug)]
struct Pending {
    connection: usize,
    header: Header,
    data: Vec<u8>,
}

/// A connection, from the replica's side.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
    to_send: Vec<u8>,
    open: bool,
}

/// A replica in memory.
#[derive(Debug)]
struct Replica {
    member: Arc<Member>,
    bytes: Vec<u8>,
    wires: Vec<Wire>,
    pending: Vec<Pending>,
    /// It has not always answered well.
    spoiled: bool,
    /// While it is being rebuilt: what was there at the beginning, and the blocks that were written since.
    base: Option<(Vec<u8>, BTreeSet<usize>)>,
}

impl Replica {
    fn new(id: u32, size: usize, mode: Mode) -> Self {
        Self {
            member: Arc::new(Member::new(id, format!("replica-{id}"), mode)),
            bytes: vec![0; size],
            wires: Vec::new(),
            pending: Vec::new(),
            spoiled: false,
            base: None,
        }
    }

    /// A new connection to it.
    fn connect(&mut self) -> Arc<Socket> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("does not block");
        theirs.set_nonblocking(true).expect("does not block");
        self.wires.push(Wire {
            stream: theirs,
            received: Vec::new(),
            to_send: Vec::new(),
            open: true,
        });
        let socket = Socket::new(Stream::Unix(ours));
        self.member.adopt(&socket);
        socket
    }

    /// Takes in what was sent to it. Whether there was anything.
    fn receive(&mut self) -> bool {
        let mut any = false;
        for (connection, wire) in self.wires.iter_mut().enumerate() {
            let mut buffer = [0; 1 << 16];
            while let Ok(count @ 1..) = wire.stream.read(&mut buffer) {
                wire.received.extend_from_slice(&buffer[..count]);
                any = true;
            }
            while let Some(bytes) = wire.received.first_chunk::<HEADER>() {
                let header = Header::decode(bytes).expect("a frame");
                let end = HEADER + header.payload as usize;
                if wire.received.len() < end {
                    break;
                }
                let data = wire.received[HEADER..end].to_vec();
                wire.received.drain(..end);
                if wire.open {
                    self.pending.push(Pending {
                        connection,
                        header,
                        data,
                    });
                }
            }
        }
        any
    }

    /// Answers one of the requests it has, if it has any. Whether it had.
    fn answer(&mut self, which: usize, manner: Manner) -> bool {
        self.receive();
        if self.pending.is_empty() {
            return false;
        }
        let Pending {
            connection,
            header,
            data,
        } = self.pending.remove(which % self.pending.len());
        let start = usize::try_from(header.offset).expect("within the volume");
        let end = start + header.size as usize;
        let mut answer = Header {
            kind: Kind::Response,
            payload: 0,
            ..header
        };
        let mut payload = Vec::new();
        let writes = header.kind == Kind::Write;
        self.spoiled |= manner.spoils(writes);
        if let (Some((_, written)), true) = (&mut self.base, writes) {
            assert!(
                start.is_multiple_of(4096) && end.is_multiple_of(4096),
                "a part of a block"
            );
            written.extend(start / 4096..end / 4096);
        }
        match manner {
            Manner::Well
            | Manner::DoneAndGone
            | Manner::OtherSequence
            | Manner::Garbage
            | Manner::Short
                if writes =>
            {
                self.bytes[start..end].copy_from_slice(&data);
            }
            Manner::Full if writes => {
                let half = data.len() / 1024 * 512;
                self.bytes[start..start + half].copy_from_slice(&data[..half]);
            }
            _ => {}
        }
        match manner {
            Manner::Refuse => {
                answer.kind = Kind::Error;
                payload = b"input/output error".to_vec();
            }
            Manner::Full if writes => {
                answer.kind = Kind::Error;
                payload = b"write /r/volume-head-000.img: no space left on device".to_vec();
            }
            _ if !writes => payload = self.bytes[start..end].to_vec(),
            _ => {}
        }
        if manner == Manner::Short && !writes {
            payload.pop();
        }
        answer.payload = u32::try_from(payload.len()).expect("small");
        if manner == Manner::OtherSequence {
            answer.sequence ^= 1 << 20;
        }
        let mut bytes = answer.encode().to_vec();
        if manner == Manner::Garbage {
            bytes[0] ^= 0xff;
        }
        bytes.extend_from_slice(&payload);
        if matches!(manner, Manner::Gone | Manner::DoneAndGone) {
            self.cut(connection);
        } else {
            self.send(connection, &bytes);
        }
        true
    }

    fn send(&mut self, connection: usize, bytes: &[u8]) {
        self.wires[connection].to_send.extend_from_slice(bytes);
        self.flush();
    }

    /// Sends what the connections take. Whether they took anything.
    fn flush(&mut self) -> bool {
        let mut any = false;
        for wire in &mut self.wires {
            while !wire.to_send.is_empty() {
                match wire.stream.write(&wire.to_send) {
                    Ok(count) => drop(wire.to_send.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The engine has left the replica.
                    Err(_) => wire.to_send.clear(),
                }
                any = true;
            }
        }
        any
    }

    /// Breaks a connection: what it was sent is not done.
    fn cut(&mut self, connection: usize) {
        let wire = &mut self.wires[connection];
        wire.open = false;
        let _ = wire.stream.shutdown(std::net::Shutdown::Both);
        self.pending
            .retain(|pending| pending.connection != connection);
    }
}

/// A volume with replicas and queues, and nothing else.
struct Bench {
    shared: Arc<Shared>,
    replicas: Vec<Replica>,
    queues: Vec<VolumeQueue>,
    events: UnboundedReceiver<Event>,
    size: usize,
    next_id: u32,
}

impl Bench {
    fn new(replicas: u32, queues: usize, size: usize) -> Self {
        Self::with_record(replicas, queues, size, false)
    }

    fn with_record(replicas: u32, queues: usize, size: usize, records: bool) -> Self {
        let (sender, events) = unbounded_channel();
        let shared = Shared::new("v".to_owned(), size as u64, records, sender);
        let mut bench = Self {
            shared: Arc::new(shared),
            replicas: Vec::new(),
            queues: Vec::new(),
            events,
            size,
            next_id: 0,
        };
        for _ in 0..replicas {
            let replica = bench.new_replica(Mode::ReadWrite);
            bench.shared.add_member(Arc::clone(&replica.member));
            bench.replicas.push(replica);
        }
        for _ in 0..queues {
            bench.add_queue();
        }
        bench
    }

    fn new_replica(&mut self, mode: Mode) -> Replica {
        let id = self.next_id;
        self.next_id += 1;
        Replica::new(id, self.size, mode)
    }

    fn add_queue(&mut self) {
        let post = self.shared.add_post().expect("an eventfd");
        let connections = self
            .replicas
            .iter_mut()
            .filter(|replica| replica.member.mode() != Mode::Failed)
            .map(|replica| (Arc::clone(&replica.member), replica.connect()))
            .collect();
        let capabilities = longhorn::capabilities(self.size as u64, false);
        let queue = VolumeQueue::new(Arc::clone(&self.shared), post, capabilities, connections);
        self.queues.push(queue.expect("a queue"));
    }

    /// Adds a replica as one that is being rebuilt, as the control thread does.
    fn add_replica(&mut self, frozen: &Frozen) -> usize {
        let _ = frozen;
        let mut replica = self.new_replica(Mode::WriteOnly);
        for post in self.shared.connected_posts() {
            let socket = replica.connect();
            self.shared.send_connection(&post, &replica.member, socket);
        }
        self.shared.add_member(Arc::clone(&replica.member));
        self.replicas.push(replica);
        self.replicas.len() - 1
    }

    /// Goes on with all queues and has all replicas answer, well, until nothing is left to do. What completed, by queue.
    fn settle(&mut self) -> Vec<(usize, Completion)> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let mut quiet = true;
            for (index, queue) in self.queues.iter_mut().enumerate() {
                queue.kick();
                let mut completions = Vec::new();
                queue.reap(&mut completions);
                quiet &= completions.is_empty();
                all.extend(
                    completions
                        .into_iter()
                        .map(|completion| (index, completion)),
                );
            }
            for replica in &mut self.replicas {
                quiet &= !replica.flush() & !replica.receive();
                while replica.answer(0, Manner::Well) {
                    quiet = false;
                }
            }
            if quiet {
                return all;
            }
        }
        panic!("it never comes to rest");
    }

    /// Has one queue do a request, and waits for it.
    fn run(&mut self, queue: usize, operation: Operation) -> Result<(), IoError> {
        self.queues[queue].submit(Request { tag: 7, operation });
        let done = self.settle();
        assert_eq!(done.len(), 1, "{done:?}");
        done[0].1.result
    }

    fn modes(&self) -> Vec<Mode> {
        self.replicas
            .iter()
            .map(|replica| replica.member.mode())
            .collect()
    }
}

fn write(offset: u64, byte: u8, length: usize) -> Operation {
    Operation::Write {
        offset,
        buffer: Buffer::from(vec![byte; length]),
    }
}

fn read(offset: u64, length: usize) -> (Operation, Buffer) {
    let buffer = Buffer::zeroed(length);
    let theirs = buffer.part(buffer.len());
    let operation = Operation::Read {
        offset,
        buffer: theirs,
    };
    (operation, buffer)
}

fn contents(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(buffer.len()).expect("small")];
    buffer.copy_to(&mut bytes);
    bytes
}

/// Tries to freeze once more.
fn poll_freeze<F: Future<Output = Frozen>>(future: &mut Pin<Box<F>>) -> Option<Frozen> {
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(frozen) => Some(frozen),
        Poll::Pending => None,
    }
}
