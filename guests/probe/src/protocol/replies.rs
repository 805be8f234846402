//! What operations are answered with.

use super::Bytes;
use serde::{Deserialize, Serialize};

/// Done, with nothing to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Answer to [`super::Hello`], and the event of the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelloReply {
    /// [`super::VERSION`] of the probe.
    pub protocol: u32,
    /// The probe's own version.
    pub version: String,
    /// `uname -r`.
    pub kernel: String,
    /// Another one after each boot.
    pub boot_id: String,
    /// Seconds since boot.
    pub uptime: f64,
    /// Whether the probe is the guest's init, and not a service of a distribution.
    pub init: bool,
}

// ---- info -------------------------------------------------------------------------------------------------

/// Answer to [`super::Info`]. What a guest does not have is an empty string or list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoReply {
    /// The numbers of the CPUs that are online.
    pub cpus: Vec<u32>,
    /// `MemTotal`, in KiB: what is left for the kernel to give out.
    pub memory_kib: u64,
    /// The firmware's memory map (`/sys/firmware/memmap`), by address.
    pub memory_map: Vec<MemoryRange>,
    /// `/proc/iomem`, in its order.
    pub iomem: Vec<MemoryRange>,
    /// `/proc/cmdline`.
    pub cmdline: String,
    /// The clocksource in use.
    pub clocksource: String,
    /// Those the kernel could use.
    pub clocksources: Vec<String>,
    /// PCI functions, by address.
    pub pci: Vec<PciFunction>,
    /// Block devices, without partitions.
    pub disks: Vec<DiskInfo>,
    /// Network interfaces, without `lo`.
    pub nics: Vec<NicInfo>,
    /// Names of the virtio console ports.
    pub ports: Vec<String>,
}

/// A range of physical addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Last address, inclusive.
    pub end: u64,
    /// `System RAM`, `Reserved`, a device's name.
    pub kind: String,
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciFunction {
    /// `0000:00:03.0`.
    pub address: String,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// The driver bound to it; empty where none is.
    pub driver: String,
    /// MSI-X or MSI interrupts in use.
    pub msi: usize,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// `vda`; the device is `/dev/` and this.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// What a request must be a multiple of, in bytes.
    pub logical_block_size: u32,
    /// What a request should be a multiple of, in bytes.
    pub physical_block_size: u32,
    /// Largest discard, in bytes; 0 where the device has none.
    pub discard_max: u64,
    /// Largest write-zeroes, in bytes; 0 where the device has none.
    pub write_zeroes_max: u64,
    /// Whether it has a write cache, so that the kernel sends flushes (`write back`), or not (`write through`).
    pub cache: String,
    /// Hardware queues.
    pub queues: usize,
    /// Its serial number.
    pub serial: String,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInfo {
    /// `eth0`.
    pub name: String,
    /// Its MAC address, in lower case.
    pub mac: String,
    /// Bytes.
    pub mtu: u32,
    /// Receive queues.
    pub rx_queues: usize,
    /// Transmit queues.
    pub tx_queues: usize,
    /// The virtio feature bits agreed upon, lowest first; empty where the device is no virtio device.
    pub features: Vec<u32>,
    /// Whether the link is up; `None` while the interface is down.
    pub carrier: Option<bool>,
}

// ---- exec -------------------------------------------------------------------------------------------------

/// Answer to [`super::Exec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecReply {
    /// How the command ended.
    pub status: ExitStatus,
    /// Its standard output; empty when it was streamed.
    pub stdout: Bytes,
    /// Its standard error; empty when it was streamed.
    pub stderr: Bytes,
    /// Whether output beyond the limit was thrown away.
    pub truncated: bool,
    /// How long it ran.
    pub seconds: f64,
}

impl ExecReply {
    /// Whether the command exited with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Exited(0)
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// Killed because its time was up.
    TimedOut,
}

// ---- disks ------------------------------------------------------------------------------------------------

/// An I/O error as a guest program sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoError {
    /// Where, in bytes from the start of the device, where that has a meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What was tried: `open`, `write`, `read`, `flush`, `discard`, `zero`.
    pub call: String,
    /// The error number: 5 is `EIO`, 28 `ENOSPC`, 30 `EROFS`. 0 for an end of file.
    pub errno: i32,
    /// The same in words.
    pub message: String,
}

