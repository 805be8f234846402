//! One request on its way: which system call comes next, and what its result means.
//!
//! Both engines drive this state machine: [`Task::prepare`] gives a step, the engine has the kernel do it, [`Task::finish`]
//! looks at the result. Here are the short reads and writes, the retries, the bounce buffers and the fall-backs.
//! The guest chooses offset, lengths and addresses; a step is bounded, whatever the request's length.

use super::Image;
use super::memory::{Aligned, BOUNCE_SIZE, Bounces, zeros};
use crate::{Buffer, IoError, Operation, Request};

/// The most bytes of one read or write.
const MAX_TRANSFER: u64 = 4 << 20;

/// The most segments of one read or write: the kernel's UIO_MAXIOV.
const MAX_SEGMENTS: usize = 1024;

/// The most bytes of one fallocate, which the kernel does in one go.
const MAX_ALLOCATE: u64 = 256 << 20;

/// How often an interrupted call is made again before its error is believed.
const MAX_RETRIES: u8 = 100;

/// A system call on the image. Segments stay where they are, and valid, until the task is finished with the step or dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Read(*const libc::iovec, usize, u64),
    Write(*const libc::iovec, usize, u64),
    Sync,
    Allocate(libc::c_int, u64, u64),
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another step is to follow.
    Again,
    /// The request is answered.
    Done(Result<(), IoError>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero(Zeroing),
}

/// The ways to zero a range, from the cheapest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    Punch,
    ZeroRange,
    Write,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Task {
    pub tag: u64,
    kind: Kind,
    /// Next byte on the disk.
    offset: u64,
    /// Bytes that are left.
    left: u64,
    /// Keeps the memory of a read or write where it is.
    buffer: Option<Buffer>,
    /// The next byte in the buffer.
    cursor: Cursor,
    bounce: Option<Aligned>,
    /// Segments of the step under way, unless they are the buffer's own.
    iovecs: Vec<libc::iovec>,
    /// Bytes of the step under way.
    step: u64,
    retries: u8,
}

#[expect(unsafe_code, reason = "iovecs hold raw pointers")]
// SAFETY: the raw segments in `iovecs` point into the buffer, the bounce buffer or the static zeros, all of them Send.
unsafe impl Send for Task {}

/// A place in a buffer: a segment and a byte of it.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    segment: usize,
    byte: usize,
}

impl Cursor {
    fn advance(&mut self, buffer: &Buffer, mut bytes: u64) {
        while let Some(segment) = buffer.segments().get(self.segment) {
            let rest = (segment.iov_len - self.byte) as u64;
            if bytes < rest {
                // Less than a segment.
                self.byte += usize::try_from(bytes).unwrap_or(0);
                return;
            }
            bytes -= rest;
            *self = Self {
                segment: self.segment + 1,
                byte: 0,
            };
        }
    }

    /// The segments from here on, cut to `limit` bytes and `MAX_SEGMENTS`. Returns their bytes.
    fn collect(self, buffer: &Buffer, limit: u64, iovecs: &mut Vec<libc::iovec>) -> u64 {
        let mut total = 0;
        let mut skip = self.byte;
        for segment in buffer
            .segments()
            .iter()
            .skip(self.segment)
            .take(MAX_SEGMENTS)
        {
            let room = usize::try_from(limit - total).unwrap_or(usize::MAX);
            let part = (segment.iov_len - skip).min(room);
            if part == 0 && total == limit {
                break;
            }
            iovecs.push(libc::iovec {
                iov_base: segment.iov_base.cast::<u8>().wrapping_add(skip).cast(),
                iov_len: part,
            });
            total += part as u64;
            skip = 0;
        }
        total
    }
}

