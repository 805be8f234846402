//! The registers of the platform's PCI: host bridge, LPC bridge, hot-plug, ACPI's power management and two virtio functions, through ports,
//! ECAM and BAR, by a driver that is honest where the input says so and pokes anything anywhere else. The devices behind the functions only
//! check what they are told.
//!
//! The device must see queues started and stopped in turn, with negotiated features and rings in RAM; and whatever was done before, an honest
//! driver that resets the function must get it to work. A slot is let go of only while the host wants it back.
#![no_main]

use std::io;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use paddock_devices::bus::{Bus, BusDevice};
use paddock_devices::interrupt::{IrqLine, MsiAllocator, MsiLine, MsiMessage};
use paddock_devices::legacy::PowerEvents;
use paddock_devices::legacy::acpi_pm::AcpiPm;
use paddock_devices::pci::host_bridge::HostBridge;
use paddock_devices::pci::hotplug::{ADDED, EJECT, HOT_PLUG_PORTS, HotPlug, SlotEvents, WANTED};
use paddock_devices::pci::lpc::LpcBridge;
use paddock_devices::pci::root::{CONFIG_PORT_COUNT, CONFIG_PORTS, ConfigPorts, Ecam, PciRoot};
use paddock_devices::pci::{DeviceFunction, PciFunction};
use paddock_devices::virtio::pci::{Doorbells, VirtioPci};
use paddock_devices::virtio::{DeviceError, GuestMap, GuestRam, QueueResources, VirtioDevice};
use paddock_fuzz::Input;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace as _};
use vmm_sys_util::eventfd::EventFd;

const RAM: usize = 1 << 20;
/// Where ECAM is at power-on.
const ECAM: u64 = 0xe000_0000;
/// Where the honest driver puts the BAR.
const BAR: u64 = 0x10_0000_0000;
/// The function's place: device 2, which the host never wants back.
const FUNCTION: u64 = 2 << 15;
/// Another's, which comes and goes.
const GUEST_SLOT: u8 = 5;
/// Where the hot-plug registers are, and the PM block at power-on.
const HOT_PLUG: u64 = 0xae00;
const PM_BASE: u16 = 0x600;
const VERSION_1: u64 = 1 << 32;
const OFFERED: u64 = 0b101;

const FEATURE_SELECT: u64 = 0x08;
const FEATURES: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_ADDRESSES: u64 = 0x20;

/// Checks what the transport tells it.
#[derive(Default)]
struct Checker {
    features: Option<u64>,
    running: [Option<QueueResources>; 3],
}

