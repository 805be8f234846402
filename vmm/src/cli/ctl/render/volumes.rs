//! Replicas and snapshots.

use std::time::Duration;

use paddock_api::volume::{
    ByteProgress, Replica, ReplicaMode, Snapshot, SnapshotTaken, VolumeState,
};

use super::events::moment;
use super::{Cell, Colour, Page, bytes};

/// Replicas, a line each.
pub fn replicas(page: &mut Page, replicas: &[Replica]) {
    let rows = replicas.iter().map(|replica| {
        let failure = replica.failure.as_ref();
        vec![
            Cell::new(&replica.address),
            Cell::state(&replica.mode),
            Cell::new(replica.rebuild.map(so_far).unwrap_or_default()),
            Cell::new(failure.map(|one| moment(one.since_ms)).unwrap_or_default()),
            Cell::new(failure.map_or("", |one| one.reason.as_str())),
        ]
    });
    let headings = ["ADDRESS", "MODE", "REBUILD", "FAILED", "FAILURE"];
    page.table(&headings, rows.collect(), "no replicas");
}

/// Snapshots, a line each.
pub fn snapshots(page: &mut Page, snapshots: &[Snapshot]) {
    let rows = snapshots.iter().map(|snapshot| {
        vec![
            Cell::new(&snapshot.name),
            Cell::new(&snapshot.created),
            Cell::new(bytes(snapshot.size)),
            Cell::new(snapshot.parent.as_deref().unwrap_or_default()),
            Cell::new(notes(snapshot)),
        ]
    });
    let headings = ["NAME", "CREATED", "SIZE", "PARENT", "NOTES"];
    page.table(&headings, rows.collect(), "no snapshots");
}

/// One that was taken, in a sentence.
pub fn snapshot_taken(page: &mut Page, taken: &SnapshotTaken) {
    let frozen = Duration::from_micros(taken.frozen_us).as_secs_f64() * 1000.0;
    let told = format!(
        "snapshot {} was taken; the guest's I/O stood still for {frozen:.1} ms",
        taken.name
    );
    page.line(&[Cell::new(told)], &[0]);
}

/// What is not as it should be with a volume; nothing where all is well.
pub(super) fn trouble(volume: &VolumeState) -> Option<Cell> {
    let all = volume.replicas.len();
    let count = |mode| volume.replicas.iter().filter(|r| r.mode == mode).count();
    let (failed, rebuilt) = (count(ReplicaMode::Failed), count(ReplicaMode::WriteOnly));
    let mut told = Vec::new();
    if let Some(failure) = &volume.record_failure {
        let since = moment(failure.since_ms);
        told.push(format!("writes wait since {since}: {}", failure.error));
    }
    if failed > 0 {
        told.push(format!("{failed} of {all} replicas failed"));
    }
    if rebuilt > 0 {
        told.push(format!("{rebuilt} of {all} replicas being rebuilt"));
    }
    if let Some(progress) = volume.comparison {
        told.push(format!("replicas being compared: {}", so_far(progress)));
    }
    let colour = if failed > 0 || volume.record_failure.is_some() {
        Colour::Red
    } else {
        Colour::Yellow
    };
    (!told.is_empty()).then(|| Cell::coloured(told.join(", "), colour))
}

fn so_far(progress: ByteProgress) -> String {
    let ByteProgress { done, total } = progress;
    format!("{} of {}", bytes(done), bytes(total))
}

fn notes(snapshot: &Snapshot) -> String {
    let mut notes = Vec::new();
    if snapshot.removed {
        notes.push("removed".to_owned());
    }
    if !snapshot.user_created {
        notes.push("made by a rebuild or a resize".to_owned());
    }
    let labels = snapshot.labels.iter();
    notes.extend(labels.map(|(key, value)| format!("{key}={value}")));
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use paddock_api::volume::{RecordFailure, ReplicaFailure};

    use super::*;

    fn told(volume: &VolumeState) -> String {
        let mut page = Page::new(false);
        page.line(&[trouble(volume).unwrap_or_default()], &[0]);
        page.into_text()
    }

    #[test]
    fn what_is_not_as_it_should_be_is_told() {
        let replica = |mode| Replica {
            address: "a:1".to_owned(),
            mode,
            failure: (mode == ReplicaMode::Failed).then(|| ReplicaFailure {
                reason: "gone".to_owned(),
                since_ms: 1_700_000_000_123,
            }),
            rebuild: None,
        };
        let mut volume = VolumeState {
            replicas: vec![replica(ReplicaMode::ReadWrite); 2],
            comparison: None,
            record_failure: None,
            job: None,
        };
        assert_eq!(told(&volume), "\n");
        volume.replicas[1] = replica(ReplicaMode::Failed);
        volume.record_failure = Some(RecordFailure {
            error: "v.json: No space left".to_owned(),
            since_ms: 1_700_000_000_123,
        });
        assert_eq!(
            told(&volume),
            "writes wait since 2023-11-14T22:13:20.123Z: v.json: No space left, 1 of 2 replicas failed\n"
        );
    }
}
