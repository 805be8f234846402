//! The control queue (VIRTIO 1.2 §5.1.6.5), on a thread of its own: active queue pairs, the NIC's address, and what
//! received frames may leave unfinished. A command is a few bytes and is answered at once; what is unknown, malformed or
//! not negotiated is refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use paddock_network::MacAddress;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::{Failure, Shared, Stopped, explain, features, has, mac_to_bits};
use crate::virtio::GuestMap;
use crate::virtio::QueueResources;
use crate::virtio::chain::{self, Chain, RingError};
use crate::virtio::worker::{EventLoop, Wake};

/// The event the worker waits for.
const KICK: u32 = 0;
/// Class, command, and the longest argument: a set of offloads.
const LONGEST_COMMAND: usize = 2 + 8;
/// Commands between two looks at the stop event.
const BATCH: usize = 64;

/// A running control queue.
#[derive(Debug)]
pub(super) struct Control {
    shared: Arc<Shared>,
    index: u16,
    max_pairs: u16,
    resources: QueueResources,
}

impl Control {
    pub(super) fn new(
        shared: Arc<Shared>,
        index: u16,
        max_pairs: u16,
        resources: QueueResources,
    ) -> Self {
        Self {
            shared,
            index,
            max_pairs,
            resources,
        }
    }

    /// The thread's body: serves the queue until stopped, and hands it back.
    pub(super) fn run(mut self, events: &EventLoop) -> Stopped {
        if let Err(error) = self.serve(events) {
            self.resources.interrupt.needs_reset(&explain(&*error));
        }
        self.resources.queue.into()
    }

    fn serve(&mut self, events: &EventLoop) -> Result<(), Failure> {
        events.add_event(&self.resources.kick, KICK)?;
        let mut more = true;
        loop {
            let timeout = more.then_some(std::time::Duration::ZERO);
            let wake = events.wait(timeout)?;
            if wake == Wake::Stop {
                return Ok(());
            }
            if wake.has(KICK) {
                // Another wake may have read it already.
                let _ = self.resources.kick.read();
            }
            more = self.pass()?;
        }
    }

    /// Answers commands; returns whether there may be more.
    fn pass(&mut self) -> Result<bool, RingError> {
        let map = self.resources.memory.memory();
        for _ in 0..BATCH {
            let Some(chain) = chain::pop(&mut self.resources.queue, &map)? else {
                if self.resources.queue.enable_notification(&*map)? {
                    continue;
                }
                return Ok(false);
            };
            let answer = self.execute(&map, &chain)?;
            let written = chain.writable.copy_from(&map, 0, &[answer])?;
            let written = u32::from(written > 0);
            self.resources.queue.add_used(&*map, chain.head, written)?;
            if chain::wants_interrupt(&mut self.resources.queue, &map)? {
                self.resources.interrupt.signal_queue(self.index);
            }
        }
        Ok(true)
    }

    fn execute(&self, map: &GuestMap, chain: &Chain) -> Result<u8, RingError> {
        let mut bytes = [0; LONGEST_COMMAND];
        let length = chain.readable.copy_to(map, 0, &mut bytes)?;
        let whole = chain.readable.len() == length as u64;
        let done = match bytes[..length] {
            [class, command, ref argument @ ..] if whole => {
                self.command(u32::from(class), u32::from(command), argument)
            }
            _ => None,
        };
        let answer = if done.is_some() {
            VIRTIO_NET_OK
        } else {
            self.shared
                .counters
                .control()
                .control_errors
                .fetch_add(1, Ordering::Relaxed);
            VIRTIO_NET_ERR
        };
        // Both are below 2.
        Ok(u8::try_from(answer).unwrap_or(1))
    }

    fn command(&self, class: u32, command: u32, argument: &[u8]) -> Option<()> {
        match (class, command) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                self.require(VIRTIO_NET_F_MQ)?;
                self.set_pairs(u16::from_le_bytes(argument.try_into().ok()?))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                self.require(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                self.set_mac(argument.try_into().ok()?)
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                self.require(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                self.set_offloads(u64::from_le_bytes(argument.try_into().ok()?))
            }
            _ => None,
        }
    }

    fn require(&self, feature: u32) -> Option<()> {
        has(self.resources.features, feature).then_some(())
    }

    fn set_pairs(&self, pairs: u16) -> Option<()> {
        if !(1..=self.max_pairs).contains(&pairs) {
            return None;
        }
        self.told(self.shared.backend.set_active_queues(pairs))
    }

    fn set_mac(&self, mac: [u8; 6]) -> Option<()> {
        if !MacAddress::new(mac).is_unicast() {
            return None;
        }
        self.shared.mac.store(mac_to_bits(mac), Ordering::Release);
        Some(())
    }

    fn set_offloads(&self, wanted: u64) -> Option<()> {
        let may = features::bits(&features::GUEST_OFFLOADS) & self.resources.features;
        if wanted & !may != 0 {
            return None;
        }
        let offloads = features::guest_offloads(wanted);
        self.told(self.shared.backend.set_offloads(offloads))
    }

    fn told(&self, result: std::io::Result<()>) -> Option<()> {
        result
            .inspect_err(|error| {
                tracing::debug!(device = self.shared.id, %error, "the NIC's backend refuses a control command");
            })
            .ok()
    }
}
