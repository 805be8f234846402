//! The guest-physical address map, I/O ports and interrupt numbers of "q35-lite".
//!
//! Constants and pure functions; no thread. One platform serves direct kernel boot and stock UEFI firmware, so every
//! value here is chosen to suit both:
//!
//! ```text
//! 0x0000_0000 .. 0x8000_0000   low RAM (up to 2 GiB: below every ECAM base and BAR window a stock OVMF picks)
//! 0xC000_0000 .. 0xE000_0000   32-bit BAR window (direct boot; firmware programs its own)
//! 0xE000_0000 .. 0xF000_0000   ECAM, 256 buses (power-on place under direct boot; firmware may move it)
//! 0xFEC0_0000                  I/O APIC           0xFEE0_0000  local APICs
//! 0xFEFF_C000 .. 0xFF00_0000   KVM's identity-map page and three TSS pages (Intel hosts need them)
//! 0xFFC0_0000 .. 1_0000_0000   firmware flash
//! 1_0000_0000 ..               high RAM
//! next multiple of 2 GiB ..    memory that the guest may grow by (virtio-mem); the memory map does not tell of it
//! top eighth of the physical address space: 64-bit BAR window
//! ```
//!
//! The guest can move ECAM (PCIEXBAR) and every BAR: what generates tables takes those values as input, and uses the
//! constants below only for the state at power-on.

use std::ops::Range;

/// 4 KiB: the x86 base page.
pub const PAGE_SIZE: u64 = 0x1000;

// ---- RAM ----------------------------------------------------------------------------------------------------------

/// Low RAM never reaches beyond this address; what is left of the guest's RAM continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END_MAX: u64 = 0x8000_0000;
/// Where RAM continues above the hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Where memory that is added to a running guest starts: at a multiple of this above RAM. Linux adds memory in blocks of up to 2 GiB that
/// are aligned to their size, and leaves a block unused that is not all there.
pub const GROWTH_ALIGNMENT: u64 = 2 << 30;
/// The smallest guest: a kernel decompresses to 16 MiB and above, and firmware wants 64 MiB.
pub const RAM_SIZE_MIN: u64 = 64 << 20;
/// The largest number of vCPUs: APIC ids are 8 bits, and 255 means all of them. Topologies that leave gaps between
/// ids reach the limit earlier (`cpu::topology` says so).
pub const MAX_VCPUS: u32 = 254;

// ---- the first mebibyte, as direct boot lays it out --------------------------------------------------------------

/// Boot GDT: five descriptors of 8 bytes.
pub const BOOT_GDT: u64 = 0x500;
/// Boot IDT: empty (limit 0); interrupts are off until the kernel has its own.
pub const BOOT_IDT: u64 = 0x540;
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list: one entry, the initramfs.
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map; room for 128 entries up to the zero page.
pub const PVH_MEMMAP: u64 = 0x6200;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit Linux entry: PML4, PDPT and four page directories that map 4 GiB one to one.
pub const BOOT_PML4: u64 = 0x9000;
/// See [`BOOT_PML4`].
pub const BOOT_PDPT: u64 = 0xA000;
/// The first of four page directories. See [`BOOT_PML4`].
pub const BOOT_PD: u64 = 0xB000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its NUL, in bytes. The kernel's own limit is lower.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// Extended BIOS data area: the last KiB of conventional memory. Empty, but where legacy code expects it.
pub const EBDA: u64 = 0x9_FC00;
/// Start of the VGA window, end of conventional memory. The 384 KiB up to 1 MiB are RAM, kept from the guest by the memory map.
pub const CONVENTIONAL_END: u64 = 0xA_0000;
/// ACPI tables under direct boot, RSDP first: in the area that a kernel scans when it is not told the address.
/// Room for 254 CPUs and the hot-plug slots of several buses.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// End of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0xF_0000;
/// SMBIOS entry point and structures: scanned for from here to 1 MiB.
pub const SMBIOS_TABLES: u64 = 0xF_0000;
/// 1 MiB: where memory for kernels starts.
pub const HIGH_MEMORY: u64 = 0x10_0000;

// ---- below 4 GiB --------------------------------------------------------------------------------------------------