impl Task {
    /// Takes a request over, or answers it at once: out of range, refused, or nothing to do.
    pub(super) fn new(request: Request, image: &Image) -> Result<Self, Result<(), IoError>> {
        image
            .capabilities()
            .check(&request.operation)
            .map_err(Err)?;
        let (offset, left) = request.operation.range().unwrap_or((0, 0));
        let (kind, buffer) = match request.operation {
            Operation::Read { buffer, .. } => (Kind::Read, Some(buffer)),
            Operation::Write { buffer, .. } => (Kind::Write, Some(buffer)),
            Operation::Flush => (Kind::Flush, None),
            Operation::Discard { .. } => (Kind::Discard, None),
            Operation::WriteZeroes { may_unmap, .. } => {
                let way = if may_unmap {
                    Zeroing::Punch
                } else {
                    Zeroing::ZeroRange
                };
                (Kind::Zero(way), None)
            }
        };
        if left == 0 && kind != Kind::Flush {
            return Err(Ok(()));
        }
        Ok(Self {
            tag: request.tag,
            kind,
            offset,
            left,
            buffer,
            cursor: Cursor::default(),
            bounce: None,
            iovecs: Vec::new(),
            step: 0,
            retries: 0,
        })
    }

    /// The next step; `None` when it has to wait for a bounce buffer.
    pub(super) fn prepare(&mut self, image: &Image, bounces: &mut Bounces) -> Option<Step> {
        match self.kind {
            Kind::Read | Kind::Write => {
                let (segments, count) = self.transfer(image, bounces)?;
                Some(if self.kind == Kind::Read {
                    Step::Read(segments, count, self.offset)
                } else {
                    Step::Write(segments, count, self.offset)
                })
            }
            Kind::Flush => Some(Step::Sync),
            Kind::Discard | Kind::Zero(Zeroing::Punch) => {
                Some(self.allocate(libc::FALLOC_FL_PUNCH_HOLE))
            }
            Kind::Zero(Zeroing::ZeroRange) => Some(self.allocate(libc::FALLOC_FL_ZERO_RANGE)),
            Kind::Zero(Zeroing::Write) => {
                self.iovecs.clear();
                self.step = 0;
                let limit = self.left.min(MAX_TRANSFER);
                while self.step < limit {
                    let part = usize::try_from(limit - self.step).unwrap_or(usize::MAX);
                    let segment = zeros().segment(part);
                    self.step += segment.iov_len as u64;
                    self.iovecs.push(segment);
                }
                Some(Step::Write(
                    self.iovecs.as_ptr(),
                    self.iovecs.len(),
                    self.offset,
                ))
            }
        }
    }

    fn allocate(&mut self, mode: libc::c_int) -> Step {
        self.step = self.left.min(MAX_ALLOCATE);
        Step::Allocate(mode | libc::FALLOC_FL_KEEP_SIZE, self.offset, self.step)
    }

    /// The segments of the next read or write.
    fn transfer(
        &mut self,
        image: &Image,
        bounces: &mut Bounces,
    ) -> Option<(*const libc::iovec, usize)> {
        let buffer = self.buffer.as_ref()?;
        let block = image.capabilities.logical_block_size as usize;
        let aligned = image
            .direct
            .is_none_or(|address| buffer.is_aligned(address, block));
        let whole = self.cursor.segment == 0 && self.cursor.byte == 0;
        if aligned && whole && self.left <= MAX_TRANSFER && buffer.segments().len() <= MAX_SEGMENTS
        {
            self.step = self.left;
            return Some((buffer.segments().as_ptr(), buffer.segments().len()));
        }
        self.iovecs.clear();
        if aligned {
            let limit = self.left.min(MAX_TRANSFER);
            self.step = self.cursor.collect(buffer, limit, &mut self.iovecs);
        } else {
            if self.bounce.is_none() {
                self.bounce = Some(bounces.take()?);
            }
            let bounce = self.bounce.as_ref()?;
            let limit =
                usize::try_from(self.left).map_or(BOUNCE_SIZE, |left| left.min(BOUNCE_SIZE));
            let segment = bounce.segment(limit);
            self.step = segment.iov_len as u64;
            if self.kind == Kind::Write {
                copy(buffer, self.cursor, segment, Direction::Out);
            }
            self.iovecs.push(segment);
        }
        Some((self.iovecs.as_ptr(), self.iovecs.len()))
    }

    /// Looks at the result of the step: a count of bytes, or a negated errno.
    pub(super) fn finish(&mut self, result: i32, image: &Image) -> Progress {
        let Ok(bytes) = u32::try_from(result) else {
            return self.failed(result.saturating_neg());
        };
        let bytes = match self.kind {
            Kind::Flush => return Progress::Done(Ok(())),
            Kind::Discard | Kind::Zero(Zeroing::Punch | Zeroing::ZeroRange) => self.step,
            Kind::Read | Kind::Write | Kind::Zero(Zeroing::Write) => {
                match self.transferred(u64::from(bytes).min(self.step), image) {
                    0 => return Progress::Done(Err(IoError::Os(libc::EIO))),
                    bytes => bytes,
                }
            }
        };
        self.retries = 0;
        self.offset += bytes;
        self.left -= bytes;
        if self.left == 0 {
            Progress::Done(Ok(()))
        } else {
            Progress::Again
        }
    }

