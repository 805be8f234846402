//! A PC without CPUs: buses, chipset, flash and fw_cfg, one device under attack and one beside it, RAM, and a log that is counted.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use paddock_devices::bus::{Bus, BusDevice};
use paddock_devices::console::ConsoleSink;
use paddock_devices::firmware::flash::{
    CodeFlash, FlashChanged, FlashMemory, FlashSlot, VarsFlash,
};
use paddock_devices::firmware::fw_cfg::{FW_CFG_PORT, FW_CFG_PORTS, FwCfg, FwCfgItems, LateItem};
use paddock_devices::interrupt::{IrqLine, MsiAllocator, MsiLine, MsiMessage};
use paddock_devices::legacy::PowerEvents;
use paddock_devices::legacy::acpi_pm::AcpiPm;
use paddock_devices::legacy::cmos::Cmos;
use paddock_devices::legacy::debug::PostCode;
use paddock_devices::legacy::reset::{ResetControl, SystemControlA};
use paddock_devices::legacy::serial::Serial;
use paddock_devices::pci::host_bridge::HostBridge;
use paddock_devices::pci::lpc::LpcBridge;
use paddock_devices::pci::root::{ConfigPorts, Ecam, PciRoot};
use paddock_devices::pci::{DeviceFunction, PciFunction};
use paddock_devices::socket::PrivateSocket;
use paddock_devices::virtio::balloon::{BalloonHandle, BalloonOptions, Reclaim, VirtioBalloon};
use paddock_devices::virtio::blk::{Blk, BlkOptions};
use paddock_devices::virtio::console::{ConsolePorts, PortBackend, PortSpec, VirtioConsole};
use paddock_devices::virtio::mem::{MemHandle, Supply, VirtioMem};
use paddock_devices::virtio::net::{Net, NetOptions};
use paddock_devices::virtio::pci::{BAR_LENGTH, Doorbells, VirtioPci};
use paddock_devices::virtio::rng::VirtioRng;
use paddock_devices::virtio::scsi::{CdromHandle, Medium, VirtioScsi};
use paddock_devices::virtio::{GuestMap, GuestRam, VirtioDevice};
use paddock_network::MacAddress;
use paddock_network::double::SocketBackend;
use paddock_probe::hostile::machine::{Function, Machine, Physical, Ports, Ram};
use paddock_probe::hostile::{Kind, MEM_BLOCKS};
use paddock_storage::testing::MemoryDisk;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 128 << 20;
/// The driver's part of it: where ECAM can be, too.
const ARENA: u64 = 68 << 20;
const ARENA_LENGTH: u64 = 2 << 20;
/// Bytes of a block of the memory device, and where its region is.
const BLOCK: u64 = 64 << 10;
const REGION: Range<u64> = 1 << 30..(1 << 30) + 4 * MEM_BLOCKS * BLOCK;
const ECAM: u64 = 0xe000_0000;
const PM_BASE: u16 = 0x600;
/// The flash with the variables; up to 4 GiB, the one with the code.
const FLASH: u64 = 0xffc0_0000;
const VARIABLES: usize = 0x8_4000;
const CODE: usize = (1 << 22) - VARIABLES;
/// Bytes of the tables.
const TABLES: usize = 9000;
/// Where the BARs are.
const TARGET: u64 = 0x70_0000_0000;
const NEIGHBOUR: u64 = TARGET + BAR_LENGTH;

/// Counts the lines of level info and above that this process logs.
pub struct Lines(Arc<AtomicUsize>);

impl Lines {
    /// Counts from now on; the same counter each time.
    pub fn install() -> Arc<AtomicUsize> {
        static COUNTER: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
        let counter = COUNTER.get_or_init(|| {
            let counter = Arc::<AtomicUsize>::default();
            tracing::subscriber::set_global_default(Self(Arc::clone(&counter))).unwrap();
            counter
        });
        Arc::clone(counter)
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Debug)]
struct Line(EventFd);

