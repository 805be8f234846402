//! BARs moved over RAM, over other devices, away and back. RAM always wins; a place that is taken leaves the BAR nowhere.

use super::super::driver::register;
use super::super::machine::Function;
use super::super::rig::{high, low, move_bar};
use super::super::{Attack, Case, Expect, Rig, Stop};
use super::{ALL, check, same, storm};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("over-ram", ALL, Serves, over_ram),
    Case::new("over-the-first-page", ALL, Serves, |rig| {
        elsewhere(rig, &[0, 0x1_0000])
    }),
    Case::new("over-ecam", ALL, Serves, |rig| {
        elsewhere(rig, &[0xe000_0000, 0xefff_0000])
    }),
    Case::new("over-the-interrupt-controllers", ALL, Serves, |rig| {
        elsewhere(rig, &[0xfec0_0000, 0xfee0_0000])
    }),
    Case::new("over-kvm-s-own-pages", ALL, Serves, |rig| {
        elsewhere(rig, &[0xfeff_0000, 0xffff_0000])
    }),
    Case::new("across-the-end-of-ram", ALL, Serves, |rig| {
        let end = rig.machine.ram_end();
        elsewhere(rig, &[end - 0x1_0000, end])
    }),
    Case::new("at-the-end-of-the-address-space", ALL, Serves, |rig| {
        elsewhere(rig, &[!0xffff, 1 << 63, 1 << 52, (1 << 52) - 0x1_0000])
    }),
    Case::new("sized-while-decoding", ALL, Serves, sized),
    Case::new("moved-by-halves-and-bytes", ALL, Serves, by_halves),
    Case::new("over-a-neighbour", ALL, Serves, over_neighbour),
    Case::new("swapped-with-a-neighbour", ALL, Serves, swapped),
    Case::new("decoding-switched-off", ALL, Serves, decoding_off),
    Case::new("moved-under-a-request", ALL, Serves, under_request),
    Case::new("reset-while-it-is-elsewhere", ALL, Serves, reset_elsewhere),
    Case::new("storm-of-moves", ALL, Serves, move_storm),
    Case::new("storm-of-decoding", ALL, Serves, decoding_storm),
];

/// A free place: in the window for 32-bit BARs, which nothing uses.
const FREE: u64 = 0xc800_0000;

/// What tells where a BAR is: the number of queues, or ones where nothing answers.
fn queues(rig: &Rig<'_>) -> u64 {
    rig.driver.read(register::NUM_QUEUES, 2)
}

fn gone(rig: &Rig<'_>) -> Attack {
    same("what answers where the BAR was", queues(rig), 0xffff)
}

fn back(rig: &Rig<'_>) -> Attack {
    rig.move_bar(rig.home);
    check(queues(rig) != 0xffff, || {
        "the BAR does not come back".to_owned()
    })
}

fn over_ram(rig: &mut Rig<'_>) -> Attack {
    let address = rig.allocate(0x1_0000, 0x1_0000)?;
    let pattern: Vec<u8> = (0..0x1_0000_u32)
        .map(|at| at.to_le_bytes()[1] ^ 0x5a)
        .collect();
    rig.ram().write(address, &pattern);
    rig.move_bar(address);
    gone(rig)?;
    let unharmed = rig.bytes(address, 0x1_0000) == pattern;
    rig.ram().write(address, &[0xff; 0x1_0000]);
    let written = rig
        .bytes(address, 0x1_0000)
        .iter()
        .all(|byte| *byte == 0xff);
    back(rig)?;
    check(unharmed && written, || {
        "RAM below the BAR is not RAM any more".to_owned()
    })
}

/// To these places in turn, and back after each.
fn elsewhere(rig: &mut Rig<'_>, places: &[u64]) -> Attack {
    for place in places {
        rig.move_bar(*place);
        gone(rig)?;
        back(rig)?;
        rig.serve()?;
    }
    Ok(())
}

/// All ones, as firmware asks for a BAR's size, without switching decoding off before.
fn sized(rig: &mut Rig<'_>) -> Attack {
    let function = rig.driver.function;
    let length = function.bar_length();
    let flags = function.read_config(0x10, 4) & 0xf;
    function.write_config(0x10, 4, u32::MAX);
    let mask = function.read_config(0x10, 4);
    function.write_config(0x14, 4, u32::MAX);
    let upper = function.read_config(0x14, 4);
    back(rig)?;
    let size = low(!(length - 1)) | flags;
    same("the BAR's size mask", (mask, upper), (size, u32::MAX))
}

