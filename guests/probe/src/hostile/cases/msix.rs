//! MSI-X: the table, the pending bits and the vectors (VIRTIO 1.2 §4.1.5.1.2, PCI Local Bus 3.0 §6.8.2).
//!
//! Messages that are let out go to an APIC that is not there: what they would do to the guest's own CPUs is its business alone.

use super::super::driver::register;
use super::super::{Attack, Case, Expect, Rig};
use super::{ALL, Noise, WIDTHS, check, same, storm};

use Expect::Serves;

pub(super) const CASES: &[Case] = &[
    Case::new("vectors-out-of-range", ALL, Serves, out_of_range),
    Case::new("table-filled-with-nonsense", ALL, Serves, nonsense),
    Case::new("table-with-odd-widths", ALL, Serves, odd_widths),
    Case::new("table-beyond-its-end", ALL, Serves, beyond),
    Case::new("pending-bits-written", ALL, Serves, pending_written),
    Case::new("masked-interrupts-are-pending", ALL, Serves, masked),
    Case::new("messages-to-nobody", ALL, Serves, to_nobody),
    Case::new("messages-to-impossible-addresses", ALL, Serves, impossible),
    Case::new("storm-of-masked-interrupts", ALL, Serves, masked_storm),
    Case::new("storm-of-enabling-and-masking", ALL, Serves, toggle_storm),
    Case::new(
        "storm-of-table-writes-while-enabled",
        ALL,
        Serves,
        table_storm,
    ),
    Case::new("all-queues-on-one-vector", ALL, Serves, one_vector),
];

const ENABLE: u16 = 1 << 15;
const MASK: u16 = 1 << 14;
/// APIC 0xEE, which no guest of these tests has; fixed delivery, edge.
const NOBODY: u64 = 0xfeee_e000;
/// A vector that Linux gives away last.
const DATA: u32 = 0xd3;

/// Writes a table entry: address, data, mask.
fn set(rig: &Rig<'_>, vector: u16, address: u64, data: u32, masked: bool) {
    let at = rig.driver.layout.table + u64::from(vector) * 16;
    let function = rig.driver.function;
    function.write_bar(at, 4, address & 0xffff_ffff);
    function.write_bar(at + 4, 4, address >> 32);
    function.write_bar(at + 8, 4, data.into());
    function.write_bar(at + 12, 4, masked.into());
}

/// Back to how a reset leaves it.
fn clear(rig: &Rig<'_>) {
    rig.set_msix(0);
    for vector in 0..rig.driver.layout.vectors {
        set(rig, vector, 0, 0, true);
    }
}

fn give_vector(rig: &Rig<'_>, vector: u64) -> u64 {
    let _ = rig.driver.select(rig.main.queue);
    rig.driver.write(register::QUEUE_VECTOR, 2, vector);
    rig.driver.read(register::QUEUE_VECTOR, 2)
}

fn pending(rig: &Rig<'_>, vector: u16) -> bool {
    let at = rig.driver.layout.pending + u64::from(vector / 8);
    rig.driver.function.read_bar(at, 1) >> (vector % 8) & 1 == 1
}

/// A vector that does not exist is not taken, which the driver sees.
fn out_of_range(rig: &mut Rig<'_>) -> Attack {
    let count = u64::from(rig.driver.layout.vectors);
    for vector in [count, 0x7ff, 0x800, 0x8000, 0xfffe, 0xffff] {
        same("the queue's vector", give_vector(rig, vector), 0xffff)?;
        rig.driver.write(register::CONFIG_VECTOR, 2, vector);
        let config = rig.driver.read(register::CONFIG_VECTOR, 2);
        same("the configuration's vector", config, 0xffff)?;
    }
    same(
        "a vector that exists",
        give_vector(rig, count - 1),
        count - 1,
    )
}

fn nonsense(rig: &mut Rig<'_>) -> Attack {
    let mut noise = Noise(3);
    let layout = rig.driver.layout;
    for at in (0..u64::from(layout.vectors) * 16).step_by(4) {
        let value = noise.next() & 0xffff_ffff;
        rig.driver
            .function
            .write_bar(layout.table + at, 4, value | 1);
        if at % 16 == 12 {
            let control = rig.driver.function.read_bar(layout.table + at, 4);
            same("vector control", control, 1)?;
        }
    }
    rig.serve()?;
    clear(rig);
    Ok(())
}

fn odd_widths(rig: &mut Rig<'_>) -> Attack {
    let table = rig.driver.layout.table;
    let end = u64::from(rig.driver.layout.vectors) * 16;
    for width in WIDTHS {
        for at in 0..end.min(64) {
            rig.driver.function.write_bar(table + at, width, u64::MAX);
            let _ = rig.driver.function.read_bar(table + at, width);
        }
    }
    clear(rig);
    let control = rig.driver.function.read_bar(table + 12, 4);
    same("vector control", control, 1)
}

