//! The two flash chips of UEFI firmware: commands in every state, of every width, in storms, and to the chip that takes none.
//!
//! What is in them is firmware's, which would not start again without: it is read before each case, and put back after it. Then the chip
//! must also be found in the way in which firmware finds it.

use super::super::machine::Physical;
use super::super::{Attack, Case, Expect, Rig, Stop};
use super::{Noise, ONCE, WIDTHS, check, same, storm};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("every-command-in-every-state", ONCE, Serves, |rig| {
        with(rig, every_command)
    }),
    Case::new("commands-of-odd-widths", ONCE, Serves, |rig| {
        with(rig, odd_widths)
    }),
    Case::new("commands-in-two-places", ONCE, Serves, |rig| {
        with(rig, two_places)
    }),
    Case::new("commands-that-are-broken-off", ONCE, Serves, |rig| {
        with(rig, broken_off)
    }),
    Case::new("everything-erased", ONCE, Serves, |rig| {
        with(rig, everything_erased)
    }),
    Case::new("storm-of-bytes", ONCE, Serves, |rig| {
        with(rig, storm_of_bytes)
    }),
    Case::new("storm-of-erasures", ONCE, Serves, |rig| {
        with(rig, storm_of_erasures)
    }),
    Case::new("storm-of-status-and-array", ONCE, Serves, |rig| {
        with(rig, storm_of_status)
    }),
    Case::new("status-read-everywhere", ONCE, Serves, |rig| {
        with(rig, status_everywhere)
    }),
    Case::new("storm-of-noise", ONCE, Serves, |rig| {
        with(rig, storm_of_noise)
    }),
    Case::new("commands-to-the-code", ONCE, Serves, |rig| {
        with(rig, commands_to_the_code)
    }),
];

const ARRAY: u8 = 0xff;
const CLEAR: u8 = 0x50;
const STATUS: u8 = 0x70;
const PROGRAM: u8 = 0x10;
const ERASE: u8 = 0x20;
const CONFIRM: u8 = 0xd0;

/// The status of a chip that is done, and of one that was given an erasure without its second half.
const DONE: u8 = 0x80;
const SEQUENCE: u8 = 0xb0;

const SECTOR: u64 = 0x1000;
const FOUR_GIB: u64 = 1 << 32;
/// Where Debian's firmware has its variables: of 4 MiB, and of 2.
const PLACES: [u64; 2] = [0xffc0_0000, 0xffe0_0000];
/// In the header of a firmware volume: "_FVH", and the volume's length.
const SIGNATURE_AT: u64 = 0x28;
const SIGNATURE: u64 = 0x4856_465f;
const LENGTH_AT: u64 = 0x20;

/// The chip with the variables, with what was in it; behind it is the one with the code.
struct Flash<'a> {
    physical: &'a dyn Physical,
    base: u64,
    length: u64,
    found: Vec<u8>,
}

/// Runs an attack on the chips and puts everything back, whatever came of it.
fn with<'a>(rig: &mut Rig<'a>, attack: impl FnOnce(&mut Rig<'a>, &Flash<'a>) -> Attack) -> Attack {
    let flash = Flash::find(rig)?;
    let code = flash.code();
    let result = attack(rig, &flash);
    let restored = flash.restore();
    result.and(restored)?;
    check(flash.code() == code, || "the code has changed".to_owned())?;
    flash.is_found()
}

impl<'a> Flash<'a> {
    fn find(rig: &Rig<'a>) -> Result<Self, Stop> {
        let physical = super::physical(rig)?;
        let is_there = |base: &u64| physical.read(base + SIGNATURE_AT, 4) == Some(SIGNATURE);
        let base = PLACES.into_iter().find(is_there);
        let base = base.ok_or(Stop::Lacking("flash with variables"))?;
        let length = physical.read(base + LENGTH_AT, 8).unwrap_or(0);
        let mut this = Self {
            physical,
            base,
            length,
            found: Vec::new(),
        };
        check(
            length.is_multiple_of(SECTOR) && (2 * SECTOR..FOUR_GIB - base).contains(&length),
            || format!("variables of {length:#x} bytes at {base:#x}"),
        )?;
        this.found = this.bytes(0, length);
        Ok(this)
    }

    fn read(&self, offset: u64, width: usize) -> u64 {
        let read = self.physical.read(self.base + offset, width);
        read.unwrap_or(u64::MAX)
    }

    fn byte(&self, offset: u64) -> u8 {
        self.read(offset, 1).to_le_bytes()[0]
    }

    fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        let words = (offset..offset + length).step_by(8);
        words
            .flat_map(|at| self.read(at, 8).to_le_bytes())
            .collect()
    }

    /// What is at the end of the code, where it begins.
    fn code(&self) -> Vec<u8> {
        self.bytes(FOUR_GIB - self.base - SECTOR, SECTOR)
    }

    fn write(&self, offset: u64, width: usize, value: u64) {
        self.physical.write(self.base + offset, width, value);
    }

    fn send(&self, offset: u64, commands: &[u8]) {
        for command in commands {
            self.write(offset, 1, (*command).into());
        }
    }

    /// Asks for the status, and then for the array again.
    fn status(&self) -> u8 {
        self.send(0, &[STATUS]);
        let status = self.byte(0);
        self.send(0, &[ARRAY]);
        status
    }

    /// From whatever state to the array: all ones program nothing and confirm nothing.
    fn calm(&self) {
        self.send(self.length - 1, &[ARRAY, ARRAY]);
    }

    /// The last sector.
    fn last(&self) -> u64 {
        self.length - SECTOR
    }

    fn sector(&self, offset: u64) -> &[u8] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let sector = start..start.saturating_add(usize::try_from(SECTOR).unwrap_or(0));
        self.found.get(sector).unwrap_or_default()
    }

    fn restore(&self) -> Attack {
        self.calm();
        for offset in (0..self.length).step_by(usize::try_from(SECTOR).unwrap_or(1)) {
            self.restore_sector(offset);
        }
        check(self.bytes(0, self.length) == self.found, || {
            "the flash cannot be made what it was".to_owned()
        })
    }

    fn restore_sector(&self, offset: u64) {
        let (mut now, wanted) = (self.bytes(offset, SECTOR), self.sector(offset));
        if now
            .iter()
            .zip(wanted)
            .any(|(now, wanted)| now & wanted != *wanted)
        {
            self.send(offset, &[ERASE, CONFIRM]);
            now.fill(0xff);
        }
        for (at, (now, wanted)) in (offset..).zip(now.iter().zip(wanted)) {
            if now != wanted {
                self.send(at, &[PROGRAM, *wanted]);
            }
        }
    }

    /// As firmware finds out that it is one: by the status, and by a byte that is programmed to what it is.
    fn is_found(&self) -> Attack {
        let (at, byte) = (SECTOR, self.byte(SECTOR));
        self.send(at, &[CLEAR]);
        same("the array's byte", self.byte(at), byte)?;
        self.send(at, &[STATUS]);
        same("the status that was cleared", self.byte(at), 0)?;
        self.send(at, &[PROGRAM, byte, STATUS]);
        same("the status of a byte", self.byte(at), DONE)?;
        self.send(at, &[ARRAY]);
        same("the array's byte", self.byte(at), byte)
    }
}

fn every_command(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    for state in [ARRAY, STATUS, PROGRAM, 0x40, ERASE, CLEAR] {
        for command in 0..=0xff {
            let at = flash.last() + u64::from(command);
            flash.send(at, &[state, command]);
            let _ = flash.byte(at);
        }
        flash.calm();
    }
    Ok(())
}

/// Not a command, whatever the bytes are; also at the last place of a sector and of the chip.
fn odd_widths(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    for command in [ERASE, CONFIRM, PROGRAM, 0x40, 0, STATUS, CLEAR, ARRAY] {
        let value = u64::from_le_bytes([command; 8]);
        for width in [2, 4, 8] {
            for end in [SECTOR, 2 * SECTOR, flash.length] {
                flash.write(end - width, usize::try_from(width).unwrap_or(8), value);
                flash.write(end - 8, usize::try_from(width).unwrap_or(8), value);
                let _ = flash.read(end - width, usize::try_from(width).unwrap_or(8));
            }
        }
    }
    // Between a command's halves it is the end of the command.
    flash.send(flash.last(), &[ERASE]);
    flash.write(flash.last(), 2, u64::from(CONFIRM));
    flash.send(flash.last(), &[CONFIRM]);
    flash.send(flash.last(), &[PROGRAM]);
    flash.write(flash.last(), 8, 0);
    flash.send(flash.last(), &[ARRAY]);
    check(flash.bytes(0, flash.length) == flash.found, || {
        "a write that is no byte has changed the flash".to_owned()
    })
}

/// A command's second half says where.
fn two_places(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let (one, other) = (flash.last() - SECTOR, flash.last());
    flash.send(one, &[ERASE]);
    flash.send(other + SECTOR - 1, &[CONFIRM]);
    check(flash.bytes(one, SECTOR) == flash.sector(one), || {
        "a sector is erased that is not confirmed".to_owned()
    })?;
    check(
        flash.bytes(other, SECTOR).iter().all(|byte| *byte == 0xff),
        || "the sector is not erased".to_owned(),
    )?;
    // Half of it to the other chip: that one takes nothing, and this one waits.
    flash.send(other, &[PROGRAM]);
    flash.send(flash.length, &[0]);
    flash.send(other + 1, &[0x5a]);
    same(
        "the bytes",
        [flash.byte(other), flash.byte(other + 1)],
        [0xff, 0x5a],
    )
}

