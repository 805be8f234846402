//! fw_cfg: selections of everything, reads far beyond an end, and transfers to and from places where no memory is.
//!
//! What transfers write goes to the attacker's own memory, or to where no RAM is: the host tells where that is, in `etc/e820`. After each
//! case firmware must find fw_cfg as it finds it, by ports and by transfers.

use super::super::machine::{Ports, Ram};
use super::super::rig::{high, low};
use super::super::{Attack, Case, Expect, Rig, Stop};
use super::{Noise, ONCE, check, chipset, same, storm};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("every-selection", ONCE, Serves, |rig| {
        with(rig, every_selection)
    }),
    Case::new("items-read-far-beyond-their-ends", ONCE, Serves, |rig| {
        with(rig, beyond_the_end)
    }),
    Case::new("data-written-by-ports", ONCE, Serves, |rig| {
        with(rig, written_by_ports)
    }),
    Case::new("ports-with-odd-widths", ONCE, Serves, |rig| {
        with(rig, odd_widths)
    }),
    Case::new("transfers-of-all-controls", ONCE, Serves, |rig| {
        with(rig, all_controls)
    }),
    Case::new("transfers-of-all-lengths", ONCE, Serves, |rig| {
        with(rig, all_lengths)
    }),
    Case::new("transfers-outside-ram", ONCE, Serves, |rig| {
        with(rig, outside_ram)
    }),
    Case::new("descriptors-outside-ram", ONCE, Serves, |rig| {
        with(rig, descriptors_outside)
    }),
    Case::new("transfers-over-their-own-descriptor", ONCE, Serves, |rig| {
        with(rig, over_itself)
    }),
    Case::new("items-written", ONCE, Serves, |rig| {
        with(rig, items_written)
    }),
    Case::new("tables-of-a-chipset-in-odd-places", ONCE, Serves, |rig| {
        with(rig, |rig, config| {
            chipset::with(rig, |rig, chipset| odd_tables(rig, chipset, config))
        })
    }),
    Case::new("storm-of-selections", ONCE, Serves, |rig| {
        with(rig, storm_of_selections)
    }),
    Case::new("storm-of-transfers", ONCE, Serves, |rig| {
        with(rig, storm_of_transfers)
    }),
    Case::new("storm-of-transfers-that-fail", ONCE, Serves, |rig| {
        with(rig, storm_of_failures)
    }),
];

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const ADDRESS_HIGH: u16 = 0x514;
const ADDRESS_LOW: u16 = 0x518;

const SIGNATURE: u16 = 0;
const DIRECTORY: u16 = 0x19;
/// No item.
const ABSENT: u16 = 0x3fff;
const TABLES: &str = "etc/acpi/tables";

const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

/// The most zeros that a transfer adds to an item.
const PADDING: u32 = 64 << 10;
/// Attacker's memory: a page for descriptors, then room for the longest transfer.
const BUFFER_AT: u64 = 0x1000;
const MEMORY: u64 = BUFFER_AT + 3 * PADDING as u64;

/// fw_cfg, and memory for it.
struct FwCfg<'a> {
    ports: &'a dyn Ports,
    ram: &'a dyn Ram,
    /// Where descriptors are.
    descriptor: u64,
    /// Where transfers go.
    buffer: u64,
}

/// A file.
struct File {
    name: String,
    key: u16,
    size: u32,
}

/// Runs an attack; then fw_cfg must be what it was.
fn with<'a>(rig: &mut Rig<'a>, attack: impl FnOnce(&mut Rig<'a>, &FwCfg<'a>) -> Attack) -> Attack {
    let memory = rig.allocate(MEMORY, 4096)?;
    let config = FwCfg {
        ports: super::ports(rig)?,
        ram: rig.ram(),
        descriptor: memory,
        buffer: memory + BUFFER_AT,
    };
    if config.by_port(SIGNATURE, 4) != b"QEMU" {
        return Err(Stop::Lacking("fw_cfg"));
    }
    let files = config.everything()?;
    attack(rig, &config)?;
    same("by ports", config.by_port(SIGNATURE, 5), b"QEMU\0".to_vec())?;
    same(
        "by a transfer",
        config.read(SIGNATURE, 5)?,
        b"QEMU\0".to_vec(),
    )?;
    check(config.everything()? == files, || {
        "the files have changed".to_owned()
    })
}