/// Window for 32-bit BARs under direct boot.
pub const MMIO32: Range<u64> = 0xC000_0000..0xE000_0000;
/// ECAM base under direct boot.
pub const ECAM_BASE: u64 = 0xE000_0000;
/// ECAM size: 256 buses of 1 MiB.
pub const ECAM_SIZE: u64 = 0x1000_0000;
/// The last bus that there is: all functions are on the root's. The guest is told, for Linux looks at each slot of each bus that there may
/// be, by two port accesses: 16,320 exits of a boot's 28,000.
pub const PCI_LAST_BUS: u8 = 0;
/// The I/O APIC that KVM emulates.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Local APICs.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// `KVM_SET_IDENTITY_MAP_ADDR`: one page. Not at the customary 0xFFFB_C000, which lies inside a 4 MiB flash.
pub const KVM_IDENTITY_MAP: u64 = 0xFEFF_C000;
/// `KVM_SET_TSS_ADDR`: three pages.
pub const KVM_TSS: u64 = 0xFEFF_D000;
/// What KVM needs of guest-physical space, reported reserved to the guest.
pub const KVM_RESERVED: Range<u64> = KVM_IDENTITY_MAP..0xFF00_0000;
/// The firmware flash ends at 4 GiB and starts no lower than this.
pub const FLASH_MIN: u64 = 0xFFC0_0000;

// ---- I/O ports ----------------------------------------------------------------------------------------------------

/// PCI configuration address and data, 8 ports.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xCF8..0xD00;
/// Reset control register, inside [`PCI_CONFIG_PORTS`] (byte 1 of an otherwise dword register).
pub const RESET_PORT: u16 = 0xCF9;
/// What a reset writes to [`RESET_PORT`]: full reset through the CPU reset line.
pub const RESET_VALUE: u8 = 0x06;
/// COM1, 8 ports.
pub const COM1_PORT: u16 = 0x3F8;
/// CMOS/RTC index and data, 2 ports.
pub const RTC_PORT: u16 = 0x70;
/// ACPI PM block under direct boot (PMBASE); firmware chooses the same. 128 ports.
pub const PM_BASE: u16 = 0x600;
/// Length of the PM block in ports. What lies where in it is known to `paddock_devices::legacy::acpi_pm`.
pub const PM_SIZE: u16 = 0x80;
/// PCI hot-plug registers, 12 ports, next to the PM block. `paddock_devices::pci::hotplug` knows what is in them.
pub const HOT_PLUG_PORTS: Range<u16> = 0x680..0x68C;
/// CPU hot-plug registers, 16 ports. `paddock_devices::cpu_hotplug` knows what is in them.
pub const CPU_HOT_PLUG_PORTS: Range<u16> = 0x690..0x6A0;
/// I/O ports that PCI BARs may use.
pub const PCI_IO: Range<u16> = 0x6000..0xFFFF;

// ---- interrupts (GSI = I/O APIC pin below 24) ---------------------------------------------------------------------

/// Pins of the in-kernel I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Its APIC id, as KVM resets it.
pub const IOAPIC_ID: u8 = 0;
/// The PIT's line. The MADT says ISA interrupt 0 arrives at pin [`PIT_PIN`], as on every PC: the GSI routing must agree.
pub const PIT_GSI: u32 = 0;
/// See [`PIT_GSI`].
pub const PIT_PIN: u32 = 2;
/// COM1.
pub const COM1_GSI: u32 = 4;
/// RTC alarm and periodic interrupt.
pub const RTC_GSI: u32 = 8;
/// ACPI's system control interrupt: level-triggered, active high as KVM's lines are.
pub const SCI_GSI: u32 = 9;
/// PCI INTx lines: eight pins of the I/O APIC, 16 to 23, level-triggered.
pub const PCI_INTX_GSI: u32 = 16;
/// Number of INTx lines.
pub const PCI_INTX_LINES: u32 = 8;
/// GSIs from here on are routed to messages (MSI-X).
pub const MSI_GSI: u32 = IOAPIC_PINS;

/// The GSI at which `INTA#` + `pin` (0 to 3) of a function in `slot` (0 to 31) on bus 0 arrives.
/// The `_PRT` in the DSDT is made of this function.
#[must_use]
pub const fn pci_intx_gsi(slot: u8, pin: u8) -> u32 {
    PCI_INTX_GSI + (slot as u32 + pin as u32) % PCI_INTX_LINES
}

