//! Giving parts of guest RAM back to the host while the guest runs: what the balloon does with pages that the guest does not need, and the
//! memory device with blocks that are unplugged. And the way there: what is to be plugged in is had before the guest is told so.
//!
//! Called on the devices' worker threads with ranges that the guest chose. The mapping stays: only what is behind it goes, and
//! whatever touches it again (a vCPU, another device, the VMM) gets new pages of zeros.
//!
//! Huge pages from the pool are not reserved any more once they went back to it: if others take them, and the guest touches its memory
//! again, it ends. Who gives a VM both huge pages and a balloon must keep that many free.

#![expect(unsafe_code, reason = "madvise on the mappings of guest RAM")]

use std::io;
use std::ops::Range;

use paddock_devices::virtio::GuestRam;
use paddock_devices::virtio::balloon::Reclaim;
use paddock_devices::virtio::mem::Supply;
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{
    Address, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
};

use super::PageSize;

/// The way back to the host for guest RAM.
#[derive(Debug)]
pub struct RamReclaim {
    ram: GuestRam,
    pages: PageSize,
}

impl RamReclaim {
    /// For RAM that [`create_ram`](super::create_ram) made of such pages.
    #[must_use]
    pub fn new(ram: GuestRam, pages: PageSize) -> Self {
        Self { ram, pages }
    }

    /// Does something with the part of `range` that lies in each region, given by its offset and length there.
    fn each_part(
        &self,
        range: &Range<u64>,
        act: fn(&GuestRegionMmap, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        // Held to the end: what is in it stays mapped.
        let memory = self.ram.memory();
        for region in memory.iter() {
            let base = region.start_addr().raw_value();
            let start = range.start.max(base);
            let end = range.end.min(base + region.len());
            if start < end {
                act(region, start - base, end - start)?;
            }
        }
        Ok(())
    }
}

impl Reclaim for RamReclaim {
    fn granule(&self) -> u64 {
        self.pages.bytes()
    }

