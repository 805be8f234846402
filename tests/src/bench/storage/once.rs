//! What is done to a volume as a whole: a snapshot, and a rebuild.

use std::time::Instant;

use super::load::Load;
use super::set::{Kind, REPLICAS, SIZE, Set};
use crate::bench::{BenchError, Meter};

/// What is written while the snapshot is taken.
const WRITES: Load = Load {
    write: true,
    random: true,
    block: 4096,
    depth: 64,
};

/// Milliseconds.
pub(super) fn freeze() -> Result<Meter, BenchError> {
    // Snapshots stay, hence replicas of its own.
    let set = Set::start(Kind::Longhorn, REPLICAS);
    set.subject().fill()?;
    Ok(Box::new(move || {
        let outcome = set.subject().load(WRITES, &["--snapshot"])?;
        outcome.frozen_ms.ok_or_else(|| BenchError::Program {
            name: "disk-load",
            what: "no snapshot was taken".to_owned(),
            output: format!("{outcome:?}"),
        })
    }))
}

/// A volume that lacks one replica, full of data. A rebuild takes a snapshot, hence each has a volume of its own.
fn bereft() -> Result<Set, BenchError> {
    let set = Set::start(Kind::Longhorn, REPLICAS - 1);
    set.subject().fill()?;
    Ok(set)
}

/// Seconds.
pub(super) fn rebuild_by_paddock() -> Result<f64, BenchError> {
    let set = bereft()?;
    let new = set.another();
    set.subject().rebuild(&new.control().to_string())
}

/// Seconds.
pub(super) fn rebuild_by_longhorn() -> Result<f64, BenchError> {
    let set = bereft()?;
    let (engine, new) = (set.engine(), set.another());
    let begin = Instant::now();
    engine.cli().add_replica(&new.address(), SIZE);
    let took = begin.elapsed().as_secs_f64();
    engine.shut_down();
    Ok(took)
}
