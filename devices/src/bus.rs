//! Which device answers an address: one [`Bus`] for port I/O and one for MMIO.
//!
//! Accesses run on vCPU threads and take no lock: they load a snapshot of the sorted range table. Changing the table
//! (building the machine, a guest moving a BAR, hot-plug) is rare, serialized by a mutex and published atomically, so an access
//! sees the table from before or after a change and never one in between. A device removed while another vCPU is inside it
//! stays alive until that access returns.
//!
//! The guest chooses address, width and data, and through PCI BARs where some ranges lie. Accesses that nobody claims read as
//! all-ones and write to nowhere, as on a PC. An access that straddles a range's end is cut, each piece going to its owner.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// A device that answers accesses to a range of addresses. Called on vCPU threads, by several at once: state behind atomics or
/// a short lock, no blocking.
pub trait BusDevice: Send + Sync + fmt::Debug {
    /// For logs and crash reports, such as "serial com1" or "virtio-blk vda BAR 4".
    fn name(&self) -> &str;

    /// Reads `data.len()` bytes (1 to 8 in a real VM) at `offset` from the range's base. The access lies inside the range.
    /// `data` comes filled with ones; bytes left alone read so.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` from the range's base. The access lies inside the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Reads registers, or a configuration, that are just bytes: from `offset` on into `data`, and zeros from their end on.
pub(crate) fn read_bytes(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let present = bytes.get(start..).unwrap_or_default();
    let length = present.len().min(data.len());
    data[..length].copy_from_slice(&present[..length]);
    data[length..].fill(0);
}

/// Why a range cannot be on the bus. The bus is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// An empty range.
    #[error("{name}: the range at {base:#x} is empty")]
    Empty {
        /// The device.
        name: String,
        /// Where it was to start.
        base: u64,
    },
    /// The range ends beyond the last address.
    #[error("{name}: {length:#x} bytes at {base:#x} end beyond the address space")]
    Overflow {
        /// The device.
        name: String,
        /// Where it was to start.
        base: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The range overlaps another.
    #[error("{name}: {base:#x}..={last:#x} overlaps {other} at {other_base:#x}..={other_last:#x}")]
    Overlap {
        /// The device.
        name: String,
        /// Its first address.
        base: u64,
        /// Its last address.
        last: u64,
        /// The device already there.
        other: String,
        /// That one's first address.
        other_base: u64,
        /// That one's last address.
        other_last: u64,
    },
    /// No range starts there.
    #[error("no device range starts at {base:#x}")]
    NotFound {
        /// The address given.
        base: u64,
    },
}

/// One claimed range. The end is inclusive so that a range may end at the very last address.
#[derive(Debug, Clone)]
struct Entry {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

impl Entry {
    fn new(base: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<Self, BusError> {
        let Some(span) = length.checked_sub(1) else {
            return Err(BusError::Empty {
                name: device.name().to_owned(),
                base,
            });
        };
        let Some(last) = base.checked_add(span) else {
            return Err(BusError::Overflow {
                name: device.name().to_owned(),
                base,
                length,
            });
        };
        Ok(Self { base, last, device })
    }
}

/// Sorted by base, disjoint.
type Table = Vec<Entry>;

/// An address space with devices in it.
#[derive(Debug, Default)]
pub struct Bus {
    table: ArcSwap<Table>,
    /// Held while a new table is made from the present one.
    change: Mutex<()>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + length`.
    ///
    /// # Errors
    /// When the range is empty, overflows or overlaps another; the bus is then unchanged.
    pub fn insert(
        &self,
        base: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let entry = Entry::new(base, length, device)?;
        self.update(|table| add(table, entry))
    }

    /// Takes the range that starts at `base` off the bus and returns its device.
    ///
    /// # Errors
    /// When no range starts there.
    pub fn remove(&self, base: u64) -> Result<Arc<dyn BusDevice>, BusError> {
        self.update(|table| take(table, base))
            .map(|entry| entry.device)
    }

    /// Moves the range that starts at `base` to `new_base` in one step, keeping length and device. The new place may overlap the
    /// old one.
    ///
    /// # Errors
    /// When no range starts at `base`, or the new one overflows or overlaps another; the range then stays where it was.
    pub fn relocate(&self, base: u64, new_base: u64) -> Result<(), BusError> {
        self.update(|table| {
            let old = take(table, base)?;
            let span = old.last - old.base;
            let Some(last) = new_base.checked_add(span) else {
                return Err(BusError::Overflow {
                    name: old.device.name().to_owned(),
                    base: new_base,
                    length: span.saturating_add(1),
                });
            };
            add(
                table,
                Entry {
                    base: new_base,
                    last,
                    device: old.device,
                },
            )
        })
    }

    /// Reads at `address`; says whether a device claimed all or part of it. What nobody claims reads as all-ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let table = self.table.load();
        let mut claimed = false;
        for_pieces(&table, address, data.len(), |entry, offset, piece| {
            claimed = true;
            if let Some(bytes) = data.get_mut(piece) {
                entry.device.read(offset, bytes);
            }
        });
        claimed
    }

    /// Writes at `address`; says whether a device claimed all or part of it. What nobody claims vanishes.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let table = self.table.load();
        let mut claimed = false;
        for_pieces(&table, address, data.len(), |entry, offset, piece| {
            claimed = true;
            if let Some(bytes) = data.get(piece) {
                entry.device.write(offset, bytes);
            }
        });
        claimed
    }

    /// The device at `address`, for a crash report (remember the last address, ask for its owner when it matters).
    #[must_use]
    pub fn device_at(&self, address: u64) -> Option<Arc<dyn BusDevice>> {
        let table = self.table.load();
        let entry = table.get(first_ending_at(&table, address))?;
        (entry.base <= address).then(|| Arc::clone(&entry.device))
    }

    /// Every range in ascending order: first address, last address, device.
    #[must_use]
    pub fn ranges(&self) -> Vec<(u64, u64, Arc<dyn BusDevice>)> {
        self.table
            .load()
            .iter()
            .map(|e| (e.base, e.last, Arc::clone(&e.device)))
            .collect()
    }

    /// Makes a changed copy of the table and publishes it, unless the change fails.
    fn update<T>(
        &self,
        change: impl FnOnce(&mut Table) -> Result<T, BusError>,
    ) -> Result<T, BusError> {
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let result = change(&mut table)?;
        self.table.store(Arc::new(table));
        Ok(result)
    }
}

/// Index of the first range that ends at or after `address`: the only one that can hold it.
fn first_ending_at(table: &Table, address: u64) -> usize {
    table.partition_point(|entry| entry.last < address)
}

fn add(table: &mut Table, new: Entry) -> Result<(), BusError> {
    let at = first_ending_at(table, new.base);
    if let Some(other) = table.get(at).filter(|other| other.base <= new.last) {
        return Err(BusError::Overlap {
            name: new.device.name().to_owned(),
            base: new.base,
            last: new.last,
            other: other.device.name().to_owned(),
            other_base: other.base,
            other_last: other.last,
        });
    }
    table.insert(at, new);
    Ok(())
}

fn take(table: &mut Table, base: u64) -> Result<Entry, BusError> {
    match table.binary_search_by_key(&base, |entry| entry.base) {
        Ok(at) => Ok(table.remove(at)),
        Err(_) => Err(BusError::NotFound { base }),
    }
}

/// Calls `each` for the claimed pieces of an access, in ascending order: the range, the offset in it, the piece of the access.
fn for_pieces(
    table: &Table,
    address: u64,
    length: usize,
    mut each: impl FnMut(&Entry, u64, std::ops::Range<usize>),
) {
    let Some(span) = (length as u64).checked_sub(1) else {
        return;
    };
    // What lies beyond the address space is nobody's.
    let last = address.saturating_add(span);
    let from = first_ending_at(table, address);
    for entry in table.iter().skip(from).take_while(|e| e.base <= last) {
        let first = entry.base.max(address);
        let end = entry.last.min(last);
        // Both are below `length`, which is a usize.
        let (Ok(start), Ok(stop)) = (
            usize::try_from(first - address),
            usize::try_from(end - address),
        ) else {
            return;
        };
        each(entry, first - entry.base, start..stop + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Bytes that can be read back, and a name.
    #[derive(Debug)]
    struct Memory {
        name: String,
        bytes: Mutex<Vec<u8>>,
    }

    impl Memory {
        fn new(name: &str, length: usize) -> Arc<Self> {
            Arc::new(Self {
                name: name.to_owned(),
                bytes: Mutex::new(vec![0; length]),
            })
        }
    }

    impl BusDevice for Memory {
        fn name(&self) -> &str {
            &self.name
        }

        fn read(&self, offset: u64, data: &mut [u8]) {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.bytes.lock().unwrap()[at..at + data.len()]);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            let at = usize::try_from(offset).unwrap();
            self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
    }

    #[test]
    fn straddling_accesses_are_cut() {
        let bus = Bus::new();
        bus.insert(0x70, 2, Memory::new("a", 2)).unwrap();
        bus.insert(0x73, 1, Memory::new("b", 1)).unwrap();
        assert!(bus.write(0x6f, &[1, 2, 3, 4, 5, 6]));
        let mut data = [0; 6];
        assert!(bus.read(0x6f, &mut data));
        assert_eq!(data, [0xff, 2, 3, 0xff, 5, 0xff]);
        assert!(!bus.read(0x74, &mut data));
        assert_eq!(data, [0xff; 6]);
        assert!(!bus.write(0x72, &[1]));
        assert!(!bus.read(0x70, &mut []));
    }

    #[test]
    fn ranges_may_touch_the_end_of_the_address_space() {
        let bus = Bus::new();
        bus.insert(u64::MAX - 1, 2, Memory::new("top", 2)).unwrap();
        assert!(bus.write(u64::MAX, &[7, 8, 9]));
        let mut data = [0; 4];
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [7, 0xff, 0xff, 0xff]);
        assert!(matches!(
            bus.insert(u64::MAX, 2, Memory::new("x", 2)),
            Err(BusError::Overflow { .. })
        ));
        assert!(matches!(
            bus.insert(0, 0, Memory::new("x", 0)),
            Err(BusError::Empty { .. })
        ));
    }

    #[test]
    fn a_failed_move_changes_nothing() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x100, Memory::new("bar", 0x100))
            .unwrap();
        bus.insert(0x2000, 0x100, Memory::new("other", 0x100))
            .unwrap();
        let error = bus.relocate(0x1000, 0x20ff).unwrap_err();
        assert_eq!(
            error.to_string(),
            "bar: 0x20ff..=0x21fe overlaps other at 0x2000..=0x20ff"
        );
        assert!(matches!(
            bus.relocate(0x1000, u64::MAX - 3),
            Err(BusError::Overflow { length: 0x100, .. })
        ));
        assert_eq!(bus.device_at(0x10ff).unwrap().name(), "bar");
        assert!(bus.device_at(0x1100).is_none());
        bus.relocate(0x1000, 0x1080).unwrap();
        assert!(bus.device_at(0x107f).is_none());
        assert_eq!(bus.device_at(0x117f).unwrap().name(), "bar");
        assert_eq!(
            bus.relocate(0x1000, 0),
            Err(BusError::NotFound { base: 0x1000 })
        );
    }

    #[test]
    fn a_move_is_atomic_for_readers() {
        let bus = Arc::new(Bus::new());
        let stop = Arc::new(AtomicBool::new(false));
        bus.insert(0, 4, Memory::new("m", 4)).unwrap();
        bus.write(0, &[1, 1, 1, 1]);
        let reader = {
            let (bus, stop) = (Arc::clone(&bus), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // The device is always at 0..4 or at 2..6, so its middle always answers.
                    let mut data = [0; 2];
                    assert!(bus.read(2, &mut data));
                    assert_eq!(data, [1, 1]);
                }
            })
        };
        for _ in 0..5000 {
            bus.relocate(0, 2).unwrap();
            bus.relocate(2, 0).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64, u64),
        Remove(u64),
        Relocate(u64, u64),
        Read(u64, usize),
        Write(u64, Vec<u8>),
    }

    fn op() -> impl Strategy<Value = Op> {
        // A tiny address space with a wall at its top, so that collisions and overflows are common.
        let address = prop_oneof![0u64..48, (u64::MAX - 16)..=u64::MAX];
        let length = prop_oneof![0u64..12, Just(u64::MAX)];
        prop_oneof![
            (address.clone(), length).prop_map(|(a, l)| Op::Insert(a, l.min(64))),
            address.clone().prop_map(Op::Remove),
            (address.clone(), address.clone()).prop_map(|(a, b)| Op::Relocate(a, b)),
            (address.clone(), 0usize..12).prop_map(|(a, l)| Op::Read(a, l)),
            (address, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(a, d)| Op::Write(a, d)),
        ]
    }

    /// The plainest possible bus: one map entry an address, holding its range's base and its value.
    #[derive(Default)]
    struct Model {
        bytes: BTreeMap<u64, (u64, u8)>,
    }

    impl Model {
        fn insert(&mut self, base: u64, values: &[u8]) -> bool {
            let Some(addresses) = (0..values.len() as u64)
                .map(|i| base.checked_add(i))
                .collect::<Option<Vec<_>>>()
            else {
                return false;
            };
            if values.is_empty() || addresses.iter().any(|a| self.bytes.contains_key(a)) {
                return false;
            }
            for (address, value) in addresses.into_iter().zip(values) {
                self.bytes.insert(address, (base, *value));
            }
            true
        }

        fn remove(&mut self, base: u64) -> Option<Vec<u8>> {
            let values: Vec<u8> = self
                .bytes
                .values()
                .filter(|(b, _)| *b == base)
                .map(|(_, v)| *v)
                .collect();
            self.bytes.retain(|_, (b, _)| *b != base);
            (!values.is_empty()).then_some(values)
        }

        fn relocate(&mut self, base: u64, new: u64) -> bool {
            let Some(values) = self.remove(base) else {
                return false;
            };
            let done = self.insert(new, &values);
            if !done {
                self.insert(base, &values);
            }
            done
        }
    }

    proptest! {
        #[test]
        fn behaves_like_the_model(ops in prop::collection::vec(op(), 1..80)) {
            let bus = Bus::new();
            let mut model = Model::default();
            for op in ops {
                match op {
                    Op::Insert(base, length) => {
                        let bytes = usize::try_from(length).unwrap();
                        let done = bus.insert(base, length, Memory::new("m", bytes)).is_ok();
                        prop_assert_eq!(done, model.insert(base, &vec![0; bytes]));
                    }
                    Op::Remove(base) => {
                        prop_assert_eq!(bus.remove(base).is_ok(), model.remove(base).is_some());
                    }
                    Op::Relocate(base, new) => {
                        prop_assert_eq!(bus.relocate(base, new).is_ok(), model.relocate(base, new));
                    }
                    Op::Read(address, length) => {
                        let mut data = vec![0; length];
                        let claimed = bus.read(address, &mut data);
                        let cells: Vec<_> = (0..length as u64)
                            .map(|i| address.checked_add(i).and_then(|a| model.bytes.get(&a)))
                            .collect();
                        prop_assert_eq!(claimed, cells.iter().any(Option::is_some));
                        let expected: Vec<u8> = cells.iter().map(|c| c.map_or(0xff, |c| c.1)).collect();
                        prop_assert_eq!(data, expected);
                    }
                    Op::Write(address, data) => {
                        let mut hit = false;
                        for (i, byte) in data.iter().enumerate() {
                            let cell = address.checked_add(i as u64).and_then(|a| model.bytes.get_mut(&a));
                            if let Some(cell) = cell {
                                cell.1 = *byte;
                                hit = true;
                            }
                        }
                        prop_assert_eq!(bus.write(address, &data), hit);
                    }
                }
                let ranges = bus.ranges();
                prop_assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0), "sorted and disjoint");
                for address in (0..64).chain((u64::MAX - 20)..=u64::MAX) {
                    prop_assert_eq!(bus.device_at(address).is_some(), model.bytes.contains_key(&address));
                }
            }
        }
    }
}
