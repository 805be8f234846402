//! What the VM starts with: a kernel or firmware, and what goes with either.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::config::{BootConfig, FirmwareConfig};
use super::super::machine::{Boot, FirmwareBoot, KernelBoot};
use super::super::pointer::JsonPointer;
use super::super::problem::{ProblemCode, Problems, quoted};
use super::super::types::{DeviceId, PassedFd, ValueError};
use super::cdroms::MAX_CDROMS;
use super::devices::MAX_NICS;
use super::disks::MAX_DISKS;
use super::passed::passed_or_path;
use super::{at_most, optional, path};

/// The kernel's `COMMAND_LINE_SIZE` on x86 is 2048 with the final zero.
const MAX_COMMAND_LINE: usize = 2047;
/// All devices of the kinds that firmware boots from.
const MAX_ORDER: usize = MAX_DISKS + MAX_CDROMS + MAX_NICS;

/// Checks it, in a VM whose devices have these ids, if they are right.
pub(super) fn boot(
    config: Option<&BootConfig>,
    ids: Option<&HashSet<&DeviceId>>,
    root: &JsonPointer,
    problems: &mut Problems,
) -> Option<Boot> {
    const NEEDED: &str = "say what to boot, such as {\"kernel\": \"/boot/vmlinuz\"}, or {\"firmware\": {}} to boot from a disk or CD-ROM";
    let Some(config) = config else {
        problems.missing(root, &["boot"], format!("boot is missing: {NEEDED}"));
        return None;
    };
    let at = root.key("boot");
    let boot = match (&config.kernel, &config.firmware) {
        (Some(_), Some(_)) => {
            let detail = "a VM boots a kernel or by firmware; give one of the two";
            problems.add(at.key("firmware"), ProblemCode::Conflict, detail);
            return None;
        }
        (None, Some(firmware)) => {
            only_with_kernel(config, &at, problems);
            let order = order(&config.order, ids, &at.key("order"), problems);
            let firmware = self::firmware(firmware, &at.key("firmware"), problems);
            firmware
                .zip(order)
                .map(|(firmware, order)| Boot::Firmware(FirmwareBoot { order, ..firmware }))
        }
        (None, None) => {
            problems.missing(
                &at,
                &["kernel", "firmware"],
                format!("kernel is missing: {NEEDED}"),
            );
            kernel(config, &at, problems)
        }
        (Some(_), None) => {
            if !config.order.is_empty() {
                let detail = "a kernel is booted as it is; a boot order is for firmware";
                problems.add(at.key("order"), ProblemCode::Conflict, detail);
            }
            kernel(config, &at, problems)
        }
    };
    boot.filter(|_| !problems.within(&at))
}

/// Checks a kernel and what goes with it.
fn kernel(config: &BootConfig, at: &JsonPointer, problems: &mut Problems) -> Option<Boot> {
    let mut file =
        |key: &str, file: Option<&Path>| optional(problems, &at.key(key), file, passed_or_path);
    let kernel = file("kernel", config.kernel.as_deref());
    let initramfs = file("initramfs", config.initramfs.as_deref());
    let command_line = optional(
        problems,
        &at.key("command_line"),
        config.command_line.as_deref(),
        command_line,
    );
    Some(Boot::Kernel(KernelBoot {
        kernel: kernel??,
        initramfs: initramfs?,
        command_line: command_line?.unwrap_or_default(),
    }))
}

fn only_with_kernel(config: &BootConfig, at: &JsonPointer, problems: &mut Problems) {
    let given = [
        ("initramfs", config.initramfs.is_some()),
        ("command_line", config.command_line.is_some()),
    ];
    for (key, _) in given.into_iter().filter(|(_, given)| *given) {
        let detail = "firmware boots what is on a disk or CD-ROM; this goes with a kernel";
        problems.add(at.key(key), ProblemCode::Conflict, detail);
    }
}

/// Checks firmware, but for the boot order.
fn firmware(
    config: &FirmwareConfig,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<FirmwareBoot> {
    let image = optional(
        problems,
        &at.key("path"),
        config.path.as_deref(),
        passed_or_path,
    );
    let mut file =
        |key: &str, file: Option<&Path>| optional(problems, &at.key(key), file, only_path);
    let variables = file("variables", config.variables.as_deref());
    let template = file("template", config.template.as_deref());
    Some(FirmwareBoot {
        path: image?,
        variables: variables?,
        template: template?,
        order: Vec::new(),
    })
}

/// A path where no descriptor will do: variables are written to a new file that then replaces the old one.
fn only_path(text: &Path) -> Result<PathBuf, ValueError> {
    if PassedFd::in_path(text).is_some() {
        return Err(ValueError::malformed(
            "a path is needed here, a passed descriptor will not do",
        ));
    }
    path(text)
}

fn order(
    order: &[String],
    ids: Option<&HashSet<&DeviceId>>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Vec<DeviceId>> {
    at_most(problems, at, order.len(), MAX_ORDER, "devices to boot from")?;
    let mut seen = HashSet::new();
    let mut checked = Vec::new();
    for (index, text) in order.iter().enumerate() {
        let at = at.index(index);
        let Some(id) = problems.check(&at, text.parse::<DeviceId>()) else {
            continue;
        };
        if !seen.insert(id.clone()) {
            let detail = format!("{} is in the order already", quoted(id.as_str()));
            problems.add(at, ProblemCode::Duplicate, detail);
        } else if ids.is_some_and(|ids| !ids.contains(&id)) {
            let detail = format!(
                "no disk, CD-ROM drive or NIC has the id {}",
                quoted(id.as_str())
            );
            problems.add(at, ProblemCode::UnknownValue, detail);
        }
        checked.push(id);
    }
    Some(checked)
}

fn command_line(text: &str) -> Result<String, ValueError> {
    if text.len() > MAX_COMMAND_LINE {
        return Err(ValueError::out_of_range(format!(
            "the command line has {} bytes; the kernel takes {MAX_COMMAND_LINE}",
            text.len()
        )));
    }
    if text.contains(char::is_control) {
        return Err(ValueError::malformed(
            "the command line must not contain control characters such as new lines",
        ));
    }
    Ok(text.to_owned())
}
