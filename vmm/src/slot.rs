//! The place for one VM that a process has, as the API's server sees it.
//!
//! Lives on the control plane's thread: nothing here waits for the host. `paddock serve` begins with an empty place, `paddock run` with
//! one that is taken and takes no other.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paddock_api::balloon::{Balloon, MemoryStatistics};
use paddock_api::cdrom::Cdrom;
use paddock_api::cpus::Cpus;
use paddock_api::device::{DeviceKind, Disk, Nic};
use paddock_api::jobs::{Job, Jobs};
use paddock_api::journal::Journal;
use paddock_api::memory::Memory;
use paddock_api::metrics::Exposition;
use paddock_api::resource::{Action, EventKind, Vm};
use paddock_api::service::{AddError, Pending, Refusal, VmService};
use paddock_api::spec::{DiskLimits, NicConfig, ReplicaAddress, VmConfig, VmSpec};
use paddock_api::volume::{Replica, Snapshot, SnapshotRequest, SnapshotTaken};
use parking_lot::Mutex;

use crate::Error;
use crate::console::ConsoleEnds;
use crate::driver::{Driver, Held, OpenConsoles, Outcome, Refused, Request, VmHandle};
use crate::error::chain;
use crate::metrics::{self, Sampler};
use crate::volumes::DiskVolume;

mod answers;

/// How long a delete waits: disks are drained within it.
const DELETE_DEADLINE: Duration = Duration::from_secs(20);

/// How long the guest may take to tell its memory statistics.
const STATISTICS_DEADLINE: Duration = Duration::from_secs(5);

/// The place. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct VmSlot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    journal: Arc<Journal>,
    jobs: Jobs,
    /// Takes no VM any more.
    closed: AtomicBool,
    occupant: Mutex<Option<VmHandle>>,
    sampler: Sampler,
}

impl Default for Inner {
    fn default() -> Self {
        let journal = Arc::<Journal>::default();
        Self {
            jobs: Jobs::new(Arc::clone(&journal)),
            journal,
            closed: AtomicBool::new(false),
            occupant: Mutex::default(),
            sampler: Sampler::default(),
        }
    }
}

impl VmSlot {
    /// A place for this VM and no other. The driver is the caller's to run.
    #[must_use]
    pub fn holding(spec: VmSpec, consoles: OpenConsoles) -> (Self, VmHandle, Driver) {
        let this = Self::default();
        this.close();
        let (vm, driver) = this.occupant(spec, consoles);
        *this.0.occupant.lock() = Some(vm.clone());
        (this, vm, driver)
    }

    /// The VM, if there is one.
    #[must_use]
    pub fn vm(&self) -> Option<VmHandle> {
        self.0.occupant.lock().clone()
    }

    /// Takes no VM from now on: the process is about to end.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// A VM that is about to be put here.
    fn occupant(&self, spec: VmSpec, consoles: OpenConsoles) -> (VmHandle, Driver) {
        let name = spec.name.as_ref().map(ToString::to_string);
        self.0.journal.publish(EventKind::Created { name });
        let (journal, jobs) = (Arc::clone(&self.0.journal), self.0.jobs.clone());
        Driver::new(spec, consoles, journal, jobs)
    }

    fn answer(&self, vm: &VmHandle) -> Vm {
        // Before the state, so that an event is rather told twice than never.
        let last_event = self.0.journal.last();
        let status = vm.status();
        Vm {
            spec: VmConfig::from(&*vm.changes().spec()),
            state: status.state,
            end: status.end,
            variables: vm.variables().answer(),
            disk_failures: vm.disks().failures(),
            timeline: vm.meters().times.timeline(),
            last_event,
        }
    }

    /// The volume behind a disk.
    fn volume(&self, id: &str) -> Result<Arc<DiskVolume>, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let spec = vm.changes().spec();
        let known = spec.disks.iter().any(|disk| disk.id.as_str() == id);
        vm.disks().volume(id, known)
    }

    /// Has a medium inserted, or the one that is there ejected.
    fn change_medium(
        &self,
        id: &str,
        path: Option<PathBuf>,
        force: bool,
    ) -> Pending<Result<Cdrom, Refusal>> {
        let vm = self.vm().ok_or(Refusal::NoVm);
        let changing = vm.and_then(|vm| vm.media().change(id, path, force));
        Box::pin(async { Ok(answers::cdrom(&changing?.await?)) })
    }

    async fn remove(self) -> Result<(), Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let released = async {
            vm.stop().await;
            vm.released().await;
        };
        tokio::time::timeout(DELETE_DEADLINE, released)
            .await
            .map_err(|_| Refusal::Stuck)?;
        let mut occupant = self.0.occupant.lock();
        // Another client may have removed it meanwhile, and a third may have put its own here.
        if occupant.as_ref().is_some_and(|there| there.is(&vm)) {
            *occupant = None;
            self.0.journal.publish(EventKind::Deleted);
        }
        Ok(())
    }
}

