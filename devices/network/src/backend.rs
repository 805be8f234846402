//! The contract between a NIC and what carries its frames.
//!
//! A backend is shared: the machine keeps it in an `Arc` while a VM is reset and its devices are built anew. Queues are
//! plain descriptors, so that a worker waits for, reads and writes them without a call in between, and so that the
//! kernel's vhost-net can take them over.

use std::fmt;
use std::io;
use std::ops::{BitAnd, BitOr};
use std::os::fd::BorrowedFd;

/// Bytes of the virtio-net header in front of each frame, both ways (VIRTIO 1.2 §5.1.6: with `num_buffers`).
pub const HEADER_SIZE: usize = 12;

/// The largest frame: a 64 KiB IP packet, the Ethernet header and two VLAN tags. Without the virtio-net header.
pub const MAX_FRAME_SIZE: usize = 65_535 + 14 + 8;

/// What a NIC lets the host leave unfinished in the frames it is given. The values are those of the kernel's `TUN_F_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Offloads(u32);

impl Offloads {
    /// Nothing: every frame is complete and no longer than the MTU allows.
    pub const NONE: Self = Self(0);
    /// Checksums may be partial. All others need this one.
    pub const CSUM: Self = Self(0x01);
    /// TCP segments over IPv4 may be up to 64 KiB.
    pub const TSO4: Self = Self(0x02);
    /// TCP segments over IPv6 may be up to 64 KiB.
    pub const TSO6: Self = Self(0x04);
    /// Such segments may have ECN set. Needs one of them.
    pub const TSO_ECN: Self = Self(0x08);
    /// UDP datagrams to be segmented may be up to 64 KiB, over IPv4 and IPv6 (the kernel takes only both; Linux ≥ 6.2).
    pub const USO: Self = Self(0x20 | 0x40);

    /// The kernel's `TUN_F_*` bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a frame may be longer than the MTU allows.
    #[must_use]
    pub fn any_segmentation(self) -> bool {
        self.0 & (Self::TSO4.0 | Self::TSO6.0 | Self::USO.0) != 0
    }
}

impl BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What carries a NIC's frames.
///
/// # Queues
/// [`queue`](Self::queue) is non-blocking. One `read` takes one frame from the host, one `write` gives it one, each behind
/// a [`HEADER_SIZE`] virtio-net header in little-endian. A read into less room than the frame needs loses the rest
/// without a word, so readers offer room for one byte more than they want.
///
/// Errors that are about one frame: `EINVAL` (malformed header or frame), `EIO` and `ENETDOWN` (the interface is down),
/// `EMSGSIZE`, `ENOBUFS`, `ENOMEM`. The queue is gone for good after `EBADFD`, `ENODEV`, `ENXIO` (the interface was deleted), and
/// `EPIPE`, `ECONNRESET`, `ENOTCONN`, `ECONNREFUSED` (the other end of a socket was closed).
pub trait Backend: Send + Sync + fmt::Debug {
    /// What to call it in logs and errors: a tap's name.
    fn name(&self) -> &str;

    /// How many queue pairs there are, at least 1.
    fn queue_pairs(&self) -> u16;

    /// The descriptor of a queue pair, `None` beyond the last.
    fn queue(&self, pair: u16) -> Option<BorrowedFd<'_>>;

    /// The MTU in bytes, if it is known: the longest IP packet that fits a frame.
    fn mtu(&self) -> Option<u16>;

    /// The offloads it can be told to use. What it takes *from* the guest is the same.
    fn supported_offloads(&self) -> Offloads;

    /// Tells the host what it may leave unfinished from the next frame on.
    ///
    /// # Errors
    /// When the host refuses, as it does for anything beyond [`supported_offloads`](Self::supported_offloads).
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Lets the host deliver to the first `pairs` queue pairs (clamped to 1..=[`queue_pairs`](Self::queue_pairs)) and to no other.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_active_queues(&self, pairs: u16) -> io::Result<()>;
}
