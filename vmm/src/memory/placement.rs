//! Where in the process guest RAM lies. On the control thread, before there is a guest.
//!
//! KVM maps 2 MiB at once only where the process's addresses and the guest's are equal modulo 2 MiB; otherwise every 4 KiB cost the guest an
//! exit of their own, and its processors' TLBs an entry, however huge the host's pages are. Kernels before 6.7 do not see to that by themselves,
//! and later ones do not always.
//!
//! The kernel gives the highest gap that is large enough. So what would be too much at the region's end is filled up, and it is asked again. Another
//! thread may take the place meanwhile; after a few tries the region stays where it is, for it works there as well.

#![expect(unsafe_code, reason = "a mapping at a fixed place, over nothing")]

use std::io;

use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// What KVM maps at once, if it can.
pub const HUGE: usize = 2 << 20;
/// Tries before it stays where it is.
const TRIES: usize = 4;

/// Has `map` make a region whose place in the process equals the guest's `base` modulo 2 MiB.
///
/// # Errors
/// Those of `map`.
pub fn map_like(
    base: u64,
    map: impl Fn() -> Result<MmapRegion, MmapRegionError>,
) -> Result<MmapRegion, MmapRegionError> {
    let mut region = map()?;
    for _ in 0..TRIES {
        let over = excess(&region, base);
        if over == 0 || region.size() < HUGE {
            break;
        }
        let filling = (region.as_ptr() as usize + region.size()).wrapping_sub(over);
        drop(region);
        // What another thread has put there meanwhile is no obstacle either.
        let _filler = Filler::new(filling, over);
        region = map()?;
    }
    if excess(&region, base) != 0 {
        tracing::debug!(base, "guest RAM lies where KVM cannot use huge pages");
    }
    Ok(region)
}

/// How many bytes the region lies too high.
fn excess(region: &MmapRegion, base: u64) -> usize {
    // The remainder is less than what fits into 32 bits.
    let wanted = usize::try_from(base % HUGE as u64).unwrap_or_default();
    (region.as_ptr() as usize).wrapping_sub(wanted) % HUGE
}

/// Addresses that nothing else is mapped at, until it is dropped.
#[derive(Debug)]
struct Filler {
    start: *mut libc::c_void,
    length: usize,
}

impl Filler {
    fn new(start: usize, length: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let wanted = start as *mut libc::c_void;
        // SAFETY: MAP_FIXED_NOREPLACE maps over nothing that is there, and nobody may access the pages.
        let start = unsafe {
            libc::mmap(
                wanted,
                length,
                libc::PROT_NONE,
                flags | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, length })
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, which nobody has a reference into.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::FileOffset;

    use super::*;

    const SIZE: usize = 6 << 20;

    /// Of a file, which the kernel aligns to no more than a page.
    fn region() -> Result<MmapRegion, MmapRegionError> {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(SIZE as u64).unwrap();
        MmapRegion::from_file(FileOffset::new(file, 0), SIZE)
    }

    #[test]
    fn it_lies_as_the_guest_sees_it() {
        let mut kept = Vec::new();
        let mut moved = 0;
        for round in 0..40_u64 {
            // Something of an odd size, so that the next gap begins elsewhere.
            kept.push(MmapRegion::new(4096 * (1 + kept.len() * 7)).unwrap());
            let plain = region().unwrap();
            moved += usize::from(!(plain.as_ptr() as usize).is_multiple_of(HUGE));
            drop(plain);
            let base = (4 << 30) + round % 3 * 0x10_0000;
            let placed = map_like(base, region).unwrap();
            assert_eq!(placed.size(), SIZE);
            let differ = placed.as_ptr() as u64 ^ base;
            assert!(
                differ.is_multiple_of(HUGE as u64),
                "{placed:?} for {base:#x}"
            );
            kept.push(placed);
        }
        assert!(moved > 20, "the kernel does all of it by itself");
    }

    #[test]
    fn what_is_smaller_than_a_huge_page_lies_anywhere() {
        let asked = std::cell::Cell::new(0);
        let small = || {
            asked.set(asked.get() + 1);
            MmapRegion::new(4096)
        };
        map_like(0, small).unwrap();
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn what_the_host_refuses_is_an_error() {
        map_like(0, || MmapRegion::new(1 << 62)).unwrap_err();
    }
}
