//! Nonsense to a console: control messages, ports that are not there, buffers of no use (VIRTIO 1.2 §5.3.6).

use super::super::driver::{NEEDS_RESET, WRITE};
use super::super::{Attack, Case, Expect, Kind, Rig};
use super::{check, same, with_queue};
use std::time::Duration;

use Expect::{NeedsReset, Open, Serves};

const CONSOLE: &[Kind] = &[Kind::Console];

pub(super) const CASES: &[Case] = &[
    Case::new("control-of-unknown-events", CONSOLE, Serves, |rig| {
        for event in [2, 8, 9, 0x7fff, 0xffff] {
            control(rig, 0, event, 1)?;
        }
        Ok(())
    }),
    Case::new(
        "control-of-ports-that-are-not-there",
        CONSOLE,
        Serves,
        |rig| {
            for port in [15, 31, 99, 0x7fff_ffff, u32::MAX] {
                for event in 0..8 {
                    control(rig, port, event, 1)?;
                }
            }
            Ok(())
        },
    ),
    Case::new("control-the-device-s-own-events", CONSOLE, Serves, |rig| {
        for event in [1, 2, 4, 5, 7] {
            control(rig, 0, event, 1)?;
            control(rig, 1, event, 0xffff)?;
        }
        Ok(())
    }),
    Case::new("control-cut-short", CONSOLE, Serves, |rig| {
        let place = rig.place(&[0; 16])?;
        for length in 0..8 {
            rig.exchange(&[(place, length, false)])?;
        }
        Ok(())
    }),
    Case::new("control-too-long", CONSOLE, Serves, |rig| {
        let place = rig.allocate(0x1_0000, 4096)?;
        rig.ram().write(place, &[0xff; 64]);
        rig.exchange(&[(place, 0x1_0000, false)])?;
        Ok(())
    }),
    Case::new("control-that-is-writable", CONSOLE, Serves, |rig| {
        let place = rig.place(&[0xff; 16])?;
        let used = rig.exchange(&[(place, 8, true)])?;
        same("the used length", used.length, 0)
    }),
    Case::new("ready-not-ready-ready", CONSOLE, Serves, |rig| {
        for round in 0..64 {
            control(rig, u32::MAX, 0, round % 2)?;
            for port in 0..3 {
                control(rig, port, 3, round % 3)?;
                control(rig, port, 6, round % 2)?;
            }
        }
        Ok(())
    }),
    Case::new(
        "answers-into-buffers-that-are-too-small",
        CONSOLE,
        Serves,
        small_buffers,
    ),
    Case::new(
        "answers-into-what-is-readable",
        CONSOLE,
        Serves,
        readable_buffers,
    ),
    Case::new("answers-outside-ram", CONSOLE, NeedsReset, answers_outside),
    Case::new(
        "data-to-a-port-that-nobody-opened",
        CONSOLE,
        Serves,
        unopened,
    )
    .unprepared(),
    Case::new("receive-buffers-of-no-use", CONSOLE, Open, useless_buffers).unprepared(),
    Case::new("without-ports", CONSOLE, Expect::Calm, without_ports).unprepared(),
    Case::new("ports-that-are-reset-while-open", CONSOLE, Serves, |rig| {
        for _ in 0..8 {
            control(rig, u32::MAX, 0, 1)?;
            control(rig, 0, 3, 1)?;
            control(rig, 0, 6, 1)?;
            rig.bring_up()?;
        }
        Ok(())
    }),
];

/// Sends a control message: event `event` with `value` of `port`.
fn control(rig: &mut Rig<'_>, port: u32, event: u16, value: u16) -> Attack {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    let place = rig.place(&bytes)?;
    let used = rig.exchange(&[(place, 8, false)])?;
    same("the used length", used.length, 0)
}

/// Offers the device these buffers for its answers, and asks for answers.
fn offer_answers(rig: &mut Rig<'_>, buffers: &[(u64, u32, bool)]) -> Attack {
    let ram = rig.ram();
    if let Some(aux) = &mut rig.aux {
        for buffer in buffers {
            aux.submit(ram, &[*buffer]);
        }
        rig.driver.kick(aux.queue);
    }
    control(rig, u32::MAX, 0, 1)?;
    // Whatever came back is none of the next request's.
    std::thread::sleep(Duration::from_millis(50));
    while rig
        .aux
        .as_mut()
        .is_some_and(|aux| aux.take_used(ram).is_some())
    {}
    Ok(())
}

fn small_buffers(rig: &mut Rig<'_>) -> Attack {
    let place = rig.allocate(0x1000, 4096)?;
    rig.ram().write(place, &[0x5a; 64]);
    let buffers: Vec<_> = (0..32).map(|length| (place, length % 8, true)).collect();
    offer_answers(rig, &buffers)?;
    check(rig.bytes(place, 64) == [0x5a; 64], || {
        "a message is in a buffer that is too small for it".to_owned()
    })
}

fn readable_buffers(rig: &mut Rig<'_>) -> Attack {
    let place = rig.allocate(0x1000, 4096)?;
    rig.ram().write(place, &[0x5a; 64]);
    offer_answers(rig, &[(place, 64, false); 16])?;
    check(rig.bytes(place, 64) == [0x5a; 64], || {
        "a message is in a buffer that is not writable".to_owned()
    })
}

fn answers_outside(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let pieces = rig.request();
    if let Some(aux) = &mut rig.aux {
        aux.describe(ram, 0, super::descriptor(1 << 45, 64, WRITE, 0));
        aux.offer(ram, 0);
        rig.driver.kick(aux.queue);
    }
    rig.main.submit(ram, &pieces);
    rig.driver.kick(rig.main.queue);
    Ok(())
}

fn unopened(rig: &mut Rig<'_>) -> Attack {
    // The last port's queue: the first ports' may have somebody at the other end.
    let count = rig
        .driver
        .read(super::super::driver::register::NUM_QUEUES, 2);
    let last = u16::try_from(count).unwrap_or(4) - 1;
    let mut ring = with_queue(rig, last)?;
    let ram = rig.ram();
    let place = rig.allocate(0x1000, 4096)?;
    for length in [0, 1, 0x1000] {
        ring.submit(ram, &[(place, length, false)]);
        ring.submit(ram, &[(place, length, true)]);
    }
    rig.driver.kick(last);
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

fn useless_buffers(rig: &mut Rig<'_>) -> Attack {
    let mut ring = with_queue(rig, 0)?;
    let ram = rig.ram();
    let place = rig.allocate(0x1000, 4096)?;
    for chain in [[(place, 0, true)], [(place, 64, false)]] {
        ring.submit(ram, &chain);
    }
    rig.driver.kick(0);
    control(rig, u32::MAX, 0, 1)?;
    control(rig, 0, 3, 1)?;
    control(rig, 0, 6, 1)
}

/// A driver that knows no ports uses the first two queues only; here it enables them all.
fn without_ports(rig: &mut Rig<'_>) -> Attack {
    rig.reset()?;
    rig.driver.negotiate(0)?;
    rig.driver.enable(&rig.main);
    if let Some(aux) = &rig.aux {
        rig.driver.enable(aux);
    }
    rig.ready();
    let _ = rig.submit();
    std::thread::sleep(Duration::from_millis(50));
    same("NEEDS_RESET", rig.driver.status() & NEEDS_RESET, 0)
}
