//! A disk that is open: its layers, from what stands behind it to what the device has, and how it does.
//!
//! Read on the control plane's thread; its I/O is done elsewhere.

use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use paddock_api::disk::{DiskFailure, FailureHandling};
use paddock_api::spec::{ByteSize, DiskLimits};
use paddock_devices::virtio::blk::ConfigBell;
use paddock_storage::hold::{Failure, Status};
use paddock_storage::limit::{Limits, Rate, Throttled};
use paddock_storage::{Disk, HoldingDisk, IoError, LimitedDisk};

use crate::volumes::DiskVolume;

/// A disk that is open.
#[derive(Debug)]
pub struct OpenDisk {
    pub(super) id: String,
    /// What stands behind it.
    pub(super) backend: Arc<dyn Disk>,
    /// The same, if failed requests are held.
    pub(super) holding: Option<Arc<HoldingDisk>>,
    /// What the device has: the same with limits.
    pub(super) limited: Arc<LimitedDisk>,
    pub(super) bell: Arc<ConfigBell>,
    /// The volume that it is, if its engine is ours. Set before anybody else sees the disk.
    pub(super) volume: OnceLock<Arc<DiskVolume>>,
}

impl OpenDisk {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the device has.
    #[must_use]
    pub fn backend(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.limited) as _
    }

    /// How much I/O the guest may do.
    #[must_use]
    pub fn limits(&self) -> DiskLimits {
        let Limits { requests, bytes } = self.limited.limits();
        let of = |rate: Rate| rate.per_second.get();
        DiskLimits {
            iops: requests.map(of),
            iops_burst: requests.map(|rate| rate.burst),
            bandwidth: bytes.map(of).map(ByteSize::from_bytes),
            bandwidth_burst: bytes.map(|rate| ByteSize::from_bytes(rate.burst)),
        }
    }

    /// What limits have cost.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        self.limited.throttled()
    }

    /// The replicated volume that it is, if its engine is ours.
    #[must_use]
    pub fn volume(&self) -> Option<&Arc<DiskVolume>> {
        self.volume.get()
    }

    /// It is this volume.
    pub(crate) fn is_volume(&self, volume: Arc<DiskVolume>) {
        volume.rings(&self.bell);
        // Nobody says it twice.
        let _ = self.volume.set(volume);
    }

    /// The way to its driver.
    #[must_use]
    pub fn bell(&self) -> &Arc<ConfigBell> {
        &self.bell
    }

    /// Whether no device has it, nor anybody who is about to do something with it.
    #[must_use]
    pub fn is_unused(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.limited) == 1
    }

    /// How it holds requests, if it may.
    #[must_use]
    pub fn holding(&self) -> Option<Status> {
        self.holding.as_ref().map(|holding| holding.status())
    }

    /// How it fails, if it does.
    #[must_use]
    pub fn failure(&self) -> Option<DiskFailure> {
        let status = self.holding()?;
        let failure = status.failure?;
        let since = failure.since.duration_since(SystemTime::UNIX_EPOCH);
        Some(DiskFailure {
            disk: self.id.clone(),
            errno: failure.errno,
            error: in_words(&failure),
            offset: failure.offset,
            since_ms: since.map_or(0, milliseconds),
            handling: match (status.stopped, status.reporting) {
                (true, _) => FailureHandling::Stopped,
                (_, true) => FailureHandling::Reporting,
                _ => FailureHandling::Retrying,
            },
            requests: status.requests as u64,
            attempts: status.attempts.into(),
        })
    }
}

/// Limits that were checked, for the data plane.
pub(super) fn limits(limits: DiskLimits) -> Limits {
    let limits = limits.with_bursts();
    let rate = |per_second: Option<u64>, burst: Option<u64>| {
        let per_second = NonZeroU64::new(per_second?)?;
        let burst = burst?;
        Some(Rate { per_second, burst })
    };
    let bytes = |size: Option<ByteSize>| size.map(ByteSize::bytes);
    Limits {
        requests: rate(limits.iops, limits.iops_burst),
        bytes: rate(bytes(limits.bandwidth), bytes(limits.bandwidth_burst)),
    }
}

pub(super) fn in_words(failure: &Failure) -> String {
    IoError::Os(failure.errno).to_string()
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
