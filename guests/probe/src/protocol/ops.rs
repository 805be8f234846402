//! The operations and their parameters. What each is answered with stands in [`super::replies`].

use super::{Bytes, Call, replies::*};
use serde::{Deserialize, Serialize};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:literal $variant:ident => $reply:ty;)*) => {
        /// Every operation, told apart by the field `op`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "op")]
        pub enum Op {
            $(#[doc = concat!("`", $name, "`: see [`", stringify!($variant), "`](struct@", stringify!($variant), ").")]
            #[serde(rename = $name)]
            $variant($variant),)*
        }

        impl Op {
            /// The operation's name in the protocol.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }
        }

        $(impl From<$variant> for Op {
            fn from(parameters: $variant) -> Self {
                Self::$variant(parameters)
            }
        }

        impl Call for $variant {
            type Reply = $reply;
        })*
    };
}

operations! {
    "hello" Hello => HelloReply;
    "info" Info => InfoReply;
    "exec" Exec => ExecReply;
    "exec.stdin" ExecStdin => Done;
    "exec.kill" ExecKill => Done;
    "blocks.write" BlocksWrite => BlocksReply;
    "blocks.verify" BlocksVerify => BlocksReply;
    "blocks.read" BlocksRead => BlocksReadReply;
    "blocks.flush" BlocksFlush => IoReply;
    "blocks.discard" BlocksDiscard => IoReply;
    "blocks.zero" BlocksZero => IoReply;
    "net.up" NetUp => NetUpReply;
    "net.ping" NetPing => PingReply;
    "net.send" NetSend => TransferReply;
    "net.receive" NetReceive => TransferReply;
    "memory.touch" MemoryTouch => MemoryReply;
    "memory.dirty" MemoryDirty => MemoryReply;
    "memory.stop" MemoryStop => MemoryReply;
    "memory.verify" MemoryVerify => MemoryVerifyReply;
    "heartbeat" HeartbeatStart => Done;
    "heartbeat.stop" HeartbeatStop => Done;
    "cpu.spin" CpuSpin => CpuSpinReply;
    "cpus" Cpus => CpusReply;
    "clock" Clock => ClockReply;
    "random" Random => RandomReply;
    "poweroff" PowerOff => Done;
    "reboot" Reboot => Done;
    "halt" Halt => Done;
    "crash" Crash => Done;
}

macro_rules! bare {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {})*
    };
}

bare! {
    /// Who is there. The cheapest operation; answered by the thread that reads the port.
    Hello;
    /// What the guest found: CPUs, memory map, clocks, PCI functions, disks, NICs.
    Info;
    /// Stops the writers of [`MemoryDirty`]; the memory and what is known about it stay.
    MemoryStop;
    /// Compares every page that was ever written with what it should hold.
    MemoryVerify;
    /// Switches the heartbeat off.
    HeartbeatStop;
    /// Runs a piece of code on each CPU in turn and reports which of them did run.
    Cpus;
    /// Reads the guest's clocks.
    Clock;
    /// Powers off: at once, after a sync, from an initramfs; through systemd where that runs.
    PowerOff;
    /// Stops all CPUs, with the machine left on.
    Halt;
}

// ---- commands ---------------------------------------------------------------------------------------------

/// Runs a command to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// What to run.
    pub command: Command,
    /// Standard input, after which it ends, unless `keep_stdin`.
    #[serde(default)]
    pub stdin: Bytes,
    /// Keeps standard input open for [`ExecStdin`].
    #[serde(default)]
    pub keep_stdin: bool,
    /// Sends output as [`super::Output`] events as it comes, and none in the reply.
    #[serde(default)]
    pub stream: bool,
    /// Kills the command, with its process group, after this long.
    #[serde(default = "defaults::exec_timeout_ms")]
    pub timeout_ms: u64,
    /// How much of each of stdout and stderr a reply may hold, in bytes; more is thrown away and said so.
    #[serde(default = "defaults::exec_limit")]
    pub limit: u64,
}

/// A command line or a list of arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// For `/bin/sh -c`.
    Shell(String),
    /// Program (looked up in `PATH`) and arguments.
    Argv(Vec<String>),
}

impl Exec {
    fn new(command: Command) -> Self {
        Self {
            command,
            stdin: Bytes::default(),
            keep_stdin: false,
            stream: false,
            timeout_ms: defaults::exec_timeout_ms(),
            limit: defaults::exec_limit(),
        }
    }

    /// Runs `line` by the shell.
    #[must_use]
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(Command::Shell(line.into()))
    }

    /// Runs a program.
    #[must_use]
    pub fn argv<T: Into<String>>(arguments: impl IntoIterator<Item = T>) -> Self {
        Self::new(Command::Argv(
            arguments.into_iter().map(Into::into).collect(),
        ))
    }
}

