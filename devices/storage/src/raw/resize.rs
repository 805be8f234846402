//! The size of an open image: it is found out anew when the owner says so, and grows on request. It never becomes less.
//!
//! Runs on the control plane's threads and may block as storage does. Queues check each request against the size of that moment.

use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::Ordering;

use super::Image;
use crate::{Capabilities, ResizeError};

/// The largest file offset.
const MAX_SIZE: u64 = i64::MAX as u64;

impl Image {
    /// The present size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// What it can do, now.
    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            size: self.size(),
            ..self.capabilities.clone()
        }
    }

    /// Makes the image `wanted` bytes large, or takes it for as large as it has become. Returns its size.
    pub(super) fn resize(&self, wanted: Option<u64>) -> Result<u64, ResizeError> {
        let _one_at_a_time = self.resizing.lock();
        let size = self.size();
        let actual = (&self.file).seek(SeekFrom::End(0))?;
        let block = u64::from(self.capabilities.logical_block_size);
        let new = wanted.unwrap_or(actual - actual % block);
        if self.padded_from.is_some() {
            return Err(ResizeError::Unsupported);
        }
        if new < size {
            return Err(ResizeError::Smaller { size, wanted: new });
        }
        if !new.is_multiple_of(block) {
            return Err(ResizeError::Block {
                block: self.capabilities.logical_block_size,
            });
        }
        if new > actual {
            self.grow(new, actual)?;
        }
        self.size.store(new, Ordering::Release);
        Ok(new)
    }

    /// Makes a file longer. What it gains is a hole, which takes no space and reads as zeros.
    fn grow(&self, new: u64, actual: u64) -> Result<(), ResizeError> {
        if self.file.metadata()?.file_type().is_block_device() {
            return Err(ResizeError::Device { size: actual });
        }
        if self.capabilities.read_only {
            return Err(ResizeError::ReadOnly);
        }
        if new > MAX_SIZE {
            return Err(io::Error::from_raw_os_error(libc::EFBIG).into());
        }
        Ok(self.file.set_len(new)?)
    }
}
