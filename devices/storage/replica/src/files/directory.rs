//! A replica's directory. Whatever changes in it survives a crash as a whole or not at all: files are written beside, synced, renamed, and the
//! directory is synced. Nothing is followed out of it: names are plain, and symbolic links are refused.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::names::{self, TEMPORARY};
use crate::error::{Error, Result};

/// The most bytes of a file of metadata, and the most files of a directory that are looked at.
const MOST_METADATA: u64 = 1 << 20;
const MOST_FILES: usize = 65536;

/// In tests, how many more changes of directories this thread makes before all of them fail, as if the process had been killed.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub(crate) fn after(changes: Option<u32>) {
        LEFT.set(changes);
    }

    pub(super) fn change() -> Result<(), rustix::io::Errno> {
        match LEFT.get() {
            Some(0) => Err(rustix::io::Errno::IO),
            left => {
                LEFT.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

/// A change of a directory is about to be made.
#[cfg(not(test))]
mod faults {
    pub(super) fn change() -> Result<(), rustix::io::Errno> {
        Ok(())
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Opens a directory, and makes it where there is none; not those above it.
    ///
    /// # Errors
    /// When it cannot be opened or made.
    pub fn open(path: &Path) -> Result<Self> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make the directory", path, error)),
        }
        Self::open_existing(path)
    }

    /// Opens a directory that is there.
    ///
    /// # Errors
    /// When it is not there, or cannot be opened.
    pub fn open_existing(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| Error::io("open the directory", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            fd,
        })
    }

    /// Where a file of it is.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self, name: &str) -> Result<()> {
        if names::is_file_name(name) {
            return Ok(());
        }
        let shown: String = name.chars().take(64).collect();
        Err(Error::refused(format!(
            "{shown:?} is not the name of a file of a replica"
        )))
    }

    /// Opens a file for `flags`, which must be a regular one.
    ///
    /// # Errors
    /// When the name is none, or the file cannot be opened.
    pub fn open_file(&self, name: &str, flags: OFlags) -> Result<File> {
        self.check(name)?;
        let fail = |error| Error::io("open", &self.path_of(name), error);
        if flags.contains(OFlags::CREATE) {
            faults::change().map_err(|error| fail(error.into()))?;
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(
            rustix::fs::openat(&self.fd, name, flags, mode).map_err(|error| fail(error.into()))?,
        );
        match file.metadata().map_err(fail)?.is_file() {
            true => Ok(file),
            false => Err(Error::broken(&self.path_of(name), "is not a regular file")),
        }
    }

    /// The bytes of a small file, or `None` where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, or is absurdly large.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = match self.open_file(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MOST_METADATA + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &self.path_of(name), error))?;
        if bytes.len() as u64 > MOST_METADATA {
            return Err(Error::broken(
                &self.path_of(name),
                "is too large to be metadata",
            ));
        }
        Ok(Some(bytes))
    }

    /// Writes files anew, in this order. After a crash each is as it was or as it is to be, and none is new before those that are named
    /// before it.
    ///
    /// # Errors
    /// Some may have been written nevertheless.
    pub fn replace(&self, files: &[(&str, Vec<u8>)]) -> Result<()> {
        self.prepare(files)?;
        for (name, _) in files {
            self.put(name)?;
        }
        Ok(())
    }

    /// Writes the files beside the old ones, for [`put`](Self::put).
    ///
    /// # Errors
    /// The old ones are untouched.
    pub fn prepare(&self, files: &[(&str, Vec<u8>)]) -> Result<()> {
        let mut written = Vec::new();
        if let Some((name, _)) = files
            .iter()
            .find(|(_, bytes)| bytes.len() as u64 > MOST_METADATA)
        {
            return Err(Error::refused(format!(
                "{name} would be larger than {MOST_METADATA} bytes; give the snapshot fewer labels, or shorter ones"
            )));
        }
        for (name, bytes) in files {
            let beside = format!("{name}{TEMPORARY}");
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            let mut file = self.open_file(&beside, flags)?;
            file.write_all(bytes)
                .map_err(|error| Error::io("write", &self.path_of(&beside), error))?;
            written.push((beside, file));
        }
        for (beside, file) in written {
            file.sync_all()
                .map_err(|error| Error::io("sync", &self.path_of(&beside), error))?;
        }
        Ok(())
    }

    /// Puts a file that was prepared in the place of the old one, for good.
    ///
    /// # Errors
    /// It may be there nevertheless.
    pub fn put(&self, name: &str) -> Result<()> {
        self.rename(&format!("{name}{TEMPORARY}"), name)?;
        self.sync()
    }

    /// Renames a file, over another if there is one. Durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// When it cannot be.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        faults::change()
            .and_then(|()| rustix::fs::renameat(&self.fd, from, &self.fd, to))
            .map_err(|error| Error::io("rename to", &self.path_of(to), error))
    }

    /// Gives a file a second name, in the place of whatever has that name. Durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// When it cannot be.
    pub fn link(&self, from: &str, to: &str) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        let beside = format!("{to}{TEMPORARY}");
        self.remove(&beside)?;
        faults::change()
            .and_then(|()| rustix::fs::linkat(&self.fd, from, &self.fd, &*beside, AtFlags::empty()))
            .map_err(|error| Error::io("link to", &self.path_of(to), error))?;
        self.rename(&beside, to)?;
        // To rename a name of a file over another of the same file does nothing.
        self.remove(&beside)
    }

    /// Removes a file, if it is there. Durable after [`sync`](Self::sync).
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.check(name)?;
        let removed =
            faults::change().and_then(|()| rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("remove", &self.path_of(name), error)),
        }
    }

    /// What was renamed, linked and removed is durable afterwards.
    ///
    /// # Errors
    /// When the host cannot.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd)
            .map_err(|error| Error::io("sync the directory", &self.path, error))
    }

    /// The file's data is in.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn stat(&self, name: &str) -> Result<rustix::fs::Stat> {
        self.check(name)?;
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("look at", &self.path_of(name), error))
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.stat(name).is_ok()
    }

    /// The names of all that is in it, sorted.
    ///
    /// # Errors
    /// When it cannot be read, or is absurdly full.
    pub fn names(&self) -> Result<Vec<String>> {
        let fail = |error: Errno| Error::io("list", &self.path, error);
        let mut all = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if let Ok(name) = entry.file_name().to_str() {
                if name != "." && name != ".." {
                    all.push(name.to_owned());
                }
            }
            if all.len() > MOST_FILES {
                return Err(Error::broken(
                    &self.path,
                    "has too many files to be a replica's",
                ));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Locks it as one of those who use its files, or alone. Whether that was possible; a lock that it had may be lost if not.
    #[must_use]
    pub fn lock(&self, alone: bool) -> bool {
        let operation = match alone {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        // Where there are no locks, nobody is kept out.
        !matches!(
            rustix::fs::flock(&self.fd, operation),
            Err(Errno::WOULDBLOCK)
        )
    }
}
