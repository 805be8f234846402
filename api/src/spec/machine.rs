//! The VM spec as the machine trusts it: complete, every value in range, no contradictions.
//!
//! The structs are `#[non_exhaustive]`: only validation makes them. A spec turns back into a [`VmConfig`] that says
//! everything explicitly and validates to the same spec.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::config::{
    BackingConfig, BalloonConfig, BootConfig, CdromConfig, ConsoleConfig, ConsoleLogConfig,
    CpuConfig, DiskConfig, DiskLimits, FirmwareConfig, MemoryConfig, NbdConfig, NbdTlsConfig,
    NicConfig, OnErrorConfig, PortConfig, RetryConfig, SmbiosConfig, TopologyConfig, VmConfig,
};
use super::types::{
    AfterRetry, ByteSize, ConsoleTarget, DeviceId, DirectIo, DiskEngine, DiskSerial, HugePageSize,
    ImageFormat, InterfaceName, MacAddr, Mtu, OnReset, PassedFd, PassedTap, PortName, QueueSize,
    Uuid, VlanId, VmName,
};
use super::volume::{LonghornSocket, LonghornSocketConfig, Volume, VolumeConfig};

/// A VM that can be built, as far as one can tell without looking at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmSpec {
    /// What people call it.
    pub name: Option<VmName>,
    /// Its identity.
    pub uuid: Option<Uuid>,
    /// What it starts with.
    pub boot: Boot,
    /// Its processors.
    pub cpus: Cpus,
    /// Its RAM.
    pub memory: Memory,
    /// Its disks, at most 128, in the guest's order.
    pub disks: Vec<Disk>,
    /// Its CD-ROM drives, at most 8.
    pub cdroms: Vec<Cdrom>,
    /// Its network interfaces, at most 32, in the guest's order.
    pub nics: Vec<Nic>,
    /// Its consoles and byte channels.
    pub console: Console,
    /// Whether it gets a source of randomness.
    pub rng: bool,
    /// Its balloon, if it has one.
    pub balloon: Option<Balloon>,
    /// What happens when the guest asks for a reset.
    pub on_reset: OnReset,
    /// What the machine calls itself.
    pub smbios: Smbios,
}

impl VmSpec {
    /// The descriptors that it wants passed to the process, each once.
    #[must_use]
    pub fn passed(&self) -> Vec<PassedFd> {
        let uses = super::validate::passed::uses(&VmConfig::from(self)).into_iter();
        uses.map(|(_, passed)| passed).collect()
    }
}

/// What a VM starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A Linux kernel, loaded by the VMM.
    Kernel(KernelBoot),
    /// Firmware, which finds by itself what to boot.
    Firmware(FirmwareBoot),
}

/// A Linux kernel with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelBoot {
    /// A bzImage, or an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// At most 2047 bytes without control characters. Nothing is to be added to it.
    pub command_line: String,
}

/// Firmware with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FirmwareBoot {
    /// The image; `None`: the host's first choice.
    pub path: Option<PathBuf>,
    /// The file with the variables; `None`: they end with the VM.
    pub variables: Option<PathBuf>,
    /// What new variables start as; `None`: what belongs to the image.
    pub template: Option<PathBuf>,
    /// Disks, CD-ROM drives and NICs of the VM to boot from, each once, the first choice first.
    pub order: Vec<DeviceId>,
}

/// What the machine calls itself. Texts have no control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Smbios {
    /// 1 to 1024 bytes.
    pub serial: Option<String>,
    /// 1 to 1024 bytes.
    pub asset_tag: Option<String>,
    /// At most 255, none empty, together at most 32 KiB.
    pub oem_strings: Vec<String>,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cpus {
    /// How many there are at the start, 1 to 254.
    pub count: u8,
    /// How many there may be while the VM runs: the count or more, up to 254.
    pub max: u8,
    /// Their arrangement; its product is `max`.
    pub topology: Topology,
    /// Whether the guest may run VMs of its own.
    pub nested: bool,
}

/// How the guest sees its processors arranged. No factor is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topology {
    /// Sockets.
    pub sockets: u8,
    /// Cores in a socket.
    pub cores: u8,
    /// Threads in a core.
    pub threads: u8,
}

/// Guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// 64 MiB to 16 TiB, a multiple of 2 MiB and of the huge pages' size.
    pub size: ByteSize,
    /// What it may become while the VM runs: the size or more, up to 16 TiB, in the same units.
    pub max: ByteSize,
    /// Whether it lies in a memfd that other processes can map.
    pub shared: bool,
    /// Whether it comes from the host's pool of huge pages, and of which size.
    pub hugepages: Option<HugePageSize>,
}

