//! A volume behind somebody else's engine: Longhorn's, with its `socket` frontend. It speaks to its clients as replicas speak to it, so it is to us a volume
//! with one replica. The engine does all else, and is told by its own tools what to do.
//!
//! Nothing keeps others from using the same volume: the socket is there beside a device that the engine offers.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::unbounded_channel;

use super::capabilities;
use super::error::VolumeError;
use super::member::{Member, Mode, Socket, Stream};
use super::queue::VolumeQueue;
use super::shared::Shared;
use crate::{Capabilities, Disk, DiskQueue};

/// A volume behind the socket of an engine.
#[derive(Debug)]
pub struct EngineSocket {
    path: PathBuf,
    shared: Arc<Shared>,
    member: Arc<Member>,
    read_only: bool,
}

impl EngineSocket {
    /// Connects to an engine's socket, usually `/var/run/longhorn-VOLUME.sock`. The socket does not tell the size: it is that of the volume, in bytes.
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
        })
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
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
        let queue = VolumeQueue::new(shared, post, self.capabilities(), connections)?;
        Ok(Box::new(queue))
    }
}
