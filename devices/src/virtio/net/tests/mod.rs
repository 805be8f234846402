//! A NIC between a socket pair and a driver on guest RAM.

mod device;
mod driver;
mod properties;
mod receive;
mod stress;
mod transmit;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paddock_network::double::SocketBackend;
use paddock_network::{Backend, HEADER_SIZE, MacAddress};
use rustix::net::{RecvFlags, SendFlags};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::{CounterValues, Net, NetOptions};
use crate::virtio::{GuestRam, VirtioDevice};
use driver::{DEADLINE, Driver, Interrupts, guest_ram};

const MAC: MacAddress = MacAddress::new([0x52, 0x54, 0, 1, 2, 3]);
const RX: u16 = 0;
const TX: u16 = 1;
const SIZE: u16 = 128;

/// What every driver here negotiates.
fn base() -> u64 {
    features(&[VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC])
}

/// What a modern driver negotiates.
fn modern() -> u64 {
    base() | features(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX])
}

fn features(bits: &[u32]) -> u64 {
    super::features::bits(bits)
}

/// A NIC with its backend, the other ends of that, and guest RAM.
struct Bench {
    net: Net,
    /// The NIC's id, and so the end of its threads' names: no other test's NIC has it.
    id: String,
    backend: Arc<SocketBackend>,
    peers: Vec<OwnedFd>,
    memory: GuestRam,
    interrupts: Arc<Interrupts>,
}

impl Bench {
    fn new(queue_pairs: u16) -> Self {
        let (backend, peers) = SocketBackend::new(queue_pairs, Some(1500)).unwrap();
        let backend = Arc::new(backend);
        let options = NetOptions {
            mac: MAC,
            mtu: None,
            queue_pairs,
            queue_size: SIZE,
        };
        let shared = Arc::clone(&backend) as Arc<dyn Backend>;
        static BENCHES: AtomicU64 = AtomicU64::new(0);
        let id = format!("n{}", BENCHES.fetch_add(1, Ordering::Relaxed));
        Self {
            net: Net::new(id.as_str(), shared, options).unwrap(),
            id,
            backend,
            peers,
            memory: guest_ram(u64::from(queue_pairs) * 2 + 1),
            interrupts: Arc::default(),
        }
    }

    /// Has the device wait for this guest and its network as long as it takes: a busy machine may leave threads without a processor
    /// for longer than it would.
    fn patient(mut self) -> Self {
        let shared = Arc::get_mut(&mut self.net.shared).unwrap();
        (shared.hold, shared.patience) = (DEADLINE, DEADLINE);
        self
    }

    /// Sets queue `index` up and starts it.
    fn start(&mut self, index: u16, features: u64) -> Driver {
        let driver = self.prepare(index, features);
        self.net.start_queue(index, driver.resources()).unwrap();
        driver
    }

    fn prepare(&self, index: u16, features: u64) -> Driver {
        let size = self.net.queue_max_sizes()[usize::from(index)];
        Driver::new(&self.memory, &self.interrupts, index, size, features)
    }

    /// Waits until the counters, which follow the frames, are like this.
    fn counted(&self, right: impl Fn(&CounterValues) -> bool) -> CounterValues {
        let counters = self.net.counters();
        eventually("the count", || Some(counters.values()).filter(&right))
    }

    /// Fails if this queue's thread is busy.
    fn assert_idle(&self, queue: &str) {
        let thread = format!("{queue} {}", self.id);
        let before = runtime(&thread);
        std::thread::sleep(Duration::from_millis(300));
        let ran = runtime(&thread) - before;
        let most = Duration::from_millis(10);
        assert!(ran < most, "{thread} ran for {ran:?} with nothing to do");
    }

    /// Gives the NIC a frame behind a header.
    fn deliver(&self, frame: &[u8]) {
        send(&self.peers[0], frame);
    }
}

/// A frame of this length that can be told from others.
fn frame(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// The frame as it goes over the backend: behind a header with recognizable flags.
fn with_header(frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 20, 0, 0, 5, 34, 0, 6, 0, 0xee, 0xee];
    assert_eq!(bytes.len(), HEADER_SIZE);
    bytes.extend_from_slice(frame);
    bytes
}

fn send(peer: &OwnedFd, frame: &[u8]) {
    try_send(peer, frame).expect("room in the socket");
}

fn try_send(peer: &OwnedFd, frame: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(peer, &with_header(frame), SendFlags::NOSIGNAL)
}

/// The next frame the NIC sent, with its header.
fn try_receive(peer: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 70_000];
    match rustix::net::recv(peer, &mut bytes[..], RecvFlags::empty()) {
        Ok((_, length)) => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(rustix::io::Errno::AGAIN) => None,
        Err(error) => panic!("{error}"),
    }
}

fn receive(peer: &OwnedFd) -> Vec<u8> {
    eventually("a frame", || try_receive(peer))
}

/// Asks until there is an answer.
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// One received frame, put together from the chains it came in, without its header.
fn collect(driver: &mut Driver) -> Vec<u8> {
    let (_, mut bytes) = driver.wait();
    let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
    assert!(buffers >= 1);
    for _ in 1..buffers {
        // All of a frame's chains are there at once.
        let (_, more) = driver.take().expect("the other chains of the frame");
        bytes.extend(more);
    }
    assert_eq!(bytes[..10], with_header(&[])[..10], "the header");
    bytes.split_off(HEADER_SIZE)
}

/// How long the thread of this name has run.
fn runtime(thread: &str) -> Duration {
    let is_it = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread)
    };
    // A thread gives itself its name, some time after it was made.
    let task = eventually(thread, || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks.map(|task| task.path()).find(is_it)
    });
    let schedule = std::fs::read_to_string(task.join("schedstat")).unwrap();
    let nanoseconds = schedule.split_whitespace().next().unwrap();
    Duration::from_nanos(nanoseconds.parse().unwrap())
}
