//! The `Disk` contract between storage and its users (virtio-blk today; snapshots and mirrors later).
//!
//! A [`Disk`] is shared and says what it can do; a [`DiskQueue`] belongs to the one thread that submits to
//! it. Requests are owned and every one is answered by exactly one [`Completion`], also when the backend dies
//! or the request was nonsense: `submit` itself cannot fail. Stopping a queue is [`DiskQueue::drain`] until nothing is in flight.
//!
//! The guest chooses operation, offset, length and timing; nothing of that may panic or block.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::{Buffer, ResizeError};

/// What a disk can do. Asked, never assumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Size in bytes, a multiple of `logical_block_size`. May change while the disk is open: see [`Disk::size`].
    pub size: u64,
    /// Smallest addressable unit in bytes: a power of two, 512 to 4096.
    pub logical_block_size: u32,
    /// Smallest unit that is written without read-modify-write, in bytes; a power of two ≥ the logical size.
    pub physical_block_size: u32,
    /// Writes, discards and write-zeroes are refused.
    pub read_only: bool,
    /// Whether [`Operation::Discard`] does something.
    pub discard: bool,
    /// Alignment in bytes that discards should keep to be of use; 0 where `discard` is false.
    pub discard_granularity: u32,
    /// Whether [`Operation::WriteZeroes`] is to be preferred to writing zeros: it spares the submitter their memory and most of the requests, also
    /// where the disk can but write them. It is carried out in any case.
    pub write_zeroes: bool,
    /// Whether there is a volatile cache that [`Operation::Flush`] empties.
    pub flush: bool,
}

impl Capabilities {
    /// Whether an operation is one this disk does, within its end and its block size. Every backend asks this first, so
    /// that a guest gets the same answer from all of them. Nothing overflows, whatever the numbers.
    ///
    /// # Errors
    /// `ReadOnly` before `Unsupported` before `OutOfRange`.
    pub fn check(&self, operation: &Operation) -> Result<(), IoError> {
        let writes = !matches!(operation, Operation::Read { .. } | Operation::Flush);
        if writes && self.read_only {
            return Err(IoError::ReadOnly);
        }
        if matches!(operation, Operation::Discard { .. }) && !self.discard {
            return Err(IoError::Unsupported);
        }
        let Some((offset, length)) = operation.range() else {
            return Ok(());
        };
        let block = u64::from(self.logical_block_size.max(1));
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.size);
        if inside && offset % block == 0 && length % block == 0 {
            Ok(())
        } else {
            Err(IoError::OutOfRange)
        }
    }
}

impl Operation {
    /// The same operation on the same memory.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Read { offset, buffer } => Self::Read {
                offset: *offset,
                buffer: buffer.part(buffer.len()),
            },
            Self::Write { offset, buffer } => Self::Write {
                offset: *offset,
                buffer: buffer.part(buffer.len()),
            },
            Self::Flush => Self::Flush,
            Self::Discard { offset, length } => Self::Discard {
                offset: *offset,
                length: *length,
            },
            Self::WriteZeroes {
                offset,
                length,
                may_unmap,
            } => Self::WriteZeroes {
                offset: *offset,
                length: *length,
                may_unmap: *may_unmap,
            },
        }
    }

    /// Offset and length in bytes; `None` for a flush.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, buffer } | Self::Write { offset, buffer } => {
                Some((*offset, buffer.len()))
            }
            Self::Discard { offset, length } | Self::WriteZeroes { offset, length, .. } => {
                Some((*offset, *length))
            }
            Self::Flush => None,
        }
    }
}

/// What to do. Offsets and lengths are in bytes; those that break the disk's block size or end are answered with an error.
#[derive(Debug)]
pub enum Operation {
    /// Fills the buffer from `offset`.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Where the data goes; its length is the request's.
        buffer: Buffer,
    },
    /// Writes the buffer at `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Where the data comes from; its length is the request's.
        buffer: Buffer,
    },
    /// Every write completed before this one was submitted is on stable storage when it completes.
    Flush,
    /// The range's contents are no longer needed. A hint: afterwards they read as anything the disk likes.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Whether the space may be given back.
        may_unmap: bool,
    },
}

/// One request. `tag` is the submitter's and comes back with the completion.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the submitter; unique among what is in flight on the queue.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
}

