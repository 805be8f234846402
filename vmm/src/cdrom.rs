//! A VM's CD-ROM drives as others see them, and the media that go in and out of them.
//!
//! Made with the state driver, which alone exchanges media, on request; live through resets of the machine. Media are opened on a blocking
//! thread. A drive waits for nobody, and the guest is told by its worker. Only files that can be read are taken.
//!
//! The guest decides whether the tray is locked, and when it lets go of a medium, if ever.

use std::path::Path;
use std::sync::Arc;

use paddock_api::spec::{self, PassedFd, VmSpec};
use paddock_devices::virtio::scsi::{CdromHandle, Medium};
use paddock_storage::{Direct, Disk, RawDisk, RawOptions};

use crate::Error;
use crate::machine::devices::take_passed;

pub use paddock_devices::virtio::scsi::{CdromStatus, CounterValues};

/// Bytes of a block of a CD or DVD.
const BLOCK: u32 = 2048;

/// A CD-ROM drive.
#[derive(Debug, Clone)]
pub struct Cdrom {
    spec: spec::Cdrom,
    handle: CdromHandle,
}

impl Cdrom {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.spec.id.as_str()
    }

    /// As it was described when the VM was made.
    #[must_use]
    pub fn spec(&self) -> &spec::Cdrom {
        &self.spec
    }

    /// The way to the drive.
    #[must_use]
    pub fn handle(&self) -> &CdromHandle {
        &self.handle
    }
}

/// A VM's CD-ROM drives, in the order of its spec. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cdroms(Arc<[Cdrom]>);

impl Cdroms {
    /// The drives of a VM, with empty trays.
    #[must_use]
    pub fn new(spec: &VmSpec) -> Self {
        let drives = spec.cdroms.iter().map(|cdrom| Cdrom {
            spec: cdrom.clone(),
            handle: CdromHandle::new(cdrom.id.as_str(), || ()),
        });
        Self(drives.collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Cdrom> {
        self.0.iter()
    }

    /// The drive of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Cdrom> {
        self.iter().find(|drive| drive.id() == id)
    }

    /// Takes all media out, after the guest's end. To be dropped where closing a file may block.
    #[must_use]
    pub(crate) fn empty(&self) -> Vec<Medium> {
        let media = self.iter().map(|drive| drive.handle.eject(true));
        media.filter_map(|ejected| ejected.ok().flatten()).collect()
    }
}

/// Opens a medium: a file or block device to be read only, locked against those who write, of any size. `pointer` is where its path
/// stands. May block as storage does.
///
/// # Errors
/// When it cannot be had.
pub fn open_medium(pointer: &str, path: &Path) -> Result<Medium, Error> {
    let options = RawOptions {
        read_only: true,
        // Many VMs read the same medium, which is what a page cache is for.
        direct: Direct::Off,
        block_size: Some(BLOCK),
        pad: true,
        ..RawOptions::new(path)
    };
    let open = match PassedFd::in_path(path) {
        Some(passed) => RawDisk::adopt(take_passed(pointer, passed)?, &options),
        None => RawDisk::open(&options),
    };
    let open = open.map_err(|error| Error::part(pointer, error))?;
    tracing::info!(path = %path.display(), bytes = open.size(), "medium opened");
    Ok(Medium {
        name: path.display().to_string(),
        disk: Arc::new(open),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn drives_are_those_of_the_spec_and_media_of_any_size() {
        let spec = VmSpec::from_json(
            r#"{"boot": {"kernel": "k"}, "cdroms": [{}, {"id": "tools", "path": "/a.iso"}]}"#,
        );
        let cdroms = Cdroms::new(&spec.unwrap());
        let ids: Vec<_> = cdroms.iter().map(Cdrom::id).collect();
        assert_eq!(ids, ["cdrom0", "tools"]);
        assert!(cdroms.find("cdrom1").is_none());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.iso");
        std::fs::write(&path, [1; 3000]).unwrap();
        let drive = cdroms.find("tools").unwrap();
        let medium = open_medium("/path", &path).unwrap();
        assert!(drive.handle().insert(medium, false).unwrap().is_none());
        let status = drive.handle().status();
        assert_eq!(status.medium.as_deref(), path.to_str());
        assert_eq!(status.size, Some(4096));
        assert_eq!(cdroms.empty().len(), 1);
        assert_eq!(drive.handle().status().medium, None);
    }

    #[test]
    fn what_is_no_medium_is_refused_with_its_place() {
        let error = open_medium("/cdroms/0/path", Path::new("/absent.iso")).unwrap_err();
        assert_eq!(error.pointer(), Some("/cdroms/0/path"));
        assert!(chain(&error).contains("/absent.iso"));
        assert!(open_medium("/path", Path::new("/dev")).is_err());
    }
}
