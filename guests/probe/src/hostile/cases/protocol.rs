//! Status and features in the wrong order, or nonsense in them (VIRTIO 1.2 §3.1, §2.1, §2.2).

use super::super::driver::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, VERSION_1, register,
};
use super::super::{Attack, Case, Expect, Kind, Rig};
use super::{ALL, check, same};
use std::time::Duration;

use Expect::{Calm, NeedsReset, Open, Serves};

pub(super) const CASES: &[Case] = &[
    Case::new("driver-ok-without-features", ALL, NeedsReset, |rig| {
        rig.driver.set_status(ACKNOWLEDGE | DRIVER);
        rig.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
        Ok(())
    })
    .unprepared(),
    Case::new("driver-ok-and-nothing-else", ALL, NeedsReset, |rig| {
        rig.driver.set_status(DRIVER_OK);
        Ok(())
    })
    .unprepared(),
    Case::new(
        "features-after-driver-ok",
        ALL,
        NeedsReset,
        features_after_driver_ok,
    )
    .unprepared(),
    Case::new(
        "queues-after-driver-ok-without-features",
        ALL,
        NeedsReset,
        queues_of_a_broken_device,
    )
    .unprepared(),
    Case::new("features-never-offered", ALL, Calm, |rig| {
        refused(rig, u64::MAX)
    })
    .unprepared(),
    Case::new("features-without-version-1", ALL, Calm, |rig| {
        refused(rig, 0)
    })
    .unprepared(),
    Case::new(
        "features-changed-after-features-ok",
        ALL,
        Serves,
        features_changed,
    )
    .unprepared(),
    Case::new(
        "features-of-selectors-that-are-not-there",
        ALL,
        Serves,
        selectors,
    )
    .unprepared(),
    Case::new("status-all-at-once", ALL, Serves, all_at_once).unprepared(),
    Case::new("status-bits-taken-back", ALL, Serves, |rig| {
        rig.driver.set_status(ACKNOWLEDGE);
        let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        same("the status", rig.driver.status(), running)
    }),
    Case::new("needs-reset-set-by-the-driver", ALL, Serves, |rig| {
        rig.driver.set_status(rig.driver.status() | NEEDS_RESET);
        same("NEEDS_RESET", rig.driver.status() & NEEDS_RESET, 0)
    }),
    Case::new("failed", ALL, Open, |rig| {
        rig.driver.set_status(rig.driver.status() | FAILED);
        same("FAILED", rig.driver.status() & FAILED, FAILED)
    }),
    Case::new("reserved-status-bits", ALL, Open, |rig| {
        rig.driver.set_status(0x10);
        rig.driver.set_status(0x20);
        rig.driver.set_status(0xff);
        Ok(())
    })
    .unprepared(),
    Case::new("kick-before-driver-ok", ALL, Serves, early_kick).unprepared(),
    Case::new("reset-in-mid-request", ALL, Calm, reset_in_mid_request),
    Case::new(
        "reset-in-mid-request-by-the-hundred",
        &[Kind::Blk, Kind::Rng],
        Calm,
        reset_under_load,
    ),
    Case::new("reset-twice", ALL, Calm, |rig| {
        rig.reset()?;
        Ok(rig.reset()?)
    }),
    Case::new("everything-forgotten-by-a-reset", ALL, Calm, forgotten),
    Case::new(
        "status-after-needs-reset",
        ALL,
        NeedsReset,
        no_way_but_a_reset,
    ),
];

fn features_after_driver_ok(rig: &mut Rig<'_>) -> Attack {
    rig.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    let offered = rig.driver.offered();
    rig.driver.take_features(offered);
    rig.driver
        .set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK);
    same("FEATURES_OK", rig.driver.status() & FEATURES_OK, 0)
}

/// What asked for a reset must not begin to serve.
fn queues_of_a_broken_device(rig: &mut Rig<'_>) -> Attack {
    rig.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    let offered = rig.driver.offered();
    rig.driver.take_features(offered);
    rig.ready();
    rig.driver.enable(&rig.main);
    let pieces = rig.request();
    let ram = rig.ram();
    let head = rig.main.submit(ram, &pieces);
    rig.driver.kick(rig.main.queue);
    let used = rig.main.wait_used(ram, head, Duration::from_millis(100));
    check(used.is_none(), || {
        format!("a device that needs a reset serves: {used:?}")
    })
}

/// FEATURES_OK stays clear with these features.
fn refused(rig: &mut Rig<'_>, features: u64) -> Attack {
    rig.driver.set_status(ACKNOWLEDGE | DRIVER);
    rig.driver.take_features(features);
    rig.driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    same("FEATURES_OK", rig.driver.status() & FEATURES_OK, 0)
}

