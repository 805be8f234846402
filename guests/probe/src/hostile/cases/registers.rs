//! Registers accessed with widths, alignments and in places that no driver uses.

use super::super::driver::{COMMON_LENGTH, register};
use super::super::rig::{SCSI_HEADER, SCSI_RESPONSE};
use super::super::{Attack, Case, Expect, Kind, Rig};
use super::{ALL, Noise, WIDTHS, check, same};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "read-with-every-width-everywhere",
        ALL,
        Serves,
        read_everywhere,
    ),
    Case::new("write-with-wrong-widths", ALL, Serves, write_wrongly),
    Case::new("write-what-is-read-only", ALL, Serves, write_read_only),
    Case::new("beyond-the-common-structure", ALL, Serves, beyond_common),
    Case::new("across-the-end-of-a-structure", ALL, Serves, across_ends),
    Case::new("between-the-structures", ALL, Serves, between),
    Case::new("interrupt-status-written", ALL, Serves, isr),
    Case::new("device-configuration-written", ALL, Serves, device_config),
    Case::new(
        "device-configuration-beyond-its-end",
        ALL,
        Serves,
        device_config_end,
    ),
    Case::new(
        "doorbells-with-every-width-and-value",
        ALL,
        Serves,
        doorbells,
    ),
    Case::new(
        "doorbells-of-queues-that-are-not-there",
        ALL,
        Serves,
        foreign_doorbells,
    ),
    Case::new("doorbells-read", ALL, Serves, |rig| {
        for width in WIDTHS {
            let _ = rig.driver.function.read_bar(rig.driver.doorbell(0), width);
        }
        Ok(())
    }),
    Case::new(
        "configuration-window-with-nonsense",
        ALL,
        Serves,
        window_nonsense,
    ),
    Case::new(
        "configuration-window-over-the-status",
        ALL,
        Serves,
        window_status,
    ),
    Case::new(
        "configuration-space-overwritten",
        ALL,
        Serves,
        overwrite_config,
    ),
    Case::new("configuration-space-read-by-bytes", ALL, Serves, |rig| {
        for offset in 0..256 {
            let _ = rig.driver.function.read_config(offset, 1);
        }
        Ok(())
    }),
    Case::new(
        "configuration-ports-with-odd-widths",
        ALL,
        Serves,
        config_ports,
    ),
    Case::new(
        "configuration-ports-with-nonsense",
        ALL,
        Serves,
        config_addresses,
    ),
    Case::new("ecam-with-odd-widths", ALL, Serves, ecam),
];

/// The registers a driver may write, with their widths.
const WRITABLE: &[(u64, usize)] = &[
    (register::DEVICE_FEATURE_SELECT, 4),
    (register::DRIVER_FEATURE_SELECT, 4),
    (register::DRIVER_FEATURE, 4),
    (register::CONFIG_VECTOR, 2),
    (register::STATUS, 1),
    (register::QUEUE_SELECT, 2),
    (register::QUEUE_SIZE, 2),
    (register::QUEUE_VECTOR, 2),
    (register::QUEUE_ENABLE, 2),
    (register::QUEUE_DESC, 4),
    (register::QUEUE_DESC + 4, 4),
    (register::QUEUE_DRIVER, 4),
    (register::QUEUE_DRIVER + 4, 4),
    (register::QUEUE_DEVICE, 4),
    (register::QUEUE_DEVICE + 4, 4),
    // The specification allows only halves; whole ones are no harm.
    (register::QUEUE_DESC, 8),
    (register::QUEUE_DRIVER, 8),
    (register::QUEUE_DEVICE, 8),
];

/// The configuration's generation.
const GENERATION: u64 = register::STATUS + 1;

/// Registers a driver may only read.
const READ_ONLY: &[(u64, usize)] = &[
    (register::DEVICE_FEATURE, 4),
    (register::NUM_QUEUES, 2),
    (GENERATION, 1),
    (register::QUEUE_NOTIFY_OFF, 2),
];