/// More standard input for a running [`Exec`] that keeps it open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStdin {
    /// The id of the [`Exec`] request.
    pub exec: u64,
    /// The bytes to append.
    #[serde(default)]
    pub data: Bytes,
    /// Closes standard input after them.
    #[serde(default)]
    pub close: bool,
}

/// Kills a running [`Exec`] with its process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecKill {
    /// The id of the [`Exec`] request.
    pub exec: u64,
}

// ---- disks ------------------------------------------------------------------------------------------------

/// Which blocks of which device, and what they hold. See [`crate::blocks`] for their format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// A block device or a file.
    pub path: String,
    /// First byte; a multiple of `block_size`.
    #[serde(default)]
    pub offset: u64,
    /// Bytes; a multiple of `block_size`.
    pub length: u64,
    /// Bytes a request transfers: a multiple of 512, at most 16 MiB.
    #[serde(default = "defaults::block_size")]
    pub block_size: u32,
    /// Tells one test's data from another's.
    pub seed: u64,
    /// Tells one round of writes from the next.
    #[serde(default = "defaults::generation")]
    pub generation: u64,
    /// In which order the blocks are visited, and so which come first where `count` cuts the visit short.
    #[serde(default)]
    pub order: Order,
    /// Only so many blocks, in that order: the same for a write and for the verify that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Area {
    /// All of `length` bytes from the start of `path`, in random order, by blocks of 4 KiB.
    #[must_use]
    pub fn new(path: impl Into<String>, length: u64, seed: u64) -> Self {
        Self {
            path: path.into(),
            offset: 0,
            length,
            block_size: defaults::block_size(),
            seed,
            generation: defaults::generation(),
            order: Order::default(),
            count: None,
        }
    }
}

/// The order in which blocks are visited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each block once, in an order drawn from the seed.
    #[default]
    Random,
    /// Each block once, upwards.
    Sequential,
}

/// How requests are issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Issue {
    /// Threads, each with one request in flight and pinned to CPU `n % cpus`: `jobs = cpus × depth` keeps `depth` requests
    /// in flight on each CPU's queue. At most 256.
    pub jobs: u32,
    /// Opens the device with `O_DIRECT`, so that each request reaches it.
    pub direct: bool,
    /// Ends after this many I/O errors (or mismatches), which are all named in the reply. At most 1000.
    pub max_errors: u32,
}

impl Default for Issue {
    fn default() -> Self {
        Self {
            jobs: 1,
            direct: true,
            max_errors: 16,
        }
    }
}

/// Writes self-checking blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksWrite {
    /// Where and what.
    pub area: Area,
    /// How.
    #[serde(default)]
    pub issue: Issue,
    /// Ends with an fsync (a FLUSH of the device), whose error is reported like a write's.
    #[serde(default)]
    pub flush: bool,
}

impl BlocksWrite {
    /// By one thread, directly, without a flush.
    #[must_use]
    pub fn new(area: Area) -> Self {
        Self {
            area,
            issue: Issue::default(),
            flush: false,
        }
    }
}

/// Reads blocks and names those that are not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksVerify {
    /// Where and what.
    pub area: Area,
    /// How.
    #[serde(default)]
    pub issue: Issue,
}

impl BlocksVerify {
    /// By one thread, directly.
    #[must_use]
    pub fn new(area: Area) -> Self {
        Self {
            area,
            issue: Issue::default(),
        }
    }
}

/// A range of a device or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// A block device or a file.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Reads raw bytes, at most 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksRead {
    /// What to read.
    pub range: Range,
    /// Opens with `O_DIRECT`: offset and length must be multiples of the logical block size.
    #[serde(default = "defaults::yes")]
    pub direct: bool,
}

/// Has the device's cache written out (fsync).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksFlush {
    /// A block device or a file.
    pub path: String,
}

/// Gives a range back (`BLKDISCARD`; a hole punched in a file).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksDiscard {
    /// What to discard.
    pub range: Range,
}

/// Makes a range read as zeroes (`BLKZEROOUT`; the like for a file).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlocksZero {
    /// What to zero.
    pub range: Range,
    /// Lets the device unmap the range, and fails where it knows no write-zeroes rather than write them.
    #[serde(default)]
    pub unmap: bool,
}

// ---- networks ---------------------------------------------------------------------------------------------

