//! The counter of writes and unmaps, `revision.counter`: 4096 bytes, a number in decimal and then zeros.
//!
//! Whoever writes counts first, has his data written, and waits until a number that includes his is in the file; one write of the file
//! does for all who counted before it began.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::directory::Directory;
use super::memory::Aligned;
use super::names::REVISION_COUNTER;
use crate::error::{Error, Result};

/// Bytes of the file.
const BLOCK: usize = 4096;

/// An open counter.
#[derive(Debug)]
pub struct Counter {
    path: PathBuf,
    /// What was counted.
    counted: AtomicI64,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    file: File,
    block: Aligned,
    /// The number in the file.
    number: i64,
}

impl Counter {
    /// Opens the directory's counter, and makes it where there is none.
    ///
    /// # Errors
    /// When the file cannot be used, or holds no number.
    pub fn open(directory: &Directory) -> Result<Self> {
        let path = directory.path_of(REVISION_COUNTER);
        if directory.read(REVISION_COUNTER)?.is_none() {
            let mut zero = vec![0; BLOCK];
            zero[0] = b'0';
            directory.replace(&[(REVISION_COUNTER, zero)])?;
        }
        let file = match directory.open_file(REVISION_COUNTER, OFlags::RDWR | OFlags::DIRECT) {
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                directory.open_file(REVISION_COUNTER, OFlags::RDWR | OFlags::DSYNC)?
            }
            other => other?,
        };
        let mut block = Aligned::new(BLOCK);
        let bytes = file
            .read_at(block.bytes_mut(), 0)
            .map_err(|error| Error::io("read", &path, error))?;
        let text = block.bytes()[..bytes].split(|&byte| byte == 0).next();
        let number = text
            .and_then(|text| std::str::from_utf8(text).ok()?.parse().ok())
            .ok_or_else(|| Error::broken(&path, "does not begin with a number"))?;
        Ok(Self {
            path,
            counted: AtomicI64::new(number),
            written: Mutex::new(Written {
                file,
                block,
                number,
            }),
        })
    }

    /// What was counted.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Counts `more` and returns the number that must be in the file before they are answered.
    pub fn count(&self, more: i64) -> i64 {
        self.counted
            .fetch_add(more, Ordering::Relaxed)
            .wrapping_add(more)
    }

    /// Has a number in the file that is not below `number`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn persist(&self, number: i64) -> io::Result<()> {
        let mut written = self.written.lock();
        if written.number >= number {
            return Ok(());
        }
        written.write(self.get())
    }

    /// Sets the number; only while nobody counts.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, number: i64) -> Result<()> {
        let mut written = self.written.lock();
        written
            .write(number)
            .map_err(|error| Error::io("write", &self.path, error))?;
        self.counted.store(number, Ordering::Relaxed);
        Ok(())
    }
}

impl Written {
    fn write(&mut self, number: i64) -> io::Result<()> {
        let text = number.to_string();
        let bytes = self.block.bytes_mut();
        bytes[..32].fill(0);
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        self.file.write_all_at(self.block.bytes(), 0)?;
        self.number = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_across_processes() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let directory = Directory::open(place.path()).unwrap();
        let counter = Counter::open(&directory).unwrap();
        let first = counter.count(2);
        let second = counter.count(1);
        assert_eq!((first, second), (2, 3));
        // Does for both.
        counter.persist(first).unwrap();
        assert_eq!(Counter::open(&directory).unwrap().get(), 3);
        counter.set(-1).unwrap();
        let bytes = std::fs::read(place.path().join(REVISION_COUNTER)).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (BLOCK, &b"-1\0\0"[..]));
        assert_eq!(Counter::open(&directory).unwrap().get(), -1);
    }

    #[test]
    fn a_counter_without_a_number() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let directory = Directory::open(place.path()).unwrap();
        std::fs::write(place.path().join(REVISION_COUNTER), "many").unwrap();
        let error = Counter::open(&directory).unwrap_err();
        assert!(
            error.to_string().contains("does not begin with a number"),
            "{error}"
        );
    }
}