/// What all registers show, with the main queue selected.
fn snapshot(rig: &Rig<'_>) -> Vec<u64> {
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.write(register::DRIVER_FEATURE_SELECT, 4, 0);
    rig.driver.write(register::DEVICE_FEATURE_SELECT, 4, 0);
    let all = WRITABLE.iter().chain(READ_ONLY);
    // A memory device says once more what it requests, soon after its queue started.
    let stays = |register: u64| rig.kind != Kind::Mem || register != GENERATION;
    all.filter(|(register, _)| stays(*register))
        .map(|(register, width)| rig.driver.read(*register, *width))
        .collect()
}

fn unchanged(rig: &Rig<'_>, before: &[u64]) -> Attack {
    same("what the registers show", snapshot(rig), before.to_vec())
}

fn read_everywhere(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    for offset in 0..0x80 {
        for width in WIDTHS {
            let _ = rig.driver.read(offset, width);
        }
    }
    unchanged(rig, &before)
}

fn write_wrongly(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    for offset in 0..COMMON_LENGTH + 8 {
        for width in WIDTHS {
            if !WRITABLE.contains(&(offset, width)) {
                rig.driver.write(offset, width, u64::MAX);
                rig.driver.write(offset, width, 0);
            }
        }
    }
    unchanged(rig, &before)
}

fn write_read_only(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    for (register, width) in READ_ONLY {
        for value in [0, 1, u64::MAX] {
            rig.driver.write(*register, *width, value);
        }
    }
    unchanged(rig, &before)
}

fn beyond_common(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    for offset in (COMMON_LENGTH..0x1000).step_by(8) {
        rig.driver.write(offset, 8, u64::MAX);
        same(
            "a register that is not there",
            rig.driver.read(offset, 8),
            0,
        )?;
    }
    unchanged(rig, &before)
}

fn across_ends(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    let layout = rig.driver.layout;
    let table_end = layout.table + u64::from(layout.vectors) * 16;
    for end in [
        COMMON_LENGTH,
        layout.isr + 1,
        layout.device.0 + layout.device.1,
        layout.notify.0,
        layout.notify.0 + layout.notify.1,
        table_end,
        layout.pending,
        rig.driver.function.bar_length(),
    ] {
        for width in [2, 4, 8] {
            for back in 1..width {
                let at = end - back as u64;
                if at + width as u64 <= rig.driver.function.bar_length() {
                    let _ = rig.driver.function.read_bar(at, width);
                    rig.driver.function.write_bar(at, width, 0);
                }
            }
        }
    }
    // The last table entry's mask may have been cleared: MSI-X is off, so it means nothing.
    unchanged(rig, &before)
}

fn between(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    let layout = rig.driver.layout;
    let mut noise = Noise(1);
    for start in [
        layout.isr + 0x10,
        layout.notify.0 - 0x800,
        layout.table - 0x1000,
        layout.pending + 0x1000,
    ] {
        for _ in 0..64 {
            let width = WIDTHS[usize::try_from(noise.below(4)).unwrap_or(0)];
            let at = start + noise.below(0x700);
            rig.driver.function.write_bar(at, width, noise.next());
            let _ = rig.driver.function.read_bar(at, width);
        }
    }
    unchanged(rig, &before)
}

fn isr(rig: &mut Rig<'_>) -> Attack {
    let isr = rig.driver.layout.isr;
    for width in WIDTHS {
        rig.driver.function.write_bar(isr, width, u64::MAX);
    }
    // A NIC may be interrupting all the while: frames come from the host. But not between any two reads.
    let _ = rig.driver.function.read_bar(isr, 1);
    let mut reads = (0..16).map(|_| rig.driver.function.read_bar(isr, 1));
    check(reads.any(|status| status == 0), || {
        "the interrupt status is never 0, however often it is read".to_owned()
    })
}