/// Why an operation failed, in the terms that error policies and guests act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoError {
    /// Beyond the end, not a multiple of the block size, or a length that does not fit.
    OutOfRange,
    /// A write to a read-only disk.
    ReadOnly,
    /// The disk does not do this operation.
    Unsupported,
    /// The host said no: an errno, `ENOSPC` and `EIO` the usual ones.
    Os(i32),
}

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        Self::Os(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("range is outside the disk or not block-aligned"),
            Self::ReadOnly => f.write_str("disk is read-only"),
            Self::Unsupported => f.write_str("operation is not supported by the disk"),
            Self::Os(errno) => write!(f, "{}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for IoError {}

/// The answer to one request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// How it ended. A failed read leaves the buffer's contents undefined.
    pub result: Result<(), IoError>,
}

/// A disk: shared by its queues, and by whoever asks for its size.
pub trait Disk: Send + Sync + fmt::Debug {
    /// What the disk can do now.
    fn capabilities(&self) -> Capabilities;

    /// The present size in bytes.
    fn size(&self) -> u64 {
        self.capabilities().size
    }

    /// Makes the disk `size` bytes large, where that is in its power, or finds out how large it has become meanwhile. Requests are checked
    /// against the new size at once. Returns it; whoever has told a guest of the old one tells it. May block as storage does.
    ///
    /// # Errors
    /// When it would become smaller, or cannot be so large. Nothing has changed then.
    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        let _ = size;
        Err(ResizeError::Unsupported)
    }

    /// Whether a flush that failed may be made again and its success believed. Not through the kernel's page cache, which forgets what it
    /// could not write.
    fn repeats_flush(&self) -> bool {
        true
    }

    /// Opens a submission queue on which up to `depth` requests will be in flight at once.
    ///
    /// # Errors
    /// When the host does not give what the queue needs (descriptors, memory, threads).
    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>>;
}

/// A queue of one disk, used by one thread.
///
/// The loop of a user is: `submit` a batch, `kick`, `reap` (some of it may have ended at once: what was refused, what the page
/// cache had), and wait for `completion_event` as long as something is in flight. A queue may be able to wait itself: a user that has
/// it [`watch`](Self::watch) what else it waits for makes fewer system calls.
///
/// The thread that uses a queue is the one that opened it.
pub trait DiskQueue: Send {
    /// Takes a request over. It may wait to be handed to the host until [`kick`](Self::kick).
    fn submit(&mut self, request: Request);

    /// Hands what was submitted to the host, unless the next [`wait`](Self::wait) does. Call once after a batch.
    fn kick(&mut self);

    /// Becomes readable when there is something to [`reap`](Self::reap), unless the user waits by [`wait`](Self::wait). The queue resets
    /// it itself.
    fn completion_event(&self) -> BorrowedFd<'_>;

    /// Appends what has completed. Never blocks.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// Has [`wait`](Self::wait) wait for `fd`, too; to be asked for before the first request. Whether the queue can do that: if so, the user
    /// waits by `wait` while something is in flight, for nothing wakes up who waits for [`completion_event`](Self::completion_event).
    ///
    /// # Errors
    /// When the host gives no descriptor.
    fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let _ = fd;
        Ok(false)
    }

    /// Hands to the host what was submitted, and waits until there may be something to [`reap`](Self::reap), until somebody wakes those who
    /// poll what is watched, or until the timeout passes. Returns whether the latter may be readable.
    ///
    /// Only for a queue that can [`watch`](Self::watch), and only while something is in flight: the kernel counts who waits in it as
    /// waiting for a disk.
    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        let _ = timeout;
        true
    }

    /// What a user of [`wait`](Self::wait) has among what is watched, too: readable when there is something to do in the queue without
    /// a request having completed, such as to replay what was held. `None` for most. Asked for once, after [`watch`](Self::watch).
    fn notice(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Nobody waits for results any more. What the queue has held back from the host never gets there: it is answered with
    /// `ECANCELED`, and so is what is submitted later. What the host works on is reaped as ever.
    fn abandon(&mut self) {}

    /// Requests submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Waits until everything in flight has completed and appends it.
    ///
    /// # Errors
    /// `TimedOut` when something is still in flight at the deadline, or when all of that is held back, for nobody knows how long. The queue (and with it the buffers) must then
    /// be kept or dropped; dropping it waits for, or hands to the kernel for good, what still uses the buffers.
    fn drain(&mut self, deadline: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        let end = Instant::now() + deadline;
        let mut is_over = false;
        self.kick();
        loop {
            self.reap(completions);
            if self.in_flight() == 0 {
                return Ok(());
            }
            if is_over {
                return Err(io::ErrorKind::TimedOut.into());
            }
            is_over = Instant::now() >= end;
            self.await_completion(end)?;
        }
    }

    /// Waits until there may be something to [`reap`](Self::reap), at most until `end`; what [`drain`](Self::drain) does in between. Called once
    /// more when that has passed, to look without waiting.
    ///
    /// # Errors
    /// When the host fails to wait.
    fn await_completion(&mut self, end: Instant) -> io::Result<()> {
        crate::fd::wait_readable(self.completion_event(), end)
    }
}