// ---- what depends on the size of RAM and on the CPU ---------------------------------------------------------------

/// How much of `ram_size` bytes lies below the hole.
#[must_use]
pub const fn low_ram_end(ram_size: u64) -> u64 {
    if ram_size < LOW_RAM_END_MAX {
        ram_size
    } else {
        LOW_RAM_END_MAX
    }
}

/// First address above all RAM: above the hole when there is high RAM, otherwise the end of low RAM.
#[must_use]
pub const fn ram_end(ram_size: u64) -> u64 {
    if ram_size <= LOW_RAM_END_MAX {
        ram_size
    } else {
        HIGH_RAM_START.saturating_add(ram_size - LOW_RAM_END_MAX)
    }
}

/// Where memory lies that a guest with `ram_size` bytes of RAM may grow by, up to `max` bytes in all. Empty when it may not grow.
#[must_use]
pub fn growth(ram_size: u64, max: u64) -> Range<u64> {
    let end = ram_end(ram_size).max(HIGH_RAM_START);
    let start = end.checked_next_multiple_of(GROWTH_ALIGNMENT);
    let start = start.unwrap_or(u64::MAX);
    start..start.saturating_add(max.saturating_sub(ram_size))
}

/// First address above all memory that a guest with `ram_size` bytes of RAM has or may grow by, up to `max` bytes in all.
#[must_use]
pub fn memory_end(ram_size: u64, max: u64) -> u64 {
    let growth = growth(ram_size, max);
    if growth.is_empty() {
        ram_end(ram_size)
    } else {
        growth.end
    }
}

/// Physical address bits beyond these are not used: a kernel with 4-level paging, like the firmware, maps 46.
pub const PHYS_BITS_MAX: u8 = 46;
/// With fewer, there is no room for a 64-bit window above 4 GiB. Every 64-bit CPU has at least 36.
pub const PHYS_BITS_MIN: u8 = 36;

/// The window for 64-bit BARs: the top eighth of what `phys_bits` (CPUID 8000_0008h, guest's view) can address, where
/// stock OVMF puts it too. `None` where it does not lie above all memory, which ends at [`memory_end`]: such a guest is too large for its CPU.
#[must_use]
pub fn mmio64(phys_bits: u8, memory_end: u64) -> Option<Range<u64>> {
    if phys_bits < PHYS_BITS_MIN {
        return None;
    }
    let end = 1u64 << phys_bits.min(PHYS_BITS_MAX);
    let start = end - end / 8;
    (memory_end <= start).then_some(start..end)
}

/// The largest guest RAM in bytes that leaves the 64-bit BAR window free on a CPU with `phys_bits`.
#[must_use]
pub fn ram_size_max(phys_bits: u8) -> u64 {
    let end = 1u64 << phys_bits.clamp(PHYS_BITS_MIN, PHYS_BITS_MAX);
    end - end / 8 - HIGH_RAM_START + LOW_RAM_END_MAX
}