impl VmService for VmSlot {
    fn create(&self, spec: VmSpec) -> Result<Vm, Refusal> {
        let mut place = self.0.occupant.lock();
        if place.is_some() {
            return Err(Refusal::Exists);
        }
        if self.0.closed.load(Ordering::Acquire) {
            return Err(Refusal::Ending);
        }
        let (occupant, driver) = self.occupant(spec, Box::new(open_consoles));
        let answer = self.answer(&occupant);
        *place = Some(occupant);
        tokio::spawn(run(driver));
        Ok(answer)
    }

    fn read(&self) -> Option<Vm> {
        let occupant = self.0.occupant.lock();
        occupant.as_ref().map(|occupant| self.answer(occupant))
    }

    fn act(&self, action: Action) -> Result<(), Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.request(Request::from(action))
            .map_err(|refused| match refused {
                Refused::WrongState { state, .. } => Refusal::WrongState { action, state },
                other => refusal(other),
            })
    }

    fn delete(&self) -> Pending<Result<(), Refusal>> {
        // A task of its own: it goes on if the client does not wait.
        let removal = tokio::spawn(self.clone().remove());
        Box::pin(async { removal.await.unwrap_or(Err(Refusal::Ending)) })
    }

    fn disks(&self) -> Result<Vec<Disk>, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let spec = vm.changes().spec();
        Ok(spec
            .disks
            .iter()
            .map(|disk| answers::disk(&vm, disk))
            .collect())
    }

    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<Disk, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let spec = vm.changes().spec();
        let found = spec.disks.iter().find(|disk| disk.id.as_str() == id);
        vm.disks().limit(id, limits, found.is_some())?;
        let (kind, id) = (DeviceKind::Disk, id.to_owned());
        let found = found.map(|disk| answers::disk(&vm, disk));
        found.ok_or(Refusal::NoDevice { kind, id })
    }

    fn resize_disk(&self, id: &str, size: Option<u64>) -> Pending<Result<Disk, Refusal>> {
        let (vm, id) = (self.vm(), id.to_owned());
        Box::pin(async move {
            let vm = vm.ok_or(Refusal::NoVm)?;
            let spec = vm.changes().spec();
            let found = spec.disks.iter().find(|disk| disk.id.as_str() == id);
            vm.disks().resize(&id, size, found.is_some()).await?;
            let kind = DeviceKind::Disk;
            let found = found.map(|disk| answers::disk(&vm, disk));
            found.ok_or(Refusal::NoDevice { kind, id })
        })
    }

    fn replicas(&self, id: &str) -> Result<Vec<Replica>, Refusal> {
        Ok(self.volume(id)?.replicas())
    }

    fn add_replica(&self, id: &str, address: ReplicaAddress) -> Result<Job, Refusal> {
        self.volume(id)?.add_replica(&address, &self.0.jobs)
    }

    fn remove_replica(
        &self,
        id: &str,
        address: ReplicaAddress,
    ) -> Pending<Result<Vec<Replica>, Refusal>> {
        let volume = self.volume(id);
        Box::pin(async move { volume?.remove_replica(&address).await })
    }

    fn snapshots(&self, id: &str) -> Pending<Result<Vec<Snapshot>, Refusal>> {
        let volume = self.volume(id);
        Box::pin(async move { volume?.snapshots().await })
    }

    fn take_snapshot(
        &self,
        id: &str,
        request: SnapshotRequest,
    ) -> Pending<Result<SnapshotTaken, Refusal>> {
        let volume = self.volume(id);
        Box::pin(async move { volume?.take_snapshot(request).await })
    }

    fn remove_snapshot(&self, id: &str, name: &str) -> Pending<Result<Job, Refusal>> {
        let (volume, name, jobs) = (self.volume(id), name.to_owned(), self.0.jobs.clone());
        Box::pin(async move { volume?.remove_snapshot(&name, &jobs).await })
    }

    fn nics(&self) -> Result<Vec<Nic>, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let spec = vm.changes().spec();
        let nics = spec.nics.iter().map(|nic| {
            let (state, job) = vm.changes().state_of(nic.id.as_str());
            Nic {
                id: nic.id.to_string(),
                state,
                job,
                spec: NicConfig::from(nic),
            }
        });
        Ok(nics.collect())
    }

    fn add_device(&self, kind: DeviceKind, description: String) -> Pending<Result<Job, AddError>> {
        let vm = self.vm();
        Box::pin(async move {
            let vm = vm.ok_or(Refusal::NoVm)?;
            let state = || vm.state();
            vm.changes().add(kind, description, state).await
        })
    }

    fn remove_device(
        &self,
        kind: DeviceKind,
        id: &str,
        deadline: Duration,
    ) -> Result<Job, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.changes().remove(kind, id, deadline, vm.state())
    }

    fn cdroms(&self) -> Result<Vec<Cdrom>, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        Ok(vm.media().drives().iter().map(answers::cdrom).collect())
    }

    fn insert_medium(
        &self,
        id: &str,
        path: PathBuf,
        force: bool,
    ) -> Pending<Result<Cdrom, Refusal>> {
        self.change_medium(id, Some(path), force)
    }

    fn eject_medium(&self, id: &str, force: bool) -> Pending<Result<Cdrom, Refusal>> {
        self.change_medium(id, None, force)
    }

    fn cpus(&self) -> Result<Cpus, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        Ok(answers::cpus(&vm.cpus().processors().status()))
    }

    fn set_cpus(&self, wanted: u64, deadline: Duration) -> Result<Job, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.cpus().resize(wanted, deadline, vm.state())
    }

    fn memory(&self) -> Result<Memory, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        Ok(answers::memory(&vm.memory().status()))
    }

    fn set_memory(&self, requested: u64) -> Result<Memory, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.request(Request::SetMemory { requested })
            .map_err(refusal)?;
        let now = answers::memory(&vm.memory().status());
        // The driver takes it in a moment.
        Ok(Memory { requested, ..now })
    }

    fn balloon(&self) -> Result<Balloon, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let balloon = vm.balloon().ok_or(Refusal::NoBalloon)?;
        Ok(answers::balloon(&balloon.status()))
    }

    fn set_balloon(&self, target: u64) -> Result<Balloon, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.request(Request::SetBalloon { target })
            .map_err(refusal)?;
        let now = self.balloon()?;
        // The driver takes it in a moment.
        Ok(Balloon { target, ..now })
    }

    fn memory_statistics(&self) -> Pending<Result<MemoryStatistics, Refusal>> {
        let vm = self.vm();
        Box::pin(async move {
            let vm = vm.ok_or(Refusal::NoVm)?;
            let balloon = vm.balloon().ok_or(Refusal::NoBalloon)?;
            let told = balloon.statistics(STATISTICS_DEADLINE).await;
            let told = told.map_err(|error| Refusal::GuestSilent(error.to_string()))?;
            Ok(answers::statistics(&told))
        })
    }

    fn metrics(&self) -> Pending<Exposition> {
        let this = self.clone();
        Box::pin(async move {
            let ram = this.vm().map(|vm| vm.meters().ram());
            let sample = this.0.sampler.sample(ram.unwrap_or_default()).await;
            let mut exposition = Exposition::default();
            metrics::describe_process(&mut exposition, sample.as_ref());
            // As it is by now.
            if let Some(vm) = this.vm() {
                metrics::describe_vm(&mut exposition, &vm);
            }
            exposition
        })
    }

    fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    fn journal(&self) -> &Arc<Journal> {
        &self.0.journal
    }
}