/// Configures a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetUp {
    /// By name (`eth0`) or by MAC (`52:54:00:12:34:56`).
    pub device: String,
    /// `10.0.0.2/24`, or the IPv6 like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The default route's next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Sends ICMP echo requests over IPv4 and checks that the payload comes back unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetPing {
    /// The peer's IPv4 address.
    pub address: String,
    /// How many, at most 100 000.
    #[serde(default = "defaults::ping_count")]
    pub count: u32,
    /// Payload, in bytes; above the MTU less 28 it is sent in fragments. At most 65 507.
    #[serde(default = "defaults::ping_size")]
    pub size: u16,
    /// From one request to the next. The next does not wait for a reply to the one before.
    #[serde(default = "defaults::ping_interval_ms")]
    pub interval_ms: u64,
    /// How long to wait for replies after the last request.
    #[serde(default = "defaults::ping_timeout_ms")]
    pub timeout_ms: u64,
}

impl NetPing {
    /// Three pings, a quarter of a second apart.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            count: defaults::ping_count(),
            size: defaults::ping_size(),
            interval_ms: defaults::ping_interval_ms(),
            timeout_ms: defaults::ping_timeout_ms(),
        }
    }
}

/// Connects by TCP and sends `bytes` of [`crate::stream`], then closes its direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSend {
    /// `address:port` of a listener on the host.
    pub peer: String,
    /// How much.
    pub bytes: u64,
    /// Which stream.
    pub seed: u64,
    /// Gives up when nothing moves for this long.
    #[serde(default = "defaults::net_timeout_ms")]
    pub timeout_ms: u64,
}

/// Connects by TCP and receives `bytes` of [`crate::stream`], compared as they come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetReceive {
    /// `address:port` of a listener on the host.
    pub peer: String,
    /// How much.
    pub bytes: u64,
    /// Which stream.
    pub seed: u64,
    /// Gives up when nothing moves for this long.
    #[serde(default = "defaults::net_timeout_ms")]
    pub timeout_ms: u64,
}

// ---- memory -----------------------------------------------------------------------------------------------

/// Allocates memory and writes each page once with its number, a generation and a checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTouch {
    /// Bytes, a multiple of 4096. Replaces what an earlier operation allocated.
    pub size: u64,
}

/// Keeps rewriting pages in the background until [`MemoryStop`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryDirty {
    /// Bytes, a multiple of 4096. Memory of the same size from before is kept, with its contents.
    pub size: u64,
    /// MiB of pages written a second, by all threads together; as fast as possible where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_mib: Option<u64>,
    /// Threads, each with its own part of the memory. At most 64.
    #[serde(default = "defaults::one")]
    pub threads: u32,
    /// In which order pages are visited.
    #[serde(default)]
    pub order: Order,
}

// ---- time, CPUs, power ------------------------------------------------------------------------------------

/// Sends [`super::Heartbeat`] events. Replaces a heartbeat that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatStart {
    /// From one event to the next, 1 to 60 000.
    pub interval_ms: u64,
    /// How often the sampler looks at the clocks, in µs, 100 to 1 000 000: what it cannot tell apart from a gap.
    #[serde(default = "defaults::sample_us")]
    pub sample_us: u64,
}

/// Keeps CPUs busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSpin {
    /// Threads, pinned to CPU `n % cpus`; one for each CPU where left out. At most 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// For how long, at most 600 000.
    pub duration_ms: u64,
}

/// Reads from the hardware random number generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// How much, at most 1 MiB.
    pub bytes: u32,
}

/// Resets the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// By which way; the kernel's choice where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<RebootMethod>,
}

/// The ways of `/sys/kernel/reboot/type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebootMethod {
    /// The FADT's reset register.
    Acpi,
    /// The keyboard controller (port 0x64).
    Kbd,
    /// Port 0xCF9.
    Pci,
    /// A triple fault.
    Triple,
    /// The firmware's runtime service.
    Efi,
}

/// Ends the guest's kernel the hard way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// How.
    pub kind: CrashKind,
}

/// Ways to end badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashKind {
    /// A kernel panic; what follows is up to `panic=` on the command line.
    Panic,
    /// A triple fault, with nothing synced.
    TripleFault,
}

/// What fields hold that a request leaves out.
mod defaults {
    pub(super) fn exec_timeout_ms() -> u64 {
        60_000
    }
    pub(super) fn exec_limit() -> u64 {
        1 << 20
    }
    pub(super) fn block_size() -> u32 {
        4096
    }
    pub(super) fn generation() -> u64 {
        1
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn one() -> u32 {
        1
    }
    pub(super) fn ping_count() -> u32 {
        3
    }
    pub(super) fn ping_size() -> u16 {
        56
    }
    pub(super) fn ping_interval_ms() -> u64 {
        250
    }
    pub(super) fn ping_timeout_ms() -> u64 {
        5_000
    }
    pub(super) fn net_timeout_ms() -> u64 {
        60_000
    }
    pub(super) fn sample_us() -> u64 {
        1_000
    }
}