impl FwCfg<'_> {
    fn select(&self, key: u16) {
        self.ports.write(SELECTOR, 2, key.into());
    }

    fn byte(&self) -> u8 {
        self.ports.read(DATA, 1).to_le_bytes()[0]
    }

    fn by_port(&self, key: u16, count: usize) -> Vec<u8> {
        self.select(key);
        (0..count).map(|_| self.byte()).collect()
    }

    /// Starts the transfer whose descriptor is there.
    fn start(&self, at: u64) {
        self.ports.write(ADDRESS_HIGH, 4, high(at).swap_bytes());
        self.ports.write(ADDRESS_LOW, 4, low(at).swap_bytes());
    }

    /// A transfer with its descriptor at a place in RAM; its status.
    fn transfer_at(&self, at: u64, control: u32, length: u32, address: u64) -> u32 {
        self.ram.write(at, &control.to_be_bytes());
        self.ram.write(at + 4, &length.to_be_bytes());
        self.ram.write(at + 8, &address.to_be_bytes());
        self.start(at);
        let mut status = [0; 4];
        self.ram.read(at, &mut status);
        u32::from_be_bytes(status)
    }

    fn transfer(&self, control: u32, length: u32, address: u64) -> u32 {
        self.transfer_at(self.descriptor, control, length, address)
    }

    /// Bytes of an item by a transfer into the buffer.
    fn read(&self, key: u16, length: u32) -> Result<Vec<u8>, Stop> {
        let control = u32::from(key) << 16 | SELECT | READ;
        let status = self.transfer(control, length, self.buffer);
        same("the status of a transfer", status, 0)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.ram.read(self.buffer, &mut bytes);
        Ok(bytes)
    }

    fn files(&self) -> Result<Vec<File>, Stop> {
        let number = |bytes: &[u8]| {
            let bytes = bytes.first_chunk().copied();
            u32::from_be_bytes(bytes.unwrap_or_default())
        };
        let count = number(&self.read(DIRECTORY, 4)?);
        check((1..100).contains(&count), || format!("{count} files"))?;
        let directory = self.read(DIRECTORY, 4 + 64 * count)?;
        let file = |entry: &[u8]| {
            let name = entry.get(8..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            File {
                name: String::from_utf8_lossy(name).into_owned(),
                key: u16::try_from(number(&entry[4..]) >> 16).unwrap_or(0),
                size: number(entry),
            }
        };
        Ok(directory[4..].chunks_exact(64).map(file).collect())
    }

    fn file(&self, name: &str) -> Result<File, Stop> {
        let found = self.files()?.into_iter().find(|file| file.name == name);
        found.ok_or_else(|| Stop::Wrong(format!("there is no file {name}")))
    }

    /// Names and contents of all files that the transfer's buffer can hold.
    fn everything(&self) -> Result<Vec<(String, Vec<u8>)>, Stop> {
        let files = self.files()?.into_iter();
        files
            .filter(|file| file.size <= 2 * PADDING)
            .map(|file| Ok((file.name, self.read(file.key, file.size)?)))
            .collect()
    }

    /// Where RAM ends below 4 GiB, and where at all.
    fn ram_ends(&self) -> Result<[u64; 2], Stop> {
        let file = self.file("etc/e820")?;
        let map = self.read(file.key, file.size)?;
        let number = |bytes: &[u8]| u64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8]));
        let ends: Vec<u64> = map
            .chunks_exact(20)
            .filter(|entry| entry[16..] == [1, 0, 0, 0])
            .map(|entry| number(entry) + number(&entry[8..]))
            .collect();
        let end = |below: u64| ends.iter().copied().filter(|end| *end <= below).max();
        match [end(1 << 32), end(u64::MAX)] {
            [Some(low), Some(high)] => Ok([low, high]),
            _ => Err(Stop::Wrong("etc/e820 tells of no RAM".to_owned())),
        }
    }

    /// Where no RAM is, or only the first 8 bytes.
    fn nowhere(&self, rig: &Rig<'_>) -> Result<Vec<u64>, Stop> {
        let [low_end, high_end] = self.ram_ends()?;
        Ok(vec![
            low_end,
            low_end - 8,
            high_end,
            high_end - 8,
            // ECAM, in either place, the interrupt controllers, KVM's pages, flash, and the last bytes before high RAM.
            0xb000_0000,
            0xe000_0000,
            0xfec0_0000,
            0xfee0_0000,
            0xfeff_c000,
            0xffc0_0000,
            0xfff0_0000,
            0xffff_fff8,
            rig.home,
            1 << 45,
            1 << 52,
            1 << 63,
            0u64.wrapping_sub(0x1_0000),
            0u64.wrapping_sub(8),
            u64::MAX,
        ])
    }
}

