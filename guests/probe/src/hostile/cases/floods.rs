//! Floods: as much as goes through, for the length of a storm.

use super::super::driver::Ring;
use super::super::{Attack, Case, Expect, Kind, Rig, Stop};
use super::{check, storm};

use Expect::{Calm, Open, Serves};

pub(super) const CASES: &[Case] = &[
    Case::new("ordinary-requests", super::ALL, Serves, |rig| {
        let count = storm(rig.machine, |_| Ok(rig.serve()?))?;
        check(count > 0, || "not one request in a storm".to_owned())
    }),
    Case::new("a-full-ring-again-and-again", super::ALL, Open, full_ring),
    Case::new("serial-port", &[Kind::Rng], Serves, serial),
    Case::new(
        "serial-port-registers",
        &[Kind::Rng],
        Serves,
        serial_registers,
    ),
    Case::new(
        "console-data-that-nobody-takes",
        &[Kind::Console],
        Calm,
        untaken,
    )
    .unprepared(),
    Case::new(
        "console-control-messages",
        &[Kind::Console],
        Serves,
        control,
    ),
    Case::new("large-reads", &[Kind::Blk], Open, large_reads),
    Case::new("flushes", &[Kind::Blk], Open, |rig| {
        let mut header = vec![0; 16];
        header[0] = 4;
        let place = rig.place(&header)?;
        let status = rig.allocate(16, 16)?;
        again_and_again(rig, &[(place, 16, false), (status, 1, true)])
    }),
    Case::new("large-frames", &[Kind::Net], Open, |rig| {
        let place = rig.allocate(0x1_0000, 4096)?;
        // To everybody, of an ethertype of nobody's.
        rig.ram().write(place + 12, &[0xff; 6]);
        rig.ram().write(place + 24, &[0x88, 0xb5]);
        again_and_again(rig, &[(place, 0xf000, false)])
    }),
    Case::new("large-requests", &[Kind::Rng], Open, |rig| {
        let place = rig.allocate(0x1_0000, 4096)?;
        again_and_again(rig, &[(place, 0x1_0000, true)])
    }),
];

/// Keeps the ring full of chains with these pieces, all of them the same descriptors.
fn again_and_again(rig: &mut Rig<'_>, pieces: &[(u64, u32, bool)]) -> Attack {
    let ram = rig.ram();
    let length = u16::try_from(pieces.len()).unwrap_or(1);
    let most = rig.main.size / length;
    let mut under_way = 0;
    let mut done = 0_u64;
    storm(rig.machine, |_| {
        while under_way < most {
            rig.main.submit(ram, pieces);
            under_way += 1;
        }
        rig.driver.kick(rig.main.queue);
        while rig.main.take_used(ram).is_some() {
            under_way = under_way.saturating_sub(1);
            done += 1;
        }
        Ok(())
    })?;
    check(done > 0, || "nothing is served in a storm".to_owned())
}

fn full_ring(rig: &mut Rig<'_>) -> Attack {
    let pieces = rig.request();
    again_and_again(rig, &pieces)
}

/// 8 MiB in 64 descriptors, as often as the disk can; the data is let go in the same few pages.
fn large_reads(rig: &mut Rig<'_>) -> Attack {
    let header = rig.place(&[0; 16])?;
    let status = rig.allocate(16, 16)?;
    let data = rig.allocate(0x2_0000, 4096)?;
    let mut pieces = vec![(header, 16, false)];
    pieces.extend([(data, 0x2_0000, true); 14]);
    pieces.push((status, 1, true));
    again_and_again(rig, &pieces)
}

const SERIAL: u16 = 0x3f8;

/// Letters, and now and then a line's end: whoever reads the console sees no control character.
fn serial(rig: &mut Rig<'_>) -> Attack {
    let ports = rig.machine.ports().ok_or(Stop::Lacking("I/O ports"))?;
    storm(rig.machine, |round| {
        let letter = if round % 78 == 77 {
            10
        } else {
            97 + round % 26
        };
        ports.write(SERIAL, 1, u32::try_from(letter).unwrap_or(10));
        Ok(())
    })?;
    ports.write(SERIAL, 1, 10);
    Ok(())
}

/// Every register with every value, then as it was. Loopback is left out: the console would type to itself.
fn serial_registers(rig: &mut Rig<'_>) -> Attack {
    let ports = rig.machine.ports().ok_or(Stop::Lacking("I/O ports"))?;
    let before: Vec<u32> = [1, 3, 4, 7].map(|at| ports.read(SERIAL + at, 1)).to_vec();
    for value in 0..=0xff_u32 {
        for register in [1, 3, 4, 5, 6, 7] {
            let value = if register == 4 { value & !0x10 } else { value };
            ports.write(SERIAL + register, 1, value);
            let _ = ports.read(SERIAL + register, 2);
        }
    }
    // The divisor latch is closed before the interrupts are set as they were.
    for (register, value) in [
        (3, before[1]),
        (1, before[0]),
        (4, before[2]),
        (7, before[3]),
    ] {
        ports.write(SERIAL + register, 1, value);
    }
    Ok(())
}

/// To every port at once, from whose clients nobody reads, or to nobody.
fn untaken(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    let count = rig
        .driver
        .read(super::super::driver::register::NUM_QUEUES, 2);
    let data = rig.allocate(0x1_0000, 4096)?;
    let ram = rig.ram();
    ram.write(data, &[b'z'; 0x1_0000]);
    let mut rings = Vec::new();
    // Transmit queues: 1, then 5, 7, …; port 0, which may be the agent's own, is left out.
    for queue in (5..u16::try_from(count).unwrap_or(0)).step_by(2) {
        let address = rig.allocate(Ring::footprint(16), 4096)?;
        let ring = Ring::new(ram, queue, 16, address);
        rig.driver.enable(&ring);
        rings.push((ring, 0_u16));
    }
    rig.start();
    storm(rig.machine, |_| {
        for (ring, under_way) in &mut rings {
            while *under_way < ring.size {
                ring.submit(ram, &[(data, 0x1_0000, false)]);
                *under_way += 1;
            }
            rig.driver.kick(ring.queue);
            while ring.take_used(ram).is_some() {
                *under_way = under_way.saturating_sub(1);
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn control(rig: &mut Rig<'_>) -> Attack {
    let messages = rig.allocate(0x1000, 4096)?;
    let ram = rig.ram();
    let mut noise = super::Noise(13);
    storm(rig.machine, |_| {
        for slot in 0..16 {
            let mut message = [0; 8];
            message[0] = u8::try_from(noise.below(4)).unwrap_or(0);
            message[4] = u8::try_from(noise.below(9)).unwrap_or(0);
            message[6] = u8::try_from(noise.below(2)).unwrap_or(0);
            ram.write(messages + slot * 8, &message);
            rig.main.submit(ram, &[(messages + slot * 8, 8, false)]);
        }
        rig.driver.kick(rig.main.queue);
        let mut left = 16;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while left > 0 && std::time::Instant::now() < end {
            left -= usize::from(rig.main.take_used(ram).is_some());
        }
        check(left == 0, || "control messages are not taken".to_owned())
    })?;
    Ok(())
}
