//! Physical addresses that are not RAM, through `/dev/mem`, a page at a time.
//!
//! The kernel refuses RAM, and what a driver of its own uses unless it was booted with `iomem=relaxed`.

use super::mapping::Mapping;
use paddock_probe::hostile::machine::Physical;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

const PAGE: u64 = 4096;

/// The window.
#[derive(Debug)]
pub struct DevMem {
    file: File,
    /// The page looked at last.
    page: RefCell<Option<(u64, Mapping)>>,
}

impl DevMem {
    /// Opens it, if there is one.
    pub fn open() -> Option<Self> {
        // Synchronous: mapped without a cache.
        let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).ok()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(sync)
            .open("/dev/mem")
            .ok()?;
        Some(Self {
            file,
            page: RefCell::default(),
        })
    }

    /// Does something to the page of an address, if it may be mapped: the mapping, and the offset in it.
    fn with<T>(&self, address: u64, what: impl FnOnce(&Mapping, usize) -> T) -> Option<T> {
        let (number, offset) = (address / PAGE, usize::try_from(address % PAGE).ok()?);
        let mut page = self.page.borrow_mut();
        if page.as_ref().is_none_or(|(mapped, _)| *mapped != number) {
            *page = None;
            let length = usize::try_from(PAGE).ok()?;
            let mapping = Mapping::of_file(&self.file, number * PAGE, length).ok()?;
            *page = Some((number, mapping));
        }
        page.as_ref().map(|(_, mapping)| what(mapping, offset))
    }
}

impl Physical for DevMem {
    fn read(&self, address: u64, width: usize) -> Option<u64> {
        self.with(address, |page, offset| page.read(offset, width))
    }
    fn write(&self, address: u64, width: usize, value: u64) -> bool {
        self.with(address, |page, offset| page.write(offset, width, value))
            .is_some()
    }
}
