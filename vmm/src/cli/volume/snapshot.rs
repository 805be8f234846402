//! `paddock volume snapshot`.

use paddock_storage::longhorn::{Offline, Standing};
use serde_json::json;

use super::args::{SnapshotArgs, SnapshotCreateArgs, WhichArgs};
use super::open::{close, describe, open, survey_unused};
use super::{Session, VolumeFailure, render};

/// Takes one.
pub fn create(session: &Session, args: &SnapshotCreateArgs) -> Result<(), VolumeFailure> {
    let options = args.which.options();
    survey_unused(&options)?;
    let volume = open(session, options)?;
    let labels = args.label.iter().cloned().collect();
    let taken = volume.snapshot(args.snapshot.clone(), labels);
    let closed = close(&volume);
    let name = taken?.name;
    let told = json!({"volume": args.which.name.as_str(), "snapshot": name});
    session.print(&told, |page| {
        page.sentence(&format!("snapshot {name} is taken"));
    })?;
    closed
}

/// Lists them.
pub fn list(session: &Session, args: &WhichArgs) -> Result<(), VolumeFailure> {
    let found = Offline::new(args.options())?.survey()?;
    session.ensure_wanted()?;
    let complete = |used: Standing| {
        let mut found = found.iter().filter(move |f| f.standing == used);
        found.find_map(|found| found.inside.as_ref())
    };
    let Some(inside) = complete(Standing::Complete).or_else(|| complete(Standing::InUse)) else {
        let problems: Vec<String> = found.iter().map(describe).collect();
        return Err(VolumeFailure::Found(problems.join("\n")));
    };
    let list: Vec<_> = inside
        .snapshots
        .iter()
        .map(render::Snapshot::from)
        .collect();
    session.print(&list, |page| render::snapshots(page, &list))
}

/// Goes back to one.
pub fn revert(session: &Session, args: &SnapshotArgs) -> Result<(), VolumeFailure> {
    let options = args.which.options();
    survey_unused(&options)?;
    let volume = open(session, options)?;
    let reverted = volume.revert(&args.snapshot);
    let closed = close(&volume);
    reverted?;
    let (name, snapshot) = (args.which.name.as_str(), &args.snapshot);
    let told = json!({"volume": name, "snapshot": snapshot});
    session.print(&told, |page| {
        page.sentence(&format!(
            "volume {name} is what it was at snapshot {snapshot}"
        ));
    })?;
    closed
}
