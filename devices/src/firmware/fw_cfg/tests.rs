//! fw_cfg through its ports and by DMA, as firmware uses it and as a hostile guest does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::testing::LogLines;
use crate::virtio::GuestMap;

/// Two pieces of RAM with a hole between them.
const LOW: usize = 1 << 20;
const HIGH: u64 = 1 << 32;
const DESCRIPTOR: u64 = 0x8000;
const BUFFER: u64 = 0x1_0000;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

#[derive(Debug, Default)]
struct Counter {
    made: AtomicUsize,
    size: usize,
}

impl LateItem for Counter {
    fn make(&self) -> Vec<u8> {
        let made = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        vec![made.to_le_bytes()[0]; self.size]
    }
}

#[derive(Debug, Default)]
struct Seen(Mutex<Vec<Vec<u8>>>);

impl WrittenItem for Seen {
    fn written(&self, contents: &[u8]) {
        self.0.lock().push(contents.to_vec());
    }
}

struct Setup {
    device: FwCfg,
    ram: GuestRam,
    late: Arc<Counter>,
    seen: Arc<Seen>,
}

impl Setup {
    fn new() -> Self {
        let map = GuestMap::from_ranges(&[(GuestAddress(0), LOW), (GuestAddress(HIGH), 0x1000)]);
        let ram = GuestRam::new(map.unwrap());
        let late = Arc::new(Counter {
            size: 3,
            ..Counter::default()
        });
        let seen = Arc::new(Seen::default());
        let mut items = FwCfgItems::new();
        items.add_item(5, &[2, 0]).unwrap();
        items.add_file("etc/e820", *b"0123456789").unwrap();
        items
            .add_late_file("etc/late", 4, Arc::clone(&late) as _)
            .unwrap();
        items
            .add_written_file("etc/ramfb", [0; 8], Arc::clone(&seen) as _)
            .unwrap();
        Self {
            device: FwCfg::new(items, ram.clone()),
            ram,
            late,
            seen,
        }
    }

    fn select(&self, key: u16) {
        self.device.write(SELECTOR, &key.to_le_bytes());
    }

    fn read_port(&self, count: usize) -> Vec<u8> {
        let byte = |_| {
            let mut byte = [0xff];
            self.device.read(DATA, &mut byte);
            byte[0]
        };
        (0..count).map(byte).collect()
    }

    /// The key and the size that the directory tells, as firmware looks for it.
    fn find(&self, name: &str) -> Option<(u16, u32)> {
        self.select(0x19);
        let count = u32::from_be_bytes(self.read_port(4).try_into().unwrap());
        (0..count).find_map(|_| {
            let entry = self.read_port(64);
            let found = entry[8..].split(|byte| *byte == 0).next().unwrap();
            (found == name.as_bytes()).then(|| {
                let size = u32::from_be_bytes(entry[..4].try_into().unwrap());
                (u16::from_be_bytes([entry[4], entry[5]]), size)
            })
        })
    }

    fn start(&self, descriptor: u64) {
        let [high, low] = [descriptor >> 32, descriptor & 0xffff_ffff]
            .map(|half| u32::try_from(half).unwrap().to_be_bytes());
        self.device.write(DMA_HIGH, &high);
        self.device.write(DMA_LOW, &low);
    }

    /// Writes a descriptor, starts it, and returns its control field.
    fn dma_at(&self, at: u64, control: u32, length: u32, address: u64) -> u32 {
        let fields = [
            &control.to_be_bytes()[..],
            &length.to_be_bytes(),
            &address.to_be_bytes(),
        ];
        let map = self.ram.memory();
        map.write_slice(&fields.concat(), GuestAddress(at)).unwrap();
        self.start(at);
        let mut status = [0; 4];
        map.read_slice(&mut status, GuestAddress(at)).unwrap();
        u32::from_be_bytes(status)
    }

    fn dma(&self, control: u32, length: u32, address: u64) -> u32 {
        self.dma_at(DESCRIPTOR, control, length, address)
    }

