//! Random requests, faults, resumes and re-opening: every request is answered once, and what was acknowledged is on the disk.

use proptest::prelude::*;

use super::*;

const SECTORS: usize = 16;
const DEPTH: u16 = 16;

#[derive(Debug, Clone)]
enum Step {
    Write {
        queue: usize,
        sector: u64,
    },
    Flush {
        queue: usize,
    },
    /// The next requests at the disk.
    Faults(Vec<Fault>),
    Look {
        queue: usize,
    },
    Resume,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        3 => Just(EIO),
        1 => Just(ENOSPC),
        1 => Just(Fault::Torn(100, IoError::Os(libc::EIO))),
        1 => (0..4_usize).prop_map(Fault::Delay),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..2_usize;
    prop_oneof![
        6 => (queue(), 0..SECTORS as u64).prop_map(|(queue, sector)| Step::Write { queue, sector }),
        1 => queue().prop_map(|queue| Step::Flush { queue }),
        2 => proptest::collection::vec(fault(), 1..5).prop_map(Step::Faults),
        4 => queue().prop_map(|queue| Step::Look { queue }),
        1 => Just(Step::Resume),
    ]
}

/// What a guest knows.
#[derive(Default)]
struct Guest {
    next: u64,
    /// By tag: sector and contents of writes that were not answered.
    writes: std::collections::HashMap<u64, (u64, u8)>,
    flushes: std::collections::HashSet<u64>,
    /// By sector: what was acknowledged last.
    sectors: [u8; SECTORS],
}

impl Guest {
    fn answered(&mut self, done: Vec<Completion>) -> Result<(), TestCaseError> {
        for Completion { tag, result } in done {
            prop_assert_eq!(result, Ok(()), "nothing fails but discards");
            if !self.flushes.remove(&tag) {
                let write = self.writes.remove(&tag);
                prop_assert!(write.is_some(), "{tag} was answered before");
                let (sector, byte) = write.unwrap_or_default();
                self.sectors[usize::try_from(sector).unwrap()] = byte;
            }
        }
        Ok(())
    }

    /// No two writes of a sector are in flight at once, as the order of those is nobody's.
    fn may_write(&self, sector: u64) -> bool {
        self.writes.values().all(|(busy, _)| *busy != sector)
    }
}

fn run(steps: Vec<Step>, policy: Policy, busy: bool) -> Result<(), TestCaseError> {
    let disk = MemoryDisk::new(SECTORS * 512);
    let opener: Opener = {
        let disk = disk.clone();
        Box::new(move || match disk.open_queues() {
            users if busy && users > 0 => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Ok(Arc::new(disk.clone())),
        })
    };
    let heard = Heard::default();
    let inner = Arc::new(disk.clone());
    let holding = HoldingDisk::new(inner, policy, Some(opener), heard.listener());
    let mut queues = [(); 2].map(|()| holding.open_queue(DEPTH).unwrap());
    let mut guest = Guest::default();
    for step in steps {
        match step {
            Step::Write { queue, sector } if guest.may_write(sector) => {
                let tag = guest.next;
                let byte = u8::try_from(tag % 255).unwrap() + 1;
                guest.writes.insert(tag, (sector, byte));
                guest.answered(look(queues[queue].as_mut(), [write(tag, sector, byte)]))?;
            }
            Step::Write { .. } => {}
            Step::Flush { queue } => {
                guest.flushes.insert(guest.next);
                guest.answered(look(queues[queue].as_mut(), [flush(guest.next)]))?;
            }
            Step::Faults(faults) => disk.script(faults),
            Step::Look { queue } => guest.answered(look(queues[queue].as_mut(), []))?,
            Step::Resume => holding.resume().unwrap(),
        }
        guest.next += 1;
    }
    let end = Instant::now() + PATIENCE;
    while !guest.writes.is_empty() || !guest.flushes.is_empty() {
        prop_assert!(
            Instant::now() < end,
            "{holding:?} {heard:?}",
            heard = heard.letters()
        );
        if holding.status().stopped {
            holding.resume().unwrap();
        }
        for queue in &mut queues {
            guest.answered(look(queue.as_mut(), []))?;
        }
        std::thread::yield_now();
    }
    let bytes = disk.contents();
    for (sector, byte) in guest.sectors.iter().enumerate() {
        let found = &bytes[sector * 512..(sector + 1) * 512];
        prop_assert!(found.iter().all(|b| b == byte), "sector {sector}");
    }
    for queue in &queues {
        prop_assert_eq!(queue.in_flight(), 0);
    }
    prop_assert_eq!(holding.status().requests, 0);
    // One word for each failure, and one for its end.
    let letters: String = heard.letters().replace('S', "");
    prop_assert!(
        letters.replace("F=", "").trim_end_matches('F').is_empty(),
        "{letters}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_stopped_disk_answers_everything_once(
        steps in proptest::collection::vec(step(), 1..60),
        busy in any::<bool>(),
    ) {
        run(steps, Policy::Stop, busy)?;
    }

    #[test]
    fn a_disk_that_retries_answers_everything_once(
        steps in proptest::collection::vec(step(), 1..60),
        busy in any::<bool>(),
    ) {
        let retry = Retry {
            deadline: PATIENCE,
            interval: Duration::from_micros(50),
            then: Then::Stop,
        };
        run(steps, Policy::Retry(retry), busy)?;
    }
}
