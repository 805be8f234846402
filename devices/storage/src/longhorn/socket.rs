//! A volume behind somebody else's engine: Longhorn's, with its `socket` frontend. It speaks to its clients as replicas speak to it, so it is to us a volume
//! with one replica. The engine does all else, and is told by its own tools what to do.
//!
//! Nothing keeps others from using the same volume: the socket is there beside a device that the engine offers.
//!
//! An engine that hangs is given up by each queue for itself, after more time than it gives its own replicas: no other thread watches over it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SocketAddrUnix;
use tokio::sync::mpsc::unbounded_channel;

use super::capabilities;
use super::error::VolumeError;
use super::member::{Member, Mode, Socket, Stream};
use super::queue::VolumeQueue;
use super::shared::Shared;
use crate::{Capabilities, Disk, DiskQueue, fd};

/// How long an engine may answer nothing while it is asked for something. It has deadlines of its own: a replica may be silent for 30 s at most, the last one for
/// twice that, and a read is tried with one after the other, which comes to 2 min with three. Whoever tried again before those have passed might be
/// overtaken by what he had asked for first.
const SILENCE: Duration = Duration::from_secs(150);

/// How long an engine may have no room for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// A volume behind the socket of an engine.
#[derive(Debug)]
pub struct EngineSocket {
    path: PathBuf,
    shared: Arc<Shared>,
    member: Arc<Member>,
    read_only: bool,
    /// How long the engine may be silent.
    patience: Duration,
}

impl EngineSocket {
    /// Connects to an engine's socket, usually `/var/run/longhorn-VOLUME.sock`. The socket does not tell the size: it is that of the volume, in bytes.
    ///
    /// When the engine answers nothing for 150 s, or one request for four times that, all that was asked fails, and what is asked later: open it again.
    ///
    /// # Errors
    /// When the size cannot be, or nobody listens.
    pub fn open(path: &Path, size: u64, read_only: bool) -> Result<Self, VolumeError> {
        if size == 0 || !size.is_multiple_of(super::SECTOR) {
            return Err(VolumeError::Options {
                problem: format!("{size} bytes: a volume's size is a multiple of 4096"),
            });
        }
        let name = path.display().to_string();
        // There is nobody to tell: an engine that is lost is seen by its requests.
        let (sender, _) = unbounded_channel();
        let shared = Arc::new(Shared::new(name.clone(), size, false, sender));
        let member = Arc::new(Member::new(0, name.clone(), Mode::ReadWrite));
        shared.add_member(Arc::clone(&member));
        connect(path).map_err(|error| VolumeError::Host {
            volume: name,
            problem: format!("its socket cannot be connected to: {error}; is the engine running, with the frontend \"socket\"?"),
        })?;
        Ok(Self {
            path: path.to_owned(),
            shared,
            member,
            read_only,
            patience: SILENCE,
        })
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let end = Instant::now() + CONNECT_DEADLINE;
    let socket = fd::connect_unix(&SocketAddrUnix::new(path)?, end)?;
    Ok(socket.into())
}

impl Disk for EngineSocket {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.shared.size(), self.read_only)
    }

    fn size(&self) -> u64 {
        self.shared.size()
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let socket = Socket::new(Stream::Unix(connect(&self.path)?));
        self.member.adopt(&socket);
        let connections = vec![(Arc::clone(&self.member), socket)];
        let post = self.shared.add_post()?;
        let shared = Arc::clone(&self.shared);
        let mut queue = VolumeQueue::new(shared, post, self.capabilities(), connections)?;
        queue.watch_over(self.patience)?;
        Ok(Box::new(queue))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::{Buffer, Completion, IoError, Operation, Request};

    /// Longer than anything takes.
    const SOON: Duration = Duration::from_secs(30);

    fn read(queue: &mut dyn DiskQueue) -> Vec<Completion> {
        let (offset, buffer) = (0, Buffer::zeroed(512));
        let operation = Operation::Read { offset, buffer };
        queue.submit(Request { tag: 1, operation });
        let mut done = Vec::new();
        queue.drain(SOON, &mut done).expect("an end");
        done
    }

    #[test]
    fn an_engine_that_hangs_is_given_up() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("s");
        // It accepts nobody, and the kernel does for it.
        let _engine = UnixListener::bind(&path).expect("a socket");
        let mut disk = EngineSocket::open(&path, 1 << 20, false).expect("an engine");
        assert!(disk.patience > Duration::from_secs(120));
        disk.patience = Duration::from_millis(100);
        let mut queues = [(); 2].map(|()| disk.open_queue(4).expect("a queue"));
        let since = Instant::now();
        let error = Err(IoError::Os(libc::EIO));
        assert_eq!(read(&mut *queues[0])[0].result, error);
        assert!(since.elapsed() > disk.patience, "it had its time");
        let failure = disk.member.failure().expect("a failure");
        assert!(failure.reason.contains("has not answered for"));
        // It has failed for all.
        disk.patience = SOON;
        assert_eq!(read(&mut *queues[1])[0].result, error);
    }

    #[test]
    fn an_engine_without_room_for_a_connection_is_no_reason_to_hang() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("s");
        let engine = UnixListener::bind(&path).expect("a socket");
        rustix::net::listen(&engine, 0).expect("no room");
        let _first = connect(&path).expect("the one that waits to be accepted");
        let address = SocketAddrUnix::new(&path).expect("an address");
        let end = Instant::now() + Duration::from_millis(20);
        let error = fd::connect_unix(&address, end).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
