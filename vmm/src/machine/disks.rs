//! The backends of a VM's disks, opened as the spec says.
//!
//! Opening may block, as storage does, and runs on a blocking thread. What the guest does with a disk is the backend's business.

use std::sync::Arc;

use paddock_api::spec::{self, DirectIo, DiskEngine, DiskFile, DiskSource, PassedFd};
use paddock_storage::{Direct, Disk, Engine, RawDisk, RawOptions};

use super::devices::take_passed;
use crate::Error;

/// Opens what stands behind a disk. `pointer` is the disk's place in the spec.
///
/// # Errors
/// When it cannot be had.
pub(super) fn open(pointer: &str, disk: &spec::Disk) -> Result<Arc<dyn Disk>, Error> {
    match &disk.source {
        DiskSource::File(file) => open_file(pointer, disk, file),
    }
}

/// Opens a raw image or a block device.
fn open_file(pointer: &str, disk: &spec::Disk, file: &DiskFile) -> Result<Arc<dyn Disk>, Error> {
    let options = RawOptions {
        read_only: disk.read_only,
        direct: match file.direct {
            DirectIo::Auto => Direct::Auto,
            DirectIo::On => Direct::On,
            DirectIo::Off => Direct::Off,
        },
        engine: match file.engine {
            DiskEngine::Auto => Engine::Auto,
            DiskEngine::IoUring => Engine::IoUring,
            DiskEngine::Threads => Engine::Threads,
        },
        ..RawOptions::new(&file.path)
    };
    let open = match PassedFd::in_path(&file.path) {
        Some(passed) => {
            let passed = take_passed(&format!("{pointer}/path"), passed)?;
            RawDisk::adopt(passed, &options)
        }
        None => RawDisk::open(&options),
    };
    let open = open.map_err(|error| Error::part(pointer, error))?;
    tracing::info!(
        disk = disk.id.as_str(),
        path = %file.path.display(),
        bytes = open.size(),
        direct = open.is_direct(),
        engine = ?open.engine(),
        "disk opened"
    );
    Ok(Arc::new(open))
}
