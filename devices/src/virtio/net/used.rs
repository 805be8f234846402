//! The used ring of a receive queue, where one frame may fill several chains.
//!
//! A driver that sees the first chain of a frame looks for the others at once (§5.1.6.4), so all of them must become
//! visible by one store of the index. `virtio_queue` publishes each chain by itself; here only the last one does.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::virtio::GuestMap;
use crate::virtio::chain::RingError;

/// Bytes in front of a ring's entries, of an available entry and of a used one (§2.7.6, §2.7.8).
const RING_HEADER: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

/// Returns chains and knows whether the driver wants to be told.
#[derive(Debug)]
pub(super) struct UsedRing {
    /// The used index when the driver's wish was last looked at.
    asked: Wrapping<u16>,
}

impl UsedRing {
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            asked: Wrapping(queue.next_used()),
        }
    }

    /// Returns these chains (head, bytes written), all at once. There are no more of them than the queue has entries.
    pub(super) fn publish(
        queue: &mut Queue,
        memory: &GuestMap,
        chains: &[(u16, u32)],
    ) -> Result<(), RingError> {
        let Some((last, others)) = chains.split_last() else {
            return Ok(());
        };
        for &(head, length) in others {
            let slot = u64::from(queue.next_used() % queue.size());
            let entry =
                GuestAddress(queue.used_ring()).unchecked_add(RING_HEADER + slot * USED_ENTRY);
            memory.write_obj([u32::from(head).to_le(), length.to_le()], entry)?;
            queue.set_next_used(queue.next_used().wrapping_add(1));
        }
        Ok(queue.add_used(memory, last.0, last.1)?)
    }

    /// Whether the driver wants an interrupt for what was published since this was last asked (§2.7.7.2, §2.7.10.1).
    pub(super) fn wants_interrupt(
        &mut self,
        queue: &Queue,
        memory: &GuestMap,
    ) -> Result<bool, RingError> {
        let old = self.asked;
        let new = Wrapping(queue.next_used());
        self.asked = new;
        if new == old {
            return Ok(false);
        }
        // The driver writes its wish and then looks at the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        let avail = GuestAddress(queue.avail_ring());
        if queue.event_idx_enabled() {
            let offset = RING_HEADER + AVAIL_ENTRY * u64::from(queue.size());
            let event: u16 = memory.load(avail.unchecked_add(offset), Ordering::Relaxed)?;
            let event = Wrapping(u16::from_le(event));
            return Ok(new - event - Wrapping(1) < new - old);
        }
        let flags: u16 = memory.load(avail, Ordering::Relaxed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
