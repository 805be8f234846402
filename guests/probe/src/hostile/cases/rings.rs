//! Broken descriptor chains and ring indices, on each device's main queue.

use super::super::driver::{Descriptor, INDIRECT, NEXT, WRITE};
use super::super::{Attack, Case, Expect, Kind, Rig};
use super::{ALL, descriptor, offer, table};

use Expect::{NeedsReset, Open, Serves};

pub(super) const CASES: &[Case] = &[
    Case::new("descriptor-that-is-its-own-next", ALL, NeedsReset, own_next),
    Case::new("loop-of-two", ALL, NeedsReset, loop_of_two),
    Case::new("loop-through-all", ALL, NeedsReset, loop_through_all),
    Case::new("next-behind-the-table", ALL, NeedsReset, |rig| {
        next(rig, 64)
    }),
    Case::new("next-65535", ALL, NeedsReset, |rig| next(rig, u16::MAX)),
    Case::new("head-behind-the-table", ALL, NeedsReset, |rig| {
        head(rig, 64)
    }),
    Case::new("head-65535", ALL, NeedsReset, |rig| head(rig, u16::MAX)),
    Case::new("index-jumps-ahead", ALL, NeedsReset, |rig| index(rig, 65)),
    Case::new("index-jumps-half-way", ALL, NeedsReset, |rig| {
        index(rig, 0x8000)
    }),
    Case::new("index-goes-back", ALL, NeedsReset, |rig| {
        index(rig, u16::MAX)
    }),
    Case::new("index-jumps-over-stale-entries", ALL, Open, stale_entries),
    Case::new(
        "indirect-in-indirect",
        ALL,
        NeedsReset,
        indirect_in_indirect,
    ),
    Case::new("indirect-with-next", ALL, NeedsReset, indirect_with_next),
    Case::new("indirect-empty", ALL, NeedsReset, |rig| {
        indirect_length(rig, 0)
    }),
    Case::new("indirect-of-17-bytes", ALL, NeedsReset, |rig| {
        indirect_length(rig, 17)
    }),
    Case::new("indirect-of-4-gib", ALL, NeedsReset, |rig| {
        indirect_length(rig, 0xffff_fff0)
    }),
    Case::new("indirect-outside-ram", ALL, NeedsReset, |rig| {
        indirect_at(rig, 1 << 45)
    }),
    Case::new("indirect-wraps", ALL, NeedsReset, |rig| {
        indirect_at(rig, u64::MAX - 15)
    }),
    Case::new("indirect-loop", ALL, NeedsReset, indirect_loop),
    Case::new(
        "indirect-next-behind-its-table",
        ALL,
        NeedsReset,
        indirect_next,
    ),
    Case::new(
        "indirect-of-1500-descriptors",
        ALL,
        NeedsReset,
        indirect_too_long,
    ),
    Case::new(
        "indirect-of-8-gib-of-data",
        ALL,
        NeedsReset,
        indirect_too_large,
    ),
    Case::new(
        "readable-after-writable",
        ALL,
        NeedsReset,
        readable_after_writable,
    ),
    Case::new("buffer-far-outside-ram", ALL, NeedsReset, |rig| {
        buffer(rig, 1 << 45, 64)
    }),
    Case::new("buffer-outside-every-address", ALL, NeedsReset, |rig| {
        buffer(rig, 1 << 63, 64)
    }),
    Case::new("buffer-over-its-own-bar", ALL, NeedsReset, |rig| {
        buffer(rig, rig.home, 64)
    }),
    Case::new("buffer-over-ecam", ALL, NeedsReset, |rig| {
        buffer(rig, 0xe000_0000, 64)
    }),
    Case::new("buffer-over-the-local-apic", ALL, NeedsReset, |rig| {
        buffer(rig, 0xfee0_0000, 64)
    }),
    Case::new("buffer-across-the-end-of-ram", ALL, NeedsReset, |rig| {
        buffer(rig, rig.machine.ram_end() - 8, 4096)
    }),
    Case::new("buffer-wraps", ALL, NeedsReset, |rig| {
        buffer(rig, u64::MAX - 15, 4096)
    }),
    Case::new("buffer-of-4-gib", ALL, NeedsReset, |rig| {
        let address = rig.allocate(64, 16)?;
        buffer(rig, address, u32::MAX)
    }),
    Case::new("writable-buffer-outside-ram", ALL, NeedsReset, |rig| {
        offer(rig, &[descriptor(1 << 45, 64, WRITE, 0)]);
        Ok(())
    }),
    Case::new(
        "no-bytes-at-all",
        &[Kind::Net, Kind::Console, Kind::Rng, Kind::Balloon],
        Serves,
        empty,
    ),
    Case::new("no-bytes-between-pieces", ALL, Serves, empty_pieces),
    Case::new("unknown-flags", ALL, Serves, unknown_flags),
    Case::new(
        "used-ring-over-the-available-ring",
        ALL,
        Open,
        used_over_available,
    ),
    Case::new("used-ring-over-the-descriptors", ALL, Open, used_over_table),
];

