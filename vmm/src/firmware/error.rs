//! Why there is no firmware to boot with: a stable kind, the file, what is wrong with it and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, stable across releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FirmwareErrorKind {
    /// There is no such file.
    NotFound,
    /// A directory, pipe or device where a file is wanted.
    NotAFile,
    /// The file cannot be opened or read.
    Unreadable,
    /// The file is something else than firmware, or firmware for another platform.
    NotFirmware,
    /// The file ends before what its headers promise.
    Truncated,
    /// It is larger than the flash can be.
    TooBig,
    /// It needs system management mode, which the platform has not.
    NeedsSmm,
    /// A variable store that belongs to other firmware, or none at all.
    WrongVariables,
    /// This host has no firmware that would do.
    NoneFound,
}

impl FirmwareErrorKind {
    /// A machine-readable code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotFound => "firmware_not_found",
            Self::NotAFile => "firmware_not_a_file",
            Self::Unreadable => "firmware_unreadable",
            Self::NotFirmware => "not_firmware",
            Self::Truncated => "firmware_truncated",
            Self::TooBig => "firmware_too_big",
            Self::NeedsSmm => "firmware_needs_smm",
            Self::WrongVariables => "firmware_wrong_variables",
            Self::NoneFound => "firmware_none_found",
        }
    }
}

/// Why there is no firmware to boot with.
#[derive(Debug)]
pub struct FirmwareError {
    kind: FirmwareErrorKind,
    path: Option<PathBuf>,
    message: String,
    source: Option<io::Error>,
}

impl FirmwareError {
    pub(super) fn new(kind: FirmwareErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            path: None,
            message: message.into(),
            source: None,
        }
    }

    pub(super) fn of(path: &Path, kind: FirmwareErrorKind, message: impl Into<String>) -> Self {
        Self {
            path: Some(path.to_path_buf()),
            ..Self::new(kind, message)
        }
    }

    /// What is wrong, without the path.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn with_source(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// The stable kind.
    #[must_use]
    pub fn kind(&self) -> FirmwareErrorKind {
        self.kind
    }

    /// The file it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("firmware")?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for FirmwareError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}
