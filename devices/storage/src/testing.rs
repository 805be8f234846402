//! A disk in memory for tests: it answers when it is told to, out of order, with scripted errors, or not at all.
//!
//! Everything happens in [`DiskQueue::kick`] and [`DiskQueue::reap`] on the caller's thread; there is no hidden concurrency.
#![expect(
    unsafe_code,
    reason = "buffers whose segments lie as badly as a guest's"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{Buffer, Capabilities, Completion, Disk, DiskQueue, IoError, Operation, Request};

/// A buffer cut into segments of these lengths, each `gap` bytes after the end of the one before, in reverse order of addresses.
/// With an odd gap no segment is aligned; without one the last lies at a page.
#[must_use]
pub fn scattered(lengths: &[usize], gap: usize) -> Buffer {
    let total: usize = lengths.iter().map(|length| length + gap).sum();
    let whole = Buffer::zeroed(total + gap + 4096);
    let base = whole.segments()[0].iov_base.cast::<u8>();
    let base = base.wrapping_add(base.align_offset(4096));
    let mut end = total + gap;
    let segments = lengths.iter().map(|&length| {
        end -= length + gap;
        libc::iovec {
            iov_base: base.wrapping_add(end + gap).cast(),
            iov_len: length,
        }
    });
    let segments = segments.collect();
    // SAFETY: each segment is a part of `whole`, which the new buffer keeps alive.
    unsafe { Buffer::from_raw(segments, Arc::new(whole)) }
}

/// A second buffer on the memory of the first: an operation owns its buffer, so what was read is seen through another.
#[must_use]
pub fn alias(buffer: &Buffer) -> Buffer {
    buffer.part(buffer.len())
}

/// How long requests of tests may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Has a queue on which nothing is in flight do one thing.
///
/// # Errors
/// The request's.
///
/// # Panics
/// When the answer takes too long, or is none.
pub fn run(queue: &mut dyn DiskQueue, operation: Operation) -> Result<(), IoError> {
    let tag = 7;
    queue.submit(Request { tag, operation });
    let mut done = Vec::new();
    queue.drain(DEADLINE, &mut done).expect("answered in time");
    assert_eq!((done.len(), done[0].tag), (1, 7));
    done[0].result
}

/// Reads into segments of these lengths that lie as [`scattered`] says.
///
/// # Panics
/// When that fails.
pub fn read(queue: &mut dyn DiskQueue, offset: u64, lengths: &[usize], gap: usize) -> Vec<u8> {
    let buffer = scattered(lengths, gap);
    let mut bytes = vec![0; lengths.iter().sum()];
    let view = alias(&buffer);
    run(queue, Operation::Read { offset, buffer }).expect("read");
    view.copy_to(&mut bytes);
    bytes
}

/// What happens to the next operation that is neither refused nor out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It works.
    None,
    /// It fails without effect.
    Error(IoError),
    /// A write writes only so many bytes, then fails; anything else fails without effect.
    Torn(usize, IoError),
    /// It is answered only after this many further calls of `reap`.
    Delay(usize),
    /// It is answered only after [`MemoryDisk::release`].
    Stuck,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    faults: VecDeque<Fault>,
    released: bool,
    flushes: usize,
    queues: usize,
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    capabilities: Capabilities,
    repeats_flush: bool,
}

impl MemoryDisk {
    /// A zeroed disk of `size` bytes with 512-byte blocks that can do everything.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self::with(Capabilities {
            size: size as u64,
            logical_block_size: 512,
            physical_block_size: 4096,
            read_only: false,
            discard: true,
            discard_granularity: 4096,
            write_zeroes: true,
            flush: true,
        })
    }

    /// A zeroed disk with these capabilities.
    #[must_use]
    pub fn with(capabilities: Capabilities) -> Self {
        let size = usize::try_from(capabilities.size).unwrap_or(0);
        let state = State {
            bytes: vec![0; size],
            faults: VecDeque::new(),
            released: false,
            flushes: 0,
            queues: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            capabilities,
            repeats_flush: true,
        }
    }

    /// The same disk, whose flushes cannot be repeated, as those through the kernel's page cache.
    #[must_use]
    pub fn forgetting_flushes(mut self) -> Self {
        self.repeats_flush = false;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to the next operations, one each, before all goes well again.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Lets go of everything stuck, now and later.
    pub fn release(&self) {
        self.lock().released = true;
    }

    /// A copy of the contents.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Replaces the beginning of the contents.
    pub fn fill(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let length = bytes.len().min(state.bytes.len());
        state.bytes[..length].copy_from_slice(&bytes[..length]);
    }

    /// How many flushes were completed.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// How many queues are open.
    #[must_use]
    pub fn open_queues(&self) -> usize {
        self.lock().queues
    }
}

impl Disk for MemoryDisk {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn repeats_flush(&self) -> bool {
        self.repeats_flush
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.lock().queues += 1;
        Ok(Box::new(MemoryQueue {
            disk: self.clone(),
            event,
            submitted: VecDeque::new(),
            held: Vec::new(),
        }))
    }
}

/// A request on its way.
struct Held {
    request: Request,
    fault: Fault,
    answer: Option<Result<(), IoError>>,
}

