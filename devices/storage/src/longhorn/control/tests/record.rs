//! What is recorded of replicas, and what is done by it.

use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex as SyncMutex;
use tempfile::TempDir;

use super::*;
use crate::longhorn::Failure;

use Mode::{Failed, ReadWrite};

/// Some replicas, and where it is recorded which of them have everything.
struct Recorded {
    set: Set,
    directory: TempDir,
}

impl Recorded {
    fn new() -> Self {
        Self {
            set: Set::holding(3, 2),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("records/fake.json")
    }

    fn records(&self) -> PathBuf {
        self.directory.path().join("records")
    }

    fn open(&self, taking: Taking) -> Result<Volume, VolumeError> {
        self.open_heard(taking, Arc::new(Nobody))
    }

    fn open_heard(
        &self,
        taking: Taking,
        listener: Arc<dyn Listener>,
    ) -> Result<Volume, VolumeError> {
        let options = VolumeOptions {
            record: Some(self.path()),
            ..self.set.options(taking)
        };
        Volume::open(options, listener)
    }

    /// Has the first replica fail.
    fn fail_first(&self, volume: &Volume) {
        self.set.replicas[0].set("snapshot", fake::Manner::Refuse);
        volume
            .snapshot(None, std::collections::HashMap::new())
            .expect("on the others");
        assert_eq!(modes(volume), [Failed, ReadWrite, ReadWrite]);
        self.set.replicas[0].mend();
    }

    /// As if everything had been killed and started anew.
    fn crash(&self, volume: Volume) {
        drop(volume);
        for replica in &self.set.replicas {
            replica.restart();
        }
    }
}

/// What a volume has told of its record, and last of its replicas.
#[derive(Default)]
struct Told {
    records: SyncMutex<Vec<Option<Failure>>>,
    modes: SyncMutex<Vec<Mode>>,
}

impl Told {
    fn records(&self) -> Vec<Option<Failure>> {
        self.records.lock().clone()
    }

    fn modes(&self) -> Vec<Mode> {
        self.modes.lock().clone()
    }
}

impl Listener for Told {
    fn replicas(&self, replicas: &[ReplicaStatus]) {
        *self.modes.lock() = replicas.iter().map(|replica| replica.mode).collect();
    }

    fn record(&self, failure: Option<&Failure>) {
        self.records.lock().push(failure.cloned());
    }
}

fn complete(path: &Path) -> usize {
    let text = fs::read_to_string(path).expect("a record");
    text.matches("127.").count()
}

#[test]
fn one_that_missed_writes_is_left_out_though_it_looks_like_the_others() {
    let recorded = Recorded::new();
    fs::create_dir(recorded.records()).expect("a directory");
    let volume = recorded.open(Taking::Open).expect("a volume");
    assert_eq!(complete(&recorded.path()), 3);
    recorded.fail_first(&volume);
    write_at(&volume, 0, 3).expect("written");
    assert_eq!(complete(&recorded.path()), 2);
    recorded.crash(volume);
    let first = &recorded.set.replicas[0];
    // It was written last, by its clock.
    first.change(|state| state.modified = i64::MAX / 2);
    let volume = recorded.open(Taking::Open).expect("a volume");
    assert_eq!(modes(&volume).len(), 2);
    assert!(
        volume
            .replicas()
            .iter()
            .all(|one| one.address != first.address)
    );
    assert_eq!(read(&volume), [3]);
    wait_until("is compared", || volume.is_compared());
    // It gets everything, and is one of them again.
    first.empty();
    volume.add_replica(first.address.clone()).expect("rebuilt");
    assert_eq!(complete(&recorded.path()), 3);
    volume.hand_over().expect("handed over");
    assert!(!recorded.path().exists(), "others know better from now on");
}

#[test]
fn nothing_is_acknowledged_that_a_replica_misses_of_which_that_is_not_recorded() {
    let recorded = Recorded::new();
    let error = recorded.open(Taking::Open).expect_err("no directory");
    assert!(error.to_string().contains("cannot be locked"), "{error}");
    fs::create_dir(recorded.records()).expect("a directory");
    let told = Arc::new(Told::default());
    let volume = recorded.open_heard(Taking::Open, Arc::clone(&told) as _);
    let volume = volume.expect("a volume");
    let handle = volume.handle();
    assert_eq!(handle.record_failure(), None);
    let away = recorded.directory.path().join("away");
    fs::rename(recorded.records(), &away).expect("renamed");
    recorded.fail_first(&volume);
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| write_at(&volume, 0, 3));
        wait_until("is on the others", || {
            recorded.set.replicas[1].state().bytes[0] == 3
        });
        std::thread::sleep(Duration::from_millis(200));
        assert!(!writing.is_finished(), "acknowledged and not recorded");
        let failure = handle.record_failure().expect("a failure");
        let expected = format!(
            "volume fake: its record {}: it cannot be written: No such file or directory (os error 2)",
            recorded.path().display()
        );
        assert_eq!(failure.reason, expected);
        assert_eq!(told.records(), [Some(failure)]);
        // Who fails meanwhile is told all the same.
        fail(&volume, 2);
        wait_until("is told", || told.modes() == [Failed, ReadWrite, Failed]);
        fs::rename(&away, recorded.records()).expect("renamed");
        writing.join().expect("an end")
    });
    assert_eq!(written, Ok(()));
    assert_eq!(complete(&recorded.path()), 1);
    assert_eq!(handle.record_failure(), None);
    assert_eq!(told.records().len(), 2, "it began, and it has ended");
    assert_eq!(told.records()[1], None);
}

#[test]
fn one_that_may_have_missed_something_is_recorded_once_it_was_compared() {
    let recorded = Recorded::new();
    fs::create_dir(recorded.records()).expect("a directory");
    let [first, second, third] = [0, 1, 2].map(|index: usize| &recorded.set.replicas[index]);
    for replica in &recorded.set.replicas {
        replica.change(|state| state.dirty = true);
    }
    second.change(|state| state.modified -= 10 * SECOND);
    third.empty();
    third.change(|state| state.dirty = true);
    first.change(|state| state.hangs_at = Some(SIZE - 1));
    let volume = recorded.open(Taking::Open).expect("a volume");
    assert_eq!(complete(&recorded.path()), 1);
    first.mend();
    wait_until("is compared", || volume.is_compared());
    assert_eq!(complete(&recorded.path()), 3);
    assert_eq!(modes(&volume), [ReadWrite; 3]);
}
