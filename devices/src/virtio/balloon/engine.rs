//! The worker of a balloon: one thread for all its queues.
//!
//! Queues are handed over and taken back between two rounds; in a round each queue gets a turn that is bounded by [`MAX_PAGES`]. Between
//! rounds no chain is held but the driver's one buffer for statistics, which goes back with its queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

use super::handle::BalloonHandle;
use super::pages::{self, Parts};
use super::statistics::{self, Statistics};
use super::{F_MUST_TELL_HOST, F_PAGE_POISON, PAGE_SIZE, QUEUES, Reclaim, Role};
use crate::throttle::Throttle;
use crate::virtio::GuestMap;
use crate::virtio::chain::Chain;
use crate::virtio::ring::Ring;
use crate::virtio::service::{self, Orders};
use crate::virtio::worker::{EventLoop, Wake};

/// The first tokens are the queues.
const ORDERS: u32 = 63;
/// Pages of a request that are looked at: 64 MiB. Drivers send a few hundred at once. What is left out of an honest request stays with
/// the guest's balloon, only its memory does not come back.
const MAX_PAGES: usize = 16 << 10;
/// Bytes of their numbers.
const MAX_BYTES: usize = MAX_PAGES * size_of::<u32>();

/// A queue that is served.
#[derive(Debug)]
struct Served {
    role: Role,
    ring: Ring,
    /// The driver's buffer, which is kept until statistics are wanted.
    held: Option<u16>,
}

/// Everything the worker has.
#[derive(Debug)]
pub(super) struct Engine {
    queues: [Option<Served>; QUEUES],
    /// What the guest was last told to give, in pages.
    told: u32,
    giver: Giver,
}

/// The way of pages out of the guest.
#[derive(Debug)]
struct Giver {
    id: String,
    handle: BalloonHandle,
    memory: Arc<dyn Reclaim>,
    granule: u64,
    features: u64,
    parts: Parts,
    /// The request that is served: its bytes, and the pages in it.
    scratch: Vec<u8>,
    pages: Vec<u32>,
    brakes: Arc<Brakes>,
}

/// The brakes on the log. The device's own: a guest that resets it would loosen any other.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    /// For pages that are not RAM.
    pub(super) refusals: Throttle,
    /// For a host that does not take memory back.
    pub(super) failures: Throttle,
}

impl service::Engine for Engine {
    fn give(&mut self, index: u16, features: u64, ring: Ring) {
        // The device lets no other queue start.
        let Some(role) = Role::of(index, features) else {
            return;
        };
        self.giver.features = features;
        let handle = &self.giver.handle;
        match role {
            Role::Statistics => handle.set_tells(true),
            // The driver may have read the target before it was changed, when there was nobody to tell it.
            Role::Inflate if handle.target_pages() != handle.actual_pages() => {
                self.told = handle.target_pages();
                ring.signal_config();
            }
            _ => {}
        }
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            let held = None;
            *slot = Some(Served { role, ring, held });
        }
    }

    fn take(&mut self, index: u16) -> Option<Ring> {
        let mut served = self.queues.get_mut(usize::from(index))?.take()?;
        if served.held.is_some() {
            served.ring.unpop();
        }
        if served.role == Role::Statistics {
            self.giver.handle.set_tells(false);
        }
        Some(served.ring)
    }

    fn run(mut self, events: &EventLoop, orders: &Orders) -> Self {
        if let Err(error) = self.serve(events, orders) {
            tracing::error!(device = self.giver.id, %error, "balloon: waiting for events");
        }
        self
    }
}

impl Engine {
    /// Nothing running and a driver that knows nothing.
    pub(super) fn new(
        id: String,
        handle: BalloonHandle,
        memory: Arc<dyn Reclaim>,
        brakes: Arc<Brakes>,
    ) -> Self {
        let granule = memory.granule().max(PAGE_SIZE);
        Self {
            queues: [const { None }; QUEUES],
            told: handle.target_pages(),
            giver: Giver {
                id,
                handle,
                memory,
                granule,
                features: 0,
                parts: Parts::new(granule),
                scratch: Vec::new(),
                pages: Vec::new(),
                brakes,
            },
        }
    }

    fn serve(&mut self, events: &EventLoop, orders: &Orders) -> io::Result<()> {
        events.add_event(orders.doorbell(), ORDERS)?;
        loop {
            let again = self.round();
            let wake = events.wait(again.then_some(Duration::ZERO))?;
            if wake == Wake::Stop {
                return Ok(());
            }
            for (token, served) in (0..).zip(&self.queues) {
                if let Some(served) = served.as_ref().filter(|_| wake.has(token)) {
                    served.ring.acknowledge();
                }
            }
            if wake.has(ORDERS) {
                orders.obey(events, self);
            }
        }
    }

    /// Gives each queue its turn; whether to come back at once.
    fn round(&mut self) -> bool {
        self.notice_target();
        let mut again = false;
        for served in self.queues.iter_mut().flatten() {
            let memory = served.ring.memory();
            let more = if served.role == Role::Statistics {
                hear(served, &memory, &self.giver.handle, &mut self.giver.scratch)
            } else if let Some(chain) = served.ring.pop(&memory) {
                self.giver.serve(served, &memory, &chain);
                served.ring.push_used(&memory, chain.head, 0);
                true
            } else {
                false
            };
            served.ring.flush(&memory);
            again |= more || served.ring.arm(&memory) && served.held.is_none();
        }
        again
    }

