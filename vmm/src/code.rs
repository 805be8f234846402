//! What of the program's code is mapped: of what runs a VM only a part of what made it.
#![expect(
    unsafe_code,
    reason = "the kernel is told what of the program to forget"
)]

use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Bytes of a page of the program's file: x86-64 has no other.
const PAGE: usize = 4096;

/// Has the host forget which pages of the code are mapped. Those that run are mapped again when they do, from the page cache, where all of them stay.
///
/// For once in a VM's life, when it has been made: reading images, specifications and firmware is most of the code, and it is not done again.
pub fn trim() {
    for range in segments() {
        let length = range.end - range.start;
        let start = range.start as *mut std::ffi::c_void;
        // SAFETY: it is a mapping of the program's file that cannot be written, so that nothing is lost: what is needed is read from the file again.
        let forgotten = unsafe { madvise(start, length, Advice::LinuxDontNeed) };
        if let Err(error) = forgotten {
            tracing::debug!(%error, "the program's code stays mapped");
        }
    }
}

/// Where the program itself has code, and nothing else: whole pages.
fn segments() -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let data = std::ptr::from_mut(&mut found).cast();
    // SAFETY: `visit` is called with `data`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), data) };
    found
}

/// Takes note of the first object, which is the program, and looks no further.
unsafe extern "C" fn visit(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library gives a valid object, and `found` is the vector that `segments` has handed over.
    let (object, found) = unsafe { (&*object, &mut *found.cast::<Vec<Range<usize>>>()) };
    // SAFETY: it has so many headers, which live as long as the object.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for header in headers {
        let (execute, write) = (header.p_flags & libc::PF_X, header.p_flags & libc::PF_W);
        if header.p_type != libc::PT_LOAD || execute == 0 || write != 0 {
            continue;
        }
        // Addresses, of which a process has as many as fit.
        #[expect(clippy::cast_possible_truncation)]
        let start = (object.dlpi_addr + header.p_vaddr) as usize;
        #[expect(clippy::cast_possible_truncation)]
        let end = start + header.p_filesz as usize;
        // Pages at the ends may be shared with other segments.
        let (start, end) = (start.next_multiple_of(PAGE), end - end % PAGE);
        if start < end {
            found.push(start..end);
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use crate::mapped;

    #[test]
    fn the_code_is_found_and_still_runs_when_it_is_forgotten() {
        let here = super::trim as fn() as usize;
        let segments = super::segments();
        assert!(
            segments.iter().any(|segment| segment.contains(&here)),
            "{segments:?}"
        );
        super::trim();
        assert_eq!(super::segments(), segments);
    }

    #[test]
    fn code_that_does_not_run_is_not_mapped_any_more() {
        let segments = super::segments();
        let mapped = || segments.iter().map(mapped::count).sum::<usize>();
        let pages: usize = segments
            .iter()
            .map(|range| range.len() / mapped::PAGE)
            .sum();
        assert!(pages > 100, "{segments:?}");
        for address in segments
            .iter()
            .flat_map(|range| range.clone().step_by(mapped::PAGE))
        {
            // SAFETY: it is code of the program, which may be read.
            let byte = unsafe { std::ptr::read_volatile(address as *const u8) };
            std::hint::black_box(byte);
        }
        let before = mapped();
        super::trim();
        let after = mapped();
        // Other tests run meanwhile, and the kernel maps the neighbours of what they need.
        assert!(
            before > pages / 2 && after < before / 2,
            "of {pages} pages {before} were mapped, and then {after}"
        );
    }
}