/// A balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Balloon {
    /// What the guest is asked to give at first: a multiple of 4 KiB, less than its memory.
    pub size: ByteSize,
    /// Whether the guest may take memory back on its own.
    pub deflate_on_oom: bool,
    /// Whether the guest tells which of its memory is free.
    pub free_page_reporting: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// Unique among all devices.
    pub id: DeviceId,
    /// Where its content is.
    pub source: DiskSource,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Request queues, 1 to 64.
    pub queues: u16,
    /// Requests a queue holds.
    pub queue_size: QueueSize,
    /// The serial number that the guest reads.
    pub serial: Option<DiskSerial>,
    /// What becomes of a request that fails on the host.
    pub on_error: OnError,
    /// How much I/O the guest may do at first.
    pub limits: DiskLimits,
}

/// What becomes of a request that fails on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The guest gets the error.
    Report,
    /// It is held, and the VM pauses until it is resumed.
    Stop,
    /// It is held, and made again.
    Retry {
        /// How long, from the first failure.
        deadline: Duration,
        /// Time between attempts.
        interval: Duration,
        /// What becomes of it then.
        then: AfterRetry,
    },
}

/// Where a disk's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// In a file or block device of the host's.
    File(DiskFile),
    /// On an NBD server.
    Nbd(NbdExport),
    /// In a replicated volume.
    Volume(Volume),
    /// In a volume behind an engine of Longhorn's.
    LonghornSocket(LonghornSocket),
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NbdExport {
    /// Its URI, of which only the scheme is known to be right.
    pub uri: String,
    /// Certificates; there when, and only when, the URI demands TLS.
    pub tls: Option<NbdTls>,
    /// How long connecting and negotiating may take.
    pub connect_timeout: Duration,
    /// How long the server may be silent while it has requests.
    pub request_timeout: Duration,
    /// How long requests wait for a server that is away.
    pub reconnect_deadline: Duration,
}

/// Certificates for an NBD server, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NbdTls {
    /// The CA of the server's certificate.
    pub ca: PathBuf,
    /// Our certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have, where it is not the URI's.
    pub hostname: Option<String>,
}

/// A file or block device behind a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskFile {
    /// An image file or a block device; or a descriptor of one, see [`PassedFd`].
    pub path: PathBuf,
    /// How the disk's content is laid out in it.
    pub format: ImageFormat,
    /// What it is an overlay of, where it is a qcow2 image.
    pub backing: Option<Backing>,
    /// Whether the host's page cache is bypassed.
    pub direct: DirectIo,
    /// How the host does the I/O.
    pub engine: DiskEngine,
    /// Bytes of a block, 512 or 4096; `None` for the device's own, or 512.
    pub block_size: Option<u32>,
}

/// An image that others are overlays of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backing {
    /// An image file or a block device.
    pub path: PathBuf,
    /// How the content is laid out in it.
    pub format: ImageFormat,
    /// What it is an overlay of itself, where it is a qcow2 image.
    pub backing: Option<Box<Backing>>,
}

/// A CD-ROM drive.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cdrom {
    /// Unique among all devices.
    pub id: DeviceId,
    /// The medium that is in it at first: an image file or a block device.
    pub path: Option<PathBuf>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nic {
    /// Unique among all devices.
    pub id: DeviceId,
    /// What it is attached to.
    pub attachment: NicAttachment,
    /// The guest's MAC address; `None`, which happens only without a UUID, asks for a random one.
    pub mac: Option<MacAddr>,
    /// The largest packet; `None` means the tap's own.
    pub mtu: Option<Mtu>,
    /// Pairs of queues, 1 to 8.
    pub queue_pairs: u16,
    /// Packets a queue holds.
    pub queue_size: QueueSize,
}

/// What a network interface is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicAttachment {
    /// An existing tap, which no other NIC of the VM uses.
    Tap(InterfaceName),
    /// A tap whose queues were passed to the process, as many as there are queue pairs.
    PassedTap(PassedTap),
    /// A tap that is made on an existing bridge and removed with the VM.
    Bridge {
        /// The bridge.
        bridge: InterfaceName,
        /// The VLAN of which the guest is an untagged member.
        vlan: Option<VlanId>,
    },
}

/// Consoles and byte channels. At most one of the two consoles has the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Console {
    /// The serial port, the guest's `ttyS0`.
    pub serial: ConsoleTarget,
    /// The log of what it prints.
    pub serial_log: Option<ConsoleLog>,
    /// The virtio console, the guest's `hvc0`.
    pub hvc0: ConsoleTarget,
    /// The log of what it prints. With one there is the console, also where it is [`ConsoleTarget::Off`].
    pub hvc0_log: Option<ConsoleLog>,
    /// Named byte channels, at most 14.
    pub ports: Vec<Port>,
}

