//! The replicas and the snapshots of a VM's volumes, of which nothing is stored.

use paddock_api::jobs::{Job, JobKind, JobPhase};
use paddock_api::service::Refusal;
use paddock_api::spec::{DiskConfig, ReplicaAddress};
use paddock_api::volume::{
    Replica, ReplicaMode, Snapshot, SnapshotRequest, SnapshotTaken, VolumeState,
};

use super::Fake;

/// Its replicas, where it is a volume, and its snapshots.
pub(super) type FakeVolume = (Option<Vec<Replica>>, Vec<Snapshot>);

impl Fake {
    /// A disk's volume: with the replicas of its spec at first.
    pub(super) fn volume_of(&self, id: &str, spec: &DiskConfig) -> Option<VolumeState> {
        let replica = |address: &String| Replica {
            address: address.clone(),
            mode: ReplicaMode::ReadWrite,
            failure: None,
            rebuild: None,
        };
        let first = spec.volume.as_ref()?.replicas.iter().map(replica).collect();
        let volumes = self.0.volumes.lock();
        let now = volumes.get(id).and_then(|(replicas, _)| replicas.clone());
        let rebuild = self.0.rebuild.lock();
        Some(VolumeState {
            replicas: now.unwrap_or(first),
            comparison: None,
            record_failure: None,
            job: rebuild.as_ref().map(|(_, job)| job.id()),
        })
    }

    pub(super) fn volume(&self, id: &str) -> Result<VolumeState, Refusal> {
        let none = || Refusal::NoVolume { id: id.to_owned() };
        self.open_disk(id)?.volume.ok_or_else(none)
    }

    /// The replica that is added has everything.
    pub fn finish_rebuild(&self, id: &str) {
        let mut replicas = self.volume(id).unwrap().replicas;
        let (address, job) = self.0.rebuild.lock().take().unwrap();
        replicas.push(Replica {
            address,
            mode: ReplicaMode::ReadWrite,
            failure: None,
            rebuild: None,
        });
        self.0.volumes.lock().entry(id.to_owned()).or_default().0 = Some(replicas);
        job.succeed();
    }

    /// Begins to add a replica, which [`Self::finish_rebuild`] ends.
    pub(super) fn start_rebuild(&self, id: &str, address: &ReplicaAddress) -> Result<Job, Refusal> {
        let volume = self.volume(id)?;
        let address = address.to_string();
        if volume.replicas.iter().any(|one| one.address == address) {
            let told = format!("it has a replica {address} already");
            return Err(Refusal::VolumeState(told));
        }
        if let Some(job) = volume.job {
            let id = id.to_owned();
            return Err(Refusal::VolumeBusy { id, job });
        }
        let (kind, phase) = (JobKind::AddReplica, JobPhase::Rebuilding);
        let handle = self.0.jobs.start_counting(kind, id, phase, None, 4096)?;
        let job = handle.job().unwrap();
        *self.0.rebuild.lock() = Some((address, handle));
        Ok(job)
    }

    /// Lets go of a replica, and tells the others.
    pub(super) fn without_replica(
        &self,
        id: &str,
        address: &ReplicaAddress,
    ) -> Result<Vec<Replica>, Refusal> {
        let mut left = self.volume(id)?.replicas;
        let before = left.len();
        left.retain(|one| one.address != address.to_string());
        match (before - left.len(), left.len()) {
            (0, _) => return Err(Refusal::NoReplica("there is no such replica".to_owned())),
            (_, 0) => return Err(Refusal::VolumeState("it is the only one".to_owned())),
            _ => {}
        }
        let mut volumes = self.0.volumes.lock();
        volumes.entry(id.to_owned()).or_default().0 = Some(left.clone());
        Ok(left)
    }

    pub(super) fn snapshots_of(&self, id: &str) -> Result<Vec<Snapshot>, Refusal> {
        self.volume(id)?;
        let volumes = self.0.volumes.lock();
        let snapshots = volumes.get(id).map(|(_, snapshots)| snapshots.clone());
        Ok(snapshots.unwrap_or_default())
    }

    pub(super) fn with_snapshot(
        &self,
        id: &str,
        request: SnapshotRequest,
    ) -> Result<SnapshotTaken, Refusal> {
        self.volume(id)?;
        let mut volumes = self.0.volumes.lock();
        let (_, snapshots) = volumes.entry(id.to_owned()).or_default();
        let name = request.name.unwrap_or_else(|| "made-up".to_owned());
        if snapshots.iter().any(|snapshot| snapshot.name == name) {
            let told = format!("it has a snapshot {name} already");
            return Err(Refusal::VolumeState(told));
        }
        snapshots.push(Snapshot {
            name: name.clone(),
            created: "2026-11-22T19:00:00Z".to_owned(),
            user_created: true,
            removed: false,
            size: 4096,
            parent: snapshots.last().map(|below| below.name.clone()),
            labels: request.labels,
        });
        let frozen_us = 7;
        Ok(SnapshotTaken { name, frozen_us })
    }

    /// Marks a snapshot as removed, by a job that is done at once.
    pub(super) fn without_snapshot(&self, id: &str, name: &str) -> Result<Job, Refusal> {
        self.volume(id)?;
        let mut volumes = self.0.volumes.lock();
        let (_, snapshots) = volumes.entry(id.to_owned()).or_default();
        let found = snapshots.iter_mut().find(|one| one.name == name);
        let told = || Refusal::NoSnapshot("there is no such snapshot".to_owned());
        found.ok_or_else(told)?.removed = true;
        let (kind, phase) = (JobKind::RemoveSnapshot, JobPhase::Purging);
        let handle = self.0.jobs.start(kind, id, phase, None)?;
        let job = handle.job().unwrap();
        handle.succeed();
        Ok(job)
    }
}
