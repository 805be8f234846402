//! What storage does without a guest: Paddock's Longhorn engine beside Longhorn's own, and its raw disks beside fio.
//!
//! Loads are put by `disk-load` ([`load`]), on Longhorn's engine through its socket frontend; the profiles are those of Longhorn's kbench. A set of
//! replicas takes one engine at a time, hence each turn opens and closes its engine, which is not timed.

mod engines;
mod figures;
mod load;
mod once;
mod raw;
mod set;

pub use self::load::{Load, LoadOutcome, Want};

pub(super) use self::figures::figures;
pub(super) use self::set::Yard;

use super::report::OURS;
use super::{BenchError, Meter};
use set::Kind;

/// Whom engines are compared with.
const LONGHORN: &str = "longhorn";
/// Whom raw disks are compared with.
const FIO: &str = "fio";

/// Who is compared at what.
#[derive(Debug, Clone, Copy)]
pub enum Contest {
    /// Paddock's engine and Longhorn's, both on the same replicas of Longhorn's.
    Engines(Load, Want),
    /// Paddock's engine on replicas of Paddock's, Longhorn's on replicas of Longhorn's.
    Stacks(Load, Want),
    /// Paddock's raw disk and fio, by io_uring and O_DIRECT, on the same file.
    Raw(Load),
    /// How long a snapshot freezes the I/O of Paddock's engine, on Longhorn's replicas that are written to.
    Freeze,
    /// How long Paddock's engine and Longhorn's take to rebuild a replica of Longhorn's.
    Rebuild,
}

impl Yard {
    /// The contestants, and what they compete on.
    pub(super) fn prepare(
        &mut self,
        contest: Contest,
    ) -> Result<Vec<(&'static str, Meter)>, BenchError> {
        Ok(match contest {
            Contest::Engines(load, want) => {
                let set = self.set(Kind::Longhorn)?;
                vec![
                    (OURS, engines::paddock(&set, load, want)),
                    (LONGHORN, engines::longhorn(&set, load, want)),
                ]
            }
            Contest::Stacks(load, want) => vec![
                (
                    OURS,
                    engines::paddock(&self.set(Kind::Paddock)?, load, want),
                ),
                (
                    LONGHORN,
                    engines::longhorn(&self.set(Kind::Longhorn)?, load, want),
                ),
            ],
            Contest::Raw(load) => {
                let file = self.file()?;
                vec![
                    (OURS, raw::paddock(&file, load)),
                    (FIO, raw::fio(&file, load)),
                ]
            }
            Contest::Freeze => vec![(OURS, once::freeze()?)],
            Contest::Rebuild => vec![
                (OURS, Box::new(once::rebuild_by_paddock)),
                (LONGHORN, Box::new(once::rebuild_by_longhorn)),
            ],
        })
    }
}
