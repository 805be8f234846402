//! Nonsense to a NIC: control commands, frames to send, buffers to receive into (VIRTIO 1.2 §5.1.6).

use super::super::driver::{Descriptor, Ring, Used};
use super::super::rig::NET_HEADER;
use super::super::{Attack, Case, Expect, Kind, Rig, Stop};
use super::{check, same};
use std::time::Duration;

use Expect::{NeedsReset, Open, Serves};

const NET: &[Kind] = &[Kind::Net];

pub(super) const CASES: &[Case] = &[
    Case::new("control-of-unknown-classes", NET, Serves, |rig| {
        let mut commands = Vec::new();
        for class in [2, 3, 5, 6, 7, 0x80, 0xff] {
            for command in [0, 1, 0xff] {
                commands.push(vec![class, command, 0, 0]);
            }
        }
        refused(rig, &commands)
    })
    .unprepared(),
    Case::new("control-cut-short", NET, Serves, |rig| {
        refused(
            rig,
            &[
                vec![],
                vec![4],
                vec![4, 0],
                vec![4, 0, 1],
                vec![1],
                vec![1, 1, 0x52],
            ],
        )
    })
    .unprepared(),
    Case::new("control-too-long", NET, Serves, |rig| {
        refused(rig, &[vec![0; 11], vec![4; 100], vec![1; 4096]])
    })
    .unprepared(),
    Case::new("control-queue-pairs-out-of-range", NET, Serves, |rig| {
        refused(
            rig,
            &[
                vec![4, 0, 0, 0],
                vec![4, 0, 0xff, 0xff],
                vec![4, 0, 1, 0x80],
                vec![4, 0, 1, 1],
            ],
        )
    })
    .unprepared(),
    Case::new("control-multicast-address", NET, Serves, |rig| {
        refused(
            rig,
            &[
                vec![1, 1, 1, 0, 0, 0, 0, 1],
                vec![1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ],
        )
    })
    .unprepared(),
    Case::new("control-offloads-never-agreed-upon", NET, Serves, |rig| {
        refused(rig, &[[&[5, 0][..], &[0xff; 8]].concat()])
    })
    .unprepared(),
    Case::new("control-without-room-for-an-answer", NET, Serves, no_answer).unprepared(),
    Case::new(
        "control-with-a-broken-chain",
        NET,
        NeedsReset,
        broken_control,
    )
    .unprepared(),
    Case::new("frames-of-impossible-length", NET, Serves, lengths),
    Case::new("frames-that-are-writable", NET, Serves, |rig| {
        let place = rig.allocate(0x1000, 4096)?;
        rig.exchange(&[(place, 100, true)])?;
        rig.exchange(&[(place, NET_HEADER, false), (place + 64, 100, true)])?;
        Ok(())
    }),
    Case::new("frames-with-nonsense-in-the-header", NET, Serves, headers),
    Case::new("frames-in-sixty-pieces", NET, Serves, |rig| {
        let place = rig.allocate(0x1000, 4096)?;
        let pieces: Vec<_> = (0..60).map(|at| (place + at * 3, 1, false)).collect();
        rig.exchange(&pieces)?;
        Ok(())
    }),
    Case::new("frames-in-a-thousand-pieces", NET, Serves, thousand_pieces),
    Case::new("receive-buffers-of-no-use", NET, Open, useless_buffers).unprepared(),
    Case::new(
        "receive-queue-broken-alone",
        NET,
        NeedsReset,
        broken_receive,
    )
    .unprepared(),
];

const RECEIVE: u16 = 0;
const CONTROL: u16 = 2;

/// The NIC with a ring of ours on another queue, too.
fn with_queue(rig: &mut Rig<'_>, queue: u16) -> Result<Ring, Stop> {
    rig.prepare()?;
    let address = rig.allocate(Ring::footprint(64), 4096)?;
    let mut ring = Ring::new(rig.ram(), queue, 64, address);
    // Without more than one pair of queues the control queue is the third; with them it is the last there is.
    if queue == CONTROL {
        let count = rig
            .driver
            .read(super::super::driver::register::NUM_QUEUES, 2);
        if rig.features >> 22 & 1 == 1 {
            ring.queue = u16::try_from(count).unwrap_or(3) - 1;
        }
    }
    rig.driver.enable(&ring);
    rig.start();
    Ok(ring)
}

fn command(
    rig: &mut Rig<'_>,
    ring: &mut Ring,
    bytes: &[u8],
    room: u32,
) -> Result<(Used, u8), Stop> {
    let ram = rig.ram();
    let place = rig.place(bytes)?;
    let answer = rig.place(&[0xee])?;
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let head = ring.submit(ram, &[(place, length, false), (answer, room, true)]);
    rig.driver.kick(ring.queue);
    let used = ring.wait_used(ram, head, Duration::from_secs(15));
    let used = used.ok_or_else(|| Stop::Wrong(format!("{bytes:x?} is not answered")))?;
    Ok((used, rig.byte(answer)))
}

/// Each is answered with an error (1).
fn refused(rig: &mut Rig<'_>, commands: &[Vec<u8>]) -> Attack {
    let mut ring = with_queue(rig, CONTROL)?;
    for bytes in commands {
        let (_, answer) = command(rig, &mut ring, bytes, 1)?;
        same(&format!("the answer to {bytes:x?}"), answer, 1)?;
    }
    Ok(())
}

fn no_answer(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, CONTROL)?;
    let (used, answer) = command(rig, &mut ring, &[1, 1, 0x52, 0x54, 0, 0, 0, 9], 0)?;
    same("the used length", used.length, 0)?;
    same("what was there before", answer, 0xee)
}

