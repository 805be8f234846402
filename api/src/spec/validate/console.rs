//! Consoles and byte channels.

use std::collections::HashMap;
use std::path::PathBuf;

use super::super::config::{ConsoleConfig, PortConfig};
use super::super::machine::{Console, Port};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::{ConsoleTarget, PortName, ValueError};
use super::{at_most, optional, path};

/// A virtio console of Paddock's has 15 ports, of which one is for `hvc0`.
const MAX_PORTS: usize = 14;
/// `sun_path` without the final zero.
const MAX_SOCKET_PATH: usize = 107;

pub(super) fn console(
    config: Option<&ConsoleConfig>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Console> {
    let default = ConsoleConfig::default();
    let config = config.unwrap_or(&default);
    let serial = target(config.serial.as_ref(), &at.key("serial"), problems);
    let hvc0 = target(config.hvc0.as_ref(), &at.key("hvc0"), problems);
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
    unique(config, at, problems);
    let hvc0 = hvc0?.unwrap_or(ConsoleTarget::Off);
    let serial = serial?.unwrap_or(if hvc0 == ConsoleTarget::Terminal {
        ConsoleTarget::Off
    } else {
        ConsoleTarget::Terminal
    });
    Some(Console {
        serial,
        hvc0,
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
            .check(&at.key("file"), path(file))
            .map(|file| Some(ConsoleTarget::File(file))),
        other => Some(other.cloned()),
    }
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
        |socket| path(socket).and_then(socket_path),
    );
    Some(Port {
        name: name??,
        socket: socket??,
    })
}

fn socket_path(path: PathBuf) -> Result<PathBuf, ValueError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ValueError::out_of_range(format!(
            "the path has {length} bytes; a unix socket's has at most {MAX_SOCKET_PATH}"
        )));
    }
    Ok(path)
}

/// Names are unique, and no two things write to one path.
fn unique(config: &ConsoleConfig, at: &JsonPointer, problems: &mut Problems) {
    let at_port = |index| at.key("ports").index(index);
    let mut names = HashMap::new();
    let mut paths = HashMap::new();
    for (target, key) in [(&config.serial, "serial"), (&config.hvc0, "hvc0")] {
        if let Some(ConsoleTarget::File(file)) = target {
            let here = at.key(key).key("file");
            if let Some(first) = paths.insert(file, here.clone()) {
                problems.add(
                    here,
                    ProblemCode::Duplicate,
                    format!("{first} has the same path"),
                );
            }
        }
    }
    for (index, port) in config.ports.iter().enumerate() {
        if let Some(socket) = &port.socket {
            let here = at_port(index).key("socket");
            if let Some(first) = paths.insert(socket, here.clone()) {
                problems.add(
                    here,
                    ProblemCode::Duplicate,
                    format!("{first} has the same path"),
                );
            }
        }
        if let Some(name) = &port.name {
            let here = at_port(index).key("name");
            if let Some(first) = names.insert(name, here.clone()) {
                problems.add(
                    here,
                    ProblemCode::Duplicate,
                    format!("{first} has the same name"),
                );
            }
        }
    }
}