/// The most that a guest with `ram_size` bytes of RAM may grow to, in bytes, so that the 64-bit BAR window stays free on a CPU with
/// `phys_bits`; no less than its RAM.
#[must_use]
pub fn growth_max(phys_bits: u8, ram_size: u64) -> u64 {
    let end = 1u64 << phys_bits.clamp(PHYS_BITS_MIN, PHYS_BITS_MAX);
    let start = growth(ram_size, ram_size).start;
    ram_size.saturating_add((end - end / 8).saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_and_high_ram_add_up() {
        for size in [
            RAM_SIZE_MIN,
            1 << 30,
            2 << 30,
            (2 << 30) + 4096,
            5 << 30,
            1 << 40,
        ] {
            let high = ram_end(size).saturating_sub(HIGH_RAM_START);
            assert_eq!(low_ram_end(size) + high, size, "size {size:#x}");
            assert!(low_ram_end(size) <= LOW_RAM_END_MAX);
        }
        assert_eq!(ram_end(u64::MAX), u64::MAX);
    }

    #[test]
    fn mmio64_is_where_ovmf_puts_it_and_never_on_ram() {
        // contracts/firmware.md §2.3: 0xE0_0000_0000 for 40 bits.
        let small = ram_end(1 << 30);
        assert_eq!(mmio64(40, small), Some(0xE0_0000_0000..0x100_0000_0000));
        assert_eq!(mmio64(52, small), mmio64(46, small));
        assert_eq!(mmio64(35, small), None);
        for bits in PHYS_BITS_MIN..=PHYS_BITS_MAX {
            let largest = ram_size_max(bits);
            let window = mmio64(bits, ram_end(largest)).unwrap();
            assert_eq!(window.start, ram_end(largest));
            assert_eq!(window.start % ((window.end - window.start) / 2), 0);
            assert_eq!(mmio64(bits, ram_end(largest + PAGE_SIZE)), None);
        }
    }

    #[test]
    fn growth_lies_between_ram_and_mmio64() {
        for (size, start) in [
            (RAM_SIZE_MIN, 4 << 30),
            (2 << 30, 4 << 30),
            ((2 << 30) + (2 << 20), 6 << 30),
            (4 << 30, 6 << 30),
            (5 << 30, 8 << 30),
        ] {
            let most = 2 * size;
            assert_eq!(growth(size, most), start..start + size, "{size:#x}");
            assert_eq!(memory_end(size, most), start + size);
            assert!(start >= ram_end(size));
            for none in [size, 0] {
                assert!(growth(size, none).is_empty());
                assert_eq!(memory_end(size, none), ram_end(size));
            }
            for bits in PHYS_BITS_MIN..=PHYS_BITS_MAX {
                let most = growth_max(bits, size);
                let window = mmio64(bits, memory_end(size, most)).unwrap();
                assert_eq!(window.start, memory_end(size, most));
                assert_eq!(mmio64(bits, memory_end(size, most + PAGE_SIZE)), None);
            }
        }
        assert!(memory_end(u64::MAX - 1, u64::MAX) >= u64::MAX - 1);
    }

    #[test]
    fn fixed_places_do_not_overlap() {
        let places = [
            BOOT_GDT..BOOT_GDT + 5 * 8,
            BOOT_IDT..BOOT_IDT + 8,
            PVH_START_INFO..PVH_START_INFO + 56,
            PVH_MODULES..PVH_MODULES + 32,
            PVH_MEMMAP..PVH_MEMMAP + 128 * 24,
            ZERO_PAGE..ZERO_PAGE + PAGE_SIZE,
            BOOT_PML4..BOOT_PML4 + PAGE_SIZE,
            BOOT_PDPT..BOOT_PDPT + PAGE_SIZE,
            BOOT_PD..BOOT_PD + 4 * PAGE_SIZE,
            CMDLINE..CMDLINE + CMDLINE_ROOM,
            EBDA..CONVENTIONAL_END,
            ACPI_TABLES..ACPI_TABLES_END,
            SMBIOS_TABLES..HIGH_MEMORY,
            HIGH_MEMORY..LOW_RAM_END_MAX,
            MMIO32,
            ECAM_BASE..ECAM_BASE + ECAM_SIZE,
            IOAPIC_BASE..IOAPIC_BASE + PAGE_SIZE,
            LAPIC_BASE..LAPIC_BASE + 0x10_0000,
            KVM_IDENTITY_MAP..KVM_TSS,
            KVM_TSS..KVM_RESERVED.end,
            FLASH_MIN..HIGH_RAM_START,
        ];
        for pair in places.windows(2) {
            let [a, b] = pair else { unreachable!() };
            assert!(a.start < a.end && a.end <= b.start, "{a:#x?} {b:#x?}");
        }
        assert_eq!(KVM_RESERVED.end - KVM_TSS, 3 * PAGE_SIZE);
        assert!(PCI_CONFIG_PORTS.contains(&RESET_PORT));
    }

    #[test]
    fn intx_lines_are_pins_of_the_ioapic() {
        for slot in 0..32 {
            for pin in 0..4 {
                assert!((PCI_INTX_GSI..IOAPIC_PINS).contains(&pci_intx_gsi(slot, pin)));
            }
        }
        assert_ne!(pci_intx_gsi(1, 0), pci_intx_gsi(2, 0));
    }
}
