//! Raw images: a regular file or a block device, byte for byte the guest's disk.
//!
//! Each queue has an engine of its own: a ring of io_uring (`uring`), or a few threads where that is forbidden
//! (`threads`). Both carry out the same `task::Task`s, so they differ in nothing but how a system call is made.
//! The file is opened with O_DIRECT where that works, and locked against a second writer for as long as anything,
//! in-flight requests included, still has it open.

mod memory;
pub(crate) mod open;
pub mod probe;
mod reopen;
mod resize;
mod task;
mod threads;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::threads::ThreadQueue;
use crate::{Capabilities, Disk, DiskQueue, OpenError, OpenErrorKind, ResizeError};

/// Whether to go around the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direct {
    /// O_DIRECT where the host does it at the disk's block size.
    #[default]
    Auto,
    /// O_DIRECT or an error.
    On,
    /// Through the page cache.
    Off,
}

/// How system calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring where the host allows it, threads otherwise.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// Threads.
    Threads,
}

/// Which image, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Refuse writes, and share the image with other readers.
    pub read_only: bool,
    /// Page cache or not.
    pub direct: Direct,
    /// io_uring or threads.
    pub engine: Engine,
    /// Logical block size in bytes that the guest sees: a power of two from 512 to 4096. Default: the device's, or 512 for
    /// a file. A file keeps the same one wherever it is moved, for the guest's partition table depends on it.
    pub block_size: Option<u32>,
    /// An image that does not end with a whole block is taken for longer, and what it lacks for zeros. Only where it is read only; it is
    /// then read through the page cache.
    pub pad: bool,
}

impl RawOptions {
    /// An image to be read and written in the best way the host offers.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            direct: Direct::Auto,
            engine: Engine::Auto,
            block_size: None,
            pad: false,
        }
    }
}

/// Opens a file or block device to read it, whatever is in it: as a disk that is only read, so that nobody writes it while it is open.
///
/// # Errors
/// Says what is wrong with it, and what to do: among others where a VM writes it. What is neither a file nor a block device is not waited for.
pub fn open_to_read(path: &Path) -> Result<File, OpenError> {
    open::open_locked(&RawOptions {
        read_only: true,
        ..RawOptions::new(path)
    })
}

/// What queues and their tasks need of an open image.
#[derive(Debug)]
struct Image {
    file: File,
    path: PathBuf,
    /// What it could do when it was opened; the size is in `size`.
    capabilities: Capabilities,
    /// In bytes. Only grows.
    size: AtomicU64,
    /// Where it ends, in bytes, if that is not a whole block and it is taken for longer. Such a one keeps its size.
    padded_from: Option<u64>,
    /// Held while the size is changed.
    resizing: Mutex<()>,
    /// What O_DIRECT asks of memory addresses in bytes; `None` through the page cache.
    direct: Option<usize>,
}

/// A raw image, open and locked.
#[derive(Debug)]
pub struct RawDisk {
    image: Arc<Image>,
    engine: Engine,
    /// Whether threads will do where io_uring gives out later: [`Engine::Auto`] was asked for.
    threads_will_do: bool,
    /// It gave out, and that was said.
    gave_out: AtomicBool,
}

impl RawDisk {
    /// Opens, locks and measures an image.
    ///
    /// # Errors
    /// Says which image, what is wrong with it, and what to do.
    pub fn open(options: &RawOptions) -> Result<Self, OpenError> {
        Self::new(open::open(options)?, options)
    }

    /// Takes an image that somebody else opened, for reading and writing unless it is to be read only: this very descriptor is used,
    /// and `options.path` is only what to call it. A block device is not claimed with O_EXCL, which its opener could have done.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and when the descriptor is not open for what is wanted.
    pub fn adopt(file: OwnedFd, options: &RawOptions) -> Result<Self, OpenError> {
        Self::new(open::adopt(file.into(), options)?, options)
    }

    fn new(image: Image, options: &RawOptions) -> Result<Self, OpenError> {
        let engine = match (options.engine, uring::probe()) {
            (Engine::Threads, _) => Engine::Threads,
            (Engine::IoUring | Engine::Auto, Ok(())) => Engine::IoUring,
            (Engine::Auto, Err(error)) => {
                tracing::info!(path = %options.path.display(), %error, "no io_uring: using threads");
                Engine::Threads
            }
            (Engine::IoUring, Err(error)) => {
                let kind = OpenErrorKind::IoUring;
                return Err(OpenError::because(&options.path, kind, error));
            }
        };
        Ok(Self {
            image: Arc::new(image),
            engine,
            threads_will_do: options.engine == Engine::Auto,
            gave_out: AtomicBool::new(false),
        })
    }

    /// Whether requests go around the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.image.direct.is_some()
    }

    /// The engine in use: never [`Engine::Auto`]. A queue for which the kernel has no ring, for want of memory that may be
    /// locked, uses threads nevertheless, unless io_uring was demanded.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Once: a guest can have its queues opened as often as it likes.
    fn say_that_io_uring_gave_out(&self, error: &io::Error) {
        if !self.gave_out.swap(true, Ordering::Relaxed) {
            let path = self.image.path.display();
            tracing::warn!(%path, %error, "no ring for a queue: using threads; is the limit on locked memory too low?");
        }
    }
}

impl Disk for RawDisk {
    fn capabilities(&self) -> Capabilities {
        self.image.capabilities()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn resize(&self, size: Option<u64>) -> Result<u64, ResizeError> {
        self.image.resize(size)
    }

    fn repeats_flush(&self) -> bool {
        self.is_direct()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        let image = Arc::clone(&self.image);
        Ok(match self.engine {
            Engine::Threads => Box::new(ThreadQueue::new(image, depth)?),
            Engine::IoUring | Engine::Auto => {
                match uring::UringQueue::new(Arc::clone(&image), depth) {
                    Ok(queue) => Box::new(queue),
                    Err(error) if self.threads_will_do => {
                        self.say_that_io_uring_gave_out(&error);
                        Box::new(ThreadQueue::new(image, depth)?)
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
