//! CD-ROM drives and their media.

use std::path::{Path, PathBuf};

use super::super::config::{CdromConfig, VmConfig};
use super::super::machine::Cdrom;
use super::super::pointer::JsonPointer;
use super::super::problem::{InvalidSpec, ProblemCode, Problems};
use super::super::types::{DeviceId, PassedFd};
use super::optional;
use super::passed::passed_or_path;

/// Each has a place on the PCI bus.
pub(super) const MAX_CDROMS: usize = 8;

/// Checks one drive.
pub(super) fn cdrom(
    config: &CdromConfig,
    id: Option<DeviceId>,
    at: &JsonPointer,
    problems: &mut Problems,
) -> Option<Cdrom> {
    let path = optional(
        problems,
        &at.key("path"),
        config.path.as_deref(),
        passed_or_path,
    );
    Some(Cdrom {
        id: id?,
        path: path?,
    })
}

/// What one drive reads others may read, too, but no disk may write. Of descriptors, [`passed`](super::passed) speaks.
pub(super) fn written_media(config: &VmConfig, at: &JsonPointer, problems: &mut Problems) {
    for (index, cdrom) in config.cdroms.iter().enumerate() {
        let Some(path) = cdrom.path.as_deref() else {
            continue;
        };
        let writer = config
            .disks
            .iter()
            .position(|disk| disk.read_only != Some(true) && disk.path.as_deref() == Some(path));
        if let Some(writer) = writer.filter(|_| PassedFd::in_path(path).is_none()) {
            let detail = format!("disk {writer} has the same path, and writes there");
            problems.add(at.index(index).key("path"), ProblemCode::Duplicate, detail);
        }
    }
}

/// Checks the path of a medium that is to be inserted, as `{"path": …}`.
pub(crate) fn medium_path(path: &Path) -> Result<PathBuf, InvalidSpec> {
    let mut problems = Problems::default();
    let at = JsonPointer::root().key("path");
    let checked = optional(&mut problems, &at, Some(path), passed_or_path);
    problems.finish()?;
    // Without a problem it is there.
    Ok(checked.flatten().unwrap_or_default())
}
