//! What NICs have carried, as metrics: of each queue pair.

use std::sync::Arc;

use paddock_api::metrics::Exposition;
use paddock_devices::virtio::net::{self, CounterValues};

/// A family: its name, its meaning, and where its number is.
type Family = (&'static str, &'static str, fn(&CounterValues) -> u64);

const COUNTERS: [Family; 8] = [
    (
        "paddock_nic_receive_packets_total",
        "Frames that the guest received.",
        |values| values.rx_frames,
    ),
    (
        "paddock_nic_receive_bytes_total",
        "Bytes of the frames that the guest received.",
        |values| values.rx_bytes,
    ),
    (
        "paddock_nic_receive_dropped_total",
        "Frames for which the guest had no room in time.",
        |values| values.rx_dropped,
    ),
    (
        "paddock_nic_receive_errors_total",
        "Frames that could not be read from the host, or made no sense.",
        |values| values.rx_errors,
    ),
    (
        "paddock_nic_transmit_packets_total",
        "Frames that the guest sent.",
        |values| values.tx_frames,
    ),
    (
        "paddock_nic_transmit_bytes_total",
        "Bytes of the frames that the guest sent.",
        |values| values.tx_bytes,
    ),
    (
        "paddock_nic_transmit_dropped_total",
        "Frames that the host did not take.",
        |values| values.tx_dropped,
    ),
    (
        "paddock_nic_transmit_errors_total",
        "Frames that the guest made wrong.",
        |values| values.tx_malformed,
    ),
];

/// The NICs of a VM, by their ids.
pub(super) fn describe(to: &mut Exposition, nics: &[(String, Arc<net::Counters>)]) {
    for (name, help, of) in COUNTERS {
        let mut family = to.counter(name, help);
        for (id, counters) in nics {
            for queue in 0..counters.queue_pairs() {
                let labels = [("nic", id as _), ("queue", &queue as _)];
                family.sample(&labels, of(&counters.pair(queue)));
            }
        }
    }
    let mut family = to.counter(
        "paddock_nic_control_errors_total",
        "Commands of the guest's that the NIC refused.",
    );
    for (id, counters) in nics {
        family.sample(&[("nic", id)], counters.values().control_errors);
    }
}
