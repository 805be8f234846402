//! The memory map a guest is told: E820 entries as pure data, for the zero page, PVH and (later) fw_cfg alike.

use std::ops::Range;

use crate::layout;

/// What a stretch of guest-physical space is. The values are E820's; PVH uses the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that a kernel may use.
    Usable = 1,
    /// Not to be used or allocated.
    Reserved = 2,
    /// ACPI tables: usable once they have been read.
    Acpi = 3,
}

/// One entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First guest-physical address.
    pub base: u64,
    /// Bytes, never zero.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

impl E820Entry {
    fn new(range: Range<u64>, kind: E820Kind) -> Self {
        Self {
            base: range.start,
            size: range.end - range.start,
            kind,
        }
    }

    /// One past the last address.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.base + self.size
    }
}

/// The memory map of a guest with `ram_size` bytes of RAM (at least [`layout::RAM_SIZE_MIN`]), sorted, without overlaps.
///
/// `ecam` is where the ECAM window lies, which Linux uses only where it is reserved here or by a motherboard resource;
/// `None` leaves it out (firmware places it later and reserves it itself).
#[must_use]
pub fn e820(ram_size: u64, ecam: Option<Range<u64>>) -> Vec<E820Entry> {
    use E820Kind::{Acpi, Reserved, Usable};
    let mut map = vec![
        E820Entry::new(0..layout::EBDA, Usable),
        E820Entry::new(layout::EBDA..layout::CONVENTIONAL_END, Reserved),
        E820Entry::new(layout::ACPI_TABLES..layout::ACPI_TABLES_END, Acpi),
        E820Entry::new(layout::SMBIOS_TABLES..layout::HIGH_MEMORY, Reserved),
        E820Entry::new(
            layout::HIGH_MEMORY..layout::low_ram_end(ram_size).max(layout::RAM_SIZE_MIN),
            Usable,
        ),
    ];
    if let Some(ecam) = ecam.filter(|ecam| !ecam.is_empty()) {
        map.push(E820Entry::new(ecam, Reserved));
    }
    map.push(E820Entry::new(layout::KVM_RESERVED, Reserved));
    let high = layout::HIGH_RAM_START..layout::ram_end(ram_size);
    if !high.is_empty() {
        map.push(E820Entry::new(high, Usable));
    }
    map.sort_by_key(|entry| entry.base);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECAM: Range<u64> = layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_SIZE;

    #[test]
    fn maps_are_sorted_and_tell_all_ram_but_the_bios_area() {
        for size in [
            64 << 20,
            128 << 20,
            2 << 30,
            (2 << 30) + 4096,
            5 << 30,
            1 << 40,
        ] {
            for ecam in [None, Some(ECAM), Some(0xB000_0000..0xC000_0000)] {
                let map = e820(size, ecam.clone());
                for pair in map.windows(2) {
                    assert!(pair[0].end() <= pair[1].base, "{map:#x?}");
                }
                let usable: u64 = map
                    .iter()
                    .filter(|e| e.kind == E820Kind::Usable)
                    .map(|e| e.size)
                    .sum();
                assert_eq!(
                    usable,
                    size - (layout::HIGH_MEMORY - layout::EBDA),
                    "{map:#x?}"
                );
                if let Some(ecam) = ecam {
                    assert!(map.contains(&E820Entry::new(ecam, E820Kind::Reserved)));
                }
                assert!(map.contains(&E820Entry {
                    base: 0xFEFF_C000,
                    size: 0x4000,
                    kind: E820Kind::Reserved
                }));
                assert!(map.len() <= 128);
            }
        }
    }

    #[test]
    fn ram_beyond_the_hole_is_one_entry_at_4_gib() {
        let map = e820(5 << 30, Some(ECAM));
        assert_eq!(
            map.last(),
            Some(&E820Entry {
                base: 4 << 30,
                size: 3 << 30,
                kind: E820Kind::Usable
            })
        );
        assert_eq!(
            e820(2 << 30, None).last().map(|e| e.kind),
            Some(E820Kind::Reserved)
        );
    }
}
