//! A VM's CD-ROM drives as others see them, and the media that go in and out of them.
//!
//! Made with the state driver; live through resets of the machine. Media are opened on a blocking thread and exchanged on the control
//! plane's, without the driver: a drive waits for nobody, and the guest is told by its worker. Only files that can be read are taken.
//!
//! The guest decides whether the tray is locked, and when it lets go of a medium, if ever.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use paddock_api::service::Refusal;
use paddock_api::spec::{self, PassedFd, VmSpec};
use paddock_devices::virtio::scsi::{CdromHandle, Medium};
use paddock_storage::{Direct, Disk, RawDisk, RawOptions};

use crate::Error;
use crate::error::chain;
use crate::machine::devices::take_passed;

pub use paddock_devices::virtio::scsi::{CdromError, CdromStatus, CounterValues};

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

    /// Opens a medium and puts it in, in place of what is there. `still` says whether that may be done once the medium is open, which
    /// takes as long as the host does.
    ///
    /// # Errors
    /// When the medium cannot be had, `still` says no, or the guest has locked the old one in and it is not taken by `force`.
    pub async fn insert(
        &self,
        path: PathBuf,
        force: bool,
        still: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let opening = tokio::task::spawn_blocking(move || open_medium("/path", &path));
        let opened = opening.await.map_err(|_| Refusal::Ending)?;
        let medium = opened.map_err(|error| {
            let cause = error.at_pointer().unwrap_or(&error);
            Refusal::NoMedium(chain(cause))
        })?;
        still()?;
        let old = self.handle.insert(medium, force);
        close(old.map_err(locked)?);
        Ok(())
    }

    /// Takes the medium out. Whether there was one.
    ///
    /// # Errors
    /// When the guest has locked it in and it is not taken by `force`.
    pub fn eject(&self, force: bool) -> Result<bool, Refusal> {
        let old = self.handle.eject(force).map_err(locked)?;
        let any = old.is_some();
        close(old);
        Ok(any)
    }
}

fn locked(error: CdromError) -> Refusal {
    Refusal::TrayLocked(error.to_string())
}

/// Closes what was taken out, which may block.
fn close(old: Option<Medium>) {
    if let Some(old) = old {
        tokio::task::spawn_blocking(move || drop(old));
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

    #[tokio::test]
    async fn media_are_changed_as_long_as_they_may() {
        let spec = VmSpec::from_json(r#"{"boot": {"kernel": "k"}, "cdroms": [{}]}"#).unwrap();
        let cdroms = Cdroms::new(&spec);
        let drive = cdroms.find("cdrom0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, [1; 2048]).unwrap();
            path
        };
        let present = || drive.handle().status().medium.map(PathBuf::from);
        assert_eq!(drive.eject(false), Ok(false));
        for name in ["a.iso", "b.iso"] {
            let path = image(name);
            let inserted = drive.insert(path.clone(), false, || Ok(())).await;
            assert_eq!((inserted, present()), (Ok(()), Some(path)));
        }
        let absent = directory.path().join("absent.iso");
        let refused = drive.insert(absent, false, || Ok(())).await.unwrap_err();
        let Refusal::NoMedium(detail) = refused else {
            panic!("{refused:?}");
        };
        assert!(
            detail.contains("absent.iso") && !detail.contains("/path"),
            "{detail}"
        );
        let ended = drive
            .insert(image("c.iso"), true, || Err(Refusal::Ended))
            .await;
        assert_eq!(ended, Err(Refusal::Ended));
        assert_eq!(present(), Some(directory.path().join("b.iso")));
        assert_eq!((drive.eject(false), present()), (Ok(true), None));
    }

    #[test]
    fn what_is_no_medium_is_refused_with_its_place() {
        let error = open_medium("/cdroms/0/path", Path::new("/absent.iso")).unwrap_err();
        assert_eq!(error.pointer(), Some("/cdroms/0/path"));
        assert!(chain(&error).contains("/absent.iso"));
        assert!(open_medium("/path", Path::new("/dev")).is_err());
    }
}