fn features_changed(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.driver.take_features(u64::MAX);
    rig.driver.write(register::DRIVER_FEATURE_SELECT, 4, 1);
    let high = rig.driver.read(register::DRIVER_FEATURE, 4);
    same("the upper half", high, rig.features >> 32)?;
    rig.start();
    rig.driver.take_features(0);
    Ok(())
}

fn selectors(rig: &mut Rig<'_>) -> Attack {
    for select in [2, 3, 0x8000_0000, 0xffff_ffff] {
        rig.driver.write(register::DEVICE_FEATURE_SELECT, 4, select);
        same("an offer", rig.driver.read(register::DEVICE_FEATURE, 4), 0)?;
        rig.driver.write(register::DRIVER_FEATURE_SELECT, 4, select);
        rig.driver.write(register::DRIVER_FEATURE, 4, 0xffff_ffff);
    }
    Ok(rig.bring_up()?)
}

/// In one write, with the features before it: what a hasty driver does.
fn all_at_once(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.reset()?;
    rig.driver.take_features(rig.features | VERSION_1);
    rig.driver.enable(&rig.main);
    if let Some(aux) = &rig.aux {
        rig.driver.enable(aux);
    }
    rig.ready();
    Ok(())
}

/// Buffers may be there before DRIVER_OK, but are not touched; then they are served without another kick.
fn early_kick(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.driver.enable(&rig.main);
    if let Some(aux) = &rig.aux {
        rig.driver.enable(aux);
    }
    let head = rig.submit();
    let ram = rig.ram();
    let early = rig.main.wait_used(ram, head, Duration::from_millis(50));
    check(early.is_none(), || format!("served too early: {early:?}"))?;
    rig.ready();
    Ok(rig.answered(head)?)
}

/// After the reset the device writes nothing any more.
fn reset_in_mid_request(rig: &mut Rig<'_>) -> Attack {
    let _ = rig.submit();
    rig.reset()?;
    stays_untouched(rig)
}

/// A full ring of large requests, and a reset at once.
fn reset_under_load(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let header = rig.place(&[0; 16])?;
    let status = rig.allocate(16, 16)?;
    let data = rig.allocate(0x1_0000, 4096)?;
    for _ in 0..rig.main.size / 4 {
        let chain: &[_] = match rig.kind {
            Kind::Blk => &[
                (header, 16, false),
                (data, 0x1_0000, true),
                (status, 1, true),
            ],
            _ => &[(data, 0x1_0000, true)],
        };
        rig.main.submit(ram, chain);
    }
    rig.driver.kick(rig.main.queue);
    rig.reset()?;
    ram.write(data, &[0x5a; 0x1_0000]);
    stays_untouched(rig)?;
    let touched = rig.bytes(data, 0x1_0000).iter().any(|byte| *byte != 0x5a);
    check(!touched, || {
        "the device writes into a buffer after its reset".to_owned()
    })
}

fn stays_untouched(rig: &mut Rig<'_>) -> Attack {
    let used = rig.main.used;
    rig.ram().write(used, &[0x5a; 64]);
    std::thread::sleep(Duration::from_millis(50));
    check(rig.bytes(used, 64) == [0x5a; 64], || {
        "the device writes into its used ring after its reset".to_owned()
    })
}

fn forgotten(rig: &mut Rig<'_>) -> Attack {
    rig.driver.write(register::CONFIG_VECTOR, 2, 0);
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.write(register::QUEUE_VECTOR, 2, 0);
    rig.reset()?;
    let _ = rig.driver.select(rig.main.queue);
    let register = |register, width| rig.driver.read(register, width);
    same("enable", register(register::QUEUE_ENABLE, 2), 0)?;
    same("the place", register(register::QUEUE_DESC, 4), 0)?;
    same("the vector", register(register::QUEUE_VECTOR, 2), 0xffff)?;
    same(
        "the config vector",
        register(register::CONFIG_VECTOR, 2),
        0xffff,
    )?;
    rig.driver.write(register::DRIVER_FEATURE_SELECT, 4, 1);
    same(
        "the features",
        rig.driver.read(register::DRIVER_FEATURE, 4),
        0,
    )
}

/// Once it needs a reset, nothing else helps.
fn no_way_but_a_reset(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    rig.main.offer(ram, u16::MAX);
    rig.driver.kick(rig.main.queue);
    check(rig.driver.needs_reset(Duration::from_secs(10)), || {
        "a head outside the table goes unnoticed".to_owned()
    })?;
    for status in [ACKNOWLEDGE, DRIVER_OK, 0x0f, 0x8f] {
        rig.driver.set_status(status);
    }
    let head = rig.submit();
    let used = rig.main.wait_used(ram, head, Duration::from_millis(50));
    check(used.is_none(), || {
        format!("a broken queue is served: {used:?}")
    })
}
