//! What a VM keeps from one life of its machine to the next: RAM, firmware's variables, opened disks, taps, consoles, what is asked of the balloon and of the
//! memory device, the media in the CD-ROM drives, how many CPUs are wanted, the clock.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use paddock_api::spec::{Boot, DiskSource, HugePageSize, KernelBoot, PassedFd, VmSpec};
use paddock_devices::firmware::vars::VarsStore;
use paddock_devices::virtio::GuestRam;
use paddock_devices::virtio::balloon::{BalloonHandle, BalloonOptions};
use paddock_devices::virtio::console::{ConsolePorts, PortBackend, PortSpec};
use paddock_devices::virtio::mem::MemHandle;

use super::devices::{DeviceKey, OpenDevice, take_passed};
use super::firmware::OpenFirmware;
use super::volumes::OpenVolume;
use crate::Error;
use crate::boot::{BootFiles, BootSource};
use crate::cdrom::{Cdroms, open_medium};
use crate::console::ConsoleEnds;
use crate::console::place::open_socket;
use crate::disks::Disks;
use crate::kvm::Kvm;
use crate::memory::{PageSize, RamConfig, RamReclaim, create_ram};
use crate::metrics::Meters;
use crate::processors::Processors;
use crate::systemd::inherited::inherited;

/// What outlives a reset.
#[derive(Debug)]
pub struct Resources {
    pub(super) kvm: Kvm,
    pub(super) ram: GuestRam,
    pub(super) boot: OpenBoot,
    pub(super) consoles: Arc<ConsoleEnds>,
    /// Guest time minus host time, in seconds.
    pub(super) clock_offset: i64,
    /// In the order they are plugged in: disks, CD-ROM drives, NICs, consoles, the rest, and what was added since.
    pub(super) devices: Devices,
    /// How many CPUs are wanted.
    pub(super) processors: Processors,
    /// Where all of it counts.
    pub(super) meters: Arc<Meters>,
    /// Where disks are known.
    disks: Disks,
}

/// Devices, whose volumes are closed all at once when they are dropped: one with replicas that hang keeps no other waiting.
#[derive(Debug, Default)]
pub(crate) struct Devices(Vec<OpenDevice>);

impl Devices {
    /// The volumes among them.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &OpenVolume> {
        self.0.iter().filter_map(OpenDevice::volume)
    }
}

impl Deref for Devices {
    type Target = Vec<OpenDevice>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Devices {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // The drop of each waits for its end.
        self.volumes().for_each(OpenVolume::begin_close);
    }
}

/// What the machine starts with, opened.
#[derive(Debug)]
pub(super) enum OpenBoot {
    /// A kernel and its initramfs.
    Kernel(BootFiles),
    /// Firmware and its variables.
    Firmware(OpenFirmware),
}

/// The ends outside the machine of what is in it. They are there before it.
#[derive(Debug)]
pub struct Outside {
    /// Where consoles end.
    pub consoles: Arc<ConsoleEnds>,
    /// The way to the balloon, if there is one.
    pub balloon: Option<BalloonHandle>,
    /// The way to the memory device, if there is one.
    pub growth: Option<MemHandle>,
    /// The CD-ROM drives.
    pub cdroms: Cdroms,
    /// Where disks are known.
    pub disks: Disks,
}

impl Resources {
    /// Opens everything the spec names. What cannot be had is an error now, before a guest runs.
    ///
    /// # Errors
    /// The first thing that cannot be had, with the pointer to it in the spec.
    pub fn open(
        spec: &VmSpec,
        outside: Outside,
        processors: Processors,
        meters: Arc<Meters>,
    ) -> Result<Self, Error> {
        let Outside {
            consoles,
            balloon,
            growth,
            cdroms,
            disks,
        } = outside;
        let kvm = Kvm::open()?;
        let boot = match &spec.boot {
            Boot::Kernel(kernel) => OpenBoot::Kernel(open_kernel(kernel)?),
            Boot::Firmware(firmware) => OpenBoot::Firmware(OpenFirmware::open(firmware)?),
        };
        let mut devices = open_disks(spec, &disks)?;
        for (index, drive) in cdroms.iter().enumerate() {
            devices.push(OpenDevice::cdrom(drive.id(), drive.handle().clone()));
            if let Some(path) = &drive.spec().path {
                let medium = open_medium(&format!("/cdroms/{index}/path"), path)?;
                // Nobody has another one in or has locked the tray before the guest runs.
                let _ = drive.handle().insert(medium, true);
            }
        }
        for (index, nic) in spec.nics.iter().enumerate() {
            devices.push(OpenDevice::nic(&format!("/nics/{index}"), nic)?);
        }
        devices.extend(open_ports(spec, &consoles, &meters)?.map(OpenDevice::console));
        devices.extend(spec.rng.then(OpenDevice::rng));
        let ram = create_ram(&RamConfig {
            size: spec.memory.size.bytes(),
            max: spec.memory.max.bytes(),
            shared: spec.memory.shared,
            pages: page_size(spec),
        })?;
        if let (Some(balloon), Some(handle)) = (&spec.balloon, balloon) {
            let options = BalloonOptions {
                deflate_on_oom: balloon.deflate_on_oom,
                free_page_reporting: balloon.free_page_reporting,
            };
            let memory = RamReclaim::new(ram.clone(), page_size(spec));
            devices.push(OpenDevice::balloon(handle, memory, options));
        }
        if let Some(handle) = growth {
            let memory = RamReclaim::new(ram.clone(), page_size(spec));
            devices.push(OpenDevice::memory(handle, memory));
        }
        meters.set_ram(&ram);
        for device in devices.iter() {
            attach(&meters, &disks, device);
        }
        Ok(Self {
            kvm,
            ram,
            boot,
            consoles,
            clock_offset: 0,
            devices,
            processors,
            meters,
            disks,
        })
    }

