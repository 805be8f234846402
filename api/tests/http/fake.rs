//! A VM that is nothing but its state, moved on by the tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paddock_api::balloon::{Balloon, MemoryStatistics};
use paddock_api::cdrom::Cdrom;
use paddock_api::cpus::Cpus;
use paddock_api::device::{DeviceKind, DeviceState, Disk, Nic};
use paddock_api::jobs::{Job, JobHandle, JobKind, JobPhase, Jobs};
use paddock_api::journal::Journal;
use paddock_api::memory::Memory;
use paddock_api::metrics::Exposition;
use paddock_api::resource::{Action, EventKind, Vm, VmEnd, VmState};
use paddock_api::service::{AddError, Pending, Refusal, VmService};
use paddock_api::spec::{ByteSize, DiskConfig, DiskLimits, ReplicaAddress, VmConfig, VmSpec};
use paddock_api::timeline::Timeline;
use paddock_api::volume::{
    Replica, ReplicaMode, Snapshot, SnapshotRequest, SnapshotTaken, VolumeState,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

#[derive(Debug, Clone)]
pub struct Fake(Arc<Inner>);

/// Its replicas, where it is a volume, and its snapshots.
type FakeVolume = (Option<Vec<Replica>>, Vec<Snapshot>);

#[derive(Debug)]
struct Inner {
    vm: Mutex<Option<Vm>>,
    journal: Arc<Journal>,
    jobs: Jobs,
    /// The devices that are being changed, with the job that does it.
    changes: Mutex<Vec<(String, DeviceState, JobHandle)>>,
    /// How many CPUs were wanted last, and the job that changes their number.
    wanted: Mutex<Option<u64>>,
    resize: Mutex<Option<JobHandle>>,
    /// How much memory was asked for last.
    requested: Mutex<Option<u64>>,
    /// By a disk's id.
    limits: Mutex<HashMap<String, DiskLimits>>,
    sizes: Mutex<HashMap<String, u64>>,
    /// By a disk's id: its volume's replicas, where they are not those of the spec any more, and its snapshots.
    volumes: Mutex<HashMap<String, FakeVolume>>,
    /// The replica that is being added to a volume, and the job that does it.
    rebuild: Mutex<Option<(String, JobHandle)>>,
    /// What was put into a CD-ROM drive or taken out of it, by the drive's id.
    media: Mutex<HashMap<String, Option<PathBuf>>>,
    /// The guest has locked all trays.
    locked: AtomicBool,
    full: AtomicBool,
    stuck: AtomicBool,
    ending: AtomicBool,
    /// A delete needs one of these to get to its end.
    deletes: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        let journal = Arc::<Journal>::default();
        Self(Arc::new(Inner {
            vm: Mutex::default(),
            jobs: Jobs::new(Arc::clone(&journal)),
            changes: Mutex::default(),
            journal,
            wanted: Mutex::default(),
            resize: Mutex::default(),
            requested: Mutex::default(),
            limits: Mutex::default(),
            sizes: Mutex::default(),
            volumes: Mutex::default(),
            rebuild: Mutex::default(),
            media: Mutex::default(),
            locked: AtomicBool::new(false),
            full: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            deletes: Semaphore::new(1000),
        }))
    }
}

impl Fake {
    /// The VM has another state.
    pub fn is_now(&self, state: VmState) {
        self.0.vm.lock().as_mut().unwrap().state = state;
        self.0.journal.publish(EventKind::State { state });
    }

    /// The VM ends.
    pub fn ends(&self, end: VmEnd) {
        let mut vm = self.0.vm.lock();
        let vm = vm.as_mut().unwrap();
        vm.state = VmState::Ended;
        vm.end = Some(end.clone());
        self.0.journal.publish(EventKind::Ended { end });
    }

    /// The guest locks the trays of its CD-ROM drives, or unlocks them.
    pub fn lock_trays(&self, locked: bool) {
        self.0.locked.store(locked, Ordering::Release);
    }

    /// Takes no more requests.
    pub fn is_full(&self) {
        self.0.full.store(true, Ordering::Release);
    }

    /// Does not stop any more.
    pub fn is_stuck(&self) {
        self.0.stuck.store(true, Ordering::Release);
    }

    /// Makes no more VMs.
    pub fn is_ending(&self) {
        self.0.ending.store(true, Ordering::Release);
    }

    /// Deletes take until [`Self::finish_deletes`].
    pub fn hold_deletes(&self) {
        self.0.deletes.forget_permits(1000);
    }