impl Console {
    /// Whether the guest has an `hvc0`.
    #[must_use]
    pub fn has_hvc0(&self) -> bool {
        self.hvc0 != ConsoleTarget::Off || self.hvc0_log.is_some()
    }
}

/// A log of what a console prints, in files that are rotated by renaming.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsoleLog {
    /// The present file, used for nothing else in the VM; the earlier ones are `PATH.1`, `PATH.2`, …
    pub path: PathBuf,
    /// Bytes of a file at most, 4 KiB to 1 TiB.
    pub size: ByteSize,
    /// Files at most, the present one included, 1 to 100.
    pub files: u8,
}

impl ConsoleLog {
    /// The path of the file that was rotated `number` times; 0 is the present one.
    #[must_use]
    pub fn file(&self, number: u8) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        if number > 0 {
            path.push(format!(".{number}"));
        }
        path.into()
    }
}

/// A named byte channel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Port {
    /// Its name in the guest, unique in the VM.
    pub name: PortName,
    /// The unix socket on which the host's side connects, at most 107 bytes, used once in the VM.
    pub socket: PathBuf,
}

impl From<&VmSpec> for VmConfig {
    fn from(spec: &VmSpec) -> Self {
        Self {
            name: spec.name.as_ref().map(VmName::to_string),
            uuid: spec.uuid.as_ref().map(Uuid::to_string),
            boot: Some(BootConfig::from(&spec.boot)),
            cpus: Some(CpuConfig::from(&spec.cpus)),
            memory: Some(MemoryConfig {
                size: Some(spec.memory.size),
                max: Some(spec.memory.max).filter(|max| *max > spec.memory.size),
                shared: Some(spec.memory.shared),
                hugepages: spec.memory.hugepages.map(HugePageSize::size),
            }),
            disks: spec.disks.iter().map(DiskConfig::from).collect(),
            cdroms: spec.cdroms.iter().map(CdromConfig::from).collect(),
            nics: spec.nics.iter().map(NicConfig::from).collect(),
            console: Some(ConsoleConfig::from(&spec.console)),
            rng: Some(spec.rng),
            balloon: spec.balloon.as_ref().map(BalloonConfig::from),
            on_reset: Some(spec.on_reset),
            smbios: (spec.smbios != Smbios::default()).then(|| SmbiosConfig {
                serial: spec.smbios.serial.clone(),
                asset_tag: spec.smbios.asset_tag.clone(),
                oem_strings: spec.smbios.oem_strings.clone(),
            }),
        }
    }
}

impl From<&Boot> for BootConfig {
    fn from(boot: &Boot) -> Self {
        match boot {
            Boot::Kernel(kernel) => Self {
                kernel: Some(kernel.kernel.clone()),
                initramfs: kernel.initramfs.clone(),
                command_line: Some(kernel.command_line.clone()),
                ..Self::default()
            },
            Boot::Firmware(firmware) => Self {
                firmware: Some(FirmwareConfig {
                    path: firmware.path.clone(),
                    variables: firmware.variables.clone(),
                    template: firmware.template.clone(),
                }),
                order: firmware.order.iter().map(DeviceId::to_string).collect(),
                ..Self::default()
            },
        }
    }
}

impl From<&Cpus> for CpuConfig {
    fn from(cpus: &Cpus) -> Self {
        Self {
            count: Some(cpus.count.into()),
            max: Some(cpus.max.into()).filter(|_| cpus.max > cpus.count),
            topology: Some(TopologyConfig {
                sockets: Some(cpus.topology.sockets.into()),
                cores: Some(cpus.topology.cores.into()),
                threads: Some(cpus.topology.threads.into()),
            }),
            nested: Some(cpus.nested),
        }
    }
}

impl From<&Balloon> for BalloonConfig {
    fn from(balloon: &Balloon) -> Self {
        Self {
            size: Some(balloon.size),
            deflate_on_oom: Some(balloon.deflate_on_oom),
            free_page_reporting: Some(balloon.free_page_reporting),
        }
    }
}