fn refusal(refused: Refused) -> Refusal {
    match refused {
        Refused::NoBalloon => Refusal::NoBalloon,
        Refused::Balloon(error) => Refusal::BalloonTarget(error.to_string()),
        Refused::Memory(error) => Refusal::MemoryRequest(error.to_string()),
        Refused::Busy => Refusal::Busy,
        Refused::WrongState { .. } => Refusal::Ended,
    }
}

/// Runs a VM whose end nobody waits for; its status and an event tell it.
async fn run(driver: Driver) {
    match driver.run().await {
        Ok(Outcome::PoweredOff) => tracing::info!("the guest powered off"),
        Ok(Outcome::ResetRequested) => tracing::info!("the guest asked for a reset"),
        Ok(Outcome::Stopped) => tracing::info!("the VM was stopped"),
        Ok(Outcome::Crashed(report)) => {
            let report = report.to_string();
            tracing::error!("the guest crashed: {}", report.trim_end());
        }
        Err(error) => tracing::error!(error = chain(&error), "the VM failed"),
    }
}

/// The consoles of a VM that has no terminal: one that names it was refused.
fn open_consoles(spec: &VmSpec, held: &Held) -> Result<Arc<ConsoleEnds>, Error> {
    Ok(Arc::new(ConsoleEnds::open(&spec.console, Some(held))?))
}

#[cfg(test)]
mod tests;
