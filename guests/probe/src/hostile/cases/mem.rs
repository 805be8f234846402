//! Nonsense to a memory device: blocks that are not there, not aligned, not plugged in or not granted, requests of any length, and memory
//! that is unplugged while somebody uses it (VIRTIO 1.2 §5.15.6).
//!
//! Each case begins with nothing plugged in. What is plugged in is written to and read as a device's registers are: the guest's kernel knows
//! nothing of it.

use super::super::driver::{Ring, WRITE};
use super::super::machine::{Physical, Ram};
use super::super::rig::{MEM_ADDRESS, MEM_ANSWER};
use super::super::{Attack, Case, Expect, Kind, MEM_BLOCKS, Rig, Stop};
use super::{Noise, WIDTHS, check, descriptor, same, storm};

use Expect::{Calm, NeedsReset, Open, Serves};

const MEM: &[Kind] = &[Kind::Mem];

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// Bytes of a request.
const REQUEST: u32 = 24;

pub(super) const CASES: &[Case] = &[
    Case::new("blocks-outside-the-region", MEM, Serves, outside),
    Case::new("blocks-across-the-region-s-ends", MEM, Serves, across),
    Case::new("blocks-that-wrap", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        for address in [region.size.wrapping_neg(), u64::MAX - region.block + 1] {
            all_refuse(rig, address, 1)?;
            all_refuse(rig, address, u16::MAX)?;
        }
        all_refuse(rig, region.start, u16::MAX)
    }),
    Case::new("blocks-that-are-not-aligned", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        for offset in [1, 8, 4095, 4096, region.block / 2, region.block - 1] {
            all_refuse(rig, region.start + offset, 1)?;
        }
        Ok(())
    }),
    Case::new("no-blocks", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        all_refuse(rig, region.start, 0)?;
        all_refuse(rig, region.start + region.size, 0)
    }),
    Case::new("requests-of-unknown-types", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        for kind in [4, 5, 0xff, 0x100, 0x7fff, u16::MAX] {
            expect(rig, kind, region.start, 1, ERROR)?;
        }
        Ok(())
    }),
    Case::new("more-than-is-requested", MEM, Serves, greedy),
    Case::new("plug-twice", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        expect(rig, PLUG, region.at(1), 2, ACK)?;
        for (first, count) in [(1, 1), (2, 1), (1, 2), (0, 2), (2, 2), (0, 4)] {
            expect(rig, PLUG, region.at(first), count, ERROR)?;
        }
        same("plugged in", region.plugged(rig), 2 * region.block)
    }),
    Case::new("unplug-what-is-not-plugged-in", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        expect(rig, UNPLUG, region.at(0), 1, ERROR)?;
        expect(rig, PLUG, region.at(1), 1, ACK)?;
        for (first, count) in [(0, 1), (0, 2), (1, 2), (0, 3)] {
            expect(rig, UNPLUG, region.at(first), count, ERROR)?;
        }
        same("the state", state(rig, region.at(0), 3)?, MIXED)?;
        expect(rig, UNPLUG, region.at(1), 1, ACK)?;
        expect(rig, UNPLUG, region.at(1), 1, ERROR)?;
        same("the state", state(rig, region.at(0), 3)?, UNPLUGGED)
    }),
    Case::new("only-what-is-unplugged-goes", MEM, Serves, only_its_own),
    Case::new("requests-cut-short", MEM, Serves, cut_short),
    Case::new("request-cut-into-bytes", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        let request = place(rig, PLUG, region.at(0), 1)?;
        let answer = rig.place(&[0xff; 16])?;
        let mut pieces: Vec<_> = (0..24).map(|at| (request + at, 1, false)).collect();
        pieces.extend((0..10).map(|at| (answer + at, 1, true)));
        same("the used length", rig.exchange(&pieces)?.length, MEM_ANSWER)?;
        same("the answer", rig.half(answer), ACK)
    }),
    Case::new("request-that-is-too-long", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        let long = rig.allocate(0x1_0000, 4096)?;
        let request = encode(PLUG, region.at(0), 1);
        rig.ram().write(long, &[0xff; 0x1_0000]);
        rig.ram().write(long, &request);
        let answer = rig.place(&[0xff; 16])?;
        let pieces = [(long, 0x1_0000, false), (answer, MEM_ANSWER, true)];
        same("the used length", rig.exchange(&pieces)?.length, MEM_ANSWER)?;
        same("the answer", rig.half(answer), ACK)?;
        same("plugged in", region.plugged(rig), region.block)
    }),
    Case::new("room-for-more-than-an-answer", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        let request = place(rig, STATE, region.at(0), 1)?;
        let answer = rig.place(&[0x5a; 64])?;
        let used = rig.exchange(&[(request, REQUEST, false), (answer, 64, true)])?;
        same("the used length", used.length, MEM_ANSWER)?;
        check(rig.bytes(answer + 10, 54) == [0x5a; 54], || {
            "the device writes behind its answer".to_owned()
        })
    }),
    Case::new("no-room-for-an-answer", MEM, NeedsReset, |rig| {
        no_room(rig, 9)
    }),
    Case::new("no-answer-wanted", MEM, NeedsReset, |rig| no_room(rig, 0)),
    Case::new("answer-outside-ram", MEM, NeedsReset, |rig| {
        let region = Region::new(rig)?;
        let request = place(rig, PLUG, region.at(0), 1)?;
        super::offer(
            rig,
            &[
                descriptor(request, REQUEST, 1, 1),
                descriptor(1 << 45, MEM_ANSWER, WRITE, 0),
            ],
        );
        Ok(())
    }),
    Case::new("blocks-survive-a-reset", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        expect(rig, PLUG, region.at(0), 2, ACK)?;
        rig.bring_up()?;
        same("plugged in", region.plugged(rig), 2 * region.block)?;
        same("the state", state(rig, region.at(0), 2)?, PLUGGED)
    }),
    Case::new("unplug-all-again-and-again", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        storm(rig.machine, |_| {
            rig.free();
            expect(rig, UNPLUG_ALL, u64::MAX, u16::MAX, ACK)
        })?;
        same("plugged in", region.plugged(rig), 0)
    }),
    Case::new("plug-and-unplug-again-and-again", MEM, Serves, in_and_out),
    Case::new("requests-of-noise", MEM, Serves, noise),
    Case::new("resets-under-requests", MEM, Calm, resets),
    Case::new("refusals-after-each-reset", MEM, Serves, |rig| {
        storm(rig.machine, |_| {
            rig.free();
            rig.bring_up()?;
            all_refuse(rig, u64::MAX, u16::MAX)
        })?;
        Ok(())
    }),
    Case::new("configuration-written-to", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        let at = rig.driver.layout.device.0;
        for width in WIDTHS {
            for offset in 0..56 {
                rig.driver.function.write_bar(at + offset, width, 0);
            }
        }
        let now = Region::read(rig);
        same(
            "the region",
            (now.start, now.size, now.block),
            (region.start, region.size, region.block),
        )
    }),
    Case::new(
        "memory-that-is-not-plugged-in-is-touched",
        MEM,
        Serves,
        touched,
    ),
    Case::new(
        "answer-into-memory-that-is-not-plugged-in",
        MEM,
        Serves,
        |rig| {
            let region = Region::new(rig)?;
            let request = place(rig, STATE, region.at(0), 1)?;
            let last = region.start + region.size - u64::from(MEM_ANSWER);
            for answer in [region.at(0), region.at(1) - 4, last] {
                rig.exchange(&[(request, REQUEST, false), (answer, MEM_ANSWER, true)])?;
            }
            Ok(())
        },
    ),
    Case::new("request-in-the-block-it-unplugs", MEM, Serves, |rig| {
        let region = Region::new(rig)?;
        expect(rig, PLUG, region.at(0), 1, ACK)?;
        let memory = Plugged::new(rig)?;
        memory.write(region.at(0), &encode(UNPLUG, region.at(0), 1));
        let answer = rig.place(&[0xff; 16])?;
        rig.exchange(&[(region.at(0), REQUEST, false), (answer, MEM_ANSWER, true)])?;
        same("the answer", rig.half(answer), ACK)?;
        same("plugged in", region.plugged(rig), 0)
    }),
    Case::new("queue-in-the-block-it-unplugs", MEM, Open, |rig| {
        queue_inside(rig, UNPLUG)
    }),
    Case::new("queue-in-the-region-it-unplugs", MEM, Open, |rig| {
        queue_inside(rig, UNPLUG_ALL)
    }),
];

