//! The queues of virtio-net, console, rng, balloon, mem and scsi, with their real workers, against a driver that starts out honest and then does as
//! the input says: descriptors, rings and buffers are overwritten at will, queues stopped and started, the host's side talks back.
//!
//! Workers must not panic; a queue that is stopped must come back at once; and a device asks for at most one reset a queue. Balloon
//! and memory device give whole pages of RAM back, and nothing else.
#![no_main]

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use paddock_devices::console::ConsoleSink;
use paddock_devices::virtio::balloon::{BalloonHandle, BalloonOptions, Reclaim, VirtioBalloon};
use paddock_devices::virtio::console::{ConsolePorts, PortBackend, PortSpec, VirtioConsole};
use paddock_devices::virtio::mem::{MemHandle, Supply, VirtioMem};
use paddock_devices::virtio::net::{Net, NetOptions};
use paddock_devices::virtio::rng::VirtioRng;
use paddock_devices::virtio::scsi::{CdromHandle, Medium, VirtioScsi};
use paddock_devices::virtio::{GuestMap, GuestRam, QueueResources, VirtioDevice};
use paddock_fuzz::{INDIRECT, Input, NEXT, Resets, WRITE, valid_queue};
use paddock_network::MacAddress;
use paddock_network::double::SocketBackend;
use paddock_storage::testing::MemoryDisk;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 1 << 20;
const ENTRIES: u16 = 16;
/// Room for a queue's ring: table, available ring at 0x400, used ring at 0x800.
const RING: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Buffers, behind the rings of 32 queues.
const BUFFERS: u64 = 0x2_0000;
const BUFFER: u64 = 0x1000;

#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&self, _bytes: &[u8]) {}
}

/// The owner of guest RAM, strict about what it is asked.
#[derive(Debug)]
struct Owner {
    map: GuestMap,
    granule: u64,
}

impl Owner {
    fn check(&self, range: &Range<u64>) {
        assert!(
            range.start < range.end && range.end <= RAM as u64,
            "{range:x?}"
        );
        let whole = range.start % self.granule == 0 && range.end % self.granule == 0;
        assert!(whole, "{range:x?}");
    }
}

impl Supply for Owner {
    fn provide(&self, range: Range<u64>) -> std::io::Result<()> {
        self.check(&range);
        Ok(())
    }
}

impl Reclaim for Owner {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn reclaim(&self, range: Range<u64>) -> std::io::Result<()> {
        self.check(&range);
        // As madvise does, under the driver's and the other queues' hands.
        for address in range.step_by(4096) {
            self.map
                .write_slice(&[0; 4096], GuestAddress(address))
                .unwrap();
        }
        Ok(())
    }
}

/// The host's side of a device.
enum Host {
    None,
    Balloon(BalloonHandle),
    Memory(MemHandle),
    Cdrom(CdromHandle),
    Net(UnixStream),
    Console(Arc<ConsolePorts>),
}

/// What the driver knows of a queue.
struct DriverQueue {
    ring: u64,
    next: u16,
    avail: u16,
    kick: Arc<EventFd>,
    /// The device's side while the device does not have it.
    stopped: Option<Queue>,
}

struct Machine {
    map: GuestMap,
    ram: GuestRam,
    device: Box<dyn VirtioDevice>,
    host: Host,
    features: u64,
    resets: Arc<Resets>,
    queues: Vec<DriverQueue>,
    starts: usize,
}

/// A medium of so many sectors of 512 bytes.
fn medium(sectors: u8) -> Medium {
    let size = usize::from(sectors) * 512;
    Medium {
        name: "cd.iso".into(),
        disk: Arc::new(MemoryDisk::new(size)),
    }
}