    fn ram_at(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let map = self.ram.memory();
        map.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        let map = self.ram.memory();
        map.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

fn select(key: u16) -> u32 {
    u32::from(key) << 16 | SELECT
}

#[test]
fn firmware_finds_fw_cfg_and_its_files() {
    let setup = Setup::new();
    setup.select(0);
    assert_eq!(setup.read_port(6), b"QEMU\0\0");
    setup.select(1);
    assert_eq!(setup.read_port(4), [3, 0, 0, 0], "ports and DMA");
    let mut signature = [0; 8];
    setup.device.read(DMA_HIGH, &mut signature[..4]);
    setup.device.read(DMA_LOW, &mut signature[4..]);
    assert_eq!(&signature, b"QEMU CFG");
    setup.select(5);
    assert_eq!(setup.read_port(4), [2, 0, 0, 0]);
    assert_eq!(setup.find("etc/e820"), Some((0x20, 10)));
    assert_eq!(setup.find("etc/late"), Some((0x21, 4)));
    assert_eq!(setup.find("etc/ramfb"), Some((0x22, 8)));
    assert_eq!(setup.find("etc/e82"), None);
    setup.select(0x20);
    assert_eq!(setup.read_port(11), b"0123456789\0");
    for absent in [0x17, 0x23, 0x3fff, 0x8000, 0xffff] {
        setup.select(absent);
        assert_eq!(setup.read_port(3), [0; 3], "{absent:#x}");
    }
}

#[test]
fn dma_selects_reads_skips_and_goes_on() {
    let setup = Setup::new();
    assert_eq!(setup.dma(select(0x20) | READ, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 4), b"0123");
    assert_eq!(setup.dma(SKIP, 2, 0), 0);
    assert_eq!(setup.dma(READ, 2, HIGH), 0);
    assert_eq!(setup.ram_at(HIGH, 2), b"67");
    assert_eq!(setup.read_port(1), b"8", "the same selection as the ports'");
    setup.fill(BUFFER, &[0xee; 8]);
    assert_eq!(setup.dma(READ, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 5), b"9\0\0\0\xee");
    assert_eq!(setup.dma(select(0x20), 0, 0), 0);
    assert_eq!(setup.read_port(1), b"0");
    assert_eq!(setup.dma(select(0x7777) | READ, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 4), [0; 4], "an absent item is zeros");
}

#[test]
fn the_upper_half_of_the_address_is_used_once() {
    let setup = Setup::new();
    let at = HIGH + 0x100;
    assert_eq!(setup.dma_at(at, select(0) | READ, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 4), b"QEMU");
    // The next one without an upper half means low RAM, where there is a descriptor as well.
    let control = select(0x20) | READ;
    setup.dma_at(0x100, control, 0, 0);
    let descriptor = [
        &control.to_be_bytes()[..],
        &[0, 0, 0, 2],
        &BUFFER.to_be_bytes(),
    ]
    .concat();
    setup.fill(0x100, &descriptor);
    setup.device.write(DMA_LOW, &0x100u32.to_be_bytes());
    assert_eq!(setup.ram_at(BUFFER, 4), b"01MU");
}

#[test]
fn late_files_are_made_once_for_each_selection_that_reads() {
    let setup = Setup::new();
    let (key, size) = setup.find("etc/late").unwrap();
    let made = || setup.late.made.load(Ordering::Relaxed);
    setup.select(key);
    assert_eq!(setup.dma(select(key) | SKIP, 1, 0), 0);
    assert_eq!(made(), 0, "nobody has read it");
    setup.select(key);
    assert_eq!(setup.read_port(2), [1, 1]);
    assert_eq!(setup.dma(READ, size, BUFFER), 0);
    assert_eq!(
        setup.ram_at(BUFFER, 4),
        [1, 0, 0, 0],
        "of the announced size"
    );
    assert_eq!(made(), 1);
    assert_eq!(setup.dma(select(key) | READ, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 4), [2, 2, 2, 0]);
}

#[test]
fn files_for_the_guest_to_write_are_written_by_dma_only() {
    let setup = Setup::new();
    let (key, _) = setup.find("etc/ramfb").unwrap();
    setup.fill(BUFFER, b"ABCDEFGHIJ");
    assert_eq!(setup.dma(select(key) | WRITE, 4, BUFFER), 0);
    assert_eq!(setup.dma(WRITE, 4, BUFFER + 6), 0);
    let expected = [b"ABCD\0\0\0\0".to_vec(), b"ABCDGHIJ".to_vec()];
    assert_eq!(*setup.seen.0.lock(), expected);
    setup.select(key | 0x4000);
    assert_eq!(setup.read_port(9), b"ABCDGHIJ\0");
    // Beyond its end, without RAM behind it, or into what is not for the guest to write.
    for (item, length, address) in [
        (key, 9, BUFFER),
        (key, u32::MAX, BUFFER),
        (key, 8, LOW as u64 - 7),
        (key, 8, u64::MAX - 3),
        (0x20, 4, BUFFER),
        (0, 4, BUFFER),
        (0x19, 4, BUFFER),
        (0x7777, 4, BUFFER),
    ] {
        assert_eq!(setup.dma(select(item) | WRITE, length, address), 1);
    }
    setup.select(key);
    setup.device.write(DATA, b"x");
    assert_eq!(*setup.seen.0.lock(), expected);
    setup.select(0x20);
    assert_eq!(setup.read_port(4), b"0123");
    // Reading wins where both are asked for.
    assert_eq!(setup.dma(select(key) | READ | WRITE | SKIP, 4, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 4), b"ABCD");
    assert_eq!(setup.read_port(1), b"G");
}

#[test]
fn transfers_that_cannot_be_are_refused_whole() {
    let setup = Setup::new();
    let end = LOW as u64;
    let padding = u32::try_from(PADDING_MAX).unwrap();
    // Key, length, address, status.
    let cases = [
        (0x20, 10, end - 10, 0),
        (0x20, 10, end - 9, 1),
        (0x20, 1, end, 1),
        (0x20, 1, HIGH - 1, 1),
        (0x20, 10, HIGH + 0x1000 - 9, 1),
        (0x20, 10, u64::MAX - 8, 1),
        (0x20, 10, u64::MAX, 1),
        (0x20, 0, u64::MAX, 0),
        (0x20, padding + 10, BUFFER, 0),
        (0x20, padding + 11, BUFFER, 1),
        (0x7777, padding, BUFFER, 0),
        (0x7777, padding + 1, BUFFER, 1),
        (0x20, u32::MAX, 0, 1),
        (0x20, u32::MAX, HIGH, 1),
    ];
    for (key, length, address, status) in cases {
        let pattern = vec![0xee; LOW - 0x2_0000];
        setup.fill(0x2_0000, &pattern);
        setup.fill(HIGH, &[0xee; 0x1000]);
        let got = setup.dma(select(key) | READ, length, address);
        assert_eq!(got, status, "{key:#x}, {length} bytes to {address:#x}");
        if status == 1 {
            assert!(setup.ram_at(0x2_0000, pattern.len()) == pattern);
            assert!(setup.ram_at(HIGH, 0x1000) == [0xee; 0x1000]);
            setup.dma(READ, 1, DESCRIPTOR + 0x100);
            let first = setup.ram_at(DESCRIPTOR + 0x100, 1)[0];
            assert_eq!(
                first,
                if key == 0x20 { b'0' } else { 0 },
                "nothing was read"
            );
        }
    }
    assert_eq!(setup.dma(select(0x20) | SKIP, u32::MAX, 0), 0);
    assert_eq!(setup.dma(SKIP, u32::MAX, 0), 0);
    assert_eq!(setup.dma(READ, 2, BUFFER), 0);
    assert_eq!(setup.ram_at(BUFFER, 2), [0; 2]);
}

#[test]
fn descriptors_outside_ram_are_ignored() {
    let setup = Setup::new();
    setup.fill(LOW as u64 - 8, &[0xee; 8]);
    setup.fill(HIGH + 0xff8, &[0xee; 8]);
    for at in [
        LOW as u64 - 8,
        LOW as u64,
        HIGH - 8,
        HIGH + 0xff8,
        HIGH + 0x1000,
        u64::MAX - 7,
        u64::MAX,
    ] {
        setup.start(at);
    }
    assert_eq!(setup.ram_at(LOW as u64 - 8, 8), [0xee; 8]);
    assert_eq!(setup.ram_at(HIGH + 0xff8, 8), [0xee; 8]);
    // Unaligned is fine.
    assert_eq!(setup.dma_at(0x8003, select(0) | READ, 4, BUFFER), 0);
}

#[test]
fn a_transfer_may_hit_its_own_descriptor() {
    let setup = Setup::new();
    for shift in 0..16 {
        let control = select(0x20) | READ;
        assert_eq!(setup.dma(control, 10, DESCRIPTOR + shift), 0, "{shift}");
        // The status is written last; what lies behind it is the item.
        let at = usize::try_from(4u64.saturating_sub(shift)).unwrap();
        let behind = setup.ram_at(DESCRIPTOR + shift + at as u64, 10 - at);
        assert_eq!(behind, b"0123456789"[at..]);
    }
    let (key, _) = setup.find("etc/ramfb").unwrap();
    assert_eq!(setup.dma(select(key) | WRITE, 8, DESCRIPTOR), 0);
    let written = [&(select(key) | WRITE).to_be_bytes()[..], &[0, 0, 0, 8]].concat();
    assert_eq!(setup.seen.0.lock().last(), Some(&written));
}

#[test]
fn odd_port_accesses_do_nothing() {
    let setup = Setup::new();
    setup.select(0);
    for (offset, data) in [
        (SELECTOR, &[1u8][..]),
        (SELECTOR, &[1, 0, 0, 0]),
        (DATA, &[1, 0]),
        (2, &[1, 0]),
        (DMA_HIGH, &[0; 8]),
        (DMA_LOW, &[0x80, 0]),
        (DMA_LOW + 2, &[0; 4]),
        (u64::MAX, &[0; 4]),
    ] {
        setup.device.write(offset, data);
    }
    assert_eq!(setup.read_port(4), b"QEMU");
    for (offset, width) in [
        (SELECTOR, 1),
        (SELECTOR, 2),
        (SELECTOR, 4),
        (DATA, 2),
        (2, 2),
    ] {
        let mut data = vec![0xff; width];
        setup.device.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0xff), "{offset} {width}");
    }
    let mut data = [0xff; 4];
    setup.device.read(DMA_LOW + 2, &mut data);
    assert_eq!(&data, b"FG\xff\xff");
    setup.device.read(u64::MAX, &mut data);
}

