//! The balloon and the guest's memory.

use paddock_api::balloon::{Balloon, MemoryStatistics};

use super::{Cell, Colour, Page};

/// The balloon.
pub fn balloon(page: &mut Page, balloon: &Balloon) {
    let reached = balloon.actual == balloon.target;
    let actual = if reached {
        Colour::Green
    } else {
        Colour::Yellow
    };
    let driver = if balloon.driver {
        Cell::new("yes")
    } else {
        Cell::coloured("no", Colour::Yellow)
    };
    page.properties(vec![
        ("target", vec![Cell::new(bytes(balloon.target))]),
        (
            "actual",
            vec![Cell::coloured(bytes(balloon.actual), actual)],
        ),
        ("guest has a driver", vec![driver]),
        (
            "given back, inflated",
            vec![Cell::new(bytes(balloon.inflated_bytes))],
        ),
        (
            "given back, reported free",
            vec![Cell::new(bytes(balloon.reported_bytes))],
        ),
    ]);
}

/// What the guest says of its memory; without what it does not say.
pub fn statistics(page: &mut Page, statistics: &MemoryStatistics) {
    let size = |value: Option<u64>| value.map(|v| Cell::new(bytes(v))).into_iter().collect();
    let count = |value: Option<u64>| {
        let cell = value.map(|value| Cell::new(value.to_string()));
        cell.into_iter().collect()
    };
    page.properties(vec![
        ("total", size(statistics.total)),
        ("free", size(statistics.free)),
        ("available", size(statistics.available)),
        ("disk caches", size(statistics.disk_caches)),
        ("swapped in", size(statistics.swap_in)),
        ("swapped out", size(statistics.swap_out)),
        ("major faults", count(statistics.major_faults)),
        ("minor faults", count(statistics.minor_faults)),
        ("OOM kills", count(statistics.oom_kills)),
    ]);
}

/// Bytes in the largest unit of which there is one, with a tenth where it is not a whole number.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let shift = 10 * unit;
    let whole = bytes >> shift;
    let rest = bytes - (whole << shift);
    if rest == 0 {
        return format!("{whole} {}", UNITS[unit]);
    }
    // Down, so that less than all never looks like all.
    let tenths = (u128::from(rest) * 10) >> shift;
    format!("{whole}.{tenths} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (256 << 20, "256 MiB"),
            ((256 << 20) - 4096, "255.9 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn what_the_guest_does_not_tell_is_not_shown() {
        let mut page = Page::new(false);
        let told = MemoryStatistics {
            free: Some(1 << 20),
            oom_kills: Some(2),
            ..MemoryStatistics::default()
        };
        statistics(&mut page, &told);
        assert_eq!(page.into_text(), "free       1 MiB\nOOM kills  2\n");
    }
}
