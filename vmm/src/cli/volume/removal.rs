//! `paddock volume snapshot remove`: the snapshot is marked on all replicas, and each of them merges it by itself.
//!
//! A replica that is cut off while it does goes on, or begins again when it is asked again; at each moment it reads the same.

use std::thread;
use std::time::{Duration, Instant};

use paddock_storage::longhorn::{Found, Inside, Offline, Volume};
use serde::Serialize;

use super::args::SnapshotArgs;
use super::check::problems;
use super::open::{Stage, close, open, survey_unused};
use super::{Session, VolumeFailure};
use crate::cli::ctl::render::duration;

/// How often it is looked how far the replicas are.
const LOOK: Duration = Duration::from_millis(100);

/// How long they may not get further. A hundredth of several snapshots may be many GiB.
const STUCK: Duration = Duration::from_secs(1800);

/// Why a snapshot that is marked as removed is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Stays {
    /// Only the file that is written is above it, and nothing is merged into that.
    Newest,
    /// Several are based on it, each of which would have to have what it has.
    Shared,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Removed {
    volume: String,
    snapshot: String,
    /// `None` where it is gone.
    stays: Option<Stays>,
}

/// Removes one.
pub fn remove(session: &Session, args: &SnapshotArgs) -> Result<(), VolumeFailure> {
    let options = args.which.options();
    let (volume, name) = (args.which.name.as_str(), args.snapshot.as_str());
    let found = survey_unused(&options)?;
    let untouched = "nothing is removed, for it has to go from all replicas";
    for inside in complete(&found, untouched)? {
        ensure_there(inside, volume, name)?;
    }
    let opened = open(session, options.clone())?;
    let merged = merge(session, &opened, name);
    let closed = close(&opened);
    merged.and(closed)?;
    let found = Offline::new(options)?.survey()?;
    let mut kept = None;
    for inside in complete(&found, "the snapshot is marked as removed, but not on all")? {
        kept = kept.or(stays(inside, name));
    }
    let removed = Removed {
        volume: volume.to_owned(),
        snapshot: name.to_owned(),
        stays: kept,
    };
    session.print(&removed, |page| page.sentence(&removed.told()))
}

/// What the replicas have, all of which are to be complete; `otherwise` says what is the matter where they are not.
fn complete<'a>(found: &'a [Found], otherwise: &str) -> Result<Vec<&'a Inside>, VolumeFailure> {
    let problems = problems(found);
    if problems.is_empty() {
        return Ok(found.iter().filter_map(|f| f.inside.as_ref()).collect());
    }
    let problems = problems.join("\n");
    Err(VolumeFailure::Found(format!("{problems}\n  {otherwise}")))
}

fn ensure_there(inside: &Inside, volume: &str, name: &str) -> Result<(), VolumeFailure> {
    let names: Vec<&str> = inside.snapshots.iter().map(|s| s.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let has = match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    };
    Err(VolumeFailure::Found(format!(
        "volume {volume} has no snapshot {name}; it has {has}"
    )))
}

/// Marks it on all replicas, and waits until they have merged what is to go.
fn merge(session: &Session, volume: &Volume, name: &str) -> Result<(), VolumeFailure> {
    if session.interrupt.is_wanted() {
        let told = "interrupted: nothing is removed".to_owned();
        return Err(VolumeFailure::Found(told));
    }
    volume.remove_snapshot(name)?;
    let merged = volume
        .start_purge()
        .map_err(VolumeFailure::from)
        .and_then(|()| attend_purge(session, volume, name));
    merged.map_err(|error| {
        VolumeFailure::Found(format!(
            "{}\n  snapshot {name} is marked as removed, but not merged on all replicas: give the command again",
            super::told(&error)
        ))
    })
}

