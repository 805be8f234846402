//! The balloon and the guest's memory.

use paddock_api::balloon::{Balloon, MemoryStatistics};

use super::{Cell, Colour, Page, bytes};

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
