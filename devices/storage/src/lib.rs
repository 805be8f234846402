//! What stands behind a disk.
//!
//! The [`Disk`] contract ([`disk`]) is all that virtio-blk knows of storage; this crate knows no virtio.
//! Offsets and lengths come from the guest: a backend answers out-of-range with an error and never panics.

pub mod buffer;
pub mod disk;
pub mod error;
mod fd;
pub mod hold;
pub mod limit;
mod link;
pub mod longhorn;
pub mod nbd;
pub mod qcow2;
pub mod raw;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod threads;

pub use buffer::Buffer;
pub use disk::{Capabilities, Completion, Disk, DiskQueue, IoError, Operation, Request};
pub use error::{OpenError, OpenErrorKind, ResizeError};
pub use hold::HoldingDisk;
pub use limit::LimitedDisk;
pub use nbd::{NbdDisk, NbdOptions, NbdUri};
pub use qcow2::{Backing, BackingFormat, Qcow2Disk, Qcow2Options};
pub use raw::probe;
pub use raw::{Direct, Engine, RawDisk, RawOptions};
