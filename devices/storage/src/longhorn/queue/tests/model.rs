//! Random requests, faults and control operations against a model: what may be read where, and that replicas that are read end up the same.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use proptest::prelude::*;

use super::*;

const BLOCKS: usize = 12;
const UNIT: usize = 512;
const SIZE: usize = BLOCKS * 4096;

/// Bytes of a piece at most: most requests have several.
const PIECE: u32 = 4096;

#[derive(Debug, Clone)]
enum Step {
    Write {
        queue: usize,
        unit: usize,
        units: usize,
    },
    Zero {
        queue: usize,
        unit: usize,
        units: usize,
    },
    Read {
        queue: usize,
        unit: usize,
        units: usize,
    },
    Flush {
        queue: usize,
    },
    Answer {
        replica: usize,
        which: usize,
        manner: Manner,
    },
    Reap {
        queue: usize,
    },
    Freeze,
    /// Adds a replica that is to be rebuilt, if the gate is shut and there is none.
    Add,
    /// The rebuild is complete, if the gate is shut.
    Promote,
    Thaw,
    /// Those of the replicas that have everything and are in this set are opened again, if all have failed.
    Reopen(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..2_usize;
    let place = (0..BLOCKS * 8, 1..20_usize);
    let manner = prop_oneof![
        60 => Just(Manner::Well),
        1 => Just(Manner::Refuse),
        1 => Just(Manner::Full),
        1 => Just(Manner::DoneAndGone),
        1 => Just(Manner::Gone),
        1 => Just(Manner::OtherSequence),
        1 => Just(Manner::Garbage),
        1 => Just(Manner::Short),
    ];
    prop_oneof![
        6 => (queue.clone(), place.clone()).prop_map(|(queue, (unit, units))| Step::Write { queue, unit, units }),
        1 => (queue.clone(), place.clone()).prop_map(|(queue, (unit, units))| Step::Zero { queue, unit, units }),
        4 => (queue.clone(), place).prop_map(|(queue, (unit, units))| Step::Read { queue, unit, units }),
        1 => queue.clone().prop_map(|queue| Step::Flush { queue }),
        20 => (0..4_usize, any::<usize>(), manner).prop_map(|(replica, which, manner)| Step::Answer { replica, which, manner }),
        10 => queue.prop_map(|queue| Step::Reap { queue }),
        1 => Just(Step::Freeze),
        1 => Just(Step::Add),
        1 => Just(Step::Promote),
        2 => Just(Step::Thaw),
        3 => (1..8_usize).prop_map(Step::Reopen),
    ]
}

/// A write, as the guest sees it. Times are counted in steps.
#[derive(Debug)]
struct Written {
    queue: usize,
    units: Range<usize>,
    /// What each word of it is.
    value: u32,
    submitted: usize,
    acknowledged: Option<usize>,
}

/// A read that has not been answered.
#[derive(Debug)]
struct Reading {
    units: Range<usize>,
    submitted: usize,
    buffer: Buffer,
}

/// What the guest has done and seen.
#[derive(Debug, Default)]
struct Guest {
    writes: Vec<Written>,
    /// Of what has not been answered: which write, what was read, the writes of the queue that were not answered before.
    writing: HashMap<u64, usize>,
    reading: HashMap<u64, Reading>,
    flushing: HashMap<u64, HashSet<u64>>,
    /// Of what has not been answered, too: the replicas that had never answered but well, by id, and could be read.
    sound: HashMap<u64, Vec<u32>>,
    tags: u64,
    /// Where writes failed: replicas may differ there.
    undefined: Vec<Range<usize>>,
}

impl Guest {
    /// What a step asks for, while these replicas are sound.
    fn submit(&mut self, step: &Step, now: usize, sound: Vec<u32>) -> Option<(usize, Request)> {
        let at = |unit: usize, units: usize| unit..(unit + units).min(SIZE / UNIT);
        self.tags += 1;
        let tag = self.tags;
        let (queue, operation) = match *step {
            Step::Write { queue, unit, units } | Step::Zero { queue, unit, units } => {
                let units = at(unit, units);
                let zeros = matches!(step, Step::Zero { .. });
                let value = if zeros {
                    0
                } else {
                    u32::try_from(now).expect("few")
                };
                let offset = (units.start * UNIT) as u64;
                let length = units.len() * UNIT;
                self.writing.insert(tag, self.writes.len());
                self.writes.push(Written {
                    queue,
                    units,
                    value,
                    submitted: now,
                    acknowledged: None,
                });
                let operation = if zeros {
                    Operation::WriteZeroes {
                        offset,
                        length: length as u64,
                        may_unmap: false,
                    }
                } else {
                    let buffer = Buffer::from(value.to_le_bytes().repeat(length / 4));
                    Operation::Write { offset, buffer }
                };
                (queue, operation)
            }
            Step::Read { queue, unit, units } => {
                let units = at(unit, units);
                let (operation, buffer) = read((units.start * UNIT) as u64, units.len() * UNIT);
                let reading = Reading {
                    units,
                    submitted: now,
                    buffer,
                };
                self.reading.insert(tag, reading);
                (queue, operation)
            }
            Step::Flush { queue } => {
                let mut before = self.writing.clone();
                before.retain(|_, write| self.writes[*write].queue == queue);
                self.flushing.insert(tag, before.into_keys().collect());
                (queue, Operation::Flush)
            }
            _ => return None,
        };
        self.sound.insert(tag, sound);
        Some((queue, Request { tag, operation }))
    }

