//! Self-checking blocks: what tests write to disks, so that a block which was lost, moved, mixed up or damaged on its
//! way is not only noticed but *named*.
//!
//! A block is a row of sectors of [`SECTOR`] bytes, each of which stands for itself. All fields are little-endian:
//!
//! | bytes   | field                                                              |
//! |---------|--------------------------------------------------------------------|
//! | 0..8    | magic, `PDKBLK01`                                                  |
//! | 8..16   | the sector's own offset on the device, in bytes                    |
//! | 16..24  | seed: which test wrote it                                          |
//! | 24..32  | generation: which of that test's rounds                            |
//! | 32..40  | checksum over the other 472 + 32 bytes                             |
//! | 40..512 | pseudo-random, drawn from offset, seed and generation              |
//!
//! So a stale sector still says which round it is from, a misplaced one where it belongs, and a block of which only some
//! sectors were written shows as torn. The module is pure: guest and host judge by the same code.

use crate::protocol::Order;
use crate::stream::{SplitMix, mix};
use serde::{Deserialize, Serialize};

/// The unit that carries its own header, in bytes.
pub const SECTOR: usize = 512;

/// Largest block, in bytes.
pub const MAX_BLOCK: u32 = 16 << 20;

const MAGIC: u64 = u64::from_le_bytes(*b"PDKBLK01");
const WORDS: usize = SECTOR / 8;
const HEADER_WORDS: usize = 5;
const CHECKSUM_WORD: usize = 4;

/// Who wrote a block, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which test.
    pub seed: u64,
    /// Which of its rounds.
    pub generation: u64,
}

/// What a block holds that does not hold what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// Nothing but zeroes: never written, lost, or discarded.
    Zeroes,
    /// This block of another round: a write that was lost (lower), or came too early (higher).
    Generation(u64),
    /// Another block's contents: where they belong, in bytes.
    Misplaced(u64),
    /// Another test's contents: its seed.
    Foreign(u64),
    /// Sectors that do not agree: how many are right, and the number of the first that is not.
    Torn {
        /// Sectors that hold what they should.
        right: u32,
        /// The first that does not.
        first_wrong: u32,
    },
    /// No sector of this format, or one whose checksum is wrong: the first byte that is not as expected.
    Corrupt {
        /// From the start of the block.
        byte: u32,
    },
}

/// A block that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Where, in bytes from the start of the device.
    pub offset: u64,
    /// What was written there last.
    pub expected: Stamp,
    /// What was read.
    pub found: Found,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stamp { seed, generation } = self.expected;
        write!(
            f,
            "block at {:#x}: expected generation {generation} of seed {seed}, found ",
            self.offset
        )?;
        match self.found {
            Found::Zeroes => write!(f, "zeroes"),
            Found::Generation(found) => write!(f, "generation {found}"),
            Found::Misplaced(belongs) => write!(f, "the block of {belongs:#x}"),
            Found::Foreign(found) => write!(f, "seed {found}"),
            Found::Torn { right, first_wrong } => write!(
                f,
                "{right} right sectors, not among them sector {first_wrong}"
            ),
            Found::Corrupt { byte } => write!(f, "a wrong byte at {byte}"),
        }
    }
}