    /// Tells the driver that its target changed.
    fn notice_target(&mut self) {
        let target = self.giver.handle.target_pages();
        if target != self.told {
            if let Some(served) = self.queues.iter().flatten().next() {
                self.told = target;
                served.ring.signal_config();
            }
        }
    }
}

/// The driver fills its buffer before it gives it, and again each time it gets it back: that is how it is asked.
fn hear(
    served: &mut Served,
    memory: &GuestMap,
    handle: &BalloonHandle,
    scratch: &mut Vec<u8>,
) -> bool {
    if let Some(head) = served.held {
        if handle.take_wanted() {
            served.held = None;
            served.ring.push_used(memory, head, 0);
        }
        return false;
    }
    let Some(chain) = served.ring.pop(memory) else {
        return false;
    };
    scratch.resize(statistics::MAX_BUFFER, 0);
    let copied = chain.readable.copy_to(memory, 0, scratch);
    if let Some(length) = served.ring.check(copied) {
        served.held = Some(chain.head);
        let bytes = scratch.get(..length).unwrap_or_default();
        handle.tell(Statistics::parse(bytes, Instant::now()));
    }
    true
}

impl Giver {
    /// Serves one chain of pages.
    fn serve(&mut self, served: &mut Served, memory: &GuestMap, chain: &Chain) {
        match served.role {
            Role::Inflate => {
                if self.read_pages(served, memory, chain) {
                    self.inflate();
                }
            }
            // Small pages are there again as soon as they are touched.
            Role::Deflate if self.granule == PAGE_SIZE => {}
            Role::Deflate => {
                if chain.readable.len() > MAX_BYTES as u64 {
                    // Which pages are in use from now on is not known, so none may go with a large page.
                    self.parts.clear();
                } else if self.read_pages(served, memory, chain) {
                    for page in &self.pages {
                        self.parts.remove(*page);
                    }
                }
            }
            Role::Reporting => {
                // The page must keep what it is filled with, which only zeros would.
                if self.features & F_PAGE_POISON == 0 || self.handle.poison() == 0 {
                    self.report(chain);
                }
            }
            Role::Statistics => {}
        }
    }

    /// Reads the page numbers of a request, those outside RAM left out.
    fn read_pages(&mut self, served: &mut Served, memory: &GuestMap, chain: &Chain) -> bool {
        let wanted = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
        self.scratch.resize(wanted.min(MAX_BYTES), 0);
        let copied = chain.readable.copy_to(memory, 0, &mut self.scratch);
        let Some(length) = served.ring.check(copied) else {
            return false;
        };
        let numbers = self.scratch.get(..length).unwrap_or_default();
        let (mut given, mut refused, mut example) = (0_u64, 0_u64, 0);
        self.pages.clear();
        for number in numbers.chunks_exact(size_of::<u32>()) {
            let page = number.try_into().map_or(0, u32::from_le_bytes);
            given += 1;
            let address = GuestAddress(u64::from(page) * PAGE_SIZE);
            if memory.address_in_range(address) {
                self.pages.push(page);
            } else {
                (refused, example) = (refused + 1, address.raw_value());
            }
        }
        if refused > 0 {
            self.handle
                .counters()
                .refused
                .fetch_add(refused, Ordering::Relaxed);
            if let Some(held_back) = self.brakes.refusals.pass() {
                let device = &self.id;
                tracing::warn!(
                    device,
                    refused,
                    given,
                    held_back,
                    "balloon: the guest gives pages that are not RAM, such as {example:#x}"
                );
            }
        }
        true
    }

    fn inflate(&mut self) {
        let mut pages = std::mem::take(&mut self.pages);
        if self.granule == PAGE_SIZE {
            for range in pages::ranges(&mut pages) {
                self.reclaim(range, Role::Inflate);
            }
        } else if self.features & F_MUST_TELL_HOST == 0 {
            // A page that came earlier may be in use again, and its large page with it.
            for range in pages::ranges(&mut pages) {
                if let Some(range) = pages::whole(&range, self.granule) {
                    self.reclaim(range, Role::Inflate);
                }
            }
        } else {
            for page in &pages {
                if let Some(range) = self.parts.add(*page) {
                    self.reclaim(range, Role::Inflate);
                }
            }
        }
        self.pages = pages;
    }

    /// The driver's reported pages are the chain's buffers themselves.
    fn report(&mut self, chain: &Chain) {
        for segment in chain.writable.iter() {
            let start = segment.address.raw_value();
            let range = start..start.saturating_add(segment.length.into());
            if let Some(range) = pages::whole(&range, self.granule) {
                self.reclaim(range, Role::Reporting);
            }
        }
    }

    fn reclaim(&self, range: std::ops::Range<u64>, role: Role) {
        let counters = self.handle.counters();
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        let length = range.end - range.start;
        match (self.memory.reclaim(range.clone()), role) {
            (Ok(()), Role::Reporting) => add(&counters.reported, length),
            (Ok(()), _) => add(&counters.inflated, length),
            (Err(error), _) => {
                if let Some(held_back) = self.brakes.failures.pass() {
                    let (device, start) = (&self.id, range.start);
                    tracing::warn!(
                        device,
                        %error,
                        held_back,
                        "balloon: the host does not take back {length:#x} bytes at {start:#x}"
                    );
                }
                add(&counters.errors, 1)
            }
        };
    }
}
