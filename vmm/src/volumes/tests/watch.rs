//! What a volume tells becomes events, each once and none that is not so.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
use paddock_storage::longhorn::{
    Activity, Failure, Listener, Mode, Progress, ReplicaStatus, Taken,
};

use super::super::changes::in_the_way;
use super::super::watch::{Tally, Watch};
use super::{events, told};

fn watch() -> (Watch, Arc<Journal>) {
    let journal = Arc::<Journal>::default();
    (Watch::new("data", Arc::clone(&journal)), journal)
}

/// Replicas at `HOST:1`.
fn replicas(told: &[(&str, Mode)]) -> Vec<ReplicaStatus> {
    let status = |(host, mode): &(&str, Mode)| ReplicaStatus {
        address: format!("{host}:1").parse().unwrap(),
        mode: *mode,
        failure: (*mode == Failed).then(|| Failure {
            reason: format!("{host} is gone"),
            at: SystemTime::now(),
        }),
    };
    told.iter().map(status).collect()
}

use Mode::{Failed, ReadWrite as Rw, WriteOnly as Wo};

#[test]
fn what_has_changed_is_told() {
    let (watch, journal) = watch();
    for now in [
        &[("a", Rw), ("b", Rw), ("c", Failed)][..],
        &[("a", Rw), ("b", Rw), ("c", Failed)],
        &[("a", Rw), ("b", Failed), ("c", Failed)],
        &[("a", Rw), ("c", Failed)],
        &[("a", Rw), ("c", Failed), ("d", Wo)],
        &[("a", Rw), ("d", Rw)],
        // Between two times.
        &[("a", Rw), ("d", Rw), ("e", Rw)],
        &[("a", Rw), ("d", Rw), ("e", Rw), ("f", Failed)],
        &[("a", Failed), ("d", Rw), ("e", Rw)],
        &[("a", Rw), ("d", Rw), ("e", Rw)],
    ] {
        watch.replicas(&replicas(now));
    }
    let expected = Tally {
        failures: 4,
        rebuilt: 2,
        not_rebuilt: 1,
        snapshots: 0,
    };
    assert_eq!(watch.tally(), expected);
    assert_eq!(
        told(&journal),
        [
            "replica-failed c:1",
            "replica-failed b:1",
            "replica-removed b:1",
            "replica-added d:1",
            "replica-rebuilt d:1",
            "replica-removed c:1",
            "replica-added e:1",
            "replica-rebuilt e:1",
            "replica-added f:1",
            "replica-failed f:1",
            "replica-failed a:1",
            "replica-removed f:1",
            "replica-reopened a:1",
        ]
    );
}

#[test]
fn failures_have_their_reason_and_say_whether_a_rebuild_ended_so() {
    let (watch, journal) = watch();
    for now in [&[("a", Rw), ("b", Wo)], &[("a", Rw), ("b", Failed)]] {
        watch.see(&replicas(now));
    }
    watch.see(&replicas(&[("a", Failed), ("b", Failed)]));
    let failed: Vec<_> = events(&journal)
        .into_iter()
        .map(|kind| match kind {
            EventKind::ReplicaFailed {
                reason, rebuilding, ..
            } => (reason, rebuilding),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(failed[0], ("b is gone".to_owned(), true));
    assert_eq!(failed[1], ("a is gone".to_owned(), false));
}

#[test]
fn a_volume_has_no_more_replicas_than_a_spec_may_name() {
    let addresses: Vec<String> = (0..17).map(|number| format!("h{number}")).collect();
    let told: Vec<_> = addresses.iter().map(|host| (host.as_str(), Rw)).collect();
    let [some, all] = [15, 16].map(|count| replicas(&told[..count]));
    let last = "h16:1".parse().unwrap();
    assert_eq!(in_the_way(&some, &last), None);
    let problem = in_the_way(&all, &last).unwrap();
    assert!(problem.contains("16 replicas"), "{problem}");
    let known = in_the_way(&some, &"h3:1".parse().unwrap()).unwrap();
    assert!(known.contains("h3:1 already"), "{known}");
}

#[test]
fn comparisons_and_snapshots_are_told() {
    let (watch, journal) = watch();
    let progress = |activity| Progress {
        activity,
        replica: None,
        percent: 1,
        done: 1,
        total: 100,
    };
    for told in [Some(Activity::Resync), Some(Activity::Resync), None] {
        watch.progress(told.map(progress).as_ref());
    }
    watch.compared();
    // One that is not ended has no end.
    watch.progress(Some(&progress(Activity::Resync)));
    watch.progress(None);
    watch.progress(Some(&progress(Activity::Rebuild)));
    let frozen = Duration::from_micros(1234);
    let name = "s".to_owned();
    watch.snapshot_taken(&Taken { name, frozen });
    assert_eq!(watch.tally().snapshots, 1);
    let events = events(&journal);
    let names: Vec<_> = events.iter().map(EventKind::name).collect();
    assert_eq!(
        names,
        [
            "comparison-started",
            "comparison-done",
            "comparison-started",
            "snapshot-taken"
        ]
    );
    assert!(
        matches!(&events[3], EventKind::SnapshotTaken { disk, snapshot, frozen_us: 1234 } if disk == "data" && snapshot == "s"),
        "{events:?}"
    );
}

#[test]
fn a_record_that_cannot_be_written_is_told_once_and_so_is_its_end() {
    let (watch, journal) = watch();
    let failure = |reason: &str| Failure {
        reason: reason.to_owned(),
        at: SystemTime::now(),
    };
    watch.record(None);
    watch.record(Some(&failure("v.json: full")));
    watch.record(Some(&failure("v.json: gone")));
    watch.record(None);
    watch.record(None);
    let events = events(&journal);
    let [failed, EventKind::RecordRecovered { disk, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    let told = EventKind::RecordFailed {
        disk: "data".to_owned(),
        error: "v.json: full".to_owned(),
    };
    assert_eq!((failed, disk.as_str()), (&told, "data"));
}
