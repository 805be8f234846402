//! The devices of a VM: each with the part of the spec it is made from, and what it keeps of the host from one life of the machine to
//! the next (an opened disk, a tap, the consoles' sockets).
//!
//! Opening may block, as storage does, and runs on a blocking thread. Making the virtio device is cheap: it starts nothing before
//! the guest's driver does.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::disks;
use super::volumes::OpenVolume;
use crate::Error;
use crate::disks::{Disks, OpenDisk};
use crate::memory::RamReclaim;
use crate::metrics::DeviceMeter;
use crate::systemd::inherited::inherited;
use crate::volumes::DiskVolume;
use paddock_api::spec::{self, NicAttachment, PassedFd, ValueError};
use paddock_devices::pci::DeviceFunction;
use paddock_devices::virtio::VirtioDevice;
use paddock_devices::virtio::balloon::{BalloonHandle, BalloonOptions, VirtioBalloon};
use paddock_devices::virtio::blk::{self, Blk, BlkOptions};
use paddock_devices::virtio::console::{ConsolePorts, VirtioConsole};
use paddock_devices::virtio::mem::{MemHandle, VirtioMem};
use paddock_devices::virtio::net::{self, Net, NetOptions};
use paddock_devices::virtio::rng::{self, VirtioRng};
use paddock_devices::virtio::scsi::{CdromHandle, VirtioScsi};
use paddock_network::{Backend, BridgePort, InterfaceName, MacAddress, Tap, TapSource};

/// How often to look whether the last user of a backend is gone.
const RELEASE_INTERVAL: Duration = Duration::from_millis(1);
/// Users that remain are vCPUs in the middle of an access: they are gone in no time.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// Which device of the VM. Disks have names of their own, and so have NICs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKey {
    /// The disk of this id.
    Disk(String),
    /// The CD-ROM drive of this id.
    Cdrom(String),
    /// The NIC of this id.
    Nic(String),
    /// The virtio console.
    Console,
    /// The entropy device.
    Rng,
    /// The balloon.
    Balloon,
    /// The memory device.
    Memory,
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(id) => write!(f, "disk {id}"),
            Self::Cdrom(id) => write!(f, "CD-ROM drive {id}"),
            Self::Nic(id) => write!(f, "NIC {id}"),
            Self::Console => f.write_str("virtio console"),
            Self::Rng => f.write_str("entropy device"),
            Self::Balloon => f.write_str("balloon"),
            Self::Memory => f.write_str("memory device"),
        }
    }
}

impl DeviceKey {
    /// What kind of device it is, as a label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Cdrom(_) => "cdrom",
            Self::Nic(_) => "nic",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Memory => "memory",
        }
    }

    /// Its id in the spec; that of a device of which there is only one is its kind.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Disk(id) | Self::Cdrom(id) | Self::Nic(id) => id,
            Self::Console | Self::Rng | Self::Balloon | Self::Memory => self.kind(),
        }
    }
}

/// A device that is ready to be plugged in.
#[derive(Debug)]
pub struct OpenDevice {
    /// Where it is, once it has been plugged in: it comes back there after a reset.
    pub(super) slot: Option<DeviceFunction>,
    broken: Arc<AtomicU64>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// With the volume that it is, if its engine is ours.
    Disk(
        Box<spec::Disk>,
        Arc<OpenDisk>,
        Arc<blk::Counters>,
        Option<OpenVolume>,
    ),
    Cdrom(String, CdromHandle),
    Nic(Box<spec::Nic>, Nic),
    Console(Arc<ConsolePorts>),
    Rng(Arc<rng::Counters>),
    Balloon(BalloonHandle, Arc<RamReclaim>, BalloonOptions),
    Memory(MemHandle, Arc<RamReclaim>),
}

/// A NIC's backend with the address it was given, and what was done with it.
#[derive(Debug)]
struct Nic {
    backend: Arc<dyn Backend>,
    mac: MacAddress,
    counters: Arc<net::Counters>,
}

impl OpenDevice {
    fn new(part: Part) -> Self {
        Self {
            slot: None,
            broken: Arc::default(),
            part,
        }
    }