    pub fn finish_deletes(&self) {
        self.0.deletes.add_permits(1000);
    }

    /// The oldest change of a device is done.
    pub fn finish_change(&self) {
        let (id, state, handle) = self.0.changes.lock().remove(0);
        if state == DeviceState::Removing {
            self.forget(&id);
        }
        handle.succeed();
    }

    /// The oldest change of a device fails.
    pub fn fail_change(&self, failure: &str) {
        let (id, state, handle) = self.0.changes.lock().remove(0);
        if state == DeviceState::Adding {
            self.forget(&id);
        }
        handle.fail(failure);
    }

    /// There are as many CPUs as are wanted.
    pub fn finish_resize(&self) {
        self.0.resize.lock().take().unwrap().succeed();
    }

    /// So many CPUs have come or gone.
    pub fn count_resize(&self, done: u64) {
        self.0.resize.lock().as_ref().unwrap().count(done);
    }

    /// The guest does not let go of a CPU.
    pub fn fail_resize(&self, failure: &str) {
        *self.0.wanted.lock() = None;
        self.0.resize.lock().take().unwrap().fail(failure);
    }

    fn forget(&self, id: &str) {
        let mut vm = self.0.vm.lock();
        let vm = vm.as_mut().unwrap();
        let spec = VmSpec::try_from(vm.spec.clone()).unwrap();
        vm.spec = VmConfig::from(&spec.without_device(id));
    }

    fn running_spec(&self) -> Result<VmSpec, Refusal> {
        let vm = self.0.vm.lock();
        let vm = vm.as_ref().ok_or(Refusal::NoVm)?;
        if vm.state != VmState::Running {
            return Err(Refusal::NotRunning { state: vm.state });
        }
        Ok(VmSpec::try_from(vm.spec.clone()).unwrap())
    }

    /// The state of a device, and the job that changes it.
    fn change_of(&self, id: &str) -> (DeviceState, Option<u64>) {
        let changes = self.0.changes.lock();
        let found = changes.iter().find(|(changing, ..)| changing == id);
        found.map_or((DeviceState::Present, None), |(_, state, handle)| {
            (*state, Some(handle.id()))
        })
    }

    fn add(&self, kind: DeviceKind, description: &str) -> Result<Job, AddError> {
        let spec = self.running_spec()?;
        let (spec, id) = match kind {
            DeviceKind::Disk => {
                let spec = spec.with_disk(description)?;
                let id = spec.disks.last().unwrap().id.to_string();
                (spec, id)
            }
            DeviceKind::Nic => {
                let spec = spec.with_nic(description)?;
                let id = spec.nics.last().unwrap().id.to_string();
                (spec, id)
            }
        };
        let handle = self
            .0
            .jobs
            .start(JobKind::AddDevice, &id, JobPhase::Opening, None)
            .map_err(Refusal::from)?;
        self.0.vm.lock().as_mut().unwrap().spec = VmConfig::from(&spec);
        let job = handle.job().unwrap();
        let change = (id, DeviceState::Adding, handle);
        self.0.changes.lock().push(change);
        Ok(job)
    }

    /// A disk's size: a MiB at first.
    fn size_of(&self, id: &str) -> u64 {
        self.0.sizes.lock().get(id).copied().unwrap_or(1 << 20)
    }

    fn limits_of(&self, id: &str, spec: &DiskConfig) -> DiskLimits {
        let limits = self.0.limits.lock().get(id).copied();
        limits.or(spec.limits).unwrap_or_default()
    }

