//! What a VM keeps from one life of its machine to the next: RAM, opened disks, taps, consoles, the clock.

use std::sync::Arc;

use paddock_api::spec::{self, Boot, DirectIo, DiskEngine, HugePageSize, NicAttachment, VmSpec};
use paddock_devices::virtio::blk::{Blk, BlkOptions, BlkOptionsError};
use paddock_devices::virtio::console::{ConsolePorts, PortBackend, PortSpec, VirtioConsole};
use paddock_devices::virtio::net::{Net, NetOptions};
use paddock_devices::virtio::rng::VirtioRng;
use paddock_devices::virtio::{DeviceError, GuestRam};
use paddock_network::{Backend, BridgePort, InterfaceName, MacAddress, Tap, TapSource};
use paddock_storage::{Direct, Disk, Engine, RawDisk, RawOptions};

use super::slots::PciSlots;
use crate::Error;
use crate::boot::BootFiles;
use crate::console::ConsoleEnd;
use crate::kvm::Kvm;
use crate::memory::{PageSize, RamConfig, create_ram};

/// The consoles' ends outside the machine, made by whoever starts it.
#[derive(Debug, Clone)]
pub struct Consoles {
    /// The serial port's.
    pub serial: ConsoleEnd,
    /// The virtio console's, if there is one.
    pub hvc0: Option<ConsoleEnd>,
}

/// What outlives a reset.
#[derive(Debug)]
pub struct Resources {
    pub(super) kvm: Kvm,
    pub(super) ram: GuestRam,
    pub(super) boot_files: BootFiles,
    pub(super) consoles: Consoles,
    /// Guest time minus host time, in seconds.
    pub(super) clock_offset: i64,
    disks: Vec<Arc<dyn Disk>>,
    nics: Vec<OpenNic>,
    ports: Option<Arc<ConsolePorts>>,
}

/// A NIC's backend with the address it was given.
#[derive(Debug)]
struct OpenNic {
    backend: Arc<dyn Backend>,
    mac: MacAddress,
}

impl Resources {
    /// Opens everything the spec names. What cannot be had is an error now, before a guest runs.
    ///
    /// # Errors
    /// The first thing that cannot be had, with the pointer to it in the spec.
    pub fn open(spec: &VmSpec, consoles: Consoles) -> Result<Self, Error> {
        let kvm = Kvm::open()?;
        let Boot::Kernel(kernel) = &spec.boot;
        let boot_files = BootFiles::open(&kernel.kernel, kernel.initramfs.as_deref())?;
        let disks = spec
            .disks
            .iter()
            .enumerate()
            .map(|(index, disk)| open_disk(&format!("/disks/{index}"), disk))
            .collect::<Result<_, _>>()?;
        let nics = spec
            .nics
            .iter()
            .enumerate()
            .map(|(index, nic)| open_nic(&format!("/nics/{index}"), nic))
            .collect::<Result<_, _>>()?;
        let ports = open_ports(spec, &consoles)?;
        let ram = create_ram(&RamConfig {
            size: spec.memory.size.bytes(),
            shared: spec.memory.shared,
            pages: match spec.memory.hugepages {
                None => PageSize::Base,
                Some(HugePageSize::TwoMib) => PageSize::Huge2M,
                Some(HugePageSize::OneGib) => PageSize::Huge1G,
            },
        })?;
        Ok(Self {
            kvm,
            ram,
            boot_files,
            consoles,
            clock_offset: 0,
            disks,
            nics,
            ports,
        })
    }

    /// Makes the virtio devices of the spec and plugs them in, in its order: disks, NICs, consoles, the rest.
    pub(super) fn plug_devices(&self, spec: &VmSpec, slots: &mut PciSlots) -> Result<(), Error> {
        for (index, (disk, open)) in spec.disks.iter().zip(&self.disks).enumerate() {
            let pointer = format!("/disks/{index}");
            let device = make_disk(disk, open).map_err(|error| Error::part(&*pointer, error))?;
            slots.plug(&pointer, Box::new(device))?;
        }
        for (index, (nic, open)) in spec.nics.iter().zip(&self.nics).enumerate() {
            let pointer = format!("/nics/{index}");
            let device = make_nic(nic, open).map_err(|error| Error::part(&*pointer, error))?;
            slots.plug(&pointer, Box::new(device))?;
        }
        if let Some(ports) = &self.ports {
            let device = VirtioConsole::new("console", Arc::clone(ports));
            slots.plug("/console", Box::new(device))?;
        }
        if spec.rng {
            slots.plug("/rng", Box::new(VirtioRng::new("rng")))?;
        }
        Ok(())
    }

