//! Random operations against a model in memory.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Op {
    Read {
        start: u64,
        blocks: u64,
        gap: usize,
        cut: usize,
    },
    Write {
        start: u64,
        blocks: u64,
        gap: usize,
        cut: usize,
        byte: u8,
    },
    Zero {
        start: u64,
        blocks: u64,
        unmap: bool,
    },
    Discard {
        start: u64,
        blocks: u64,
    },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let span = (0..BLOCKS_PER_REGION, 1..=BLOCKS_PER_REGION)
        .prop_map(|(start, blocks)| (start, blocks.min(BLOCKS_PER_REGION - start)));
    let shape = (
        prop_oneof![Just(0_usize), Just(1), Just(512), Just(4096)],
        1..9_usize,
    );
    prop_oneof![
        3 => (span.clone(), shape.clone()).prop_map(|((start, blocks), (gap, cut))| Op::Read { start, blocks, gap, cut }),
        4 => (span.clone(), shape, any::<u8>()).prop_map(|((start, blocks), (gap, cut), byte)| Op::Write { start, blocks, gap, cut, byte }),
        1 => (span.clone(), any::<bool>()).prop_map(|((start, blocks), unmap)| Op::Zero { start, blocks, unmap }),
        1 => span.prop_map(|(start, blocks)| Op::Discard { start, blocks }),
        1 => Just(Op::Flush),
    ]
}

struct Model {
    bytes: Vec<u8>,
    /// Blocks that were discarded and not written since: they read as anything.
    unknown: Vec<bool>,
    reads: BTreeMap<u64, (usize, Buffer)>,
}

impl Model {
    /// The operation on one region, applied to the model.
    fn apply(&mut self, tag: u64, base: u64, op: &Op) -> Operation {
        let at = |start: u64| (base + start) * 512;
        let range =
            |start: u64, blocks: u64| at(start) as usize..(at(start) + blocks * 512) as usize;
        let mut mark = |start: u64, blocks: u64, unknown: bool| {
            self.unknown[(base + start) as usize..(base + start + blocks) as usize].fill(unknown);
        };
        match *op {
            Op::Read {
                start,
                blocks,
                gap,
                cut: parts,
            } => {
                let buffer = scattered(&cut(blocks as usize * 512, parts), gap);
                self.reads.insert(tag, (at(start) as usize, alias(&buffer)));
                Operation::Read {
                    offset: at(start),
                    buffer,
                }
            }
            Op::Write {
                start,
                blocks,
                gap,
                cut: parts,
                byte,
            } => {
                let data: Vec<u8> = (0..blocks as usize * 512)
                    .map(|i| byte.wrapping_add((i % 251) as u8))
                    .collect();
                let buffer = scattered(&cut(data.len(), parts), gap);
                buffer.copy_from(&data);
                self.bytes[range(start, blocks)].copy_from_slice(&data);
                mark(start, blocks, false);
                Operation::Write {
                    offset: at(start),
                    buffer,
                }
            }
            Op::Zero {
                start,
                blocks,
                unmap,
            } => {
                self.bytes[range(start, blocks)].fill(0);
                mark(start, blocks, false);
                Operation::WriteZeroes {
                    offset: at(start),
                    length: blocks * 512,
                    may_unmap: unmap,
                }
            }
            Op::Discard { start, blocks } => {
                mark(start, blocks, true);
                Operation::Discard {
                    offset: at(start),
                    length: blocks * 512,
                }
            }
            Op::Flush => Operation::Flush,
        }
    }

    fn compare(&self, offset: usize, bytes: &[u8]) {
        for (index, block) in bytes.chunks(512).enumerate() {
            let at = offset + index * 512;
            if !self.unknown[at / 512] {
                assert!(
                    self.bytes[at..at + 512] == *block,
                    "block at byte {at} differs"
                );
            }
        }
    }
}

/// Each batch works on all regions at once, each operation on its own, so that they are independent.
fn check(disk: &RawDisk, waits: bool, path: &Path, batches: &[Vec<Op>]) {
    let mut model = Model {
        bytes: vec![0; SIZE as usize],
        unknown: vec![false; (SIZE / 512) as usize],
        reads: BTreeMap::new(),
    };
    let mut queue = open_queue(disk, 8, waits);
    for batch in batches {
        for (tag, op) in (0..).zip(batch) {
            let operation = model.apply(tag, tag * BLOCKS_PER_REGION, op);
            queue.submit(Request { tag, operation });
        }
        let mut done = Vec::new();
        queue.drain(DEADLINE, &mut done).unwrap();
        let mut tags: Vec<_> = done.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        assert!(
            tags.into_iter().eq(0..batch.len() as u64),
            "each exactly once"
        );
        for Completion { tag, result } in done {
            assert_eq!(result, Ok(()), "{:?}", batch[tag as usize]);
        }
        for (_, (offset, buffer)) in std::mem::take(&mut model.reads) {
            let mut bytes = vec![0; buffer.len() as usize];
            buffer.copy_to(&mut bytes);
            model.compare(offset, &bytes);
        }
    }
    let mut bytes = vec![0; SIZE as usize];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    model.compare(0, &bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_operations_agree_with_the_model(
        batches in prop::collection::vec(prop::collection::vec(op(), 1..=REGIONS as usize), 1..6)
    ) {
        for directory in directories() {
            for (engine, waits) in USES {
                for direct in [Direct::Auto, Direct::Off] {
                    let path = image(directory.path(), SIZE);
                    let disk = open_image(&path, engine, direct);
                    check(&disk, waits, &path, &batches);
                }
            }
        }
    }

    #[test]
    fn whatever_does_not_fit_is_out_of_range(offset: u64, length in 0..5000_usize, kind in 0..4, near: bool) {
        let offset = if near { SIZE.wrapping_add(offset % 10000).wrapping_sub(5000) } else { offset };
        let fits = offset.checked_add(length as u64).is_some_and(|end| end <= SIZE)
            && offset % 512 == 0 && length % 512 == 0;
        let [_, directory] = directories();
        for engine in ENGINES {
            let disk = open_image(&image(directory.path(), SIZE), engine, Direct::Off);
            let mut queue = disk.open_queue(1).unwrap();
            let (buffer, bytes) = (Buffer::zeroed(length), length as u64);
            let result = run(&mut *queue, match kind {
                0 => Operation::Read { offset, buffer },
                1 => Operation::Write { offset, buffer },
                2 => Operation::Discard { offset, length: bytes },
                _ => Operation::WriteZeroes { offset, length: bytes, may_unmap: true },
            });
            prop_assert_eq!(result, if fits { Ok(()) } else { Err(IoError::OutOfRange) });
        }
    }
}
