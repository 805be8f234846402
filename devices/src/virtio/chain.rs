//! Descriptor chains, checked: from the available ring to segments of guest RAM that are known to exist.
//!
//! Used by every device's worker. `virtio_queue::DescriptorChain` ends silently where a chain is broken, so the
//! walk here is our own and says what is wrong (VIRTIO 1.2 §2.7.5): a loop, an index outside the table, a nested indirect table,
//! a readable descriptor after a writable one, a range outside guest RAM. All of these end in DEVICE_NEEDS_RESET.
//! A device sees two byte sequences, readable and writable, and never how the driver cut them (§2.7.4.2).
//!
//! The guest chooses every number here and may change descriptors while they are read: each is read once.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use paddock_storage::Buffer;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions,
};

use super::GuestMap;

/// The most descriptors of one chain, those of its indirect table included. Drivers stay far below (`seg_max`); the bound is
/// independent of the queue's size because Linux puts longer chains than that into indirect tables.
pub const MAX_DESCRIPTORS: usize = 1024;

/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: u64 = 16;

/// How a driver broke its ring. The answer is DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The queue's addresses or its available index are nonsense.
    #[error("the available ring cannot be used")]
    Ring(#[from] virtio_queue::Error),
    /// An available entry or a descriptor's `next` is not below the table's size.
    #[error("descriptor {index} is outside the table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A loop, or more than [`MAX_DESCRIPTORS`].
    #[error("chain at descriptor {head} is a loop or too long")]
    TooLong {
        /// The chain's head.
        head: u16,
    },
    /// An indirect descriptor in an indirect table, with VIRTQ_DESC_F_NEXT, or of a bad length.
    #[error("chain at descriptor {head} has a malformed indirect table")]
    Indirect {
        /// The chain's head.
        head: u16,
    },
    /// A readable descriptor after a writable one.
    #[error("chain at descriptor {head} has a readable descriptor after a writable one")]
    Order {
        /// The chain's head.
        head: u16,
    },
    /// The device has no byte to write its answer to.
    #[error("chain at descriptor {head} has no room for the device's answer")]
    NoAnswer {
        /// The chain's head.
        head: u16,
    },
    /// A head that the device still has was made available again.
    #[error("chain at descriptor {head} is available twice")]
    Twice {
        /// The chain's head.
        head: u16,
    },
    /// A range that is not all guest RAM, or a chain of more than 2^32 - 1 bytes.
    #[error("{length} bytes at {address:#x} are not guest RAM")]
    OutOfRam {
        /// The guest physical address.
        address: u64,
        /// The length in bytes.
        length: u64,
    },
    /// Guest RAM could not be accessed although it was there.
    #[error("guest RAM cannot be accessed")]
    Memory(#[from] GuestMemoryError),
}

/// A range of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Length in bytes; not 0.
    pub length: u32,
}

/// Ranges of guest RAM that make up one sequence of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments {
    list: Vec<Segment>,
    length: u64,
}

/// A chain taken from the available ring. It must be returned with [`Queue::add_used`](QueueT::add_used).
#[derive(Debug)]
pub struct Chain {
    /// The index by which the driver knows it.
    pub head: u16,
    /// What the device reads.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
}

