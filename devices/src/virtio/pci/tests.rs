//! The transport as a driver sees it: a device that only notes what it is told, driven through its BAR.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Doorbells, VirtioPci};
use crate::bus::Bus;
use crate::interrupt::{MsiAllocator, MsiLine, MsiMessage};
use crate::pci::PciFunction;
use crate::testing::LogLines;
use crate::virtio::{DeviceError, GuestRam, QueueResources, VirtioDevice};

const BAR: u64 = 0x10_0000_0000;
const RAM: usize = 1 << 20;

#[derive(Debug, Default)]
struct Notes {
    features: Option<u64>,
    running: [bool; 2],
    resets: usize,
    resources: Vec<QueueResources>,
    fail_start: bool,
    busy: bool,
}

struct Dummy(Arc<Mutex<Notes>>);

impl VirtioDevice for Dummy {
    fn id(&self) -> &str {
        "dummy"
    }
    fn device_type(&self) -> u16 {
        4
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 16]
    }
    fn set_features(&mut self, negotiated: u64) {
        self.0.lock().features = Some(negotiated);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xff).unwrap());
    }
    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let mut notes = self.0.lock();
        if notes.fail_start {
            return Err(DeviceError {
                device: "dummy".into(),
                action: "starting".into(),
                source: io::Error::other("no"),
            });
        }
        notes.running[usize::from(index)] = true;
        notes.resources.push(resources);
        Ok(())
    }
    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let mut notes = self.0.lock();
        let running = std::mem::take(&mut notes.running[usize::from(index)]);
        running.then(|| Queue::new(64).unwrap())
    }
    fn reset(&mut self) {
        self.0.lock().resets += 1;
    }
    fn is_quiet(&mut self) -> bool {
        !self.0.lock().busy
    }
}

#[derive(Debug)]
struct Line(EventFd);
impl MsiLine for Line {
    fn event(&self) -> &EventFd {
        &self.0
    }
    fn set(&self, _message: Option<MsiMessage>) -> io::Result<()> {
        Ok(())
    }
}
#[derive(Debug)]
struct Lines;
impl MsiAllocator for Lines {
    fn allocate(&self) -> io::Result<Box<dyn MsiLine>> {
        Ok(Box::new(Line(EventFd::new(libc::EFD_NONBLOCK)?)))
    }
}

/// Where doorbells are connected.
#[derive(Debug, Default)]
struct Connected(Mutex<Vec<u64>>);
impl Doorbells for Connected {
    fn connect(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().push(address);
        Ok(())
    }
    fn disconnect(&self, address: u64, _event: &EventFd) {
        self.0.lock().retain(|at| *at != address);
    }
}

struct Rig {
    bus: Arc<Bus>,
    function: Arc<VirtioPci>,
    notes: Arc<Mutex<Notes>>,
    doorbells: Arc<Connected>,
    broken: Arc<AtomicU64>,
}

