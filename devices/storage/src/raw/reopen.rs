//! Opening an image anew by its path, for a disk whose handle does not work any more.
//!
//! Runs on a thread of the disk's supervisor. What lies under the path by then may be anything.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{RawDisk, RawOptions};
use crate::hold::Opener;
use crate::{OpenError, OpenErrorKind};

/// Of a regular file, which inode it is: it keeps that where its file system is mounted anew. A device that comes back is another
/// one, whatever it is called; that its name is its own is its owner's promise.
fn identity(metadata: &Metadata) -> Option<u64> {
    metadata.is_file().then(|| metadata.ino())
}

impl RawDisk {
    /// Opens the image at the path of `options` anew, as this one was opened with them.
    ///
    /// # Errors
    /// When the host does not tell what this image is.
    pub fn opener(&self, options: &RawOptions) -> Result<Opener, OpenError> {
        let unknown = |error| OpenError::because(&options.path, OpenErrorKind::Io, error);
        let metadata = self.image.file.metadata().map_err(unknown)?;
        let before = identity(&metadata);
        let options = RawOptions {
            block_size: Some(self.image.capabilities.logical_block_size),
            ..options.clone()
        };
        Ok(Box::new(move || {
            let disk = Self::open(&options).map_err(refused)?;
            if identity(&disk.image.file.metadata()?) != before {
                let path = options.path.display();
                let what = format!("disk image {path}: another file is there now");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Ok(Arc::new(disk))
        }))
    }
}

fn refused(error: OpenError) -> io::Error {
    let kind = match error.kind {
        OpenErrorKind::InUse { .. } => io::ErrorKind::ResourceBusy,
        OpenErrorKind::Missing => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