    /// Whether a unit that was read between two times may be as a write left it.
    fn may_be(&self, unit: usize, written: &Written, from: usize, to: usize) -> bool {
        if !written.units.contains(&unit) || written.submitted > to {
            return false;
        }
        // Not if something that began after it had ended, ended before we began.
        let Some(end) = written.acknowledged else {
            return true;
        };
        !self.writes.iter().any(|other| {
            other.units.contains(&unit)
                && other.submitted > end
                && other.acknowledged.is_some_and(|end| end < from)
        })
    }

    /// Takes note of an answer, while these replicas are sound.
    fn completed(
        &mut self,
        completion: &Completion,
        now: usize,
        sound: &[u32],
    ) -> Result<(), TestCaseError> {
        let before = self.sound.remove(&completion.tag).unwrap_or_default();
        if let Err(error) = completion.result {
            // One that was there all the time would have done it.
            let could = before.iter().any(|id| sound.contains(id));
            prop_assert!(
                !could,
                "{completion:?}, and {before:?} of which {sound:?} are sound"
            );
            let is_known = matches!(error, IoError::Os(libc::EIO | libc::ENOSPC));
            prop_assert!(is_known, "{completion:?}");
        }
        if let Some(write) = self.writing.remove(&completion.tag) {
            match completion.result {
                Ok(()) => self.writes[write].acknowledged = Some(now),
                Err(_) => self.undefined.push(self.writes[write].units.clone()),
            }
        } else if let Some(reading) = self.reading.remove(&completion.tag) {
            if completion.result.is_ok() {
                let bytes = contents(&reading.buffer);
                self.check(&bytes, reading.units, reading.submitted, now)?;
            }
        } else {
            let Some(before) = self.flushing.remove(&completion.tag) else {
                let wrong = format!("{completion:?} was never asked for, or comes twice");
                return Err(TestCaseError::fail(wrong));
            };
            let open: Vec<_> = before
                .iter()
                .filter(|tag| self.writing.contains_key(tag))
                .collect();
            prop_assert!(
                open.is_empty(),
                "{completion:?} comes before writes {open:?}"
            );
            prop_assert!(completion.result.is_ok(), "{completion:?}");
        }
        Ok(())
    }

    /// Whether bytes may be what is in some units between two times.
    fn check(
        &self,
        bytes: &[u8],
        units: Range<usize>,
        from: usize,
        to: usize,
    ) -> Result<(), TestCaseError> {
        for (unit, bytes) in units.zip(bytes.chunks(UNIT)) {
            let (words, _) = bytes.as_chunks::<4>();
            let value = u32::from_le_bytes(words[0]);
            prop_assert!(
                words.iter().all(|word| *word == words[0]),
                "unit {unit} is torn"
            );
            let mut candidates = self.writes.iter().filter(|written| written.value == value);
            let well = candidates.any(|written| self.may_be(unit, written, from, to));
            prop_assert!(well, "unit {unit} has {value} between {from} and {to}");
        }
        Ok(())
    }
}

/// Everything there is.
struct World {
    bench: Bench,
    guest: Guest,
    frozen: Option<Frozen>,
    freezing: Option<Pin<Box<dyn Future<Output = Frozen>>>>,
    now: usize,
}

impl World {
    fn new() -> Self {
        let mut guest = Guest::default();
        guest.writes.push(Written {
            queue: 0,
            units: 0..SIZE / UNIT,
            value: 0,
            submitted: 0,
            acknowledged: Some(0),
        });
        let mut world = Self {
            bench: Bench::new(3, 0, SIZE),
            guest,
            frozen: None,
            freezing: None,
            now: 0,
        };
        world.add_queues(2);
        world
    }

