//! Disks, and where their content is.

use super::super::config::DiskConfig;
use super::super::machine::{Disk, DiskFile, DiskSource};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::{DeviceId, PassedFd, QueueSize, in_range};
use super::optional;
use super::passed::passed_or_path;

pub(super) const MAX_DISKS: usize = 128;
const MAX_QUEUES: u64 = 64;
/// More queues than this by default are memory and threads that few guests need.
const DEFAULT_QUEUES: u8 = 4;

/// Checks one disk of a VM with so many processors.
pub(super) fn disk(
    config: &DiskConfig,
    id: Option<DeviceId>,
    processors: u8,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Disk> {
    let source = source(config, at, problems);
    let queues = optional(problems, &at.key("queues"), config.queues, |queues| {
        in_range("the number of queues", queues, 1..=MAX_QUEUES)
    });
    let queue_size = optional(
        problems,
        &at.key("queue_size"),
        config.queue_size,
        QueueSize::try_from,
    );
    let serial = optional(
        problems,
        &at.key("serial"),
        config.serial.as_deref(),
        str::parse,
    );
    Some(Disk {
        id: id?,
        source: source?,
        read_only: config.read_only.unwrap_or(false),
        queues: queues?.unwrap_or_else(|| processors.min(DEFAULT_QUEUES).into()),
        queue_size: queue_size?.unwrap_or_default(),
        serial: serial?,
    })
}

/// Where its content is.
fn source(config: &DiskConfig, at: &JsonPointer, problems: &mut Problems) -> Option<DiskSource> {
    if config.path.is_none() {
        let detail = "path is missing: name a raw image file or a block device";
        problems.missing(at, &["path"], detail);
    }
    file(config, at, problems).map(DiskSource::File)
}

/// A file or block device of the host's.
fn file(config: &DiskConfig, at: &JsonPointer, problems: &mut Problems) -> Option<DiskFile> {
    let path = optional(
        problems,
        &at.key("path"),
        config.path.as_deref(),
        passed_or_path,
    );
    Some(DiskFile {
        path: path??,
        direct: config.direct.unwrap_or_default(),
        engine: config.engine.unwrap_or_default(),
    })
}

/// Two read-only views of one file are fine; a writer wants it alone. Of descriptors, [`passed`](super::passed) speaks.
pub(super) fn shared_files(disks: &[DiskConfig], at: &JsonPointer, problems: &mut Problems) {
    let writes = |disk: &DiskConfig| disk.read_only != Some(true);
    for (index, disk) in disks.iter().enumerate() {
        let passed = disk.path.as_deref().and_then(PassedFd::in_path).is_some();
        let first = disks[..index].iter().position(|other| {
            !passed
                && disk.path.is_some()
                && other.path == disk.path
                && (writes(disk) || writes(other))
        });
        if let Some(first) = first {
            let detail =
                format!("disk {first} has the same path; only read-only disks may share one");
            problems.add(at.index(index).key("path"), ProblemCode::Duplicate, detail);
        }
    }
}
