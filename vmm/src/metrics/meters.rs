//! What a VM counts, where its counters are to be found, and when it came how far.
//!
//! Made with the VM and kept through its resets, for the way to the VM ([`VmHandle`](crate::driver::VmHandle)) and for the machine:
//! so whoever reads needs neither the guest nor the driver. Counters are written on vCPU threads and device workers, without locks. The
//! guest chooses how often.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use paddock_api::spec::VmSpec;
use paddock_devices::console::{ConsoleInput, ConsoleSink};
use paddock_devices::virtio::console::{PortCounters, PortEvents};
use paddock_devices::virtio::scsi::CdromHandle;
use paddock_devices::virtio::{GuestMap, GuestRam, blk, net, rng};
use parking_lot::Mutex;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use super::timeline::VmTimes;
use crate::machine::devices::DeviceKey;
use crate::vcpu::exits::ExitCounters;

/// Where a device counts.
#[derive(Debug, Clone)]
pub enum DeviceMeter {
    /// A disk.
    Disk(Arc<blk::Counters>),
    /// A CD-ROM drive, by the way to it.
    Cdrom(CdromHandle),
    /// A NIC.
    Nic(Arc<net::Counters>),
    /// The virtio console's ports: names and counters. The one without a name is hvc0.
    Console(Vec<(String, Arc<PortCounters>)>),
    /// The entropy device.
    Rng(Arc<rng::Counters>),
}

/// What is known of a device.
#[derive(Debug)]
struct Attached {
    key: DeviceKey,
    /// How often the guest's driver broke it.
    broken: Arc<AtomicU64>,
    meter: Option<DeviceMeter>,
}

/// The counters of a VM.
#[derive(Debug)]
pub struct Meters {
    /// When it came how far.
    pub times: VmTimes,
    /// One for each vCPU that there can be.
    exits: Vec<Arc<ExitCounters>>,
    /// How many vCPUs there ever were at once.
    vcpus: AtomicUsize,
    resets: AtomicU64,
    serial_output: AtomicU64,
    serial_input: AtomicU64,
    /// In the order in which they were plugged in.
    devices: Mutex<Vec<Attached>>,
    /// The guest's RAM, as long as it is there.
    ram: Mutex<Weak<GuestMap>>,
}

impl Meters {
    /// Of a VM that is created now.
    #[must_use]
    pub fn new(spec: &VmSpec) -> Self {
        Self {
            times: VmTimes::default(),
            exits: (0..spec.cpus.max).map(|_| Arc::default()).collect(),
            vcpus: AtomicUsize::new(spec.cpus.count.into()),
            resets: AtomicU64::new(0),
            serial_output: AtomicU64::new(0),
            serial_input: AtomicU64::new(0),
            devices: Mutex::default(),
            ram: Mutex::default(),
        }
    }

    /// A reset begins.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.times.reset();
    }

    /// Resets so far.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// There are so many vCPUs now.
    pub fn count_vcpus(&self, vcpus: usize) {
        self.vcpus.fetch_max(vcpus, Ordering::Relaxed);
    }

    /// Where each vCPU counts its exits, also those that are not there yet.
    #[must_use]
    pub fn exits(&self) -> &[Arc<ExitCounters>] {
        &self.exits
    }

    /// Where each vCPU that is there, or was, counts its exits.
    #[must_use]
    pub fn exits_so_far(&self) -> &[Arc<ExitCounters>] {
        let vcpus = self.vcpus.load(Ordering::Relaxed);
        self.exits.get(..vcpus).unwrap_or(&self.exits)
    }

    /// A device is the VM's from now on. In `broken` it is counted how often it needed a reset, in `meter` what it does.
    pub fn attach(&self, key: DeviceKey, broken: Arc<AtomicU64>, meter: Option<DeviceMeter>) {
        self.devices.lock().push(Attached { key, broken, meter });
    }

    /// A device is not the VM's any more.
    pub fn detach(&self, key: &DeviceKey) {
        self.devices.lock().retain(|device| device.key != *key);
    }

    /// Where the VM's devices count.
    #[must_use]
    pub fn devices(&self) -> Vec<(DeviceKey, DeviceMeter)> {
        let devices = self.devices.lock();
        let counting = |device: &Attached| Some((device.key.clone(), device.meter.clone()?));
        devices.iter().filter_map(counting).collect()
    }

    /// How often the guest's drivers broke each of the VM's devices, so that it needed a reset.
    #[must_use]
    pub fn broken(&self) -> Vec<(DeviceKey, u64)> {
        let devices = self.devices.lock();
        let count = |device: &Attached| device.broken.load(Ordering::Relaxed);
        devices
            .iter()
            .map(|device| (device.key.clone(), count(device)))
            .collect()
    }

    /// The guest has this memory.
    pub fn set_ram(&self, ram: &GuestRam) {
        *self.ram.lock() = Arc::downgrade(&ram.memory().into_inner());
    }

    /// Where in the process the guest's memory lies. Nowhere, while there is none.
    #[must_use]
    pub fn ram(&self) -> Vec<Range<u64>> {
        let Some(map) = self.ram.lock().upgrade() else {
            return Vec::new();
        };
        let ranges = map.iter().filter_map(|region| {
            let start = region.get_host_address(MemoryRegionAddress(0)).ok()?.addr() as u64;
            Some(start..start + region.len())
        });
        ranges.collect()
    }

    /// Bytes that the guest printed on the serial port, and that were typed there.
    #[must_use]
    pub fn serial(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.serial_output), read(&self.serial_input))
    }

    /// A sink for the serial port that passes on to `sink`.
    #[must_use]
    pub fn serial_sink(self: &Arc<Self>, sink: Arc<dyn ConsoleSink>) -> Arc<dyn ConsoleSink> {
        let (meters, serial) = (Arc::clone(self), true);
        Arc::new(Printed {
            sink,
            meters,
            serial,
        })
    }

    /// A sink for the virtio console that passes on to `sink`.
    #[must_use]
    pub fn hvc0_sink(self: &Arc<Self>, sink: Arc<dyn ConsoleSink>) -> Arc<dyn ConsoleSink> {
        let (meters, serial) = (Arc::clone(self), false);
        Arc::new(Printed {
            sink,
            meters,
            serial,
        })
    }

    /// A keyboard side that passes on to the serial port's.
    #[must_use]
    pub fn serial_keys(self: &Arc<Self>, port: Arc<dyn ConsoleInput>) -> Arc<dyn ConsoleInput> {
        let meters = Arc::clone(self);
        Arc::new(Typed { port, meters })
    }
}