    fn add_queues(&mut self, count: usize) {
        for _ in 0..count {
            self.bench.add_queue();
        }
        for queue in &mut self.bench.queues {
            queue.most = PIECE;
        }
    }

    fn reap(&mut self, queue: usize) -> Result<(), TestCaseError> {
        let mut done = Vec::new();
        self.bench.queues[queue].reap(&mut done);
        let sound = self.sound();
        for completion in done {
            self.guest.completed(&completion, self.now, &sound)?;
        }
        Ok(())
    }

    /// The replicas that have never answered but well, and that may be read: there was no reason to leave them.
    fn sound(&self) -> Vec<u32> {
        let sound = |replica: &&Replica| !replica.spoiled && replica.base.is_none();
        let replicas = self.bench.replicas.iter().filter(sound);
        replicas.map(|replica| replica.member.id).collect()
    }

    /// Whether those are still there.
    fn check_sound(&self) -> Result<(), TestCaseError> {
        let sound = self.sound();
        for member in self.bench.replicas.iter().map(|replica| &replica.member) {
            let left = member.mode() == Mode::Failed;
            let wrong = left && sound.contains(&member.id);
            prop_assert!(!wrong, "it has always answered well: {member:?}");
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.now += 1;
        self.do_step(step)?;
        self.check_sound()?;
        if self.frozen.is_some() {
            for replica in &mut self.bench.replicas {
                replica.receive();
                let failed = replica.member.mode() == Mode::Failed;
                prop_assert!(failed || replica.pending.is_empty(), "it is sent something");
            }
        }
        Ok(())
    }

    fn do_step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let sound = self.sound();
        if let Some((queue, request)) = self.guest.submit(step, self.now, sound) {
            self.bench.queues[queue].submit(request);
            self.bench.queues[queue].kick();
            return Ok(());
        }
        match *step {
            Step::Answer {
                replica,
                which,
                manner,
            } => {
                let count = self.bench.replicas.len();
                self.bench.replicas[replica % count].answer(which, manner);
            }
            Step::Reap { queue } => self.reap(queue)?,
            Step::Freeze => self.freeze(),
            Step::Add => self.add(),
            Step::Promote => self.promote()?,
            Step::Thaw => {
                self.frozen = None;
                self.freezing = None;
            }
            Step::Reopen(set) => self.reopen(set)?,
            _ => {}
        }
        Ok(())
    }

    fn freeze(&mut self) {
        if self.frozen.is_some() {
            return;
        }
        let shared = Arc::clone(&self.bench.shared);
        let freezing = self
            .freezing
            .get_or_insert_with(|| Box::pin(async move { shared.freeze().await }));
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(frozen) = freezing.as_mut().poll(&mut context) {
            self.freezing = None;
            self.frozen = Some(frozen);
        }
    }

    fn add(&mut self) {
        let rebuilding = self.bench.modes().contains(&Mode::WriteOnly);
        let source = self
            .bench
            .replicas
            .iter()
            .find(|r| r.member.mode() == Mode::ReadWrite);
        let (Some(frozen), false, Some(source)) = (&self.frozen, rebuilding, source) else {
            return;
        };
        let base = source.bytes.clone();
        let new = self.bench.add_replica(frozen);
        self.bench.replicas[new].bytes.fill(0xee);
        self.bench.replicas[new].base = Some((base, BTreeSet::new()));
    }

