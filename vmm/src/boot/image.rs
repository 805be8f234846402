//! A file to boot from: opened without blocking, checked to be a file, read straight into guest RAM.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::BootSource;
use super::error::{BootError, BootErrorKind, Subject};

/// A regular, non-empty file.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    path: PathBuf,
    subject: Subject,
    size: u64,
}

impl Image {
    pub(super) fn of(source: BootSource<'_>, subject: Subject) -> Result<Self, BootError> {
        match source.file {
            Some(file) => Self::from_file(file, source.path, subject),
            None => Self::open(source.path, subject),
        }
    }

    pub(super) fn open(path: &Path, subject: Subject) -> Result<Self, BootError> {
        // O_NONBLOCK: opening a pipe or a device must not hang; a regular file does not care.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| open_error(path, subject, e))?;
        Self::from_file(file, path, subject)
    }

    pub(super) fn from_file(file: File, path: &Path, subject: Subject) -> Result<Self, BootError> {
        let error = |kind, message: &str| BootError::new(kind, subject, message).with_path(path);
        let metadata = file
            .metadata()
            .map_err(|e| error(BootErrorKind::Unreadable, "cannot be examined").with_source(e))?;
        if metadata.is_dir() {
            return Err(error(
                BootErrorKind::NotAFile,
                "is a directory; name the file in it",
            ));
        }
        if !metadata.is_file() {
            return Err(error(
                BootErrorKind::NotAFile,
                "is a device, pipe or socket; a regular file is needed",
            ));
        }
        if metadata.len() == 0 {
            return Err(error(
                BootErrorKind::Empty,
                "is empty; was its download or build interrupted?",
            ));
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            subject,
            size: metadata.len(),
        })
    }

    /// Bytes in the file when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn error(&self, kind: BootErrorKind, message: impl Into<String>) -> BootError {
        BootError::new(kind, self.subject, message).with_path(&self.path)
    }

    /// Up to `length` bytes from `offset`: fewer only where the file ends.
    pub(super) fn read_up_to(&self, offset: u64, length: usize) -> Result<Vec<u8>, BootError> {
        let available = self.size.saturating_sub(offset);
        let length = usize::try_from(available).map_or(length, |available| length.min(available));
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|e| self.read_error(e))?;
        Ok(bytes)
    }

    /// Reads `length` bytes from `offset` into guest RAM at `address`. The caller has checked both ranges; a file that
    /// changes meanwhile gives an error.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        offset: u64,
        address: u64,
        length: u64,
    ) -> Result<(), BootError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|e| self.read_error(e))?;
        let length = usize::try_from(length).map_err(|_| {
            self.error(
                BootErrorKind::TooBig,
                "is larger than this host can address",
            )
        })?;
        let mut done = 0;
        while done < length {
            let at = GuestAddress(address + done as u64);
            // A network file system answers with less than was asked for; only nothing at all is the end.
            match memory.read_volatile_from(at, &mut self.file, length - done) {
                Ok(0) => return Err(self.read_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => done += count,
                Err(GuestMemoryError::IOError(e)) => return Err(self.read_error(e)),
                Err(other) => {
                    return Err(self
                        .error(
                            BootErrorKind::GuestMemory,
                            format!("cannot be placed at guest address {address:#x}"),
                        )
                        .with_source(io::Error::other(other)));
                }
            }
        }
        Ok(())
    }

    fn read_error(&self, error: io::Error) -> BootError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.error(
                BootErrorKind::Truncated,
                "became shorter while it was read; do not change it while a VM boots",
            ),
            _ => self
                .error(BootErrorKind::Unreadable, "cannot be read")
                .with_source(error),
        }
    }
}

fn open_error(path: &Path, subject: Subject, error: io::Error) -> BootError {
    let (kind, message) = match error.kind() {
        io::ErrorKind::NotFound => (
            BootErrorKind::NotFound,
            "there is no such file; check the path",
        ),
        io::ErrorKind::PermissionDenied => (
            BootErrorKind::Unreadable,
            "may not be read by this user; check owner and mode of the file and its directories",
        ),
        io::ErrorKind::NotADirectory => (
            BootErrorKind::NotFound,
            "a part of the path is not a directory; check the path",
        ),
        _ => (BootErrorKind::Unreadable, "cannot be opened"),
    };
    BootError::new(kind, subject, message)
        .with_path(path)
        .with_source(error)
}
