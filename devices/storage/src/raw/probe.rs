//! What the host offers to disks, asked in the way that opening an image asks.
//!
//! For `paddock doctor`; runs on its threads, and may block for as long as the file system does. Guests have no part in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::open::{SECTOR, lock, punches_holes, try_direct};
use super::{RawOptions, uring};
use crate::{OpenError, OpenErrorKind};

/// The size of the file that is tried with, in bytes. It is one hole.
const TRIAL_SIZE: u64 = 1 << 20;

/// What images in a directory can do.
#[derive(Debug)]
pub struct DirectoryOffer {
    /// O_DIRECT at the block size of a disk, 512 bytes: what it asks of memory addresses, in bytes.
    pub direct: io::Result<usize>,
    /// Whether an image can be locked against a second writer.
    pub lock: Lock,
    /// Whether the file system gives back what a guest discards.
    pub discard: bool,
}

/// How far locks can be trusted.
#[derive(Debug)]
pub enum Lock {
    /// A second writer is kept out.
    Works,
    /// The lock is granted to two at once.
    Useless,
    /// There are none: a disk there is refused.
    Refused(OpenError),
}

/// Whether the host lets us use what the io_uring engine needs.
///
/// # Errors
/// `Unsupported` when the kernel is too old, otherwise what the kernel said.
pub fn io_uring() -> io::Result<()> {
    uring::probe()
}

/// Tries a file without a name in `directory`; nothing is left of it.
///
/// # Errors
/// When no file can be made there.
pub fn directory(directory: &Path) -> io::Result<DirectoryOffer> {
    let file = tempfile::tempfile_in(directory)?;
    file.set_len(TRIAL_SIZE)?;
    let lock = try_lock(&file, directory);
    let discard = punches_holes(&file, TRIAL_SIZE);
    let direct = try_direct(&file, SECTOR);
    Ok(DirectoryOffer {
        direct,
        lock,
        discard,
    })
}

fn try_lock(file: &File, directory: &Path) -> Lock {
    let options = RawOptions::new(directory);
    if let Err(error) = lock(file, &options) {
        return Lock::Refused(error);
    }
    // The same file by another description, which is what a second VM would have. Not all file systems let one be had.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(second) = OpenOptions::new().read(true).write(true).open(path) else {
        return Lock::Works;
    };
    match lock(&second, &options) {
        Ok(()) => Lock::Useless,
        Err(error) if matches!(error.kind, OpenErrorKind::InUse { .. }) => Lock::Works,
        Err(error) => Lock::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RawDisk;

    #[test]
    fn says_what_opening_an_image_there_finds() {
        let place = tempfile::tempdir().unwrap();
        let offer = directory(place.path()).unwrap();
        assert_eq!(
            std::fs::read_dir(place.path()).unwrap().count(),
            0,
            "something was left"
        );
        let path = place.path().join("image");
        File::create(&path).unwrap().set_len(TRIAL_SIZE).unwrap();
        let disk = RawDisk::open(&RawOptions::new(&path)).unwrap();
        assert_eq!(offer.direct.is_ok(), disk.is_direct());
        assert_eq!(
            offer.discard,
            crate::Disk::capabilities(&disk).discard,
            "{offer:?}"
        );
        assert!(matches!(offer.lock, Lock::Works), "{:?}", offer.lock);
        let engine = if io_uring().is_ok() {
            crate::Engine::IoUring
        } else {
            crate::Engine::Threads
        };
        assert_eq!(engine, disk.engine());
    }

    #[test]
    fn a_directory_that_is_none() {
        let place = tempfile::tempdir().unwrap();
        let error = directory(&place.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