/// Every key from 0 to 0xFFFF that time allows, those near the edges always.
fn every_selection(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let names = config.files()?;
    let edges = (0..0x80).chain(0x3ff0..0x4040).chain(0x7ff0..0x8040);
    for key in edges.chain(0xbff0..0xc040).chain(0xfff0..=0xffff) {
        let _ = config.by_port(key, 3);
        config.transfer(u32::from(key) << 16 | SELECT, 0, 0);
        let _ = config.byte();
    }
    storm(rig.machine, |step| {
        let key = u16::try_from(step.wrapping_mul(0x9e35) & 0xffff).unwrap_or(0);
        let first = config.by_port(key, 1);
        let known = key & 0xbfff;
        let is_file = names.iter().any(|file| file.key == known);
        check(known < 0x20 || is_file || first == [0], || {
            format!("item {key:#x}, which is not there, begins with {first:x?}")
        })
    })?;
    Ok(())
}

fn beyond_the_end(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    config.select(SIGNATURE);
    for _ in 0..4 {
        config.byte();
    }
    storm(rig.machine, |_| same("what is beyond", config.byte(), 0))?;
    // As far as it goes, and further.
    for _ in 0..4 {
        same("a skip", config.transfer(SKIP, u32::MAX, 0), 0)?;
        same("what is beyond", config.byte(), 0)?;
    }
    same("a read", config.transfer(READ, 64, config.buffer), 0)?;
    let zeros = rig.bytes(config.buffer, 64) == [0; 64];
    check(zeros, || "what is beyond is not zeros".to_owned())
}

fn written_by_ports(_: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    for key in [SIGNATURE, 1, 5, DIRECTORY, ABSENT, 0x4000, 0x8000, 0xffff] {
        let before = config.by_port(key, 16);
        config.select(key);
        for value in 0..64 {
            config.ports.write(DATA, 1, value);
        }
        same("the item", config.by_port(key, 16), before)?;
    }
    Ok(())
}

/// All of them across each other's ends. A descriptor's address is nowhere before its lower half is written.
fn odd_widths(_: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    for port in SELECTOR - 4..=ADDRESS_LOW + 4 {
        for width in [1, 2, 4] {
            for value in [0, 0x19, 0xffff_ffff, 0x8000_0000] {
                config.ports.write(ADDRESS_HIGH, 4, u32::MAX);
                config.ports.write(port, width, value);
            }
            let _ = config.ports.read(port, width);
        }
    }
    let signature = [ADDRESS_HIGH, ADDRESS_LOW].map(|port| config.ports.read(port, 4));
    let wanted = [*b"QEMU", *b" CFG"].map(u32::from_le_bytes);
    same("what tells of transfers", signature, wanted)
}

fn all_controls(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let mut noise = Noise(40);
    for key in [SIGNATURE, DIRECTORY, ABSENT, 0xffff] {
        for bits in 0..0x40_u32 {
            // Bits that mean nothing.
            let others = low(noise.below(0x400)) << 6;
            rig.ram().write(config.buffer, &[0xa5; 64]);
            let control = u32::from(key) << 16 | others | bits;
            let status = config.transfer(control, 16, config.buffer + 16);
            let refused = bits & READ == 0 && bits & WRITE != 0;
            same("the status", status, if refused { ERROR } else { 0 })?;
            let around = [
                rig.bytes(config.buffer, 16),
                rig.bytes(config.buffer + 32, 16),
            ];
            same("what is around", around.concat(), vec![0xa5; 32])?;
            let written = rig.bytes(config.buffer + 16, 16) != [0xa5; 16];
            same("whether it was read", written, bits & READ != 0)?;
        }
    }
    Ok(())
}

fn all_lengths(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let read = u32::from(SIGNATURE) << 16 | SELECT | READ;
    for length in [0, 1, 4, 5, 0xfff, 0x1000, PADDING, PADDING + 4] {
        let end = config.buffer + u64::from(length);
        rig.ram().write(end, &[0xa5; 8]);
        let status = config.transfer(read, length, config.buffer);
        same("the status", status, 0)?;
        same("what is behind", rig.bytes(end, 8), vec![0xa5; 8])?;
    }
    rig.ram().write(config.buffer, &[0xa5; 8]);
    for length in [PADDING + 5, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX] {
        for control in [
            read,
            u32::from(ABSENT) << 16 | SELECT | READ,
            SELECT | WRITE,
        ] {
            let status = config.transfer(control, length, config.buffer);
            same("the status", status, ERROR)?;
        }
        same(
            "what was not read",
            rig.bytes(config.buffer, 8),
            vec![0xa5; 8],
        )?;
    }
    Ok(())
}

