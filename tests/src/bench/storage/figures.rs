//! The figures of storage. Profiles are named as fio names what they do.

use super::{Contest, FIO, LONGHORN, Load, Want};
use crate::bench::{Contestants, Figure, Goal, Place};

/// All of them.
pub(in crate::bench) fn figures() -> impl Iterator<Item = &'static Figure> {
    ENGINE.iter().chain(STACK).flatten().chain(OTHERS)
}

const fn figure(
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    goal: Goal,
    contest: Contest,
) -> Figure {
    Figure {
        name,
        about,
        unit,
        goal,
        place: Place::Here,
        peer: match contest {
            Contest::Raw(_) => FIO,
            _ => LONGHORN,
        },
        turns: 1,
        contestants: Contestants::Storage(contest),
    }
}

const fn load(write: bool, random: bool, block: u32, depth: u16) -> Load {
    Load {
        write,
        random,
        block,
        depth,
    }
}

const BLOCK: u32 = 4 << 10;
const LARGE_BLOCK: u32 = 128 << 10;
const DEPTH: u16 = 64;

/// What kbench measures, in one direction and order: the figures' latency, IOPS and bandwidth.
macro_rules! profile {
    ($group:literal, $on:literal, $contest:path, $goals:expr, $kind:literal, $requests:literal, $write:literal, $random:literal) => {
        [
            figure(
                concat!("storage-", $group, "-latency-", $kind),
                concat!($requests, " of 4 KiB, one at a time, ", $on),
                "µs",
                Goal::Times($goals.latency),
                $contest(load($write, $random, BLOCK, 1), Want::Latency),
            ),
            figure(
                concat!("storage-", $group, "-iops-", $kind),
                concat!($requests, " of 4 KiB, 64 at a time, ", $on),
                "1/s",
                Goal::AtLeastTimes($goals.iops),
                $contest(load($write, $random, BLOCK, DEPTH), Want::Iops),
            ),
            figure(
                concat!("storage-", $group, "-bandwidth-", $kind),
                concat!($requests, " of 128 KiB, 64 at a time, ", $on),
                "MiB/s",
                Goal::AtLeastTimes($goals.bandwidth),
                $contest(load($write, $random, LARGE_BLOCK, DEPTH), Want::Bandwidth),
            ),
        ]
    };
}

/// All that kbench measures.
macro_rules! kbench {
    ($group:literal, $on:literal, $contest:path, $goals:expr) => {
        &[
            profile!(
                $group,
                $on,
                $contest,
                $goals,
                "randread",
                "random reads",
                false,
                true
            ),
            profile!(
                $group,
                $on,
                $contest,
                $goals,
                "randwrite",
                "random writes",
                true,
                true
            ),
            profile!(
                $group,
                $on,
                $contest,
                $goals,
                "read",
                "sequential reads",
                false,
                false
            ),
            profile!(
                $group,
                $on,
                $contest,
                $goals,
                "write",
                "sequential writes",
                true,
                false
            ),
        ]
    };
}

/// Times the peer's.
struct Goals {
    latency: f64,
    iops: f64,
    bandwidth: f64,
}

const ENGINE_GOALS: Goals = Goals {
    latency: 0.6,
    iops: 1.5,
    bandwidth: 1.8,
};

const STACK_GOALS: Goals = Goals {
    latency: 0.4,
    iops: 3.0,
    bandwidth: 2.5,
};

const ENGINE: &[[Figure; 3]; 4] = kbench!(
    "engine",
    "both engines on three replicas of Longhorn's",
    Contest::Engines,
    ENGINE_GOALS
);

const STACK: &[[Figure; 3]; 4] = kbench!(
    "stack",
    "each engine on three replicas of its own",
    Contest::Stacks,
    STACK_GOALS
);

const OTHERS: &[Figure] = &[
    figure(
        "storage-stack-cpu-read",
        "CPU time of load generator, engine and replicas, sequential reads of 128 KiB, each engine on three replicas of its own",
        "s/GiB",
        Goal::Times(0.3),
        Contest::Stacks(load(false, false, LARGE_BLOCK, DEPTH), Want::Cpu),
    ),
    figure(
        "storage-stack-cpu-write",
        "the same of writes",
        "s/GiB",
        Goal::Times(0.3),
        Contest::Stacks(load(true, false, LARGE_BLOCK, DEPTH), Want::Cpu),
    ),
    figure(
        "storage-raw-randread-1",
        "random reads of 4 KiB from a raw file, one at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(false, true, BLOCK, 1)),
    ),
    figure(
        "storage-raw-randread-64",
        "random reads of 4 KiB from a raw file, 64 at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(false, true, BLOCK, DEPTH)),
    ),
    figure(
        "storage-raw-randwrite-1",
        "random writes of 4 KiB to a raw file, one at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(true, true, BLOCK, 1)),
    ),
    figure(
        "storage-raw-randwrite-64",
        "random writes of 4 KiB to a raw file, 64 at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(true, true, BLOCK, DEPTH)),
    ),
    figure(
        "storage-raw-read",
        "sequential reads of 128 KiB from a raw file, 64 at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(false, false, LARGE_BLOCK, DEPTH)),
    ),
    figure(
        "storage-raw-write",
        "sequential writes of 128 KiB to a raw file, 64 at a time",
        "1/s",
        Goal::AtLeastTimes(0.9),
        Contest::Raw(load(true, false, LARGE_BLOCK, DEPTH)),
    ),
    figure(
        "storage-freeze",
        "how long a snapshot on three replicas of Longhorn's freezes the I/O, which is random writes of 4 KiB",
        "ms",
        Goal::AtMost(50.0),
        Contest::Freeze,
    ),
    figure(
        "storage-rebuild",
        "one replica of Longhorn's, of 256 MiB, given everything by its engine, in a volume nobody uses",
        "s",
        Goal::Times(1.1),
        Contest::Rebuild,
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_of_one_figure_each() {
        let names: HashSet<_> = crate::bench::figures().map(|figure| figure.name).collect();
        assert_eq!(names.len(), crate::bench::figures().count());
    }

    #[test]
    fn the_profiles_of_kbench() {
        for figures in [ENGINE, STACK] {
            let loads: HashSet<_> = figures
                .iter()
                .flatten()
                .map(|figure| match figure.contestants {
                    Contestants::Storage(
                        Contest::Engines(load, want) | Contest::Stacks(load, want),
                    ) => format!("{load:?} {want:?}"),
                    _ => panic!("{figure:?}"),
                })
                .collect();
            assert_eq!(loads.len(), 12);
        }
        let found = crate::bench::named("storage-stack-bandwidth-randwrite").next();
        let Contestants::Storage(Contest::Stacks(load, Want::Bandwidth)) =
            found.unwrap().contestants
        else {
            panic!("{found:?}");
        };
        assert_eq!(load, super::load(true, true, 128 << 10, 64));
    }
}