fn own_next(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    offer(rig, &[descriptor(buffer, 16, NEXT, 0)]);
    Ok(())
}

fn loop_of_two(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let ring = [
        descriptor(buffer, 8, NEXT, 1),
        descriptor(buffer, 8, NEXT, 0),
    ];
    offer(rig, &ring);
    Ok(())
}

fn loop_through_all(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let size = rig.main.size;
    let ring: Vec<_> = (1..=size)
        .map(|next| descriptor(buffer, 1, NEXT, next % size))
        .collect();
    offer(rig, &ring);
    Ok(())
}

fn next(rig: &mut Rig<'_>, next: u16) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    offer(rig, &[descriptor(buffer, 16, NEXT, next)]);
    Ok(())
}

fn head(rig: &mut Rig<'_>, head: u16) -> Attack {
    let ram = rig.ram();
    rig.main.offer(ram, head);
    rig.driver.kick(rig.main.queue);
    Ok(())
}

/// The available index goes on by `step`.
fn index(rig: &mut Rig<'_>, step: u16) -> Attack {
    let ram = rig.ram();
    let index = rig.main.next_available.wrapping_add(step);
    rig.main.set_index(ram, index);
    rig.driver.kick(rig.main.queue);
    Ok(())
}

/// A full ring of entries, all of them the same chain.
fn stale_entries(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let pieces = rig.request();
    let head = rig.main.chain(ram, &pieces);
    for entry in 0..rig.main.size {
        let at = rig.main.available + 4 + u64::from(entry) * 2;
        ram.write(at, &head.to_le_bytes());
    }
    index(rig, rig.main.size)
}

fn indirect(rig: &mut Rig<'_>, entries: &[Descriptor]) -> Attack {
    let (address, length) = table(rig, entries)?;
    offer(rig, &[descriptor(address, length, INDIRECT, 0)]);
    Ok(())
}

fn indirect_in_indirect(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let (inner, length) = table(rig, &[descriptor(buffer, 16, 0, 0)])?;
    indirect(rig, &[descriptor(inner, length, INDIRECT, 0)])
}

fn indirect_with_next(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let (inner, length) = table(rig, &[descriptor(buffer, 16, 0, 0)])?;
    let ring = [
        descriptor(inner, length, INDIRECT | NEXT, 1),
        descriptor(buffer, 16, 0, 0),
    ];
    offer(rig, &ring);
    Ok(())
}

fn indirect_length(rig: &mut Rig<'_>, length: u32) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let (inner, _) = table(rig, &[descriptor(buffer, 16, 0, 0); 2])?;
    offer(rig, &[descriptor(inner, length, INDIRECT, 0)]);
    Ok(())
}

fn indirect_at(rig: &mut Rig<'_>, address: u64) -> Attack {
    offer(rig, &[descriptor(address, 64, INDIRECT, 0)]);
    Ok(())
}

