//! What the API's clients are told of a VM's parts: from the present state of each to the API's resource.

use std::path::PathBuf;

use paddock_api::balloon::{Balloon, MemoryStatistics};
use paddock_api::cdrom::Cdrom;
use paddock_api::cpus::Cpus;
use paddock_api::device::Disk;
use paddock_api::memory::Memory;
use paddock_api::spec::{self, CdromConfig, DiskConfig};

use crate::balloon::{BalloonStatus, Statistics};
use crate::cdrom::Cdrom as Drive;
use crate::driver::VmHandle;
use crate::growth::MemoryStatus;
use crate::processors::ProcessorsStatus;

/// A disk of the spec, as it is now.
pub(super) fn disk(vm: &VmHandle, disk: &spec::Disk) -> Disk {
    let id = disk.id.as_str();
    let (state, job) = vm.changes().state_of(id);
    let open = vm.disks().find(id);
    Disk {
        id: id.to_owned(),
        state,
        job,
        size: open.as_ref().map(|open| open.backend().size()),
        limits: match &open {
            Some(open) => open.limits(),
            None => disk.limits.with_bursts(),
        },
        volume: open.as_ref().and_then(|open| Some(open.volume()?.state())),
        failure: open.and_then(|open| open.failure()),
        spec: DiskConfig::from(disk),
    }
}

/// A drive and what is in its tray.
pub(super) fn cdrom(drive: &Drive) -> Cdrom {
    let status = drive.handle().status();
    Cdrom {
        id: drive.id().to_owned(),
        medium: status.medium.map(PathBuf::from),
        size: status.size,
        open: status.open,
        locked: status.locked,
        driver: status.driver,
        spec: CdromConfig::from(drive.spec()),
    }
}

/// The vCPUs.
pub(super) fn cpus(status: &ProcessorsStatus) -> Cpus {
    Cpus {
        count: status.count.into(),
        max: status.max.into(),
        wanted: status.wanted.into(),
        present: status.present as u64,
        job: status.job,
    }
}

/// The guest's memory and what is plugged.
pub(super) fn memory(status: &MemoryStatus) -> Memory {
    Memory {
        size: status.size,
        max: status.max,
        requested: status.requested,
        plugged: status.plugged,
        driver: status.driver,
    }
}

/// The balloon.
pub(super) fn balloon(status: &BalloonStatus) -> Balloon {
    Balloon {
        target: status.target,
        actual: status.actual,
        driver: status.driver,
        inflated_bytes: status.counters.inflated_bytes,
        reported_bytes: status.counters.reported_bytes,
    }
}

/// What the guest told of its memory.
pub(super) fn statistics(told: &Statistics) -> MemoryStatistics {
    MemoryStatistics {
        total: told.total,
        free: told.free,
        available: told.available,
        disk_caches: told.disk_caches,
        swap_in: told.swap_in,
        swap_out: told.swap_out,
        major_faults: told.major_faults,
        minor_faults: told.minor_faults,
        oom_kills: told.oom_kills,
    }
}
