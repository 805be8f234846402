//! What CD-ROM drives have done, as metrics.

use paddock_api::metrics::Exposition;
use paddock_devices::virtio::scsi::{CdromHandle, CdromStatus};

/// A family: its name, its meaning, and where its number is.
type Family = (&'static str, &'static str, fn(&CdromStatus) -> u64);

const COUNTERS: [Family; 3] = [
    (
        "paddock_cdrom_commands_total",
        "Commands of the guest that the drive answered.",
        |status| status.counters.commands,
    ),
    (
        "paddock_cdrom_read_bytes_total",
        "Bytes of the medium that the guest was given.",
        |status| status.counters.read_bytes,
    ),
    (
        "paddock_cdrom_errors_total",
        "Times that the host could not read the medium.",
        |status| status.counters.errors,
    ),
];

const GAUGES: [Family; 2] = [
    (
        "paddock_cdrom_loaded",
        "Whether there is a medium in the tray.",
        |status| status.medium.is_some().into(),
    ),
    (
        "paddock_cdrom_locked",
        "Whether the guest has locked the tray.",
        |status| status.locked.into(),
    ),
];

/// The drives of a VM, by their ids.
pub(super) fn describe(to: &mut Exposition, drives: &[(String, CdromHandle)]) {
    let drives: Vec<_> = drives
        .iter()
        .map(|(id, handle)| (id, handle.status()))
        .collect();
    for (name, help, of) in COUNTERS {
        let mut family = to.counter(name, help);
        for (id, status) in &drives {
            family.sample(&[("cdrom", id)], of(status));
        }
    }
    for (name, help, of) in GAUGES {
        let mut family = to.gauge(name, help);
        for (id, status) in &drives {
            family.sample(&[("cdrom", id)], of(status));
        }
    }
}