impl Rig {
    fn new() -> Self {
        let bus = Arc::new(Bus::new());
        let notes = Arc::new(Mutex::new(Notes::default()));
        let doorbells = Arc::new(Connected::default());
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let broken = Arc::default();
        let function = VirtioPci::counting_in(
            Arc::clone(&broken),
            Box::new(Dummy(Arc::clone(&notes))),
            GuestRam::new(map),
            Arc::clone(&bus),
            &Lines,
            Arc::clone(&doorbells) as _,
        )
        .unwrap();
        function.place(BAR);
        Self {
            bus,
            function,
            notes,
            doorbells,
            broken,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(self.bus.write(BAR + offset, bytes));
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        assert!(self.bus.read(BAR + offset, &mut data));
        data
    }

    fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    /// What a driver does up to FEATURES_OK; returns the status it then reads.
    fn negotiate(&self, features: u64) -> u8 {
        self.write(0x14, &[0]);
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        for half in 0..2_u32 {
            self.write(0x08, &half.to_le_bytes());
            let bits = u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap();
            self.write(0x0c, &bits.to_le_bytes());
        }
        self.write(0x14, &[11]);
        self.status()
    }

    fn set_up_queue(&self, index: u16, address: u64) {
        self.write(0x16, &index.to_le_bytes());
        self.write(0x18, &16_u16.to_le_bytes());
        self.write(0x1a, &(index + 1).to_le_bytes());
        self.write(0x20, &address.to_le_bytes());
        self.write(0x28, &(address + 0x1000).to_le_bytes());
        self.write(
            0x30,
            &u32::try_from(address + 0x2000).unwrap().to_le_bytes(),
        );
        self.write(0x1c, &1_u16.to_le_bytes());
    }
}

const VERSION_1: u64 = 1 << 32;

#[test]
fn a_driver_brings_the_device_up_and_resets_it() {
    let rig = Rig::new();
    assert_eq!(rig.read::<2>(0x12), [2, 0], "two queues");
    assert_eq!(rig.negotiate(VERSION_1 | 4), 11);
    assert_eq!(rig.notes.lock().features, Some(VERSION_1 | 4));
    rig.set_up_queue(0, 0x4000);
    assert!(!rig.notes.lock().running[0], "not before DRIVER_OK");
    rig.write(0x14, &[15]);
    assert_eq!(rig.notes.lock().running, [true, false]);
    assert_eq!(rig.status(), 15);
    let interrupt = Arc::clone(&rig.notes.lock().resources[0].interrupt);
    let generation = rig.read::<1>(0x15)[0];
    interrupt.signal_config();
    interrupt.signal_queue(0);
    assert_eq!(rig.read::<1>(0x15)[0], generation.wrapping_add(1));
    assert_eq!(rig.read::<1>(0x1000), [3], "ISR: queue and configuration");
    assert_eq!(rig.read::<1>(0x1000), [0], "reading it clears it");
    rig.write(0x14, &[0]);
    let notes = rig.notes.lock();
    assert_eq!((notes.running, notes.resets), ([false; 2], 2));
    drop(notes);
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.read::<8>(0x20), [0; 8], "the queue is forgotten");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let rig = Rig::new();
    assert_eq!(rig.negotiate(VERSION_1 | 2), 3, "FEATURES_OK stays off");
    assert_eq!(rig.negotiate(4), 3, "a legacy driver");
    assert_eq!(rig.notes.lock().features, None);
    rig.write(0x14, &[15]);
    assert_ne!(rig.status() & 0x40, 0, "DRIVER_OK all the same");
}

#[test]
fn a_ring_outside_ram_asks_for_a_reset_which_heals() {
    let rig = Rig::new();
    rig.negotiate(VERSION_1);
    rig.set_up_queue(1, RAM as u64);
    rig.write(0x14, &[15]);
    assert_eq!(rig.status(), 15 | 0x40);
    assert_eq!(rig.negotiate(VERSION_1), 11);
    rig.set_up_queue(1, 0x8000);
    rig.write(0x14, &[15]);
    assert_eq!(rig.status(), 15);
    assert_eq!(rig.notes.lock().running, [false, true]);
}

#[test]
fn a_reset_is_over_only_when_the_backend_is_quiet() {
    let rig = Rig::new();
    assert_eq!(rig.negotiate(VERSION_1), 11);
    rig.notes.lock().busy = true;
    rig.write(0x14, &[0]);
    assert_eq!(rig.status(), 0x40);
    rig.write(0x14, &[1]);
    assert_eq!(rig.status(), 0x40, "nothing begins before it is over");
    rig.notes.lock().busy = false;
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.negotiate(VERSION_1), 11);
}

#[test]
fn a_queue_that_cannot_start_asks_for_a_reset() {
    let rig = Rig::new();
    rig.notes.lock().fail_start = true;
    rig.negotiate(VERSION_1);
    rig.write(0x14, &[15]);
    rig.set_up_queue(0, 0x4000);
    assert_eq!(rig.status(), 15 | 0x40, "enabled after DRIVER_OK");
}

#[test]
fn a_device_that_needs_a_reset_is_not_set_up_behind_its_back() {
    let rig = Rig::new();
    rig.write(0x14, &[7]);
    assert_eq!(rig.status(), 7 | 0x40, "DRIVER_OK without features");
    for half in 0..2_u32 {
        rig.write(0x08, &half.to_le_bytes());
        rig.write(0x0c, &half.to_le_bytes());
    }
    rig.write(0x14, &[15]);
    rig.set_up_queue(0, 0x4000);
    assert_eq!(rig.status(), 7 | 0x40, "too late for features");
    let notes = rig.notes.lock();
    assert_eq!((notes.features, notes.running), (None, [false; 2]));
}

#[test]
fn a_queue_is_not_started_beside_one_that_cannot_be() {
    let rig = Rig::new();
    rig.negotiate(VERSION_1);
    rig.set_up_queue(0, RAM as u64);
    rig.set_up_queue(1, 0x8000);
    rig.write(0x14, &[15]);
    assert_eq!(rig.status(), 15 | 0x40);
    assert_eq!(rig.notes.lock().running, [false; 2]);
}

