//! The replicated volume behind a disk, as others see it: its replicas and snapshots, and the way to change them while the VM runs.
//!
//! What takes long runs on the volume's own thread. The control plane waits for it, not longer than `DEADLINE` where a client waits too, and never in
//! a way that a replica that hangs could keep anything else waiting. Replicas answer what they like; what they say is told and not trusted.

mod changes;
mod watch;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use paddock_api::service::Refusal;
use paddock_api::spec;
use paddock_api::volume::{
    ByteProgress, RecordFailure, Replica, ReplicaFailure, ReplicaMode, Snapshot, SnapshotRequest,
    SnapshotTaken, VolumeState,
};
use paddock_devices::virtio::blk::ConfigBell;
use paddock_storage::longhorn::{
    self, Activity, Mode, Progress, ReplicaAddress, ReplicaStatus, VolumeError, VolumeHandle,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub use self::watch::{Tally, Watch};
use self::watch::{microseconds, milliseconds, reason};

/// How long a client waits for what the replicas do. It is done all the same then, or not.
const DEADLINE: Duration = Duration::from_secs(30);

/// Calls of clients to one volume at once.
const AT_ONCE: usize = 4;

/// The volume behind a disk that is open.
#[derive(Debug)]
pub struct DiskVolume {
    disk: String,
    handle: VolumeHandle,
    watch: Arc<Watch>,
    places: Arc<Semaphore>,
    /// The job that adds a replica or removes a snapshot.
    job: Mutex<Option<u64>>,
}

impl DiskVolume {
    /// Of the disk of this id. `watch` is what the volume tells what happens.
    #[must_use]
    pub fn new(disk: &str, handle: VolumeHandle, watch: Arc<Watch>) -> Arc<Self> {
        // What was found when it was opened.
        watch.begin(|| handle.replicas());
        Arc::new(Self {
            disk: disk.to_owned(),
            handle,
            watch,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            job: Mutex::default(),
        })
    }

    /// The disk's driver hears by this that the volume has another size.
    pub(crate) fn rings(&self, bell: &Arc<ConfigBell>) {
        self.watch.rings(bell);
    }

    /// As it is now.
    #[must_use]
    pub fn state(&self) -> VolumeState {
        let comparison = self.progress_of(Activity::Resync);
        VolumeState {
            replicas: self.replicas(),
            comparison: comparison.as_ref().map(bytes),
            record_failure: self.handle.record_failure().map(|failure| RecordFailure {
                since_ms: since_epoch(failure.at),
                error: failure.reason,
            }),
            job: *self.job.lock(),
        }
    }

    /// Its replicas, those that failed included.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        let rebuild = self.progress_of(Activity::Rebuild);
        let replicas = self.handle.replicas();
        let replicas = replicas.iter().map(|status| {
            let is_its = |progress: &&Progress| progress.replica.as_ref() == Some(&status.address);
            Replica {
                address: status.address.to_string(),
                mode: mode(status.mode),
                failure: failure(status),
                rebuild: rebuild.as_ref().filter(is_its).map(bytes),
            }
        });
        replicas.collect()
    }

    /// How far the rebuild is that goes on, or the comparison.
    #[must_use]
    pub fn progress_of(&self, activity: Activity) -> Option<Progress> {
        let progress = self.handle.progress();
        progress.filter(|progress| progress.activity == activity)
    }

    /// What has happened since it was opened.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.watch.tally()
    }

    /// Its snapshots, the oldest first.
    ///
    /// # Errors
    /// When no replica can be asked.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Refusal> {
        let list = |handle: VolumeHandle| async move { handle.snapshots().await };
        let snapshots = self.within(list).await?;
        Ok(snapshots.into_iter().map(snapshot).collect())
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// When there cannot be one of this name, or a replica is rebuilt.
    pub async fn take_snapshot(&self, request: SnapshotRequest) -> Result<SnapshotTaken, Refusal> {
        let labels = request.labels.into_iter().collect();
        let take =
            |handle: VolumeHandle| async move { handle.snapshot(request.name, labels).await };
        let taken = self.within(take).await?;
        tracing::info!(
            disk = self.disk,
            snapshot = taken.name,
            frozen = ?taken.frozen,
            "a snapshot of the volume was taken"
        );
        Ok(SnapshotTaken {
            name: taken.name,
            frozen_us: microseconds(taken.frozen),
        })
    }

    /// Lets go of a replica. Gives those that are left.
    ///
    /// # Errors
    /// When there is no such replica, or no other has everything.
    pub async fn remove_replica(
        &self,
        address: &spec::ReplicaAddress,
    ) -> Result<Vec<Replica>, Refusal> {
        let address = parsed(address)?;
        let remove = |handle: VolumeHandle| async move { handle.remove_replica(address).await };
        self.within(remove).await?;
        Ok(self.replicas())
    }

    /// Waits for what the volume does, as long as a client may. It goes on all the same, and has its place until it is done.
    async fn within<T, F>(&self, call: impl FnOnce(VolumeHandle) -> F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Refusal::Busy);
        };
        let call = call(self.handle.clone());
        let calling = tokio::spawn(async move {
            let _until_then = place;
            call.await
        });
        match tokio::time::timeout(DEADLINE, calling).await {
            Ok(Ok(result)) => result.map_err(|error| refusal(&error)),
            Ok(Err(error)) => Err(Refusal::HostFailed(error.to_string())),
            Err(_) => Err(Refusal::ReplicaError(format!(
                "volume {}: its replicas have not done it within {DEADLINE:?}; they may yet",
                self.handle.name()
            ))),
        }
    }
}

fn parsed(address: &spec::ReplicaAddress) -> Result<ReplicaAddress, Refusal> {
    let parsed = address.to_string().parse();
    parsed.map_err(|error| refusal(&error))
}

/// What an API client is told of what a volume did not do.
pub(crate) fn refusal(error: &VolumeError) -> Refusal {
    let told = error.to_string();
    match error {
        VolumeError::State { .. } | VolumeError::Options { .. } | VolumeError::Address { .. } => {
            Refusal::VolumeState(told)
        }
        VolumeError::NotFound {
            what: "snapshot", ..
        } => Refusal::NoSnapshot(told),
        VolumeError::NotFound { .. } => Refusal::NoReplica(told),
        VolumeError::Unreachable { .. }
        | VolumeError::Refused { .. }
        | VolumeError::NoReplica { .. }
        | VolumeError::Host { .. } => Refusal::ReplicaError(told),
    }
}

fn mode(mode: Mode) -> ReplicaMode {
    match mode {
        Mode::ReadWrite => ReplicaMode::ReadWrite,
        Mode::WriteOnly => ReplicaMode::WriteOnly,
        Mode::Failed => ReplicaMode::Failed,
    }
}

fn failure(status: &ReplicaStatus) -> Option<ReplicaFailure> {
    Some(ReplicaFailure {
        reason: reason(status),
        since_ms: since_epoch(status.failure.as_ref()?.at),
    })
}

/// In milliseconds.
fn since_epoch(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, milliseconds)
}

fn bytes(progress: &Progress) -> ByteProgress {
    ByteProgress {
        done: progress.done,
        total: progress.total,
    }
}

fn snapshot(snapshot: longhorn::Snapshot) -> Snapshot {
    Snapshot {
        name: snapshot.name,
        created: snapshot.created,
        user_created: snapshot.user_created,
        removed: snapshot.removed,
        size: snapshot.size,
        parent: snapshot.parent,
        labels: snapshot.labels.into_iter().collect(),
    }
}
