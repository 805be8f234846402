//! Descriptors that were passed to the process, where a path or a tap's name would stand.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::super::config::{ConsoleConfig, VmConfig};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems};
use super::super::types::{ConsoleTarget, PassedFd, PassedTap, ValueError};
use super::path;

/// A path to be opened, or a descriptor that was passed in its place.
pub(super) fn passed_or_path(text: &Path) -> Result<PathBuf, ValueError> {
    match PassedFd::in_path(text) {
        Some(passed) => passed.map(|passed| passed.to_string().into()),
        None => path(text),
    }
}

/// A descriptor that was passed is used once.
pub(super) fn each_once(config: &VmConfig, problems: &mut Problems) {
    let mut users: HashMap<PassedFd, JsonPointer> = HashMap::new();
    for (at, passed) in uses(config) {
        if let Some(first) = users.get(&passed) {
            let detail =
                format!("{passed} is used by {first} as well; pass a descriptor for each use");
            problems.add(at, ProblemCode::Duplicate, detail);
        } else {
            users.insert(passed, at);
        }
    }
}

/// Where descriptors that were passed are used, and which.
pub(in crate::spec) fn uses(config: &VmConfig) -> Vec<(JsonPointer, PassedFd)> {
    let at = JsonPointer::root();
    let boot = config.boot.iter().flat_map(|boot| {
        let at = at.key("boot");
        let firmware = boot.firmware.as_ref();
        let firmware = firmware.and_then(|firmware| firmware.path.as_deref());
        [
            (at.key("kernel"), boot.kernel.as_deref()),
            (at.key("initramfs"), boot.initramfs.as_deref()),
            (at.key("firmware").key("path"), firmware),
        ]
    });
    let disks = config.disks.iter().enumerate().map(|(index, disk)| {
        let at = at.key("disks").index(index).key("path");
        (at, disk.path.as_deref())
    });
    let console = config.console.iter();
    let console = console.flat_map(|console| of_console(console, &at.key("console")));
    let cdroms = config.cdroms.iter().enumerate().map(|(index, cdrom)| {
        let at = at.key("cdroms").index(index).key("path");
        (at, cdrom.path.as_deref())
    });
    let paths = boot.chain(disks).chain(cdroms).chain(console);
    let paths = paths.filter_map(|(at, path)| {
        let passed = PassedFd::in_path(path?)?.ok()?;
        Some((at, passed))
    });
    let taps = config.nics.iter().enumerate().flat_map(|(index, nic)| {
        let passed = nic.tap.as_deref().and_then(PassedTap::in_text);
        let queues = passed.and_then(Result::ok);
        let queues = queues.map_or_else(Vec::new, |tap| tap.queues().to_vec());
        let at = at.key("nics").index(index).key("tap");
        queues.into_iter().map(move |queue| (at.clone(), queue))
    });
    paths.chain(taps).collect()
}

/// What a console's ends and its ports are made of.
fn of_console<'a>(
    config: &'a ConsoleConfig,
    at: &JsonPointer,
) -> Vec<(JsonPointer, Option<&'a Path>)> {
    let targets = [("serial", &config.serial), ("hvc0", &config.hvc0)];
    let mut places: Vec<_> = targets
        .into_iter()
        .filter_map(|(console, target)| match target.as_ref()? {
            ConsoleTarget::File(path) => Some((at.key(console).key("file"), Some(path.as_path()))),
            ConsoleTarget::Socket(path) => {
                Some((at.key(console).key("socket"), Some(path.as_path())))
            }
            ConsoleTarget::Terminal | ConsoleTarget::Off => None,
        })
        .collect();
    // There are more only where that is a problem of its own.
    for (index, port) in config
        .ports
        .iter()
        .take(super::console::MAX_PORTS)
        .enumerate()
    {
        let at = at.key("ports").index(index).key("socket");
        places.push((at, port.socket.as_deref()));
    }
    places
}
