//! The CPUs.

use paddock_api::cpus::Cpus;

use super::{Cell, Colour, Page};

/// The CPUs.
pub fn cpus(page: &mut Page, cpus: &Cpus) {
    let present = if cpus.present == cpus.wanted {
        Colour::Green
    } else {
        Colour::Yellow
    };
    let number = |number: u64| vec![Cell::new(number.to_string())];
    page.properties(vec![
        ("at the start", number(cpus.count)),
        ("max", number(cpus.max)),
        ("wanted", number(cpus.wanted)),
        (
            "plugged in",
            vec![Cell::coloured(cpus.present.to_string(), present)],
        ),
        ("job", cpus.job.map(number).unwrap_or_default()),
    ]);
}