struct MemoryQueue {
    disk: MemoryDisk,
    event: EventFd,
    submitted: VecDeque<Request>,
    held: Vec<Held>,
}

impl MemoryQueue {
    fn begin(&self, request: Request) -> Held {
        let fault = match self.disk.capabilities.check(&request.operation) {
            Err(error) => Fault::Error(error),
            Ok(()) => self.disk.lock().faults.pop_front().unwrap_or(Fault::None),
        };
        Held {
            request,
            fault,
            answer: None,
        }
    }

    /// Carries out what is due. Whatever is still delayed comes one call closer.
    fn advance(&mut self) {
        let mut state = self.disk.lock();
        for held in self.held.iter_mut().filter(|held| held.answer.is_none()) {
            match held.fault {
                Fault::Delay(left) if left > 0 => held.fault = Fault::Delay(left - 1),
                Fault::Stuck if !state.released => {}
                fault => held.answer = Some(perform(&mut state, &held.request.operation, fault)),
            }
        }
    }
}

fn perform(state: &mut State, operation: &Operation, fault: Fault) -> Result<(), IoError> {
    let (offset, length) = operation.range().unwrap_or((0, 0));
    // The range was checked against the size of `bytes`.
    let start = usize::try_from(offset).map_err(|_| IoError::OutOfRange)?;
    let length = usize::try_from(length).map_err(|_| IoError::OutOfRange)?;
    match (fault, operation) {
        (Fault::Torn(part, error), Operation::Write { buffer, .. }) => {
            buffer.copy_to(&mut state.bytes[start..start + length.min(part)]);
            return Err(error);
        }
        (Fault::Error(error) | Fault::Torn(_, error), _) => return Err(error),
        _ => {}
    }
    let range = start..start + length;
    match operation {
        Operation::Read { buffer, .. } => {
            buffer.copy_from(&state.bytes[range]);
        }
        Operation::Write { buffer, .. } => {
            buffer.copy_to(&mut state.bytes[range]);
        }
        Operation::Flush => state.flushes += 1,
        // Discarded bytes may read as anything; a pattern finds those who rely on zeros.
        Operation::Discard { .. } => state.bytes[range].fill(0xdd),
        Operation::WriteZeroes { .. } => state.bytes[range].fill(0),
    }
    Ok(())
}

impl DiskQueue for MemoryQueue {
    fn submit(&mut self, request: Request) {
        self.submitted.push_back(request);
    }

    fn kick(&mut self) {
        while let Some(request) = self.submitted.pop_front() {
            let held = self.begin(request);
            self.held.push(held);
        }
        self.advance();
        // Delayed ones need further calls of `reap`, so they count as something to look at.
        let due = self.held.iter().any(|held| held.fault != Fault::Stuck);
        if due {
            let _ = self.event.write(1);
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.event)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let _ = self.event.read();
        self.advance();
        // Last in, first out: users must not rely on order.
        for index in (0..self.held.len()).rev() {
            if let Some(result) = self.held[index].answer {
                let tag = self.held.remove(index).request.tag;
                completions.push(Completion { tag, result });
            }
        }
        if self.held.iter().any(|held| held.fault != Fault::Stuck) {
            let _ = self.event.write(1);
        }
    }

    fn in_flight(&self) -> usize {
        self.submitted.len() + self.held.len()
    }

    fn await_completion(&mut self, _end: Instant) -> io::Result<()> {
        // What is stuck is let go of without a word.
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }
}

impl Drop for MemoryQueue {
    fn drop(&mut self) {
        self.disk.lock().queues -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, MemoryDisk};
    use crate::{Buffer, Disk, IoError, Operation, Request};
    use std::time::Duration;

    fn write(tag: u64, offset: u64, byte: u8) -> Request {
        let buffer = Buffer::from(vec![byte; 512]);
        Request {
            tag,
            operation: Operation::Write { offset, buffer },
        }
    }

    #[test]
    fn faults_come_in_the_order_of_the_script() {
        let disk = MemoryDisk::new(4096);
        disk.script([
            Fault::Torn(100, IoError::Os(libc::EIO)),
            Fault::Delay(2),
            Fault::Stuck,
        ]);
        let mut queue = disk.open_queue(8).unwrap();
        for (tag, byte) in [(0, 1), (1, 2), (2, 3)] {
            queue.submit(write(tag, tag * 512, byte));
        }
        queue.submit(write(3, 4096, 4));
        let mut done = Vec::new();
        let error = queue.drain(Duration::from_millis(20), &mut done);
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        let tags: Vec<_> = done.iter().map(|c| (c.tag, c.result)).collect();
        assert_eq!(
            tags,
            [
                (3, Err(IoError::OutOfRange)),
                (0, Err(IoError::Os(libc::EIO))),
                (1, Ok(()))
            ]
        );
        disk.release();
        done.clear();
        queue.drain(Duration::ZERO, &mut done).unwrap();
        assert_eq!(done.len(), 1);
        let bytes = disk.contents();
        assert_eq!((bytes[99], bytes[100]), (1, 0));
        assert_eq!((bytes[512], bytes[1024]), (2, 3));
    }
}
