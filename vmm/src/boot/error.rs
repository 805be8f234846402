//! Why a guest could not be booted from the files it was given.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, stable across releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BootErrorKind {
    /// There is no such file.
    NotFound,
    /// A directory, pipe or device where a file is wanted.
    NotAFile,
    /// The file cannot be opened or read.
    Unreadable,
    /// The file has no contents.
    Empty,
    /// The file ends before what its headers promise.
    Truncated,
    /// The file is something else than a kernel.
    NotAKernel,
    /// A kernel for another CPU architecture, or a 32-bit one.
    WrongArchitecture,
    /// A kernel without an entry point this VMM can use.
    NoEntryPoint,
    /// The headers contradict themselves or the platform.
    Corrupt,
    /// It does not fit the guest's RAM.
    TooBig,
    /// The kernel command line cannot be passed.
    CommandLine,
    /// Writing to guest RAM failed.
    GuestMemory,
}

impl BootErrorKind {
    /// A machine-readable code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotFound => "boot_file_not_found",
            Self::NotAFile => "boot_file_not_a_file",
            Self::Unreadable => "boot_file_unreadable",
            Self::Empty => "boot_file_empty",
            Self::Truncated => "boot_file_truncated",
            Self::NotAKernel => "not_a_kernel",
            Self::WrongArchitecture => "kernel_wrong_architecture",
            Self::NoEntryPoint => "kernel_no_entry_point",
            Self::Corrupt => "kernel_corrupt",
            Self::TooBig => "boot_file_too_big",
            Self::CommandLine => "kernel_command_line",
            Self::GuestMemory => "boot_guest_memory",
        }
    }
}

/// What the error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The kernel file.
    Kernel,
    /// The initramfs file.
    Initramfs,
    /// The kernel command line.
    CommandLine,
    /// The structures handed to the kernel.
    BootData,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::CommandLine => "kernel command line",
            Self::BootData => "boot data",
        })
    }
}

/// Why the guest could not be booted: names the file, the cause, and what to do.
#[derive(Debug)]
pub struct BootError {
    kind: BootErrorKind,
    subject: Subject,
    path: Option<PathBuf>,
    message: String,
    source: Option<io::Error>,
}

impl BootError {
    pub(super) fn new(kind: BootErrorKind, subject: Subject, message: impl Into<String>) -> Self {
        Self {
            kind,
            subject,
            path: None,
            message: message.into(),
            source: None,
        }
    }

    pub(super) fn with_path(mut self, path: &Path) -> Self {
        self.path = Some(path.to_path_buf());
        self
    }

    pub(super) fn with_source(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }

    /// The stable kind.
    #[must_use]
    pub fn kind(&self) -> BootErrorKind {
        self.kind
    }

    /// The JSON pointer to the part of the spec that it is about, if it is about one.
    #[must_use]
    pub fn pointer(&self) -> Option<&'static str> {
        match self.subject {
            Subject::Kernel => Some("/boot/kernel"),
            Subject::Initramfs => Some("/boot/initramfs"),
            Subject::CommandLine => Some("/boot/command_line"),
            Subject::BootData => None,
        }
    }

    /// The file it is about, if it is about one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subject)?;
        if let Some(path) = &self.path {
            write!(f, " {}", path.display())?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for BootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}
