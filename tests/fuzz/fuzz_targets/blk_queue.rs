//! virtio-blk against a driver that starts out honest and then does as the input says: descriptors, rings and requests are
//! overwritten at will, heads made available twice, the disk fails, is late or hangs.
//!
//! Each head that the device takes must come back used, or the device must ask for one reset; it must never take forever,
//! panic, or keep a request of a disk that has answered.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use paddock_devices::virtio::blk::BlkQueue;
use paddock_devices::virtio::{GuestMap, GuestRam, QueueResources};
use paddock_fuzz::{INDIRECT, Input, NEXT, Resets, WRITE, valid_queue};
use paddock_storage::testing::{Fault, MemoryDisk};
use paddock_storage::{Disk, IoError};
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const RAM: usize = 256 << 10;
const ENTRIES: u16 = 16;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const DISK: usize = 64 << 10;

struct Machine<'a> {
    map: &'a GuestMap,
    table: DescriptorTable<'a, GuestMap>,
    indirect: DescriptorTable<'a, GuestMap>,
    avail: AvailRing<'a, GuestMap>,
    disk: MemoryDisk,
    core: BlkQueue,
    next: u16,
    index: u16,
}

impl<'a> Machine<'a> {
    fn new(map: &'a GuestMap, resets: &Arc<Resets>, features: u64) -> Self {
        let avail = AvailRing::new(map, GuestAddress(AVAIL), ENTRIES);
        UsedRing::new(map, GuestAddress(USED), ENTRIES);
        let queue = valid_queue(ENTRIES, 0, AVAIL, USED);
        let disk = MemoryDisk::new(DISK);
        let resources = QueueResources {
            queue,
            memory: GuestRam::new(map.clone()),
            kick: Arc::new(EventFd::new(0).unwrap()),
            interrupt: Arc::clone(resets) as _,
            features,
        };
        let disk_queue = disk.open_queue(ENTRIES).unwrap();
        Self {
            map,
            table: DescriptorTable::new(map, GuestAddress(0), ENTRIES),
            indirect: DescriptorTable::new(map, GuestAddress(TABLE), ENTRIES),
            avail,
            core: BlkQueue::new("fuzz".into(), 0, resources, b"serial", disk_queue),
            disk,
            next: 0,
            index: 0,
        }
    }

    fn descriptor(&self, indirect: bool, index: u16, descriptor: Descriptor) {
        let table = if indirect {
            &self.indirect
        } else {
            &self.table
        };
        let raw = RawDescriptor::from(descriptor);
        table.store(index % ENTRIES, raw).unwrap();
    }

    fn make_available(&mut self, head: u16) {
        let slot = usize::from(self.index % ENTRIES);
        self.avail.ring().ref_at(slot).unwrap().store(head);
        self.index = self.index.wrapping_add(1);
        self.avail.idx().store(self.index);
    }

    /// An honest request: header, data, status, in the table or in an indirect one.
    fn request(&mut self, input: &mut Input) {
        let [kind, sector, sectors, shape] = input.bytes();
        let kind = [0_u32, 1, 4, 8, 11, 13, 99, 1][usize::from(kind % 8)];
        let base = DATA + u64::from(self.next % ENTRIES) * 0x1000;
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8] = sector;
        // A range for discards and write-zeroes behind the header.
        bytes[16] = sector;
        bytes[24] = sectors;
        bytes[28] = shape & 1;
        self.map.write_slice(&bytes, GuestAddress(base)).unwrap();
        let (length, write) = match kind {
            0 => (u32::from(sectors % 8) * 512, WRITE),
            8 => (20, WRITE),
            11 | 13 => (16, 0),
            _ => (u32::from(sectors % 8) * 512, 0),
        };
        let indirect = shape & 2 != 0;
        let first = if indirect { 0 } else { self.next };
        let at = |i: u16| (first + i) % ENTRIES;
        let chain = [
            Descriptor::new(base, 16, NEXT, at(1)),
            Descriptor::new(base + 16, length, NEXT | write, at(2)),
            Descriptor::new(base + 0xff0, 1, WRITE, 0),
        ];
        for (i, descriptor) in (0..).zip(chain) {
            self.descriptor(indirect, at(i), descriptor);
        }
        let head = self.next % ENTRIES;
        if indirect {
            self.descriptor(false, head, Descriptor::new(TABLE, 48, INDIRECT, 0));
            self.next = (self.next + 1) % ENTRIES;
        } else {
            self.next = (self.next + 3) % ENTRIES;
        }
        self.make_available(head);
    }

    fn step(&mut self, input: &mut Input) {
        match input.byte() % 12 {
            0..=3 => self.request(input),
            4 => {
                let index = input.word();
                self.descriptor(index & 0x8000 != 0, index, input.descriptor());
            }
            5 => {
                let index = input.word();
                let descriptor = input.plausible_descriptor(4);
                self.descriptor(index & 0x8000 != 0, index, descriptor);
            }
            6 => {
                // Anywhere in the rings and in the data behind them.
                let address = u64::from(input.word()) % 0x6000;
                let bytes: [u8; 4] = input.bytes();
                self.map.write_slice(&bytes, GuestAddress(address)).unwrap();
            }
            7 => {
                let head = input.word();
                self.make_available(if head & 0x8000 != 0 {
                    head
                } else {
                    head % ENTRIES
                });
            }
            8 => {
                self.core.serve();
            }
            9 => self.settle(),
            _ => {
                let fault = match input.byte() % 5 {
                    0 => Fault::Stuck,
                    1 => Fault::Error(IoError::Os(5)),
                    2 => Fault::Torn(100, IoError::Os(28)),
                    3 => Fault::Error(IoError::Unsupported),
                    _ => Fault::Delay(3),
                };
                self.disk.script([fault]);
            }
        }
    }

    fn settle(&mut self) {
        self.disk.release();
        let mut passes = 0;
        while self.core.serve() || self.core.in_flight() > 0 {
            passes += 1;
            assert!(passes < 1000, "the queue does not settle");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let map = GuestMap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let resets = Arc::new(Resets::default());
    // With and without event indices, discard and write-zeroes.
    let features = u64::from(input.byte()) << 24 | u64::from(input.byte()) << 8;
    let mut machine = Machine::new(&map, &resets, features);
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        machine.step(&mut input);
    }
    machine.settle();
    machine.core.drain(Duration::ZERO).unwrap();
    assert_eq!(machine.core.in_flight(), 0);
    let broken = machine.core.is_broken();
    assert_eq!(resets.count(), usize::from(broken));
    let ring = machine.core.ring();
    if !broken {
        assert_eq!(
            ring.next_avail(),
            ring.next_used(),
            "taken and not answered"
        );
    }
});