#[test]
fn a_storm_is_quick_and_quiet() {
    let setup = Setup::new();
    let lines = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    tracing::subscriber::with_default(LogLines(Arc::clone(&lines)), || {
        for key in 0..2000 {
            setup.dma(select(key) | READ, u32::MAX, 0);
            setup.start(u64::from(key) << 40);
        }
    });
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(lines.load(Ordering::Relaxed), 1);
}

#[test]
fn what_cannot_be_handed_out_is_refused() {
    let mut items = FwCfgItems::new();
    items.add_item(0x8002, &[1]).unwrap();
    for taken in [0, 1, 0x19, 0x20, 0x3fff, 0x4000, 0x8002, 0xc000] {
        assert_eq!(items.add_item(taken, &[1]), Err(FwCfgError::SameKey(taken)));
    }
    for name in ["", "etc/\n", "etc/a b", "etc/ü", &"x".repeat(56)] {
        let error = items.add_file(name, []).unwrap_err();
        assert_eq!(error, FwCfgError::Name(name.to_owned()));
    }
    items.add_file(&"x".repeat(55), []).unwrap();
    items.add_file("opt/b", []).unwrap();
    items.add_file("opt/a", []).unwrap();
    assert_eq!(
        items.add_file("opt/a", [1]),
        Err(FwCfgError::SameName("opt/a".to_owned()))
    );
    let names: Vec<_> = items.names().map(str::len).collect();
    assert_eq!(names, [5, 5, 55], "sorted");
}

