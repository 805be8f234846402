//! Nonsense commands to a SCSI adapter with a CD-ROM drive (VIRTIO 1.2 §5.6.6). Whatever can be answered is answered with a response, and a
//! status of the drive's.

use super::super::driver::{Piece, Ring, poll};
use super::super::rig::{SCSI_HEADER, SCSI_RESPONSE, scsi_command};
use super::super::{Attack, Case, Expect, Kind, Rig, Stop};
use super::{Noise, check, same, storm, used, with_queue};
use std::time::Duration;

use Expect::{NeedsReset, Open, Serves};

const SCSI: &[Kind] = &[Kind::Scsi];

const CONTROL: u16 = 0;
const EVENTS: u16 = 1;

/// Where the driver says how long sense data and commands are.
const SENSE_SIZE: u64 = 20;
const CDB_SIZE: u64 = 24;

/// Responses.
const OK: u8 = 0;
const OVERRUN: u8 = 1;
const BAD_TARGET: u8 = 3;
const FAILURE: u8 = 9;
const REJECTED: u8 = 11;
const INCORRECT_LUN: u8 = 12;
/// A status of the drive's: CHECK CONDITION.
const CHECK_CONDITION: u8 = 2;

const INQUIRY: u8 = 0x12;
const READ_10: u8 = 0x28;
const READ_12: u8 = 0xa8;

/// How long a request may take that waits for no disk.
const SOON: Duration = Duration::from_secs(15);

