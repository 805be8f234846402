//! What becomes of a volume's replicas, as the VM's events tell it.
//!
//! Told by the volume on its control thread, each time as it then is; what has changed since the last time is an event. Replicas decide when they fail, so
//! their reasons are texts of strangers: the journal keeps the last events only, and whoever prints them makes them harmless.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
use paddock_devices::virtio::blk::ConfigBell;
use paddock_storage::longhorn::{
    Activity, Failure, Listener, Mode, Progress, ReplicaStatus, Taken,
};
use parking_lot::Mutex;

/// What has become of a volume's replicas and snapshots since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Replicas that failed, those included that were being rebuilt.
    pub failures: u64,
    /// Replicas that were rebuilt.
    pub rebuilt: u64,
    /// Those that failed meanwhile.
    pub not_rebuilt: u64,
    /// Snapshots that were taken.
    pub snapshots: u64,
}

/// A replica as it was told last.
#[derive(Debug)]
struct Seen {
    address: String,
    mode: Mode,
    /// Since when it is the volume's.
    since: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    /// None before the first time.
    replicas: Option<Vec<Seen>>,
    /// Since when they are compared.
    comparing: Option<Instant>,
    /// Since when their failures cannot be recorded.
    unrecorded: Option<Instant>,
    tally: Tally,
}

/// Watches over one volume.
#[derive(Debug)]
pub struct Watch {
    disk: String,
    journal: Arc<Journal>,
    /// The way to the disk's driver, once there is one.
    bell: OnceLock<Arc<ConfigBell>>,
    inner: Mutex<Inner>,
}

impl Watch {
    /// Of the volume of this disk. Events go to `journal`.
    #[must_use]
    pub fn new(disk: &str, journal: Arc<Journal>) -> Self {
        Self {
            disk: disk.to_owned(),
            journal,
            bell: OnceLock::new(),
            inner: Mutex::default(),
        }
    }

    /// The disk's driver hears by this that the volume has another size, whoever made it larger.
    pub(super) fn rings(&self, bell: &Arc<ConfigBell>) {
        // There is one driver, and nobody says it twice.
        let _ = self.bell.set(Arc::clone(bell));
    }

    /// What has happened so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.inner.lock().tally
    }

    /// What the replicas were when the volume was opened, if nobody has said so yet.
    pub fn begin(&self, replicas: impl FnOnce() -> Vec<ReplicaStatus>) {
        let mut inner = self.inner.lock();
        if inner.replicas.is_none() {
            self.compare(&mut inner, &replicas());
        }
    }

    /// The replicas are these now.
    pub fn see(&self, now: &[ReplicaStatus]) {
        // Held to the end, so that events come in the order of the changes.
        self.compare(&mut self.inner.lock(), now);
    }

    fn compare(&self, inner: &mut Inner, now: &[ReplicaStatus]) {
        let is_first = inner.replicas.is_none();
        let mut before = inner.replicas.take().unwrap_or_default();
        let mut seen = Vec::with_capacity(now.len());
        for status in now {
            let address = status.address.to_string();
            let place = before.iter().position(|seen| seen.address == address);
            let known = place.map(|place| before.swap_remove(place));
            let mut was = known.as_ref().map(|seen| seen.mode);
            if was.is_none() && !is_first {
                self.tell(|disk| EventKind::ReplicaAdded {
                    disk,
                    replica: address.clone(),
                });
                was = Some(Mode::WriteOnly);
            }
            let now = Seen {
                address,
                mode: status.mode,
                since: known.map_or_else(Instant::now, |seen| seen.since),
            };
            self.turn(&mut inner.tally, was, &now, status);
            seen.push(now);
        }
        for gone in before {
            self.tell(|disk| EventKind::ReplicaRemoved {
                disk,
                replica: gone.address,
            });
        }
        inner.replicas = Some(seen);
    }

    /// Tells what a replica has become that was `was`, if it was anything.
    fn turn(&self, tally: &mut Tally, was: Option<Mode>, now: &Seen, status: &ReplicaStatus) {
        match (was, now.mode) {
            (Some(Mode::WriteOnly), Mode::ReadWrite) => {
                tally.rebuilt += 1;
                self.tell(|disk| EventKind::ReplicaRebuilt {
                    disk,
                    replica: now.address.clone(),
                    took_ms: milliseconds(now.since.elapsed()),
                });
            }
            (None | Some(Mode::WriteOnly | Mode::ReadWrite), Mode::Failed) => {
                let rebuilding = was == Some(Mode::WriteOnly);
                tally.failures += 1;
                tally.not_rebuilt += u64::from(rebuilding);
                self.tell(|disk| EventKind::ReplicaFailed {
                    disk,
                    replica: now.address.clone(),
                    reason: reason(status),
                    rebuilding,
                });
            }
            (Some(Mode::Failed), Mode::ReadWrite) => self.tell(|disk| EventKind::ReplicaReopened {
                disk,
                replica: now.address.clone(),
            }),
            _ => {}
        }
    }

    fn tell(&self, event: impl FnOnce(String) -> EventKind) {
        self.journal.publish(event(self.disk.clone()));
    }
}

impl Listener for Watch {
    fn replicas(&self, replicas: &[ReplicaStatus]) {
        self.see(replicas);
    }

    fn expanded(&self, size: u64) {
        self.tell(|disk| EventKind::DiskResized { disk, size });
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }

    fn progress(&self, progress: Option<&Progress>) {
        let compares = progress.is_some_and(|progress| progress.activity == Activity::Resync);
        let mut inner = self.inner.lock();
        if compares && inner.comparing.is_none() {
            inner.comparing = Some(Instant::now());
            self.tell(|disk| EventKind::ComparisonStarted { disk });
        }
    }

    fn compared(&self) {
        let mut inner = self.inner.lock();
        let took = inner.comparing.take();
        let took = took.map_or(Duration::ZERO, |since| since.elapsed());
        self.tell(|disk| EventKind::ComparisonDone {
            disk,
            took_ms: milliseconds(took),
        });
    }

    fn record(&self, failure: Option<&Failure>) {
        let mut inner = self.inner.lock();
        match (failure, inner.unrecorded) {
            (Some(failure), None) => {
                inner.unrecorded = Some(Instant::now());
                self.tell(|disk| EventKind::RecordFailed {
                    disk,
                    error: failure.reason.clone(),
                });
            }
            (None, Some(since)) => {
                inner.unrecorded = None;
                self.tell(|disk| EventKind::RecordRecovered {
                    disk,
                    after_ms: milliseconds(since.elapsed()),
                });
            }
            // As before.
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn snapshot_taken(&self, taken: &Taken) {
        let mut inner = self.inner.lock();
        inner.tally.snapshots += 1;
        self.tell(|disk| EventKind::SnapshotTaken {
            disk,
            snapshot: taken.name.clone(),
            frozen_us: microseconds(taken.frozen),
        });
    }
}

/// Why a replica failed.
pub(super) fn reason(status: &ReplicaStatus) -> String {
    let reason = status.failure.as_ref().map(|failure| &failure.reason);
    reason.cloned().unwrap_or_default()
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