/// Answer to operations that succeed or fail as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoReply {
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<IoError>,
}

/// Answer to [`super::BlocksWrite`] and [`super::BlocksVerify`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlocksReply {
    /// Blocks written, or read and found right.
    pub blocks: u64,
    /// The same in bytes.
    pub bytes: u64,
    /// How long it took, the final flush included.
    pub seconds: f64,
    /// I/O errors, the first ones in full.
    pub errors: Vec<IoError>,
    /// Blocks that do not hold what they should, the first ones in full.
    pub mismatches: Vec<crate::blocks::Mismatch>,
    /// The CPUs on which requests were issued.
    pub cpus: Vec<u32>,
}

impl BlocksReply {
    /// Whether all went well.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.mismatches.is_empty()
    }
}

/// Answer to [`super::BlocksRead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksReadReply {
    /// The bytes read; fewer than asked for at the end of the device.
    pub data: Bytes,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<IoError>,
}

// ---- networks ---------------------------------------------------------------------------------------------

/// Answer to [`super::NetUp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetUpReply {
    /// The interface's name.
    pub device: String,
    /// Whether the link is up; it may take a moment to come.
    pub carrier: Option<bool>,
}

/// Answer to [`super::NetPing`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered, each counted once, with the payload unchanged.
    pub received: u32,
    /// Replies that came a second time.
    pub duplicates: u32,
    /// Replies with a payload that was not sent.
    pub corrupt: u32,
    /// Requests the kernel refused to send, and why the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Shortest, mean and longest round trip, in µs; zeroes where nothing came back.
    pub rtt_us: [u64; 3],
    /// The longest row of requests that were not answered.
    pub longest_outage: u32,
}

/// Answer to [`super::NetSend`] and [`super::NetReceive`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferReply {
    /// Bytes sent or received.
    pub bytes: u64,
    /// [`crate::stream::Checksum`] over them.
    pub checksum: u64,
    /// How long it took, connecting not included.
    pub seconds: f64,
    /// The first byte received that is not the stream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<u64>,
    /// What ended the transfer early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

// ---- memory -----------------------------------------------------------------------------------------------

/// Answer to [`super::MemoryTouch`], [`super::MemoryDirty`] and [`super::MemoryStop`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryReply {
    /// Pages allocated, of 4096 bytes.
    pub pages: u64,
    /// Page writes so far, since the memory was allocated.
    pub writes: u64,
    /// The rate reached by the writers since they were started, MiB/s; 0 where none ran.
    pub rate_mib: f64,
}

/// Answer to [`super::MemoryVerify`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryVerifyReply {
    /// Pages compared.
    pub pages: u64,
    /// How many of them are wrong.
    pub wrong: u64,
    /// The first of those.
    pub mismatches: Vec<PageMismatch>,
}

/// A page that does not hold what was last written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageMismatch {
    /// Its number.
    pub page: u64,
    /// The generation written last.
    pub expected: u64,
    /// What it holds instead.
    pub found: crate::blocks::Found,
}

// ---- time and CPUs ----------------------------------------------------------------------------------------

/// Answer to [`super::CpuSpin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSpinReply {
    /// Rounds of work done by each thread.
    pub rounds: Vec<u64>,
}

/// Answer to [`super::Cpus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusReply {
    /// CPUs the kernel says are online.
    pub online: Vec<u32>,
    /// CPUs on which code was seen to run.
    pub ran: Vec<u32>,
    /// CPUs the firmware announced.
    pub present: Vec<u32>,
}

/// Answer to [`super::Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReply {
    /// `CLOCK_REALTIME`, ns since 1970.
    pub realtime_ns: u64,
    /// `CLOCK_MONOTONIC`, ns.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`, ns.
    pub boottime_ns: u64,
    /// The real-time clock, in seconds since 1970; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtc: Option<u64>,
}

/// Answer to [`super::Random`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomReply {
    /// The bytes.
    pub data: Bytes,
    /// The source the kernel reads them from, such as `virtio_rng.0`.
    pub source: String,
}
