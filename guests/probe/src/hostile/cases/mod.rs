//! The cases, a module for each group; requests in one for each device.

mod balloon;
mod bars;
mod blk;
mod chipset;
mod console;
mod flash;
mod floods;
mod fw_cfg;
mod mem;
mod msix;
mod net;
mod protocol;
mod registers;
mod rings;
mod rng;
mod scsi;
mod setup;
mod storms;
mod sweeps;

use super::driver::{Descriptor, Piece, Ring};
use super::machine::{Machine, Physical, Ports};
use super::{Attack, Group, Kind, Rig, Stop};
use std::time::Instant;

/// On every device.
const ALL: &[Kind] = &Kind::ALL;
/// The machine's, not a device's: once is enough.
const ONCE: &[Kind] = &[Kind::Rng];

pub(super) const GROUPS: &[Group] = &[
    group("rings", rings::CASES),
    group("setup", setup::CASES),
    group("protocol", protocol::CASES),
    group("registers", registers::CASES),
    group("msix", msix::CASES),
    group("bars", bars::CASES),
    group("storms", storms::CASES),
    group("sweeps", sweeps::CASES),
    group("floods", floods::CASES),
    group("blk", blk::CASES),
    group("net", net::CASES),
    group("console", console::CASES),
    group("rng", rng::CASES),
    group("balloon", balloon::CASES),
    group("mem", mem::CASES),
    group("scsi", scsi::CASES),
    group("chipset", chipset::CASES),
    of_firmware("flash", flash::CASES),
    of_firmware("fw_cfg", fw_cfg::CASES),
];

const fn group(name: &'static str, cases: &'static [super::Case]) -> Group {
    Group {
        name,
        firmware: false,
        cases,
    }
}

const fn of_firmware(name: &'static str, cases: &'static [super::Case]) -> Group {
    Group {
        name,
        firmware: true,
        cases,
    }
}

fn ports<'a>(rig: &Rig<'a>) -> Result<&'a dyn Ports, Stop> {
    rig.machine.ports().ok_or(Stop::Lacking("I/O ports"))
}

fn physical<'a>(rig: &Rig<'a>) -> Result<&'a dyn Physical, Stop> {
    rig.machine
        .physical()
        .ok_or(Stop::Lacking("physical addresses"))
}

/// Fails the case unless `right`.
fn check(right: bool, what: impl FnOnce() -> String) -> Attack {
    if right {
        Ok(())
    } else {
        Err(Stop::Wrong(what()))
    }
}

/// Fails the case unless the two are the same.
#[expect(
    clippy::needless_pass_by_value,
    reason = "numbers and small lists made for the comparison"
)]
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Attack {
    check(found == wanted, || {
        format!("{what} is {found:x?} instead of {wanted:x?}")
    })
}

/// Writes descriptors 0, 1, … of the main queue and offers the first.
fn offer(rig: &mut Rig<'_>, descriptors: &[Descriptor]) {
    let ram = rig.ram();
    for (slot, descriptor) in (0..).zip(descriptors) {
        rig.main.describe(ram, slot, *descriptor);
    }
    rig.main.offer(ram, 0);
    rig.driver.kick(rig.main.queue);
}

/// A descriptor of `length` bytes at `address`.
fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

/// An indirect table with these entries; its address and length.
fn table(rig: &mut Rig<'_>, entries: &[Descriptor]) -> Result<(u64, u32), String> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes()).collect();
    let length = u32::try_from(bytes.len()).map_err(|error| error.to_string())?;
    Ok((rig.place(&bytes)?, length))
}

/// Does something again and again for as long as a storm lasts; how often.
fn storm(machine: &dyn Machine, mut each: impl FnMut(u64) -> Attack) -> Result<u64, Stop> {
    let end = Instant::now() + machine.storm();
    let mut count = 0;
    while Instant::now() < end {
        each(count)?;
        count += 1;
    }
    Ok(count)
}

/// Numbers that look random and are the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::stream::mix(self.0)
    }

    /// One below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The widths of an access to memory.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// A device that runs with a ring of ours on another queue, too.
fn with_queue(rig: &mut Rig<'_>, queue: u16) -> Result<Ring, Stop> {
    rig.prepare()?;
    let address = rig.allocate(Ring::footprint(64), 4096)?;
    let ring = Ring::new(rig.ram(), queue, 64, address);
    rig.driver.enable(&ring);
    rig.start();
    Ok(ring)
}

/// Whether a chain with these pieces is used, whatever comes of it.
fn used(rig: &mut Rig<'_>, pieces: &[Piece]) -> Result<u32, Stop> {
    Ok(rig.exchange(pieces)?.length)
}
