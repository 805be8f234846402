//! How the threads of a VM are made: their names, and a stack that costs what is used of it.

use std::thread::Builder;

/// Bytes of a thread's stack. Linux backs an anonymous mapping with a transparent huge page where it contains an aligned 2 MiB, so the
/// usual stack of 2 MiB costs all of that whenever chance aligns it; below that, it costs the pages that are used.
pub const STACK_SIZE: usize = 1 << 20;

/// What Linux keeps of a thread's name.
const NAME_MAX: usize = 15;

/// A thread with the beginning of this name.
pub fn named(name: &str) -> Builder {
    Builder::new()
        .name(name.chars().take(NAME_MAX).collect())
        .stack_size(STACK_SIZE)
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use super::named;

    /// Bytes of the mapping that a local variable of this thread lies in.
    fn own_stack() -> u64 {
        let local = 0_u8;
        let place = std::ptr::from_ref(&local).addr() as u64;
        let maps = read_to_string("/proc/self/maps").unwrap();
        let ranges = maps.lines().map(|line| {
            let range = line.split_whitespace().next().unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(start)..number(end)
        });
        let own = ranges.into_iter().find(|range| range.contains(&place));
        own.map(|range| range.end - range.start).unwrap()
    }

    #[test]
    fn a_stack_is_no_huge_page() {
        const HUGE_PAGE: u64 = 2 << 20;
        let thread = named("a name that is too long").spawn(|| {
            let name = std::thread::current().name().map(str::to_owned);
            (name, own_stack())
        });
        let (name, size) = thread.unwrap().join().unwrap();
        assert_eq!(name.as_deref(), Some("a name that is "));
        assert!(size < HUGE_PAGE, "{size:#x}");
    }
}
