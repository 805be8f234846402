//! The stacks of a VM's threads. Alone in its process: libc gives a new thread the stack of one that has ended, if that is large enough.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]

use std::fs::read_to_string;

use paddock_devices::threads::named;

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