    /// Opens a disk, which tells `disks` how it fails. `pointer` is its place in the spec.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn disk(pointer: &str, disk: &spec::Disk, disks: &Disks) -> Result<Self, Error> {
        let watch = disks.watch(disk.id.as_str());
        let opened = disks::open(pointer, disk, &watch)?;
        let open = disks.opened(
            disk.id.as_str(),
            opened.disk,
            opened.opener,
            disk.on_error,
            disk.limits,
        );
        if let Some(volume) = &opened.volume {
            let handle = volume.handle();
            open.is_volume(DiskVolume::new(disk.id.as_str(), handle, watch));
        }
        let counters = Arc::new(blk::Counters::new(disk.queues));
        Self::new(Part::Disk(
            Box::new(disk.clone()),
            open,
            counters,
            opened.volume,
        ))
        .tried(pointer)
    }

    /// The disk that it is.
    pub(crate) fn open_disk(&self) -> Option<&Arc<OpenDisk>> {
        match &self.part {
            Part::Disk(_, open, ..) => Some(open),
            _ => None,
        }
    }

    /// A CD-ROM drive, with whatever is in its tray.
    #[must_use]
    pub fn cdrom(id: &str, handle: CdromHandle) -> Self {
        Self::new(Part::Cdrom(id.to_owned(), handle))
    }

    /// Opens a NIC's tap, or makes one. `pointer` is its place in the spec.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn nic(pointer: &str, nic: &spec::Nic) -> Result<Self, Error> {
        let open = open_nic(pointer, nic)?;
        Self::new(Part::Nic(Box::new(nic.clone()), open)).tried(pointer)
    }

    /// The virtio console with these ports.
    #[must_use]
    pub fn console(ports: Arc<ConsolePorts>) -> Self {
        Self::new(Part::Console(ports))
    }

    /// The entropy device.
    #[must_use]
    pub fn rng() -> Self {
        Self::new(Part::Rng(Arc::default()))
    }

    /// The balloon, which gives back what is in `memory`.
    #[must_use]
    pub fn balloon(handle: BalloonHandle, memory: RamReclaim, options: BalloonOptions) -> Self {
        Self::new(Part::Balloon(handle, Arc::new(memory), options))
    }

    /// The memory device, whose blocks lie in `memory`.
    #[must_use]
    pub fn memory(handle: MemHandle, memory: RamReclaim) -> Self {
        Self::new(Part::Memory(handle, Arc::new(memory)))
    }

    /// Which one it is.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        match &self.part {
            Part::Disk(disk, ..) => DeviceKey::Disk(disk.id.to_string()),
            Part::Cdrom(id, _) => DeviceKey::Cdrom(id.clone()),
            Part::Nic(nic, _) => DeviceKey::Nic(nic.id.to_string()),
            Part::Console(_) => DeviceKey::Console,
            Part::Rng(_) => DeviceKey::Rng,
            Part::Balloon(..) => DeviceKey::Balloon,
            Part::Memory(..) => DeviceKey::Memory,
        }
    }

    /// Where it is counted how often the guest's driver broke it, so that it needed a reset.
    #[must_use]
    pub fn broken(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.broken)
    }

    /// Where it counts. The balloon and the memory device have handles for that.
    #[must_use]
    pub fn meter(&self) -> Option<DeviceMeter> {
        match &self.part {
            Part::Disk(_, _, counters, _) => Some(DeviceMeter::Disk(Arc::clone(counters))),
            Part::Cdrom(_, handle) => Some(DeviceMeter::Cdrom(handle.clone())),
            Part::Nic(_, nic) => Some(DeviceMeter::Nic(Arc::clone(&nic.counters))),
            Part::Console(ports) => Some(DeviceMeter::Console(ports.counters())),
            Part::Rng(counters) => Some(DeviceMeter::Rng(Arc::clone(counters))),
            Part::Balloon(..) | Part::Memory(..) => None,
        }
    }

    /// Itself, if a device can be made of it: what is wrong with it is found before a guest runs.
    fn tried(self, pointer: &str) -> Result<Self, Error> {
        self.make()
            .map_err(|error| Error::part(pointer, error))
            .map(|_| self)
    }

    /// Makes the virtio device, in its initial state.
    pub(super) fn make(
        &self,
    ) -> Result<Box<dyn VirtioDevice>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(match &self.part {
            Part::Disk(disk, open, counters, _) => Box::new(make_disk(disk, open, counters)?),
            Part::Cdrom(id, handle) => Box::new(VirtioScsi::new(id, handle.clone())),
            Part::Nic(nic, open) => Box::new(make_nic(nic, open)?),
            Part::Console(ports) => Box::new(VirtioConsole::new("console", Arc::clone(ports))),
            Part::Rng(counters) => {
                Box::new(VirtioRng::new("rng").counting_in(Arc::clone(counters)))
            }
            Part::Balloon(handle, memory, options) => {
                let memory = Arc::clone(memory);
                Box::new(VirtioBalloon::new(
                    "balloon",
                    handle.clone(),
                    memory,
                    *options,
                ))
            }
            Part::Memory(handle, memory) => {
                let memory = Arc::clone(memory);
                Box::new(VirtioMem::new("memory", handle.clone(), memory))
            }
        })
    }

    /// The volume that it is, if its engine is ours.
    pub(super) fn volume(&self) -> Option<&OpenVolume> {
        match &self.part {
            Part::Disk(_, _, _, volume) => volume.as_ref(),
            _ => None,
        }
    }

    /// Closes it, after the last virtio device made from it was shut down. May block as storage does. Says whether nothing of it is
    /// in use any more.
    #[must_use]
    pub fn close(self) -> bool {
        if let Some(volume) = self.volume() {
            // Ends what others do with it.
            volume.close();
        }
        let end = Instant::now() + RELEASE_DEADLINE;
        let is_last = || match &self.part {
            Part::Disk(_, open, ..) => open.is_unused(),
            Part::Nic(_, nic) => Arc::strong_count(&nic.backend) == 1,
            // The medium is the tray's, which stays with the VM.
            Part::Cdrom(..)
            | Part::Console(_)
            | Part::Rng(_)
            | Part::Balloon(..)
            | Part::Memory(..) => true,
        };
        while !is_last() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(RELEASE_INTERVAL);
        }
        true
    }
}