fn broken_off(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    flash.send(0, &[CLEAR, ERASE, 0x12]);
    same("the status", flash.status(), SEQUENCE)?;
    flash.send(0, &[CLEAR]);
    same("the status", flash.status(), 0)?;
    // Ended by what asks for the array; what would have confirmed it is then a command that there is not.
    flash.send(0, &[ERASE, ARRAY, CONFIRM]);
    flash.send(0, &[STATUS, ERASE, 0x12, ARRAY]);
    check(flash.bytes(0, flash.length) == flash.found, || {
        "a command that was broken off has changed the flash".to_owned()
    })
}

fn everything_erased(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    for offset in (0..flash.length).step_by(usize::try_from(SECTOR).unwrap_or(1)) {
        flash.send(offset, &[ERASE, CONFIRM]);
    }
    let erased = flash
        .bytes(0, flash.length)
        .iter()
        .all(|byte| *byte == 0xff);
    check(erased, || "not everything is erased".to_owned())
}

/// Bytes of the last sector, over each other: only bits that are set can go.
fn storm_of_bytes(rig: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let mut noise = Noise(30);
    let mut model = flash.sector(flash.last()).to_vec();
    storm(rig.machine, |_| {
        let [at, value] = [SECTOR, 0x100].map(|bound| noise.below(bound));
        let value = value.to_le_bytes()[0];
        flash.send(flash.last() + at, &[PROGRAM, value]);
        if let Some(byte) = usize::try_from(at).ok().and_then(|at| model.get_mut(at)) {
            *byte &= value;
        }
        Ok(())
    })?;
    check(flash.bytes(flash.last(), SECTOR) == model, || {
        "the bytes are not what was programmed".to_owned()
    })
}

/// What is erased changes each time, so each time there is something to be kept.
fn storm_of_erasures(rig: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let at = flash.last();
    storm(rig.machine, |_| {
        flash.send(at, &[PROGRAM, 0, ERASE, CONFIRM]);
        Ok(())
    })?;
    same("an erased byte", flash.byte(at), 0xff)
}

/// Each change of what reads give is one of the memory map.
fn storm_of_status(rig: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let byte = flash.byte(0);
    flash.send(0, &[CLEAR]);
    storm(rig.machine, |_| {
        flash.send(0, &[STATUS]);
        same("the status", flash.byte(flash.last()), 0)?;
        flash.send(0, &[ARRAY]);
        same("the array's byte", flash.byte(0), byte)
    })?;
    Ok(())
}

fn status_everywhere(_: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    flash.send(0, &[CLEAR, STATUS]);
    for page in (0..flash.length).step_by(usize::try_from(SECTOR).unwrap_or(1)) {
        for (width, at) in WIDTHS.into_iter().zip([0, 0xfff, 0x7fd, 0xff8]) {
            let at = if width == 2 { page + 0xffe } else { page + at };
            same("the status", flash.read(at, width), 0)?;
        }
    }
    Ok(())
}

/// Bytes that are mostly commands, anywhere in the last sectors and at the beginning of the code.
fn storm_of_noise(rig: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let mut noise = Noise(31);
    let commands = [
        ARRAY, CLEAR, STATUS, PROGRAM, ERASE, CONFIRM, 0x40, 0, 0x90, 0xe8,
    ];
    storm(rig.machine, |step| {
        let at = flash.length - 4 * SECTOR + noise.below(5 * SECTOR - 8);
        let choice = usize::try_from(noise.below(12)).unwrap_or(0);
        let value = commands.get(choice).map_or(noise.next(), |it| (*it).into());
        let width = if step % 8 == 0 { 2 } else { 1 };
        // Not across a page.
        let at = if width == 2 { at & !1 } else { at };
        flash.write(at, width, value);
        if step % 4 == 0 {
            let _ = flash.read(at & !7, 8);
        }
        Ok(())
    })?;
    Ok(())
}

/// It takes none, so reads stay what they are.
fn commands_to_the_code(rig: &mut Rig<'_>, flash: &Flash<'_>) -> Attack {
    let (start, end) = (flash.length, FOUR_GIB - flash.base);
    let reset = flash.read(end - 16, 8);
    for at in [start, start + 0x10, end - SECTOR, end - 16, end - 1] {
        for command in 0..=0xff {
            flash.send(at, &[command]);
        }
        flash.send(at, &[ERASE, CONFIRM, PROGRAM, 0, STATUS]);
        same("the reset vector", flash.read(end - 16, 8), reset)?;
    }
    let mut noise = Noise(32);
    storm(rig.machine, |_| {
        let at = (start + noise.below(end - start)) & !7;
        flash.write(at, 8, noise.next());
        same("the reset vector", flash.read(end - 16, 8), reset)
    })?;
    Ok(())
}