    /// A disk's volume: with the replicas of its spec at first.
    fn volume_of(&self, id: &str, spec: &DiskConfig) -> Option<VolumeState> {
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
            job: rebuild.as_ref().map(|(_, job)| job.id()),
        })
    }

    fn volume(&self, id: &str) -> Result<VolumeState, Refusal> {
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

    fn open_disk(&self, id: &str) -> Result<Disk, Refusal> {
        let find = || {
            self.disks()
                .map(|disks| disks.into_iter().find(|d| d.id == id))
        };
        let id = id.to_owned();
        let Some(disk) = find()? else {
            let kind = DeviceKind::Disk;
            return Err(Refusal::NoDevice { kind, id });
        };
        match disk.size {
            Some(_) => Ok(disk),
            None => Err(Refusal::DiskClosed { id }),
        }
    }

    fn resize_one(&self, id: &str, size: Option<u64>) -> Result<Disk, Refusal> {
        let disk = self.open_disk(id)?;
        let old = disk.size.unwrap_or_default();
        let new = size.unwrap_or(2 * old);
        if new < old {
            return Err(Refusal::DiskSize("it cannot shrink".to_owned()));
        }
        if new > 1 << 40 {
            return Err(Refusal::HostFailed("the host is broken".to_owned()));
        }
        self.0.sizes.lock().insert(id.to_owned(), new);
        let size = Some(new);
        Ok(Disk { size, ..disk })
    }

    fn exchange(&self, id: &str, path: Option<PathBuf>, force: bool) -> Result<Cdrom, Refusal> {
        let state = self.read().ok_or(Refusal::NoVm)?.state;
        if !matches!(state, VmState::Running | VmState::Paused) {
            return Err(Refusal::MediumNotNow { state });
        }
        let there = self.cdroms()?.into_iter().find(|drive| drive.id == id);
        let there = there.ok_or_else(|| Refusal::NoCdrom { id: id.to_owned() })?;
        if path.as_ref().is_some_and(|path| path.ends_with("absent")) {
            return Err(Refusal::NoMedium("there is no such file".to_owned()));
        }
        if there.locked && !force {
            return Err(Refusal::TrayLocked("the guest has locked it".to_owned()));
        }
        let drive = Cdrom {
            size: path.as_ref().map(|_| 2048),
            medium: path.clone(),
            locked: false,
            ..there
        };
        self.0.media.lock().insert(id.to_owned(), path);
        Ok(drive)
    }

    /// Anything that happens.
    pub fn publish(&self, kind: EventKind) {
        self.0.journal.publish(kind);
    }
}

impl VmService for Fake {
    fn create(&self, spec: VmSpec) -> Result<Vm, Refusal> {
        let mut vm = self.0.vm.lock();
        if vm.is_some() {
            return Err(Refusal::Exists);
        }
        if self.0.ending.load(Ordering::Acquire) {
            return Err(Refusal::Ending);
        }
        let spec = VmConfig::from(&spec);
        let name = spec.name.clone();
        let last_event = self.0.journal.publish(EventKind::Created { name });
        let new = Vm {
            spec,
            state: VmState::Starting,
            end: None,
            variables: None,
            disk_failures: Vec::new(),
            timeline: Timeline {
                process_started_ms: 1_700_000_000_000,
                vm_created_us: Some(7),
                ..Timeline::default()
            },
            last_event,
        };
        Ok(vm.insert(new).clone())
    }

    fn read(&self) -> Option<Vm> {
        let last_event = self.0.journal.last();
        let vm = self.0.vm.lock().clone()?;
        Some(Vm { last_event, ..vm })
    }

    fn act(&self, action: Action) -> Result<(), Refusal> {
        let state = self.0.vm.lock().as_ref().ok_or(Refusal::NoVm)?.state;
        if !action.states().contains(&state) {
            return Err(Refusal::WrongState { action, state });
        }
        if self.0.full.load(Ordering::Acquire) {
            return Err(Refusal::Busy);
        }
        self.0.journal.publish(EventKind::Action { action });
        Ok(())
    }