fn by_halves(rig: &mut Rig<'_>) -> Attack {
    let function = rig.driver.function;
    function.write_config(0x10, 4, low(FREE));
    function.write_config(0x14, 4, high(FREE));
    gone(rig)?;
    for (offset, byte) in (0x10..0x18).zip(rig.home.to_le_bytes()) {
        function.write_config(offset, 1, byte.into());
    }
    check(queues(rig) != 0xffff, || {
        "the BAR does not come back by bytes".to_owned()
    })?;
    for (offset, half) in [
        (0x16, high(FREE) >> 16),
        (0x12, low(FREE) >> 16),
        (0x14, high(FREE) & 0xffff),
    ] {
        function.write_config(offset, 2, half);
    }
    back(rig)
}

/// The neighbour, and where its BAR is.
fn neighbour<'a>(rig: &Rig<'a>) -> Result<(&'a dyn Function, u64), Stop> {
    let neighbour = rig.machine.neighbour();
    let neighbour = neighbour.ok_or(Stop::Lacking("a neighbour"))?;
    let there = u64::from(neighbour.read_config(0x14, 4)) << 32
        | u64::from(neighbour.read_config(0x10, 4) & !0xf);
    Ok((neighbour, there))
}

fn over_neighbour(rig: &mut Rig<'_>) -> Attack {
    let (neighbour, there) = neighbour(rig)?;
    let before = neighbour.read_bar(register::NUM_QUEUES, 2);
    for place in [there, there - 0x1_0000, there + 0x1_0000] {
        rig.move_bar(place);
        let seen = neighbour.read_bar(register::NUM_QUEUES, 2);
        same("the neighbour's number of queues", seen, before)?;
    }
    back(rig)
}

/// Each at the other's place: two registers cannot be written at once, so one of them is nowhere for a moment.
fn swapped(rig: &mut Rig<'_>) -> Attack {
    let (neighbour, there) = neighbour(rig)?;
    let common = rig.driver.layout.common;
    let identity = |function: &dyn Function| {
        let read = |register, width| function.read_bar(common + register, width);
        (read(register::NUM_QUEUES, 2), read(register::STATUS, 1))
    };
    let (mine, theirs) = (identity(rig.driver.function), identity(neighbour));
    rig.move_bar(there);
    move_bar(neighbour, rig.home);
    rig.move_bar(there);
    let crossed = (identity(neighbour), identity(rig.driver.function));
    rig.move_bar(FREE);
    move_bar(neighbour, there);
    back(rig)?;
    same("what answers at the two places", crossed, (mine, theirs))
}

fn decoding_off(rig: &mut Rig<'_>) -> Attack {
    rig.set_decoding(false);
    gone(rig)?;
    // These go nowhere.
    rig.driver.set_status(0);
    rig.driver.kick(rig.main.queue);
    rig.set_decoding(true);
    check(queues(rig) != 0xffff, || {
        "the BAR does not come back".to_owned()
    })
}

/// A request goes on while the BAR is elsewhere.
fn under_request(rig: &mut Rig<'_>) -> Attack {
    let head = rig.submit();
    rig.move_bar(FREE);
    let ram = rig.ram();
    let used = rig
        .main
        .wait_used(ram, head, std::time::Duration::from_secs(15));
    back(rig)?;
    check(used.is_some(), || {
        "the request is lost with the BAR".to_owned()
    })
}

fn reset_elsewhere(rig: &mut Rig<'_>) -> Attack {
    rig.move_bar(FREE);
    rig.driver.set_status(0);
    rig.set_decoding(false);
    rig.move_bar(rig.home);
    rig.set_decoding(true);
    // The reset went nowhere: the device runs on.
    check(rig.driver.status() & 4 != 0, || {
        "a reset reached the device where it is not".to_owned()
    })
}

fn move_storm(rig: &mut Rig<'_>) -> Attack {
    let (ram, end) = (rig.ram().base(), rig.machine.ram_end());
    let places = [FREE, ram, 0xe000_0000, end, 0xfee0_0000, !0xffff, rig.home];
    storm(rig.machine, |round| {
        let place = places[usize::try_from(round % 7).unwrap_or(0)];
        rig.move_bar(place);
        if place == rig.home && round % 35 == 6 {
            rig.serve()?;
        }
        Ok(())
    })?;
    back(rig)
}

fn decoding_storm(rig: &mut Rig<'_>) -> Attack {
    storm(rig.machine, |round| {
        rig.set_decoding(false);
        rig.set_decoding(true);
        if round % 16 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    Ok(())
}