impl Segments {
    /// The length of the sequence in bytes, below 2^32.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is not a single byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Segment> {
        self.list.iter().copied()
    }

    fn push(&mut self, segment: Segment) {
        if segment.length > 0 {
            self.list.push(segment);
            self.length += u64::from(segment.length);
        }
    }

    /// Cuts the sequence in two: the first `offset` bytes (or all there are), and the rest.
    #[must_use]
    pub fn split_at(mut self, offset: u64) -> (Self, Self) {
        let mut start = 0;
        for (index, segment) in self.list.iter_mut().enumerate() {
            let end = start + u64::from(segment.length);
            if end <= offset {
                start = end;
                continue;
            }
            // `offset - start` is less than a segment's length, so it fits.
            let keep = u32::try_from(offset - start).unwrap_or(u32::MAX);
            let mut rest = Self::default();
            rest.push(Segment {
                address: segment.address.unchecked_add(u64::from(keep)),
                length: segment.length - keep,
            });
            segment.length = keep;
            let behind = self.list.split_off(index + 1);
            if keep == 0 {
                self.list.pop();
            }
            rest.list.extend(behind);
            rest.length = self.length - offset;
            self.length = offset;
            return (self, rest);
        }
        (self, Self::default())
    }

    /// Takes the last byte off, where many devices write their status.
    pub fn pop_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.list.last_mut()?;
        last.length -= 1;
        self.length -= 1;
        let address = last.address.unchecked_add(u64::from(last.length));
        if last.length == 0 {
            self.list.pop();
        }
        Some(address)
    }

    /// The ranges from `offset` on, cut to `length` bytes in all.
    fn window(&self, offset: u64, length: u64) -> impl Iterator<Item = (GuestAddress, usize)> {
        let mut skip = offset;
        let mut left = length;
        self.list.iter().filter_map(move |segment| {
            let available = u64::from(segment.length);
            let from = skip.min(available);
            skip -= from;
            let part = (available - from).min(left);
            left -= part;
            // Below 2^32: a part of a segment.
            let part = usize::try_from(part).ok().filter(|&part| part > 0)?;
            Some((segment.address.unchecked_add(from), part))
        })
    }

    /// Copies bytes from `offset` on into `destination`; returns how many there were.
    ///
    /// # Errors
    /// When the ranges are not in this map of guest RAM.
    pub fn copy_to(
        &self,
        memory: &GuestMap,
        offset: u64,
        destination: &mut [u8],
    ) -> Result<usize, RingError> {
        let mut done = 0;
        for (address, part) in self.window(offset, destination.len() as u64) {
            Bytes::read_slice(memory, &mut destination[done..done + part], address)?;
            done += part;
        }
        Ok(done)
    }

    /// Copies `source` to the bytes from `offset` on; returns how many found room.
    ///
    /// # Errors
    /// When the ranges are not in this map of guest RAM.
    pub fn copy_from(
        &self,
        memory: &GuestMap,
        offset: u64,
        source: &[u8],
    ) -> Result<usize, RingError> {
        let mut done = 0;
        for (address, part) in self.window(offset, source.len() as u64) {
            Bytes::write_slice(memory, &source[done..done + part], address)?;
            done += part;
        }
        Ok(done)
    }

    /// Appends the ranges as host addresses, neighbours joined. They are good for as long as the map is held.
    ///
    /// # Errors
    /// When the ranges are not in this map of guest RAM.
    pub fn append_iovecs(
        &self,
        memory: &GuestMap,
        iovecs: &mut Vec<libc::iovec>,
    ) -> Result<(), RingError> {
        iovecs.reserve(self.list.len());
        let first = iovecs.len();
        for segment in &self.list {
            for slice in
                GuestMemoryBackend::get_slices(memory, segment.address, segment.length as usize)
            {
                let slice = slice?;
                let pointer = slice.ptr_guard_mut().as_ptr();
                match iovecs[first..].last_mut() {
                    Some(last)
                        if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == pointer =>
                    {
                        last.iov_len += slice.len();
                    }
                    _ => iovecs.push(libc::iovec {
                        iov_base: pointer.cast(),
                        iov_len: slice.len(),
                    }),
                }
            }
        }
        Ok(())
    }

    /// The ranges as a buffer that keeps the map, and so the RAM, alive.
    ///
    /// # Errors
    /// When the ranges are not in this map of guest RAM.
    #[expect(unsafe_code, reason = "guest RAM is handed out as raw segments")]
    pub fn buffer(&self, memory: &Arc<GuestMap>) -> Result<Buffer, RingError> {
        let mut iovecs = Vec::new();
        self.append_iovecs(memory, &mut iovecs)?;
        let keep_alive: Arc<GuestMap> = Arc::clone(memory);
        // SAFETY: each segment is a part of a region of `memory`, mapped readable and writable until the last
        // `Arc` of the map is gone, and one of them goes with the buffer.
        Ok(unsafe { Buffer::from_raw(iovecs, keep_alive) })
    }

    /// Tells the dirty bitmap, where the map has one, that the first `length` bytes were written behind its back
    /// (through [`append_iovecs`](Self::append_iovecs) or [`buffer`](Self::buffer)). To be called after the write.
    pub fn mark_written(&self, memory: &GuestMap, length: u64) {
        for (address, part) in self.window(0, length) {
            for slice in GuestMemoryBackend::get_slices(memory, address, part).flatten() {
                slice.bitmap().mark_dirty(0, part.min(slice.len()));
            }
        }
    }
}

