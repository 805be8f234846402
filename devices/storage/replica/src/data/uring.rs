//! System calls by a ring of io_uring, used by the connection's thread alone: one entry into the kernel hands over what there is and
//! waits for what comes next.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::{Call, Driver};

/// Entries of the submission queue.
const ENTRIES: u32 = 256;

/// `IORING_RECVSEND_POLL_FIRST` (linux/io_uring.h): there is nothing to be received yet.
const POLL_FIRST: u16 = 1;

/// A ring.
pub(super) struct Uring {
    ring: IoUring,
    socket: RawFd,
    /// What does not fit yet.
    queue: VecDeque<(u64, Call)>,
    /// In the submission queue or in the kernel.
    handed_over: usize,
}

/// Whether the host lets us use what is needed.
///
/// # Errors
/// `Unsupported` when the kernel is too old, otherwise what it said.
pub(super) fn probe() -> io::Result<()> {
    let ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Recv::CODE,
        opcode::SendMsg::CODE,
        opcode::Read::CODE,
        opcode::Write::CODE,
    ];
    match needed.into_iter().all(|code| probe.is_supported(code)) {
        true => Ok(()),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl Uring {
    /// A ring for the connection of a thread.
    pub(super) fn new(socket: RawFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)
            // Linux before 6.1.
            .or_else(|_| IoUring::builder().dontfork().build(ENTRIES))?;
        Ok(Self {
            ring,
            socket,
            queue: VecDeque::new(),
            handed_over: 0,
        })
    }

    fn entry(&self, call: Call) -> squeue::Entry {
        match call {
            Call::Receive(memory, length) => {
                // With nothing else to do, the peer has yet to get an answer.
                let first = if self.handed_over == 0 { POLL_FIRST } else { 0 };
                opcode::Recv::new(types::Fd(self.socket), memory, length)
                    .ioprio(first)
                    .build()
            }
            Call::Send(message) => opcode::SendMsg::new(types::Fd(self.socket), message)
                .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned())
                .build(),
            Call::Read(file, memory, length, offset) => {
                opcode::Read::new(types::Fd(file), memory, length)
                    .offset(offset)
                    .build()
            }
            Call::Write(file, memory, length, offset) => {
                opcode::Write::new(types::Fd(file), memory, length)
                    .offset(offset)
                    .build()
            }
        }
    }

    /// Fills the submission queue, as far as there is a place for each completion.
    fn fill(&mut self) {
        let limit = self.ring.params().cq_entries() as usize;
        while self.handed_over < limit {
            let Some(&(token, call)) = self.queue.front() else {
                return;
            };
            let entry = self.entry(call).user_data(token);
            // SAFETY: whoever pushed the call keeps its memory until it has completed, or for good.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return;
            }
            self.queue.pop_front();
            self.handed_over += 1;
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            // It is tried again, after what has completed is taken.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Driver for Uring {
    fn push(&mut self, token: u64, call: Call) {
        self.queue.push_back((token, call));
    }

    fn submit(&mut self) -> io::Result<()> {
        self.fill();
        self.enter(0)
    }

    fn wait(&mut self, want: usize, done: &mut Vec<(u64, i32)>) -> io::Result<()> {
        self.fill();
        self.enter(want.min(self.handed_over))?;
        let before = done.len();
        done.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        self.handed_over -= done.len() - before;
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len() + self.handed_over
    }
}