/// The device's configuration.
struct Region {
    start: u64,
    size: u64,
    block: u64,
    requested: u64,
}

impl Region {
    fn read(rig: &Rig<'_>) -> Self {
        Self {
            block: rig.device_config(0),
            start: rig.device_config(MEM_ADDRESS),
            size: rig.device_config(24),
            requested: rig.device_config(48),
        }
    }

    /// With nothing plugged in.
    fn new(rig: &mut Rig<'_>) -> Result<Self, Stop> {
        let region = Self::read(rig);
        let fits = region.block > 0
            && region.requested >= MEM_BLOCKS * region.block
            && region.size >= region.requested + MEM_BLOCKS * region.block;
        if !fits {
            return Err(Stop::Lacking("blocks that the driver is asked to plug in"));
        }
        expect(rig, UNPLUG_ALL, 0, 0, ACK)?;
        same("plugged in", region.plugged(rig), 0)?;
        Ok(region)
    }

    /// Where block `index` is.
    fn at(&self, index: u64) -> u64 {
        self.start + index * self.block
    }

    #[expect(clippy::unused_self, reason = "it is the region's")]
    fn plugged(&self, rig: &Rig<'_>) -> u64 {
        rig.device_config(40)
    }
}

/// Memory in the region.
struct Plugged<'a> {
    memory: &'a dyn Physical,
}