fn device(kind: u8, map: &GuestMap) -> (Box<dyn VirtioDevice>, Host) {
    match kind % 8 {
        0 | 1 => {
            let (backend, mut peers) = SocketBackend::new(2, Some(1500)).unwrap();
            let options = NetOptions {
                mac: MacAddress::new([2, 0, 0, 0, 0, 1]),
                mtu: None,
                queue_pairs: 2,
                queue_size: 64,
            };
            let net = Net::new("net", Arc::new(backend), options).unwrap();
            (Box::new(net), Host::Net(peers.remove(0).into()))
        }
        2 => {
            let port = |name: &str, console| PortSpec {
                name: name.into(),
                console,
                backend: PortBackend::Host(Arc::new(Nowhere)),
            };
            let ports = ConsolePorts::new(vec![port("", true), port("agent", false)]).unwrap();
            let console = VirtioConsole::new("console", Arc::clone(&ports));
            (Box::new(console), Host::Console(ports))
        }
        3 => (Box::new(VirtioRng::new("rng")), Host::None),
        6 => {
            // All of RAM can be unplugged, the rings as well.
            let handle = MemHandle::new(0..RAM as u64, 4096, || ()).unwrap();
            let memory = Arc::new(Owner {
                map: map.clone(),
                granule: 4096,
            });
            let device = VirtioMem::new("memory", handle.clone(), memory);
            (Box::new(device), Host::Memory(handle))
        }
        7 => {
            let handle = CdromHandle::new("cd", || ());
            handle.insert(medium(16), false).unwrap();
            let device = VirtioScsi::new("cd", handle.clone());
            (Box::new(device), Host::Cdrom(handle))
        }
        large => {
            // Of four pages, so that an input can fill one.
            let granule = if large == 5 { 4 * 4096 } else { 4096 };
            let memory = Arc::new(Owner {
                map: map.clone(),
                granule,
            });
            let handle = BalloonHandle::new(RAM as u64, || ());
            let options = BalloonOptions {
                deflate_on_oom: true,
                free_page_reporting: true,
            };
            let balloon = VirtioBalloon::new("balloon", handle.clone(), memory, options);
            (Box::new(balloon), Host::Balloon(handle))
        }
    }
}

impl Machine {
    fn new(kind: u8, features: u32) -> Self {
        let map = GuestMap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let (mut device, host) = device(kind, &map);
        let features =
            device.features() & (u64::from(features) << 12 | u64::from(features)) | 1 << 32;
        device.set_features(features);
        let queues = (0..)
            .map(|index| index * RING)
            .take(device.queue_max_sizes().len());
        let queues = queues.map(|ring| {
            let queue = valid_queue(ENTRIES, ring, ring + AVAIL, ring + USED);
            let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            DriverQueue {
                ring,
                next: 0,
                avail: 0,
                kick,
                stopped: Some(queue),
            }
        });
        let queues = queues.collect();
        let ram = GuestRam::new(map.clone());
        let resets = Arc::default();
        let mut machine = Self {
            map,
            ram,
            device,
            host,
            features,
            resets,
            queues,
            starts: 0,
        };
        for index in 0..machine.queues.len() {
            machine.start(index);
        }
        machine
    }

    fn start(&mut self, index: usize) {
        let driver = &mut self.queues[index];
        let Some(queue) = driver.stopped.take() else {
            return;
        };
        // As the transport does: a ring that a driver moved out of RAM never gets here.
        assert!(queue.is_valid(&self.map));
        let resources = QueueResources {
            queue,
            memory: self.ram.clone(),
            kick: Arc::clone(&driver.kick),
            interrupt: Arc::clone(&self.resets) as _,
            features: self.features,
        };
        self.starts += 1;
        // A queue that the negotiated features leave without a purpose is refused.
        let _ = self.device.start_queue(index as u16, resources);
    }

    fn stop(&mut self, index: usize) {
        let began = Instant::now();
        if let Some(queue) = self.device.stop_queue(index as u16) {
            self.queues[index].stopped = Some(queue);
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "the queue does not stop"
        );
    }

    fn descriptor(&self, address: u64, descriptor: Descriptor) {
        self.map
            .write_obj(descriptor, GuestAddress(address))
            .unwrap();
    }

    fn make_available(&mut self, index: usize, head: u16) {
        let driver = &mut self.queues[index];
        let slot = driver.ring + AVAIL + 4 + 2 * u64::from(driver.avail % ENTRIES);
        self.map.write_obj(head, GuestAddress(slot)).unwrap();
        driver.avail = driver.avail.wrapping_add(1);
        let at = GuestAddress(driver.ring + AVAIL + 2);
        self.map.store(driver.avail, at, Ordering::Release).unwrap();
    }

