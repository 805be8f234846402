//! The exit status: what a script learns from the end of `paddock run`.

use std::process::ExitCode;

/// How a command ended. The numbers are part of the interface; each command's `--help` lists its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest powered off, or the command did what it should.
    Success = 0,
    /// Something is missing on the host or cannot be opened. From the doctor: no VM can run here.
    Error = 1,
    /// The command line or the VM spec is wrong.
    Usage = 2,
    /// The guest crashed.
    GuestCrash = 3,
    /// The guest asked for a reset, and that is the end.
    GuestReset = 4,
    /// The VM was stopped from outside.
    Stopped = 5,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        // The discriminants are u8.
        Self::from(status as u8)
    }
}