pub(super) const CASES: &[Case] = &[
    Case::new("no-room-for-the-answer", SCSI, NeedsReset, |rig| {
        unanswered(rig, &[SCSI_HEADER], &[SCSI_RESPONSE - 1])
    }),
    Case::new("nothing-that-is-writable", SCSI, NeedsReset, |rig| {
        unanswered(rig, &[SCSI_HEADER], &[])
    }),
    Case::new("command-cut-short", SCSI, Serves, |rig| {
        for length in 1..SCSI_HEADER {
            let answer = raw(rig, &command(&[INQUIRY]), &[length], &[SCSI_RESPONSE])?;
            same("the response", answer.response, FAILURE)?;
        }
        Ok(())
    }),
    Case::new("command-in-fifty-pieces", SCSI, Serves, |rig| {
        let inquiry = command(&[INQUIRY, 0, 0, 0, 36]);
        let pieces = [1; SCSI_HEADER as usize];
        let answer = raw(rig, &inquiry, &pieces, &[SCSI_RESPONSE + 36])?;
        same("the response", (answer.response, answer.status), (OK, 0))?;
        same("the length", answer.length, SCSI_RESPONSE + 36)
    }),
    Case::new("answer-in-many-pieces", SCSI, Serves, |rig| {
        let pieces = [3; SCSI_RESPONSE as usize / 3 + 12];
        let inquiry = command(&[INQUIRY, 0, 0, 0, 36]);
        let answer = raw(rig, &inquiry, &[10, SCSI_HEADER - 10], &pieces)?;
        same("the response", (answer.response, answer.status), (OK, 0))?;
        same("the data", answer.length, SCSI_RESPONSE + 36)
    }),
    Case::new(
        "units-and-targets-that-are-not-there",
        SCSI,
        Serves,
        addresses,
    ),
    Case::new("every-operation-code", SCSI, Serves, |rig| {
        for code in 0..=u8::MAX {
            let mut cdb = [0xff; 16];
            cdb[0] = code;
            for cdb in [&[code][..], &cdb] {
                let answer = exchange(rig, cdb, 256)?;
                check(answer.length <= SCSI_RESPONSE + 256, || {
                    format!("operation {code:#x} writes {} bytes", answer.length)
                })?;
            }
        }
        Ok(())
    }),
    Case::new("commands-of-noise", SCSI, Serves, |rig| {
        let mut noise = Noise(11);
        storm(rig.machine, |_| {
            rig.free();
            let mut cdb = [0; 16];
            cdb[..8].copy_from_slice(&noise.next().to_le_bytes());
            cdb[8..].copy_from_slice(&noise.next().to_le_bytes());
            let room = u32::try_from(noise.below(0x2000)).unwrap_or(0);
            exchange(rig, &cdb, room).map(|_| ())
        })?;
        Ok(())
    }),
    Case::new("reads-behind-the-end", SCSI, Serves, |rig| {
        for [code, block, count] in [
            [READ_10, 0xff, 1],
            [READ_10, 0xff, 0xff],
            [READ_12, 0xff, 0xff],
            [READ_12, 0, 0xff],
        ] {
            let mut cdb = [0; 12];
            cdb[0] = code;
            cdb[2..6].fill(block);
            cdb[6..10].fill(count);
            // The first is told of the reset instead.
            for _ in 0..4 {
                let answer = exchange(rig, &cdb, 4096)?;
                same("the status", answer.status, CHECK_CONDITION)?;
            }
        }
        Ok(())
    }),
    Case::new("data-without-room", SCSI, Serves, |rig| {
        let inquiry = [INQUIRY, 0, 0, 0, 36];
        for room in [1, 5, 35] {
            let answer = exchange(rig, &inquiry, room)?;
            same("the response", answer.response, OVERRUN)?;
            same("the length", answer.length, SCSI_RESPONSE + room)?;
        }
        Ok(())
    }),
    Case::new("sizes-without-bounds", SCSI, NeedsReset, |rig| {
        write_config(rig, SENSE_SIZE, u32::MAX);
        write_config(rig, CDB_SIZE, u32::MAX);
        unanswered(rig, &[SCSI_HEADER], &[SCSI_RESPONSE + 36])
    }),
    Case::new("sizes-of-nothing", SCSI, Serves, |rig| {
        write_config(rig, SENSE_SIZE, 0);
        write_config(rig, CDB_SIZE, 0);
        // Without a command it is TEST UNIT READY, of which there is no sense data.
        let length = raw(rig, &command(&[]), &[19], &[12])?.length;
        same("the length", length, 12)?;
        write_config(rig, SENSE_SIZE, SCSI_RESPONSE - 12);
        write_config(rig, CDB_SIZE, SCSI_HEADER - 19);
        Ok(())
    }),
    Case::new("read-into-its-own-rings", SCSI, Open, |rig| {
        let header = rig.place(&command(&[READ_10, 0, 0, 0, 0, 0, 0, 0, 4]))?;
        let answer = rig.allocate(u64::from(SCSI_RESPONSE), 16)?;
        let rings = rig.main.descriptors;
        let ram = rig.ram();
        for _ in 0..3 {
            let chain = [
                (header, SCSI_HEADER, false),
                (answer, SCSI_RESPONSE, true),
                (rings, 0x2000, true),
            ];
            rig.main.submit(ram, &chain);
            rig.driver.kick(rig.main.queue);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }),
    Case::new("functions-of-any-kind", SCSI, Serves, functions).unprepared(),
    Case::new("functions-of-noise", SCSI, Serves, |rig| {
        let mut control = Control::new(rig)?;
        let mut noise = Noise(12);
        storm(rig.machine, |_| {
            let bytes: Vec<u8> = (0..4).flat_map(|_| noise.next().to_le_bytes()).collect();
            let length = usize::try_from(noise.below(32)).unwrap_or(0) + 1;
            let bytes = bytes.get(..length).unwrap_or_default();
            control.ask(rig, bytes, 8).map(|_| ())
        })?;
        Ok(())
    })
    .unprepared(),
    Case::new(
        "function-without-room-for-its-answer",
        SCSI,
        NeedsReset,
        |rig| {
            let mut control = with_queue(rig, CONTROL)?;
            let request = rig.place(&[0; 24])?;
            let ram = rig.ram();
            control.submit(ram, &[(request, 24, false)]);
            rig.driver.kick(CONTROL);
            Ok(())
        },
    )
    .unprepared(),
    Case::new("reads-that-are-aborted", SCSI, Serves, aborts).unprepared(),
    Case::new("event-buffers-of-nothing", SCSI, Serves, |rig| {
        let mut events = with_queue(rig, EVENTS)?;
        let ram = rig.ram();
        let place = rig.allocate(16, 16)?;
        for length in [1, 15, 16] {
            events.submit(ram, &[(place, length, true)]);
            rig.driver.kick(EVENTS);
        }
        Ok(())
    })
    .unprepared(),
];

/// What came back.
#[derive(Debug)]
struct Answer {
    length: u32,
    status: u8,
    response: u8,
}

/// A command for the drive.
fn command(cdb: &[u8]) -> Vec<u8> {
    scsi_command([1, 0, 0, 0, 0, 0, 0, 0], cdb)
}

fn write_config(rig: &Rig<'_>, offset: u64, value: u32) {
    let at = rig.driver.layout.device.0 + offset;
    rig.driver.function.write_bar(at, 4, value.into());
}

/// Places of these lengths one after the other.
fn pieces(start: u64, lengths: &[u32], write: bool) -> Vec<Piece> {
    let mut at = start;
    let each = lengths.iter().map(|length| {
        let piece = (at, *length, write);
        at += u64::from(*length);
        piece
    });
    each.collect()
}

/// The chain of a command, and where its answer goes.
fn chain(
    rig: &mut Rig<'_>,
    bytes: &[u8],
    readable: &[u32],
    writable: &[u32],
) -> Result<(Vec<Piece>, u64), Stop> {
    let header = rig.place(bytes)?;
    let room = writable.iter().map(|length| u64::from(*length)).sum();
    let answer = rig.allocate(room, 16)?;
    let mut chain = pieces(header, readable, false);
    chain.extend(pieces(answer, writable, true));
    Ok((chain, answer))
}

/// Sends a command in these pieces; what came back.
fn raw(
    rig: &mut Rig<'_>,
    bytes: &[u8],
    readable: &[u32],
    writable: &[u32],
) -> Result<Answer, Stop> {
    let (chain, answer) = chain(rig, bytes, readable, writable)?;
    let length = used(rig, &chain)?;
    Ok(Answer {
        length,
        status: rig.byte(answer + 10),
        response: rig.byte(answer + 11),
    })
}

/// Sends a command to the drive, with so much room for data.
fn exchange(rig: &mut Rig<'_>, cdb: &[u8], room: u32) -> Result<Answer, Stop> {
    rig.free();
    let writable = [SCSI_RESPONSE, room];
    raw(rig, &command(cdb), &[SCSI_HEADER], &writable)
}

/// Offers a chain that cannot be answered.
fn unanswered(rig: &mut Rig<'_>, readable: &[u32], writable: &[u32]) -> Attack {
    let (chain, _) = chain(rig, &command(&[INQUIRY, 0, 0, 0, 36]), readable, writable)?;
    let ram = rig.ram();
    rig.main.submit(ram, &chain);
    rig.driver.kick(rig.main.queue);
    Ok(())
}

fn addresses(rig: &mut Rig<'_>) -> Attack {
    for (address, response) in [
        ([1, 0, 0x40, 1, 0, 0, 0, 0], OK),
        ([1, 0, 0x7f, 0xff, 0, 0, 0, 0], OK),
        ([1, 0, 0xc1, 1, 0, 0, 0, 0], OK),
        ([1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], OK),
        ([1, 1, 0, 0, 0, 0, 0, 0], BAD_TARGET),
        ([1, 0xff, 0, 0, 0, 0, 0, 0], BAD_TARGET),
        ([0; 8], BAD_TARGET),
        ([0xff; 8], BAD_TARGET),
    ] {
        rig.free();
        let bytes = scsi_command(address, &[0]);
        let answer = raw(rig, &bytes, &[SCSI_HEADER], &[SCSI_RESPONSE])?;
        same("the response", answer.response, response)?;
        if response == OK {
            // The unit is not there.
            same("the status", answer.status, CHECK_CONDITION)?;
        }
    }
    Ok(())
}

/// The control queue of a device that runs, and what is sent on it.
struct Control {
    ring: Ring,
    request: u64,
    answer: u64,
}

impl Control {
    fn new(rig: &mut Rig<'_>) -> Result<Self, Stop> {
        Ok(Self {
            ring: with_queue(rig, CONTROL)?,
            request: rig.allocate(64, 16)?,
            answer: rig.allocate(64, 16)?,
        })
    }

    /// Sends a request; the last byte of its answer, for which there is so much room.
    fn ask(&mut self, rig: &Rig<'_>, bytes: &[u8], room: u32) -> Result<u8, Stop> {
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let ram = rig.ram();
        ram.write(self.request, bytes);
        let chain = [(self.request, length, false), (self.answer, room, true)];
        let head = self.ring.submit(ram, &chain);
        rig.driver.kick(CONTROL);
        let Some(used) = self.ring.wait_used(ram, head, SOON) else {
            return Err(Stop::Wrong(format!(
                "a request of {length} bytes is not answered within {SOON:?}"
            )));
        };
        let last = used.length.saturating_sub(1);
        Ok(rig.byte(self.answer + u64::from(last)))
    }
}

/// A task management function for this unit.
fn function(number: u32, address: [u8; 8], tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(number.to_le_bytes());
    bytes.extend(address);
    bytes.extend(tag.to_le_bytes());
    bytes
}

fn functions(rig: &mut Rig<'_>) -> Attack {
    const DRIVE: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
    let mut control = Control::new(rig)?;
    for (number, response) in [
        (0, OK),
        (1, OK),
        (2, REJECTED),
        (3, OK),
        (4, OK),
        (5, OK),
        (6, OK),
        (7, OK),
        (8, REJECTED),
        (u32::MAX, REJECTED),
    ] {
        let answer = control.ask(rig, &function(number, DRIVE, u64::MAX), 1)?;
        same(&format!("function {number}"), answer, response)?;
    }
    let absent = function(5, [1, 0, 0, 1, 0, 0, 0, 0], 0);
    let elsewhere = function(5, [1, 9, 0, 0, 0, 0, 0, 0], 0);
    let mut unknown = function(5, DRIVE, 0);
    unknown[..4].fill(0x7f);
    for (bytes, response) in [
        (absent, INCORRECT_LUN),
        (elsewhere, BAD_TARGET),
        (unknown, REJECTED),
        (vec![0; 23], REJECTED),
        (vec![1, 0, 0, 0, 1], REJECTED),
    ] {
        same("the response", control.ask(rig, &bytes, 1)?, response)?;
    }
    // Notifications of all there may be.
    for kind in [1, 2] {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(DRIVE);
        bytes.extend(u32::MAX.to_le_bytes());
        same("the response", control.ask(rig, &bytes, 5)?, OK)?;
    }
    Ok(())
}

/// A full ring of reads, and a reset of the unit at once: each is answered, once.
fn aborts(rig: &mut Rig<'_>) -> Attack {
    let mut control = Control::new(rig)?;
    let header = rig.place(&command(&[READ_10, 0, 0, 0, 0, 0, 0, 0, 16]))?;
    let answers = rig.allocate(16 * u64::from(SCSI_RESPONSE), 16)?;
    let data = rig.allocate(0x8000, 4096)?;
    let ram = rig.ram();
    let answer = |number: u64| answers + number * u64::from(SCSI_RESPONSE);
    let heads: Vec<u16> = (0..16)
        .map(|number| {
            let chain = [
                (header, SCSI_HEADER, false),
                (answer(number), SCSI_RESPONSE, true),
                (data, 0x8000, true),
            ];
            rig.main.submit(ram, &chain)
        })
        .collect();
    rig.driver.kick(rig.main.queue);
    let reset = function(5, [1, 0, 0, 0, 0, 0, 0, 0], 0);
    same("the reset", control.ask(rig, &reset, 1)?, OK)?;
    let mut open = heads;
    while !open.is_empty() {
        let Some(used) = poll(SOON, || rig.main.take_used(ram)) else {
            return Err(Stop::Wrong(format!(
                "{} reads are not answered",
                open.len()
            )));
        };
        let at = open.iter().position(|head| u32::from(*head) == used.head);
        let Some(at) = at else {
            return Err(Stop::Wrong(format!("{used:?} was not asked for")));
        };
        open.remove(at);
    }
    Ok(())
}
