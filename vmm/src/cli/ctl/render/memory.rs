//! The memory.

use paddock_api::memory::Memory;

use super::{Cell, Colour, Page, bytes};

/// The memory.
pub fn memory(page: &mut Page, memory: &Memory) {
    let plugged = if memory.plugged == memory.requested {
        Colour::Green
    } else {
        Colour::Yellow
    };
    // Without a max there is nothing that a driver could do.
    let driver = match (memory.driver, memory.max > memory.size) {
        (true, _) => vec![Cell::new("yes")],
        (false, true) => vec![Cell::coloured("no", Colour::Yellow)],
        (false, false) => Vec::new(),
    };
    page.properties(vec![
        ("size at the start", vec![Cell::new(bytes(memory.size))]),
        ("max", vec![Cell::new(bytes(memory.max))]),
        ("requested", vec![Cell::new(bytes(memory.requested))]),
        (
            "plugged in",
            vec![Cell::coloured(bytes(memory.plugged), plugged)],
        ),
        ("guest has a driver", driver),
    ]);
}
