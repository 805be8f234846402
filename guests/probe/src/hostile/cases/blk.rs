//! Nonsense requests to a disk (VIRTIO 1.2 §5.2.6). Whatever can be answered is answered with a status.

use super::super::driver::Piece;
use super::super::{Attack, Case, Expect, Kind, Rig, Stop};
use super::{check, same};

use Expect::{NeedsReset, Open, Serves};

const BLK: &[Kind] = &[Kind::Blk];

pub(super) const CASES: &[Case] = &[
    Case::new("unknown-type", BLK, Serves, |rig| {
        for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 0x100, u32::MAX] {
            expect(rig, (kind, 0), &[512], UNSUPPORTED)?;
        }
        Ok(())
    }),
    Case::new("sector-behind-the-end", BLK, Serves, |rig| {
        let sectors = capacity(rig);
        for sector in [sectors, sectors + 1, 1 << 40, 1 << 54] {
            expect(rig, (IN, sector), &[512], IO_ERROR)?;
        }
        Ok(())
    }),
    Case::new("read-across-the-end", BLK, Serves, |rig| {
        let last = capacity(rig) - 1;
        expect(rig, (IN, last), &[512, 512], IO_ERROR)?;
        expect(rig, (IN, last), &[512], OK)
    }),
    Case::new("sector-times-512-wraps", BLK, Serves, |rig| {
        for sector in [1 << 55, (1 << 55) + 1, 1 << 63, u64::MAX] {
            expect(rig, (IN, sector), &[512], IO_ERROR)?;
        }
        Ok(())
    }),
    Case::new("write-behind-the-end", BLK, Serves, |rig| {
        let sectors = capacity(rig);
        for sector in [sectors, u64::MAX, 1 << 55] {
            write(rig, (OUT, sector), &[0; 512], IO_ERROR)?;
        }
        Ok(())
    }),
    Case::new("no-status-byte", BLK, NeedsReset, |rig| {
        let header = header(rig, (IN, 0))?;
        unanswered(rig, &[(header, 16, false)])
    }),
    Case::new("empty-status", BLK, NeedsReset, |rig| {
        let header = header(rig, (IN, 0))?;
        unanswered(rig, &[(header, 16, false), (header, 0, true)])
    }),
    Case::new("no-header", BLK, Serves, |rig| {
        raw(rig, &[], &[1], IO_ERROR)
    }),
    Case::new("short-header", BLK, Serves, |rig| {
        for length in 1..16 {
            raw(rig, &[length], &[512, 1], IO_ERROR)?;
        }
        Ok(())
    }),
    Case::new("header-in-sixteen-pieces", BLK, Serves, |rig| {
        raw(rig, &[1; 16], &[512, 1], OK)
    }),
    Case::new("header-that-is-writable", BLK, Serves, |rig| {
        // The device may write where it should read: there is no header, and the "header" is data.
        raw(rig, &[], &[16, 512, 1], IO_ERROR)
    }),
    Case::new("read-into-what-is-readable", BLK, Serves, |rig| {
        raw(rig, &[16, 512], &[1], IO_ERROR)
    }),
    Case::new("write-from-what-is-writable", BLK, Serves, |rig| {
        expect(rig, (OUT, 0), &[512], IO_ERROR)
    }),
    Case::new("part-of-a-sector", BLK, Serves, |rig| {
        for length in [1, 511, 513, 1000] {
            expect(rig, (IN, 0), &[length], IO_ERROR)?;
        }
        write(rig, (OUT, 0), &[0; 100], IO_ERROR)
    }),
    Case::new("read-of-nothing", BLK, Serves, |rig| {
        expect(rig, (IN, 0), &[], IO_ERROR)?;
        write(rig, (OUT, 0), &[], IO_ERROR)
    }),
    Case::new("data-in-odd-pieces", BLK, Serves, |rig| {
        expect(rig, (IN, 0), &[1, 2, 3, 505, 1], OK)
    }),
    Case::new("identity-in-too-little-room", BLK, Serves, |rig| {
        for room in [&[][..], &[1], &[19], &[4096]] {
            expect(rig, (GET_ID, u64::MAX), room, OK)?;
        }
        Ok(())
    }),
    Case::new("flush-with-data-and-sector", BLK, Serves, |rig| {
        expect(rig, (FLUSH, u64::MAX), &[512], OK)
    }),
    Case::new("discard-of-impossible-ranges", BLK, Serves, |rig| {
        ranges(rig, DISCARD)
    }),
    Case::new("write-zeroes-of-impossible-ranges", BLK, Serves, |rig| {
        ranges(rig, WRITE_ZEROES)
    }),
    Case::new("same-chain-twice", BLK, NeedsReset, twice),
    Case::new("status-header-and-data-in-one-place", BLK, Open, |rig| {
        let place = header(rig, (IN, 0))?;
        let _ = rig.exchange(&[(place, 16, false), (place, 512, true), (place, 1, true)])?;
        Ok(())
    }),
    Case::new("read-into-its-own-rings", BLK, Open, |rig| {
        let header = header(rig, (IN, 0))?;
        let status = rig.allocate(16, 16)?;
        let rings = rig.main.descriptors;
        let ram = rig.ram();
        let chain = [
            (header, 16, false),
            (rings, 0x2000, true),
            (status, 1, true),
        ];
        rig.main.submit(ram, &chain);
        rig.driver.kick(rig.main.queue);
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(())
    }),
];

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What no device answers.
const NONE: u8 = 0xee;

