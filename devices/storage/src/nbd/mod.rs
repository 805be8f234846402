//! Disks on NBD servers (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), over TCP or a unix socket, with TLS if wanted.
//!
//! Each queue has a connection of its own where the server's cache is one for all connections (`NBD_FLAG_CAN_MULTI_CONN`), and drives it on its
//! user's thread (`queue`). Otherwise all share one, which a thread has (`funnel`), for there a flush covers only what came by its own
//! connection. Connecting blocks and is done by a thread of its own (`session`). The server may be hostile: what it sends is checked,
//! nothing is allocated by its numbers, and nothing waits for it without a deadline.
//!
//! # When the connection is lost
//! Requests that were not answered are kept, with a copy of what they write, and sent again in their order when there is a connection. After
//! [`NbdOptions::reconnect_deadline`] they are answered with `ETIMEDOUT`, and so is what is submitted later, until there is one. Those that nobody
//! waits for any more ([`DiskQueue::abandon`]) are not kept, and answered at once.
//!
//! A server that dies may take with it what it has acknowledged and not flushed, and after it comes back its flush knows nothing of that. A
//! client that only sends again what was not answered (as Linux's and QEMU's do) then tells its guest that writes are on stable
//! storage that are nowhere. So what is acknowledged is kept, too, until a flush on the same server has covered it, and written anew,
//! in the order of acknowledgement, and flushed, before anything else is sent to the server that comes back; NFS clients do that since version 3
//! (RFC 1813, §4.8). A server's death is not visible to the guest then, and a flush that succeeded says the truth. What is kept is limited:
//! beyond 8 MiB the client flushes by itself, beyond 16 MiB writes wait for that. A flush that fails is answered with its
//! error and taken for a loss, so that the next one that succeeds can be believed. A server without `NBD_FLAG_SEND_FLUSH` says that it
//! has no cache; nothing is kept for it.
//!
//! What remains:
//! - A request may be carried out twice. A server that was cut off or stuck, and not dead, may carry out an old request after its
//!   repetition; NBD has nothing against that. What is still in this host's buffers is at least dropped with the connection.
//! - What was acknowledged and not flushed is lost when server and client die, as with any disk with a volatile cache.
//! - A server whose host dies without a word, and whose address another takes, is found out by a queue when that uses its connection next. A queue that
//!   connects in between, to the other, reads what that has, and its flush is taken for one of all that was acknowledged before.
//! - The server that comes back must have the same export, with all that was flushed. That its size and abilities are the same is checked; its
//!   contents cannot be.

mod connect;
mod connection;
mod coverage;
mod error;
mod funnel;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
mod handshake;
mod journal;
mod protocol;
mod queue;
mod replay;
mod requests;
mod session;
mod tls;
mod uri;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use error::{NbdError, NbdErrorKind};
pub use uri::{NbdAddress, NbdUri, UriError};

use crate::{Capabilities, Disk, DiskQueue};
use error::Failure;
use funnel::{Funnel, FunnelQueue};
use handshake::Export;
use queue::NbdQueue;
use requests::Limits;
use session::Handle;

/// The block sizes that a disk can have, in bytes.
const MIN_BLOCK: u32 = 512;
const MAX_BLOCK: u32 = 4096;

/// The most bytes of one read or write on its way.
const MAX_PAYLOAD: u32 = 1 << 20;

/// Our certificate, for servers that want one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdIdentity {
    /// PEM file of the certificate, and of those between it and the CA.
    pub certificate: PathBuf,
    /// PEM file of its private key, not encrypted.
    pub key: PathBuf,
}

/// TLS: version 1.3, by certificates. The files are read for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdTls {
    /// PEM file of the CA, or CAs, of the server's certificate.
    pub ca: PathBuf,
    /// For servers that want to know who we are.
    pub identity: Option<NbdIdentity>,
    /// The name that the server's certificate must have, where it is not the URI's.
    pub hostname: Option<String>,
}