    fn delete(&self) -> Pending<Result<(), Refusal>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            if inner.vm.lock().is_none() {
                return Err(Refusal::NoVm);
            }
            let _permit = inner.deletes.acquire().await;
            if inner.stuck.load(Ordering::Acquire) {
                return Err(Refusal::Stuck);
            }
            *inner.vm.lock() = None;
            inner.journal.publish(EventKind::Deleted);
            Ok(())
        })
    }

    fn disks(&self) -> Result<Vec<Disk>, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let disks = vm.spec.disks.into_iter();
        let disks = disks.map(|spec| {
            let id = spec.id.clone().unwrap();
            let (state, job) = self.change_of(&id);
            Disk {
                state,
                job,
                size: (state != DeviceState::Adding).then(|| self.size_of(&id)),
                failure: None,
                volume: self.volume_of(&id, &spec),
                limits: self.limits_of(&id, &spec),
                id,
                spec,
            }
        });
        Ok(disks.collect())
    }

    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<Disk, Refusal> {
        let disk = self.open_disk(id)?;
        self.0.limits.lock().insert(id.to_owned(), limits);
        Ok(Disk { limits, ..disk })
    }

    fn resize_disk(&self, id: &str, size: Option<u64>) -> Pending<Result<Disk, Refusal>> {
        let resized = self.resize_one(id, size);
        Box::pin(async { resized })
    }

    fn replicas(&self, id: &str) -> Result<Vec<Replica>, Refusal> {
        Ok(self.volume(id)?.replicas)
    }

    fn add_replica(&self, id: &str, address: ReplicaAddress) -> Result<Job, Refusal> {
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

    fn remove_replica(
        &self,
        id: &str,
        address: ReplicaAddress,
    ) -> Pending<Result<Vec<Replica>, Refusal>> {
        let removed = self.volume(id).and_then(|volume| {
            let mut left = volume.replicas;
            let before = left.len();
            left.retain(|one| one.address != address.to_string());
            match (before - left.len(), left.len()) {
                (0, _) => Err(Refusal::NoReplica("there is no such replica".to_owned())),
                (_, 0) => Err(Refusal::VolumeState("it is the only one".to_owned())),
                _ => Ok(left),
            }
        });
        if let Ok(left) = &removed {
            let mut volumes = self.0.volumes.lock();
            let volume = volumes.entry(id.to_owned()).or_default();
            volume.0 = Some(left.clone());
        }
        Box::pin(async { removed })
    }

    fn snapshots(&self, id: &str) -> Pending<Result<Vec<Snapshot>, Refusal>> {
        let snapshots = self.volume(id).map(|_| {
            let volumes = self.0.volumes.lock();
            volumes
                .get(id)
                .map(|(_, snapshots)| snapshots.clone())
                .unwrap_or_default()
        });
        Box::pin(async { snapshots })
    }

    fn take_snapshot(
        &self,
        id: &str,
        request: SnapshotRequest,
    ) -> Pending<Result<SnapshotTaken, Refusal>> {
        let taken = self.volume(id).and_then(|_| {
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
        });
        Box::pin(async { taken })
    }

    fn remove_snapshot(&self, id: &str, name: &str) -> Pending<Result<Job, Refusal>> {
        let removed = self.volume(id).and_then(|_| {
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
        });
        Box::pin(async { removed })
    }

    fn nics(&self) -> Result<Vec<Nic>, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let nics = vm.spec.nics.into_iter();
        let nics = nics.map(|spec| {
            let id = spec.id.clone().unwrap();
            let (state, job) = self.change_of(&id);
            Nic {
                id,
                state,
                job,
                spec,
            }
        });
        Ok(nics.collect())
    }

    fn add_device(&self, kind: DeviceKind, description: String) -> Pending<Result<Job, AddError>> {
        let this = self.clone();
        Box::pin(async move { this.add(kind, &description) })
    }

    fn remove_device(
        &self,
        kind: DeviceKind,
        id: &str,
        deadline: Duration,
    ) -> Result<Job, Refusal> {
        let spec = self.running_spec()?;
        let is_there = match kind {
            DeviceKind::Disk => spec.disks.iter().any(|disk| disk.id.as_str() == id),
            DeviceKind::Nic => spec.nics.iter().any(|nic| nic.id.as_str() == id),
        };
        let id = id.to_owned();
        if !is_there {
            return Err(Refusal::NoDevice { kind, id });
        }
        if let (_, Some(job)) = self.change_of(&id) {
            return Err(Refusal::DeviceBusy { id, job });
        }
        let (kind, phase) = (JobKind::RemoveDevice, JobPhase::WaitingForGuest);
        let handle = self.0.jobs.start(kind, &id, phase, Some(deadline))?;
        let job = handle.job().unwrap();
        let change = (id, DeviceState::Removing, handle);
        self.0.changes.lock().push(change);
        Ok(job)
    }

    fn cdroms(&self) -> Result<Vec<Cdrom>, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let media = self.0.media.lock();
        let drives = vm.spec.cdroms.into_iter().map(|spec| {
            let id = spec.id.clone().unwrap();
            let medium = media.get(&id).unwrap_or(&spec.path).clone();
            Cdrom {
                id,
                size: medium.as_ref().map(|_| 2048),
                locked: medium.is_some() && self.0.locked.load(Ordering::Acquire),
                medium,
                open: false,
                driver: false,
                spec,
            }
        });
        Ok(drives.collect())
    }

    fn insert_medium(
        &self,
        id: &str,
        path: PathBuf,
        force: bool,
    ) -> Pending<Result<Cdrom, Refusal>> {
        let answer = self.exchange(id, Some(path), force);
        Box::pin(async { answer })
    }

    fn eject_medium(&self, id: &str, force: bool) -> Pending<Result<Cdrom, Refusal>> {
        let answer = self.exchange(id, None, force);
        Box::pin(async { answer })
    }

    fn cpus(&self) -> Result<Cpus, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let cpus = vm.spec.cpus.unwrap_or_default();
        let count = cpus.count.unwrap_or(1);
        let wanted = self.0.wanted.lock().unwrap_or(count);
        let job = self.0.resize.lock().as_ref().map(JobHandle::id);
        Ok(Cpus {
            count,
            max: cpus.max.unwrap_or(count),
            wanted,
            present: if job.is_some() { count } else { wanted },
            job,
        })
    }

    fn set_cpus(&self, wanted: u64, deadline: Duration) -> Result<Job, Refusal> {
        let now = self.cpus()?;
        let state = self.read().ok_or(Refusal::NoVm)?.state;
        if !matches!(state, VmState::Running | VmState::Paused) {
            return Err(Refusal::CpusNotNow { state });
        }
        if now.max == now.count || !(1..=now.max).contains(&wanted) {
            return Err(Refusal::CpuCount("there cannot be so many".to_owned()));
        }
        if let Some(job) = now.job {
            return Err(Refusal::CpusBusy { job });
        }
        let phase = JobPhase::WaitingForGuest;
        let jobs = &self.0.jobs;
        let total = wanted.abs_diff(now.present);
        let kind = JobKind::ResizeCpus;
        let handle = jobs.start_counting(kind, "cpus", phase, Some(deadline), total)?;
        let job = handle.job().unwrap();
        *self.0.wanted.lock() = Some(wanted);
        *self.0.resize.lock() = Some(handle);
        Ok(job)
    }

    fn memory(&self) -> Result<Memory, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let memory = vm.spec.memory.unwrap_or_default();
        let size = memory.size.unwrap_or_default().bytes();
        Ok(Memory {
            size,
            max: memory.max.map_or(size, ByteSize::bytes),
            requested: self.0.requested.lock().unwrap_or(size),
            plugged: size,
            driver: false,
        })
    }

    fn set_memory(&self, requested: u64) -> Result<Memory, Refusal> {
        let now = self.memory()?;
        if self.read().is_some_and(|vm| vm.state == VmState::Ended) {
            return Err(Refusal::Ended);
        }
        if now.max == now.size || !(now.size..=now.max).contains(&requested) {
            let detail = "it lies outside".to_owned();
            return Err(Refusal::MemoryRequest(detail));
        }
        *self.0.requested.lock() = Some(requested);
        Ok(Memory { requested, ..now })
    }

    fn balloon(&self) -> Result<Balloon, Refusal> {
        let vm = self.read().ok_or(Refusal::NoVm)?;
        let balloon = vm.spec.balloon.ok_or(Refusal::NoBalloon)?;
        Ok(Balloon {
            target: balloon.size.unwrap_or_default().bytes(),
            actual: 0,
            driver: false,
            inflated_bytes: 0,
            reported_bytes: 0,
        })
    }

    fn set_balloon(&self, target: u64) -> Result<Balloon, Refusal> {
        let now = self.balloon()?;
        if target > 256 << 20 {
            let detail = "it leaves the guest nothing".to_owned();
            return Err(Refusal::BalloonTarget(detail));
        }
        let mut vm = self.0.vm.lock();
        let vm = vm.as_mut().ok_or(Refusal::NoVm)?;
        if vm.state == VmState::Ended {
            return Err(Refusal::Ended);
        }
        vm.spec.balloon.get_or_insert_default().size = Some(ByteSize::from_bytes(target));
        Ok(Balloon { target, ..now })
    }

    fn memory_statistics(&self) -> Pending<Result<MemoryStatistics, Refusal>> {
        let answer = self.balloon().and_then(|balloon| {
            if balloon.target == 0 {
                return Err(Refusal::GuestSilent("the guest is silent".to_owned()));
            }
            Ok(MemoryStatistics {
                free: Some(4096),
                ..MemoryStatistics::default()
            })
        });
        Box::pin(async { answer })
    }

    fn metrics(&self) -> Pending<Exposition> {
        let mut exposition = Exposition::default();
        if let Some(vm) = self.read() {
            let name = vm.spec.name.unwrap_or_default();
            exposition
                .gauge("fake_vm", "There is one.")
                .sample(&[("name", &name)], 1_u64);
        }
        Box::pin(async { exposition })
    }

    fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    fn journal(&self) -> &Arc<Journal> {
        &self.0.journal
    }
}
