//! What disks have done, as metrics: of each queue, for each kind of requests.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use paddock_api::metrics::{Exposition, Labels};
use paddock_devices::virtio::blk::{self, DURATION_BOUNDS, KindValues};
use paddock_storage::hold::Status;

use crate::disks::Disks;

/// A family: its name, its meaning, and where its number is.
type Family = (&'static str, &'static str, fn(&KindValues) -> u64);

const COUNTERS: [Family; 3] = [
    (
        "paddock_disk_requests_total",
        "Requests that the disk answered.",
        |values| values.requests,
    ),
    (
        "paddock_disk_bytes_total",
        "Bytes of the requests that went well.",
        |values| values.bytes,
    ),
    (
        "paddock_disk_errors_total",
        "Requests that were answered with an error.",
        |values| values.errors,
    ),
];

/// As a label.
fn kind_name(kind: blk::Kind) -> &'static str {
    match kind {
        blk::Kind::Read => "read",
        blk::Kind::Write => "write",
        blk::Kind::Flush => "flush",
        blk::Kind::Discard => "discard",
        blk::Kind::WriteZeroes => "write-zeroes",
        blk::Kind::Other => "other",
    }
}

/// The disks of a VM, by their ids.
pub(super) fn describe(to: &mut Exposition, disks: &[(String, Arc<blk::Counters>)]) {
    for (name, help, of) in COUNTERS {
        let mut family = to.counter(name, help);
        for_each_queue(disks, |labels, values| {
            family.sample(labels, of(values));
        });
    }
    let mut family = to.counter(
        "paddock_disk_request_seconds_total",
        "Time from taking each request to its answer.",
    );
    for_each_queue(disks, |labels, values| {
        family.sample(labels, Duration::from_nanos(values.nanoseconds));
    });
    let mut family = to.histogram(
        "paddock_disk_request_duration_seconds",
        "Times from taking a request to its answer, over all queues.",
    );
    for (id, counters) in disks {
        for kind in blk::Kind::ALL {
            let values = counters.values(kind);
            let labels = [("disk", id as _), ("kind", &kind_name(kind) as _)];
            let sum = Duration::from_nanos(values.nanoseconds);
            family.durations(&labels, &DURATION_BOUNDS, &values.classes, sum);
        }
    }
}

/// The disks that are open: how large they are, and how they fail where requests are held then.
pub(super) fn describe_open(to: &mut Exposition, disks: &Disks) {
    let open = disks.all();
    let mut sizes = to.gauge("paddock_disk_size_bytes", "The disk's size.");
    for disk in &open {
        sizes.sample(&[("disk", &disk.id())], disk.backend().size());
    }
    let mut family = to.counter(
        "paddock_disk_throttled_requests_total",
        "Requests that waited for the disk's limits.",
    );
    for disk in &open {
        family.sample(&[("disk", &disk.id())], disk.throttled().requests);
    }
    let mut family = to.counter(
        "paddock_disk_throttled_seconds_total",
        "Time that requests waited for the disk's limits.",
    );
    for disk in &open {
        family.sample(&[("disk", &disk.id())], disk.throttled().time);
    }
    let holding = open.iter().filter_map(|disk| Some((disk, disk.holding()?)));
    let holding: Vec<_> = holding.collect();
    let since = |status: &Status| {
        let since = status.failure?.since.duration_since(UNIX_EPOCH);
        Some(since.unwrap_or_default())
    };
    let mut family = to.gauge(
        "paddock_disk_held_requests",
        "Requests that failed on the host, or came after one that did, and wait.",
    );
    for (disk, status) in &holding {
        family.sample(&[("disk", &disk.id())], status.requests as u64);
    }
    let mut family = to.gauge(
        "paddock_disk_failing_since_seconds",
        "Since when the disk fails on the host, in seconds since 1970; 0 while it does not.",
    );
    for (disk, status) in &holding {
        let since = since(status).unwrap_or_default();
        family.sample(&[("disk", &disk.id())], since);
    }
    let mut family = to.counter(
        "paddock_disk_host_errors_total",
        "Failures on the host of requests that are held then, each attempt's included.",
    );
    for (disk, status) in &holding {
        family.sample(&[("disk", &disk.id())], status.errors);
    }
}

/// Calls `each` with labels and values of each queue's requests of each kind.
fn for_each_queue(
    disks: &[(String, Arc<blk::Counters>)],
    mut each: impl FnMut(&Labels<'_>, &KindValues),
) {
    for (id, counters) in disks {
        for queue in 0..counters.queues() {
            for kind in blk::Kind::ALL {
                let name = kind_name(kind);
                let labels = [
                    ("disk", id as _),
                    ("queue", &queue as _),
                    ("kind", &name as _),
                ];
                each(&labels, &counters.queue(queue, kind));
            }
        }
    }
}
