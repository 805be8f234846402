//! Reads on their way: from a command to pieces that the host reads, and from these to guest RAM.
//!
//! Runs on the device's worker. A read is carried out piece by piece, each into memory of its own, so that what the guest asks for costs
//! at most [`MAX_PIECES`] × [`PIECE`] bytes, and that a piece nobody waits for any more harms nobody.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paddock_storage::{Buffer, Completion, DiskQueue, IoError, Operation, Request};

use super::cdrom::{BLOCK, Sense};
use super::engine::Brakes;
use super::handle::{CdromHandle, Loaded};
use super::request::{Reply, Response, Status};
use crate::virtio::GuestMap;
use crate::virtio::chain::RingError;
use crate::virtio::worker::EventLoop;

/// The most bytes that the host is asked for at once; a multiple of a block.
const PIECE: u64 = 256 << 10;
/// How long a queue that is closed may take to end what nobody waits for any more.
const CLOSING: Duration = Duration::from_secs(1);
/// The most pieces on their way at once.
const MAX_PIECES: u16 = 16;

/// A command whose data the host reads.
#[derive(Debug)]
struct Read {
    tag: u64,
    reply: Reply,
    /// Next byte on the medium.
    offset: u64,
    /// Bytes that are in guest RAM.
    done: u64,
    /// Bytes of the command, in all.
    length: u64,
    /// The most bytes of its pieces.
    step: u64,
}

/// What the host was asked for.
#[derive(Debug)]
struct Piece {
    /// The command it is for; `None` when nobody waits for it any more.
    head: Option<u16>,
    memory: Buffer,
    length: u64,
}

/// A command that is to be answered.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) reply: Reply,
    pub(super) status: Status,
    pub(super) response: Response,
    /// Bytes of data in guest RAM.
    pub(super) transferred: u64,
}

/// The medium that is read.
struct Backend {
    generation: u64,
    /// In bytes.
    size: u64,
    queue: Box<dyn DiskQueue>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("generation", &self.generation)
            .field("in_flight", &self.queue.in_flight())
            .finish_non_exhaustive()
    }
}

/// All reads of a drive.
#[derive(Debug)]
pub(super) struct Reads {
    id: String,
    handle: CdromHandle,
    brakes: Arc<Brakes>,
    backend: Option<Backend>,
    /// By the chain's head.
    commands: BTreeMap<u16, Read>,
    /// Those that no piece is on its way for.
    waiting: VecDeque<u16>,
    /// By the tag that the host was given.
    pieces: BTreeMap<u64, Piece>,
    next_piece: u64,
    completions: Vec<Completion>,
    scratch: Vec<u8>,
}

