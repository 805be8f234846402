//! What keeps a qcow2 image from being used, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qcow2Problem {
    /// It is something else.
    NotQcow2,
    /// A version that there was not when this was written, or that is too old.
    Version(u32),
    /// It has something that is not supported.
    Unsupported(Feature),
    /// Its last user did not close it.
    Dirty,
    /// Its last user found it corrupt.
    Corrupt,
    /// The size of the disk, in bytes, is 0 or not a multiple of 512.
    Size(u64),
    /// It contradicts itself, or the format; says where.
    Damaged(String),
    /// It is so large that whether it is sound cannot be checked.
    TooLarge,
    /// It has a backing file, which was not named.
    BackingNotNamed {
        /// What it says, as a path from the working directory on.
        path: PathBuf,
        /// The format, where it says one.
        format: Option<String>,
    },
    /// A backing file was named that is not the one that it has.
    BackingIsOther {
        /// What it says, as a path from the working directory on.
        path: PathBuf,
    },
    /// The format that was named is not the one that it says.
    BackingFormat {
        /// What it says.
        format: String,
    },
    /// A backing file was named, and it has none.
    NoBacking,
    /// A chain of more images than can be.
    Chain,
}

/// What an image may have and is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature {
    /// Its data is encrypted.
    Encryption,
    /// Its data is in another file.
    ExternalData,
    /// Its compressed clusters are not zlib's.
    Compression,
    /// Its clusters have subclusters.
    ExtendedL2,
    /// Nobody knew of it when this was written: bits of the incompatible features.
    Unknown(u64),
}

impl fmt::Display for Qcow2Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repair = "have qemu-img check -r all look at it, and restore it from a backup if that does not help";
        match self {
            Self::NotQcow2 => f.write_str("is not a qcow2 image; is its format \"raw\"?"),
            Self::Version(version) => write!(
                f,
                "is a qcow2 image of version {version}; make one of version 3 with qemu-img convert -O qcow2"
            ),
            Self::Unsupported(feature) => feature.fmt(f),
            Self::Dirty => f.write_str(
                "was not closed by its last user, so its reference counts may be wrong; have qemu-img check -r all put them right",
            ),
            Self::Corrupt => write!(f, "is marked as corrupt; {repair}"),
            Self::Size(size) => write!(
                f,
                "is of a disk of {size} bytes, which is not a multiple of 512; give it another size with qemu-img resize"
            ),
            Self::Damaged(what) => write!(f, "is damaged ({what}); {repair}"),
            Self::TooLarge => f.write_str(
                "is too large to be checked; convert it to larger clusters with qemu-img convert -O qcow2 -o cluster_size=2M",
            ),
            Self::BackingNotNamed { path, format } => {
                let format = format.as_deref().unwrap_or("raw");
                write!(
                    f,
                    "has a backing file, which is only opened if it is named: give the disk \"backing\": {{\"path\": {path:?}, \
                     \"format\": {format:?}}}"
                )
            }
            Self::BackingIsOther { path } => write!(
                f,
                "has another backing file than the one that was named, {path:?}; name that, or tell the image where it is with \
                 qemu-img rebase -u -b"
            ),
            Self::BackingFormat { format } => write!(
                f,
                "says that the format of its backing file is {format:?}; name that, or correct the image with qemu-img rebase -u -F"
            ),
            Self::NoBacking => f.write_str("has no backing file; leave \"backing\" out"),
            Self::Chain => f.write_str("has too many backing files; merge some with qemu-img commit"),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (has, option) = match self {
            Self::Encryption => ("is encrypted", ""),
            Self::ExternalData => ("has its data in another file", ""),
            Self::Compression => (
                "has compressed clusters of another kind than zlib's",
                " -o compression_type=zlib",
            ),
            Self::ExtendedL2 => ("has subclusters", " -o extended_l2=off"),
            Self::Unknown(bits) => {
                return write!(
                    f,
                    "has features that are not known (bits {bits:#x}); make an image without them with qemu-img convert -O qcow2"
                );
            }
        };
        write!(
            f,
            "{has}, which is not supported; make an image without that with qemu-img convert -O qcow2{option}"
        )
    }
}