/// Takes the next chain from the available ring, if there is one.
///
/// # Errors
/// When the ring or the chain is broken; the device then stops serving and asks for a reset.
pub fn pop(queue: &mut Queue, memory: &GuestMap) -> Result<Option<Chain>, RingError> {
    // Looked at before and not after: the driver may add a chain at any moment, which breaks nothing.
    if queue.ready() && queue.avail_idx(memory, Ordering::Acquire)? == Wrapping(queue.next_avail())
    {
        return Ok(None);
    }
    let head = queue.iter(memory)?.next().map(|chain| chain.head_index());
    // An entry that cannot be read: without an error here the caller would ask for ever.
    let head = head.ok_or(virtio_queue::Error::InvalidAvailRingIndex)?;
    walk(memory, GuestAddress(queue.desc_table()), queue.size(), head).map(Some)
}

fn walk(memory: &GuestMap, table: GuestAddress, size: u16, head: u16) -> Result<Chain, RingError> {
    let (mut table, mut size, mut index) = (table, size, head);
    let (mut left, mut indirect, mut total) = (usize::from(size), false, 0_u32);
    let mut chain = Chain {
        head,
        readable: Segments::default(),
        writable: Segments::default(),
    };
    loop {
        if index >= size {
            return Err(RingError::Index { index, size });
        }
        if left == 0 {
            return Err(RingError::TooLong { head });
        }
        left -= 1;
        let descriptor: Descriptor = table
            .checked_add(u64::from(index) * DESCRIPTOR_SIZE)
            .ok_or(RingError::Index { index, size })
            .and_then(|address| Ok(memory.read_obj(address)?))?;
        if descriptor.refers_to_indirect_table() {
            let bytes = u64::from(descriptor.len());
            let entries = u16::try_from(bytes / DESCRIPTOR_SIZE).unwrap_or(0);
            if indirect || descriptor.has_next() || entries == 0 || bytes % DESCRIPTOR_SIZE != 0 {
                return Err(RingError::Indirect { head });
            }
            check(memory, descriptor.addr(), bytes, Permissions::Read)?;
            (table, size, index, indirect) = (descriptor.addr(), entries, 0, true);
            left = usize::from(entries).min(MAX_DESCRIPTORS);
            continue;
        }
        append(&mut chain, memory, &descriptor, &mut total)?;
        if !descriptor.has_next() {
            return Ok(chain);
        }
        index = descriptor.next();
    }
}

fn append(
    chain: &mut Chain,
    memory: &GuestMap,
    descriptor: &Descriptor,
    total: &mut u32,
) -> Result<(), RingError> {
    let segment = Segment {
        address: descriptor.addr(),
        length: descriptor.len(),
    };
    let (list, access) = if descriptor.is_write_only() {
        (&mut chain.writable, Permissions::Write)
    } else if chain.writable.is_empty() {
        (&mut chain.readable, Permissions::Read)
    } else {
        return Err(RingError::Order { head: chain.head });
    };
    let length = u64::from(segment.length);
    *total = total
        .checked_add(segment.length)
        .ok_or(RingError::OutOfRam {
            address: segment.address.raw_value(),
            length,
        })?;
    check(memory, segment.address, length, access)?;
    list.push(segment);
    Ok(())
}

fn check(
    memory: &GuestMap,
    address: GuestAddress,
    length: u64,
    access: Permissions,
) -> Result<(), RingError> {
    let fits = usize::try_from(length)
        .is_ok_and(|bytes| GuestMemory::check_range(memory, address, bytes, access));
    if fits {
        Ok(())
    } else {
        Err(RingError::OutOfRam {
            address: address.raw_value(),
            length,
        })
    }
}

/// Whether the driver wants an interrupt for what was used since this was last asked. Call once after a batch.
///
/// # Errors
/// When the ring cannot be read.
pub fn wants_interrupt(queue: &mut Queue, memory: &GuestMap) -> Result<bool, RingError> {
    // Orders the used index before the look at what the driver wants; virtio_queue ignores the flag.
    let wanted = queue.needs_notification(memory)?;
    if wanted && !queue.event_idx_enabled() {
        let flags: u16 = memory.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)?;
        return Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0);
    }
    Ok(wanted)
}