fn device_config(rig: &mut Rig<'_>) -> Attack {
    let (start, _) = rig.driver.layout.device;
    let function = rig.driver.function;
    // Two fields of a balloon's belong to its driver, and two of a SCSI adapter's.
    let own = |at: &u64| match rig.kind {
        Kind::Balloon => matches!(at, 4..8 | 12..16),
        Kind::Scsi => matches!(at, 20..28),
        _ => false,
    };
    let read = || {
        let kept = (0..64).filter(|at| !own(at));
        kept.map(|at| function.read_bar(start + at, 1)).collect()
    };
    let before: Vec<u64> = read();
    for width in WIDTHS {
        for at in 0..64 {
            function.write_bar(start + at, width, u64::MAX);
        }
    }
    if rig.kind == Kind::Scsi {
        // Taken at its word, it would wait for commands that nobody sends.
        for (at, size) in [(20, SCSI_RESPONSE - 12), (24, SCSI_HEADER - 19)] {
            function.write_bar(start + at, 4, size.into());
        }
    }
    same("the device's configuration", read(), before)
}

fn device_config_end(rig: &mut Rig<'_>) -> Attack {
    let (start, length) = rig.driver.layout.device;
    for at in [0x100, 0x101, length / 2, length - 8] {
        for width in WIDTHS {
            let value = rig.driver.function.read_bar(start + at, width);
            same("what is behind the configuration", value, 0)?;
            rig.driver.function.write_bar(start + at, width, u64::MAX);
        }
    }
    Ok(())
}

fn doorbells(rig: &mut Rig<'_>) -> Attack {
    for width in WIDTHS {
        for value in [0, 1, u64::MAX, 0x8000_0000] {
            let at = rig.driver.doorbell(rig.main.queue);
            rig.driver.function.write_bar(at, width, value);
            rig.driver.function.write_bar(at + 1, width, value);
        }
    }
    Ok(())
}

fn foreign_doorbells(rig: &mut Rig<'_>) -> Attack {
    let count = rig.driver.read(register::NUM_QUEUES, 2);
    let last = rig.driver.layout.notify.1 / rig.driver.layout.multiplier.max(1);
    for queue in (count..last).step_by(7) {
        rig.driver.kick(u16::try_from(queue).unwrap_or(u16::MAX));
    }
    Ok(())
}

fn window_nonsense(rig: &mut Rig<'_>) -> Attack {
    let before = snapshot(rig);
    let (function, at) = (rig.driver.function, rig.driver.layout.window);
    let length = u32::try_from(function.bar_length()).unwrap_or(u32::MAX);
    for bar in [0, 1, 5, 0xff] {
        for offset in [0, 1, 0x15, length - 1, length, 0x8000_0000, u32::MAX] {
            for width in [0, 3, 5, 8, 0x8000_0000, u32::MAX] {
                function.write_config(at + 4, 1, bar);
                function.write_config(at + 8, 4, offset);
                function.write_config(at + 12, 4, width);
                function.write_config(at + 16, 4, u32::MAX);
                let _ = function.read_config(at + 16, 4);
                let _ = function.read_config(at + 17, 1);
            }
        }
    }
    function.write_config(at + 12, 4, 0);
    unchanged(rig, &before)
}

/// Used rightly the window shows the register; unaligned it shows nothing.
fn window_status(rig: &mut Rig<'_>) -> Attack {
    let (function, at) = (rig.driver.function, rig.driver.layout.window);
    let status = rig.driver.layout.common + register::STATUS;
    function.write_config(at + 4, 1, 0);
    function.write_config(at + 8, 4, super::super::rig::low(status));
    function.write_config(at + 12, 4, 1);
    let seen = function.read_config(at + 16, 1);
    same("the status in the window", seen, rig.driver.status().into())?;
    // Two and four bytes from an odd place on.
    function.write_config(at + 8, 4, super::super::rig::low(status - 1));
    for width in [2, 4] {
        function.write_config(at + 12, 4, width);
        function.write_config(at + 16, 4, 0);
    }
    function.write_config(at + 12, 4, 0);
    Ok(())
}