/// Sectors of the disk.
fn capacity(rig: &Rig<'_>) -> u64 {
    let (start, _) = rig.driver.layout.device;
    let half = |at| rig.driver.function.read_bar(start + at, 4);
    half(0) | half(4) << 32
}

/// A request's header.
fn header(rig: &mut Rig<'_>, (kind, sector): (u32, u64)) -> Result<u64, Stop> {
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    Ok(rig.place(&bytes)?)
}

/// Sends a request whose writable part has these pieces before the status byte.
fn expect(rig: &mut Rig<'_>, request: (u32, u64), room: &[u32], status: u8) -> Attack {
    let header = header(rig, request)?;
    let mut chain = vec![(header, 16, false)];
    for length in room {
        chain.push((rig.allocate((*length).into(), 16)?, *length, true));
    }
    answered(rig, chain, status, request.0)
}

/// Sends a request with data.
fn write(rig: &mut Rig<'_>, request: (u32, u64), data: &[u8], status: u8) -> Attack {
    let header = header(rig, request)?;
    let length = u32::try_from(data.len()).unwrap_or(0);
    let chain = vec![(header, 16, false), (rig.place(data)?, length, false)];
    answered(rig, chain, status, request.0)
}

/// Sends a read of sector 0 cut into pieces of these lengths, the last of which takes the status.
fn raw(rig: &mut Rig<'_>, readable: &[u32], writable: &[u32], status: u8) -> Attack {
    let mut next = header(rig, (IN, 0))?;
    let mut chain: Vec<Piece> = Vec::new();
    for length in readable {
        chain.push((next, *length, false));
        next += u64::from(*length);
    }
    let (_, room) = writable.split_last().unwrap_or((&0, &[]));
    for length in room {
        chain.push((rig.allocate((*length).into(), 16)?, *length, true));
    }
    answered(rig, chain, status, IN)
}

fn answered(rig: &mut Rig<'_>, mut chain: Vec<Piece>, status: u8, kind: u32) -> Attack {
    let place = rig.place(&[NONE])?;
    chain.push((place, 1, true));
    let room: u32 = chain
        .iter()
        .filter(|piece| piece.2)
        .map(|piece| piece.1)
        .sum();
    let used = rig.exchange(&chain)?;
    same(
        &format!("the status of a request of type {kind}"),
        rig.byte(place),
        status,
    )?;
    same("the used length", used.length, room)
}

/// Sends a chain to which there can be no answer.
fn unanswered(rig: &mut Rig<'_>, chain: &[Piece]) -> Attack {
    let ram = rig.ram();
    rig.main.submit(ram, chain);
    rig.driver.kick(rig.main.queue);
    Ok(())
}

/// Too long, empty, behind the end, wrapping, with unknown flags, cut short.
fn ranges(rig: &mut Rig<'_>, kind: u32) -> Attack {
    let offered = rig.features >> if kind == DISCARD { 13 } else { 14 } & 1 == 1;
    let sectors = capacity(rig);
    let range = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    let cases = [
        (range(0, 0, 0), IO_ERROR),
        (range(0, u32::MAX, 0), IO_ERROR),
        (range(sectors, 1, 0), IO_ERROR),
        (range(sectors - 1, 2, 0), IO_ERROR),
        (range(1 << 55, 1, 0), IO_ERROR),
        (range(u64::MAX, 1, 0), IO_ERROR),
        (range(0, 1, 0xffff_fffe), UNSUPPORTED),
        (range(0, 1, 0)[..15].to_vec(), IO_ERROR),
        ([range(0, 1, 0), range(1, 1, 0)].concat(), IO_ERROR),
        (Vec::new(), IO_ERROR),
    ];
    for (bytes, status) in cases {
        let status = if offered { status } else { UNSUPPORTED };
        write(rig, (kind, 0), &bytes, status)?;
    }
    check(rig.driver.status() & 4 != 0, || {
        "the device stopped".to_owned()
    })
}

/// The same head twice, before the first could be answered.
fn twice(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let pieces = rig.request();
    let head = rig.main.chain(ram, &pieces);
    let index = rig.main.next_available;
    for entry in 0..2 {
        let slot = index.wrapping_add(entry) % rig.main.size;
        let at = rig.main.available + 4 + u64::from(slot) * 2;
        ram.write(at, &head.to_le_bytes());
    }
    rig.main.set_index(ram, index.wrapping_add(2));
    rig.driver.kick(rig.main.queue);
    Ok(())
}