    /// Moves on in the buffer. Nothing at all is the end of the file, which must have become shorter behind our back if it is not where
    /// the padding begins.
    fn transferred(&mut self, bytes: u64, image: &Image) -> u64 {
        let beyond = |end| self.offset >= end;
        if bytes == 0 && self.kind == Kind::Read && image.padded_from.is_some_and(beyond) {
            return self.pad();
        }
        // A short transfer is continued where O_DIRECT can continue: at a block.
        let bytes = if bytes < self.step && image.direct.is_some() {
            bytes - bytes % u64::from(image.capabilities.logical_block_size)
        } else {
            bytes
        };
        if let Some(buffer) = &self.buffer {
            if let (Kind::Read, Some(bounce)) = (self.kind, &self.bounce) {
                let done = usize::try_from(bytes).unwrap_or(0);
                copy(buffer, self.cursor, bounce.segment(done), Direction::In);
            }
            self.cursor.advance(buffer, bytes);
        }
        bytes
    }

    /// Fills a piece of what is left with zeros.
    fn pad(&mut self) -> u64 {
        let Some(buffer) = &self.buffer else {
            return 0;
        };
        let zeros = zeros().segment(usize::try_from(self.left).unwrap_or(usize::MAX));
        copy(buffer, self.cursor, zeros, Direction::In);
        self.step = zeros.iov_len as u64;
        self.cursor.advance(buffer, self.step);
        self.step
    }

    fn failed(&mut self, errno: i32) -> Progress {
        match (errno, self.kind) {
            (libc::EINTR | libc::EAGAIN, _) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                Progress::Again
            }
            (libc::EOPNOTSUPP, Kind::Zero(Zeroing::Punch)) => {
                self.kind = Kind::Zero(Zeroing::ZeroRange);
                Progress::Again
            }
            (libc::EOPNOTSUPP, Kind::Zero(Zeroing::ZeroRange)) => {
                self.kind = Kind::Zero(Zeroing::Write);
                Progress::Again
            }
            (libc::EOPNOTSUPP, Kind::Discard) => Progress::Done(Err(IoError::Unsupported)),
            _ => Progress::Done(Err(IoError::Os(errno))),
        }
    }

    /// Whether the last result said that the call would have to wait.
    pub(super) fn is_retry(&self) -> bool {
        self.retries > 0
    }

    /// Gives the bounce buffer back. Only once the kernel is done with the step.
    pub(super) fn release(self, bounces: &mut Bounces) {
        if let Some(bounce) = self.bounce {
            bounces.give(bounce);
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    /// From the buffer to the bounce buffer.
    Out,
    /// From the bounce buffer to the buffer.
    In,
}

/// Copies between a buffer from `cursor` on and a piece of aligned memory, which the buffer has room for.
#[expect(unsafe_code, reason = "copies between raw segments")]
fn copy(buffer: &Buffer, cursor: Cursor, bounce: libc::iovec, direction: Direction) {
    let mut pieces = Vec::new();
    let mut place = cursor;
    let mut done = 0;
    while done < bounce.iov_len {
        pieces.clear();
        let limit = (bounce.iov_len - done) as u64;
        let got = place.collect(buffer, limit, &mut pieces);
        if got == 0 {
            return;
        }
        for piece in &pieces {
            let theirs = piece.iov_base.cast::<u8>();
            let ours = bounce.iov_base.cast::<u8>().wrapping_add(done);
            let (from, to) = match direction {
                Direction::Out => (theirs, ours),
                Direction::In => (ours, theirs),
            };
            // SAFETY: the piece is a part of a segment of the buffer, valid while the buffer lives; `ours` has at least
            // `limit` bytes left and belongs to this task alone, so the two do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(from, to, piece.iov_len) };
            done += piece.iov_len;
        }
        place.advance(buffer, got);
    }
}
