//! Disks and NICs.

use paddock_api::device::{Disk, Nic};
use paddock_api::disk::DiskFailure;
use paddock_api::spec::{DirectIo, DiskConfig, DiskEngine, ImageFormat, NicConfig, OnErrorConfig};

use super::events::moment;
use super::volumes::trouble;
use super::{Cell, Colour, Page, bytes, word};

/// Disks, a line each.
pub fn disks(page: &mut Page, disks: &[Disk]) {
    let rows = disks.iter().map(|disk| {
        vec![
            Cell::new(&disk.id),
            Cell::state(&disk.state),
            Cell::new(disk.size.map(bytes).unwrap_or_default()),
            Cell::new(path(&disk.spec)),
            Cell::new(disk_options(&with_limits(disk))),
            job(disk.job),
            disk.failure
                .as_ref()
                .map(|one| Cell::coloured(failure(one), Colour::Red))
                .or_else(|| trouble(disk.volume.as_ref()?))
                .unwrap_or_default(),
        ]
    });
    let headings = ["ID", "STATE", "SIZE", "PATH", "OPTIONS", "JOB", "FAILURE"];
    page.table(&headings, rows.collect(), "no disks");
}

/// NICs, a line each.
pub fn nics(page: &mut Page, nics: &[Nic]) {
    let rows = nics.iter().map(|nic| {
        vec![
            Cell::new(&nic.id),
            Cell::state(&nic.state),
            Cell::new(attachment(&nic.spec)),
            Cell::new(nic.spec.mac.as_deref().unwrap_or_default()),
            Cell::new(nic_options(&nic.spec)),
            job(nic.job),
        ]
    });
    let headings = ["ID", "STATE", "ATTACHED TO", "MAC", "OPTIONS", "JOB"];
    page.table(&headings, rows.collect(), "no NICs");
}

fn job(job: Option<u64>) -> Cell {
    Cell::new(job.map(|job| job.to_string()).unwrap_or_default())
}

/// What a disk is made of, with its present limits.
fn with_limits(disk: &Disk) -> DiskConfig {
    DiskConfig {
        limits: Some(disk.limits),
        ..disk.spec.clone()
    }
}

/// How a disk fails.
pub(super) fn failure(failure: &DiskFailure) -> String {
    let DiskFailure {
        error,
        errno,
        requests,
        attempts,
        ..
    } = failure;
    let since = moment(failure.since_ms);
    let handling = word(&failure.handling);
    format!(
        "{error} (errno {errno}) since {since}: {handling}; requests: {requests}, attempts: {attempts}"
    )
}

/// Where a disk's content is.
pub(super) fn path(disk: &DiskConfig) -> String {
    if let Some(volume) = &disk.volume {
        let name = volume.name.as_deref().unwrap_or_default();
        return format!("volume {name} on {}", volume.replicas.join(", "));
    }
    let socket = disk.longhorn_socket.as_ref();
    let path = socket.map_or(&disk.path, |socket| &socket.path);
    let path = path.as_ref().map(|path| path.display().to_string());
    let uri = disk.nbd.as_ref().and_then(|nbd| nbd.uri.clone());
    path.or(uri).unwrap_or_default()
}

/// What is not as it is for most disks.
pub(super) fn disk_options(disk: &DiskConfig) -> String {
    let mut options = Vec::new();
    if let Some(format) = disk.format.filter(|format| *format != ImageFormat::Raw) {
        options.push(word(&format));
    }
    if disk.read_only == Some(true) {
        options.push("read-only".to_owned());
    }
    options.extend(
        disk.serial
            .as_ref()
            .map(|serial| format!("serial {serial}")),
    );
    options.extend(count(disk.queues, "queues"));
    if let Some(direct) = disk.direct.filter(|direct| *direct != DirectIo::Auto) {
        options.push(format!("direct {}", word(&direct)));
    }
    if let Some(engine) = disk.engine.filter(|engine| *engine != DiskEngine::Auto) {
        options.push(word(&engine));
    }
    match disk.on_error {
        None | Some(OnErrorConfig::Report) => {}
        Some(OnErrorConfig::Stop) => options.push("stops on errors".to_owned()),
        Some(OnErrorConfig::Retry(_)) => options.push("retries".to_owned()),
    }
    let limits = disk.limits.unwrap_or_default();
    options.extend(limits.iops.map(|iops| format!("{iops} IOPS")));
    let bandwidth = limits.bandwidth.map(|size| bytes(size.bytes()));
    options.extend(bandwidth.map(|bandwidth| format!("{bandwidth}/s")));
    options.join(", ")
}

/// What a NIC is attached to.
pub(super) fn attachment(nic: &NicConfig) -> String {
    match (&nic.tap, &nic.bridge, nic.vlan) {
        (Some(tap), _, _) => format!("tap {tap}"),
        (_, Some(bridge), Some(vlan)) => format!("bridge {bridge}, VLAN {vlan}"),
        (_, Some(bridge), None) => format!("bridge {bridge}"),
        (None, None, _) => String::new(),
    }
}

fn nic_options(nic: &NicConfig) -> String {
    let mut options = Vec::new();
    options.extend(nic.mtu.map(|mtu| format!("MTU {mtu}")));
    options.extend(count(nic.queue_pairs, "queue pairs"));
    options.join(", ")
}

/// A number of things, where it is not one.
fn count(number: Option<u64>, things: &str) -> Option<String> {
    let number = number.filter(|number| *number != 1)?;
    Some(format!("{number} {things}"))
}
