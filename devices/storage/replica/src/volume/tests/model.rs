//! Random operations against a model. What was unmapped may read as anything until it is written whole, and what a live snapshot had
//! must still be there when one goes back to it.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the numbers of these tests are small"
)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::snapshot;
use crate::data::Engine;
use crate::files::names::snapshot_file;
use crate::testing::{Client, MIB, Served, place, serve};
use crate::volume::replica::{Options, now};

const SECTOR: usize = 4096;

/// Bytes that are worked on: the rest of a volume stays as it is.
const BUSY: usize = 40 * SECTOR;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Unmap(usize, usize),
    Snapshot,
    Revert(usize),
    Mark(usize),
    Expand,
    Reload,
    /// The process ends, after a close or without.
    Restart(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..BUSY, 1..6 * SECTOR);
    prop_oneof![
        6 => (range(), 1_u8..).prop_map(|((at, length), byte)| Step::Write(at, length, byte)),
        3 => (0..BUSY / SECTOR, 1..8_usize, 1_u8..).prop_map(|(at, count, byte)| Step::Write(at * SECTOR, count * SECTOR, byte)),
        2 => range().prop_map(|(at, length)| Step::Unmap(at, length)),
        3 => Just(Step::Snapshot),
        1 => any::<usize>().prop_map(Step::Revert),
        1 => any::<usize>().prop_map(Step::Mark),
        1 => Just(Step::Expand),
        1 => Just(Step::Reload),
        2 => any::<bool>().prop_map(Step::Restart),
    ]
}

/// What a volume holds; `None` for a sector that may read as anything.
#[derive(Debug, Clone)]
struct Model {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Model {
    fn write(&mut self, at: usize, length: usize, byte: u8) {
        self.bytes[at..at + length].fill(byte);
        for sector in at.div_ceil(SECTOR)..(at + length) / SECTOR {
            self.known[sector] = true;
        }
    }

    fn unmap(&mut self, at: usize, length: usize) {
        for sector in at.div_ceil(SECTOR)..(at + length) / SECTOR {
            self.known[sector] = false;
        }
    }
}

struct Run {
    options: Options,
    served: Served,
    client: Client,
    model: Model,
    snapshots: BTreeMap<String, (Model, bool)>,
    taken: usize,
    engine: Engine,
    writes: i64,
}

impl Run {
    fn new(options: Options, engine: Engine) -> Self {
        let served = serve(options.clone(), MIB, engine);
        Self {
            client: served.client(),
            served,
            options,
            model: Model {
                bytes: vec![0; 1 << 20],
                known: vec![true; (1 << 20) / SECTOR],
            },
            snapshots: BTreeMap::new(),
            taken: 0,
            engine,
            writes: 0,
        }
    }

    fn pick(&self, index: usize) -> Option<String> {
        let live: Vec<_> = self
            .snapshots
            .iter()
            .filter(|(_, (_, removed))| !removed)
            .collect();
        let index = index.checked_rem(live.len())?;
        Some(live[index].0.clone())
    }

    fn apply(&mut self, step: &Step) {
        let replica = &self.served.replica;
        match *step {
            Step::Write(at, length, byte) => {
                self.client.write(at as i64, &vec![byte; length]).unwrap();
                self.model.write(at, length, byte);
                self.writes += 1;
            }
            Step::Unmap(at, length) => {
                self.client.unmap(at as i64, length as u32).unwrap();
                self.model.unmap(at, length);
                self.writes += 1;
                if self.options.unmap_marks {
                    // Whatever is below the head.
                    let open = replica.status().open.unwrap();
                    for (name, (_, removed)) in &mut self.snapshots {
                        *removed = open.disks[&snapshot_file(name)].meta.removed;
                    }
                }
            }
            Step::Snapshot => {
                self.taken += 1;
                let name = format!("s{}", self.taken);
                replica.snapshot(&snapshot(&name)).unwrap();
                let error = replica.snapshot(&snapshot(&name)).unwrap_err();
                assert!(error.text().contains("already existing"));
                self.snapshots.insert(name, (self.model.clone(), false));
            }
            Step::Revert(index) => {
                let Some(name) = self.pick(index) else {
                    return;
                };
                replica.revert(&snapshot_file(&name), &now()).unwrap();
                let size = self.model.bytes.len();
                self.model = self.snapshots[&name].0.clone();
                self.model.bytes.resize(size, 0);
                self.model.known.resize(size / SECTOR, true);
            }
            Step::Mark(index) => {
                let Some(name) = self.pick(index) else {
                    return;
                };
                replica.mark_as_removed(&name).unwrap();
                self.snapshots
                    .entry(name)
                    .and_modify(|(_, removed)| *removed = true);
            }
            Step::Expand => {
                let size = self.model.bytes.len() + 8 * SECTOR;
                replica.expand(size as i64).unwrap();
                self.model.bytes.resize(size, 0);
                self.model.known.resize(size / SECTOR, true);
            }
            Step::Reload => replica.reload().unwrap(),
            Step::Restart(close) => {
                if close {
                    replica.close().unwrap();
                }
                let served = serve(self.options.clone(), 0, self.engine);
                self.client = served.client();
                std::mem::replace(&mut self.served, served).end();
            }
        }
    }