impl PortEvents for Meters {
    fn port_opened(&self) {
        self.times.init_up.set();
    }
}

/// What the guest prints, on its way.
#[derive(Debug)]
struct Printed {
    sink: Arc<dyn ConsoleSink>,
    meters: Arc<Meters>,
    /// The virtio console's bytes are counted by its port.
    serial: bool,
}

impl ConsoleSink for Printed {
    fn write(&self, bytes: &[u8]) {
        self.meters.times.first_console_byte.set();
        if self.serial {
            let counter = &self.meters.serial_output;
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        self.sink.write(bytes);
    }
}

/// What is typed, on its way.
#[derive(Debug)]
struct Typed {
    port: Arc<dyn ConsoleInput>,
    meters: Arc<Meters>,
}

impl ConsoleInput for Typed {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let taken = self.port.enqueue(bytes);
        let counter = &self.meters.serial_input;
        counter.fetch_add(taken as u64, Ordering::Relaxed);
        taken
    }

    fn space(&self) -> &EventFd {
        self.port.space()
    }
}

#[cfg(test)]
mod tests {
    use paddock_devices::virtio::GuestRam;
    use vm_memory::GuestAddress;

    use super::*;

    fn meters() -> Arc<Meters> {
        let spec = r#"{"boot": {"kernel": "/k"}, "cpus": {"count": 2}}"#;
        Arc::new(Meters::new(&VmSpec::from_json(spec).unwrap()))
    }

    #[derive(Debug)]
    struct Port(EventFd);

    impl ConsoleSink for Port {
        fn write(&self, _bytes: &[u8]) {}
    }

    impl ConsoleInput for Port {
        fn enqueue(&self, bytes: &[u8]) -> usize {
            bytes.len().min(2)
        }

        fn space(&self) -> &EventFd {
            &self.0
        }
    }

    #[test]
    fn what_passes_the_serial_port_is_counted() {
        let meters = meters();
        let port = || Arc::new(Port(EventFd::new(0).unwrap()));
        let keys = meters.serial_keys(port());
        assert_eq!(keys.enqueue(b"abc"), 2);
        assert_eq!(meters.times.timeline().first_console_byte_us, None);
        meters.hvc0_sink(port()).write(b"hvc");
        assert!(meters.times.timeline().first_console_byte_us.is_some());
        meters.serial_sink(port()).write(b"login: ");
        // Another life of the machine goes on counting.
        meters.reset();
        meters.serial_sink(port()).write(b"x");
        assert_eq!((meters.serial(), meters.resets()), ((8, 2), 1));
    }

    #[test]
    fn devices_come_and_go() {
        let meters = meters();
        let disk = |id: &str| DeviceKey::Disk(id.to_owned());
        let counters = || DeviceMeter::Disk(Arc::new(blk::Counters::new(1)));
        let broken = Arc::new(AtomicU64::new(3));
        meters.attach(disk("a"), Arc::default(), Some(counters()));
        meters.attach(disk("b"), Arc::clone(&broken), Some(counters()));
        meters.attach(DeviceKey::Balloon, Arc::default(), None);
        meters.detach(&disk("a"));
        meters.detach(&disk("c"));
        let keys: Vec<_> = meters.devices().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [disk("b")]);
        assert_eq!(meters.broken(), [(disk("b"), 3), (DeviceKey::Balloon, 0)]);
        assert_eq!(meters.exits().len(), 2);
    }

    #[test]
    fn memory_is_known_as_long_as_it_is_there() {
        let meters = meters();
        assert!(meters.ram().is_empty());
        let ranges = [(GuestAddress(0), 8192), (GuestAddress(1 << 20), 4096)];
        let ram = GuestRam::new(GuestMap::from_ranges(&ranges).unwrap());
        meters.set_ram(&ram);
        let lengths: Vec<_> = meters.ram().iter().map(|r| r.end - r.start).collect();
        assert_eq!(lengths, [8192, 4096]);
        drop(ram);
        assert!(meters.ram().is_empty(), "nothing here holds it");
    }
}
