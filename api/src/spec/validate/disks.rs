//! Disks, and where their content is.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::config::{BackingConfig, DiskConfig, DiskLimits, OnErrorConfig};
use super::super::machine::{Backing, Disk, DiskFile, DiskSource, OnError};
use super::super::pointer::JsonPointer;
use super::super::problem::{InvalidSpec, ProblemCode, Problems};
use super::super::types::{
    ByteSize, DeviceId, DiskEngine, ImageFormat, PassedFd, QueueSize, ValueError, in_range,
};
use super::passed::passed_or_path;
use super::volumes::{longhorn_socket, volume};
use super::{nbd, optional, path};

pub(super) const MAX_DISKS: usize = 128;
const MAX_QUEUES: u64 = 64;
/// Requests a second, and at once.
pub(in crate::spec) const IOPS: RangeInclusive<u64> = 1..=1_000_000_000;
/// Bytes a second, and at once. Less is no disk.
pub(in crate::spec) const BANDWIDTH: RangeInclusive<u64> = 4096..=1 << 50;
/// How long to try again what failed, in milliseconds: long enough for an attempt.
const DEADLINES: RangeInclusive<u64> = 20..=86_400_000;
const DEFAULT_DEADLINE: u64 = 60_000;
/// How often, in milliseconds.
const INTERVALS: RangeInclusive<u64> = 10..=60_000;
const DEFAULT_INTERVAL: u64 = 1000;
/// More queues than this by default are memory and threads that few guests need.
const DEFAULT_QUEUES: u8 = 4;
/// The most images of a disk, each an overlay of the next.
const MAX_CHAIN: usize = 32;

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
    let on_error = on_error(config.on_error, &at.key("on_error"), problems);
    let limits = config.limits.unwrap_or_default();
    let limits = check_limits(limits, &at.key("limits"), problems);
    Some(Disk {
        id: id?,
        source: source?,
        read_only: config.read_only.unwrap_or(false),
        queues: queues?.unwrap_or_else(|| processors.min(DEFAULT_QUEUES).into()),
        queue_size: queue_size?.unwrap_or_default(),
        serial: serial?,
        on_error: on_error?,
        limits: limits?,
    })
}

/// Limits by themselves.
pub(in crate::spec) fn checked_limits(limits: DiskLimits) -> Result<DiskLimits, InvalidSpec> {
    let mut problems = Problems::default();
    let _ = check_limits(limits, &JsonPointer::root(), &mut problems);
    problems.finish()?;
    Ok(limits)
}

