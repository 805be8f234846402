//! Consoles and byte channels.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::config::{ConsoleConfig, ConsoleLogConfig, PortConfig};
use super::super::machine::{Console, ConsoleLog, Port};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::{ByteSize, ConsoleTarget, PassedFd, PortName, ValueError, in_range};
use super::passed::passed_or_path;
use super::{at_most, optional, path};

/// A virtio console of Paddock's has 15 ports, of which one is for `hvc0`.
pub(super) const MAX_PORTS: usize = 14;
/// `sun_path` without the final zero.
const MAX_SOCKET_PATH: usize = 107;
/// `NAME_MAX` without what rotation adds to a log's name.
const MAX_LOG_NAME: usize = 250;
/// Likewise `PATH_MAX` without its final zero.
const MAX_LOG_PATH: usize = 4090;
const LOG_SIZES: std::ops::RangeInclusive<ByteSize> =
    ByteSize::from_bytes(4 << 10)..=ByteSize::from_bytes(1 << 40);
/// As virtlogd's.
const DEFAULT_LOG_SIZE: ByteSize = ByteSize::from_mib(2);
const DEFAULT_LOG_FILES: u8 = 3;
const MAX_LOG_FILES: u64 = 100;

pub(super) fn console(
    config: Option<&ConsoleConfig>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Console> {
    let default = ConsoleConfig::default();
    let config = config.unwrap_or(&default);
    let serial = target(config.serial.as_ref(), &at.key("serial"), problems);
    let serial_log = log(config.serial_log.as_ref(), &at.key("serial_log"), problems);
    let hvc0 = target(config.hvc0.as_ref(), &at.key("hvc0"), problems);
    let hvc0_log = log(config.hvc0_log.as_ref(), &at.key("hvc0_log"), problems);
    let both = [&config.serial, &config.hvc0]
        .iter()
        .all(|target| **target == Some(ConsoleTarget::Terminal));
    if both {
        let detail = "the serial port has the terminal already; give it to one of the two";
        problems.add(at.key("hvc0"), ProblemCode::Conflict, detail);
    }
    let at_ports = at.key("ports");
    at_most(problems, &at_ports, config.ports.len(), MAX_PORTS, "ports")?;
    let ports: Vec<Option<Port>> = config
        .ports
        .iter()
        .enumerate()
        .map(|(index, config)| port(config, &at_ports.index(index), problems))
        .collect();
    unique_names(config, at, problems);
    unique_paths(config, [&serial_log, &hvc0_log], at, problems);
    let hvc0 = hvc0?.unwrap_or(ConsoleTarget::Off);
    let serial = serial?.unwrap_or(if hvc0 == ConsoleTarget::Terminal {
        ConsoleTarget::Off
    } else {
        ConsoleTarget::Terminal
    });
    Some(Console {
        serial,
        serial_log: serial_log?,
        hvc0,
        hvc0_log: hvc0_log?,
        ports: ports.into_iter().collect::<Option<_>>()?,
    })
}

#[expect(clippy::option_option, reason = "as for `optional`")]
fn target(
    config: Option<&ConsoleTarget>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Option<ConsoleTarget>> {
    match config {
        Some(ConsoleTarget::File(file)) => problems
            .check(&at.key("file"), passed_or_path(file))
            .map(|file| Some(ConsoleTarget::File(file))),
        Some(ConsoleTarget::Socket(socket)) => problems
            .check(&at.key("socket"), socket_path(socket))
            .map(|socket| Some(ConsoleTarget::Socket(socket))),
        other => Some(other.cloned()),
    }
}

#[expect(clippy::option_option, reason = "as for `optional`")]
fn log(
    config: Option<&ConsoleLogConfig>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Option<ConsoleLog>> {
    let Some(config) = config else {
        return Some(None);
    };
    if config.path.is_none() {
        let detail = "path is missing: give the path of the log file";
        problems.missing(at, &["path"], detail);
    }
    let file = optional(problems, &at.key("path"), config.path.as_deref(), |file| {
        path(file).and_then(log_path)
    });
    let size = optional(problems, &at.key("size"), config.size, log_size);
    let files = optional(problems, &at.key("files"), config.files, |files| {
        in_range("the number of log files", files, 1..=MAX_LOG_FILES)
    });
    Some(Some(ConsoleLog {
        path: file??,
        size: size?.unwrap_or(DEFAULT_LOG_SIZE),
        files: files?.unwrap_or(DEFAULT_LOG_FILES),
    }))
}

fn log_size(size: ByteSize) -> Result<ByteSize, ValueError> {
    if LOG_SIZES.contains(&size) {
        return Ok(size);
    }
    let (least, most) = (LOG_SIZES.start(), LOG_SIZES.end());
    Err(ValueError::out_of_range(format!(
        "a log file has {least} to {most}, not {size}"
    )))
}

/// Room for the numbers that rotation appends.
fn log_path(path: PathBuf) -> Result<PathBuf, ValueError> {
    if PassedFd::in_path(&path).is_some() {
        return Err(ValueError::malformed(
            "a log is rotated by renaming, which takes a path and not a descriptor; pass a descriptor as the console's own file, or \
             name the log ./fd:…",
        ));
    }
    let bytes = path.as_os_str().as_encoded_bytes();
    let name = path
        .file_name()
        .filter(|name| bytes.ends_with(name.as_encoded_bytes()));
    let Some(name) = name else {
        return Err(ValueError::malformed("the path must end in a file's name"));
    };
    let (name, whole) = (name.len(), bytes.len());
    if name > MAX_LOG_NAME || whole > MAX_LOG_PATH {
        return Err(ValueError::out_of_range(format!(
            "the path has {whole} bytes, its last part {name}; with the numbers of rotated logs, {MAX_LOG_PATH} and {MAX_LOG_NAME} are possible"
        )));
    }
    Ok(path)
}

fn port(config: &PortConfig, at: &JsonPointer, problems: &mut Problems) -> Option<Port> {
    if config.name.is_none() {
        problems.missing(
            at,
            &["name"],
            "name is missing: give the port its name in the guest",
        );
    }
    if config.socket.is_none() {
        problems.missing(
            at,
            &["socket"],
            "socket is missing: give the path of a unix socket",
        );
    }
    let name = optional(
        problems,
        &at.key("name"),
        config.name.as_deref(),
        str::parse::<PortName>,
    );
    let socket = optional(
        problems,
        &at.key("socket"),
        config.socket.as_deref(),
        socket_path,
    );
    Some(Port {
        name: name??,
        socket: socket??,
    })
}

/// A path for a socket to be made at, or one that was passed.
pub(super) fn socket_path(text: &Path) -> Result<PathBuf, ValueError> {
    let path = passed_or_path(text)?;
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ValueError::out_of_range(format!(
            "the path has {length} bytes; a unix socket's has at most {MAX_SOCKET_PATH}"
        )));
    }
    Ok(path)
}

fn unique_names(config: &ConsoleConfig, at: &JsonPointer, problems: &mut Problems) {
    let mut names = HashMap::new();
    for (index, port) in config.ports.iter().enumerate() {
        if let Some(name) = &port.name {
            let here = at.key("ports").index(index).key("name");
            if let Some(first) = names.insert(name, here.clone()) {
                let detail = format!("{first} has the same name");
                problems.add(here, ProblemCode::Duplicate, detail);
            }
        }
    }
}

/// No two things write to one path; rotated logs have paths of their own.
fn unique_paths(
    config: &ConsoleConfig,
    logs: [&Option<Option<ConsoleLog>>; 2],
    at: &JsonPointer,
    problems: &mut Problems,
) {
    let mut used: Vec<(PathBuf, JsonPointer)> = Vec::new();
    for (target, key) in [(&config.serial, "serial"), (&config.hvc0, "hvc0")] {
        match target {
            Some(ConsoleTarget::File(file)) => used.push((file.clone(), at.key(key).key("file"))),
            Some(ConsoleTarget::Socket(socket)) => {
                used.push((socket.clone(), at.key(key).key("socket")));
            }
            _ => {}
        }
    }
    for (index, port) in config.ports.iter().enumerate() {
        if let Some(socket) = &port.socket {
            let here = at.key("ports").index(index).key("socket");
            used.push((socket.clone(), here));
        }
    }
    for (log, key) in logs.into_iter().zip(["serial_log", "hvc0_log"]) {
        if let Some(Some(log)) = log {
            let here = at.key(key).key("path");
            used.extend((0..log.files).map(|number| (log.file(number), here.clone())));
        }
    }
    let mut owners: HashMap<PathBuf, JsonPointer> = HashMap::new();
    // Of descriptors, `passed::each_once` speaks.
    used.retain(|(path, _)| PassedFd::in_path(path).is_none());
    for (path, here) in used {
        if let Some(first) = owners.insert(path, here.clone()) {
            let detail = format!("{first} has the same path");
            problems.add(here, ProblemCode::Duplicate, detail);
        }
    }
}
