//! What a NIC counts. Written by its workers at the end of each batch, read by whoever serves metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A NIC's counters, since it was built.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Reads all counters.
            #[must_use]
            pub fn values(&self) -> CounterValues {
                CounterValues {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }

            /// Adds what a batch counted, and sets the batch back to nothing.
            pub(super) fn add(&self, batch: &mut CounterValues) {
                $(if batch.$name != 0 {
                    self.$name.fetch_add(batch.$name, Ordering::Relaxed);
                })*
                *batch = CounterValues::default();
            }
        }
    };
}

counters! {
    /// Frames the guest received.
    rx_frames,
    /// Their bytes, without the virtio-net header.
    rx_bytes,
    /// Frames dropped because they did not fit the guest's buffers, or those did not come in time.
    rx_dropped,
    /// Failed reads from the backend, and frames from it that make no sense.
    rx_errors,
    /// Frames the guest sent.
    tx_frames,
    /// Their bytes, without the virtio-net header.
    tx_bytes,
    /// Frames dropped because the backend was down, gone, or blocked for too long.
    tx_dropped,
    /// Frames the guest made wrong: too short, too long, in too many pieces, or with a header the kernel refuses.
    tx_malformed,
    /// Control commands refused.
    control_errors,
}
