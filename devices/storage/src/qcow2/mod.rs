//! qcow2 images, through the `imago` crate.
//!
//! An image is only taken for one when the user says so: its format is never guessed from what is in it, for that the guest writes. What
//! its header says of other files opens none of them: a backing file is one that the user named, too.
//!
//! Each queue has threads (`crate::threads`), for imago blocks. Its writers may run beside each other, with two exceptions that its
//! types express: who gives clusters back or resizes needs the image alone (`image`). What imago trusts without looking is looked at
//! before: the `header`, and before anything is written all tables (`check`).

mod check;
pub mod header;
mod image;
mod open;
pub mod problem;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use self::image::Image;
use crate::threads::ThreadQueue;
use crate::{Capabilities, Direct, Disk, DiskQueue, OpenError, ResizeError};

/// Which image, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// The file or block device.
    pub path: PathBuf,
    /// Refuse writes, and share the image with other readers.
    pub read_only: bool,
    /// Page cache or not, for the backing files, too.
    pub direct: Direct,
    /// The image that it is an overlay of.
    pub backing: Option<Backing>,
}

/// An image that others are overlays of. It is only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file or block device.
    pub path: PathBuf,
    /// What it is.
    pub format: BackingFormat,
}

/// What a backing file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingFormat {
    /// The disk, byte for byte.
    Raw,
    /// Again qcow2, perhaps with a backing file of its own.
    Qcow2(Option<Box<Backing>>),
}

impl Qcow2Options {
    /// An image without a backing file, to be read and written.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            direct: Direct::Auto,
            backing: None,
        }
    }
}

/// A qcow2 image, open and locked, with all that it is an overlay of.
#[derive(Debug)]
pub struct Qcow2Disk {
    image: Arc<Image>,
}

impl Qcow2Disk {
    /// Opens, locks and checks an image and its backing files. An image that is to be written has all its tables read, which takes a
    /// while where it is large.
    ///
    /// # Errors
    /// Says which image, what is wrong with it, and what to do.
    pub fn open(options: &Qcow2Options) -> Result<Self, OpenError> {
        open::open(options).map(Self::new)
    }

    /// Takes an image that somebody else opened, for reading and writing unless it is to be read only: this very descriptor is used,
    /// and `options.path` is only what to call it.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and when the descriptor is not open for what is wanted.
    pub fn adopt(file: OwnedFd, options: &Qcow2Options) -> Result<Self, OpenError> {
        open::adopt(file, options).map(Self::new)
    }

    fn new(image: Image) -> Self {
        Self {
            image: Arc::new(image),
        }
    }

    /// Whether requests go around the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.image.is_direct()
    }
}

impl Disk for Qcow2Disk {
    fn capabilities(&self) -> Capabilities {
        self.image.capabilities()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.image.resize(size)
    }

    fn repeats_flush(&self) -> bool {
        self.is_direct()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let image = Arc::clone(&self.image);
        Ok(Box::new(ThreadQueue::new(image, depth)?))
    }
}

#[cfg(test)]
mod tests;