fn check_limits(
    limits: DiskLimits,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<DiskLimits> {
    let mut check = |key, what, value, range| {
        optional(problems, &at.key(key), value, |value| {
            in_range::<u64>(what, value, range)
        })
    };
    let what = "requests a second";
    let iops = check("iops", what, limits.iops, IOPS);
    let burst = check("iops_burst", "requests at once", limits.iops_burst, IOPS);
    let what = "bytes a second";
    let bytes = limits.bandwidth.map(ByteSize::bytes);
    let bandwidth = check("bandwidth", what, bytes, BANDWIDTH);
    let bytes = limits.bandwidth_burst.map(ByteSize::bytes);
    let more = check("bandwidth_burst", "bytes at once", bytes, BANDWIDTH);
    for (of, burst, given) in [
        (
            "iops",
            "iops_burst",
            (limits.iops.is_none(), limits.iops_burst.is_some()),
        ),
        (
            "bandwidth",
            "bandwidth_burst",
            (limits.bandwidth.is_none(), limits.bandwidth_burst.is_some()),
        ),
    ] {
        if given == (true, true) {
            let detail = format!("{burst} is a part of {of}, which is missing");
            problems.add(at.key(burst), ProblemCode::Conflict, detail);
        }
    }
    iops.and(burst).and(bandwidth).and(more).map(|_| limits)
}

/// What becomes of requests that fail.
fn on_error(
    config: Option<OnErrorConfig>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<OnError> {
    let retry = match config {
        None | Some(OnErrorConfig::Report) => return Some(OnError::Report),
        Some(OnErrorConfig::Stop) => return Some(OnError::Stop),
        Some(OnErrorConfig::Retry(retry)) => retry,
    };
    let at = at.key("retry");
    let mut time = |key, what, given, range| {
        optional(problems, &at.key(key), given, |given| {
            in_range::<u64>(what, given, range)
        })
    };
    let what = "the deadline in milliseconds";
    let deadline = time("deadline_ms", what, retry.deadline_ms, DEADLINES);
    let what = "the interval in milliseconds";
    let interval = time("interval_ms", what, retry.interval_ms, INTERVALS);
    let deadline = deadline?.unwrap_or(DEFAULT_DEADLINE);
    let interval = interval?.unwrap_or(DEFAULT_INTERVAL.min(deadline / 2));
    if interval >= deadline {
        let detail = format!(
            "the first attempt would come when the deadline of {deadline} ms is over; give less than that, or a later deadline_ms"
        );
        problems.add(at.key("interval_ms"), ProblemCode::Conflict, detail);
        return None;
    }
    Some(OnError::Retry {
        deadline: Duration::from_millis(deadline),
        interval: Duration::from_millis(interval),
        then: retry.then.unwrap_or_default(),
    })
}

/// Where its content is.
fn source(config: &DiskConfig, at: &JsonPointer, problems: &mut Problems) -> Option<DiskSource> {
    let others = [
        ("nbd", config.nbd.is_some()),
        ("volume", config.volume.is_some()),
        ("longhorn_socket", config.longhorn_socket.is_some()),
    ];
    let mut others = others.into_iter().filter(|(_, given)| *given);
    let other = others.next();
    if others.next().is_some() {
        let detail =
            "a disk's content is in one place; give only one of nbd, volume and longhorn_socket";
        problems.add(at.clone(), ProblemCode::Conflict, detail);
        return None;
    }
    if let Some((other, _)) = other {
        without_file(config, other, at, problems);
    }
    if let Some(nbd) = &config.nbd {
        return nbd::export(nbd, &at.key("nbd"), problems).map(DiskSource::Nbd);
    }
    if let Some(config) = &config.volume {
        return volume(config, &at.key("volume"), problems).map(DiskSource::Volume);
    }
    if let Some(config) = &config.longhorn_socket {
        let at = at.key("longhorn_socket");
        return longhorn_socket(config, &at, problems).map(DiskSource::LonghornSocket);
    }
    if config.path.is_none() {
        let detail = "path is missing: name an image file or a block device, or give nbd, volume or longhorn_socket";
        let fields = ["path", "nbd", "volume", "longhorn_socket"];
        problems.missing(at, &fields, detail);
    }
    file(config, at, problems).map(DiskSource::File)
}

/// Nothing is said of a file where the content is in `other`.
fn without_file(config: &DiskConfig, other: &str, at: &JsonPointer, problems: &mut Problems) {
    for (key, given) in [
        ("path", config.path.is_some()),
        ("format", config.format.is_some()),
        ("backing", config.backing.is_some()),
        ("direct", config.direct.is_some()),
        ("engine", config.engine.is_some()),
        ("block_size", config.block_size.is_some()),
    ] {
        if given {
            let detail =
                format!("{key} is for files and block devices; leave out {key} or {other}");
            problems.add(at.key(key), ProblemCode::Conflict, detail);
        }
    }
}

/// A file or block device of the host's.
fn file(config: &DiskConfig, at: &JsonPointer, problems: &mut Problems) -> Option<DiskFile> {
    let path = optional(
        problems,
        &at.key("path"),
        config.path.as_deref(),
        passed_or_path,
    );
    let format = config.format.unwrap_or_default();
    if let (ImageFormat::Qcow2, Some(DiskEngine::IoUring)) = (format, config.engine) {
        let detail = "qcow2 images have threads; leave engine out";
        problems.add(at.key("engine"), ProblemCode::Conflict, detail);
    }
    if format == ImageFormat::Qcow2 && config.block_size.is_some() {
        let detail = "the blocks of a qcow2 image have 512 bytes; leave block_size out";
        problems.add(at.key("block_size"), ProblemCode::Conflict, detail);
    }
    let size = config.block_size;
    let block_size = optional(problems, &at.key("block_size"), size, block_size);
    let overlay = (format, config.backing.as_deref());
    let backing = backing(overlay, 1, &at.key("backing"), problems)?;
    Some(DiskFile {
        path: path??,
        format,
        backing,
        direct: config.direct.unwrap_or_default(),
        engine: config.engine.unwrap_or_default(),
        block_size: block_size?,
    })
}

/// The sizes that disks are made with.
fn block_size(size: u64) -> Result<u32, ValueError> {
    match size {
        512 => Ok(512),
        4096 => Ok(4096),
        _ => Err(ValueError::out_of_range(format!(
            "blocks have 512 or 4096 bytes, not {size}"
        ))),
    }
}

/// What an image of this format is an overlay of, and how many images there are before that.
fn backing(
    (overlay, config): (ImageFormat, Option<&BackingConfig>),
    depth: usize,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Option<Backing>> {
    let Some(config) = config else {
        return Some(None);
    };
    if overlay == ImageFormat::Raw {
        let detail = "only a qcow2 image has a backing file; give it the format \"qcow2\"";
        problems.add(at.clone(), ProblemCode::Conflict, detail);
        return None;
    }
    if depth >= MAX_CHAIN {
        let detail = format!("a disk has {MAX_CHAIN} images at most; merge some of them");
        problems.add(at.clone(), ProblemCode::OutOfRange, detail);
        return None;
    }
    if config.path.is_none() {
        let detail = "path is missing: name the image that is the backing file";
        problems.missing(at, &["path"], detail);
    }
    let path = optional(problems, &at.key("path"), config.path.as_deref(), only_path);
    let format = config.format.unwrap_or_default();
    let next = (format, config.backing.as_deref());
    let next = backing(next, depth + 1, &at.key("backing"), problems)?;
    Some(Some(Backing {
        path: path??,
        format,
        backing: next.map(Box::new),
    }))
}

/// A path: what an image names as its backing file cannot be compared with a descriptor.
fn only_path(text: &Path) -> Result<PathBuf, ValueError> {
    match PassedFd::in_path(text) {
        Some(_) => Err(ValueError::malformed(
            "a backing file cannot be passed as a descriptor; give its path, and ./fd:… for a file of such a name",
        )),
        None => path(text),
    }
}

/// Whether the disk has what is at `path` as a backing file, at whatever depth.
fn reads(disk: &DiskConfig, path: &Path) -> bool {
    let mut backing = disk.backing.as_deref();
    while let Some(image) = backing {
        if image.path.as_deref() == Some(path) {
            return true;
        }
        backing = image.backing.as_deref();
    }
    false
}

/// Two read-only views of one file are fine; a writer wants it alone, and so does whoever has it as a backing file. Of descriptors, [`passed`](super::passed) speaks.
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
        let written = disk.path.as_deref().filter(|_| writes(disk));
        let reader = written.and_then(|path| disks.iter().position(|other| reads(other, path)));
        if let Some(reader) = reader {
            let detail = if reader == index {
                "it is its own backing file; name the image that it is an overlay of".to_owned()
            } else {
                format!(
                    "it is a backing file of disk {reader}, which would break if it were written; make it read-only or an overlay of that file"
                )
            };
            problems.add(at.index(index).key("path"), ProblemCode::Duplicate, detail);
        }
        let uri = |disk: &DiskConfig| disk.nbd.as_ref().and_then(|nbd| nbd.uri.clone());
        let first = uri(disk).and_then(|ours| {
            disks[..index].iter().position(|other| {
                (writes(disk) || writes(other)) && uri(other).as_ref() == Some(&ours)
            })
        });
        if let Some(first) = first {
            let detail =
                format!("disk {first} has the same URI; only read-only disks may share one");
            let at = at.index(index).key("nbd").key("uri");
            problems.add(at, ProblemCode::Duplicate, detail);
        }
    }
}