impl<'a> Plugged<'a> {
    fn new(rig: &Rig<'a>) -> Result<Self, Stop> {
        let memory = rig.machine.physical();
        let memory = memory.ok_or(Stop::Lacking("a way to other physical addresses"))?;
        Ok(Self { memory })
    }
}

impl Ram for Plugged<'_> {
    fn base(&self) -> u64 {
        0
    }
    fn length(&self) -> u64 {
        u64::MAX
    }
    fn read(&self, address: u64, data: &mut [u8]) {
        for (at, byte) in (address..).zip(data) {
            let value = self
                .memory
                .read(at, 1)
                .and_then(|value| u8::try_from(value).ok());
            *byte = value.unwrap_or(0xff);
        }
    }
    fn write(&self, address: u64, data: &[u8]) {
        for (at, byte) in (address..).zip(data) {
            // What is not allowed is found when it is read.
            self.memory.write(at, 1, (*byte).into());
        }
    }
}

fn encode(kind: u16, address: u64, blocks: u16) -> [u8; 24] {
    let mut request = [0; 24];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16..18].copy_from_slice(&blocks.to_le_bytes());
    request
}

fn place(rig: &mut Rig<'_>, kind: u16, address: u64, blocks: u16) -> Result<u64, Stop> {
    Ok(rig.place(&encode(kind, address, blocks))?)
}

/// Makes a request: the answer, and the state in it.
fn ask(rig: &mut Rig<'_>, kind: u16, address: u64, blocks: u16) -> Result<(u16, u16), Stop> {
    let request = place(rig, kind, address, blocks)?;
    let answer = rig.place(&[0xff; 16])?;
    let used = rig.exchange(&[(request, REQUEST, false), (answer, MEM_ANSWER, true)])?;
    same("the used length", used.length, MEM_ANSWER)?;
    Ok((rig.half(answer), rig.half(answer + 8)))
}

fn expect(rig: &mut Rig<'_>, kind: u16, address: u64, blocks: u16, wanted: u16) -> Attack {
    let (answer, _) = ask(rig, kind, address, blocks)?;
    check(answer == wanted, || {
        format!(
            "request {kind} of {blocks} blocks at {address:#x} is answered with {answer} instead of {wanted}"
        )
    })
}

/// Each request about these blocks is against the rules.
fn all_refuse(rig: &mut Rig<'_>, address: u64, blocks: u16) -> Attack {
    for kind in [PLUG, UNPLUG, STATE] {
        expect(rig, kind, address, blocks, ERROR)?;
    }
    Ok(())
}

fn state(rig: &mut Rig<'_>, address: u64, blocks: u16) -> Result<u16, Stop> {
    let (answer, state) = ask(rig, STATE, address, blocks)?;
    same("the answer", answer, ACK)?;
    Ok(state)
}

