//! Disks of a VM spec as users write it: where their content is, how much I/O the guest may do, and what becomes of requests that fail.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::problem::InvalidSpec;
use super::super::types::{AfterRetry, ByteSize, DirectIo, DiskEngine, ImageFormat};
use super::super::volume::{LonghornSocketConfig, VolumeConfig};

/// A disk. Its content is in one place: `path`, `nbd`, `volume` or `longhorn_socket`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"disk.img\"}"
)]
pub struct DiskConfig {
    /// Its name in the API, unique among all devices: 1 to 32 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit
    /// first; `disk0`, `disk1`, … by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    pub id: Option<String>,
    /// An image file or a block device. Or `fd:N`, `fd:NAME`: a descriptor of one, passed to the process,
    /// by its number (3 or more) or its name in `LISTEN_FDNAMES`, each used once in the life of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub path: Option<PathBuf>,
    /// An export of an NBD server, in the place of `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbd: Option<Box<NbdConfig>>,
    /// A replicated volume, in place of a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeConfig>,
    /// A volume behind a running engine of Longhorn's, in place of a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longhorn_socket: Option<LonghornSocketConfig>,
    /// The image's format; `"raw"` by default. It is never guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// What the image, a qcow2 one, is an overlay of. Required where it has a backing file, which is not opened unless it is named here,
    /// too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<Box<BackingConfig>>,
    /// Whether the guest may only read; `false` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Whether the host's page cache is bypassed; `"auto"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectIo>,
    /// How the host does the I/O; `"auto"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<DiskEngine>,
    /// Bytes of a block, the least that the guest reads and writes of a raw image: 512 or 4096; by default 512, or more where the host's device has more.
    /// What was partitioned with the one is not read with the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 512, maximum = 4096)]
    pub block_size: Option<u64>,
    /// Request queues, 1 to 64; one for each processor that there may be, up to 4, by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub queues: Option<u64>,
    /// Requests a queue holds: a power of two, 16 to 1024; 256 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 1024)]
    pub queue_size: Option<u64>,
    /// The serial number that the guest reads: 1 to 20 printable ASCII characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[ -~]{1,20}$")]
    pub serial: Option<String>,
    /// What becomes of a request that fails on the host; `"report"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnErrorConfig>,
    /// How much I/O the guest may do; any by default. Can be changed while the VM runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
}

/// How much I/O a guest may do on a disk: what comes too early waits. What is absent has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"iops\": 1000, \"bandwidth\": \"100MiB\"}"
)]
pub struct DiskLimits {
    /// Requests a second, flushes excepted: 1 to 1000000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub iops: Option<u64>,
    /// Requests at once, after a while with none: 1 to 1000000000; what a tenth of a second allows by default, and at least 1. Only with `iops`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub iops_burst: Option<u64>,
    /// Bytes a second, read, written and zeroed: 4 KiB or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteSize>,
    /// Bytes at once, after a while with none: 4 KiB or more; what a tenth of a second allows by default, and at least 4 KiB. Only with
    /// `bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<ByteSize>,
}

impl DiskLimits {
    /// Itself, if it can be.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn checked(self) -> Result<Self, InvalidSpec> {
        super::super::validate::disks::checked_limits(self)
    }

    /// With the bursts that hold where none are given. They may be given as well.
    #[must_use]
    pub fn with_bursts(self) -> Self {
        use super::super::validate::disks::{BANDWIDTH, IOPS};
        let iops = self.iops.map(|iops| (iops / 10).max(*IOPS.start()));
        let bandwidth = self.bandwidth.map(|bandwidth| {
            let tenth = bandwidth.bytes() / 10;
            ByteSize::from_bytes(tenth.max(*BANDWIDTH.start()))
        });
        Self {
            iops_burst: self.iops_burst.or(iops),
            bandwidth_burst: self.bandwidth_burst.or(bandwidth),
            ..self
        }
    }
}

/// What becomes of a request that fails on the host. A discard that fails is always reported, and so is a flush through the host's page cache,
/// which forgets what it could not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnErrorConfig {
    /// The guest gets the error.
    Report,
    /// The guest gets nothing: the VM is paused, and its state tells the disk and the error. When it is resumed, the request is made again, on
    /// the disk opened anew by its path if need be.
    Stop,
    /// The guest gets nothing and goes on, with a disk that is slow: the request is made again and again, on the disk opened anew by its path if
    /// need be.
    Retry(RetryConfig),
}

/// How a request that failed is made again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"deadline_ms\": 60000}"
)]
pub struct RetryConfig {
    /// How long, from the first failure: 20 to 86400000 milliseconds; 60000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 20, maximum = 86_400_000)]
    pub deadline_ms: Option<u64>,
    /// Time between attempts, and before the first, which is before the deadline: 10 to 60000 milliseconds; 1000 by default, or half of
    /// the deadline if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 60_000)]
    pub interval_ms: Option<u64>,
    /// What becomes of it at the deadline; `"report"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<AfterRetry>,
}

/// An export of an NBD server. When the server goes away and comes back, with the same export, the guest sees a slow disk: what was not answered
/// is asked again, and what was not flushed is written again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"uri\": \"nbd://storage.example/disk\"}"
)]
pub struct NbdConfig {
    /// `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; `nbds` in the place of `nbd` demands TLS, and nothing else uses it.
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, pattern = "^[Nn][Bb][Dd][Ss]?([+][Uu][Nn][Ii][Xx])?:", max_length = 16384)]
    pub uri: Option<String>,
    /// Certificates. Required where the URI demands TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<NbdTlsConfig>,
    /// How long connecting and negotiating may take: 100 to 300000 milliseconds; 10000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 300_000)]
    pub connect_timeout_ms: Option<u64>,
    /// How long the server may be silent while it has requests, before it is connected to anew: 100 to 3600000 milliseconds; 30000 by
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 3_600_000)]
    pub request_timeout_ms: Option<u64>,
    /// How long requests wait for a server that is away, before they fail: 100 to 86400000 milliseconds; 60000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub reconnect_deadline_ms: Option<u64>,
}

/// TLS, version 1.3, with an NBD server: by certificates, in PEM files that are read for each connection. There are no pre-shared keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"ca\": \"/etc/pki/storage/ca-cert.pem\"}"
)]
pub struct NbdTlsConfig {
    /// The CA that signed the server's certificate. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, min_length = 1)]
    pub ca: Option<PathBuf>,
    /// Our certificate, for a server that wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub certificate: Option<PathBuf>,
    /// Its private key. Goes with `certificate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1)]
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have; the URI's `tls-hostname` or host by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 253)]
    pub hostname: Option<String>,
}

/// An image that others are overlays of. It is only read, and nobody may write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "an object such as {\"path\": \"base.qcow2\", \"format\": \"qcow2\"}"
)]
pub struct BackingConfig {
    /// An image file or a block device, the one that the overlay names. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = true, min_length = 1)]
    pub path: Option<PathBuf>,
    /// Its format; `"raw"` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// What it is an overlay of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion)]
    pub backing: Option<Box<BackingConfig>>,
}