    fn check(&mut self) {
        let size = self.model.bytes.len();
        let found = self.client.read(0, size as u32).unwrap();
        for (sector, known) in self.model.known.iter().enumerate() {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            assert!(
                !known || found[range.clone()] == self.model.bytes[range],
                "sector {sector}"
            );
        }
        // What was read is as good as any other from now on.
        self.model.bytes = found;
        let open = self.served.replica.status().open.unwrap();
        assert_eq!(
            open.revision,
            self.options.count_revisions.then_some(self.writes)
        );
    }

    /// Goes back to each live snapshot.
    fn check_snapshots(&mut self) {
        for name in self.snapshots.keys().cloned().collect::<Vec<_>>() {
            if self.snapshots[&name].1 {
                continue;
            }
            self.served
                .replica
                .revert(&snapshot_file(&name), &now())
                .unwrap();
            let (model, _) = &self.snapshots[&name];
            let found = self.client.read(0, model.bytes.len() as u32).unwrap();
            for (sector, known) in model.known.iter().enumerate() {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                assert!(
                    !known || found[range.clone()] == model.bytes[range],
                    "{name}, sector {sector}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn as_the_model(
        steps in prop::collection::vec(step(), 1..40),
        rings in any::<bool>(),
        count_revisions in any::<bool>(),
        unmap_marks in any::<bool>(),
    ) {
        let place = place();
        let options = Options {
            count_revisions,
            unmap_marks,
            ..Options::new(place.path())
        };
        let engine = if rings { Engine::Auto } else { Engine::Calls };
        let mut run = Run::new(options, engine);
        for step in &steps {
            run.apply(step);
            if !matches!(step, Step::Write(..)) {
                run.check();
            }
        }
        run.check();
        run.check_snapshots();
    }
}

/// A snapshot that is to go, below one that is not: Longhorn's replica then gives back what the live one holds.
#[test]
fn an_unmap_leaves_a_live_snapshot_above_one_to_go_alone() {
    let place = place();
    let mut run = Run::new(Options::new(place.path()), Engine::Auto);
    let steps = [
        Step::Write(0, SECTOR, 1),
        Step::Snapshot,
        Step::Write(0, SECTOR, 2),
        Step::Snapshot,
        Step::Mark(0),
    ];
    for step in &steps {
        run.apply(step);
    }
    run.client.unmap(0, SECTOR as u32).unwrap();
    assert_eq!(run.client.read(0, SECTOR as u32).unwrap(), [2; SECTOR]);
    run.served.replica.reload().unwrap();
    assert_eq!(run.client.read(0, SECTOR as u32).unwrap(), [2; SECTOR]);
}

#[test]
fn an_unmap_gives_space_back() {
    let place = place();
    let mut run = Run::new(Options::new(place.path()), Engine::Auto);
    run.apply(&Step::Write(0, 16 * SECTOR, 1));
    run.apply(&Step::Snapshot);
    run.apply(&Step::Write(0, 4 * SECTOR, 2));
    // Of the head's four sectors, two are wholly within.
    assert_eq!(
        run.client.unmap(100, 3 * SECTOR as u32).unwrap(),
        2 * SECTOR as u32
    );
    assert_eq!(run.client.unmap(100, SECTOR as u32 - 1).unwrap(), 0);
    run.apply(&Step::Mark(0));
    assert_eq!(
        run.client.unmap(0, 16 * SECTOR as u32).unwrap(),
        18 * SECTOR as u32
    );
}
