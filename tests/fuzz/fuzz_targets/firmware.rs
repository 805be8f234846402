//! What firmware talks to beside the PC's usual devices: the commands of its flash, and fw_cfg's ports and DMA descriptors in RAM of two
//! pieces with a hole between them.
//!
//! The flash tells of each change and of no other, and moves its slot only when that changes something. A transfer that fails has changed
//! nothing but its descriptor. Whatever was done before, firmware that starts over finds both as they should be.
#![no_main]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use paddock_devices::bus::BusDevice;
use paddock_devices::firmware::flash::{FlashChanged, FlashMemory, FlashSlot, SECTOR, VarsFlash};
use paddock_devices::firmware::fw_cfg::{FwCfg, FwCfgItems, LateItem, WrittenItem};
use paddock_devices::virtio::{GuestMap, GuestRam};
use paddock_fuzz::Input;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace as _, GuestMemoryBackend as _};

const LOW: usize = 0x1_0000;
const HIGH: u64 = 1 << 32;
const HIGH_LENGTH: usize = 0x1000;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
const READ: u32 = 2;

/// The slot, the store, and who makes and gets the contents of items.
#[derive(Debug, Default)]
struct Host {
    absent: AtomicBool,
    changes: AtomicUsize,
}

impl FlashSlot for Host {
    fn set_present(&self, present: bool) -> io::Result<()> {
        let was_absent = self.absent.swap(!present, Ordering::Relaxed);
        assert_eq!(was_absent, present, "nothing new");
        Ok(())
    }
}

impl FlashChanged for Host {
    fn flash_changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

impl LateItem for Host {
    fn make(&self) -> Vec<u8> {
        vec![7; 5000]
    }
}

impl WrittenItem for Host {
    fn written(&self, contents: &[u8]) {
        assert_eq!(contents.len(), 28);
    }
}

struct Flash {
    device: VarsFlash,
    memory: Arc<FlashMemory>,
    host: Arc<Host>,
}

impl Flash {
    fn new() -> Self {
        let memory = Arc::new(FlashMemory::new(&[0xa5; 2 * SECTOR]).unwrap());
        let host = Arc::new(Host::default());
        let (slot, changed) = (Arc::clone(&host) as _, Arc::clone(&host) as _);
        Self {
            device: VarsFlash::new(Arc::clone(&memory), slot, changed),
            memory,
            host,
        }
    }

    fn write(&self, at: u64, data: &[u8]) {
        let (before, changes) = (self.memory.snapshot(), self.changes());
        self.device.write(at, data);
        let changed = self.memory.snapshot() != before;
        assert_eq!(self.changes() - changes, usize::from(changed));
    }

    fn changes(&self) -> usize {
        self.host.changes.load(Ordering::Relaxed)
    }

    fn read(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.device.read(at, &mut byte);
        byte[0]
    }

