//! The list of capabilities, and rings as they lie in memory.

use super::*;
use std::cell::RefCell;

const BASE: u64 = 0x10_0000;

struct Memory(RefCell<Vec<u8>>);

impl Ram for Memory {
    fn base(&self) -> u64 {
        BASE
    }
    fn length(&self) -> u64 {
        0x1_0000
    }
    fn read(&self, address: u64, data: &mut [u8]) {
        let at = usize::try_from(address - BASE).unwrap();
        data.copy_from_slice(&self.0.borrow()[at..at + data.len()]);
    }
    fn write(&self, address: u64, data: &[u8]) {
        let at = usize::try_from(address - BASE).unwrap();
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }
}

fn memory() -> Memory {
    Memory(RefCell::new(vec![0xaa; 0x1_0000]))
}

/// A configuration space that nothing lies behind.
struct Space(Vec<u8>);

impl Function for Space {
    fn read_config(&self, offset: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        let at = usize::from(offset);
        bytes[..width].copy_from_slice(&self.0[at..at + width]);
        u32::from_le_bytes(bytes)
    }
    fn write_config(&self, _: u16, _: usize, _: u32) {}
    fn read_bar(&self, _: u64, _: usize) -> u64 {
        0
    }
    fn write_bar(&self, _: u64, _: usize, _: u64) {}
    fn bar_length(&self) -> u64 {
        0
    }
}

fn space() -> Space {
    let mut bytes = vec![0; 256];
    bytes[0x34] = 0x40;
    for (index, kind) in (1..=5_u8).enumerate() {
        let at = 0x40 + index * 20;
        bytes[at] = 0x09;
        bytes[at + 1] = u8::try_from(at + 20).unwrap();
        bytes[at + 3] = kind;
        bytes[at + 9] = kind << 4;
        bytes[at + 13] = 0x10;
        bytes[at + 16] = 4;
    }
    bytes[0xa4..0xb0].copy_from_slice(&[0x11, 0, 2, 0, 0, 0x80, 0, 0, 0, 0xc0, 0, 0]);
    Space(bytes)
}

#[test]
fn structures_are_found() {
    let layout = Layout::find(&space()).unwrap();
    let expected = Layout {
        common: 0x1000,
        notify: (0x2000, 0x1000),
        multiplier: 4,
        isr: 0x3000,
        device: (0x4000, 0x1000),
        window: 0x90,
        msix: 0xa4,
        table: 0x8000,
        vectors: 3,
        pending: 0xc000,
    };
    assert_eq!(layout, expected);
}

#[test]
fn a_list_that_is_a_loop_or_lacks_something_is_an_error() {
    let mut looped = space();
    looped.0[0xa5] = 0x40;
    assert!(Layout::find(&looped).is_err());
    let mut lacking = space();
    lacking.0[0x43] = 9;
    assert!(Layout::find(&lacking).is_err());
    assert!(Layout::find(&Space(vec![0xff; 512])).is_err());
}

#[test]
fn a_chain_lies_in_memory_as_specified() {
    let ram = memory();
    let mut ring = Ring::new(&ram, 0, 4, BASE);
    assert_eq!(Ring::footprint(4), 3 * 4096);
    assert_eq!(
        ring.submit(&ram, &[(0x1122, 16, false), (0x3344, 8, true)]),
        0
    );
    // The second goes around the end of the table.
    ring.submit(&ram, &[(1, 1, false), (2, 2, false), (3, 3, true)]);
    let descriptor = |slot: u64| {
        let mut bytes = [0; 16];
        ram.read(ring.descriptors + slot * 16, &mut bytes);
        bytes
    };
    let of = |address, length, flags, next| {
        Descriptor {
            address,
            length,
            flags,
            next,
        }
        .bytes()
    };
    assert_eq!(descriptor(1), of(0x3344, 8, WRITE, 0));
    assert_eq!(descriptor(2), of(1, 1, NEXT, 3));
    assert_eq!(descriptor(3), of(2, 2, NEXT, 0));
    assert_eq!(descriptor(0), of(3, 3, WRITE, 0));
    let mut available = [0; 8];
    ram.read(ring.available, &mut available);
    assert_eq!(available, [0, 0, 2, 0, 0, 0, 2, 0]);
}

#[test]
fn used_entries_are_taken_in_order() {
    let ram = memory();
    let mut ring = Ring::new(&ram, 0, 4, BASE);
    assert_eq!(ring.take_used(&ram), None);
    ram.write(ring.used + 4, &[3, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0]);
    ram.write(ring.used + 2, &[2, 0]);
    assert_eq!(
        ring.wait_used(&ram, 1, Duration::ZERO),
        None,
        "one look, at the first"
    );
    let used = ring.wait_used(&ram, 1, Duration::from_secs(1)).unwrap();
    assert_eq!((used.head, used.length), (1, 0));
    assert_eq!(ring.take_used(&ram), None);
}
