//! Queues set up wrongly: sizes, places, the order of things.

use super::super::driver::{Ring, register};
use super::super::{Attack, Case, Expect, Rig};
use super::{ALL, check, same};

use Expect::{Calm, NeedsReset, Open, Serves};

pub(super) const CASES: &[Case] = &[
    Case::new("size-0", ALL, Serves, |rig| size(rig, &[0])).unprepared(),
    Case::new("size-no-power-of-two", ALL, Serves, |rig| {
        size(rig, &[3, 48, 100, 255, 0x7fff])
    })
    .unprepared(),
    Case::new("size-above-the-largest", ALL, Serves, |rig| {
        size(rig, &[0x800, 0x4000, 0x8000, 0xffff])
    })
    .unprepared(),
    Case::new("size-1", ALL, Open, size_1).unprepared(),
    Case::new("descriptors-outside-ram", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[0] = 1 << 45)
    })
    .unprepared(),
    Case::new("available-ring-outside-ram", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[1] = 1 << 45)
    })
    .unprepared(),
    Case::new("used-ring-outside-ram", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[2] = 1 << 45)
    })
    .unprepared(),
    Case::new("rings-outside-every-address", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| *rings = [1 << 63; 3])
    })
    .unprepared(),
    Case::new("rings-over-their-own-bar", ALL, NeedsReset, |rig| {
        placed(rig, |rings, rig| *rings = [rig.home; 3])
    })
    .unprepared(),
    Case::new("rings-over-ecam", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| *rings = [0xe000_0000; 3])
    })
    .unprepared(),
    Case::new(
        "descriptors-across-the-end-of-ram",
        ALL,
        NeedsReset,
        |rig| placed(rig, |rings, rig| rings[0] = rig.machine.ram_end() - 16),
    )
    .unprepared(),
    Case::new("used-ring-across-the-end-of-ram", ALL, NeedsReset, |rig| {
        placed(rig, |rings, rig| rings[2] = rig.machine.ram_end() - 4)
    })
    .unprepared(),
    Case::new("descriptors-wrap", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[0] = !0xf)
    })
    .unprepared(),
    Case::new("available-ring-wraps", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[1] = !1)
    })
    .unprepared(),
    Case::new("used-ring-wraps", ALL, NeedsReset, |rig| {
        placed(rig, |rings, _| rings[2] = !3)
    })
    .unprepared(),
    Case::new("rings-unaligned", ALL, Calm, unaligned).unprepared(),
    Case::new("enabled-without-a-place", ALL, Open, no_place).unprepared(),
    Case::new("a-queue-that-is-not-there", ALL, Serves, not_there),
    Case::new("changed-after-it-was-enabled", ALL, Serves, changed).unprepared(),
    Case::new(
        "enabled-twice-and-with-nonsense",
        ALL,
        Serves,
        enabled_twice,
    ),
    Case::new("disabled", ALL, Serves, disabled),
    Case::new("enabled-after-driver-ok", ALL, Serves, late).unprepared(),
    Case::new("two-queues-on-the-same-rings", ALL, Open, shared).unprepared(),
    Case::new("no-queue-enabled", ALL, Calm, none_enabled).unprepared(),
];

/// Impossible sizes are not taken; the queue works with the one it had.
fn size(rig: &mut Rig<'_>, sizes: &[u16]) -> Attack {
    rig.prepare()?;
    let most = rig.driver.select(rig.main.queue);
    for size in sizes {
        rig.driver.write(register::QUEUE_SIZE, 2, (*size).into());
        let now = rig.driver.read(register::QUEUE_SIZE, 2);
        same(
            &format!("the size after {size} was written"),
            now,
            most.into(),
        )?;
    }
    rig.start();
    Ok(())
}

/// Some devices cannot do much with one descriptor; they may say so.
fn size_1(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.main = Ring::new(rig.ram(), rig.main.queue, 1, rig.main.descriptors);
    rig.start();
    let _ = rig.submit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.main = Ring::new(rig.ram(), rig.main.queue, 64, rig.main.descriptors);
    Ok(())
}

/// Enables the main queue at places of its own, and sets DRIVER_OK.
fn placed(rig: &mut Rig<'_>, change: fn(&mut [u64; 3], &Rig<'_>)) -> Attack {
    rig.prepare()?;
    let mut rings = [rig.main.descriptors, rig.main.available, rig.main.used];
    change(&mut rings, rig);
    let _ = rig.driver.select(rig.main.queue);
    rig.driver
        .write(register::QUEUE_SIZE, 2, rig.main.size.into());
    rig.driver.place(rings[0], rings[1], rings[2]);
    rig.driver.write(register::QUEUE_ENABLE, 2, 1);
    rig.ready();
    rig.driver.kick(rig.main.queue);
    Ok(())
}

