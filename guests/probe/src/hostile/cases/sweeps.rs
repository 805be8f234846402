//! Every port and every address where devices could be, read and, where that does nothing by design, written.
//!
//! Not written: what resets or powers off (0xCF9, 0x92, 0x64, the ACPI power-management block), what the guest's own kernel lives
//! by (interrupt controllers, timers, the clock's time of day, its serial port), and fw_cfg's ports, which write to RAM. A sweep ends with its time even where
//! not every place was visited: the order is a walk that spreads over all of them.

use super::super::{Attack, Case, Expect, Rig};
use super::{ALL, Noise, ONCE, WIDTHS, check, physical, ports, storm};
use std::ops::RangeInclusive;

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("ports-read", ONCE, Serves, ports_read),
    Case::new("ports-written", ONCE, Serves, ports_written),
    Case::new("known-ports-with-odd-widths", ONCE, Serves, known_ports),
    Case::new("cmos-registers", ONCE, Serves, cmos),
    Case::new("post-codes", ONCE, Serves, post_codes),
    Case::new("configuration-of-every-function", ONCE, Serves, functions),
    Case::new("ecam-read", ONCE, Serves, |rig| {
        physical_sweep(rig, &[(0xe000_0000, 0x1000_0000)])
    }),
    Case::new("holes-below-4-gib-read", ONCE, Serves, |rig| {
        physical_sweep(
            rig,
            &[
                (0xc000_0000, 0x2000_0000),
                (0xf000_0000, 0x0ec0_0000),
                (0xff00_0000, 0x0100_0000),
            ],
        )
    }),
    Case::new("holes-below-4-gib-written", ONCE, Serves, holes_written),
    Case::new("addresses-high-up-read", ONCE, Serves, |rig| {
        let end = rig.home & !0xff_ffff;
        physical_sweep(
            rig,
            &[
                (end - 0x100_0000, 0x100_0000),
                (end + 0x400_0000, 0x100_0000),
            ],
        )
    }),
    Case::new("bar-read", ALL, Serves, bar_read),
    Case::new("bar-written", ALL, Expect::Open, bar_written),
];

/// Ports that are left alone by writes; see the module's text.
const NEVER_WRITTEN: &[RangeInclusive<u16>] = &[
    0x20..=0x21,
    0x40..=0x43,
    0x60..=0x64,
    0x70..=0x71,
    0x92..=0x92,
    0xa0..=0xa1,
    0x3f8..=0x3ff,
    0x4d0..=0x4d1,
    0x510..=0x51b,
    0x600..=0x67f,
    0xb000..=0xb07f,
    0xcf8..=0xcff,
];

/// Whether `width` bytes may be written at `port`.
fn may_be_written(port: u16, width: usize) -> bool {
    let last = u32::from(port) + u32::try_from(width).unwrap_or(4) - 1;
    last <= 0xffff
        && NEVER_WRITTEN
            .iter()
            .all(|range| last < u32::from(*range.start()) || *range.end() < port)
}

/// The `step`th place of a walk that visits each of 65536 places once.
fn walk(step: u64) -> u16 {
    u16::try_from(step.wrapping_mul(0x9e35) & 0xffff).unwrap_or(0)
}

fn ports_read(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    let visited = storm(rig.machine, |step| {
        let width = 1 << ((step >> 16) % 3);
        let port = walk(step);
        if u32::from(port) + width <= 0x1_0000 {
            let _ = ports.read(port, usize::try_from(width).unwrap_or(1));
        }
        Ok(())
    })?;
    check(visited > 100, || format!("only {visited} ports in a storm"))
}

fn ports_written(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    let mut noise = Noise(7);
    storm(rig.machine, |step| {
        let width = 1 << noise.below(3);
        let port = walk(step);
        if may_be_written(port, width) {
            let value = noise.next() & 0xffff_ffff;
            ports.write(port, width, super::super::rig::low(value));
        }
        Ok(())
    })?;
    Ok(())
}

/// The devices there are, read across their ends.
fn known_ports(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    for range in [
        0x20..=0x23,
        0x40..=0x45,
        0x5e..=0x66,
        0x6e..=0x73,
        0x7e..=0x82,
        0x90..=0x94,
        0x3f4..=0x402,
        0x4ce..=0x4d3,
        0x5fe..=0x684,
        0xcf4..=0xd02_u16,
    ] {
        for port in range {
            for width in [1, 2, 4] {
                let _ = ports.read(port, width);
            }
        }
    }
    Ok(())
}

