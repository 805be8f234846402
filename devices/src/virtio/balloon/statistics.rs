//! The guest's memory statistics (VIRTIO 1.2 §5.5.6.3): read from the driver's buffer, believed by nobody.

use std::time::Instant;

/// Bytes of one statistic: a tag of 16 bits and a value of 64, packed.
const ENTRY: usize = 10;
/// Statistics looked at; the rest of a longer buffer is ignored.
const MAX_ENTRIES: usize = 64;
/// Bytes of a buffer that are looked at.
pub(super) const MAX_BUFFER: usize = ENTRY * MAX_ENTRIES;

macro_rules! statistics {
    ($($(#[$doc:meta])* $tag:literal $name:ident,)*) => {
        /// What the guest last said of its memory. Each value is `None` where the guest does not tell it, and none is checked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Statistics {
            /// When the guest said so.
            pub taken: Instant,
            $($(#[$doc])* pub $name: Option<u64>,)*
        }

        impl Statistics {
            /// Nothing is known.
            fn new(taken: Instant) -> Self {
                Self { taken, $($name: None,)* }
            }

            /// The value of a tag that is known.
            fn value(&mut self, tag: u16) -> Option<&mut Option<u64>> {
                match tag {
                    $($tag => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

statistics! {
    /// Bytes swapped in, since the guest's boot.
    0 swap_in,
    /// Bytes swapped out, since the guest's boot.
    1 swap_out,
    /// Page faults that waited for a disk, since the guest's boot.
    2 major_faults,
    /// Page faults that did not, since the guest's boot.
    3 minor_faults,
    /// Bytes that are in no use at all.
    4 free,
    /// Bytes of memory the guest has, what the balloon took excluded.
    5 total,
    /// Bytes that could be had for new programs without swapping (Linux's `MemAvailable`).
    6 available,
    /// Bytes of disk cache, which can be dropped quickly.
    7 disk_caches,
    /// Huge pages allocated, since the guest's boot.
    8 huge_page_allocations,
    /// Huge pages that could not be allocated, since the guest's boot.
    9 huge_page_failures,
    /// Processes killed for want of memory, since the guest's boot.
    10 oom_kills,
    /// Allocations that had to wait for reclaim, since the guest's boot.
    11 allocation_stalls,
    /// Pages scanned in the background, since the guest's boot.
    12 async_scans,
    /// Pages scanned while an allocation waited, since the guest's boot.
    13 direct_scans,
    /// Pages reclaimed in the background, since the guest's boot.
    14 async_reclaims,
    /// Pages reclaimed while an allocation waited, since the guest's boot.
    15 direct_reclaims,
}

impl Statistics {
    /// Reads a driver's buffer. Unknown tags and a last entry that is cut off are ignored; of a tag that comes twice the last counts.
    pub(super) fn parse(buffer: &[u8], taken: Instant) -> Self {
        let mut statistics = Self::new(taken);
        for entry in buffer.chunks_exact(ENTRY).take(MAX_ENTRIES) {
            let Some((tag, value)) = entry.split_first_chunk() else {
                continue;
            };
            let Ok(value) = value.try_into().map(u64::from_le_bytes) else {
                continue;
            };
            if let Some(slot) = statistics.value(u16::from_le_bytes(*tag)) {
                // How a driver says that it does not know.
                *slot = Some(value).filter(|value| *value != u64::MAX);
            }
        }
        statistics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn tags_are_told_apart() {
        let now = Instant::now();
        let mut buffer: Vec<u8> = (0..16)
            .flat_map(|tag| entry(tag, u64::from(tag) + 100))
            .collect();
        buffer.extend(entry(999, 7));
        buffer.extend(entry(5, 1 << 30));
        buffer.extend(entry(6, u64::MAX));
        buffer.extend([4, 0, 1]);
        let read = Statistics::parse(&buffer, now);
        assert_eq!((read.swap_in, read.free), (Some(100), Some(104)));
        assert_eq!((read.total, read.available), (Some(1 << 30), None));
        assert_eq!((read.disk_caches, read.oom_kills), (Some(107), Some(110)));
        assert_eq!((read.direct_reclaims, read.taken), (Some(115), now));
    }

    #[test]
    fn a_long_buffer_is_cut() {
        let now = Instant::now();
        let mut buffer = entry(1000, 1).repeat(MAX_ENTRIES);
        buffer.extend(entry(4, 4));
        assert_eq!(Statistics::parse(&buffer, now), Statistics::new(now));
        assert_eq!(Statistics::parse(&[], now), Statistics::new(now));
    }
}