fn make_disk(
    disk: &spec::Disk,
    open: &OpenDisk,
    counters: &Arc<blk::Counters>,
) -> Result<Blk, blk::BlkOptionsError> {
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
    let blk = Blk::new(disk.id.as_str(), open.backend(), options)?;
    let blk = blk.ringing_by(Arc::clone(open.bell()));
    Ok(blk.counting_in(Arc::clone(counters)))
}

fn make_nic(nic: &spec::Nic, open: &Nic) -> Result<Net, paddock_devices::virtio::DeviceError> {
    let options = NetOptions {
        mac: open.mac,
        mtu: nic.mtu.map(|mtu| mtu.get()),
        queue_pairs: nic.queue_pairs,
        queue_size: nic.queue_size.get(),
    };
    Net::counting_in(
        Arc::clone(&open.counters),
        nic.id.as_str(),
        Arc::clone(&open.backend),
        options,
    )
}

/// The descriptor that stands at `pointer`.
pub(crate) fn take_passed(
    pointer: &str,
    passed: Result<PassedFd, ValueError>,
) -> Result<OwnedFd, Error> {
    let passed = passed.map_err(|error| Error::part(pointer, error))?;
    let taken = inherited().descriptors.take(&passed, pointer);
    taken.map_err(|error| Error::part(pointer, error))
}

fn open_nic(pointer: &str, nic: &spec::Nic) -> Result<Nic, Error> {
    let wrong = |error: paddock_network::NetworkError| Error::part(pointer, error);
    let name = |name: &spec::InterfaceName| name.as_str().parse::<InterfaceName>().map_err(wrong);
    let open = |source| Tap::open(&source, nic.queue_pairs);
    let tap = match &nic.attachment {
        NicAttachment::Tap(tap) => open(TapSource::Existing { name: name(tap)? }),
        NicAttachment::PassedTap(tap) => {
            let pointer = format!("{pointer}/tap");
            let take = |queue: &PassedFd| take_passed(&pointer, Ok(queue.clone()));
            let queues = tap.queues().iter().map(take).collect::<Result<_, _>>()?;
            Tap::adopt(queues, tap)
        }
        NicAttachment::Bridge { bridge, vlan } => open(TapSource::Bridge(BridgePort {
            bridge: name(bridge)?,
            tap: None,
            vlan: match vlan {
                Some(vlan) => Some(vlan.get().try_into().map_err(wrong)?),
                None => None,
            },
            mtu: nic.mtu.map(|mtu| mtu.get()),
        })),
    };
    let tap = tap.map_err(wrong)?;
    let mac = match &nic.mac {
        Some(mac) => mac.to_string().parse().map_err(wrong)?,
        None => MacAddress::random().map_err(wrong)?,
    };
    tracing::info!(nic = nic.id.as_str(), tap = tap.interface().as_str(), %mac, "NIC attached");
    Ok(Nic {
        backend: Arc::new(tap),
        mac,
        counters: Arc::new(net::Counters::new(nic.queue_pairs)),
    })
}

#[cfg(test)]
mod tests {
    use paddock_api::spec::VmSpec;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_that_is_made_anew_counts_where_the_last_one_did() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let disk = json!({"path": image.path(), "queues": 2});
        let spec = json!({"boot": {"kernel": "/k"}, "disks": [disk]});
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        let disk = OpenDevice::disk("/disks/0", &spec.disks[0], &Disks::nowhere()).unwrap();
        let Some(DeviceMeter::Disk(counters)) = disk.meter() else {
            panic!("{disk:?} counts nothing");
        };
        assert_eq!(counters.queues(), 2);
        let rng = OpenDevice::rng();
        let Some(DeviceMeter::Rng(bytes)) = rng.meter() else {
            panic!("{rng:?} counts nothing");
        };
        let holders = || [Arc::strong_count(&counters), Arc::strong_count(&bytes)];
        assert_eq!(holders(), [2, 2]);
        for _ in 0..2 {
            let made = (disk.make().unwrap(), rng.make().unwrap());
            assert_eq!(holders(), [3, 3], "the devices have the same counters");
            drop(made);
        }
        assert!(disk.close() && rng.close());
        assert_eq!(holders(), [1, 1]);
    }
}