fn broken_control(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, CONTROL)?;
    ring.offer(rig.ram(), u16::MAX);
    rig.driver.kick(ring.queue);
    Ok(())
}

fn broken_receive(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, RECEIVE)?;
    let ram = rig.ram();
    ring.describe(
        ram,
        0,
        Descriptor {
            address: 1 << 45,
            length: 2048,
            flags: super::super::driver::WRITE,
            next: 0,
        },
    );
    ring.offer(ram, 0);
    rig.driver.kick(ring.queue);
    Ok(())
}

/// None at all, less than a header, a header alone, more than any frame.
fn lengths(rig: &mut Rig<'_>) -> Attack {
    let place = rig.allocate(0x4_0000, 4096)?;
    for length in [
        0,
        1,
        NET_HEADER - 1,
        NET_HEADER,
        NET_HEADER + 1,
        0x1_0100,
        0x2_0000,
        0x4_0000,
    ] {
        let used = rig.exchange(&[(place, length, false)])?;
        same("the used length", used.length, 0)?;
    }
    Ok(())
}

/// Flags, kinds of segmentation, lengths and offsets at random.
fn headers(rig: &mut Rig<'_>) -> Attack {
    let place = rig.allocate(0x1000, 4096)?;
    let ram = rig.ram();
    let mut noise = super::Noise(12);
    for _ in 0..64 {
        let mut header = noise.next().to_le_bytes().to_vec();
        header.extend(noise.next().to_le_bytes());
        // An ethertype of nobody's behind it.
        header.resize(200, 0);
        header[24..26].copy_from_slice(&[0x88, 0xb5]);
        ram.write(place, &header);
        rig.exchange(&[(place, 200, false)])?;
    }
    Ok(())
}

fn thousand_pieces(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let place = rig.allocate(0x1000, 4096)?;
    let entries: Vec<_> = (1..=1000)
        .map(|next| Descriptor {
            address: place + u64::from(next) * 2,
            length: 1,
            flags: u16::from(next < 1000),
            next,
        })
        .collect();
    let (table, length) = super::table(rig, &entries)?;
    super::offer(
        rig,
        &[Descriptor {
            address: table,
            length,
            flags: super::super::driver::INDIRECT,
            next: 0,
        }],
    );
    let used = rig.main.wait_used(ram, 0, Duration::from_secs(15));
    check(used.is_some(), || "the frame is not taken".to_owned())
}

/// Too small for a header, readable, of no length: each goes back empty, or the device asks for a reset; never a frame in it.
fn useless_buffers(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, RECEIVE)?;
    let ram = rig.ram();
    let place = rig.allocate(0x1000, 4096)?;
    ram.write(place, &[0x5a; 0x1000]);
    for chain in [
        [(place, 0, true)],
        [(place, 1, true)],
        [(place, NET_HEADER - 1, true)],
        [(place, 1500, false)],
    ] {
        ring.submit(ram, &chain);
        rig.driver.kick(ring.queue);
    }
    std::thread::sleep(Duration::from_millis(50));
    let clean = rig.bytes(place, 0x1000).iter().all(|byte| *byte == 0x5a);
    check(clean, || "a frame is in a buffer of no use".to_owned())
}
