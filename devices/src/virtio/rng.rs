//! Entropy device (VIRTIO 1.2 §5.4): fills the driver's buffers with bytes from the host kernel's generator.
//!
//! One worker thread while its queue runs. The guest chooses how much and how often it asks; a request is served with at most
//! [`REQUEST_LIMIT`] bytes, which the specification allows, so that neither memory nor a stop's delay grows with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::Queue;

use super::ring::Ring;
use super::worker::{EventLoop, Wake, Worker};
use super::{DeviceError, GuestMap, QueueResources, VirtioDevice};

/// Bytes a request gets at most.
pub const REQUEST_LIMIT: usize = 64 << 10;

/// VIRTIO_ID_RNG.
const DEVICE_TYPE: u16 = 4;
const QUEUE_SIZES: [u16; 1] = [256];
/// Chains served between two looks at the stop event.
const BATCH: usize = 16;
const KICK: u32 = 0;

/// What an entropy device counts. Made by its owner, so that a device that is made anew at a reset goes on counting.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Requests served.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes given to the guest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// An entropy device.
#[derive(Debug)]
pub struct VirtioRng {
    id: String,
    counters: Arc<Counters>,
    worker: Option<Worker<Ring>>,
}

impl VirtioRng {
    /// `id` as in the VM spec.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            counters: Arc::default(),
            worker: None,
        }
    }

    /// Counts in `counters` rather than in its own.
    #[must_use]
    pub fn counting_in(mut self, counters: Arc<Counters>) -> Self {
        self.counters = counters;
        self
    }
}

impl VirtioDevice for VirtioRng {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let failed = |source| DeviceError {
            device: self.id.clone(),
            action: format!("starting queue {index}"),
            source,
        };
        if index != 0 || self.worker.is_some() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let ring = Ring::new(index, resources);
        let counters = Arc::clone(&self.counters);
        let worker = Worker::spawn(&self.id, move |events| serve(&events, ring, &counters))
            .map_err(failed)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        if index != 0 {
            return None;
        }
        self.worker.take()?.stop().map(Ring::into_queue)
    }
}

impl Drop for VirtioRng {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

fn serve(events: &EventLoop, mut ring: Ring, counters: &Counters) -> Ring {
    if let Err(error) = events.add_event(ring.kick(), KICK) {
        tracing::error!(%error, "entropy device: waiting for the driver's notifications");
        return ring;
    }
    let mut scratch = vec![0; REQUEST_LIMIT];
    let mut more = true;
    loop {
        if more {
            let memory = ring.memory();
            more = serve_batch(&mut ring, &memory, &mut scratch, counters);
            ring.flush(&memory);
            more = more || ring.arm(&memory);
        }
        let timeout = more.then_some(std::time::Duration::ZERO);
        match events.wait(timeout) {
            Ok(Wake::Stop) => return ring,
            Ok(wake) if wake.has(KICK) => {
                ring.acknowledge();
                more = true;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "entropy device: waiting for events");
                return ring;
            }
        }
    }
}

/// Serves some chains; whether there may be more.
fn serve_batch(
    ring: &mut Ring,
    memory: &GuestMap,
    scratch: &mut [u8],
    counters: &Counters,
) -> bool {
    for _ in 0..BATCH {
        let Some(chain) = ring.pop(memory) else {
            return false;
        };
        let wanted = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
        let length = wanted.min(scratch.len());
        let bytes = fill(scratch.get_mut(..length).unwrap_or_default());
        let copied = chain.writable.copy_from(memory, 0, bytes);
        let written = ring.check(copied).unwrap_or(0);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(written as u64, Ordering::Relaxed);
        ring.push_used(memory, chain.head, written as u64);
    }
    true
}

/// The part of `buffer` that could be filled: all of it, unless the host's generator fails.
fn fill(buffer: &mut [u8]) -> &[u8] {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    buffer.get(..done).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::virtio::test_driver::{Driver, Guest, wait_for};

    fn started(guest: &Guest) -> (VirtioRng, Driver) {
        let mut rng = VirtioRng::new("rng0");
        let driver = guest.queue(0, 256);
        rng.start_queue(0, driver.resources(0)).unwrap();
        (rng, driver)
    }

    #[test]
    fn fills_buffers_and_hands_the_ring_back() {
        let guest = Guest::new();
        let mut driver = guest.queue(0, 256);
        let counters = Arc::<Counters>::default();
        let mut rng = VirtioRng::new("rng0").counting_in(Arc::clone(&counters));
        rng.start_queue(0, driver.resources(0)).unwrap();
        let heads = [
            driver.add(&[], &[16, 48]),
            driver.add(&[], &[1]),
            driver.add(&[4], &[]),
        ];
        driver.kick();
        let mut used: Vec<_> = heads.iter().map(|_| driver.wait_used()).collect();
        used.sort_by_key(|used| heads.iter().position(|head| *head == used.head));
        assert_eq!(used[0].written.len(), 64);
        assert_ne!(used[0].written, vec![0; 64]);
        assert_eq!([used[1].written.len(), used[2].written.len()], [1, 0]);
        assert_eq!((counters.requests(), counters.bytes()), (3, 65));
        wait_for("an interrupt", || (driver.interrupts() > 0).then_some(()));
        assert_eq!(guest.broken(), None);
        let queue = rng.stop_queue(0).unwrap();
        assert!(rng.stop_queue(0).is_none());
        assert_eq!(guest.broken(), None);
        // Stopped is stopped; started again it goes on where it was, without a kick.
        let head = driver.add(&[], &[8]);
        driver.kick();
        std::thread::sleep(Duration::from_millis(20));
        assert!(driver.try_used().is_none());
        rng.start_queue(0, driver.resources_with(queue, 0)).unwrap();
        assert_eq!(driver.wait_used().head, head);
    }

    #[test]
    fn a_large_request_is_served_in_part() {
        let guest = Guest::new();
        let (_rng, mut driver) = started(&guest);
        driver.add(&[], &[40 << 10, 40 << 10]);
        driver.kick();
        let used = driver.wait_used();
        assert_eq!(used.written.len(), REQUEST_LIMIT);
        assert!(
            used.written
                .chunks(4096)
                .all(|page| page.iter().any(|byte| *byte != 0))
        );
    }

    #[test]
    fn a_broken_ring_asks_for_a_reset_once() {
        let guest = Guest::new();
        let (mut rng, mut driver) = started(&guest);
        driver.add_raw(0x4000_0000_0000, 8, true);
        driver.kick();
        guest.wait_broken();
        driver.add(&[], &[8]);
        driver.kick();
        std::thread::sleep(Duration::from_millis(20));
        assert!(driver.try_used().is_none());
        assert!(rng.stop_queue(0).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..8192)) {
            let guest = Guest::new();
            let driver = guest.queue(0, 64);
            driver.scribble(&bytes);
            let mut rng = VirtioRng::new("rng0");
            rng.start_queue(0, driver.resources(0)).unwrap();
            driver.kick();
            prop_assert!(rng.stop_queue(0).is_some());
        }
    }
}
