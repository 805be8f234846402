//! Why a variable store cannot be used or written: the path, what is wrong, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::firmware::volume::NotVariables;

/// A variable store that cannot be used or written.
#[derive(Debug, thiserror::Error)]
#[error("UEFI variable store {}: {kind}", path.display())]
pub struct VarsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: VarsErrorKind,
    /// What the host said, where it said something.
    pub source: Option<io::Error>,
}

impl VarsError {
    pub(super) fn new(path: &Path, kind: VarsErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            source: None,
        }
    }

    pub(super) fn because(path: &Path, kind: VarsErrorKind, source: impl Into<io::Error>) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(path, kind)
        }
    }
}

/// What is wrong with a variable store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VarsErrorKind {
    /// Nothing is there, and no template to make it from.
    Missing,
    /// The directory that it is to be in is not there.
    NoDirectory,
    /// A directory, device, pipe or socket.
    NotAFile,
    /// The host does not let us read and write it.
    Permission,
    /// The file system is read-only.
    ReadOnlyHost,
    /// Another process has it.
    InUse,
    /// Locks do not work there, so nothing would keep a second writer out.
    NoLocks,
    /// No file can be put in its place.
    CannotReplace,
    /// It has another size than the firmware's flash.
    Size {
        /// In bytes.
        size: u64,
        /// What the firmware needs, in bytes.
        wanted: usize,
    },
    /// It is something else.
    Content(NotVariables),
    /// What it was to be made from is no store for this firmware.
    Template(NotVariables),
    /// What is in the flash is no store any more: the guest has erased it.
    Erased(NotVariables),
    /// It is not written yet after this long.
    Slow(Duration),
    /// It cannot be written.
    Write,
    /// Something else; the source says what.
    Io,
}

impl fmt::Display for VarsErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "does not exist, and there is no template to make it from; name a template, such as /usr/share/OVMF/OVMF_VARS_4M.fd",
            ),
            Self::NoDirectory => f.write_str("its directory does not exist; create that"),
            Self::NotAFile => f.write_str("is no regular file; name one, or a path where one can be made"),
            Self::Permission => f.write_str(
                "access denied; give this user the right to read and write the file and its directory",
            ),
            Self::ReadOnlyHost => {
                f.write_str("is on a read-only file system; put it where it can be written")
            }
            Self::InUse => f.write_str("is in use by another VM; each VM needs one of its own"),
            Self::NoLocks => f.write_str(
                "cannot be locked against a second writer; move it to a file system that has locks",
            ),
            Self::CannotReplace => f.write_str(
                "no new file can be put in its place, which is how it is written; put it into a directory that this user may write, \
                 and mount that rather than the file",
            ),
            Self::Size { size, wanted } => write!(
                f,
                "has {size} bytes, this firmware needs {wanted}: it was made for another firmware, or is not all there; use the firmware it \
                 was made for, or move it away to start with a new one"
            ),
            Self::Content(error) => write!(
                f,
                "{error}; name another file, or move it away to start with a new one"
            ),
            Self::Template(error) => write!(
                f,
                "cannot be made: its template {error}; use the template that belongs to the firmware"
            ),
            Self::Erased(error) => write!(
                f,
                "is kept as it was: what the guest has left in its flash {error}; a reset has the firmware mend that, or the VM starts again with what is kept"
            ),
            Self::Slow(patience) => {
                write!(f, "is not written after {patience:?}; does the host's disk hang?")
            }
            Self::Write => f.write_str("cannot be written; is its file system full?"),
            Self::Io => f.write_str("cannot be opened"),
        }
    }
}