impl Reads {
    pub(super) fn new(id: String, handle: CdromHandle, brakes: Arc<Brakes>) -> Self {
        Self {
            id,
            handle,
            brakes,
            backend: None,
            commands: BTreeMap::new(),
            waiting: VecDeque::new(),
            pieces: BTreeMap::new(),
            next_piece: 0,
            completions: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Whether this command is on its way.
    pub(super) fn has(&self, head: u16) -> bool {
        self.commands.contains_key(&head)
    }

    /// Whether a command that the driver calls so is on its way, or any at all.
    pub(super) fn has_tag(&self, tag: Option<u64>) -> bool {
        tag.map_or(!self.commands.is_empty(), |tag| {
            self.commands.values().any(|read| read.tag == tag)
        })
    }

    /// Opens the medium if it is not the one that is read already. Its completions arrive under `token`.
    pub(super) fn open(
        &mut self,
        loaded: &Loaded,
        events: &EventLoop,
        token: u32,
    ) -> io::Result<()> {
        if self
            .backend
            .as_ref()
            .is_some_and(|backend| backend.generation == loaded.generation)
        {
            return Ok(());
        }
        self.close(events);
        if self.handle.is_given_up(loaded.generation) {
            return Err(io::Error::other(
                "the host has left too many reads of it unanswered: insert it again",
            ));
        }
        let queue = loaded.disk.open_queue(MAX_PIECES)?;
        events.add(queue.completion_event(), token)?;
        self.backend = Some(Backend {
            generation: loaded.generation,
            size: loaded.disk.size(),
            queue,
        });
        Ok(())
    }

    /// Which medium is read.
    pub(super) fn generation(&self) -> Option<u64> {
        self.backend.as_ref().map(|backend| backend.generation)
    }

    /// Lets go of the medium. A host that does not answer is waited for for two seconds at most, half of them by the queue's own end.
    pub(super) fn close(&mut self, events: &EventLoop) {
        if let Some(mut backend) = self.backend.take() {
            let _ = events.remove(backend.queue.completion_event());
            let drained = backend.queue.drain(CLOSING, &mut self.completions);
            self.completions.clear();
            if drained.is_err() {
                self.handle.note_abandoned(backend.generation);
            }
        }
        self.pieces.clear();
    }

    /// Takes a command over: so many blocks, at least one, of the open medium; the reply has room for them.
    pub(super) fn begin(&mut self, reply: Reply, tag: u64, first: u64, blocks: u64) {
        let head = reply.head;
        let read = Read {
            tag,
            reply,
            offset: first * BLOCK,
            done: 0,
            length: blocks * BLOCK,
            step: PIECE,
        };
        self.commands.insert(head, read);
        self.waiting.push_back(head);
    }

    /// Hands pieces to the host and takes what it has read. Whether to come back at once.
    ///
    /// # Errors
    /// When guest RAM is gone.
    pub(super) fn pump(
        &mut self,
        memory: &GuestMap,
        ended: &mut Vec<Ended>,
    ) -> Result<bool, RingError> {
        self.submit();
        let Some(backend) = &mut self.backend else {
            return Ok(false);
        };
        backend.queue.kick();
        backend.queue.reap(&mut self.completions);
        self.take_completions(memory, ended)?;
        Ok(!self.waiting.is_empty() && self.pieces.len() < usize::from(MAX_PIECES))
    }

    fn submit(&mut self) {
        let Some(backend) = &mut self.backend else {
            return;
        };
        while self.pieces.len() < usize::from(MAX_PIECES) {
            let Some(head) = self.waiting.pop_front() else {
                return;
            };
            let Some(read) = self.commands.get(&head) else {
                continue;
            };
            let length = (read.length - read.done).min(read.step);
            let memory = Buffer::zeroed(usize::try_from(length).unwrap_or(0));
            // The last block may be longer than what is there; the rest of it stays zero.
            let there = backend.size.saturating_sub(read.offset).min(length);
            let tag = self.next_piece;
            self.next_piece += 1;
            backend.queue.submit(Request {
                tag,
                operation: Operation::Read {
                    offset: read.offset,
                    buffer: memory.part(there),
                },
            });
            let head = Some(head);
            let piece = Piece {
                head,
                memory,
                length,
            };
            self.pieces.insert(tag, piece);
        }
    }

    fn take_completions(
        &mut self,
        memory: &GuestMap,
        ended: &mut Vec<Ended>,
    ) -> Result<(), RingError> {
        let mut completions = std::mem::take(&mut self.completions);
        let mut result = Ok(());
        for Completion { tag, result: read } in completions.drain(..) {
            if let Some(piece) = self.pieces.remove(&tag) {
                // The rest is taken in any case: the host is done with it.
                let taken = self.finish(&piece, read, memory, ended);
                result = result.and(taken);
            }
        }
        self.completions = completions;
        result
    }

    /// One piece is there, or cannot be had.
    fn finish(
        &mut self,
        piece: &Piece,
        result: Result<(), IoError>,
        memory: &GuestMap,
        ended: &mut Vec<Ended>,
    ) -> Result<(), RingError> {
        let Some(head) = piece.head else {
            return Ok(());
        };
        let Some(read) = self.commands.get_mut(&head) else {
            return Ok(());
        };
        let status = match result {
            Ok(()) => {
                let length = usize::try_from(piece.length).unwrap_or(0);
                self.scratch.resize(length, 0);
                piece.memory.copy_to(&mut self.scratch);
                let data = &read.reply.data;
                data.copy_from(memory, read.done, &self.scratch)?;
                read.done += piece.length;
                read.offset += piece.length;
                let counters = self.handle.counters();
                counters
                    .read_bytes
                    .fetch_add(piece.length, Ordering::Relaxed);
                if read.done < read.length {
                    self.waiting.push_back(head);
                    return Ok(());
                }
                Status::Good
            }
            Err(_) if piece.length > BLOCK => {
                // Drivers want to know which block it is, and to have those before it.
                read.step = BLOCK;
                self.waiting.push_back(head);
                return Ok(());
            }
            Err(error) => {
                self.handle
                    .counters()
                    .errors
                    .fetch_add(1, Ordering::Relaxed);
                if let Some(held_back) = self.brakes.failures.pass() {
                    let (cdrom, offset) = (&self.id, read.offset);
                    tracing::warn!(cdrom, %error, offset, held_back, "the medium cannot be read");
                }
                Status::Check(Sense::unreadable(read.offset / BLOCK))
            }
        };
        self.end(head, status, Response::Ok, ended);
        Ok(())
    }

    /// Ends the commands that `which` says, by the driver's tag.
    pub(super) fn abort(
        &mut self,
        which: impl Fn(u64) -> bool,
        status: Status,
        response: Response,
        ended: &mut Vec<Ended>,
    ) {
        let heads: Vec<u16> = self
            .commands
            .iter()
            .filter(|(_, read)| which(read.tag))
            .map(|(head, _)| *head)
            .collect();
        for head in heads {
            self.end(head, status, response, ended);
        }
    }

    fn end(&mut self, head: u16, status: Status, response: Response, ended: &mut Vec<Ended>) {
        let Some(read) = self.commands.remove(&head) else {
            return;
        };
        self.waiting.retain(|other| *other != head);
        // The driver may use the head again before the host is done.
        for piece in self.pieces.values_mut().filter(|p| p.head == Some(head)) {
            piece.head = None;
        }
        ended.push(Ended {
            transferred: read.done,
            reply: read.reply,
            status,
            response,
        });
    }

    /// Waits for what the host was asked for, and ends everything: what is not all there, BUSY.
    ///
    /// # Errors
    /// When guest RAM is gone.
    pub(super) fn settle(
        &mut self,
        deadline: Duration,
        memory: &GuestMap,
        ended: &mut Vec<Ended>,
    ) -> Result<(), RingError> {
        let waited_for = self.pieces.values().any(|piece| piece.head.is_some());
        if let Some(backend) = self.backend.as_mut().filter(|_| waited_for) {
            let drained = backend.queue.drain(deadline, &mut self.completions);
            if let Err(error) = drained {
                if let Some(held_back) = self.brakes.failures.pass() {
                    let cdrom = &self.id;
                    tracing::error!(cdrom, %error, held_back, "the host does not read the medium in time");
                }
            }
        }
        let taken = self.take_completions(memory, ended);
        self.abort(|_| true, Status::Busy, Response::Ok, ended);
        taken
    }
}
