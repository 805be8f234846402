//! Changes of a volume that take long: a replica is added, a snapshot removed. Each is a job, one at a time of each volume, and goes on whoever waits for it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::jobs::{Job, JobHandle, JobKind, JobPhase, Jobs};
use paddock_api::service::Refusal;
use paddock_api::spec;
use paddock_storage::longhorn::{
    Activity, Mode, ReplicaAddress, ReplicaStatus, VolumeError, VolumeHandle,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{DiskVolume, parsed, refusal};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// What the progress of a purge counts.
const PER_CENT: u64 = 100;

/// The only place for a job of a volume. Free again when this is dropped.
#[derive(Debug)]
struct Place(Arc<DiskVolume>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.job.lock() = None;
    }
}

impl DiskVolume {
    /// Starts to add a replica, as a task of the present runtime.
    ///
    /// # Errors
    /// When it is one of the volume's already, or the volume is being changed or compared.
    pub fn add_replica(
        self: &Arc<Self>,
        address: &spec::ReplicaAddress,
        jobs: &Jobs,
    ) -> Result<Job, Refusal> {
        let address = parsed(address)?;
        let state = |problem: &str| {
            let name = self.handle.name();
            Err(Refusal::VolumeState(format!("volume {name}: {problem}")))
        };
        if let Some(problem) = in_the_way(&self.handle.replicas(), &address) {
            return state(&problem);
        }
        if self.progress_of(Activity::Resync).is_some() {
            return state("its replicas are being compared; wait for that");
        }
        let (place, job) = self.begin(JobKind::AddReplica, JobPhase::Opening, 0, jobs)?;
        let answer = job.job().ok_or(Refusal::Ending)?;
        tokio::spawn(add(place, address, job));
        Ok(answer)
    }

    /// Marks a snapshot as removed, and starts to have the replicas give back what it takes, as a task of the present runtime.
    ///
    /// # Errors
    /// When there is no such snapshot, or the volume is being changed or compared.
    pub async fn remove_snapshot(
        self: &Arc<Self>,
        name: &str,
        jobs: &Jobs,
    ) -> Result<Job, Refusal> {
        let list = |handle: VolumeHandle| async move { handle.snapshots().await };
        let snapshots = self.within(list).await?;
        if !snapshots.iter().any(|snapshot| snapshot.name == name) {
            let told = format!("volume {} has no such snapshot", self.handle.name());
            return Err(Refusal::NoSnapshot(told));
        }
        let (kind, phase) = (JobKind::RemoveSnapshot, JobPhase::Purging);
        let (place, job) = self.begin(kind, phase, PER_CENT, jobs)?;
        let name = name.to_owned();
        let remove = |handle: VolumeHandle| async move { handle.remove_snapshot(name).await };
        let removed = self.within(remove);
        if let Err(refused) = removed.await {
            drop(place);
            job.fail(refused.to_string());
            return Err(refused);
        }
        let answer = job.job().ok_or(Refusal::Ending)?;
        tokio::spawn(purge(place, job));
        Ok(answer)
    }

    /// Begins a job, if there is none.
    fn begin(
        self: &Arc<Self>,
        kind: JobKind,
        phase: JobPhase,
        total: u64,
        jobs: &Jobs,
    ) -> Result<(Place, JobHandle), Refusal> {
        let mut present = self.job.lock();
        if let Some(job) = *present {
            let id = self.disk.clone();
            return Err(Refusal::VolumeBusy { id, job });
        }
        let job = jobs.start_counting(kind, &self.disk, phase, None, total)?;
        *present = Some(job.id());
        Ok((Place(Arc::clone(self)), job))
    }

    /// Whether it has a replica that is good for this.
    fn has(&self, address: &ReplicaAddress, mode: Mode) -> bool {
        let replicas = self.handle.replicas();
        let mut replicas = replicas.iter();
        replicas.any(|replica| replica.address == *address && replica.mode == mode)
    }
}

/// Why a replica cannot be added to these.
pub(super) fn in_the_way(replicas: &[ReplicaStatus], address: &ReplicaAddress) -> Option<String> {
    let most = spec::Volume::MAX_REPLICAS;
    if replicas.iter().any(|replica| replica.address == *address) {
        let problem = format!("it has a replica {address} already; remove that first");
        return Some(problem);
    }
    (replicas.len() >= most).then(|| {
        format!("it has {most} replicas, those that failed included, and no more may be; remove one first")
    })
}

/// Adds a replica, to the end of the job.
async fn add(place: Place, address: ReplicaAddress, job: JobHandle) {
    let volume = Arc::clone(&place.0);
    let mut adding = pin!(volume.handle.add_replica(address.clone()));
    let mut cancelled = pin!(job.cancelled());
    let mut unwanted = false;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let added = loop {
        tokio::select! {
            added = &mut adding => break added,
            () = &mut cancelled, if !unwanted => unwanted = true,
            _ = looks.tick() => tell(&volume, &address, &job),
        }
        if unwanted {
            // Not before it is one of the volume's replicas, nor when it has become complete: then it stays.
            let _ = volume.handle.cancel_rebuild(address.clone()).await;
        }
    };
    if added.is_err() && volume.has(&address, Mode::Failed) {
        // As if it had never been added. Where the volume is closed, nobody is left to be told.
        let _ = volume.handle.remove_replica(address.clone()).await;
    }
    drop(place);
    match added {
        Ok(rebuilt) => {
            tracing::info!(
                disk = volume.disk, replica = %address, took = ?rebuilt.took, frozen = ?rebuilt.frozen,
                "a replica was added"
            );
            job.succeed();
        }
        Err(_) if unwanted => job.cancel(),
        Err(error) => {
            tracing::error!(disk = volume.disk, replica = %address, %error, "a replica was not added");
            job.fail(refusal(&error).to_string());
        }
    }
}

/// Tells how far the rebuild of a replica is.
fn tell(volume: &DiskVolume, address: &ReplicaAddress, job: &JobHandle) {
    if let Some(progress) = volume.progress_of(Activity::Rebuild) {
        if progress.replica.as_ref() == Some(address) && progress.total > 0 {
            if job.job().is_some_and(|job| job.progress.is_none()) {
                job.advance(JobPhase::Rebuilding, true);
                job.expect(progress.total);
            }
            job.count(progress.done);
        }
    }
}

/// Has the replicas give back what is to go, to the end of the job. Cancelled, they go on by themselves.
async fn purge(place: Place, job: JobHandle) {
    let volume = Arc::clone(&place.0);
    let purging = async {
        volume.handle.start_purge().await?;
        loop {
            let purge = volume.handle.purge().await?;
            if !purge.running {
                return Ok::<(), VolumeError>(());
            }
            job.count(purge.percent.into());
            tokio::time::sleep(LOOK).await;
        }
    };
    let purged = tokio::select! {
        purged = purging => Some(purged),
        () = job.cancelled() => None,
    };
    drop(place);
    match purged {
        Some(Ok(())) => job.succeed(),
        Some(Err(error)) => job.fail(format!(
            "the snapshot is marked as removed; giving back its space failed: {}",
            refusal(&error)
        )),
        None => job.cancel(),
    }
}