/// Fills `block`, which lies at byte `offset` of the device. Bytes beyond the last whole sector are left alone.
pub fn fill(block: &mut [u8], offset: u64, stamp: Stamp) {
    for (sector, at) in block.chunks_exact_mut(SECTOR).zip(offsets(offset)) {
        for (bytes, word) in sector.chunks_exact_mut(8).zip(words(at, stamp)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Checks `block`, read from byte `offset` of the device.
///
/// # Errors
/// What it holds instead, if anything but what [`fill`] writes.
pub fn check(block: &[u8], offset: u64, stamp: Stamp) -> Result<(), Mismatch> {
    let (mut right, mut first_wrong) = (0, None);
    for ((sector, at), number) in block.chunks_exact(SECTOR).zip(offsets(offset)).zip(0..) {
        if is_right(sector, at, stamp) {
            right += 1;
        } else if first_wrong.is_none() {
            first_wrong = Some((number, sector, at));
        }
    }
    let Some((number, sector, at)) = first_wrong else {
        return Ok(());
    };
    let found = if block.iter().all(|&byte| byte == 0) {
        Found::Zeroes
    } else {
        match (classify(sector, at, stamp), right) {
            (Found::Corrupt { byte }, _) => Found::Corrupt {
                byte: number * 512 + byte,
            },
            (_, 1..) => Found::Torn {
                right,
                first_wrong: number,
            },
            (found, 0) if all_alike(block, offset, stamp, found) => found,
            _ => Found::Torn {
                right,
                first_wrong: number,
            },
        }
    };
    Err(Mismatch {
        offset,
        expected: stamp,
        found,
    })
}

/// Whether every sector is off in the same way, so that the block as a whole is stale, misplaced or foreign.
fn all_alike(block: &[u8], offset: u64, stamp: Stamp, first: Found) -> bool {
    block
        .chunks_exact(SECTOR)
        .zip(offsets(offset))
        .all(|(sector, at)| match (first, classify(sector, at, stamp)) {
            (Found::Misplaced(belongs), Found::Misplaced(other)) => {
                other.wrapping_sub(belongs) == at.wrapping_sub(offset)
            }
            (one, other) => one == other,
        })
}

/// What a sector that is not right holds.
fn classify(sector: &[u8], at: u64, stamp: Stamp) -> Found {
    if sector.iter().all(|&byte| byte == 0) {
        return Found::Zeroes;
    }
    let word = |index: usize| {
        sector
            .get(index * 8..index * 8 + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    let (offset, found) = (
        word(1),
        Stamp {
            seed: word(2),
            generation: word(3),
        },
    );
    if !is_right(sector, offset, found) {
        let wrong = words(at, stamp)
            .flat_map(u64::to_le_bytes)
            .zip(sector)
            .position(|(expected, &byte)| byte != expected)
            .unwrap_or(0);
        return Found::Corrupt {
            byte: u32::try_from(wrong).unwrap_or(u32::MAX),
        };
    }
    if found.seed != stamp.seed {
        Found::Foreign(found.seed)
    } else if offset != at {
        Found::Misplaced(offset)
    } else {
        Found::Generation(found.generation)
    }
}

fn is_right(sector: &[u8], at: u64, stamp: Stamp) -> bool {
    words(at, stamp)
        .zip(sector.chunks_exact(8))
        .all(|(word, bytes)| bytes == word.to_le_bytes())
}

fn offsets(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |number: u64| offset.wrapping_add(number.wrapping_mul(SECTOR as u64)))
}

/// The words of the sector at `at`.
fn words(at: u64, stamp: Stamp) -> impl Iterator<Item = u64> {
    let key = mix(at ^ mix(stamp.seed ^ mix(stamp.generation)));
    let header = [MAGIC, at, stamp.seed, stamp.generation];
    let payload = move || {
        let mut random = SplitMix::new(key);
        (HEADER_WORDS..WORDS).map(move |_| random.next_u64())
    };
    let sum = header
        .into_iter()
        .chain(payload())
        .fold(CHECKSUM_WORD as u64, |sum, word| mix(sum ^ word));
    header.into_iter().chain([sum]).chain(payload())
}

/// The numbers of `count` blocks in the order in which a test with this seed visits them.
pub fn visits(order: Order, count: u64, seed: u64) -> Box<dyn Iterator<Item = u64>> {
    match order {
        Order::Sequential => Box::new(0..count),
        Order::Random => Box::new(Shuffle::new(count, seed)),
    }
}

/// Each number below `count` once, in an order drawn from a seed, without a table: a linear congruential generator
/// of full period over the next power of two, with the numbers that are too large left out.
#[derive(Debug, Clone)]
pub struct Shuffle {
    count: u64,
    mask: u64,
    multiplier: u64,
    increment: u64,
    state: u64,
    left: u64,
}

impl Shuffle {
    /// An order of the numbers below `count`.
    #[must_use]
    pub fn new(count: u64, seed: u64) -> Self {
        let mask = count
            .checked_next_power_of_two()
            .map_or(u64::MAX, |size| size - 1);
        let mut random = SplitMix::new(seed);
        // Full period by Hull and Dobell: an odd increment, and a multiplier that is 1 modulo 4.
        let multiplier = (random.next_u64() & !7) | 5;
        Self {
            count,
            mask,
            multiplier,
            increment: random.next_u64() | 1,
            state: random.next_u64() & mask,
            left: count,
        }
    }
}

impl Iterator for Shuffle {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        loop {
            let state = self.state;
            self.state = state
                .wrapping_mul(self.multiplier)
                .wrapping_add(self.increment)
                & self.mask;
            // The low bits of such a generator run in short circles: swap them with the high ones.
            let bits = 64 - self.mask.leading_zeros();
            let number = if bits == 0 {
                0
            } else {
                state.reverse_bits() >> (64 - bits)
            };
            if number < self.count {
                return Some(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAMP: Stamp = Stamp {
        seed: 7,
        generation: 3,
    };
    const AT: u64 = 0x10_0000;

    fn block(offset: u64, stamp: Stamp) -> Vec<u8> {
        let mut block = vec![0xaa; 4096];
        fill(&mut block, offset, stamp);
        block
    }

    fn found(block: &[u8]) -> Found {
        check(block, AT, STAMP).unwrap_err().found
    }

    #[test]
    fn what_was_filled_is_right() {
        check(&block(AT, STAMP), AT, STAMP).unwrap();
    }

    #[test]
    fn lost_writes_are_named() {
        assert_eq!(found(&[0; 4096]), Found::Zeroes);
        assert_eq!(
            found(&block(
                AT,
                Stamp {
                    generation: 2,
                    ..STAMP
                }
            )),
            Found::Generation(2)
        );
        assert_eq!(
            found(&block(
                AT,
                Stamp {
                    generation: 4,
                    ..STAMP
                }
            )),
            Found::Generation(4)
        );
    }

    #[test]
    fn strangers_are_named() {
        assert_eq!(found(&block(AT + 8192, STAMP)), Found::Misplaced(AT + 8192));
        assert_eq!(
            found(&block(AT, Stamp { seed: 8, ..STAMP })),
            Found::Foreign(8)
        );
        assert_eq!(
            found(&block(
                AT + 512,
                Stamp {
                    seed: 8,
                    generation: 1
                }
            )),
            Found::Foreign(8)
        );
    }

    #[test]
    fn torn_blocks_are_named() {
        let mut half = block(AT, STAMP);
        half[2048..].copy_from_slice(
            &block(
                AT,
                Stamp {
                    generation: 2,
                    ..STAMP
                },
            )[2048..],
        );
        assert_eq!(
            found(&half),
            Found::Torn {
                right: 4,
                first_wrong: 4
            }
        );
        half[..512].fill(0);
        assert_eq!(
            found(&half),
            Found::Torn {
                right: 3,
                first_wrong: 0
            }
        );
        // None is right, and yet they are of different writes.
        let mut mixed = block(
            AT,
            Stamp {
                generation: 2,
                ..STAMP
            },
        );
        mixed[512..1024].copy_from_slice(
            &block(
                AT,
                Stamp {
                    generation: 1,
                    ..STAMP
                },
            )[512..1024],
        );
        assert_eq!(
            found(&mixed),
            Found::Torn {
                right: 0,
                first_wrong: 0
            }
        );
    }

    #[test]
    fn mismatches_read_well() {
        let mismatch = check(&block(0, STAMP), AT, STAMP).unwrap_err();
        let text = "block at 0x100000: expected generation 3 of seed 7, found the block of 0x0";
        assert_eq!(mismatch.to_string(), text);
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_found(byte in 0usize..4096, bit in 0u8..8) {
            let mut block = block(AT, STAMP);
            block[byte] ^= 1 << bit;
            let corrupt = matches!(found(&block), Found::Corrupt { .. });
            prop_assert!(corrupt);
        }

        #[test]
        fn corrupt_blocks_say_where(byte in 40usize..512, sector in 0usize..8) {
            let mut block = block(AT, STAMP);
            block[sector * 512 + byte] ^= 1;
            prop_assert_eq!(found(&block), Found::Corrupt { byte: u32::try_from(sector * 512 + byte).unwrap() });
        }

        #[test]
        fn checking_never_panics(bytes: Vec<u8>, offset: u64, seed: u64, generation: u64) {
            let _ = check(&bytes, offset, Stamp { seed, generation });
        }

        #[test]
        fn each_block_is_visited_once(count in 0u64..5000, seed: u64) {
            let mut visited: Vec<u64> = visits(Order::Random, count, seed).collect();
            visited.sort_unstable();
            prop_assert!(visited.into_iter().eq(0..count));
        }
    }

    #[test]
    fn random_order_is_not_an_order() {
        let order: Vec<u64> = visits(Order::Random, 4096, 1).collect();
        let steps = order
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) < 64)
            .count();
        assert!(steps < 400, "{steps} of 4095 steps are short");
        assert_ne!(order, visits(Order::Random, 4096, 2).collect::<Vec<_>>());
    }
}
