//! What went over the consoles and the ports of the virtio console, as metrics.

use std::sync::Arc;

use paddock_api::metrics::Exposition;
use paddock_devices::virtio::console::PortCounters;

use super::Meters;

/// The consoles of a VM, and its ports by their names.
pub(super) fn describe(
    to: &mut Exposition,
    meters: &Meters,
    ports: &[(String, Arc<PortCounters>)],
) {
    let hvc0 = ports.iter().find(|(name, _)| name.is_empty());
    let named = || ports.iter().filter(|(name, _)| !name.is_empty());
    let (printed, typed) = meters.serial();
    let mut family = to.counter(
        "paddock_console_output_bytes_total",
        "Bytes that the guest printed.",
    );
    family.sample(&[("console", &"serial")], printed);
    if let Some((_, counters)) = hvc0 {
        family.sample(&[("console", &"hvc0")], counters.from_guest());
    }
    let mut family = to.counter(
        "paddock_console_input_bytes_total",
        "Bytes that were typed and that the guest's port took.",
    );
    family.sample(&[("console", &"serial")], typed);
    if let Some((_, counters)) = hvc0 {
        family.sample(&[("console", &"hvc0")], counters.to_guest());
    }
    let mut family = to.counter(
        "paddock_port_output_bytes_total",
        "Bytes that a client of the port took from the guest.",
    );
    for (name, counters) in named() {
        family.sample(&[("port", name)], counters.from_guest());
    }
    let mut family = to.counter(
        "paddock_port_input_bytes_total",
        "Bytes that the guest took from a client of the port.",
    );
    for (name, counters) in named() {
        family.sample(&[("port", name)], counters.to_guest());
    }
}
