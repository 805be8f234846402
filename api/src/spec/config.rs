//! The VM spec as users write it: plain JSON types, nearly everything optional, unknown fields refused.
//!
//! A `VmConfig` promises only its shape. What its values must be is said at each field and checked in one place, the
//! conversion into a [`VmSpec`](super::VmSpec). Sizes are texts like `"512MiB"` or integers in bytes; relative paths start
//! at the working directory of the process.

mod disks;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::disks::{
    BackingConfig, DiskConfig, DiskLimits, NbdConfig, NbdTlsConfig, OnErrorConfig, RetryConfig,
};
use super::types::{ByteSize, ConsoleTarget, OnReset};

/// A VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object that describes a VM"
)]
pub struct VmConfig {
    /// What people call the VM: 1 to 63 of `a-z`, `0-9` and `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]{1,63}$")]
    pub name: Option<String>,
    /// The VM's identity, such as `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`. NICs without a MAC address derive theirs from it,
    /// so that it stays the same when the VM is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uuid")]
    pub uuid: Option<String>,
    /// What the VM starts with. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = BootConfig, required = true)]
    pub boot: Option<BootConfig>,
    /// Its processors; one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuConfig>,
    /// Its RAM; 512 MiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryConfig>,
    /// Its disks, in the order in which the guest finds them. At most 128.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub disks: Vec<DiskConfig>,
    /// Its CD-ROM drives. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub cdroms: Vec<CdromConfig>,
    /// Its network interfaces, in the order in which the guest finds them. At most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub nics: Vec<NicConfig>,
    /// Its consoles and byte channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// Whether it gets a source of randomness from the host; `true` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<bool>,
    /// A balloon, by which memory is taken from the running guest and given back; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// What happens when the guest asks for a reset; `"reboot"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reset: Option<OnReset>,
    /// What the machine calls itself to its guest, beside the VM's UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smbios: Option<SmbiosConfig>,
}

/// What the VM starts with: a Linux kernel, or firmware that finds something to boot on the disks. The field that is given chooses:
/// `kernel` or `firmware`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"kernel\": \"/boot/vmlinuz\"}"
)]
pub struct BootConfig {
    /// An x86-64 Linux kernel: a bzImage, or an ELF file with a PVH entry. Or `fd:N`, `fd:NAME`: a descriptor passed to the
    /// process, by its number (3 or more) or its name in `LISTEN_FDNAMES`, each used once in the life of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub kernel: Option<PathBuf>,
    /// An initramfs for the kernel; or `fd:N`, `fd:NAME` as for the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line, up to 2047 bytes; empty by default. Nothing is added to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2047)]
    pub command_line: Option<String>,
    /// Firmware, in place of a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<FirmwareConfig>,
    /// Ids of disks, CD-ROM drives and NICs that firmware is to boot from, the first choice first, each once; those that it cannot boot
    /// from it passes over, as a drive without a medium. Whatever it finds, by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 168)]
    pub order: Vec<String>,
}

/// Firmware: the distribution's UEFI (OVMF) as it is, or its BIOS (`SeaBIOS`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {} or {\"path\": \"/usr/share/OVMF/OVMF_CODE_4M.fd\"}"
)]
pub struct FirmwareConfig {
    /// The image: UEFI's code, UEFI's code with variables in one file, or a BIOS; none that needs system management mode. Or `fd:N`,
    /// `fd:NAME` as for a kernel. By default the UEFI that the host's firmware descriptors (`/usr/share/qemu/firmware`) offer first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub path: Option<PathBuf>,
    /// The file that keeps this VM's UEFI variables, made from the template if it is not there, in a directory that the process may
    /// write to. By default they are as in the template at each start, and live until the VM ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub variables: Option<PathBuf>,
    /// What new variables start as. By default what belongs to the image: by a descriptor, in the same file, or beside it. With keys in them
    /// firmware that has Secure Boot boots only what is signed; the guest's kernel can change the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub template: Option<PathBuf>,
}

/// What the machine calls itself (SMBIOS). Texts are without control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"serial\": \"web-1\"}"
)]
pub struct SmbiosConfig {
    /// The system's serial number, which cloud-init reads too: 1 to 1024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    pub serial: Option<String>,
    /// The asset tag: 1 to 1024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    pub asset_tag: Option<String>,
    /// Strings for software in the guest, such as `io.systemd.credential:NAME=VALUE`: at most 255, together at most 32 KiB.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 255)]
    pub oem_strings: Vec<String>,
}

/// Processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"count\": 2}"
)]
pub struct CpuConfig {
    /// How many at the start, 1 to 254; the product of the topology by default, or one. The host may allow fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub count: Option<u64>,
    /// How many there may be while the VM runs, up to 254: more are plugged in, and all but the first can be taken back (ACPI CPU
    /// hot-plug). No more than the count by default, which then stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub max: Option<u64>,
    /// How the guest sees them arranged, those included that may come; one socket, one thread a core by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<TopologyConfig>,
    /// Whether the guest may run VMs of its own; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
}

/// How the guest sees its processors arranged. The product of the three is the number of processors that there may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"sockets\": 1, \"cores\": 2, \"threads\": 1}"
)]
pub struct TopologyConfig {
    /// Sockets; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub sockets: Option<u64>,
    /// Cores in a socket; what the count leaves by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub cores: Option<u64>,
    /// Threads in a core; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 254)]
    pub threads: Option<u64>,
}