    /// As OVMF finds out that it is there, and writes a byte.
    fn start_over(&self) {
        for command in [0xff, 0xff, 0x20, 0xd0, 0x50, 0x70] {
            self.write(0, &[command]);
        }
        assert_eq!(self.read(0), 0, "cleared");
        for command in [0x10, 0x5a, 0x70] {
            self.write(0, &[command]);
        }
        assert_eq!(self.read(0), 0x80, "done");
        self.write(0, &[0xff]);
        assert_eq!(self.read(0), 0x5a);
        assert!(!self.host.absent.load(Ordering::Relaxed));
    }
}

struct Config {
    device: FwCfg,
    ram: GuestRam,
}

impl Config {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), LOW), (GuestAddress(HIGH), HIGH_LENGTH)];
        let ram = GuestRam::new(GuestMap::from_ranges(&ranges).unwrap());
        let host = Arc::new(Host::default());
        let mut items = FwCfgItems::new();
        items.add_item(5, &[1, 0]).unwrap();
        items.add_file("etc/fixed", vec![3; 300]).unwrap();
        items
            .add_late_file("etc/late", 6000, Arc::clone(&host) as _)
            .unwrap();
        items.add_written_file("etc/ramfb", [0; 28], host).unwrap();
        let device = FwCfg::new(items, ram.clone());
        Self { device, ram }
    }

    fn all_ram(&self) -> Vec<u8> {
        let mut all = vec![0; LOW + HIGH_LENGTH];
        let (low, high) = all.split_at_mut(LOW);
        let map = self.ram.memory();
        map.read_slice(low, GuestAddress(0)).unwrap();
        map.read_slice(high, GuestAddress(HIGH)).unwrap();
        all
    }

    fn start(&self, at: u64) {
        let [high, low] = [at >> 32, at & 0xffff_ffff].map(|half| (half as u32).to_be_bytes());
        self.device.write(4, &high);
        self.device.write(8, &low);
    }

    /// Puts a descriptor there and starts it.
    fn transfer(&self, at: u64, control: u32, length: u32, address: u64) {
        let map = self.ram.memory();
        let fields = [
            &control.to_be_bytes()[..],
            &length.to_be_bytes(),
            &address.to_be_bytes(),
        ];
        if !map.check_range(GuestAddress(at), DESCRIPTOR) {
            let before = self.all_ram();
            self.start(at);
            assert!(self.all_ram() == before);
            return;
        }
        map.write_slice(&fields.concat(), GuestAddress(at)).unwrap();
        let mut before = self.all_ram();
        self.start(at);
        let mut after = self.all_ram();
        let offset = if at < HIGH {
            at
        } else {
            at - HIGH + LOW as u64
        } as usize;
        let status = u32::from_be_bytes(after[offset..offset + 4].try_into().unwrap());
        assert!(status <= 1, "{status:#x}");
        if status == 1 || control & READ == 0 {
            before[offset..offset + 4].fill(0);
            after[offset..offset + 4].fill(0);
            assert!(before == after, "a transfer failed by half");
        }
    }

    /// As OVMF finds out that it is there.
    fn start_over(&self) {
        self.device.write(0, &[0, 0]);
        let read = |_| {
            let mut byte = [0xff];
            self.device.read(1, &mut byte);
            byte[0]
        };
        assert_eq!(std::array::from_fn(read), *b"QEMU\0");
    }
}

/// An address at or near the edges of RAM, or any.
fn address(input: &mut Input<'_>) -> u64 {
    let near = u64::from(input.word());
    match input.byte() % 6 {
        0 => near,
        1 => (LOW as u64 - 128).wrapping_add(near & 0xff),
        2 => (HIGH - 128).wrapping_add(near & 0xff),
        3 => HIGH + (near & 0x1fff),
        4 => 0u64.wrapping_sub(near & 0xff),
        _ => u64::from_le_bytes(input.bytes()),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (flash, config) = (Flash::new(), Config::new());
    while !input.is_empty() {
        let what = input.byte();
        let width = usize::from(input.byte() % 9);
        match what % 6 {
            0 | 1 => {
                let at = u64::from(input.word()) % (2 * SECTOR as u64 + 16);
                flash.write(at, &[input.byte()]);
            }
            2 => {
                let at = address(&mut input);
                flash.write(at, &input.bytes::<8>()[..width.min(8)]);
                flash.device.read(at, &mut [0; 8][..width.min(8)]);
            }
            3 => {
                let offset = u64::from(input.byte() % 16);
                let data = input.bytes::<8>();
                config.device.write(offset, &data[..width.min(8)]);
                config.device.read(offset, &mut [0; 8][..width.min(8)]);
            }
            _ => {
                let key = u32::from(input.byte() % 0x26) << 16;
                let control = key | u32::from(input.byte());
                let length = match input.byte() % 3 {
                    0 => u32::from_le_bytes(input.bytes()),
                    _ => u32::from(input.word()),
                };
                let (at, target) = (address(&mut input), address(&mut input));
                config.transfer(at, control, length, target);
            }
        }
    }
    flash.start_over();
    config.start_over();
});