fn attend_purge(session: &Session, volume: &Volume, name: &str) -> Result<(), VolumeFailure> {
    let mut stage = Stage::start(format!("merging snapshot {name}, in per cent"));
    let mut last = (0, Instant::now());
    loop {
        let purge = volume.purge()?;
        if !purge.running {
            return Ok(());
        }
        if purge.percent != last.0 {
            last = (purge.percent, Instant::now());
        }
        stage.tell(purge.percent.into(), 100);
        if session.interrupt.is_wanted() {
            return Err(VolumeFailure::Found("interrupted".to_owned()));
        }
        if last.1.elapsed() > STUCK {
            let waited = duration(STUCK);
            let told = format!("the replicas have got no further for {waited}; look at their logs");
            return Err(VolumeFailure::Found(told));
        }
        thread::sleep(LOOK);
    }
}

/// Why a replica that has merged what could be merged has it still: of one that nothing is based on nothing would be left, and one that a single file is based
/// on is merged into that, unless it is the one that is written. Their chain leaves out what is marked as removed.
fn stays(inside: &Inside, name: &str) -> Option<Stays> {
    let snapshots = &inside.snapshots;
    if !snapshots.iter().any(|snapshot| snapshot.name == name) {
        return None;
    }
    let is_based = snapshots.iter().any(|s| s.parent.as_deref() == Some(name));
    Some(match is_based {
        false => Stays::Newest,
        true => Stays::Shared,
    })
}

impl Removed {
    fn told(&self) -> String {
        let name = &self.snapshot;
        let until = match self.stays {
            None => return format!("snapshot {name} is removed"),
            Some(Stays::Newest) => "it is the newest, and stays until there is a later one",
            Some(Stays::Shared) => {
                "several are based on it, and it stays until all but one are gone"
            }
        };
        format!("snapshot {name} is marked as removed: {until}; then give the command again")
    }
}

#[cfg(test)]
mod tests {
    use paddock_storage::longhorn::{Snapshot, Standing};

    use super::*;

    /// Of snapshots and what each is based on.
    fn inside(snapshots: &[(&str, Option<&str>)]) -> Inside {
        let snapshot = |(name, parent): &(&str, Option<&str>)| Snapshot {
            name: (*name).to_owned(),
            created: "2026-01-02T03:04:05Z".to_owned(),
            user_created: true,
            removed: false,
            size: 4096,
            parent: parent.map(ToOwned::to_owned),
            labels: Vec::new(),
        };
        Inside {
            head: "volume-head-001.img".to_owned(),
            head_bytes: 0,
            chain: Vec::new(),
            snapshots: snapshots.iter().map(snapshot).collect(),
            revision_counter: None,
        }
    }

    #[test]
    fn what_is_not_merged_has_a_reason() {
        let line = inside(&[("a", None), ("b", Some("a"))]);
        assert_eq!(stays(&line, "c"), None);
        assert_eq!(stays(&line, "b"), Some(Stays::Newest));
        assert_eq!(stays(&line, "a"), Some(Stays::Shared));
    }

    #[test]
    fn what_there_is_instead_is_told() {
        let told = |inside| {
            let error = ensure_there(&inside, "v", "x").unwrap_err();
            error.to_string()
        };
        let both = inside(&[("a", None), ("b", Some("a"))]);
        assert_eq!(told(both), "volume v has no snapshot x; it has a, b");
        let none = inside(&[]);
        assert_eq!(told(none), "volume v has no snapshot x; it has none");
    }

    #[test]
    fn it_goes_from_all_replicas_or_from_none() {
        let found = |standing, problem: Option<&str>| Found {
            address: "a:1".parse().unwrap(),
            standing,
            problem: problem.map(ToOwned::to_owned),
            size: None,
            inside: Some(inside(&[("a", None)])),
        };
        let well = found(Standing::Complete, None);
        assert_eq!(complete(std::slice::from_ref(&well), "").unwrap().len(), 1);
        for standing in [
            Standing::Unclean,
            Standing::Stale,
            Standing::Incomplete,
            Standing::Empty,
            Standing::Broken,
            Standing::Unreachable,
        ] {
            let set = [well.clone(), found(standing, Some("it is not well"))];
            let error = complete(&set, "nothing is removed").unwrap_err();
            let error = error.to_string();
            assert!(error.contains("a:1: it is not well"), "{error}");
            assert!(error.ends_with("nothing is removed"), "{error}");
        }
    }
}
