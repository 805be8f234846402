//! The VM spec, twice: [`VmConfig`] as users write it (JSON or TOML, everything optional, unknown fields refused) and
//! [`VmSpec`] as the machine trusts it (defaults filled in, every value in range, every cross-reference checked).
//!
//! The only way from one to the other is validation ([`VmSpec::try_from`], [`Draft::validate`]), and it reports *all*
//! problems at once ([`InvalidSpec`]): each with a JSON pointer that resolves in the document it was read from, a stable
//! [`ProblemCode`] and a sentence that says what is allowed.
//!
//! ```
//! use paddock_api::spec::VmSpec;
//!
//! let spec = VmSpec::from_json(
//!     r#"{"boot": {"kernel": "/boot/vmlinuz"}, "memory": {"size": "1GiB"}, "disks": [{"path": "root.img"}]}"#,
//! )?;
//! assert_eq!(spec.disks[0].id.as_str(), "disk0");
//!
//! let error = VmSpec::from_json(r#"{"boot": {"kernel": ""}, "cpus": {"cout": 2}}"#).unwrap_err();
//! let pointers: Vec<_> = error.problems().iter().map(|p| p.pointer.as_str()).collect();
//! assert_eq!(pointers, ["/boot/kernel", "/cpus/cout"]);
//! # Ok::<(), paddock_api::spec::SpecError>(())
//! ```

mod change;
mod config;
mod machine;
mod pointer;
mod problem;
mod source;
pub mod types;
mod validate;
mod volume;

#[cfg(test)]
mod tests;

pub use config::{
    BackingConfig, BalloonConfig, BootConfig, CdromConfig, ConsoleConfig, ConsoleLogConfig,
    CpuConfig, DiskConfig, DiskLimits, FirmwareConfig, MemoryConfig, NbdConfig, NbdTlsConfig,
    NicConfig, OnErrorConfig, PortConfig, RetryConfig, SmbiosConfig, TopologyConfig, VmConfig,
};
pub use machine::{
    Backing, Balloon, Boot, Cdrom, Console, ConsoleLog, Cpus, Disk, DiskFile, DiskSource,
    FirmwareBoot, KernelBoot, Memory, NbdExport, NbdTls, Nic, NicAttachment, OnError, Port, Smbios,
    Topology, VmSpec,
};
pub use pointer::JsonPointer;
pub(crate) use problem::quoted;
pub use problem::{InvalidSpec, Problem, ProblemCode};
pub(crate) use source::read_json;
pub use source::{Draft, SpecError, SyntaxError};
pub use types::{
    AfterRetry, ByteSize, ConsoleTarget, DeviceId, DirectIo, DiskEngine, DiskSerial, HugePageSize,
    ImageFormat, InterfaceName, MacAddr, Mtu, OnReset, PassedFd, PassedTap, PortName, QueueSize,
    ReplicaAddress, Uuid, ValueError, VlanId, VmName, VolumeName,
};
pub(crate) use validate::cdroms::medium_path;
pub use volume::{LonghornSocket, LonghornSocketConfig, Volume, VolumeConfig};