    /// The file of the firmware's variables, if there is one.
    pub fn variables(&self) -> Option<&VarsStore> {
        match &self.boot {
            OpenBoot::Firmware(firmware) => firmware.store(),
            OpenBoot::Kernel(_) => None,
        }
    }

    /// Adds a device: it is the VM's from now on.
    pub(super) fn add(&mut self, device: OpenDevice) {
        attach(&self.meters, &self.disks, &device);
        self.devices.push(device);
    }

    /// Takes a device out: the next machine is built without it.
    #[must_use]
    pub fn take(&mut self, key: &DeviceKey) -> Option<OpenDevice> {
        self.take_if(|device| device.key() == *key)
    }

    /// Takes the first device out for which `is_it` is true.
    pub(super) fn take_if(&mut self, is_it: impl Fn(&OpenDevice) -> bool) -> Option<OpenDevice> {
        let index = self.devices.iter().position(is_it)?;
        let device = self.devices.remove(index);
        self.meters.detach(&device.key());
        if let Some(disk) = device.open_disk() {
            self.disks.detach(disk.id());
        }
        Some(device)
    }

    /// Unplugs the serial console's input: the port is going away. The virtio console's end stays.
    pub(super) fn disconnect_serial(&self) {
        self.consoles.serial.input.connect(None);
    }
}

/// Opens the disks, volumes beside each other: each waits for replicas that do not answer.
fn open_disks(spec: &VmSpec, disks: &Disks) -> Result<Devices, Error> {
    let open = |index: usize, disk| OpenDevice::disk(&format!("/disks/{index}"), disk, disks);
    std::thread::scope(|scope| {
        let mut opening = VecDeque::new();
        for (index, disk) in spec.disks.iter().enumerate() {
            if matches!(disk.source, DiskSource::Volume(_)) {
                let thread = std::thread::Builder::new().name("opening".to_owned());
                let thread = thread.spawn_scoped(scope, move || open(index, disk));
                opening.push_back(thread.map_err(Error::host("starting a thread"))?);
            }
        }
        let mut devices = Devices::default();
        for (index, disk) in spec.disks.iter().enumerate() {
            let opened = match &disk.source {
                DiskSource::Volume(_) => opening.pop_front().map(|thread| thread.join()),
                _ => Some(Ok(open(index, disk))),
            };
            let panicked = || Error::host("opening a disk")(io::Error::other("it panicked"));
            let opened = opened.and_then(Result::ok).ok_or_else(panicked)?;
            devices.push(opened?);
        }
        Ok(devices)
    })
}

fn open_kernel(kernel: &KernelBoot) -> Result<BootFiles, Error> {
    let file = boot_file("/boot/kernel", &kernel.kernel)?;
    let initramfs = match &kernel.initramfs {
        Some(path) => Some(boot_file("/boot/initramfs", path)?),
        None => None,
    };
    Ok(BootFiles::open(file, initramfs)?)
}

/// Where a file to boot from is: at its path, or passed in.
fn boot_file<'a>(pointer: &str, path: &'a Path) -> Result<BootSource<'a>, Error> {
    let file = match PassedFd::in_path(path) {
        Some(passed) => Some(take_passed(pointer, passed)?.into()),
        None => None,
    };
    Ok(BootSource { path, file })
}

fn attach(meters: &Meters, disks: &Disks, device: &OpenDevice) {
    meters.attach(device.key(), device.broken(), device.meter());
    if let Some(disk) = device.open_disk() {
        disks.attach(disk);
    }
}

fn page_size(spec: &VmSpec) -> PageSize {
    match spec.memory.hugepages {
        None => PageSize::Base,
        Some(HugePageSize::TwoMib) => PageSize::Huge2M,
        Some(HugePageSize::OneGib) => PageSize::Huge1G,
    }
}

/// The virtio console's ports: hvc0 first, if there is one, then those of the spec. `None` if there are none at all.
fn open_ports(
    spec: &VmSpec,
    consoles: &ConsoleEnds,
    meters: &Arc<Meters>,
) -> Result<Option<Arc<ConsolePorts>>, Error> {
    let console = consoles.hvc0.as_ref().map(|end| PortSpec {
        name: String::new(),
        console: true,
        backend: PortBackend::Host(meters.hvc0_sink(Arc::clone(&end.sink))),
    });
    let mut specs: Vec<_> = console.into_iter().collect();
    for (index, port) in spec.console.ports.iter().enumerate() {
        let pointer = format!("/console/ports/{index}/socket");
        let socket = open_socket(&port.socket, &pointer, &inherited().descriptors);
        let socket = socket.map_err(|error| Error::part(&pointer, error))?;
        specs.push(PortSpec {
            name: port.name.to_string(),
            console: false,
            backend: PortBackend::Socket(socket),
        });
    }
    if specs.is_empty() {
        return Ok(None);
    }
    let ports = ConsolePorts::new(specs).map_err(|error| Error::part("/console/ports", error))?;
    ports.set_events(Arc::clone(meters) as _);
    if let Some(hvc0) = &consoles.hvc0 {
        hvc0.input.connect(ports.input(0));
    }
    Ok(Some(ports))
}
