//! Random requests on blocks that know what they are: each carries its number, a generation and bytes made of both.

use std::collections::HashMap;
use std::time::Instant;

use super::{Dice, PATIENCE};
use crate::{Buffer, Disk, DiskQueue, IoError, Operation, Request};

pub(super) const BLOCK: usize = 4096;

/// The contents of a block; generation 0 is zeros.
pub(super) fn block(number: u64, generation: u64) -> Vec<u8> {
    if generation == 0 {
        return vec![0; BLOCK];
    }
    let mut dice = Dice(number << 32 | generation | 1 << 63);
    let mut bytes: Vec<u8> = (0..BLOCK / 8)
        .flat_map(|_| dice.next().to_le_bytes())
        .collect();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes
}

fn describe(bytes: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    format!("block {}, generation {}", word(0), word(8))
}

enum Doing {
    Write(u64),
    Read(Buffer, u64),
    Zero,
    Other,
}

/// A queue's own blocks: every `step`th from `first`.
pub(super) struct Load {
    first: u64,
    step: u64,
    generations: Vec<u64>,
    dice: Dice,
    doing: HashMap<u64, (u64, Doing)>,
    next: u64,
    pub errors: Vec<IoError>,
}

impl Load {
    pub(super) fn new(first: u64, step: u64, blocks: usize) -> Self {
        Self {
            first,
            step,
            generations: vec![0; blocks],
            dice: Dice(0x9e37_79b9_7f4a_7c15 ^ (first + 1)),
            doing: HashMap::new(),
            next: 1,
            errors: Vec::new(),
        }
    }

    fn number(&self, index: u64) -> u64 {
        self.first + index * self.step
    }

    /// A request on a block that no other is on.
    fn pick(&mut self) -> Request {
        let blocks = self.generations.len() as u64;
        let index = loop {
            let index = self.dice.below(blocks);
            if !self.doing.values().any(|(other, _)| *other == index) {
                break index;
            }
        };
        let tag = self.next;
        self.next += 1;
        let number = self.number(index);
        let offset = number * BLOCK as u64;
        let length = BLOCK as u64;
        let known = self.generations[usize::try_from(index).expect("small")];
        let (operation, doing) = match self.dice.below(20) {
            0 => (Operation::Flush, Doing::Other),
            1 => {
                let may_unmap = self.dice.below(2) == 0;
                let zero = Operation::WriteZeroes {
                    offset,
                    length,
                    may_unmap,
                };
                (zero, Doing::Zero)
            }
            2..11 => {
                let buffer = Buffer::zeroed(BLOCK);
                let doing = Doing::Read(buffer.part(length), known);
                (Operation::Read { offset, buffer }, doing)
            }
            _ => {
                let buffer = Buffer::from(block(number, tag));
                (Operation::Write { offset, buffer }, Doing::Write(tag))
            }
        };
        self.doing.insert(tag, (index, doing));
        Request { tag, operation }
    }

    fn check(&mut self, tag: u64, result: Result<(), IoError>) {
        let (index, doing) = self
            .doing
            .remove(&tag)
            .expect("an answer to what was asked");
        if let Err(error) = result {
            self.errors.push(error);
            return;
        }
        let number = self.number(index);
        let generation = &mut self.generations[usize::try_from(index).expect("small")];
        match doing {
            Doing::Write(new) => *generation = new,
            Doing::Zero => *generation = 0,
            Doing::Read(buffer, known) => expect(&buffer, number, known),
            Doing::Other => {}
        }
    }

    /// Keeps `depth` requests in flight until `enough`, then waits for them and flushes.
    pub(super) fn run(
        &mut self,
        queue: &mut dyn DiskQueue,
        depth: usize,
        mut enough: impl FnMut(u64) -> bool,
    ) {
        let end = Instant::now() + PATIENCE * 2;
        let mut done = Vec::new();
        while !enough(self.next) {
            while queue.in_flight() < depth {
                let request = self.pick();
                queue.submit(request);
            }
            queue.kick();
            queue.reap(&mut done);
            let idle = done.is_empty();
            for completion in done.drain(..) {
                self.check(completion.tag, completion.result);
            }
            if idle {
                assert!(Instant::now() < end, "requests are not answered");
                queue
                    .await_completion(Instant::now() + std::time::Duration::from_millis(200))
                    .expect("it waits");
            }
        }
        queue.drain(PATIENCE, &mut done).expect("all is answered");
        for completion in done {
            self.check(completion.tag, completion.result);
        }
        assert_eq!(super::one(queue, Operation::Flush), Ok(()));
    }

    /// Reads all blocks back.
    pub(super) fn verify(&self, disk: &dyn Disk) {
        let mut queue = disk.open_queue(1).expect("a queue");
        for (index, generation) in self.generations.iter().enumerate() {
            let number = self.number(index as u64);
            let buffer = Buffer::zeroed(BLOCK);
            let seen = buffer.part(BLOCK as u64);
            let offset = number * BLOCK as u64;
            assert_eq!(
                super::one(queue.as_mut(), Operation::Read { offset, buffer }),
                Ok(())
            );
            expect(&seen, number, *generation);
        }
    }
}

fn expect(buffer: &Buffer, number: u64, generation: u64) {
    let mut bytes = vec![0; BLOCK];
    buffer.copy_to(&mut bytes);
    assert!(
        bytes == block(number, generation),
        "block {number} is not of generation {generation}: it reads as {}",
        describe(&bytes)
    );
}

/// Loads a disk by four queues with a thread each, and reads everything back by `again`.
pub(super) fn four_queues(
    disk: &dyn Disk,
    again: &dyn Disk,
    enough: impl Fn(u64) -> bool + Sync,
) -> Vec<IoError> {
    let blocks = usize::try_from(disk.size()).expect("small") / BLOCK / 4;
    let loads: Vec<Load> = std::thread::scope(|scope| {
        let enough = &enough;
        let threads: Vec<_> = (0..4)
            .map(|first| {
                scope.spawn(move || {
                    let mut queue = disk.open_queue(16).expect("a queue");
                    let mut load = Load::new(first, 4, blocks);
                    load.run(queue.as_mut(), 16, enough);
                    load
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a load ends"))
            .collect()
    });
    for load in &loads {
        load.verify(again);
    }
    loads.into_iter().flat_map(|load| load.errors).collect()
}