fn outside(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let witness = rig.place(&[0x5a; 256])?;
    let end = region.start + region.size;
    let ram = rig.ram().base() / region.block * region.block;
    for address in [0, ram, region.start - region.block, end, 1 << 45, 1 << 63] {
        all_refuse(rig, address, 1)?;
    }
    check(rig.bytes(witness, 256) == [0x5a; 256], || {
        "RAM that is no block changed".to_owned()
    })
}

fn across(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let count = region.size / region.block;
    let last = region.at(count - 1);
    all_refuse(rig, last, 2)?;
    all_refuse(rig, last, u16::MAX)?;
    all_refuse(rig, region.start - region.block, 2)?;
    if let Ok(more) = u16::try_from(count + 1) {
        all_refuse(rig, region.start, more)?;
    }
    same("the last block's state", state(rig, last, 1)?, UNPLUGGED)
}

/// Whatever is wanted beyond what is requested, at once or by and by.
fn greedy(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let granted = region.requested / region.block;
    let most = u16::try_from(granted + 1).unwrap_or(u16::MAX);
    if u64::from(most) > granted {
        expect(rig, PLUG, region.at(0), most, NACK)?;
        same("plugged in", region.plugged(rig), 0)?;
    }
    for block in 0..granted {
        rig.free();
        expect(rig, PLUG, region.at(block), 1, ACK)?;
    }
    for block in granted..granted + MEM_BLOCKS {
        expect(rig, PLUG, region.at(block), 1, NACK)?;
    }
    same("plugged in", region.plugged(rig), region.requested)?;
    expect(rig, UNPLUG_ALL, 0, 0, ACK)
}

