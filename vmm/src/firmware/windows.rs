//! Where firmware puts 32-bit BARs.
//!
//! It does not tell, and the ACPI tables must: Linux takes BARs outside the windows it is told of away from where they are. What
//! firmware does tell is where ECAM is (PCIEXBAR), and the BARs are in the larger gap beside that:
//!
//! ```text
//! OVMF of 2022, SeaBIOS   ECAM at 0xB000_0000   BARs from its end to 0xFC00_0000
//! OVMF of 2025            ECAM at 0xE000_0000   BARs below it, from where MTRRs make RAM uncached: 2 GiB
//! ```
//!
//! A pure function; ECAM's place is the guest's choice.

use std::ops::Range;

use crate::layout;

/// Where the window ends at the latest: above lie flash, interrupt controllers and KVM's pages.
const END: u64 = 0xFC00_0000;
const FOUR_GIB: u64 = 1 << 32;

/// The window for 32-bit BARs of a guest with `ram_size` bytes of RAM whose firmware has put ECAM there. Never empty; where ECAM lies in
/// a place that no firmware chooses, something that is neither RAM nor ECAM.
#[must_use]
pub fn mmio32(ecam: Option<&Range<u64>>, ram_size: u64) -> Range<u64> {
    let start = uncached_start(layout::low_ram_end(ram_size));
    let all = start..END;
    let Some(ecam) = ecam else {
        return all;
    };
    let below = start..ecam.start.clamp(start, END);
    let above = ecam.end.clamp(start, END)..END;
    let length = |range: &Range<u64>| range.end - range.start;
    if length(&below) >= length(&above) {
        below
    } else {
        above
    }
}

/// The lowest multiple of a power of two, of that size, up to 4 GiB, above RAM: one MTRR covers it.
fn uncached_start(low_ram_end: u64) -> u64 {
    let hole = FOUR_GIB - low_ram_end.min(layout::LOW_RAM_END_MAX);
    FOUR_GIB - (1 << hole.ilog2())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_are_where_stock_firmware_has_them() {
        let ecam = |base| base..base + layout::ECAM_SIZE;
        for ram in [128 << 20, 1 << 30, 2 << 30, 3 << 30, 6 << 30] {
            let window = |base| mmio32(Some(&ecam(base)), ram);
            assert_eq!(window(0xB000_0000), 0xC000_0000..0xFC00_0000);
            assert_eq!(window(0xE000_0000), 0x8000_0000..0xE000_0000);
            assert_eq!(mmio32(None, ram), 0x8000_0000..0xFC00_0000);
            assert_eq!(window(1 << 35), 0x8000_0000..0xFC00_0000);
        }
    }

    proptest! {
        #[test]
        fn a_window_is_neither_ram_nor_ecam(
            base in prop_oneof![0u64..64, any::<u64>()].prop_map(|n| n.wrapping_mul(64 << 20) & 0xF_FC00_0000),
            length in prop::sample::select(vec![64u64 << 20, 128 << 20, 256 << 20]),
            ram_mib in 64u64..1 << 20,
        ) {
            let ecam = base..base + length;
            let ram = ram_mib << 20;
            let window = mmio32(Some(&ecam), ram);
            prop_assert!(!window.is_empty());
            prop_assert!(window.start >= layout::low_ram_end(ram) && window.end <= END);
            prop_assert!(window.end <= ecam.start || ecam.end <= window.start);
        }
    }
}
