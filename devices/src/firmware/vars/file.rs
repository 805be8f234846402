//! The file of a variable store: found, locked, checked, made from its template, replaced as a whole.
//!
//! All names are looked up in the directory as it was opened, so that moving it does not part the old file from the new. The file and the
//! one that is to replace it are each locked (`flock`) before they are used, and it is checked after locking that they still have
//! their names: whoever waited for the old one of them does not get it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

use super::{VarsError, VarsErrorKind};
use crate::firmware::volume::{self, NotVariables};

/// How long a file that is in use may take to become free: a process that was killed is gone soon.
const BUSY_DEADLINE: Duration = Duration::from_millis(500);
const BUSY_POLL: Duration = Duration::from_millis(20);

/// What is opened.
#[derive(Debug, Clone, Copy)]
pub struct VarsOptions<'a> {
    /// The VM's own file.
    pub path: &'a Path,
    /// The size of the firmware's flash for variables, in bytes.
    pub size: usize,
    /// What the file is made from if it is not there.
    pub template: Option<&'a [u8]>,
}

/// An open store, locked.
#[derive(Debug)]
pub(super) struct VarsFile {
    path: PathBuf,
    directory: File,
    name: OsString,
    file: File,
}

impl VarsFile {
    /// Opens the file or makes it, and gives its contents.
    pub(super) fn open(options: &VarsOptions<'_>) -> Result<(Self, Vec<u8>), VarsError> {
        let place = Place::find(options.path)?;
        let start = Instant::now();
        loop {
            // That it can be replaced is found out now, rather than when the guest has set its first variable.
            let opened = place.try_open(options);
            match opened.and_then(|opened| place.new_file().map(|_unused| opened)) {
                Err(VarsError {
                    kind: VarsErrorKind::InUse,
                    ..
                }) if start.elapsed() < BUSY_DEADLINE => std::thread::sleep(BUSY_POLL),
                Err(error) => return Err(error),
                Ok((file, image)) => {
                    let Place {
                        path,
                        directory,
                        name,
                    } = place;
                    let this = Self {
                        path,
                        directory,
                        name,
                        file,
                    };
                    return Ok((this, image));
                }
            }
        }
    }

    /// Puts a file with these contents in the place of the present one, if they are variables. After an error the old one is still
    /// there, or the new one that may not have reached the disk.
    pub(super) fn replace(&mut self, image: &[u8]) -> Result<(), VarsError> {
        volume::check_variables(image)
            .map_err(|error| VarsError::new(&self.path, VarsErrorKind::Erased(error)))?;
        let failed = |error: io::Error| VarsError::because(&self.path, VarsErrorKind::Write, error);
        let mut new = NewFile::make(&self.directory, &self.name).map_err(failed)?;
        new.inherit(&self.file).map_err(failed)?;
        self.file = new.publish(image).map_err(failed)?;
        sync_names(&self.directory).map_err(failed)
    }
}

/// Brings the names in a directory to disk. Some file systems know no such thing.
fn sync_names(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(()),
    }
}

/// Where a store lies, or is to.
struct Place {
    /// For errors: as the user wrote it.
    path: PathBuf,
    directory: File,
    name: OsString,
}

impl Place {
    fn find(path: &Path) -> Result<Self, VarsError> {
        let error = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    VarsErrorKind::NoDirectory
                }
                _ => kind_of(&error),
            };
            VarsError::because(path, kind, error)
        };
        // A link is followed to the file that it stands for, which is then the one replaced.
        let target = match fs::canonicalize(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
                path.to_path_buf()
            }
            other => other.map_err(error)?,
        };
        let name = target.file_name().map(OsStr::to_os_string);
        let name = name.ok_or_else(|| VarsError::new(path, VarsErrorKind::NotAFile))?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(parent, flags, Mode::empty()).map_err(|e| error(e.into()))?;
        Ok(Self {
            path: path.to_path_buf(),
            directory: directory.into(),
            name,
        })
    }

    fn fail<T>(&self, kind: VarsErrorKind) -> Result<T, VarsError> {
        Err(VarsError::new(&self.path, kind))
    }

    fn io_error(&self, error: impl Into<io::Error>) -> VarsError {
        let error = error.into();
        VarsError::because(&self.path, kind_of(&error), error)
    }

    fn try_open(&self, options: &VarsOptions<'_>) -> Result<(File, Vec<u8>), VarsError> {
        // Looked at before it is opened: to open a pipe would wait, and a device may do something.
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.create(options),
            Err(error) => return Err(self.io_error(error)),
            Ok(stat) if !is_file(stat.st_mode) => return self.fail(VarsErrorKind::NotAFile),
            Ok(_) => {}
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty());
        let mut file = File::from(file.map_err(|e| self.io_error(e))?);
        if !lock(&file).map_err(|e| self.lock_error(e))?
            || !has_name(&file, &self.directory, &self.name).map_err(|e| self.io_error(e))?
        {
            return self.fail(VarsErrorKind::InUse);
        }
        if is_mount(&self.directory, &self.name) {
            return self.fail(VarsErrorKind::CannotReplace);
        }
        let metadata = file.metadata().map_err(|e| self.io_error(e))?;
        if !metadata.is_file() {
            return self.fail(VarsErrorKind::NotAFile);
        }
        if metadata.len() != options.size as u64 {
            return self.refuse_size(&file, options.size, metadata.len());
        }
        let mut image = vec![0; options.size];
        file.read_exact(&mut image).map_err(|e| self.io_error(e))?;
        match volume::check_variables(&image) {
            Ok(()) => Ok((file, image)),
            Err(error) => self.fail(VarsErrorKind::Content(error)),
        }
    }

    /// What to say of a file of the wrong size: a store of another size, or none at all.
    fn refuse_size<T>(&self, file: &File, wanted: usize, size: u64) -> Result<T, VarsError> {
        let mut head = Vec::new();
        file.take(4096)
            .read_to_end(&mut head)
            .map_err(|e| self.io_error(e))?;
        match volume::check_variables(&head) {
            Err(error @ (NotVariables::NoVolume(_) | NotVariables::OtherVolume)) => {
                self.fail(VarsErrorKind::Content(error))
            }
            _ => self.fail(VarsErrorKind::Size { size, wanted }),
        }
    }

    fn create(&self, options: &VarsOptions<'_>) -> Result<(File, Vec<u8>), VarsError> {
        let Some(template) = options.template else {
            return self.fail(VarsErrorKind::Missing);
        };
        if let Err(error) = volume::check_variables(template) {
            return self.fail(VarsErrorKind::Template(error));
        }
        if template.len() != options.size {
            return self.fail(VarsErrorKind::Template(NotVariables::Length {
                size: template.len(),
                length: options.size as u64,
            }));
        }
        let new = self.new_file()?;
        // Whoever else made it meanwhile had the lock on the new file, and has it still.
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            _ => return self.fail(VarsErrorKind::InUse),
        }
        let failed = |error| VarsError::because(&self.path, VarsErrorKind::Write, error);
        let file = new.publish(template).map_err(failed)?;
        sync_names(&self.directory).map_err(failed)?;
        Ok((file, template.to_vec()))
    }

    fn new_file(&self) -> Result<NewFile<'_>, VarsError> {
        NewFile::make(&self.directory, &self.name).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::WouldBlock => VarsErrorKind::InUse,
                io::ErrorKind::ReadOnlyFilesystem => VarsErrorKind::ReadOnlyHost,
                _ => VarsErrorKind::CannotReplace,
            };
            VarsError::because(&self.path, kind, error)
        })
    }

    fn lock_error(&self, error: Errno) -> VarsError {
        VarsError::because(&self.path, VarsErrorKind::NoLocks, error)
    }
}

