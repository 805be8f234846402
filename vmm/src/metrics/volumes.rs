//! Replicated volumes, as metrics: how their replicas are, and how far a rebuild or a comparison is.

use std::sync::Arc;

use paddock_api::metrics::Exposition;
use paddock_api::volume::ReplicaMode;
use paddock_storage::longhorn::{Activity, Progress};

use crate::disks::Disks;
use crate::volumes::{DiskVolume, Tally};

/// A family: its name, its meaning, and where its number is.
type Family = (&'static str, &'static str, fn(&Tally) -> u64);

const COUNTERS: [Family; 4] = [
    (
        "paddock_volume_replica_failures_total",
        "Replicas that failed since the volume was opened.",
        |tally| tally.failures,
    ),
    (
        "paddock_volume_rebuilds_total",
        "Replicas that were rebuilt since the volume was opened.",
        |tally| tally.rebuilt,
    ),
    (
        "paddock_volume_failed_rebuilds_total",
        "Replicas that failed while they were rebuilt.",
        |tally| tally.not_rebuilt,
    ),
    (
        "paddock_volume_snapshots_total",
        "Snapshots that were taken since the volume was opened.",
        |tally| tally.snapshots,
    ),
];

/// The volumes of a VM that are open, by their disks' ids.
pub(super) fn describe(to: &mut Exposition, disks: &Disks) {
    let open = disks.all();
    let volumes = open.iter().filter_map(|disk| {
        let volume = disk.volume()?;
        Some((disk.id(), volume))
    });
    let volumes: Vec<(&str, &Arc<DiskVolume>)> = volumes.collect();
    let mut family = to.gauge(
        "paddock_volume_replicas",
        "The volume's replicas: read and written (rw), only written while they are rebuilt (wo), failed.",
    );
    for (disk, volume) in &volumes {
        let replicas = volume.replicas();
        for mode in ReplicaMode::ALL {
            let count = replicas.iter().filter(|one| one.mode == mode).count();
            let labels = [("disk", disk as _), ("mode", &mode.as_str() as _)];
            family.sample(&labels, count as u64);
        }
    }
    for (name, help, of) in COUNTERS {
        let mut family = to.counter(name, help);
        for (disk, volume) in &volumes {
            family.sample(&[("disk", disk)], of(&volume.tally()));
        }
    }
    describe_progress(to, &volumes);
}

/// What is done so far of what is being transferred or compared.
fn describe_progress(to: &mut Exposition, volumes: &[(&str, &Arc<DiskVolume>)]) {
    type Bytes = fn(&Progress) -> u64;
    let families: [(&str, &str, Bytes); 2] = [
        (
            "paddock_volume_activity_done_bytes",
            "Bytes that were transferred of the present rebuild, or compared; 0 while there is none.",
            |progress| progress.done,
        ),
        (
            "paddock_volume_activity_bytes",
            "Bytes that the present rebuild transfers, or that are compared; 0 while there is none.",
            |progress| progress.total,
        ),
    ];
    let activities = [
        (Activity::Rebuild, "rebuild"),
        (Activity::Resync, "comparison"),
    ];
    for (name, help, of) in families {
        let mut family = to.gauge(name, help);
        for (disk, volume) in volumes {
            for (activity, word) in activities {
                let progress = volume.progress_of(activity);
                let labels = [("disk", disk as _), ("activity", &word as _)];
                family.sample(&labels, progress.as_ref().map_or(0, of));
            }
        }
    }
}