fn outside_ram(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    for address in config.nowhere(rig)? {
        for length in [16, 0x1000, PADDING] {
            for control in [SELECT | READ, SELECT | WRITE, SELECT | READ | WRITE] {
                let status = config.transfer(control, length, address);
                check(status == ERROR, || {
                    format!("{length:#x} bytes at {address:#x}: status {status:#x}")
                })?;
            }
        }
    }
    Ok(rig.serve()?)
}

/// There is nobody to be told.
fn descriptors_outside(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let nowhere = config.nowhere(rig)?;
    config.select(SIGNATURE);
    for address in nowhere {
        config.start(address);
    }
    // Halves of an address by themselves.
    for _ in 0..64 {
        config.ports.write(ADDRESS_HIGH, 4, u32::MAX);
    }
    config.ports.write(ADDRESS_LOW, 4, 0);
    // Nothing was selected meanwhile.
    same("the item", config.byte(), b'Q')?;
    Ok(rig.serve()?)
}

/// It is read once, before, and its status is written last.
fn over_itself(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let read = u32::from(DIRECTORY) << 16 | SELECT | READ;
    let item = config.read(DIRECTORY, 64)?;
    let at = config.descriptor + 0x100;
    for target in (at - 16..=at + 16).step_by(4) {
        let status = config.transfer_at(at, read, 64, target);
        same("the status", status, 0)?;
        let mut wanted = item.clone();
        let behind = at.checked_sub(target);
        let behind = behind.and_then(|behind| usize::try_from(behind).ok());
        let status = behind.and_then(|from| wanted.get_mut(from..from + 4));
        if let Some(status) = status {
            status.fill(0);
        }
        same("what was read", rig.bytes(target, 64), wanted)?;
        let refused = config.transfer_at(at, SELECT | WRITE, 16, target);
        same("the status", refused, ERROR)?;
    }
    Ok(())
}

/// None of those that firmware is handed is for it to write.
fn items_written(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    rig.ram().write(config.buffer, &[0x66; 64]);
    for file in config.files()? {
        for key in [file.key, file.key | 0x4000, file.key | 0x8000] {
            for (length, address) in [(16, config.buffer), (1, config.buffer), (0, 0)] {
                let control = u32::from(key) << 16 | SELECT | WRITE;
                let status = config.transfer(control, length, address);
                check(status == ERROR, || {
                    format!("{} takes {length} bytes", file.name)
                })?;
            }
        }
    }
    Ok(())
}

/// The tables tell where ECAM and the power-management ports are, when they are read; their length was told before.
fn odd_tables(rig: &mut Rig<'_>, chipset: &chipset::Chipset<'_>, config: &FwCfg<'_>) -> Attack {
    let tables = config.file(TABLES)?;
    let size = tables.size.min(2 * PADDING);
    let mut noise = Noise(41);
    for base in [
        0,
        1 << 26,
        0x8000_0000,
        0xc000_0000,
        0xf000_0000,
        0xf_fc00_0000,
    ] {
        for length in 0..4 {
            chipset.place_ecam(base, length);
            chipset.place_pm(low(noise.below(0x1_0000)) & 0xff80);
            let read = config.read(tables.key, size)?;
            check(read.iter().any(|byte| *byte != 0), || {
                format!("no tables while ECAM is at {base:#x}")
            })?;
        }
    }
    storm(rig.machine, |_| {
        chipset.place_ecam(noise.next() & 0xf_fc00_0000, noise.below(4));
        chipset.place_pm(low(noise.below(0x1_0000)) & 0xff80);
        config.read(tables.key, size).map(drop)
    })?;
    Ok(())
}

fn storm_of_selections(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let tables = config.file(TABLES)?;
    storm(rig.machine, |_| {
        // The first byte has the tables made.
        config.select(tables.key);
        let _ = config.byte();
        Ok(())
    })?;
    Ok(())
}

/// The longest there are.
fn storm_of_transfers(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    storm(rig.machine, |step| {
        let key = if step % 2 == 0 { DIRECTORY } else { ABSENT };
        let control = u32::from(key) << 16 | SELECT | READ;
        let status = config.transfer(control, PADDING, config.buffer);
        same("the status", status, 0)
    })?;
    Ok(())
}

fn storm_of_failures(rig: &mut Rig<'_>, config: &FwCfg<'_>) -> Attack {
    let nowhere = config.nowhere(rig)?;
    storm(rig.machine, |step| {
        let address = nowhere[usize::try_from(step).unwrap_or(0) % nowhere.len()];
        let control = [SELECT | READ, SELECT | WRITE][usize::from(step % 2 == 1)];
        let status = config.transfer(control, 64, address);
        same("the status", status, ERROR)?;
        config.start(address);
        Ok(())
    })?;
    Ok(())
}
