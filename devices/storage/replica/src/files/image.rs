//! The image of a layer: a sparse file, opened around the page cache where the file system lets us, else so that a write is durable when it is
//! answered, for a guest's flush never comes here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::directory::Directory;
use super::extents::{Range, extents};
use super::memory::Aligned;
use crate::error::{Error, Result};

/// Bytes of what a layer has or has not.
pub const SECTOR: u64 = 4096;

/// The magic number of qcow2 images.
const QCOW: &[u8] = b"QFI\xfb";

/// An open image.
#[derive(Debug)]
pub struct Image {
    file: Arc<File>,
    name: String,
    /// Bytes. Grown only while nobody uses the image.
    size: u64,
}

impl Image {
    /// Opens a layer of a replica, for writing too unless `read_only`.
    ///
    /// # Errors
    /// When it is not there, or not a regular file.
    pub fn open(directory: &Directory, name: &str, read_only: bool) -> Result<Self> {
        let access = match read_only {
            true => OFlags::RDONLY,
            false => OFlags::RDWR,
        };
        let file = match directory.open_file(name, access | OFlags::DIRECT) {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                directory.open_file(name, access | OFlags::DSYNC)?
            }
            other => other?,
        };
        Self::new(file, name, &directory.path_of(name))
    }

    /// Makes an image that is one hole.
    ///
    /// # Errors
    /// When there is a file of this name.
    pub fn create(directory: &Directory, name: &str, size: u64) -> Result<Self> {
        let path = directory.path_of(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = directory.open_file(name, flags)?;
        file.set_len(size)
            .and_then(|()| file.sync_all())
            .map_err(|error| Error::io("make", &path, error))?;
        Self::open(directory, name, false)
    }

    /// Opens a raw image at the bottom, which is only read.
    ///
    /// # Errors
    /// When it is of another format, or cannot be opened.
    pub fn open_backing(path: &Path) -> Result<Self> {
        let fail = |error: Errno| Error::io("open the backing file", path, error);
        let open = |flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        let file = match open(OFlags::RDONLY | OFlags::DIRECT) {
            Err(Errno::INVAL) => open(OFlags::RDONLY).map_err(fail)?,
            other => other.map_err(fail)?,
        };
        let image = Self::new(file.into(), &path.to_string_lossy(), path)?;
        let mut first = Aligned::new(4096);
        image
            .read_at(first.bytes_mut(), 0)
            .map_err(|error| Error::io("read the backing file", path, error))?;
        if first.bytes().starts_with(QCOW) {
            let problem = "is a qcow2 image, and a backing file must be a raw one; convert it with qemu-img convert -O raw";
            return Err(Error::broken(path, problem));
        }
        if image.size % 512 != 0 {
            return Err(Error::broken(
                path,
                format!("has {} bytes, which is no multiple of 512", image.size),
            ));
        }
        Ok(image)
    }

    fn new(file: File, name: &str, path: &Path) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("look at", path, error))?;
        if !metadata.is_file() {
            return Err(Error::broken(path, "is not a regular file"));
        }
        Ok(Self {
            size: metadata.len(),
            file: Arc::new(file),
            name: name.to_owned(),
        })
    }

    /// The file's name; a backing file's path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same image under another name.
    #[must_use]
    pub fn renamed(&self, name: &str) -> Self {
        Self {
            file: Arc::clone(&self.file),
            name: name.to_owned(),
            size: self.size,
        }
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor, for rings.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The ranges that hold data.
    ///
    /// # Errors
    /// When the file system cannot tell.
    pub fn data(&self, start: u64, end: u64) -> io::Result<Vec<Range>> {
        extents(&self.file, start, end, false)
    }

    /// Grows it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn grow(&mut self, size: u64) -> io::Result<()> {
        if size > self.size {
            self.file.set_len(size)?;
            self.size = size;
        }
        Ok(())
    }

    /// Gives space back. Returns how many bytes took space in the range.
    ///
    /// # Errors
    /// When the file system cannot.
    pub fn punch(&self, start: u64, end: u64) -> io::Result<u64> {
        let end = end.min(self.size);
        if start >= end {
            return Ok(0);
        }
        let taken = extents(&self.file, start, end, true)?;
        if taken.is_empty() {
            return Ok(0);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, start, end - start)?;
        Ok(taken.iter().map(|range| range.end - range.start).sum())
    }

    /// Reads from `offset`; what is beyond the end is zeros. The buffer is aligned as O_DIRECT asks for.
    ///
    /// # Errors
    /// What the host says.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if done % 512 != 0 {
                break;
            }
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// Writes at `offset`. The buffer is aligned as O_DIRECT asks for.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buffer, offset)
    }

    /// All of it is on stable storage afterwards.
    ///
    /// # Errors
    /// What the host says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Bytes that it takes on the host.
    ///
    /// # Errors
    /// What the host says.
    pub fn space(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// Whether the file system tells sectors with data from those without, by a file without a name.
///
/// # Errors
/// When it does not, which is said with what to do about it.
pub fn probe(directory: &Directory) -> Result<()> {
    let path = directory.path();
    let fail = |error| Error::io("try a file in", path, error);
    let file = tempfile::tempfile_in(path).map_err(fail)?;
    let place = 17 * SECTOR;
    file.set_len(1 << 20).map_err(fail)?;
    file.write_all_at(&[1; 4096], place).map_err(fail)?;
    let only = Range {
        start: place,
        end: place + SECTOR,
    };
    match extents(&file, 0, 1 << 20, true) {
        Ok(found) if found == [only] => Ok(()),
        Ok(_) => Err(Error::broken(
            path,
            "is on a file system that allocates more than 4096 bytes at once; use ext4 or XFS with blocks of 4096",
        )),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::broken(
            path,
            "is on a file system that cannot tell data from holes (FIEMAP); use ext4 or XFS",
        )),
        Err(error) => Err(fail(error)),
    }
}