fn beyond(rig: &mut Rig<'_>) -> Attack {
    let layout = rig.driver.layout;
    let end = layout.table + u64::from(layout.vectors) * 16;
    for at in (end..layout.pending).step_by(0x104) {
        for width in WIDTHS {
            rig.driver.function.write_bar(at, width, u64::MAX);
            let found = rig.driver.function.read_bar(at, width);
            same("a vector that is not there", found, 0)?;
        }
    }
    Ok(())
}

fn pending_written(rig: &mut Rig<'_>) -> Attack {
    let at = rig.driver.layout.pending;
    let before = rig.driver.function.read_bar(at, 8);
    for width in WIDTHS {
        rig.driver.function.write_bar(at, width, u64::MAX);
    }
    same(
        "the pending bits",
        rig.driver.function.read_bar(at, 8),
        before,
    )
}

/// With the function masked an interrupt shows as pending, and goes out when it is unmasked.
fn masked(rig: &mut Rig<'_>) -> Attack {
    set(rig, 0, NOBODY, DATA, false);
    rig.set_msix(ENABLE | MASK);
    same("the queue's vector", give_vector(rig, 0), 0)?;
    rig.serve()?;
    let seen = super::super::driver::poll(std::time::Duration::from_secs(2), || {
        pending(rig, 0).then_some(())
    });
    check(seen.is_some(), || "the interrupt is not pending".to_owned())?;
    rig.set_msix(ENABLE);
    let gone = !pending(rig, 0);
    clear(rig);
    check(gone, || "the interrupt stays pending".to_owned())
}

fn to_nobody(rig: &mut Rig<'_>) -> Attack {
    set(rig, 0, NOBODY, DATA, false);
    rig.set_msix(ENABLE);
    give_vector(rig, 0);
    for _ in 0..16 {
        rig.serve()?;
    }
    clear(rig);
    Ok(())
}

/// Addresses in RAM, over devices, with all bits of the upper half: the destination in them is nobody all the same.
fn impossible(rig: &mut Rig<'_>) -> Attack {
    give_vector(rig, 0);
    for address in [0x000e_e000, 0x100e_e000, 0xe00e_e000, 0xffff_ffff_000e_e000] {
        for data in [DATA, DATA | 0xc000, DATA | 0xffff_0000] {
            set(rig, 0, address, data, false);
            rig.set_msix(ENABLE);
            rig.serve()?;
            rig.set_msix(0);
        }
    }
    clear(rig);
    Ok(())
}

fn masked_storm(rig: &mut Rig<'_>) -> Attack {
    set(rig, 0, NOBODY, DATA, true);
    rig.set_msix(ENABLE);
    give_vector(rig, 0);
    storm(rig.machine, |_| Ok(rig.serve()?))?;
    clear(rig);
    Ok(())
}

fn toggle_storm(rig: &mut Rig<'_>) -> Attack {
    for vector in 0..rig.driver.layout.vectors {
        set(rig, vector, NOBODY, DATA, false);
    }
    give_vector(rig, 0);
    let ways = [ENABLE, ENABLE | MASK, ENABLE, 0, MASK];
    storm(rig.machine, |round| {
        let way = usize::try_from(round % 5).unwrap_or(0);
        rig.set_msix(ways[way]);
        if round % 64 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    clear(rig);
    Ok(())
}

fn table_storm(rig: &mut Rig<'_>) -> Attack {
    rig.set_msix(ENABLE);
    give_vector(rig, 0);
    storm(rig.machine, |round| {
        // Always nobody; the rest of the message changes.
        let address = NOBODY | (round & 0xff) << 32;
        let data = DATA | u32::try_from(round & 0xff).unwrap_or(0) << 16;
        set(rig, 0, address, data, round % 3 == 0);
        if round % 64 == 0 {
            rig.serve()?;
        }
        Ok(())
    })?;
    clear(rig);
    Ok(())
}

fn one_vector(rig: &mut Rig<'_>) -> Attack {
    set(rig, 0, NOBODY, DATA, false);
    rig.set_msix(ENABLE);
    rig.driver.write(register::CONFIG_VECTOR, 2, 0);
    for queue in 0..rig.driver.read(register::NUM_QUEUES, 2) {
        rig.driver.write(register::QUEUE_SELECT, 2, queue);
        rig.driver.write(register::QUEUE_VECTOR, 2, 0);
    }
    rig.serve()?;
    clear(rig);
    Ok(())
}
