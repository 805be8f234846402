//! A VM that is nothing but its state, moved on by the tests.

mod devices;
mod volumes;

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
use paddock_api::spec::{ByteSize, DiskLimits, ReplicaAddress, VmConfig, VmSpec};
use paddock_api::timeline::Timeline;
use paddock_api::volume::{Replica, Snapshot, SnapshotRequest, SnapshotTaken};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::volumes::FakeVolume;

#[derive(Debug, Clone)]
pub struct Fake(Arc<Inner>);

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

    fn running_spec(&self) -> Result<VmSpec, Refusal> {
        let vm = self.0.vm.lock();
        let vm = vm.as_ref().ok_or(Refusal::NoVm)?;
        if vm.state != VmState::Running {
            return Err(Refusal::NotRunning { state: vm.state });
        }
        Ok(VmSpec::try_from(vm.spec.clone()).unwrap())
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
        self.start_rebuild(id, &address)
    }

    fn remove_replica(
        &self,
        id: &str,
        address: ReplicaAddress,
    ) -> Pending<Result<Vec<Replica>, Refusal>> {
        let left = self.without_replica(id, &address);
        Box::pin(async { left })
    }

    fn snapshots(&self, id: &str) -> Pending<Result<Vec<Snapshot>, Refusal>> {
        let snapshots = self.snapshots_of(id);
        Box::pin(async { snapshots })
    }

    fn take_snapshot(
        &self,
        id: &str,
        request: SnapshotRequest,
    ) -> Pending<Result<SnapshotTaken, Refusal>> {
        let taken = self.with_snapshot(id, request);
        Box::pin(async { taken })
    }

    fn remove_snapshot(&self, id: &str, name: &str) -> Pending<Result<Job, Refusal>> {
        let removed = self.without_snapshot(id, name);
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
        self.remove(kind, id, deadline)
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
