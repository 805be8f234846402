//! A backend without a host network: socket pairs whose other ends a test holds. For tests only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::backend::{Backend, Offloads};

/// Queue pairs that end in sockets. Keeps packet boundaries as a tap does: one `recv` is one frame behind its header.
#[derive(Debug)]
pub struct SocketBackend {
    queues: Vec<OwnedFd>,
    mtu: Option<u16>,
    offloads: AtomicU32,
    active: AtomicU16,
}

impl SocketBackend {
    /// A backend with as many queue pairs, and the test's ends of them. Both ends are non-blocking.
    ///
    /// # Errors
    /// When the host gives no sockets.
    pub fn new(queue_pairs: u16, mtu: Option<u16>) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut queues = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..queue_pairs {
            let (queue, peer) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            queues.push(queue);
            peers.push(peer);
        }
        let backend = Self {
            queues,
            mtu,
            offloads: AtomicU32::new(0),
            active: AtomicU16::new(queue_pairs),
        };
        Ok((backend, peers))
    }

    /// What [`Backend::set_offloads`] was last told.
    #[must_use]
    pub fn offload_bits(&self) -> u32 {
        self.offloads.load(Ordering::SeqCst)
    }

    /// What [`Backend::set_active_queues`] was last told.
    #[must_use]
    pub fn active_queues(&self) -> u16 {
        self.active.load(Ordering::SeqCst)
    }
}

impl Backend for SocketBackend {
    fn name(&self) -> &str {
        "double"
    }

    fn queue_pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    fn queue(&self, pair: u16) -> Option<BorrowedFd<'_>> {
        self.queues.get(usize::from(pair)).map(AsFd::as_fd)
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn supported_offloads(&self) -> Offloads {
        Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::TSO_ECN | Offloads::USO
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.offloads.store(offloads.bits(), Ordering::SeqCst);
        Ok(())
    }

    fn set_active_queues(&self, pairs: u16) -> io::Result<()> {
        let pairs = pairs.clamp(1, self.queue_pairs().max(1));
        self.active.store(pairs, Ordering::SeqCst);
        Ok(())
    }
}