/// Guest RAM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"size\": \"512MiB\"}"
)]
pub struct MemoryConfig {
    /// How much: 64 MiB to 16 TiB, a multiple of 2 MiB and of the huge pages' size; 512 MiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// How much it may become while the VM runs, in units as the size: what is more than that is plugged in and out by a driver of the
    /// guest's (virtio-mem). No more than the size by default, which then stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<ByteSize>,
    /// Whether it lies in a memfd that other processes can map; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Takes it from the host's pool of huge pages: `"2MiB"` or `"1GiB"`. Ordinary pages by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<ByteSize>,
}

/// A balloon. The host gets back what the guest puts into it, in whole pages of those that back guest RAM. Huge pages go back to
/// their pool and are not reserved any more: a guest that touches its memory again when others took them ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"size\": \"256MiB\"}"
)]
pub struct BalloonConfig {
    /// How much of its memory the guest is asked to give at first: a multiple of 4 KiB and less than its memory; nothing by
    /// default. It can be changed while the VM runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Whether the guest may take memory back on its own before it kills processes for want of it; `false` by default. Linux
    /// then counts what is in the balloon as used, and otherwise as not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deflate_on_oom: Option<bool>,
    /// Whether the guest tells which of its memory is free, so that the host gets that back without asking; `true` by default,
    /// unless the memory is in huge pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
}

/// A CD-ROM drive, on a SCSI adapter of its own. Its medium can be ejected and changed while the VM runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"install.iso\"}"
)]
pub struct CdromConfig {
    /// Its name in the API, unique among all devices, as for a disk; `cdrom0`, `cdrom1`, … by default. The guest reads it as the drive's
    /// serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    pub id: Option<String>,
    /// The medium that is in it at first: an image file (ISO 9660, UDF) or a block device, which is only read; or `fd:N`, `fd:NAME` as for
    /// a disk. The tray is empty by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub path: Option<PathBuf>,
}

/// A network interface. Exactly one of `tap` and `bridge` says what it is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"tap\": \"tap0\"} or {\"bridge\": \"br0\"}"
)]
pub struct NicConfig {
    /// Its name in the API, unique among all devices, as for a disk; `nic0`, `nic1`, … by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    pub id: Option<String>,
    /// An existing tap of the host: its name of up to 15 bytes; or `fd:N`, `fd:NAME`, `fd:N+M+…`: descriptors of its queues, passed
    /// to the process, one for each queue pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1)]
    pub tap: Option<String>,
    /// An existing bridge of the host; a tap is made on it and removed with the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 15)]
    pub bridge: Option<String>,
    /// The VLAN, 1 to 4094, of which the guest is an untagged member. Only with `bridge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4094)]
    pub vlan: Option<u64>,
    /// The guest's MAC address, such as `"02:00:5e:10:00:01"`, unicast; by default one derived from the
    /// VM's UUID and the NIC's id, or a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        pattern = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$|^[0-9A-Fa-f][02468ACEace](-[0-9A-Fa-f]{2}){5}$"
    )]
    pub mac: Option<String>,
    /// The largest packet, 1280 to 65521 bytes; the tap's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1280, maximum = 65521)]
    pub mtu: Option<u64>,
    /// Pairs of queues, 1 to 8; 1 by default, or as many as `tap` has descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 8)]
    pub queue_pairs: Option<u64>,
    /// Packets a queue holds: a power of two, 16 to 1024; 256 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 1024)]
    pub queue_size: Option<u64>,
}

/// Consoles and byte channels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"serial\": \"terminal\"}"
)]
pub struct ConsoleConfig {
    /// The serial port, the guest's `ttyS0`: `"terminal"`, `"off"`, `{"file": "PATH"}` or `{"socket": "PATH"}`, a unix socket of at
    /// most 107 bytes. Either path may be `fd:N` or `fd:NAME`: a descriptor passed to the process, open for writing or a socket that
    /// listens. The terminal by default, unless `hvc0` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<ConsoleTarget>,
    /// A log of what the serial port prints, beside any target; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_log: Option<ConsoleLogConfig>,
    /// The virtio console, the guest's `hvc0`, likewise; `"off"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hvc0: Option<ConsoleTarget>,
    /// A log of what `hvc0` prints; none by default. With one, the guest has the console even where `hvc0` is `"off"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hvc0_log: Option<ConsoleLogConfig>,
    /// Named byte channels between the guest (`/dev/virtio-ports/NAME`) and the host. At most 14.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 14)]
    pub ports: Vec<PortConfig>,
}

/// A log of what a console prints. When it is full it is renamed to `PATH.1`, the former `PATH.1` to `PATH.2` and so on; together
/// they take at most `size` × `files` bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"serial.log\"}"
)]
pub struct ConsoleLogConfig {
    /// The file that is appended to, and made if need be. Required; its name has at most 250 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, min_length = 1)]
    pub path: Option<PathBuf>,
    /// How large a file gets: 4 KiB to 1 TiB; 2 MiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// How many files there are at most, the present one included: 1 to 100; 3 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub files: Option<u64>,
}

/// A named byte channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"name\": \"agent\", \"socket\": \"agent.sock\"}"
)]
pub struct PortConfig {
    /// Its name in the guest, unique: 1 to 63 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    pub name: Option<String>,
    /// The unix socket on which the host's side connects; made by Paddock, or `fd:N`, `fd:NAME`: one that listens, passed to the
    /// process. Required, at most 107 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, min_length = 1, max_length = 107)]
    pub socket: Option<PathBuf>,
}