    /// Unplugs the serial console's input: the port is going away. The virtio console's end stays.
    pub(super) fn disconnect_serial(&self) {
        self.consoles.serial.input.connect(None);
    }
}

fn make_disk(disk: &spec::Disk, open: &Arc<dyn Disk>) -> Result<Blk, BlkOptionsError> {
    let options = BlkOptions {
        queues: disk.queues,
        queue_size: disk.queue_size.get(),
        serial: disk
            .serial
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        ..BlkOptions::default()
    };
    Blk::new(disk.id.as_str(), Arc::clone(open), options)
}

fn make_nic(nic: &spec::Nic, open: &OpenNic) -> Result<Net, DeviceError> {
    let options = NetOptions {
        mac: open.mac,
        mtu: nic.mtu.map(|mtu| mtu.get()),
        queue_pairs: nic.queue_pairs,
        queue_size: nic.queue_size.get(),
    };
    Net::new(nic.id.as_str(), Arc::clone(&open.backend), options)
}

fn open_disk(pointer: &str, disk: &spec::Disk) -> Result<Arc<dyn Disk>, Error> {
    let options = RawOptions {
        read_only: disk.read_only,
        direct: match disk.direct {
            DirectIo::Auto => Direct::Auto,
            DirectIo::On => Direct::On,
            DirectIo::Off => Direct::Off,
        },
        engine: match disk.engine {
            DiskEngine::Auto => Engine::Auto,
            DiskEngine::IoUring => Engine::IoUring,
            DiskEngine::Threads => Engine::Threads,
        },
        ..RawOptions::new(&disk.path)
    };
    let open = RawDisk::open(&options).map_err(|error| Error::part(pointer, error))?;
    tracing::info!(
        disk = disk.id.as_str(),
        path = %disk.path.display(),
        bytes = open.size(),
        direct = open.is_direct(),
        engine = ?open.engine(),
        "disk opened"
    );
    Ok(Arc::new(open))
}

/// The virtio console's ports: hvc0 first, if there is one, then those of the spec. `None` if there are none at all.
fn open_ports(spec: &VmSpec, consoles: &Consoles) -> Result<Option<Arc<ConsolePorts>>, Error> {
    let console = consoles.hvc0.as_ref().map(|end| PortSpec {
        name: String::new(),
        console: true,
        backend: PortBackend::Host(Arc::clone(&end.sink)),
    });
    let channels = spec.console.ports.iter().map(|port| PortSpec {
        name: port.name.to_string(),
        console: false,
        backend: PortBackend::Socket(port.socket.clone()),
    });
    let specs: Vec<_> = console.into_iter().chain(channels).collect();
    if specs.is_empty() {
        return Ok(None);
    }
    let ports = ConsolePorts::new(specs).map_err(|error| Error::part("/console/ports", error))?;
    if let Some(hvc0) = &consoles.hvc0 {
        hvc0.input.connect(ports.input(0));
    }
    Ok(Some(ports))
}

fn open_nic(pointer: &str, nic: &spec::Nic) -> Result<OpenNic, Error> {
    let wrong = |error: paddock_network::NetworkError| Error::part(pointer, error);
    let name = |name: &spec::InterfaceName| name.as_str().parse::<InterfaceName>().map_err(wrong);
    let source = match &nic.attachment {
        NicAttachment::Tap(tap) => TapSource::Existing { name: name(tap)? },
        NicAttachment::Bridge { bridge, vlan } => TapSource::Bridge(BridgePort {
            bridge: name(bridge)?,
            tap: None,
            vlan: match vlan {
                Some(vlan) => Some(vlan.get().try_into().map_err(wrong)?),
                None => None,
            },
            mtu: nic.mtu.map(|mtu| mtu.get()),
        }),
    };
    let tap = Tap::open(&source, nic.queue_pairs).map_err(wrong)?;
    let mac = match &nic.mac {
        Some(mac) => mac.to_string().parse().map_err(wrong)?,
        None => MacAddress::random().map_err(wrong)?,
    };
    tracing::info!(nic = nic.id.as_str(), tap = tap.interface().as_str(), %mac, "NIC attached");
    Ok(OpenNic {
        backend: Arc::new(tap),
        mac,
    })
}
