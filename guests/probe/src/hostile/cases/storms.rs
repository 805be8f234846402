//! Doorbells, registers and shared memory, as fast as a vCPU can.

use super::super::driver::{NEEDS_RESET, NEXT, WRITE, register};
use super::super::{Attack, Case, Expect, Rig};
use super::{ALL, Noise, descriptor, storm};

use Expect::{Open, Serves};

pub(super) const CASES: &[Case] = &[
    Case::new("doorbells-of-an-empty-queue", ALL, Serves, |rig| {
        storm(rig.machine, |_| {
            rig.driver.kick(rig.main.queue);
            Ok(())
        })?;
        Ok(())
    }),
    Case::new("doorbells-of-every-queue", ALL, Serves, |rig| {
        let count = rig.driver.read(register::NUM_QUEUES, 2).max(1);
        storm(rig.machine, |round| {
            let queue = u16::try_from(round % count).unwrap_or(0);
            rig.driver.kick(queue);
            Ok(())
        })?;
        Ok(())
    }),
    Case::new("doorbells-with-requests", ALL, Serves, |rig| {
        storm(rig.machine, |round| {
            for _ in 0..8 {
                rig.driver.kick(rig.main.queue);
            }
            if round % 16 == 0 {
                rig.serve()?;
            }
            Ok(())
        })?;
        Ok(())
    }),
    Case::new("configuration-interrupts", ALL, Open, config_interrupts).unprepared(),
    Case::new("broken-chains-and-resets", ALL, Open, broken_chains),
    Case::new("resets", ALL, Open, |rig| {
        storm(rig.machine, |_| Ok(rig.reset()?))?;
        Ok(())
    }),
    Case::new("resets-of-a-running-device", ALL, Open, |rig| {
        storm(rig.machine, |_| {
            let _ = rig.submit();
            Ok(rig.bring_up()?)
        })?;
        Ok(())
    }),
    Case::new("status-of-every-value", ALL, Open, |rig| {
        let mut noise = Noise(4);
        storm(rig.machine, |_| {
            rig.driver
                .set_status(u8::try_from(noise.below(256)).unwrap_or(0));
            Ok(())
        })?;
        Ok(())
    })
    .unprepared(),
    Case::new("register-noise", ALL, Open, register_noise).unprepared(),
    Case::new("interrupt-status-reads", ALL, Serves, |rig| {
        storm(rig.machine, |_| {
            let _ = rig.driver.function.read_bar(rig.driver.layout.isr, 1);
            Ok(())
        })?;
        Ok(())
    }),
    Case::new(
        "descriptors-that-change-while-they-are-read",
        ALL,
        Open,
        changing_descriptors,
    ),
    Case::new(
        "indices-that-change-while-they-are-read",
        ALL,
        Open,
        changing_indices,
    ),
];

/// Each broken start tells the driver of a changed configuration.
fn config_interrupts(rig: &mut Rig<'_>) -> Attack {
    storm(rig.machine, |_| {
        rig.driver.write(register::CONFIG_VECTOR, 2, 0);
        rig.driver.set_status(4);
        super::check(rig.driver.status() & NEEDS_RESET != 0, || {
            "DRIVER_OK without features goes unnoticed".to_owned()
        })?;
        Ok(rig.reset()?)
    })?;
    Ok(())
}

fn broken_chains(rig: &mut Rig<'_>) -> Attack {
    storm(rig.machine, |_| {
        let ram = rig.ram();
        rig.main.offer(ram, u16::MAX);
        rig.driver.kick(rig.main.queue);
        super::check(rig.driver.needs_reset(super::super::NOTICE), || {
            "a head outside the table goes unnoticed".to_owned()
        })?;
        Ok(rig.bring_up()?)
    })?;
    Ok(())
}

/// Anything but the places of rings: those at random would have the device write into the guest's own memory. Where they stay, at
/// address 0, a guest keeps nothing.
fn register_noise(rig: &mut Rig<'_>) -> Attack {
    let mut noise = Noise(5);
    storm(rig.machine, |_| {
        let offset = noise.below(register::QUEUE_DESC);
        let width = super::WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
        rig.driver.write(offset, width, noise.next());
        let _ = rig.driver.read(noise.below(0x40), width);
        Ok(())
    })?;
    Ok(())
}

/// The device reads each descriptor once, whatever it is then; here it is ours, or outside RAM, or a loop.
fn changing_descriptors(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(0x1000, 4096)?;
    let write = if rig.kind == super::Kind::Rng {
        WRITE
    } else {
        0
    };
    let faces = [
        descriptor(buffer, 16, write | NEXT, 1),
        descriptor(1 << 45, 16, write | NEXT, 1),
        descriptor(buffer, 16, write | NEXT, 0),
        descriptor(buffer, u32::MAX, write, u16::MAX),
        descriptor(buffer, 0, write | 4, 7),
    ];
    let ram = rig.ram();
    if rig.kind == super::Kind::Balloon {
        // Zeros would be the guest's first page.
        ram.write(buffer, &[0xff; 16]);
    }
    rig.main
        .describe(ram, 1, descriptor(buffer + 64, 1, WRITE, 0));
    storm(rig.machine, |round| {
        rig.main.offer(ram, 0);
        rig.driver.kick(rig.main.queue);
        for step in 0..32 {
            let face = usize::try_from((round + step) % 5).unwrap_or(0);
            rig.main.describe(ram, 0, faces[face]);
        }
        if rig.driver.status() & NEEDS_RESET != 0 {
            rig.bring_up()?;
            rig.main
                .describe(ram, 1, descriptor(buffer + 64, 1, WRITE, 0));
        }
        Ok(())
    })?;
    Ok(())
}

fn changing_indices(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let mut noise = Noise(6);
    storm(rig.machine, |round| {
        for _ in 0..16 {
            let index = u16::try_from(noise.below(0x1_0000)).unwrap_or(0);
            rig.main.set_index(ram, index);
            // The device's own side of the rings, too.
            ram.write(rig.main.used + 2, &index.to_le_bytes());
        }
        rig.driver.kick(rig.main.queue);
        if round % 8 == 0 && rig.driver.status() & NEEDS_RESET != 0 {
            rig.bring_up()?;
        }
        Ok(())
    })?;
    Ok(())
}
