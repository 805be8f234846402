//! Why a disk image could not be opened: the path, what is wrong with it, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::qcow2::problem::Qcow2Problem;

/// A disk image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("disk image {}: {kind}", path.display())]
pub struct OpenError {
    /// The image.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: OpenErrorKind,
    /// What the host said, where it said something.
    pub source: Option<io::Error>,
}

impl OpenError {
    pub(crate) fn new(path: &Path, kind: OpenErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            source: None,
        }
    }

    pub(crate) fn because(path: &Path, kind: OpenErrorKind, source: impl Into<io::Error>) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(path, kind)
        }
    }
}

/// Why a disk does not get another size.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// Its size is fixed.
    #[error("this disk cannot change its size")]
    Unsupported,
    /// It would become smaller.
    #[error(
        "the disk has {size} bytes and cannot shrink to {wanted}: the guest's data may be anywhere; make it no smaller"
    )]
    Smaller {
        /// In bytes.
        size: u64,
        /// In bytes.
        wanted: u64,
    },
    /// The size is no multiple of the block size.
    #[error("the size is not a multiple of the disk's blocks of {block} bytes")]
    Block {
        /// In bytes.
        block: u32,
    },
    /// Devices get their size from the host.
    #[error(
        "the block device has {size} bytes; grow it on the host, then have its size read again"
    )]
    Device {
        /// In bytes.
        size: u64,
    },
    /// The image is only read.
    #[error("the disk is attached read-only; its image can only be grown by another program")]
    ReadOnly,
    /// The host said no.
    #[error("the size cannot be changed")]
    Io(#[from] io::Error),
}

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// Nothing is there.
    Missing,
    /// It is a directory.
    Directory,
    /// Neither a regular file nor a block device.
    WrongKind,
    /// The host does not let us.
    Permission,
    /// The file system or device is read-only and the disk is not.
    ReadOnlyHost,
    /// Someone else has it: another VM, a mount.
    InUse {
        /// Whether it was to be written.
        writing: bool,
    },
    /// The descriptor that was passed cannot be read, or not written.
    Access {
        /// Whether it was to be written.
        writing: bool,
    },
    /// Locks do not work there, so nothing would keep a second writer out.
    NoLocks,
    /// It has no bytes.
    Empty,
    /// Its size is no multiple of the block size.
    Size {
        /// In bytes.
        size: u64,
        /// In bytes.
        block: u32,
    },
    /// The block size is not a power of two from 512 to 4096, or not the device's.
    BlockSize {
        /// The one asked for, in bytes.
        asked: u32,
        /// The device's, in bytes, or 0 for a file.
        device: u32,
    },
    /// O_DIRECT was demanded and cannot be.
    Direct,
    /// io_uring was demanded and cannot be.
    IoUring,
    /// A qcow2 image that cannot be used.
    Qcow2(Qcow2Problem),
    /// Something else; the source says what.
    Io,
}

impl fmt::Display for OpenErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist; create it, or correct the path"),
            Self::Directory => f.write_str("is a directory; name an image file in it, or a block device"),
            Self::WrongKind => f.write_str("is neither a regular file nor a block device; name one of these"),
            Self::Permission => f.write_str(
                "access denied; give this user access to it, or attach it read-only if it is only to be read",
            ),
            Self::ReadOnlyHost => f.write_str("is on a read-only file system; attach it read-only"),
            Self::InUse { writing: true } => f.write_str(
                "is in use by another process, or mounted; stop that first, or attach the disk read-only to all its users",
            ),
            Self::InUse { writing: false } => {
                f.write_str("is being written by another process; stop that first")
            }
            Self::Access { writing: true } => f.write_str(
                "the descriptor is not open for reading and writing; open it with O_RDWR, or attach the disk read-only",
            ),
            Self::Access { writing: false } => {
                f.write_str("the descriptor is not open for reading; open it with O_RDONLY")
            }
            Self::NoLocks => f.write_str(
                "cannot be locked against a second writer; move it to a file system that has locks",
            ),
            Self::Empty => f.write_str("is empty; give it a size, such as with truncate -s 10G"),
            Self::Size { size, block } => write!(
                f,
                "has {size} bytes, which is not a multiple of the block size of {block}; is it complete? truncate -s %{block} rounds it up"
            ),
            Self::BlockSize { asked, device: 0 } => {
                write!(f, "block size {asked} is not possible; use 512, 1024, 2048 or 4096")
            }
            Self::BlockSize { asked, device } => write!(
                f,
                "block size {asked} is not possible on a device with blocks of {device}; leave it out"
            ),
            Self::Direct => f.write_str(
                "does not do O_DIRECT with this block size; use direct \"auto\" or \"off\"",
            ),
            Self::IoUring => f.write_str(
                "io_uring is not available (old kernel, sysctl kernel.io_uring_disabled, or a seccomp filter); use engine \"auto\" or \"threads\"",
            ),
            Self::Qcow2(problem) => problem.fmt(f),
            Self::Io => f.write_str("cannot be opened"),
        }
    }
}