impl VirtioDevice for Checker {
    fn id(&self) -> &str {
        "checker"
    }
    fn device_type(&self) -> u16 {
        4
    }
    fn features(&self) -> u64 {
        OFFERED
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 16, 256]
    }
    fn set_features(&mut self, negotiated: u64) {
        assert_eq!(negotiated & !(OFFERED | VERSION_1), 0, "never offered");
        assert_ne!(negotiated & VERSION_1, 0, "a legacy driver");
        self.features = Some(negotiated);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let limit = self.queue_max_sizes()[usize::from(index)];
        let place = &mut self.running[usize::from(index)];
        assert!(place.is_none(), "started twice");
        assert_eq!(self.features, Some(resources.features), "not negotiated");
        let queue = &resources.queue;
        assert!(
            queue.is_valid(&*resources.memory.memory()),
            "ring outside RAM"
        );
        assert!(queue.size() <= limit);
        *place = Some(resources);
        Ok(())
    }
    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let resources = self.running[usize::from(index)].take()?;
        Some(resources.queue)
    }
    fn reset(&mut self) {
        assert!(self.running.iter().all(Option::is_none), "queues run on");
        self.features = None;
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
struct Host;
impl MsiAllocator for Host {
    fn allocate(&self) -> io::Result<Box<dyn MsiLine>> {
        Ok(Box::new(Line(EventFd::new(libc::EFD_NONBLOCK)?)))
    }
}
impl Doorbells for Host {
    fn connect(&self, _address: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn disconnect(&self, _address: u64, _event: &EventFd) {}
}

impl IrqLine for Host {
    fn set_level(&self, _level: bool) -> io::Result<()> {
        Ok(())
    }
}
impl PowerEvents for Host {
    fn power_off(&self) {}
    fn reset(&self) {}
}
impl SlotEvents for Host {
    fn slot_released(&self) {}
}

/// Stands for the reset register.
#[derive(Debug)]
struct Quiet;
impl BusDevice for Quiet {
    fn name(&self) -> &str {
        "quiet"
    }
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

struct Machine {
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    function: Arc<VirtioPci>,
    guest: Arc<VirtioPci>,
    hot_plug: Arc<HotPlug>,
    /// The host wants the slot back.
    wanted: bool,
    root: Arc<PciRoot>,
}

impl Machine {
    fn new() -> Self {
        let (ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let root = Arc::new(PciRoot::default());
        let ecam: Arc<dyn BusDevice> = Arc::new(Ecam::new(&root));
        let bridge = HostBridge::new(Arc::clone(&mmio), ecam, Some(ECAM));
        let pm = Arc::new(AcpiPm::new(Arc::new(Host), Arc::new(Host)));
        let hot_plug = Arc::new(HotPlug::new(&root, Arc::clone(&pm), Arc::new(Host)));
        ports
            .insert(HOT_PLUG, HOT_PLUG_PORTS, Arc::clone(&hot_plug) as _)
            .unwrap();
        let lpc = LpcBridge::new(Arc::clone(&ports), pm, Some(PM_BASE));
        let config = ConfigPorts::new(&root, Arc::new(Quiet));
        ports
            .insert(CONFIG_PORTS, CONFIG_PORT_COUNT, Arc::new(config))
            .unwrap();
        let map = GuestMap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let ram = GuestRam::new(map);
        let virtio = || {
            let device = Box::<Checker>::default();
            VirtioPci::new(
                device,
                ram.clone(),
                Arc::clone(&mmio),
                &Host,
                Arc::new(Host),
            )
            .unwrap()
        };
        let (function, guest) = (virtio(), virtio());
        function.place(BAR);
        let functions: [(u8, Arc<dyn PciFunction>); 4] = [
            (0, Arc::new(bridge)),
            (2, Arc::clone(&function) as _),
            (GUEST_SLOT, Arc::clone(&guest) as _),
            (31, Arc::new(lpc)),
        ];
        for (device, function) in functions {
            root.add(DeviceFunction::new(device, 0).unwrap(), function)
                .unwrap();
        }
        Self {
            ports,
            mmio,
            function,
            guest,
            hot_plug,
            wanted: false,
            root,
        }
    }

    fn slot() -> DeviceFunction {
        DeviceFunction::new(GUEST_SLOT, 0).unwrap()
    }

    /// What the host does about the slot that comes and goes.
    fn host(&mut self, what: u8) {
        match what % 5 {
            0 => {
                self.refill();
                self.hot_plug.want_back(Self::slot());
                self.wanted = true;
            }
            1 => {
                // Too late when it was let go of.
                if self.hot_plug.keep(Self::slot()) {
                    self.wanted = false;
                }
            }
            2 => self.hot_plug.remind(),
            _ => self.refill(),
        }
    }

    /// Takes the slot as released, if it is, and fills it again.
    fn refill(&mut self) {
        for slot in self.hot_plug.take_released() {
            assert_eq!(slot, Self::slot(), "a slot that nobody wanted back is gone");
            assert!(self.wanted, "nobody wants the slot back");
            self.wanted = false;
            let function = Arc::clone(&self.guest);
            assert!(
                self.root.add(slot, function).is_ok(),
                "the slot is not free"
            );
            self.hot_plug.added(slot);
        }
    }

    /// As the DSDT's methods do: what is new is read and written back, and what is wanted is let go of.
    fn obey(&self) {
        let mut wanted = [0; 4];
        for register in [ADDED, WANTED] {
            let at = HOT_PLUG + u64::from(register);
            let mut news = [0; 4];
            self.ports.read(at, &mut news);
            self.ports.write(at, &news);
            wanted = news;
        }
        self.ports.write(HOT_PLUG + u64::from(EJECT), &wanted);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.mmio.write(BAR + offset, data);
    }

    fn status(&self) -> u8 {
        let mut status = [0xff];
        self.mmio.read(BAR + STATUS, &mut status);
        status[0]
    }

    /// A configuration register through the ports, wherever ECAM is.
    fn write_config(&self, function: u64, register: u16, value: u32) {
        let address = 0x8000_0000 | (function >> 4) as u32 | u32::from(register);
        self.ports.write(CONFIG_PORTS, &address.to_le_bytes());
        self.ports.write(CONFIG_PORTS + 4, &value.to_le_bytes());
    }

    fn place_bar(&self) {
        self.write_config(FUNCTION, 0x04, 0);
        self.write_config(FUNCTION, 0x10, BAR as u32);
        self.write_config(FUNCTION, 0x14, (BAR >> 32) as u32);
        self.write_config(FUNCTION, 0x04, 6);
    }

    fn negotiate(&self, features: u64) {
        for status in [0, 1, 3] {
            self.write(STATUS, &[status]);
        }
        for half in 0..2_u32 {
            self.write(FEATURE_SELECT, &half.to_le_bytes());
            self.write(FEATURES, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(STATUS, &[11]);
    }

    fn set_up_queue(&self, index: u16, size: u16, address: u64) {
        self.write(QUEUE_SELECT, &index.to_le_bytes());
        self.write(QUEUE_SIZE, &size.to_le_bytes());
        self.write(QUEUE_VECTOR, &index.to_le_bytes());
        for (slot, at) in (0..).zip([address, address + 0x1000, address + 0x2000]) {
            self.write(QUEUE_ADDRESSES + 8 * slot, &at.to_le_bytes());
        }
        self.write(QUEUE_ENABLE, &1_u16.to_le_bytes());
    }
}

/// Reads or writes 1, 2, 4, 8 or an odd number of bytes.
fn poke(bus: &Bus, address: u64, input: &mut Input) {
    let how = input.byte();
    let mut data: [u8; 8] = input.bytes();
    let length = [1, 2, 4, 8, 3, 5, 4, 1][usize::from(how & 7)];
    if how & 8 == 0 {
        bus.write(address, &data[..length]);
    } else {
        bus.read(address, &mut data[..length]);
    }
}

fn step(machine: &mut Machine, input: &mut Input) {
    match input.byte() % 13 {
        0 => machine.place_bar(),
        1 => machine.negotiate(VERSION_1 | u64::from(input.byte())),
        2 => {
            let index = u16::from(input.byte() % 4);
            let size = input.word();
            machine.set_up_queue(index, size, u64::from(input.word()) << 5);
        }
        3 => machine.set_up_queue(u16::from(input.byte() % 3), 16, 0x4000),
        4 => machine.write(
            STATUS,
            &[[0, 1, 3, 11, 15, 7, 0x80, 0xff][usize::from(input.byte() % 8)]],
        ),
        5 => poke(&machine.mmio, BAR + u64::from(input.word() % 0x40), input),
        6 => poke(&machine.mmio, BAR + u64::from(input.word()), input),
        7 => {
            // Any register of the three functions, and now and then of none.
            let function = [0, FUNCTION, 31 << 15, u64::from(input.byte()) << 12]
                [usize::from(input.byte() % 4)];
            poke(
                &machine.mmio,
                ECAM + function + u64::from(input.word() % 0x400),
                input,
            );
        }
        8 => {
            let register = input.word() & 0xfc;
            let function = [0, FUNCTION, 31 << 15, FUNCTION][usize::from(input.byte() % 4)];
            machine.write_config(function, register, u32::from_le_bytes(input.bytes()));
        }
        9 => machine.host(input.byte()),
        10 => machine.obey(),
        11 => {
            // The registers, behind them, and the PM block's.
            let base = [HOT_PLUG, HOT_PLUG, PM_BASE.into()][usize::from(input.byte() % 3)];
            let at = base + u64::from(input.byte() % 0x40);
            poke(&machine.ports, at, input);
        }
        _ => poke(
            &machine.ports,
            CONFIG_PORTS + u64::from(input.byte() % 8),
            input,
        ),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut machine = Machine::new();
    let mut input = Input::new(data);
    for _ in 0..300 {
        if input.is_empty() {
            break;
        }
        step(&mut machine, &mut input);
    }
    // The chipset's windows out of the way, then an honest driver.
    machine.write_config(0, 0x60, ECAM as u32 | 1);
    machine.write_config(0, 0x64, 0);
    machine.place_bar();
    machine.negotiate(VERSION_1);
    machine.set_up_queue(0, 16, 0x4000);
    machine.write(STATUS, &[15]);
    assert_eq!(
        machine.status(),
        15,
        "an honest driver does not get the device to work"
    );
    machine.write(STATUS, &[0]);
    assert_eq!(machine.status(), 0);
    // And an honest guest, which is asked for a slot.
    machine.host(0);
    let slot = 1_u32 << GUEST_SLOT;
    machine.hot_plug.write(EJECT.into(), &slot.to_le_bytes());
    assert_eq!(machine.hot_plug.take_released(), [Machine::slot()]);
    machine.guest.shut_down();
    machine.function.shut_down();
    assert!(machine.function.is_quiet());
});
