//! The data server: any number of connections, each served by a thread of its own, which owns a ring of io_uring, or makes system calls where that
//! is forbidden. Everything that comes over a connection is the peer's to choose.

mod budget;
mod buffers;
mod calls;
mod connection;
mod input;
mod output;
mod registry;
mod request;
mod server;
mod slice;
#[cfg(test)]
mod tests;
mod uring;

#[cfg(test)]
pub(crate) use registry::Limits;
pub use server::{Address, DataServer, Engine};

/// The most bytes of one read or write.
pub const MOST_REQUEST: usize = 128 << 20;

/// The most bytes of requests and answers that a connection holds, unless a single request is larger.
const MOST_HELD: usize = 32 << 20;

/// The most requests that a connection holds.
const MOST_REQUESTS: usize = 1024;

/// The token of the operation that receives.
const RECEIVE: u64 = u64::MAX;

/// The token of the operation that sends.
const SEND: u64 = u64::MAX - 1;

/// A system call that a connection wants made. The memory stays valid until it is completed.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// Into memory, at most so many bytes.
    Receive(*mut u8, u32),
    /// A message.
    Send(*const libc::msghdr),
    /// From a file into memory.
    Read(libc::c_int, *mut u8, u32, u64),
    /// From memory to a file.
    Write(libc::c_int, *const u8, u32, u64),
}

/// How system calls are made.
trait Driver {
    /// Takes a call over; it may wait until [`submit`](Self::submit).
    fn push(&mut self, token: u64, call: Call);

    /// Hands over what was pushed.
    fn submit(&mut self);

    /// Hands over what was pushed, waits until `want` calls have completed, and appends their tokens and results: a count, or a negated errno.
    ///
    /// # Errors
    /// When what is in flight can no longer be waited for. Its memory, and what it writes, are then the kernel's for good.
    fn wait(&mut self, want: usize, done: &mut Vec<(u64, i32)>) -> std::io::Result<()>;

    /// Calls that have not completed.
    fn in_flight(&self) -> usize;

    /// Why nothing can be handed over any more: calls that have not been then complete with this errno, and so does whatever is pushed.
    fn failed(&self) -> Option<i32>;
}
