//! The replicas of a volume as all its threads see them: what each is good for, and the connections to it.
//!
//! A replica that fails is left by whoever notices first, a queue's thread or the control thread: from then on it is not read, and no write waits for
//! it. Shutting its connections down tells all others.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::text::shortened;

/// How many times as long as for any answer one is waited for while others come: a replica may be slow, and do what it is asked in any order.
const OVERDUE: u32 = 4;

/// What an engine does with a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// It is written and not read: it is being rebuilt.
    WriteOnly,
    /// It is written and read: it has all of the volume.
    ReadWrite,
    /// It has failed, and misses what was written since.
    Failed,
}

impl Mode {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::WriteOnly,
            1 => Self::ReadWrite,
            _ => Self::Failed,
        }
    }
}

/// Why and when a replica failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people, who may have it from the replica: some 1000 bytes at most.
    pub reason: String,
    /// When it was noticed.
    pub at: SystemTime,
}

/// A replica of a volume.
#[derive(Debug)]
pub(super) struct Member {
    /// Unique in the life of the volume.
    pub id: u32,
    /// Where it is: `HOST:PORT` of its control service.
    pub address: String,
    mode: AtomicU8,
    /// It does not have everything that was acknowledged, or nobody knows: of one that is compared it may be so from the beginning, of any other that is
    /// read it is only said once it has failed, with the list of the volume's replicas locked.
    behind: AtomicBool,
    /// It has failed, and was opened again since, or may have been, by this engine and not for use.
    reopened: AtomicBool,
    failure: Mutex<Option<Failure>>,
    sockets: Mutex<Vec<Weak<Socket>>>,
}

impl Member {
    pub(super) fn new(id: u32, address: String, mode: Mode) -> Self {
        Self {
            id,
            address,
            mode: AtomicU8::new(mode as u8),
            behind: AtomicBool::new(mode != Mode::ReadWrite),
            reopened: AtomicBool::new(false),
            failure: Mutex::default(),
            sockets: Mutex::default(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        Mode::from_number(self.mode.load(Ordering::SeqCst))
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure.lock().clone()
    }

    /// Whether it misses something that was acknowledged, or may.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    /// Whether it is there, and misses nothing that was acknowledged: others may go on with it.
    pub(super) fn is_complete(&self) -> bool {
        self.mode() == Mode::ReadWrite && !self.is_behind()
    }

    /// Notes that it misses something. Whether that was not known.
    pub(super) fn fall_behind(&self) -> bool {
        !self.behind.swap(true, Ordering::SeqCst)
    }

    /// Whether it may be open because this engine has opened it again.
    pub(super) fn is_reopened(&self) -> bool {
        self.reopened.load(Ordering::SeqCst)
    }

    /// Notes that it may be.
    pub(super) fn set_reopened(&self) {
        self.reopened.store(true, Ordering::SeqCst);
    }

    /// Lets it be read, now that it has everything. Whether it has not failed meanwhile.
    pub(super) fn promote(&self) -> bool {
        let failure = self.failure.lock();
        if failure.is_some() {
            return false;
        }
        self.behind.store(false, Ordering::SeqCst);
        self.mode.store(Mode::ReadWrite as u8, Ordering::SeqCst);
        true
    }

    /// Leaves it for good. `first` is called before anybody can see that, unless it has failed before. Whether it had not.
    pub(super) fn fail(&self, reason: &str, first: impl FnOnce()) -> bool {
        let mut failure = self.failure.lock();
        if failure.is_some() {
            return false;
        }
        first();
        *failure = Some(Failure {
            reason: shortened(reason.to_owned()),
            at: SystemTime::now(),
        });
        self.mode.store(Mode::Failed as u8, Ordering::SeqCst);
        drop(failure);
        for socket in self.sockets() {
            socket.shut_down();
        }
        true
    }

    /// Takes note of a connection, which ends when the replica fails: at once if it has.
    pub(super) fn adopt(&self, socket: &Arc<Socket>) {
        let mut sockets = self.sockets.lock();
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
        drop(sockets);
        if self.mode() == Mode::Failed {
            socket.shut_down();
        }
    }

    /// Why it is to be left, if it is: it answers nothing on a connection for longer than `patience`, or something for longer than four times that.
    pub(super) fn silence(&self, now: u64, patience: Duration) -> Option<String> {
        let sockets = self.sockets();
        sockets
            .iter()
            .find_map(|socket| socket.silence(now, patience))
    }

    /// The connections that are open.
    pub(super) fn sockets(&self) -> Vec<Arc<Socket>> {
        self.sockets
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

/// A stream to a replica's data port.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection to a replica: used by one thread, watched and ended by others.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    /// Milliseconds since the volume's beginning, and one more: when the replica was last heard of, or first asked after there was nothing to answer.
    /// 0 while there is nothing to answer.
    waiting: AtomicU64,
    /// The same: since when the replica has been asked for the oldest of what it has not answered.
    owing: AtomicU64,
}

impl Socket {
    pub(super) fn new(stream: Stream) -> Arc<Self> {
        Arc::new(Self {
            stream,
            waiting: AtomicU64::new(0),
            owing: AtomicU64::new(0),
        })
    }

    /// Notes that an answer is waited for, from now on.
    pub(super) fn waits_since(&self, milliseconds: u64) {
        let since = milliseconds.saturating_add(1);
        self.waiting.store(since, Ordering::Relaxed);
    }

    /// Notes that there is nothing to answer.
    pub(super) fn rests(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Notes since when the replica has been asked for the oldest of what it has not answered.
    pub(super) fn owes_since(&self, milliseconds: Option<u64>) {
        let since = milliseconds.map_or(0, |since| since.saturating_add(1));
        self.owing.store(since, Ordering::Relaxed);
    }

    /// Why the replica is to be left: see [`Member::silence`].
    pub(super) fn silence(&self, now: u64, patience: Duration) -> Option<String> {
        let is_over = |since: &AtomicU64, patience: Duration| {
            let since = since.load(Ordering::Relaxed).checked_sub(1);
            since.is_some_and(|since| u128::from(now.saturating_sub(since)) > patience.as_millis())
        };
        if is_over(&self.waiting, patience) {
            return Some(format!("it has not answered for {} s", patience.as_secs()));
        }
        let patience = patience * OVERDUE;
        is_over(&self.owing, patience).then(|| {
            let seconds = patience.as_secs();
            format!("it has not answered a request for {seconds} s, while it answered others")
        })
    }

    /// Ends the connection under the hands of whoever uses it.
    pub(super) fn shut_down(&self) {
        // Fails where the peer was faster.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// A socket, for the one thread that reads and writes it.
#[derive(Debug)]
pub(super) struct Connection(pub(super) Arc<Socket>);

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0.stream {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &self.0.stream {
            Stream::Tcp(stream) => (&*stream).write(buffer),
            Stream::Unix(stream) => (&*stream).write(buffer),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.0.stream {
            Stream::Tcp(stream) => (&*stream).write_vectored(slices),
            Stream::Unix(stream) => (&*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}