/// Every byte but command and BAR, which have cases of their own.
fn overwrite_config(rig: &mut Rig<'_>) -> Attack {
    let function = rig.driver.function;
    let identity = || {
        [0, 8, 0x2c]
            .map(|offset| function.read_config(offset, 4))
            .to_vec()
    };
    let before = identity();
    let registers = snapshot(rig);
    for (width, value) in [(1, 0xff), (2, 0xffff), (4, u32::MAX), (1, 0)] {
        for offset in (0..256_u16).step_by(width) {
            if !(4..6).contains(&offset) && !(0x10..0x18).contains(&offset) {
                function.write_config(offset, width, value);
            }
        }
        rig.set_msix(0);
    }
    same("the function's identity", identity(), before)?;
    unchanged(rig, &registers)
}

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Only a whole address counts; data may be read with any width. 0xCF9 is left alone: it resets.
fn config_ports(rig: &mut Rig<'_>) -> Attack {
    let ports = super::ports(rig)?;
    ports.write(CONFIG_ADDRESS, 4, 0x8000_0000);
    let identity = ports.read(CONFIG_DATA, 4);
    for (port, width) in [
        (CONFIG_ADDRESS, 1),
        (CONFIG_ADDRESS, 2),
        (CONFIG_ADDRESS + 2, 2),
    ] {
        ports.write(port, width, 0);
        same("the host bridge", ports.read(CONFIG_DATA, 4), identity)?;
    }
    for offset in 0..4 {
        for width in [1, 2, 4] {
            let _ = ports.read(CONFIG_ADDRESS + offset, width);
            let _ = ports.read(CONFIG_DATA + offset, width);
            // The host bridge's identity, which is read-only.
            ports.write(CONFIG_DATA + offset, width, u32::MAX);
        }
    }
    same("the host bridge", ports.read(CONFIG_DATA, 4), identity)
}

/// Buses and functions that are not there, and addresses without the enable bit.
fn config_addresses(rig: &mut Rig<'_>) -> Attack {
    let ports = super::ports(rig)?;
    let mut noise = Noise(2);
    for _ in 0..500 {
        // Bus 1 and above: nothing is there that a write could hurt.
        let bus = 1 + noise.below(255);
        let address = 0x8000_0000 | bus << 16 | noise.below(0x1_0000);
        ports.write(CONFIG_ADDRESS, 4, super::super::rig::low(address));
        ports.write(CONFIG_DATA, 4, u32::MAX);
        same("an empty place", ports.read(CONFIG_DATA, 4), u32::MAX)?;
        // Without the enable bit.
        ports.write(CONFIG_ADDRESS, 4, super::super::rig::low(address & 0xffff));
        ports.write(CONFIG_DATA, 1, 0);
        same("a disabled address", ports.read(CONFIG_DATA, 1), 0xff)?;
    }
    Ok(())
}

const ECAM: u64 = 0xe000_0000;

fn ecam(rig: &mut Rig<'_>) -> Attack {
    let physical = super::physical(rig)?;
    for offset in 0..0x80 {
        for width in WIDTHS {
            let read = physical.read(ECAM + offset, width);
            check(read.is_some(), || "ECAM cannot be looked at".to_owned())?;
        }
    }
    // Identity of the host bridge, and functions that are not there.
    for width in WIDTHS {
        physical.write(ECAM, width, u64::MAX);
        physical.write(ECAM + (1 << 20), width, u64::MAX);
        physical.write(ECAM + (0xff << 20) + 0xff8, width, u64::MAX);
    }
    let low = physical.read(ECAM, 4).unwrap_or_default();
    same("the host bridge", low, 0x29c0_8086)
}
