//! System calls by a ring of io_uring, used by the connection's thread alone: one entry into the kernel hands over what there is and
//! waits for what comes next. A kernel that lacks memory is asked again; after any other error what it has not taken fails, and what it has
//! is waited for.
#![expect(
    unsafe_code,
    reason = "submission entries point to memory that must outlive the operation"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::{Call, Driver};

/// Entries of the submission queue.
const ENTRIES: u32 = 256;

/// `IORING_RECVSEND_POLL_FIRST` (linux/io_uring.h): there is nothing to be received yet.
const POLL_FIRST: u16 = 1;

/// `IORING_ENTER_GETEVENTS` and `IORING_ENTER_EXT_ARG` (linux/io_uring.h).
const GET_EVENTS: u32 = 1 | 1 << 3;

/// How long to leave a kernel alone that lacks memory.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the kernel may take nothing for want of memory. Engines wait for eight seconds or more.
const BUSY_DEADLINE: Duration = Duration::from_secs(5);

/// How long a wait in a ring lasts that has failed.
const MOMENT: Duration = Duration::from_millis(10);

/// How long a ring that has failed may not even be waited in, with nothing completed.
const DEAF_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });

/// In tests, the errors of this thread's next entries into the kernel that hand something over.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    thread_local! {
        static NEXT: RefCell<VecDeque<Option<i32>>> = RefCell::default();
    }

    pub(in crate::data) fn plant(errors: impl IntoIterator<Item = Option<i32>>) {
        NEXT.with_borrow_mut(|next| next.extend(errors));
    }

    pub(super) fn enter() -> std::io::Result<()> {
        match NEXT.with_borrow_mut(VecDeque::pop_front).flatten() {
            Some(errno) => Err(std::io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

/// The kernel is about to be entered.
#[cfg(not(test))]
mod faults {
    pub(super) fn enter() -> std::io::Result<()> {
        Ok(())
    }
}

/// A ring.
pub(super) struct Uring {
    ring: IoUring,
    socket: RawFd,
    /// What does not fit yet.
    queue: VecDeque<(u64, Call)>,
    /// The tokens of what is in the submission queue and not yet the kernel's, in order.
    pushed: VecDeque<u64>,
    /// In the submission queue or in the kernel.
    handed_over: usize,
    /// Since when the kernel takes nothing for want of memory.
    busy: Option<Instant>,
    /// The kernel no longer takes anything, for this reason.
    dead: Option<i32>,
    /// Since when a dead ring cannot be waited in.
    deaf: Option<Instant>,
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
            pushed: VecDeque::new(),
            handed_over: 0,
            busy: None,
            dead: None,
            deaf: None,
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
            self.pushed.push_back(token);
            self.handed_over += 1;
        }
    }

    /// Takes note of what the kernel has taken from the submission queue, which it does in order.
    fn note_taken(&mut self) {
        let waiting = self.ring.submission().len();
        let taken = self.pushed.len().saturating_sub(waiting);
        if taken > 0 {
            self.busy = None;
        }
        self.pushed.drain(..taken);
    }

    /// Hands over what there is, unless the ring is dead, and waits until so many calls have completed, or for a moment if the kernel lacks memory.
    fn enter(&mut self, want: usize) {
        if self.dead.is_some() {
            return;
        }
        self.fill();
        let result =
            faults::enter().and_then(|()| self.ring.submit_and_wait(want.min(self.handed_over)));
        self.note_taken();
        let Err(error) = result else {
            self.busy = None;
            return;
        };
        match error.raw_os_error() {
            // It is tried again, after what has completed is taken.
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                if self.busy.get_or_insert_with(Instant::now).elapsed() < BUSY_DEADLINE =>
            {
                std::thread::sleep(PAUSE);
            }
            // Of a call that would be one to be made again.
            Some(libc::EAGAIN) => self.dead = Some(libc::ENOMEM),
            errno => self.dead = Some(errno.unwrap_or(libc::EIO)),
        }
    }

    /// Waits in a dead ring, for a moment if `want` is not zero, for what the kernel has. Hands nothing over.
    fn gather(&mut self, want: u32) -> io::Result<()> {
        let moment = types::Timespec::from(MOMENT);
        let arguments = types::SubmitArgs::new().timespec(&moment);
        let submitter = self.ring.submitter();
        // SAFETY: the arguments are what the flags say they are and outlive the call; nothing is submitted.
        let result = unsafe { submitter.enter(0, want, GET_EVENTS, Some(&arguments)) };
        match result {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {
                std::thread::sleep(MOMENT);
                let deaf = *self.deaf.get_or_insert_with(Instant::now);
                match self.ring.completion().is_empty() && deaf.elapsed() > DEAF_DEADLINE {
                    true => Err(error),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

impl Driver for Uring {
    fn push(&mut self, token: u64, call: Call) {
        self.queue.push_back((token, call));
    }

    fn submit(&mut self) {
        self.enter(0);
    }

    fn wait(&mut self, want: usize, done: &mut Vec<(u64, i32)>) -> io::Result<()> {
        self.enter(want);
        if let Some(errno) = self.dead {
            // What the kernel will never have.
            self.handed_over -= self.pushed.len();
            let queued = self.queue.drain(..).map(|(token, _)| token);
            let lost = self.pushed.drain(..).chain(queued);
            let before = done.len();
            done.extend(lost.map(|token| (token, -errno)));
            if self.handed_over > 0 {
                self.gather(u32::from(want > 0 && done.len() == before))?;
            }
        }
        let before = done.len();
        done.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        let completed = done.len() - before;
        self.handed_over -= completed;
        if completed > 0 {
            self.deaf = None;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len() + self.handed_over
    }

    fn failed(&self) -> Option<i32> {
        self.dead
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const RECEIVE: u64 = 1;
    const WRITE: u64 = 2;

    /// A ring with a receive in the kernel, and a write of ones to a file that is about to be handed over.
    struct Rig {
        ring: Uring,
        peer: UnixStream,
        file: tempfile::NamedTempFile,
        memory: [Box<[u8; 16]>; 2],
        _socket: UnixStream,
    }

    fn rig() -> Rig {
        let (socket, peer) = UnixStream::pair().unwrap();
        let mut ring = Uring::new(socket.as_raw_fd()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut memory = [Box::new([0; 16]), Box::new([1; 16])];
        ring.push(RECEIVE, Call::Receive(memory[0].as_mut_ptr(), 16));
        ring.submit();
        assert_eq!((ring.failed(), ring.pushed.len()), (None, 0));
        let to = file.as_file().as_raw_fd();
        ring.push(WRITE, Call::Write(to, memory[1].as_ptr(), 16, 0));
        Rig {
            ring,
            peer,
            file,
            memory,
            _socket: socket,
        }
    }

    #[test]
    fn a_kernel_without_memory_is_asked_again() {
        let mut rig = rig();
        faults::plant([libc::ENOMEM, libc::EAGAIN, libc::EBUSY, libc::EINTR].map(Some));
        let mut done = Vec::new();
        for _ in 0..4 {
            rig.ring.wait(1, &mut done).unwrap();
            assert!(done.is_empty());
        }
        rig.ring.wait(1, &mut done).unwrap();
        assert_eq!(done, [(WRITE, 16)]);
        assert_eq!((rig.ring.failed(), rig.ring.in_flight()), (None, 1));
        assert_eq!(std::fs::read(rig.file.path()).unwrap(), [1; 16]);
    }

    #[test]
    fn a_kernel_that_never_has_memory_fails_what_it_does_not_take() {
        let mut rig = rig();
        faults::plant(std::iter::repeat_n(Some(libc::EAGAIN), 2));
        let mut done = Vec::new();
        rig.ring.wait(1, &mut done).unwrap();
        rig.ring.busy = Instant::now().checked_sub(BUSY_DEADLINE);
        rig.ring.wait(1, &mut done).unwrap();
        assert_eq!(done, [(WRITE, -libc::ENOMEM)]);
    }

    #[test]
    fn what_a_dead_ring_was_not_given_fails_and_the_rest_is_awaited() {
        let mut rig = rig();
        faults::plant([Some(libc::EBADF)]);
        let mut done = Vec::new();
        rig.ring.wait(1, &mut done).unwrap();
        assert_eq!(done, [(WRITE, -libc::EBADF)]);
        assert_eq!(
            (rig.ring.failed(), rig.ring.in_flight()),
            (Some(libc::EBADF), 1)
        );
        done.clear();
        rig.ring.wait(1, &mut done).unwrap();
        assert!(done.is_empty());
        let to = rig.file.as_file().as_raw_fd();
        rig.ring
            .push(WRITE, Call::Write(to, rig.memory[1].as_ptr(), 16, 0));
        rig.peer.write_all(&[7; 16]).unwrap();
        let end = Instant::now() + 20 * DEAF_DEADLINE;
        while rig.ring.in_flight() > 0 && Instant::now() < end {
            rig.ring.wait(1, &mut done).unwrap();
        }
        done.sort_unstable();
        assert_eq!(done, [(RECEIVE, 16), (WRITE, -libc::EBADF)]);
        assert_eq!(*rig.memory[0], [7; 16]);
        assert!(std::fs::read(rig.file.path()).unwrap().is_empty());
    }

    #[test]
    fn a_ring_that_cannot_be_waited_in_is_told_of() {
        let mut rig = rig();
        let other = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: the descriptor is the ring's, which is in use until the test is over; `forget` keeps it from being closed here.
        let mut own = std::mem::ManuallyDrop::new(unsafe {
            std::os::fd::FromRawFd::from_raw_fd(rig.ring.ring.as_raw_fd())
        });
        rustix::io::dup2(&other, &mut own).unwrap();
        let mut done = Vec::new();
        let start = Instant::now();
        let error = loop {
            assert!(start.elapsed() < 20 * DEAF_DEADLINE);
            if let Err(error) = rig.ring.wait(1, &mut done) {
                break error;
            }
        };
        assert!(error.raw_os_error().is_some(), "{error}");
        assert_eq!((done.len(), rig.ring.in_flight()), (1, 1));
        // The kernel may still have it.
        std::mem::forget(rig.memory);
    }
}
