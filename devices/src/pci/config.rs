//! A type 0 configuration space: 4096 bytes, each with a mask of the bits the guest may write (PCI Local Bus 3.0 §6.1).

/// Bytes of configuration space a function has under PCI Express.
pub const CONFIG_SIZE: usize = 4096;

/// The command register (§6.2.2).
pub const COMMAND: u16 = 0x04;
/// Command: the function answers to its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may master the bus (MSI included).
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: INTx is disabled.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Command bits a driver may toggle: I/O, memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 =
    1 | COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE;
const STATUS: usize = 0x06;
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// The first BAR (§6.2.5.1).
pub const BAR0: u16 = 0x10;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the first capability goes: right behind the header.
const FIRST_CAPABILITY: usize = 0x40;
/// Capabilities live in the conventional 256 bytes.
const LAST_CAPABILITY: usize = 0x100;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Whether function 0 announces further functions (header type bit 7).
    pub multi_function: bool,
}

/// The registers of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
    last_capability: Option<usize>,
    next_capability: usize,
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("header", &&self.bytes[..FIRST_CAPABILITY])
            .finish_non_exhaustive()
    }
}

impl ConfigSpace {
    /// A space with the header of `identity`, no BARs and no capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut this = Self {
            bytes: Box::new([0; CONFIG_SIZE]),
            writable: Box::new([0; CONFIG_SIZE]),
            last_capability: None,
            next_capability: FIRST_CAPABILITY,
        };
        this.set(0x00, &identity.vendor.to_le_bytes());
        this.set(0x02, &identity.device.to_le_bytes());
        this.set(0x08, &[identity.revision]);
        this.set(0x09, &identity.class.to_le_bytes()[..3]);
        this.set(0x0e, &[u8::from(identity.multi_function) << 7]);
        this.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        this.set(0x2e, &identity.subsystem.to_le_bytes());
        this.allow(usize::from(COMMAND), &COMMAND_WRITABLE.to_le_bytes());
        // Cache line size and interrupt line are scratch for the guest's firmware and drivers.
        this.allow(0x0c, &[0xff]);
        this.allow(INTERRUPT_LINE, &[0xff]);
        this
    }

    /// Sets bytes, whatever the guest may write.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets the guest write the bits set in `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Appends a capability and returns its offset. `body` follows the two header bytes (id, next).
    ///
    /// # Panics
    /// When the 192 bytes for capabilities are used up: a mistake in the device, not a matter of input.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        let offset = self.next_capability;
        let end = (offset + 2 + body.len()).next_multiple_of(4);
        assert!(
            end <= LAST_CAPABILITY,
            "capabilities do not fit configuration space"
        );
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        let link = self
            .last_capability
            .map_or(CAPABILITY_POINTER, |last| last + 1);
        let offset_byte = u8::try_from(offset).unwrap_or_default();
        self.set(link, &[offset_byte]);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = Some(offset);
        self.next_capability = end;
        u16::from(offset_byte)
    }

    /// Declares a 64-bit memory BAR of `size` bytes (a power of two ≥ 4096) in slots `index` and `index + 1`.
    pub fn add_memory_bar(&mut self, index: u8, size: u64, prefetchable: bool) {
        assert!(size.is_power_of_two() && size >= 4096 && index < 5);
        let offset = usize::from(BAR0) + usize::from(index) * 4;
        let mask = !(size - 1);
        // Bits 2:1 = 10: anywhere in 64-bit space.
        let kind = 0b100 | u8::from(prefetchable) << 3;
        self.set(offset, &[kind]);
        self.allow(offset, &mask.to_le_bytes());
    }

    /// The address in the 64-bit BAR at `index`.
    #[must_use]
    pub fn bar(&self, index: u8) -> u64 {
        let offset = BAR0 + u16::from(index) * 4;
        (u64::from(self.read_u32(offset + 4)) << 32) | u64::from(self.read_u32(offset) & !0xf)
    }

    /// Whether the function answers to its memory BARs.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.read_u16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// Reads `data.len()` bytes; those outside the space read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(usize::from(offset) + i)
                .copied()
                .unwrap_or(0xff);
        }
    }

    /// Writes what the guest may write, and nothing else.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (i, new) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (new & mask);
            }
        }
    }

    /// A little-endian register; one outside the space reads as ones.
    #[must_use]
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// A little-endian register; one outside the space reads as ones.
    #[must_use]
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// Whether a write of `length` bytes at `offset` touches `register..register + size`.
#[must_use]
pub fn touches(offset: u16, length: usize, register: u16, size: u16) -> bool {
    let (offset, register) = (usize::from(offset), usize::from(register));
    offset < register + usize::from(size) && register < offset + length
}

#[cfg(test)]
mod tests {
    use super::{COMMAND, ConfigSpace, Identity, touches};

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_00_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            multi_function: false,
        })
    }

    #[test]
    fn the_header_says_who_it_is_and_cannot_be_overwritten() {
        let mut space = space();
        space.write(0, &[0xff; 4]);
        assert_eq!(space.read_u32(0), 0x1042_1af4);
        assert_eq!(space.read_u32(8), 0x0100_0001);
        space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(space.read_u16(COMMAND), 0x0547);
    }

    #[test]
    fn a_bar_answers_the_sizing_probe() {
        let mut space = space();
        space.add_memory_bar(0, 0x1_0000, true);
        space.write(0x10, &[0xff; 8]);
        assert_eq!(space.read_u32(0x10), 0xffff_000c);
        assert_eq!(space.read_u32(0x14), 0xffff_ffff);
        space.write(0x10, &0x1234_5678_9abc_def0_u64.to_le_bytes());
        assert_eq!(space.bar(0), 0x1234_5678_9abc_0000);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(0x09, &[1, 2, 3]);
        let second = space.add_capability(0x11, &[0; 10]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.read_u16(0x06) & 0x10, 0x10);
        assert_eq!(space.read_u16(0x34), first);
        assert_eq!(space.read_u16(first), 0x4809);
        assert_eq!(space.read_u16(second), 0x0011);
    }

    #[test]
    fn beyond_the_end_nothing_is_there() {
        let mut space = space();
        space.write(0xffe, &[0; 8]);
        let mut data = [0; 4];
        space.read(0xffe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn overlap_of_registers() {
        assert!(touches(0x10, 4, 0x12, 1));
        assert!(!touches(0x10, 2, 0x12, 1));
        assert!(!touches(0x14, 4, 0x10, 4));
    }
}