    fn reclaim(&self, range: Range<u64>) -> io::Result<()> {
        let page = self.pages.bytes();
        // A part of a huge page would be filled with zeros, at the cost of time, and nothing would be given back.
        if !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.each_part(&range, give_back)
    }
}

impl Supply for RamReclaim {
    /// Ordinary pages come as they are touched. Huge pages are taken out of their pool now: their lack would end the guest later.
    fn provide(&self, range: Range<u64>) -> io::Result<()> {
        if self.pages == PageSize::Base {
            return Ok(());
        }
        self.each_part(&range, take)
    }
}

/// `offset` and `length` lie in the region.
fn take(region: &GuestRegionMmap, offset: u64, length: u64) -> io::Result<()> {
    if let Some(file) = region.file_offset() {
        let start = file.start() + offset;
        return Ok(fallocate(
            file.file(),
            FallocateFlags::empty(),
            start,
            length,
        )?);
    }
    match advise(region, offset, length, libc::MADV_POPULATE_WRITE) {
        // Linux before 5.14 cannot be asked: they come when they are touched, if they do.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// `offset` and `length` lie in the region.
fn give_back(region: &GuestRegionMmap, offset: u64, length: u64) -> io::Result<()> {
    match region.file_offset() {
        // For everybody who maps the file.
        Some(file) => Ok(fallocate(
            file.file(),
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            file.start() + offset,
            length,
        )?),
        // Its contents become zeros.
        None => advise(region, offset, length, libc::MADV_DONTNEED),
    }
}

fn advise(region: &GuestRegionMmap, offset: u64, length: u64, advice: i32) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let inside = offset
        .checked_add(length)
        .is_some_and(|end| end <= region.size());
    if !inside {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range lies in a mapping that `region` owns, and stays mapped, readable and writable. The advice changes its contents
    // to zeros at most, which is no more than the guest could do itself at any moment: nothing in guest RAM is relied on.
    let result = unsafe { libc::madvise(start.cast(), length, advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use paddock_devices::virtio::GuestMap;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::layout::PAGE_SIZE;
    use crate::memory::{RamConfig, create_ram};

    const SIZE: u64 = 64 << 20;

    fn ram(shared: bool) -> GuestRam {
        create_ram(&RamConfig {
            size: SIZE,
            max: SIZE,
            shared,
            pages: PageSize::Base,
        })
        .unwrap()
    }

    /// How many pages of the range cost the host memory.
    fn resident(ram: &GuestRam, range: Range<u64>) -> usize {
        let memory = ram.memory();
        let region = memory.iter().next().unwrap();
        let length = usize::try_from(range.end - range.start).unwrap();
        let start = region
            .as_ptr()
            .wrapping_add(usize::try_from(range.start).unwrap());
        let mut pages = vec![0_u8; length / 4096];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(start.cast(), length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn pages_go_and_come_back_as_zeros() {
        for shared in [false, true] {
            let ram = ram(shared);
            let memory = ram.memory();
            for page in 0..SIZE / PAGE_SIZE {
                memory
                    .write_obj(page + 1, GuestAddress(page * PAGE_SIZE))
                    .unwrap();
            }
            assert_eq!(resident(&ram, 0..SIZE), 16384);
            let reclaim = RamReclaim::new(ram.clone(), PageSize::Base);
            assert_eq!(reclaim.granule(), 4096);
            let range = 0x80_3000..0x203_1000;
            reclaim.reclaim(range.clone()).unwrap();
            assert_eq!(resident(&ram, range.clone()), 0, "shared: {shared}");
            assert_eq!(
                resident(&ram, 0..SIZE),
                16384 - (0x203_1000 - 0x80_3000) / 4096
            );
            let read = |page: u64| memory.read_obj::<u64>(GuestAddress(page)).unwrap();
            for kept in [range.start - PAGE_SIZE, range.end] {
                assert_eq!(read(kept), kept / PAGE_SIZE + 1);
            }
            for gone in [range.start, range.end - PAGE_SIZE] {
                assert_eq!(read(gone), 0);
                memory.write_obj(7_u64, GuestAddress(gone)).unwrap();
                assert_eq!(read(gone), 7);
            }
        }
    }

    /// Pages that were taken from the host, also those of a file that nobody has touched yet.
    fn taken(ram: &GuestRam) -> usize {
        let memory = ram.memory();
        let region = memory.iter().next().unwrap();
        region.file_offset().map_or_else(
            || resident(ram, 0..SIZE),
            |file| {
                let sectors = file.file().metadata().unwrap().blocks();
                usize::try_from(sectors * 512 / PAGE_SIZE).unwrap()
            },
        )
    }

    #[test]
    fn large_pages_are_there_once_they_are_provided() {
        let range = 4 << 20..8 << 20;
        for shared in [false, true] {
            let ram = ram(shared);
            RamReclaim::new(ram.clone(), PageSize::Base)
                .provide(range.clone())
                .unwrap();
            assert_eq!(taken(&ram), 0, "small ones come when touched");
            // As if they were large: that the host has them is asked in the same way.
            let large = RamReclaim::new(ram.clone(), PageSize::Huge2M);
            large.provide(range.clone()).unwrap();
            assert!(taken(&ram) >= 1024, "shared: {shared}");
            large.reclaim(range.clone()).unwrap();
            assert!(taken(&ram) < 1024, "shared: {shared}");
            large.provide(SIZE..1 << 40).unwrap();
        }
    }

    #[test]
    fn what_is_not_ram_is_left_alone() {
        let ram = ram(false);
        let reclaim = RamReclaim::new(ram.clone(), PageSize::Base);
        let memory = ram.memory();
        let last = GuestAddress(SIZE - PAGE_SIZE);
        memory.write_obj(1_u64, last).unwrap();
        reclaim.reclaim(SIZE..1 << 40).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 1);
        reclaim.reclaim(last.0..1 << 40).unwrap();
        assert_eq!(memory.read_obj::<u64>(last).unwrap(), 0);
    }

    /// Pages of each of two pieces of RAM, and where they begin.
    const PIECE: u64 = 16;
    const PIECES: [u64; 2] = [0, 40 * PAGE_SIZE];

    proptest! {
        #[test]
        fn nothing_goes_but_what_is_in_the_range(
            start in prop_oneof![0..64_u64, any::<u64>()],
            length in prop_oneof![0..64_u64, any::<u64>()],
        ) {
            let bytes = usize::try_from(PIECE * PAGE_SIZE).unwrap();
            let ranges = PIECES.map(|start| (GuestAddress(start), bytes));
            let memory = GuestMap::from_ranges(&ranges).unwrap();
            let pages = || PIECES.into_iter().flat_map(|start| (start..).step_by(4096).take(16));
            for page in pages() {
                memory.write_obj(page + 1, GuestAddress(page)).unwrap();
                memory.write_obj(page + 2, GuestAddress(page + 4088)).unwrap();
            }
            let last = u64::MAX / PAGE_SIZE;
            let start = start.min(last) * PAGE_SIZE;
            let end = start.saturating_add(length.min(last) * PAGE_SIZE) / PAGE_SIZE * PAGE_SIZE;
            let ram = GuestRam::new(memory.clone());
            RamReclaim::new(ram, PageSize::Base).reclaim(start..end).unwrap();
            for page in pages() {
                let gone = start <= page && page < end;
                let found = [0, 4088].map(|at| memory.read_obj::<u64>(GuestAddress(page + at)).unwrap());
                let wanted = if gone { [0, 0] } else { [page + 1, page + 2] };
                prop_assert_eq!(found, wanted, "{:#x} of {:#x}..{:#x}", page, start, end);
            }
        }
    }

    #[test]
    fn parts_of_pages_are_refused() {
        let ram = ram(false);
        ram.memory().write_obj(1_u64, GuestAddress(0)).unwrap();
        for (pages, range) in [
            (PageSize::Base, 0..4095),
            (PageSize::Base, 1..4096),
            (PageSize::Huge2M, 0..4096),
            (PageSize::Huge2M, 4096..2 << 20),
        ] {
            let error = RamReclaim::new(ram.clone(), pages)
                .reclaim(range)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(
            ram.memory().read_obj::<u64>(GuestAddress(0)).unwrap(),
            1,
            "it is as it was"
        );
    }
}
