//! Replicated volumes behind disks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::super::config::DiskConfig;
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems, quoted};
use super::super::types::{ByteSize, PassedFd, ReplicaAddress, ValueError, in_range};
use super::super::volume::{LonghornSocket, LonghornSocketConfig, Volume, VolumeConfig};
use super::console::socket_path;
use super::{at_most, optional, path};

/// Replicas store so many bytes as one.
const SECTOR: ByteSize = ByteSize::from_bytes(4096);
const MAX_SIZE: ByteSize = ByteSize::from_bytes(1 << 60);
const TIMEOUTS: std::ops::RangeInclusive<u64> = 8..=30;

/// A replicated volume.
pub(super) fn volume(
    config: &VolumeConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Volume> {
    if config.name.is_none() {
        let detail = "name is missing: give the volume's name";
        problems.missing(at, &["name"], detail);
    }
    if config.replicas.is_empty() {
        let detail = "replicas is missing: list HOST:PORT of the control service of each";
        problems.missing(at, &["replicas"], detail);
    }
    let name = optional(
        problems,
        &at.key("name"),
        config.name.as_deref(),
        str::parse,
    );
    let replicas = replicas(&config.replicas, &at.key("replicas"), problems);
    let size = optional(problems, &at.key("size"), config.size, volume_size);
    let timeout = optional(problems, &at.key("timeout"), config.timeout, |seconds| {
        in_range("a replica's timeout in seconds", seconds, TIMEOUTS)
    });
    let record = optional(
        problems,
        &at.key("record"),
        config.record.as_deref(),
        record_path,
    );
    let controller = optional(
        problems,
        &at.key("controller"),
        config.controller.as_deref(),
        listening_address,
    );
    Some(Volume {
        name: name??,
        replicas: replicas.filter(|replicas| !replicas.is_empty())?,
        size: size?,
        timeout: timeout?.unwrap_or(8),
        revision_counter: config.revision_counter,
        salvage: config.salvage.unwrap_or(false),
        record: record?,
        controller: controller?,
    })
}

fn replicas(
    texts: &[String],
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Vec<ReplicaAddress>> {
    at_most(problems, at, texts.len(), Volume::MAX_REPLICAS, "replicas")?;
    let parse = |(index, text): (usize, &String)| problems.check(&at.index(index), text.parse());
    let replicas: Vec<Option<ReplicaAddress>> = texts.iter().enumerate().map(parse).collect();
    replicas.into_iter().collect()
}

/// A volume behind an engine.
pub(super) fn longhorn_socket(
    config: &LonghornSocketConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<LonghornSocket> {
    if config.path.is_none() {
        let detail = "path is missing: name the engine's socket";
        problems.missing(at, &["path"], detail);
    }
    if config.size.is_none() {
        let detail =
            "size is missing: give the volume's size, which its engine's socket does not tell";
        problems.missing(at, &["size"], detail);
    }
    let path = optional(
        problems,
        &at.key("path"),
        config.path.as_deref(),
        engine_socket,
    );
    let size = optional(problems, &at.key("size"), config.size, volume_size);
    Some(LonghornSocket {
        path: path??,
        size: size??,
    })
}

/// The path of a socket that others listen on: none that was passed.
fn engine_socket(text: &Path) -> Result<PathBuf, ValueError> {
    if PassedFd::in_path(text).is_some() {
        return Err(ValueError::malformed(
            "an engine's socket cannot be passed as a descriptor; give its path, and ./fd:… for a socket of such a name",
        ));
    }
    socket_path(text)
}

/// The path of a record: it is replaced by another file at each change.
fn record_path(text: &Path) -> Result<PathBuf, ValueError> {
    if PassedFd::in_path(text).is_some() {
        return Err(ValueError::malformed(
            "a record cannot be passed as a descriptor; give its path, and ./fd:… for a file of such a name",
        ));
    }
    path(text)
}

/// Where this host is to listen.
fn listening_address(text: &str) -> Result<SocketAddr, ValueError> {
    let address = text.parse::<SocketAddr>().ok();
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        ValueError::malformed(format!(
            "{} is no ADDRESS:PORT to listen on: an address of this host, one of IPv6 in brackets, and a port from 1 to 65535",
            quoted(text)
        ))
    })
}

fn volume_size(size: ByteSize) -> Result<ByteSize, ValueError> {
    if !(SECTOR..=MAX_SIZE).contains(&size) || !size.is_multiple_of(SECTOR) {
        return Err(ValueError::out_of_range(format!(
            "a volume's size must be a multiple of {SECTOR} and {SECTOR} to {MAX_SIZE}, not {size}"
        )));
    }
    Ok(size)
}

/// A replica belongs to one volume, and a volume to one disk: an engine that writes knows of nobody else.
pub(super) fn shared_volumes(disks: &[DiskConfig], at: &JsonPointer, problems: &mut Problems) {
    let mut users: HashMap<ReplicaAddress, JsonPointer> = HashMap::new();
    let mut sockets: HashMap<&Path, (bool, JsonPointer)> = HashMap::new();
    for (index, disk) in disks.iter().enumerate() {
        let at = at.index(index);
        let volume = disk.volume.iter();
        let volume = volume.filter(|volume| volume.replicas.len() <= Volume::MAX_REPLICAS);
        let replicas = volume.flat_map(|volume| &volume.replicas);
        for (place, text) in replicas.enumerate() {
            let here = at.key("volume").key("replicas").index(place);
            let Ok(replica) = text.parse::<ReplicaAddress>() else {
                continue;
            };
            if let Some(first) = users.get(&replica) {
                let detail = format!("{first} is the same replica; name each once");
                problems.add(here, ProblemCode::Duplicate, detail);
            } else {
                users.insert(replica, here);
            }
        }
        let socket = disk.longhorn_socket.as_ref();
        let Some(path) = socket.and_then(|socket| socket.path.as_deref()) else {
            continue;
        };
        let here = at.key("longhorn_socket").key("path");
        let writes = disk.read_only != Some(true);
        match sockets.get(path) {
            Some((others_write, first)) if writes || *others_write => {
                let detail =
                    format!("{first} is the same; only read-only disks may share a volume");
                problems.add(here, ProblemCode::Duplicate, detail);
            }
            Some(_) => {}
            None => {
                sockets.insert(path, (writes, here));
            }
        }
    }
}

/// A record is one volume's: each replaces what is there by its own.
pub(super) fn shared_records(disks: &[DiskConfig], at: &JsonPointer, problems: &mut Problems) {
    let mut users: HashMap<&Path, JsonPointer> = HashMap::new();
    for (index, disk) in disks.iter().enumerate() {
        let volume = disk.volume.as_ref();
        let Some(path) = volume.and_then(|volume| volume.record.as_deref()) else {
            continue;
        };
        // Whoever passes a descriptor is told of that.
        if record_path(path).is_err() {
            continue;
        }
        let here = at.index(index).key("volume").key("record");
        if let Some(first) = users.get(path) {
            let detail = format!("{first} is the same file; give each volume a record of its own");
            problems.add(here, ProblemCode::Duplicate, detail);
        } else {
            users.insert(path, here);
        }
    }
}