    /// An honest chain: a readable buffer with bytes of the input, a writable one, or both; in the table or in an indirect one.
    fn chain(&mut self, index: usize, input: &mut Input) {
        let [shape, readable, writable] = input.bytes();
        let driver = &mut self.queues[index];
        let (ring, first) = (driver.ring, driver.next);
        let data = BUFFERS + (index as u64 % 8 * u64::from(ENTRIES) + u64::from(first)) * BUFFER;
        let bytes: [u8; 24] = input.bytes();
        self.map.write_slice(&bytes, GuestAddress(data)).unwrap();
        let read = Descriptor::new(data, u32::from(readable) * 8, 0, 0);
        let write = Descriptor::new(data + BUFFER / 2, u32::from(writable) * 8, WRITE, 0);
        let parts = match shape % 4 {
            0 => vec![read],
            1 => vec![write],
            _ => vec![read, write],
        };
        let indirect = shape & 0x80 != 0;
        let table = if indirect { data + BUFFER - 64 } else { ring };
        let start = if indirect { 0 } else { first };
        for (i, part) in (0..).zip(&parts) {
            let last = usize::from(i) + 1 == parts.len();
            let flags = part.flags() | if last { 0 } else { NEXT };
            let whole =
                Descriptor::new(part.addr().0, part.len(), flags, (start + i + 1) % ENTRIES);
            self.descriptor(table + 16 * u64::from((start + i) % ENTRIES), whole);
        }
        if indirect {
            let length = 16 * parts.len() as u32;
            self.descriptor(
                ring + 16 * u64::from(first),
                Descriptor::new(table, length, INDIRECT, 0),
            );
        }
        let driver = &mut self.queues[index];
        driver.next = (first + if indirect { 1 } else { parts.len() as u16 }) % ENTRIES;
        self.make_available(index, first);
    }

    fn host(&mut self, input: &mut Input) {
        match &mut self.host {
            Host::None => {}
            Host::Balloon(handle) => {
                let [target, poison] = input.bytes();
                // Refused where it is all of RAM.
                let _ = handle.set_target(u64::from(target) * 4096);
                let _ = handle.request_statistics();
                self.device.write_config(12, &[poison & 1; 4]);
                self.device.write_config(4, &input.bytes::<4>());
                let status = handle.status();
                assert!(status.actual <= RAM as u64 && status.target < RAM as u64);
            }
            Host::Memory(handle) => {
                let requested = u64::from(input.byte()) * 4096;
                handle.set_requested(requested).unwrap();
                let status = handle.status();
                assert!(status.plugged <= status.region_size && status.requested == requested);
                let mut config = [0; 64];
                self.device.read_config(input.byte().into(), &mut config);
            }
            Host::Cdrom(handle) => {
                let [what, sectors, at] = input.bytes();
                let force = what & 2 != 0;
                // Refused where the guest has locked the tray.
                let _ = match what & 1 {
                    0 => handle.insert(medium(sectors), force),
                    _ => handle.eject(force),
                };
                self.device.write_config(at.into(), &input.bytes::<4>());
                let mut config = [0; 64];
                self.device.read_config(at.into(), &mut config);
                let status = handle.status();
                assert_eq!(status.medium.is_some(), status.size.is_some());
            }
            Host::Net(peer) => {
                let mut frame = [0; 256];
                let head: [u8; 32] = input.bytes();
                frame[..32].copy_from_slice(&head);
                let length = usize::from(input.byte()).max(1);
                // Full when the guest does not receive.
                let _ = peer.write(&frame[..length]);
            }
            Host::Console(ports) => {
                let bytes: [u8; 8] = input.bytes();
                if let Some(port) = ports.input(usize::from(bytes[0] & 1)) {
                    port.enqueue(&bytes);
                }
                ports.resize(bytes[1].into(), bytes[2].into());
            }
        }
    }

    fn step(&mut self, input: &mut Input) {
        let index = usize::from(input.byte()) % self.queues.len();
        let ring = self.queues[index].ring;
        match input.byte() % 12 {
            0..=3 => self.chain(index, input),
            4 => {
                let at = ring + 16 * u64::from(input.byte() % 16);
                self.descriptor(at, input.descriptor());
            }
            5 => {
                let at = ring + 16 * u64::from(input.byte() % 16);
                self.descriptor(at, input.plausible_descriptor(16));
            }
            6 => {
                let at = u64::from(input.word()) * 4;
                let bytes: [u8; 4] = input.bytes();
                self.map.write_slice(&bytes, GuestAddress(at)).unwrap();
            }
            7 => {
                let head = input.word();
                self.make_available(index, head % 17);
            }
            8 => self.host(input),
            9 => {
                self.stop(index);
                self.start(index);
            }
            _ => {
                self.queues[index].kick.write(1).unwrap();
                std::thread::yield_now();
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let [kind, a, b] = input.bytes();
    let mut machine = Machine::new(kind, u32::from_le_bytes([a, b, a, b]));
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        machine.step(&mut input);
    }
    for queue in &machine.queues {
        queue.kick.write(1).unwrap();
    }
    std::thread::yield_now();
    for index in 0..machine.queues.len() {
        machine.stop(index);
    }
    machine.device.reset();
    assert!(
        machine.resets.count() <= machine.starts,
        "a queue asked for a reset twice"
    );
});