fn kind_of(error: &io::Error) -> VarsErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => VarsErrorKind::Missing,
        io::ErrorKind::PermissionDenied => VarsErrorKind::Permission,
        io::ErrorKind::ReadOnlyFilesystem => VarsErrorKind::ReadOnlyHost,
        io::ErrorKind::IsADirectory => VarsErrorKind::NotAFile,
        _ => VarsErrorKind::Io,
    }
}

fn is_file(mode: u32) -> bool {
    rustix::fs::FileType::from_raw_mode(mode).is_file()
}

/// Whether a file is mounted at `name`: the kernel then lets nobody rename another over it. (Before Linux 5.8 it does not say; the first
/// write tells.)
fn is_mount(directory: &File, name: &OsStr) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)
        .is_ok_and(|statx| statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Locks a file for one owner. `false`: somebody else has it.
fn lock(file: &File) -> Result<bool, Errno> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `name` still stands for `file`.
fn has_name(file: &File, directory: &File, name: &OsStr) -> io::Result<bool> {
    let own = file.metadata()?;
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok((own.dev(), own.ino()) == (stat.st_dev, stat.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file that is to replace another: locked, empty, and gone when it is dropped.
struct NewFile<'a> {
    directory: &'a File,
    name: &'a OsStr,
    /// Its own name for now.
    temporary: OsString,
    /// Gone when it was published.
    file: Option<File>,
}

impl<'a> NewFile<'a> {
    /// What is to become `name`. [`io::ErrorKind::WouldBlock`]: somebody else is about to.
    fn make(directory: &'a File, name: &'a OsStr) -> io::Result<Self> {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(".new");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(directory, &temporary, flags | OFlags::NONBLOCK, mode)?;
        let file = File::from(file);
        if !lock(&file)? || !has_name(&file, directory, &temporary)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // One is left over when its maker was killed.
        file.set_len(0)?;
        Ok(Self {
            directory,
            name,
            temporary,
            file: Some(file),
        })
    }

    /// Gives it the mode and the owner of the one it replaces, as far as this process may.
    fn inherit(&mut self, old: &File) -> io::Result<()> {
        let (Some(file), old) = (&self.file, old.metadata()?) else {
            return Ok(());
        };
        // First: it is this process's file still.
        file.set_permissions(old.permissions())?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            let (owner, group) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
            let both = rustix::fs::fchown(file, Some(owner), Some(group));
            // The group alone may be possible. If not, it is readable to its user, which is this one, and no variable is lost for that.
            if both.is_err() {
                let _ = rustix::fs::fchown(file, None, Some(group));
            }
        }
        Ok(())
    }

    /// Fills it, brings it to disk, and gives it the other's name.
    fn publish(mut self, image: &[u8]) -> io::Result<File> {
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.write_all(image)?;
        file.sync_all()?;
        rustix::fs::renameat(self.directory, &self.temporary, self.directory, self.name)?;
        Ok(self.file.take().ok_or(io::ErrorKind::NotFound)?)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Left behind, it is used by the next one.
            let _ = rustix::fs::unlinkat(self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_from_a_file() {
        let root = File::open("/").unwrap();
        assert!(is_mount(&root, OsStr::new("proc")));
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let directory = File::open(directory.path()).unwrap();
        for name in ["file", "missing"] {
            assert!(!is_mount(&directory, OsStr::new(name)), "{name}");
        }
    }
}