/// Reads the whole of RAM that there is.
fn all_ram(ram: &GuestRam) -> Vec<u8> {
    let map = ram.memory();
    let mut all = Vec::new();
    for region in map.iter() {
        let mut bytes = vec![0; usize::try_from(region.len()).unwrap()];
        map.read_slice(&mut bytes, region.start_addr()).unwrap();
        all.extend(bytes);
    }
    all
}

fn address() -> impl Strategy<Value = u64> {
    let places = vec![
        0,
        DESCRIPTOR,
        BUFFER,
        LOW as u64,
        HIGH,
        HIGH + 0x1000,
        u64::MAX,
    ];
    (prop::sample::select(places), -20i64..20)
        .prop_map(|(place, distance)| place.wrapping_add_signed(distance))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_failed_transfer_changes_nothing_but_its_status(
        steps in prop::collection::vec(
            (any::<u8>(), prop_oneof![0u16..0x24, any::<u16>()], prop_oneof![0u32..40, any::<u32>()], address()),
            1..12,
        ),
    ) {
        let setup = Setup::new();
        for (what, key, length, address) in steps {
            let control = u32::from(key) << 16 | u32::from(what & !1);
            let before = all_ram(&setup.ram);
            let status = setup.dma(control, length, address);
            prop_assert!(status <= 1);
            if status == 1 || control & READ == 0 {
                let mut after = all_ram(&setup.ram);
                let descriptor = usize::try_from(DESCRIPTOR).unwrap();
                after[descriptor..][..16].copy_from_slice(&before[descriptor..][..16]);
                prop_assert!(after == before);
            }
        }
    }

    #[test]
    fn random_port_accesses_never_panic(
        steps in prop::collection::vec((any::<bool>(), 0u64..14, prop::collection::vec(any::<u8>(), 0..9)), 0..64),
    ) {
        let setup = Setup::new();
        for (writes, offset, mut data) in steps {
            if writes {
                setup.device.write(offset, &data);
            } else {
                setup.device.read(offset, &mut data);
            }
        }
    }
}