/// Addresses that the specification's alignment forbids are not taken. The queue is not enabled: where it lies is then unknown.
fn unaligned(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    let _ = rig.driver.select(rig.main.queue);
    for (register, address, step) in [
        (register::QUEUE_DESC, rig.main.descriptors, 8),
        (register::QUEUE_DRIVER, rig.main.available, 1),
        (register::QUEUE_DEVICE, rig.main.used, 2),
    ] {
        rig.driver
            .write(register, 4, (address + step) & 0xffff_ffff);
        let now = rig.driver.read(register, 4);
        check(now & 15 == 0, || {
            format!("register {register:#x} took the address {now:#x}")
        })?;
    }
    Ok(())
}

/// All three rings at address 0. Guests keep nothing there.
fn no_place(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.write(register::QUEUE_ENABLE, 2, 1);
    rig.ready();
    rig.driver.kick(rig.main.queue);
    std::thread::sleep(std::time::Duration::from_millis(20));
    Ok(())
}

fn not_there(rig: &mut Rig<'_>) -> Attack {
    let count = rig.driver.read(register::NUM_QUEUES, 2);
    for queue in [count, 0x3ff, 0x400, 0xfffe, 0xffff] {
        rig.driver.write(register::QUEUE_SELECT, 2, queue);
        same("its size", rig.driver.read(register::QUEUE_SIZE, 2), 0)?;
        rig.driver.write(register::QUEUE_SIZE, 2, 16);
        rig.driver.place(rig.home, rig.home, rig.home);
        rig.driver.write(register::QUEUE_VECTOR, 2, 0);
        rig.driver.write(register::QUEUE_ENABLE, 2, 1);
        same("its size", rig.driver.read(register::QUEUE_SIZE, 2), 0)?;
        same("its enable", rig.driver.read(register::QUEUE_ENABLE, 2), 0)?;
        same("its place", rig.driver.read(register::QUEUE_DESC, 4), 0)?;
    }
    Ok(())
}

fn changed(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.driver.enable(&rig.main);
    rig.driver.place(1 << 45, 1 << 45, 1 << 45);
    rig.driver.write(register::QUEUE_SIZE, 2, 2);
    let size = rig.driver.read(register::QUEUE_SIZE, 2);
    same("the size", size, rig.main.size.into())?;
    let low = rig.main.descriptors & 0xffff_ffff;
    same("the place", rig.driver.read(register::QUEUE_DESC, 4), low)?;
    if let Some(aux) = &rig.aux {
        rig.driver.enable(aux);
    }
    rig.ready();
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.place(1 << 45, 1 << 45, 1 << 45);
    Ok(())
}

fn enabled_twice(rig: &mut Rig<'_>) -> Attack {
    let _ = rig.driver.select(rig.main.queue);
    for value in [1, 1, 2, 0xffff, 0x8001] {
        rig.driver.write(register::QUEUE_ENABLE, 2, value);
    }
    same("its enable", rig.driver.read(register::QUEUE_ENABLE, 2), 1)
}

fn disabled(rig: &mut Rig<'_>) -> Attack {
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.write(register::QUEUE_ENABLE, 2, 0);
    same("its enable", rig.driver.read(register::QUEUE_ENABLE, 2), 1)
}

fn late(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.ready();
    rig.start();
    Ok(())
}

/// The device's first two queues, or the only one twice.
fn shared(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    let mut other = rig.main.clone();
    other.queue = if rig.main.queue == 0 { 1 } else { 0 };
    rig.driver.enable(&other);
    rig.start();
    let _ = rig.submit();
    rig.driver.kick(other.queue);
    std::thread::sleep(std::time::Duration::from_millis(50));
    Ok(())
}

fn none_enabled(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.ready();
    let pieces = rig.request();
    let ram = rig.ram();
    let head = rig.main.submit(ram, &pieces);
    rig.driver.kick(rig.main.queue);
    let used = rig
        .main
        .wait_used(ram, head, std::time::Duration::from_millis(50));
    check(used.is_none(), || {
        format!("a queue that is not enabled is served: {used:?}")
    })
}