/// Three blocks with a pattern at both ends; the middle one goes, and nothing of the others, and nothing of RAM.
fn only_its_own(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let memory = Plugged::new(rig)?;
    let witness = rig.place(&[0x5a; 4096])?;
    expect(rig, PLUG, region.at(0), 3, ACK)?;
    let ends = |block: u64| [region.at(block), region.at(block + 1) - 8];
    let read = |address| {
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    for (block, address) in (0..3).flat_map(|block| ends(block).map(|address| (block, address))) {
        memory.write(address, &(0x11 * (block + 1)).to_le_bytes());
    }
    expect(rig, UNPLUG, region.at(1), 1, ACK)?;
    for (block, wanted) in [(0, 0x11), (1, 0), (2, 0x33)] {
        for address in ends(block) {
            same("what is in a block", read(address), wanted)?;
        }
    }
    expect(rig, UNPLUG_ALL, 0, 0, ACK)?;
    for address in (0..3).flat_map(ends) {
        same("what is in a block that is gone", read(address), 0)?;
    }
    check(rig.bytes(witness, 4096) == [0x5a; 4096], || {
        "RAM that is no block changed".to_owned()
    })
}

/// What is left out counts as zero: of no blocks, and of no known place.
fn cut_short(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let request = place(rig, PLUG, region.at(0), 1)?;
    for length in 0..17 {
        let answer = rig.place(&[0xff; 16])?;
        let used = rig.exchange(&[(request, length, false), (answer, MEM_ANSWER, true)])?;
        same("the used length", used.length, MEM_ANSWER)?;
        same("the answer", rig.half(answer), ERROR)?;
    }
    same("plugged in", region.plugged(rig), 0)
}

/// An answer of `room` bytes: none is written, and nothing is done.
fn no_room(rig: &mut Rig<'_>, room: u32) -> Attack {
    let region = Region::new(rig)?;
    let request = place(rig, PLUG, region.at(0), 1)?;
    let answer = rig.place(&[0x5a; 16])?;
    let pieces = [(request, REQUEST, false), (answer, room, true)];
    let pieces = &pieces[..if room > 0 { 2 } else { 1 }];
    rig.main.submit(rig.ram(), pieces);
    rig.driver.kick(rig.main.queue);
    check(rig.driver.needs_reset(super::super::NOTICE), || {
        "a request without room for its answer goes unnoticed".to_owned()
    })?;
    same("plugged in", region.plugged(rig), 0)?;
    check(rig.bytes(answer, 16) == [0x5a; 16], || {
        "an answer is written where there is no room for it".to_owned()
    })
}

fn in_and_out(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    storm(rig.machine, |_| {
        rig.free();
        expect(rig, PLUG, region.at(0), 8, ACK)?;
        expect(rig, UNPLUG, region.at(2), 3, ACK)?;
        same("plugged in", region.plugged(rig), 5 * region.block)?;
        expect(rig, UNPLUG_ALL, 0, 0, ACK)
    })?;
    same("plugged in", region.plugged(rig), 0)
}

/// Requests of any type for blocks in the region and around it, one after another: never is more plugged in than is requested.
fn noise(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let count = region.size / region.block;
    let mut noise = Noise(16);
    storm(rig.machine, |_| {
        rig.free();
        let block = noise.below(count + 4);
        let address = region.at(block).wrapping_sub(2 * region.block);
        let address = address.wrapping_add(noise.below(16).saturating_sub(14));
        let blocks = u16::try_from(noise.below(12)).unwrap_or(0);
        let kind = u16::try_from(noise.below(6)).unwrap_or(0);
        let (answer, _) = ask(rig, kind, address, blocks)?;
        check([ACK, NACK, ERROR].contains(&answer), || {
            format!("request {kind} of {blocks} blocks at {address:#x} is answered with {answer}")
        })?;
        let plugged = region.plugged(rig);
        check(plugged <= region.requested, || {
            format!("{plugged:#x} bytes are plugged in")
        })
    })?;
    Ok(())
}

/// A ring full of requests, and a reset at once: what was done is done, and nothing comes after it.
fn resets(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    storm(rig.machine, |_| {
        rig.free();
        rig.bring_up()?;
        let plug = place(rig, PLUG, region.at(0), 4)?;
        let unplug = place(rig, UNPLUG_ALL, 0, 0)?;
        let answer = rig.place(&[0; 16])?;
        let ram = rig.ram();
        for round in 0..rig.main.size / 2 {
            let request = if round % 2 == 0 { plug } else { unplug };
            let pieces = [(request, REQUEST, false), (answer, MEM_ANSWER, true)];
            rig.main.submit(ram, &pieces);
        }
        rig.driver.kick(rig.main.queue);
        rig.reset()?;
        ram.write(answer, &[0x5a; 16]);
        let before = region.plugged(rig);
        std::thread::sleep(std::time::Duration::from_millis(2));
        same("plugged in", region.plugged(rig), before)?;
        check(rig.bytes(answer, 16) == [0x5a; 16], || {
            "the device answers after its reset".to_owned()
        })
    })?;
    Ok(())
}

/// Against the rules, but harmless: it reads as zeros, and what is written goes with the next unplugging of all.
fn touched(rig: &mut Rig<'_>) -> Attack {
    let region = Region::new(rig)?;
    let memory = Plugged::new(rig)?;
    let places = [
        region.at(0),
        region.at(3) + 4096,
        region.start + region.size - 8,
    ];
    let read = |address| {
        let mut bytes = [0xff; 8];
        memory.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    for address in places {
        same("what is in no block", read(address), 0)?;
        memory.write(address, &u64::MAX.to_le_bytes());
    }
    same("plugged in", region.plugged(rig), 0)?;
    expect(rig, UNPLUG_ALL, 0, 0, ACK)?;
    for address in places {
        same("what is in no block", read(address), 0)?;
    }
    Ok(())
}

/// The queue lies in a block, and a request takes that block away, under the device's own hands.
fn queue_inside(rig: &mut Rig<'_>, kind: u16) -> Attack {
    let region = Region::new(rig)?;
    expect(rig, PLUG, region.at(0), 1, ACK)?;
    let memory = Plugged::new(rig)?;
    let request = place(rig, kind, region.at(0), 1)?;
    let answer = rig.place(&[0xff; 16])?;
    rig.prepare()?;
    let mut ring = Ring::new(&memory, rig.main.queue, 64, region.at(0));
    rig.driver.enable(&ring);
    rig.ready();
    let pieces = [(request, REQUEST, false), (answer, MEM_ANSWER, true)];
    ring.submit(&memory, &pieces);
    rig.driver.kick(ring.queue);
    let done = super::super::driver::poll(std::time::Duration::from_secs(15), || {
        (rig.half(answer) == ACK).then_some(())
    });
    check(done.is_some(), || "the request is not answered".to_owned())?;
    same("plugged in", region.plugged(rig), 0)?;
    // The device finds an empty ring, or a broken one; and then another that is no better.
    for _ in 0..64 {
        rig.driver.kick(ring.queue);
    }
    Ok(())
}