/// Which export, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// The export.
    pub uri: NbdUri,
    /// Given when, and only when, the URI demands TLS.
    pub tls: Option<NbdTls>,
    /// Refuse writes.
    pub read_only: bool,
    /// Logical block size in bytes that the guest sees: a power of two from 512 to 4096, not smaller than the server's minimum. Default: that
    /// minimum, or 512 where it is smaller.
    pub block_size: Option<u32>,
    /// How long it may take from the first packet to the end of negotiation. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long the server may be silent while it has requests, before the connection is given up. A single request may take ten times
    /// that if others are answered. Default: 30 s.
    pub request_timeout: Duration,
    /// How long requests wait for a server that is away before they fail. Default: 60 s.
    pub reconnect_deadline: Duration,
}

impl NbdOptions {
    /// An export to be read and written, with the default deadlines.
    #[must_use]
    pub fn new(uri: NbdUri) -> Self {
        Self {
            uri,
            tls: None,
            read_only: false,
            block_size: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            reconnect_deadline: Duration::from_secs(60),
        }
    }
}

/// An export of an NBD server.
#[derive(Debug)]
pub struct NbdDisk {
    handle: Arc<Handle>,
    /// The one connection of all queues, where there is only one.
    funnel: Mutex<Option<Arc<Funnel>>>,
}

impl NbdDisk {
    /// Connects, and looks at the export. Blocks for at most the time that connecting may take.
    ///
    /// # Errors
    /// Says which export, what is wrong, and what to do.
    pub fn open(options: NbdOptions) -> Result<Self, NbdError> {
        Ok(Self {
            handle: Arc::new(session::Session::open(options)?),
            funnel: Mutex::new(None),
        })
    }

    /// Whether each queue has a connection of its own.
    #[must_use]
    pub fn has_many_connections(&self) -> bool {
        self.handle.0.export().has(protocol::CAN_MULTI_CONN)
    }
}

impl Disk for NbdDisk {
    fn capabilities(&self) -> Capabilities {
        self.handle.0.capabilities.clone()
    }

    fn size(&self) -> u64 {
        self.handle.0.capabilities.size
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let handle = Arc::clone(&self.handle);
        if self.has_many_connections() {
            return Ok(Box::new(NbdQueue::new(handle)?));
        }
        let mut funnel = self.funnel.lock().unwrap_or_else(PoisonError::into_inner);
        let funnel = match &mut *funnel {
            Some(funnel) => Arc::clone(funnel),
            none => Arc::clone(none.insert(Arc::new(Funnel::new(handle)?))),
        };
        Ok(Box::new(FunnelQueue::new(funnel)?))
    }
}

/// What an export is as a disk.
fn examine(export: &Export, options: &NbdOptions) -> Result<(Capabilities, Limits), Failure> {
    let blocks = export.blocks;
    let impossible = || NbdErrorKind::BlockSize {
        asked: options.block_size,
        minimum: blocks.minimum,
        max_payload: blocks.max_payload,
    };
    let minimum = blocks.minimum.max(MIN_BLOCK);
    let logical = options.block_size.unwrap_or(minimum);
    if !logical.is_power_of_two() || !(minimum..=MAX_BLOCK).contains(&logical) {
        return Err(impossible().into());
    }
    let payload = blocks.max_payload.min(MAX_PAYLOAD);
    let payload = payload - payload % logical;
    if payload == 0 {
        return Err(impossible().into());
    }
    let size = export.size;
    if size == 0 || i64::try_from(size).is_err() {
        return Err(NbdErrorKind::Size(size).into());
    }
    if !size.is_multiple_of(u64::from(logical)) {
        let block = logical;
        return Err(NbdErrorKind::Unaligned { size, block }.into());
    }
    let read_only = options.read_only;
    if export.has(protocol::READ_ONLY) && !read_only {
        return Err(NbdErrorKind::ReadOnly.into());
    }
    let physical = blocks.preferred.clamp(logical, MAX_BLOCK);
    let discard = export.has(protocol::SEND_TRIM) && !read_only;
    let write_zeroes = export.has(protocol::SEND_WRITE_ZEROES) && !read_only;
    let capabilities = Capabilities {
        size,
        logical_block_size: logical,
        physical_block_size: physical,
        read_only,
        discard,
        discard_granularity: if discard { physical } else { 0 },
        write_zeroes,
        flush: export.has(protocol::SEND_FLUSH),
    };
    let limits = Limits {
        payload,
        write_zeroes,
    };
    Ok((capabilities, limits))
}

#[cfg(test)]
mod tests;
