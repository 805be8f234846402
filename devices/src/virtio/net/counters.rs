//! What a NIC counts, by queue. Written by its workers at the end of each batch, read by whoever serves metrics.
//!
//! Made where the backend is kept, so that a device that is made anew at a reset goes on counting.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of one queue, on cache lines of their own: each is written by another thread.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(super) struct QueueCounters {
            $($(#[$doc])* pub(super) $name: AtomicU64,)*
        }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl QueueCounters {
            fn values(&self) -> CounterValues {
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

        impl CounterValues {
            fn plus(self, other: Self) -> Self {
                Self {
                    $($name: self.$name + other.$name,)*
                }
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

/// A NIC's counters.
#[derive(Debug)]
pub struct Counters {
    /// By virtqueue: receive and transmit of each pair.
    queues: Box<[QueueCounters]>,
    control: QueueCounters,
}

impl Counters {
    /// For a NIC with so many queue pairs.
    #[must_use]
    pub fn new(queue_pairs: u16) -> Self {
        let queues = 0..2 * usize::from(queue_pairs);
        Self {
            queues: queues.map(|_| QueueCounters::default()).collect(),
            control: QueueCounters::default(),
        }
    }

    /// The number of queue pairs.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.queues.len() / 2
    }

    /// What a queue pair has counted; nothing if there is no such pair.
    #[must_use]
    pub fn pair(&self, pair: usize) -> CounterValues {
        let queues = self.queues.chunks_exact(2).nth(pair).unwrap_or_default();
        let values = queues.iter().map(QueueCounters::values);
        values.fold(CounterValues::default(), CounterValues::plus)
    }

    /// What all of the NIC has counted.
    #[must_use]
    pub fn values(&self) -> CounterValues {
        let queues = self.queues.iter().map(QueueCounters::values);
        queues.fold(self.control.values(), CounterValues::plus)
    }

    /// A receive queue's.
    pub(super) fn receive(&self, pair: u16) -> &QueueCounters {
        self.queue(2 * usize::from(pair))
    }

    /// A transmit queue's.
    pub(super) fn transmit(&self, pair: u16) -> &QueueCounters {
        self.queue(2 * usize::from(pair) + 1)
    }

    /// The control queue's.
    pub(super) fn control(&self) -> &QueueCounters {
        &self.control
    }

    /// What a queue counts that these were not made for is not lost, but of no queue.
    fn queue(&self, index: usize) -> &QueueCounters {
        self.queues.get(index).unwrap_or(&self.control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_counts_for_itself() {
        let counters = Counters::new(2);
        let mut batch = CounterValues {
            rx_frames: 3,
            rx_bytes: 180,
            ..CounterValues::default()
        };
        counters.receive(1).add(&mut batch);
        assert_eq!(batch, CounterValues::default(), "nothing is added twice");
        batch.tx_dropped = 1;
        counters.transmit(0).add(&mut batch);
        batch.control_errors = 1;
        counters.control().add(&mut batch);
        assert_eq!(
            (counters.pair(0).rx_frames, counters.pair(0).tx_dropped),
            (0, 1)
        );
        assert_eq!(
            (counters.pair(1).rx_frames, counters.pair(1).tx_dropped),
            (3, 0)
        );
        assert_eq!(counters.pair(2), CounterValues::default());
        let all = counters.values();
        assert_eq!(
            (all.rx_bytes, all.tx_dropped, all.control_errors),
            (180, 1, 1)
        );
        batch.tx_frames = 1;
        counters.transmit(7).add(&mut batch);
        assert_eq!(counters.values().tx_frames, 1);
    }
}