#[test]
fn a_driver_that_breaks_the_device_over_and_over_does_not_fill_the_log() {
    let rig = Rig::new();
    let lines = Arc::new(AtomicUsize::new(0));
    let subscriber = LogLines(Arc::clone(&lines));
    let began = std::time::Instant::now();
    tracing::subscriber::with_default(subscriber, || {
        for _ in 0..1000 {
            rig.write(0x14, &[0]);
            rig.write(0x14, &[4]);
            assert_eq!(rig.status() & 0x40, 0x40, "DRIVER_OK without features");
        }
    });
    let lines = lines.load(Ordering::Relaxed) as u64;
    assert!(lines >= 1, "not a word about it");
    assert!(lines <= 2 + began.elapsed().as_secs(), "{lines} lines");
    rig.write(0x14, &[4]);
    let counted = rig.broken.load(Ordering::Relaxed);
    assert_eq!(counted, 1000, "once each time, and not while it is broken");
}

#[test]
fn an_enabled_queue_cannot_be_changed() {
    let rig = Rig::new();
    rig.negotiate(VERSION_1);
    rig.set_up_queue(0, 0x4000);
    rig.write(0x20, &0x9000_u64.to_le_bytes());
    rig.write(0x18, &8_u16.to_le_bytes());
    assert_eq!(rig.read::<8>(0x20), 0x4000_u64.to_le_bytes());
    assert_eq!(rig.read::<2>(0x18), [16, 0]);
}

#[test]
fn doorbells_follow_the_bar() {
    let rig = Rig::new();
    assert_eq!(*rig.doorbells.0.lock(), [BAR + 0x4000, BAR + 0x4004]);
    rig.function
        .write_config(0x10, &0x20_0000_0000_u64.to_le_bytes());
    assert_eq!(
        *rig.doorbells.0.lock(),
        [0x20_0000_4000, 0x20_0000_4004_u64]
    );
    rig.function.write_config(0x04, &[0, 0]);
    assert!(rig.doorbells.0.lock().is_empty());
    assert!(!rig.bus.read(0x20_0000_0000, &mut [0; 4]));
}

#[test]
fn a_doorbell_that_reaches_the_vmm_kicks_too() {
    let rig = Rig::new();
    rig.negotiate(VERSION_1);
    rig.set_up_queue(1, 0x4000);
    rig.write(0x14, &[15]);
    rig.write(0x4004, &1_u16.to_le_bytes());
    rig.write(0x4008, &2_u16.to_le_bytes());
    let kick = Arc::clone(&rig.notes.lock().resources[0].kick);
    assert_eq!(kick.read().unwrap(), 1);
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let rig = Rig::new();
    // The fifth virtio capability: walk the list to it.
    let mut at = 0x34_u16;
    for _ in 0..5 {
        let mut next = [0];
        rig.function
            .read_config(at + u16::from(at != 0x34), &mut next);
        at = u16::from(next[0]);
    }
    rig.function.write_config(at + 4, &[0]);
    rig.function.write_config(at + 8, &0x12_u32.to_le_bytes());
    rig.function.write_config(at + 12, &2_u32.to_le_bytes());
    let mut data = [0; 4];
    rig.function.read_config(at + 16, &mut data);
    assert_eq!(data, [2, 0, 0, 0], "num_queues");
    rig.function.write_config(at + 8, &0x14_u32.to_le_bytes());
    rig.function.write_config(at + 12, &1_u32.to_le_bytes());
    rig.function.write_config(at + 16, &[1, 0, 0, 0]);
    assert_eq!(rig.status(), 1);
}

proptest! {
    /// Whatever a guest writes where, the process lives and the status can be brought back to 0.
    #[test]
    fn no_access_panics(accesses in proptest::collection::vec(
        (any::<bool>(), any::<bool>(), 0_u64..0x1_0000, any::<u64>(), 1_usize..9), 0..200)
    ) {
        let rig = Rig::new();
        for (write, config, offset, value, width) in accesses {
            let mut data = value.to_le_bytes();
            // Half of the accesses go to the registers that matter.
            let offset = if value & 1 == 0 { offset & 0x3f } else { offset };
            let at = u16::try_from(offset % 4088).unwrap();
            match (config, write) {
                (true, true) => rig.function.write_config(at, &data[..width]),
                (true, false) => rig.function.read_config(at, &mut data[..width]),
                (false, true) => { rig.bus.write(BAR + offset, &data[..width]); }
                (false, false) => { rig.bus.read(BAR + offset, &mut data[..width]); }
            }
        }
        rig.function.place(BAR);
        rig.write(0x14, &[0]);
        prop_assert_eq!(rig.status(), 0);
    }
}