fn indirect_loop(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    indirect(
        rig,
        &[
            descriptor(buffer, 1, NEXT, 1),
            descriptor(buffer, 1, NEXT, 0),
        ],
    )
}

fn indirect_next(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    indirect(rig, &[descriptor(buffer, 16, NEXT, 1)])
}

fn indirect_too_long(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(16, 16)?;
    let entries: Vec<_> = (1..=1500)
        .map(|next| descriptor(buffer, 1, if next < 1500 { NEXT } else { 0 }, next))
        .collect();
    indirect(rig, &entries)
}

/// Each piece is RAM; together they are more than the 4 GiB of a chain. The device may read none of it before it has seen that.
fn indirect_too_large(rig: &mut Rig<'_>) -> Attack {
    const START: u64 = 1 << 20;
    let most = rig.machine.ram_end().saturating_sub(START).min(128 << 20);
    let length = u32::try_from(most).unwrap_or(u32::MAX);
    let pieces = u16::try_from((8_u64 << 30) / most.max(1)).unwrap_or(u16::MAX);
    let entries: Vec<_> = (1..=pieces)
        .map(|next| descriptor(START, length, if next < pieces { NEXT } else { 0 }, next))
        .collect();
    indirect(rig, &entries)
}

fn readable_after_writable(rig: &mut Rig<'_>) -> Attack {
    let buffer = rig.allocate(64, 16)?;
    let ring = [
        descriptor(buffer, 16, NEXT | WRITE, 1),
        descriptor(buffer + 16, 16, 0, 0),
    ];
    offer(rig, &ring);
    Ok(())
}

fn buffer(rig: &mut Rig<'_>, address: u64, length: u32) -> Attack {
    offer(rig, &[descriptor(address, length, 0, 0)]);
    Ok(())
}

fn empty(rig: &mut Rig<'_>) -> Attack {
    let address = rig.allocate(16, 16)?;
    let write = rig.kind == Kind::Rng;
    rig.exchange(&[(address, 0, write)])?;
    Ok(())
}

/// Pieces of no length count for nothing wherever they stand.
fn empty_pieces(rig: &mut Rig<'_>) -> Attack {
    let nowhere = rig.allocate(16, 16)?;
    let ram = rig.ram();
    let pieces: Vec<_> = rig
        .request()
        .into_iter()
        .flat_map(|piece| [(nowhere, 0, piece.2), piece, (nowhere, 0, piece.2)])
        .collect();
    if rig.kind == Kind::Console {
        // Its answer would go into a buffer that nobody has offered.
        rig.exchange(&pieces)?;
        return Ok(());
    }
    let head = rig.main.submit(ram, &pieces);
    rig.driver.kick(rig.main.queue);
    Ok(rig.answered(head)?)
}

/// Flags that have no meaning yet are ignored.
fn unknown_flags(rig: &mut Rig<'_>) -> Attack {
    let ram = rig.ram();
    let pieces = rig.request();
    let count = u16::try_from(pieces.len()).unwrap_or(0);
    let ring: Vec<_> = (1..=count)
        .zip(pieces)
        .map(|(next, (address, length, write))| {
            let more = if next < count { NEXT } else { 0 };
            let flags = 0xfff8 | more | if write { WRITE } else { 0 };
            descriptor(address, length, flags, next)
        })
        .collect();
    offer(rig, &ring);
    let used = rig
        .main
        .wait_used(ram, 0, std::time::Duration::from_secs(15));
    super::check(used.is_some(), || "the chain is not used".to_owned())
}

fn used_over_available(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.main.used = rig.main.available;
    rig.start();
    let _ = rig.submit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    Ok(())
}

fn used_over_table(rig: &mut Rig<'_>) -> Attack {
    rig.prepare()?;
    rig.main.used = rig.main.descriptors;
    rig.start();
    let _ = rig.submit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    Ok(())
}
