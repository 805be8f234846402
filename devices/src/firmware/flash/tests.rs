//! The command protocol as both firmwares speak it, what a hostile guest does to it, and a model for random commands.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::testing::LogLines;

/// The slot and the store, counted.
#[derive(Debug, Default)]
struct Outside {
    absent: AtomicBool,
    moves: AtomicUsize,
    refuses: AtomicBool,
    changes: AtomicUsize,
}

impl FlashSlot for Outside {
    fn set_present(&self, present: bool) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let was_absent = self.absent.swap(!present, Ordering::Relaxed);
        assert_eq!(was_absent, present, "only ever told what is new");
        self.moves.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl FlashChanged for Outside {
    fn flash_changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

struct Setup {
    flash: VarsFlash,
    memory: Arc<FlashMemory>,
    outside: Arc<Outside>,
}

impl Setup {
    /// Three sectors: all ones, all zeros, counting.
    fn new() -> Self {
        let counting = (0..SECTOR).map(|at| at.to_le_bytes()[0]);
        let image: Vec<u8> = [[0xff; SECTOR], [0; SECTOR]]
            .into_iter()
            .flatten()
            .chain(counting)
            .collect();
        let memory = Arc::new(FlashMemory::new(&image).unwrap());
        let outside = Arc::new(Outside::default());
        let flash = VarsFlash::new(
            Arc::clone(&memory),
            Arc::clone(&outside) as _,
            Arc::clone(&outside) as _,
        );
        Self {
            flash,
            memory,
            outside,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        for byte in bytes {
            self.flash.write(at, &[*byte]);
        }
    }

    /// What the guest reads: through the slot where it is present.
    fn read(&self, at: usize) -> u8 {
        if self.outside.absent.load(Ordering::Relaxed) {
            let mut byte = [0xaa];
            self.flash.read(at as u64, &mut byte);
            byte[0]
        } else {
            self.memory.snapshot()[at]
        }
    }

    fn moves(&self) -> usize {
        self.outside.moves.load(Ordering::Relaxed)
    }

    fn changes(&self) -> usize {
        self.outside.changes.load(Ordering::Relaxed)
    }
}

#[test]
fn firmware_of_2022_finds_a_flash() {
    let setup = Setup::new();
    let at = 2 * SECTOR + 0x10;
    setup.write(at as u64, &[CLEAR_STATUS]);
    assert_eq!(setup.read(at), 0x10, "not a RAM: still the data");
    setup.write(at as u64, &[READ_STATUS]);
    assert_eq!(setup.read(at), 0, "not a ROM: the status that was cleared");
    setup.write(at as u64, &[0xff]);
    assert_eq!(setup.read(at), 0x10);
    assert_eq!((setup.moves(), setup.changes()), (2, 0));
}

#[test]
fn firmware_of_2025_finds_a_flash_that_can_be_written() {
    let setup = Setup::new();
    let at = 2 * SECTOR + 0x10;
    setup.write(at as u64, &[CLEAR_STATUS, READ_STATUS]);
    assert_eq!(setup.read(at), 0);
    setup.write(at as u64, &[0x10, 0x10, READ_STATUS]);
    assert_eq!(setup.read(at), READY, "done, and not write-protected");
    setup.write(at as u64, &[0xff]);
    assert_eq!(setup.read(at), 0x10);
    assert_eq!(
        (setup.moves(), setup.changes()),
        (2, 0),
        "the byte was so before"
    );
}

#[test]
fn bytes_are_programmed_and_sectors_erased_without_moving_the_slot() {
    let setup = Setup::new();
    for (at, value) in (0x100u64..).zip(*b"Boot0000") {
        setup.write(at, &[0x10, value]);
    }
    setup.write(0x100, &[0xff]);
    assert_eq!(setup.memory.snapshot()[0x100..0x108], *b"Boot0000");
    assert_eq!(setup.changes(), 8);
    setup.write(0x100, &[0x40, 0xf0]);
    assert_eq!(setup.read(0x100), b'B' & 0xf0, "bits are only cleared");
    setup.write(0x1080, &[0x10, 0xff]);
    assert_eq!(setup.read(0x1080), 0, "and never set");
    setup.write(0x1fff, &[0x20, 0xd0, 0xff]);
    let image = setup.memory.snapshot();
    assert!(image[0x1000..0x2000].iter().all(|byte| *byte == 0xff));
    assert_eq!(&image[0x2000..0x2003], &[0, 1, 2], "its neighbours stay");
    assert_eq!(setup.read(0x101), b'o');
    assert_eq!(setup.changes(), 10);
    setup.write(0x1000, &[0x20, 0xd0]);
    assert_eq!(setup.changes(), 10, "it was erased already");
    assert_eq!(setup.moves(), 0);
}

#[test]
fn programming_while_the_status_is_read_keeps_it_readable() {
    let setup = Setup::new();
    setup.write(0, &[READ_STATUS, READ_STATUS, 0x10, 0x55]);
    assert_eq!(setup.read(0), READY);
    setup.write(0, &[CLEAR_STATUS]);
    assert_eq!(setup.read(0), 0x55);
    assert_eq!(setup.moves(), 2);
}

#[test]
fn half_commands_do_nothing_but_show_in_the_status() {
    let setup = Setup::new();
    let before = setup.memory.snapshot();
    for second in [0x00, 0xff] {
        setup.write(0, &[CLEAR_STATUS, ERASE, second, READ_STATUS]);
        assert_eq!(setup.read(0), 0, "changed its mind");
    }
    for second in [0x10, 0x20, 0x50, 0x70, 0x90, 0xd1] {
        setup.write(SECTOR as u64, &[CLEAR_STATUS, ERASE, second, READ_STATUS]);
        assert_eq!(setup.read(SECTOR), READY | SEQUENCE_ERROR, "{second:#x}");
    }
    setup.write(0, &[CLEAR_STATUS, ERASE_CONFIRM, READ_STATUS]);
    assert_eq!(setup.read(0), 0, "a second half without a first");
    setup.write(0, &[0x98, 0xe8, 0x90]);
    assert_eq!(
        setup.read(0),
        0xff,
        "unknown commands end in the array: the guest is not left with a status"
    );
    assert!(setup.memory.snapshot() == before);
    assert_eq!(setup.changes(), 0);
}

#[test]
fn wide_and_far_accesses_do_nothing() {
    let setup = Setup::new();
    let before = setup.memory.snapshot();
    for width in [0, 2, 4, 8] {
        setup.flash.write(0, &[0x10]);
        setup.flash.write(0, &vec![0; width]);
        setup.flash.write(0, &[0xff]);
    }
    for at in [3 * SECTOR as u64, u64::MAX] {
        setup.write(at, &[0x10, 0, 0x20, 0xd0, 0xff]);
        let mut data = [0xee; 8];
        setup.flash.read(at, &mut data);
        assert_eq!(data, [0xee; 8]);
    }
    let mut data = [0xee; 8];
    setup.flash.read(3 * SECTOR as u64 - 2, &mut data);
    assert_eq!(data, [0xfe, 0xff, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
    setup.write(0, &[READ_STATUS]);
    setup.flash.read(u64::MAX, &mut data);
    assert_eq!(data, [READY; 8]);
    assert!(setup.memory.snapshot() == before);
    assert_eq!(setup.changes(), 0);
}

#[test]
fn a_slot_that_cannot_move_costs_no_data() {
    let setup = Setup::new();
    setup.outside.refuses.store(true, Ordering::Relaxed);
    setup.write(0, &[READ_STATUS, 0x10, 0x55]);
    assert_eq!(setup.read(0), 0x55, "still through the slot");
    setup.write(0, &[0xff]);
    setup.outside.refuses.store(false, Ordering::Relaxed);
    setup.write(0, &[READ_STATUS]);
    setup.outside.refuses.store(true, Ordering::Relaxed);
    setup.write(0, &[0xff]);
    let mut data = [0; 2];
    setup.flash.read(0, &mut data);
    assert_eq!(data, [0x55, 0xff], "the device answers for the slot");
    setup.outside.refuses.store(false, Ordering::Relaxed);
    setup.write(0, &[0xff]);
    assert!(
        !setup.outside.absent.load(Ordering::Relaxed),
        "back at last"
    );
}

#[test]
fn a_storm_of_nonsense_is_logged_once() {
    let setup = Setup::new();
    let lines = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(LogLines(Arc::clone(&lines)), || {
        for _ in 0..10_000 {
            setup.write(0, &[0x98]);
            setup.flash.write(0, &[1, 2]);
        }
    });
    assert_eq!(lines.load(Ordering::Relaxed), 1);
}

#[test]
fn code_is_read_and_not_written() {
    let memory = Arc::new(FlashMemory::new(&[7; SECTOR]).unwrap());
    let code = CodeFlash::new(Arc::clone(&memory));
    for byte in [0x50, 0x70, 0x10, 0, 0x20, 0xd0] {
        code.write(0x10, &[byte]);
    }
    let mut data = [0; 4];
    code.read(SECTOR as u64 - 2, &mut data);
    assert_eq!(data, [7, 7, 0, 0]);
    code.read(u64::MAX, &mut data);
    assert!(memory.snapshot().iter().all(|byte| *byte == 7));
}

#[test]
fn a_flash_consists_of_sectors() {
    for size in [0, 1, SECTOR - 1, SECTOR + 1] {
        let error = FlashMemory::new(&vec![0; size]).unwrap_err();
        assert!(matches!(error, FlashError::Size(s) if s == size), "{error}");
    }
    let flash = FlashMemory::new(&[1; 2 * SECTOR]).unwrap();
    assert_eq!(flash.size(), 2 * SECTOR);
    assert!(!flash.host_address().is_null());
}

/// The chip as its data sheet describes it, as far as the guest can tell.
#[derive(Default)]
struct Model {
    image: Vec<u8>,
    status: u8,
    shows_status: bool,
    begun: u8,
}

impl Model {
    fn write(&mut self, at: usize, data: &[u8]) {
        let &[value] = data else {
            self.begun = 0;
            return;
        };
        match (std::mem::take(&mut self.begun), value) {
            (0x10 | 0x40, _) => {
                self.status |= 0x80;
                if let Some(byte) = self.image.get_mut(at) {
                    *byte &= value;
                }
            }
            (0x20, 0xd0) => {
                self.status |= 0x80;
                let start = at / SECTOR * SECTOR;
                if let Some(sector) = self.image.get_mut(start..start + SECTOR) {
                    sector.fill(0xff);
                }
            }
            (0x20, value) if value != 0 && value != 0xff => self.status |= 0xb0,
            (_, 0x10 | 0x20 | 0x40) => self.begun = value,
            (_, 0x70) => self.shows_status = true,
            (_, 0x50) => (self.status, self.shows_status) = (0, false),
            _ => self.shows_status = false,
        }
    }
}

fn byte() -> impl Strategy<Value = u8> {
    let commands = vec![0xff, 0x00, 0x50, 0x70, 0x10, 0x40, 0x20, 0xd0];
    prop_oneof![4 => prop::sample::select(commands), 1 => any::<u8>()]
}

proptest! {
    #[test]
    fn random_commands_do_what_the_model_does(
        steps in prop::collection::vec(
            (0usize..3 * SECTOR + 8, prop_oneof![
                8 => byte().prop_map(|byte| vec![byte]),
                1 => prop::collection::vec(byte(), 0..9),
            ]),
            0..200,
        ),
    ) {
        let setup = Setup::new();
        let mut model = Model {
            image: setup.memory.snapshot(),
            status: READY,
            ..Model::default()
        };
        for (at, data) in steps {
            let before = setup.changes();
            let old = model.image.clone();
            model.write(at, &data);
            setup.flash.write(at as u64, &data);
            prop_assert_eq!(setup.changes() - before, usize::from(old != model.image));
            prop_assert_eq!(setup.outside.absent.load(Ordering::Relaxed), model.shows_status);
            let mut read = [0];
            setup.flash.read(0, &mut read);
            prop_assert_eq!(read[0], if model.shows_status { model.status } else { model.image[0] });
        }
        prop_assert!(setup.memory.snapshot() == model.image);
    }
}