impl From<&Disk> for DiskConfig {
    fn from(disk: &Disk) -> Self {
        let config = Self {
            id: Some(disk.id.to_string()),
            read_only: Some(disk.read_only),
            queues: Some(disk.queues.into()),
            queue_size: Some(disk.queue_size.get().into()),
            serial: disk.serial.as_ref().map(DiskSerial::to_string),
            on_error: Some(disk.on_error.into()),
            limits: (disk.limits != DiskLimits::default()).then_some(disk.limits),
            ..Self::default()
        };
        match &disk.source {
            DiskSource::File(file) => Self {
                path: Some(file.path.clone()),
                format: Some(file.format),
                backing: file.backing.as_ref().map(|b| Box::new(b.into())),
                direct: Some(file.direct),
                engine: Some(file.engine),
                block_size: file.block_size.map(u64::from),
                ..config
            },
            DiskSource::Volume(volume) => Self {
                volume: Some(VolumeConfig::from(volume)),
                ..config
            },
            DiskSource::LonghornSocket(socket) => Self {
                longhorn_socket: Some(LonghornSocketConfig::from(socket)),
                ..config
            },
            DiskSource::Nbd(export) => Self {
                nbd: Some(Box::new(export.into())),
                ..config
            },
        }
    }
}

impl From<&NbdExport> for NbdConfig {
    fn from(export: &NbdExport) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).ok();
        let tls = export.tls.as_ref().map(|tls| NbdTlsConfig {
            ca: Some(tls.ca.clone()),
            certificate: tls.identity.as_ref().map(|(file, _)| file.clone()),
            key: tls.identity.as_ref().map(|(_, file)| file.clone()),
            hostname: tls.hostname.clone(),
        });
        Self {
            uri: Some(export.uri.clone()),
            tls,
            connect_timeout_ms: milliseconds(export.connect_timeout),
            request_timeout_ms: milliseconds(export.request_timeout),
            reconnect_deadline_ms: milliseconds(export.reconnect_deadline),
        }
    }
}

impl From<&Backing> for BackingConfig {
    fn from(backing: &Backing) -> Self {
        Self {
            path: Some(backing.path.clone()),
            format: Some(backing.format),
            backing: backing.backing.as_deref().map(|b| Box::new(b.into())),
        }
    }
}

impl From<OnError> for OnErrorConfig {
    fn from(on_error: OnError) -> Self {
        match on_error {
            OnError::Report => Self::Report,
            OnError::Stop => Self::Stop,
            OnError::Retry {
                deadline,
                interval,
                then,
            } => {
                let milliseconds = |time: Duration| u64::try_from(time.as_millis()).ok();
                Self::Retry(RetryConfig {
                    deadline_ms: milliseconds(deadline),
                    interval_ms: milliseconds(interval),
                    then: Some(then),
                })
            }
        }
    }
}

impl From<&Cdrom> for CdromConfig {
    fn from(cdrom: &Cdrom) -> Self {
        Self {
            id: Some(cdrom.id.to_string()),
            path: cdrom.path.clone(),
        }
    }
}

impl From<&Nic> for NicConfig {
    fn from(nic: &Nic) -> Self {
        let (tap, bridge, vlan) = match &nic.attachment {
            NicAttachment::Tap(tap) => (Some(tap.to_string()), None, None),
            NicAttachment::PassedTap(tap) => (Some(tap.to_string()), None, None),
            NicAttachment::Bridge { bridge, vlan } => (None, Some(bridge), *vlan),
        };
        Self {
            id: Some(nic.id.to_string()),
            tap,
            bridge: bridge.map(InterfaceName::to_string),
            vlan: vlan.map(|vlan| vlan.get().into()),
            mac: nic.mac.as_ref().map(MacAddr::to_string),
            mtu: nic.mtu.map(|mtu| mtu.get().into()),
            queue_pairs: Some(nic.queue_pairs.into()),
            queue_size: Some(nic.queue_size.get().into()),
        }
    }
}

impl From<&Console> for ConsoleConfig {
    fn from(console: &Console) -> Self {
        let port = |port: &Port| PortConfig {
            name: Some(port.name.to_string()),
            socket: Some(port.socket.clone()),
        };
        Self {
            serial: Some(console.serial.clone()),
            serial_log: console.serial_log.as_ref().map(ConsoleLogConfig::from),
            hvc0: Some(console.hvc0.clone()),
            hvc0_log: console.hvc0_log.as_ref().map(ConsoleLogConfig::from),
            ports: console.ports.iter().map(port).collect(),
        }
    }
}

impl From<&ConsoleLog> for ConsoleLogConfig {
    fn from(log: &ConsoleLog) -> Self {
        Self {
            path: Some(log.path.clone()),
            size: Some(log.size),
            files: Some(log.files.into()),
        }
    }
}

impl Serialize for VmSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        VmConfig::from(self).serialize(serializer)
    }
}