    fn promote(&mut self) -> Result<(), TestCaseError> {
        let rebuilt = |replica: &&mut Replica| replica.member.mode() == Mode::WriteOnly;
        let replica = self.bench.replicas.iter_mut().find(rebuilt);
        let (Some(_), Some(replica)) = (&self.frozen, replica) else {
            return Ok(());
        };
        let Some((base, written)) = replica.base.take() else {
            return Ok(());
        };
        for block in (0..BLOCKS).filter(|block| !written.contains(block)) {
            let bytes = block * 4096..(block + 1) * 4096;
            replica.bytes[bytes.clone()].copy_from_slice(&base[bytes]);
        }
        prop_assert!(replica.member.promote());
        Ok(())
    }

    /// Opens replicas again after all have failed, and has queues that have connections to them take the place of those that have not.
    fn reopen(&mut self, set: usize) -> Result<(), TestCaseError> {
        if self.bench.modes().contains(&Mode::ReadWrite) {
            return Ok(());
        }
        self.frozen = None;
        self.freezing = None;
        for replica in &self.bench.replicas {
            let reason = "what it was rebuilt from is lost";
            self.bench.shared.fail(&replica.member, reason);
        }
        let complete = self.bench.shared.complete_when_lost();
        prop_assert!(!complete.is_empty(), "nobody has everything");
        let chosen = |(place, _): &(usize, &Arc<Member>)| set >> (place % 3) & 1 == 1;
        let mut chosen: Vec<u32> = complete
            .iter()
            .enumerate()
            .filter(chosen)
            .map(|(_, m)| m.id)
            .collect();
        if chosen.is_empty() {
            chosen.push(complete[0].id);
        }
        let mut back = Vec::new();
        for old in chosen {
            let mut new = self.bench.new_replica(Mode::ReadWrite);
            let mut replicas = self.bench.replicas.iter_mut();
            let place = replicas
                .find(|replica| replica.member.id == old)
                .expect("it is known");
            new.bytes.clone_from(&place.bytes);
            back.push((old, Arc::clone(&new.member)));
            *place = new;
        }
        self.bench.shared.reinstate(&back);
        // What the queues were told before that is decided now. One may wait for a range that another has.
        for _ in 0..1000 {
            if self.bench.queues.iter().all(|queue| queue.in_flight() == 0) {
                break;
            }
            for queue in 0..self.bench.queues.len() {
                self.bench.queues[queue].kick();
                self.reap(queue)?;
            }
        }
        prop_assert!(self.bench.queues.iter().all(|queue| queue.in_flight() == 0));
        let queues = self.bench.queues.drain(..).count();
        self.add_queues(queues);
        Ok(())
    }

    /// Replicas that are to have everything: those that are read; if there are none, those that would be opened again.
    fn complete(&self) -> Vec<&Replica> {
        let lost = self.bench.shared.complete_when_lost();
        let complete = |replica: &&Replica| {
            let member = &replica.member;
            member.mode() == Mode::ReadWrite || lost.iter().any(|lost| lost.id == member.id)
        };
        self.bench.replicas.iter().filter(complete).collect()
    }

    /// All comes to rest, and is looked at.
    fn end(mut self) -> Result<(), TestCaseError> {
        self.frozen = None;
        self.freezing = None;
        self.now += 1;
        let completions = self.bench.settle();
        let sound = self.sound();
        for (_, completion) in completions {
            self.guest.completed(&completion, self.now, &sound)?;
        }
        self.check_sound()?;
        let guest = &self.guest;
        prop_assert!(
            guest.writing.is_empty() && guest.reading.is_empty() && guest.flushing.is_empty()
        );
        let all = self.complete();
        prop_assert!(!all.is_empty(), "nobody has everything");
        for replica in &all {
            guest.check(&replica.bytes, 0..SIZE / UNIT, self.now + 1, self.now + 1)?;
            for unit in
                (0..SIZE / UNIT).filter(|unit| !guest.undefined.iter().any(|r| r.contains(unit)))
            {
                let bytes = unit * UNIT..(unit + 1) * UNIT;
                prop_assert_eq!(
                    &replica.bytes[bytes.clone()],
                    &all[0].bytes[bytes],
                    "unit {} differs",
                    unit
                );
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Every request ends once; what is read is what was written, by a write that may have been the last; and replicas that are read are the same.
    #[test]
    fn no_acknowledged_write_is_lost(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step)?;
        }
        world.end()?;
    }
}