/// The bytes behind the clock, which nothing keeps anything in; and the index beyond them.
fn cmos(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    for index in 0..=0xff {
        ports.write(0x70, 1, index);
        let _ = ports.read(0x71, 1);
        let _ = ports.read(0x70, 2);
        if index & 0x7f >= 0x40 {
            ports.write(0x71, 1, 0xff);
        }
    }
    ports.write(0x70, 1, 0x0d);
    Ok(())
}

fn post_codes(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    storm(rig.machine, |step| {
        let code = u32::try_from(step & 0xff).unwrap_or(0);
        ports.write(0x80, if step % 3 == 0 { 4 } else { 1 }, code);
        Ok(())
    })?;
    Ok(())
}

/// The first registers of every function of bus 0 and of some of the others, by the ports.
fn functions(rig: &mut Rig<'_>) -> Attack {
    let ports = ports(rig)?;
    storm(rig.machine, |step| {
        let place = u32::from(walk(step));
        let register = super::super::rig::low(step % 64) << 2;
        ports.write(0xcf8, 4, 0x8000_0000 | place << 8 | register);
        let _ = ports.read(0xcfc, 4);
        Ok(())
    })?;
    Ok(())
}

/// Reads in these ranges (start, length) of addresses.
fn physical_sweep(rig: &mut Rig<'_>, ranges: &[(u64, u64)]) -> Attack {
    let physical = physical(rig)?;
    let mut noise = Noise(8);
    let mut seen = 0_u64;
    storm(rig.machine, |step| {
        let index = usize::try_from(step).unwrap_or(0) % ranges.len();
        let (start, length) = ranges[index];
        let page = start + (noise.below(length) & !0xfff);
        for _ in 0..8 {
            let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
            let at = page + noise.below(0x1000 - 8);
            seen += u64::from(physical.read(at, width).is_some());
        }
        Ok(())
    })?;
    check(seen > 0, || "no page of them can be looked at".to_owned())
}

/// Where nothing is: behind the BAR window, and between ECAM and the interrupt controllers.
fn holes_written(rig: &mut Rig<'_>) -> Attack {
    let physical = physical(rig)?;
    let mut noise = Noise(9);
    let mut seen = 0_u64;
    storm(rig.machine, |_| {
        let start =
            [0xd000_0000, 0xf000_0000, 0xf800_0000][usize::try_from(noise.below(3)).unwrap_or(0)];
        let page = start + (noise.below(0x400_0000) & !0xfff);
        for _ in 0..8 {
            let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
            let at = page + noise.below(0x1000 - 8);
            seen += u64::from(physical.write(at, width, noise.next()));
        }
        Ok(())
    })?;
    check(seen > 0, || "no page of them can be written".to_owned())
}

fn bar_read(rig: &mut Rig<'_>) -> Attack {
    let length = rig.driver.function.bar_length();
    let mut noise = Noise(10);
    storm(rig.machine, |_| {
        let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
        let at = noise.below(length - 8);
        let _ = rig.driver.function.read_bar(at, width);
        Ok(())
    })?;
    Ok(())
}

/// Everything in the BAR but the places of rings and, as MSI-X is off, its table.
fn bar_written(rig: &mut Rig<'_>) -> Attack {
    let length = rig.driver.function.bar_length();
    let places = rig.driver.layout.common + 0x18..rig.driver.layout.common + 0x40;
    let mut noise = Noise(11);
    storm(rig.machine, |_| {
        let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
        let at = noise.below(length - 8);
        if !places.contains(&at) {
            rig.driver.function.write_bar(at, width, noise.next());
        }
        Ok(())
    })?;
    // Masked again and empty.
    let layout = rig.driver.layout;
    for vector in 0..u64::from(layout.vectors) {
        for (at, value) in [(12, 1), (0, 0), (4, 0), (8, 0)] {
            let entry = layout.table + vector * 16 + at;
            rig.driver.function.write_bar(entry, 4, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nothing_that_resets_or_powers_off_or_writes_to_ram_is_written() {
        for port in [0x64, 0x92, 0xcf9, 0x604, 0x600, 0x67f, 0x510, 0x518] {
            for width in [1, 2, 4] {
                assert!(!may_be_written(port, width), "{port:#x}");
            }
        }
        // Not even from before.
        assert!(!may_be_written(0xcf7, 4));
        assert!(!may_be_written(0x91, 2));
        assert!(!may_be_written(0x5ff, 2));
        assert!(!may_be_written(0xffff, 2));
        assert!(may_be_written(0x80, 4) && may_be_written(0x93, 1) && may_be_written(0xffff, 1));
    }

    #[test]
    fn the_walk_visits_every_port() {
        let visited: BTreeSet<u16> = (0..0x1_0000).map(walk).collect();
        assert_eq!(visited.len(), 0x1_0000);
    }
}