impl MsiLine for Line {
    fn event(&self) -> &EventFd {
        &self.0
    }
    fn set(&self, _: Option<MsiMessage>) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that KVM is in a real VM.
#[derive(Debug)]
struct Host;

impl MsiAllocator for Host {
    fn allocate(&self) -> io::Result<Box<dyn MsiLine>> {
        Ok(Box::new(Line(EventFd::new(EFD_NONBLOCK)?)))
    }
}

impl IrqLine for Host {
    fn set_level(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Doorbells for Host {
    fn connect(&self, _: u64, _: &EventFd) -> io::Result<()> {
        // The functions then serve their doorbells themselves.
        Err(io::ErrorKind::Unsupported.into())
    }
    fn disconnect(&self, _: u64, _: &EventFd) {}
}

impl ConsoleSink for Host {
    fn write(&self, _: &[u8]) {}
}

impl FlashChanged for Host {
    fn flash_changed(&self) {}
}

impl LateItem for Host {
    fn make(&self) -> Vec<u8> {
        vec![0x7a; TABLES]
    }
}

/// The slot of a flash, of which it must be told only what is new.
#[derive(Debug, Default)]
struct Slot(AtomicBool);

impl FlashSlot for Slot {
    fn set_present(&self, present: bool) -> io::Result<()> {
        let was_absent = self.0.swap(!present, Ordering::Relaxed);
        assert_eq!(was_absent, present);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Power(AtomicUsize);

impl PowerEvents for Power {
    fn power_off(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The owner of guest RAM, of which a device may take a part back. What it is asked for beyond that is counted and not done.
#[derive(Debug)]
struct Owner {
    memory: GuestRam,
    part: Range<u64>,
    granule: u64,
    trespasses: Arc<AtomicUsize>,
}

impl Owner {
    fn allows(&self, range: &Range<u64>) -> bool {
        let inside =
            self.part.start <= range.start && range.start < range.end && range.end <= self.part.end;
        let whole =
            range.start.is_multiple_of(self.granule) && range.end.is_multiple_of(self.granule);
        if !(inside && whole) {
            println!(
                "{range:x?} is not to be taken: only whole pieces in {:x?}",
                self.part
            );
            self.trespasses.fetch_add(1, Ordering::Relaxed);
        }
        inside && whole
    }
}

impl Reclaim for Owner {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn reclaim(&self, range: Range<u64>) -> io::Result<()> {
        if self.allows(&range) {
            // As madvise does, under the hands of everybody else.
            let map = self.memory.memory();
            for address in range.step_by(4096) {
                Bytes::write_slice(&*map, &[0; 4096], GuestAddress(address)).unwrap();
            }
        }
        Ok(())
    }
}

impl Supply for Owner {
    fn provide(&self, range: Range<u64>) -> io::Result<()> {
        self.allows(&range);
        Ok(())
    }
}

/// A function as a driver in the guest sees it.
struct Seen {
    function: Arc<VirtioPci>,
    mmio: Arc<Bus>,
    home: u64,
}

impl Seen {
    fn new(device: Box<dyn VirtioDevice>, memory: &GuestRam, mmio: &Arc<Bus>, home: u64) -> Self {
        let function = VirtioPci::new(
            device,
            memory.clone(),
            Arc::clone(mmio),
            &Host,
            Arc::new(Host),
        )
        .unwrap();
        function.place(home);
        Self {
            function,
            mmio: Arc::clone(mmio),
            home,
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.function.shut_down();
    }
}

impl Function for Seen {
    fn read_config(&self, offset: u16, width: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data[..width]);
        u32::from_le_bytes(data)
    }
    fn write_config(&self, offset: u16, width: usize, value: u32) {
        self.function
            .write_config(offset, &value.to_le_bytes()[..width]);
    }
    fn read_bar(&self, offset: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        self.mmio.read(self.home + offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }
    fn write_bar(&self, offset: u64, width: usize, value: u64) {
        self.mmio
            .write(self.home + offset, &value.to_le_bytes()[..width]);
    }
    fn bar_length(&self) -> u64 {
        BAR_LENGTH
    }
}

/// Takes what a NIC sends, so that its sends go on.
struct Drain {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    fn new(peers: Vec<OwnedFd>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; 1 << 17];
            while !told.load(Ordering::Relaxed) {
                let idle = peers
                    .iter()
                    .all(|peer| rustix::io::read(peer, &mut frame).is_err());
                if idle {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A PC with a device to attack.
pub struct Pc {
    // Before what they use.
    target: Seen,
    neighbour: Seen,
    memory: GuestRam,
    io_ports: Arc<Bus>,
    mmio: Arc<Bus>,
    power: Arc<Power>,
    trespasses: Arc<AtomicUsize>,
    _root: Arc<PciRoot>,
    _drain: Option<Drain>,
    _sockets: tempfile::TempDir,
}

impl Pc {
    /// A PC with a device of this kind and an idle one beside it.
    pub fn new(kind: Kind) -> Self {
        let mut ranges = vec![(GuestAddress(0), RAM)];
        if kind == Kind::Mem {
            let length = usize::try_from(REGION.end - REGION.start).unwrap();
            ranges.push((GuestAddress(REGION.start), length));
        }
        let memory = GuestRam::new(GuestMap::from_ranges(&ranges).unwrap());
        let (io_ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let power = Arc::<Power>::default();
        let root = chipset(&io_ports, &mmio, &power);
        flash(&mmio);
        fw_cfg(&io_ports, &memory);
        let sockets = tempfile::tempdir().unwrap();
        let trespasses = Arc::<AtomicUsize>::default();
        let owner = |part, granule| Owner {
            memory: memory.clone(),
            part,
            granule,
            trespasses: Arc::clone(&trespasses),
        };
        let (device, drain) = device(kind, &sockets, owner);
        let target = Seen::new(device, &memory, &mmio, TARGET);
        let neighbour = Seen::new(
            Box::new(VirtioRng::new("neighbour")),
            &memory,
            &mmio,
            NEIGHBOUR,
        );
        for (slot, seen) in [(1, &target), (2, &neighbour)] {
            plug(&root, slot, Arc::clone(&seen.function) as _);
        }
        Self {
            target,
            neighbour,
            memory,
            io_ports,
            mmio,
            power,
            trespasses,
            _root: root,
            _drain: drain,
            _sockets: sockets,
        }
    }

    /// How often a reset or a power-off was asked for.
    pub fn power_requests(&self) -> usize {
        self.power.0.load(Ordering::Relaxed)
    }

    /// How often a device wanted to take what it may not.
    pub fn trespasses(&self) -> usize {
        self.trespasses.load(Ordering::Relaxed)
    }
}

fn device(
    kind: Kind,
    sockets: &tempfile::TempDir,
    owner: impl Fn(Range<u64>, u64) -> Owner,
) -> (Box<dyn VirtioDevice>, Option<Drain>) {
    match kind {
        Kind::Blk => {
            let options = BlkOptions {
                queues: 2,
                serial: "HOSTILE".to_owned(),
                ..BlkOptions::default()
            };
            let disk = Arc::new(MemoryDisk::new(8 << 20));
            (Box::new(Blk::new("disk0", disk, options).unwrap()), None)
        }
        Kind::Net => {
            let (backend, peers) = SocketBackend::new(1, Some(1500)).unwrap();
            let options = NetOptions {
                mac: MacAddress::new([0x52, 0x54, 0, 0, 0, 2]),
                mtu: None,
                queue_pairs: 1,
                queue_size: 256,
            };
            let net = Net::new("net0", Arc::new(backend), options).unwrap();
            (Box::new(net), Some(Drain::new(peers)))
        }
        Kind::Console => {
            let port = |name: &str| PortSpec {
                name: name.to_owned(),
                console: false,
                backend: PortBackend::Socket(
                    PrivateSocket::bind(&sockets.path().join(name)).unwrap(),
                ),
            };
            let console = PortSpec {
                name: String::new(),
                console: true,
                backend: PortBackend::Host(Arc::new(Host)),
            };
            let ports = ConsolePorts::new(vec![console, port("one"), port("two")]).unwrap();
            (Box::new(VirtioConsole::new("console", ports)), None)
        }
        Kind::Rng => (Box::new(VirtioRng::new("rng")), None),
        Kind::Balloon => {
            let handle = BalloonHandle::new(RAM as u64, || ());
            let options = BalloonOptions {
                deflate_on_oom: true,
                free_page_reporting: true,
            };
            let memory = Arc::new(owner(0..RAM as u64, 4096));
            let balloon = VirtioBalloon::new("balloon", handle, memory, options);
            (Box::new(balloon), None)
        }
        Kind::Mem => {
            let handle = MemHandle::new(REGION, BLOCK, || ()).unwrap();
            handle.set_requested(2 * MEM_BLOCKS * BLOCK).unwrap();
            let memory = Arc::new(owner(REGION, BLOCK));
            (Box::new(VirtioMem::new("memory", handle, memory)), None)
        }
        Kind::Scsi => {
            let handle = CdromHandle::new("HOSTILE", || ());
            let medium = Medium {
                name: "cd.iso".to_owned(),
                disk: Arc::new(MemoryDisk::new(8 << 20)),
            };
            handle.insert(medium, false).unwrap();
            (Box::new(VirtioScsi::new("cdrom0", handle)), None)
        }
    }
}

fn plug(root: &PciRoot, slot: u8, function: Arc<dyn PciFunction>) {
    let at = DeviceFunction::new(slot, 0).unwrap();
    assert!(root.add(at, function).is_ok(), "slot {slot} is taken");
}

/// As the machine of the `vmm` crate puts it together.
fn chipset(ports: &Arc<Bus>, mmio: &Arc<Bus>, power: &Arc<Power>) -> Arc<PciRoot> {
    let root = Arc::new(PciRoot::default());
    let power = || Arc::clone(power) as Arc<dyn PowerEvents>;
    let reset = Arc::new(ResetControl::new(power()));
    let pm: Arc<dyn BusDevice> = Arc::new(AcpiPm::new(Arc::new(Host), power()));
    let serial = Serial::new("com1", Arc::new(Host), Arc::new(Host)).unwrap();
    let devices: [(u64, u64, Arc<dyn BusDevice>); 5] = [
        (0xcf8, 8, Arc::new(ConfigPorts::new(&root, reset))),
        (0x70, 2, Arc::new(Cmos::new(RAM as u64, 0, 0))),
        (0x3f8, 8, Arc::new(serial)),
        (0x92, 1, Arc::new(SystemControlA::new(power()))),
        (0x80, 1, Arc::new(PostCode::default())),
    ];
    for (base, length, device) in devices {
        ports.insert(base, length, device).unwrap();
    }
    let ecam = Arc::new(Ecam::new(&root));
    let bridge = HostBridge::new(Arc::clone(mmio), ecam, Some(ECAM));
    plug(&root, 0, Arc::new(bridge));
    let lpc = LpcBridge::new(Arc::clone(ports), pm, Some(PM_BASE));
    plug(&root, 31, Arc::new(lpc));
    root
}

/// Variables that are erased but for the header's length and signature, and code of bytes that tell of a change.
fn flash(mmio: &Bus) {
    let memory = |image: &[u8]| Arc::new(FlashMemory::new(image).unwrap());
    let mut variables = vec![0xff; VARIABLES];
    variables[0x20..0x28].copy_from_slice(&VARIABLES.to_le_bytes());
    variables[0x28..0x2c].copy_from_slice(b"_FVH");
    let variables = VarsFlash::new(memory(&variables), Arc::<Slot>::default(), Arc::new(Host));
    let code: Vec<u8> = (0..=0xff).cycle().take(CODE).collect();
    let code = CodeFlash::new(memory(&code));
    let end = FLASH + VARIABLES as u64;
    mmio.insert(FLASH, VARIABLES as u64, Arc::new(variables))
        .unwrap();
    mmio.insert(end, CODE as u64, Arc::new(code)).unwrap();
}

fn fw_cfg(ports: &Bus, memory: &GuestRam) {
    let mut items = FwCfgItems::new();
    items.add_item(5, &[1, 0]).unwrap();
    let ram = [0, RAM as u64].map(u64::to_le_bytes).concat();
    let map = [&ram[..], &1u32.to_le_bytes()].concat();
    items.add_file("etc/e820", map).unwrap();
    items
        .add_late_file("etc/acpi/tables", TABLES, Arc::new(Host))
        .unwrap();
    let device = FwCfg::new(items, memory.clone());
    ports
        .insert(FW_CFG_PORT, FW_CFG_PORTS, Arc::new(device))
        .unwrap();
}

impl Machine for Pc {
    fn function(&self) -> &dyn Function {
        &self.target
    }
    fn neighbour(&self) -> Option<&dyn Function> {
        Some(&self.neighbour)
    }
    fn ram(&self) -> &dyn Ram {
        self
    }
    fn ram_end(&self) -> u64 {
        RAM as u64
    }
    fn ports(&self) -> Option<&dyn Ports> {
        Some(self)
    }
    fn physical(&self) -> Option<&dyn Physical> {
        Some(self)
    }
    fn storm(&self) -> Duration {
        Duration::from_millis(100)
    }
}

impl Ram for Pc {
    fn base(&self) -> u64 {
        ARENA
    }
    fn length(&self) -> u64 {
        ARENA_LENGTH
    }
    fn read(&self, address: u64, data: &mut [u8]) {
        let map = self.memory.memory();
        Bytes::read_slice(&*map, data, GuestAddress(address)).unwrap();
    }
    fn write(&self, address: u64, data: &[u8]) {
        let map = self.memory.memory();
        Bytes::write_slice(&*map, data, GuestAddress(address)).unwrap();
    }
}

impl Ports for Pc {
    fn read(&self, port: u16, width: usize) -> u32 {
        let mut data = [0; 4];
        self.io_ports.read(port.into(), &mut data[..width]);
        u32::from_le_bytes(data)
    }
    fn write(&self, port: u16, width: usize, value: u32) {
        self.io_ports
            .write(port.into(), &value.to_le_bytes()[..width]);
    }
}

/// What is mapped is memory, as for a vCPU.
impl Physical for Pc {
    fn read(&self, address: u64, width: usize) -> Option<u64> {
        let mut data = [0; 8];
        let map = self.memory.memory();
        if Bytes::read_slice(&*map, &mut data[..width], GuestAddress(address)).is_err() {
            self.mmio.read(address, &mut data[..width]);
        }
        Some(u64::from_le_bytes(data))
    }
    fn write(&self, address: u64, width: usize, value: u64) -> bool {
        let data = &value.to_le_bytes()[..width];
        let map = self.memory.memory();
        if Bytes::write_slice(&*map, data, GuestAddress(address)).is_err() {
            self.mmio.write(address, data);
        }
        true
    }
}
