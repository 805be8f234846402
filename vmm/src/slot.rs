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
use paddock_api::spec::{self, CdromConfig, DiskConfig, DiskLimits, NicConfig, VmConfig, VmSpec};
use parking_lot::Mutex;

use crate::Error;
use crate::balloon::{BalloonStatus, Statistics};
use crate::cdrom;
use crate::console::ConsoleEnds;
use crate::driver::{Driver, Held, OpenConsoles, Outcome, Refused, Request, VmHandle};
use crate::error::chain;
use crate::growth::MemoryStatus;
use crate::metrics::{self, Sampler};
use crate::processors::ProcessorsStatus;

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

    /// Has a medium inserted, or the one that is there ejected.
    fn change_medium(
        &self,
        id: &str,
        path: Option<PathBuf>,
        force: bool,
    ) -> Pending<Result<Cdrom, Refusal>> {
        let vm = self.vm().ok_or(Refusal::NoVm);
        let changing = vm.and_then(|vm| vm.media().change(id, path, force));
        Box::pin(async { Ok(cdrom_answer(&changing?.await?)) })
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
            .map(|disk| disk_answer(&vm, disk))
            .collect())
    }

    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<Disk, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let spec = vm.changes().spec();
        let found = spec.disks.iter().find(|disk| disk.id.as_str() == id);
        vm.disks().limit(id, limits, found.is_some())?;
        let (kind, id) = (DeviceKind::Disk, id.to_owned());
        let found = found.map(|disk| disk_answer(&vm, disk));
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
            let found = found.map(|disk| disk_answer(&vm, disk));
            found.ok_or(Refusal::NoDevice { kind, id })
        })
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
        Ok(vm.media().drives().iter().map(cdrom_answer).collect())
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
        Ok(cpus_answer(&vm.cpus().processors().status()))
    }

    fn set_cpus(&self, wanted: u64, deadline: Duration) -> Result<Job, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.cpus().resize(wanted, deadline, vm.state())
    }

    fn memory(&self) -> Result<Memory, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        Ok(memory_answer(&vm.memory().status()))
    }

    fn set_memory(&self, requested: u64) -> Result<Memory, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        vm.request(Request::SetMemory { requested })
            .map_err(refusal)?;
        let now = memory_answer(&vm.memory().status());
        // The driver takes it in a moment.
        Ok(Memory { requested, ..now })
    }

    fn balloon(&self) -> Result<Balloon, Refusal> {
        let vm = self.vm().ok_or(Refusal::NoVm)?;
        let balloon = vm.balloon().ok_or(Refusal::NoBalloon)?;
        Ok(balloon_answer(&balloon.status()))
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
            Ok(statistics_answer(&told))
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

fn disk_answer(vm: &VmHandle, disk: &spec::Disk) -> Disk {
    let id = disk.id.as_str();
    let (state, job) = vm.changes().state_of(id);
    let open = vm.disks().find(id);
    Disk {
        id: id.to_owned(),
        state,
        job,
        size: open.as_ref().map(|open| open.backend().size()),
        limits: open.as_ref().map_or(disk.limits, |open| open.limits()),
        failure: open.and_then(|open| open.failure()),
        spec: DiskConfig::from(disk),
    }
}

fn cdrom_answer(drive: &cdrom::Cdrom) -> Cdrom {
    let status = drive.handle().status();
    Cdrom {
        id: drive.id().to_owned(),
        medium: status.medium.map(PathBuf::from),
        size: status.size,
        open: status.open,
        locked: status.locked,
        driver: status.driver,
        spec: CdromConfig::from(drive.spec()),
    }
}

fn cpus_answer(status: &ProcessorsStatus) -> Cpus {
    Cpus {
        count: status.count.into(),
        max: status.max.into(),
        wanted: status.wanted.into(),
        present: status.present as u64,
        job: status.job,
    }
}

fn memory_answer(status: &MemoryStatus) -> Memory {
    Memory {
        size: status.size,
        max: status.max,
        requested: status.requested,
        plugged: status.plugged,
        driver: status.driver,
    }
}

fn balloon_answer(status: &BalloonStatus) -> Balloon {
    Balloon {
        target: status.target,
        actual: status.actual,
        driver: status.driver,
        inflated_bytes: status.counters.inflated_bytes,
        reported_bytes: status.counters.reported_bytes,
    }
}

fn statistics_answer(told: &Statistics) -> MemoryStatistics {
    MemoryStatistics {
        total: told.total,
        free: told.free,
        available: told.available,
        disk_caches: told.disk_caches,
        swap_in: told.swap_in,
        swap_out: told.swap_out,
        major_faults: told.major_faults,
        minor_faults: told.minor_faults,
        oom_kills: told.oom_kills,
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
mod tests {
    use std::path::Path;

    use paddock_api::journal::Delivery;
    use paddock_api::metrics::Snapshot;
    use paddock_api::resource::{EndReason, VmState};
    use serde_json::json;

    use super::*;

    /// A VM that cannot be built, with or without KVM.
    fn spec(serial: &Path) -> VmSpec {
        let spec = json!({"name": "web", "boot": {"kernel": "/absent"}, "console": {"serial": {"file": serial}}});
        VmSpec::from_json(&spec.to_string()).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let result = runtime.block_on(future);
        runtime.shutdown_background();
        result
    }

    #[test]
    fn one_vm_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        block_on(async {
            let slot = VmSlot::default();
            assert_eq!(slot.read(), None);
            assert_eq!(slot.act(Action::Reset), Err(Refusal::NoVm));
            assert_eq!(slot.delete().await, Err(Refusal::NoVm));

            let vm = slot.create(spec(&log)).unwrap();
            assert_eq!((vm.state, vm.last_event), (VmState::Starting, 1));
            assert_eq!(vm.spec.name.as_deref(), Some("web"));
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
            let refused = Refusal::WrongState {
                action: Action::Nmi,
                state: VmState::Starting,
            };
            assert_eq!(slot.act(Action::Nmi), Err(refused));

            slot.vm().unwrap().ended().await;
            let vm = slot.read().unwrap();
            assert_eq!((vm.state, vm.last_event), (VmState::Ended, 2));
            assert_eq!(vm.end.unwrap().reason, EndReason::Failed);
            assert!(log.exists(), "consoles are opened first");
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));

            assert_eq!(slot.delete().await, Ok(()));
            assert_eq!(slot.read(), None);
            slot.create(spec(&log)).unwrap();
            slot.close();
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
            assert_eq!(slot.delete().await, Ok(()));
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Ending));
        });
    }

    #[test]
    fn a_console_that_cannot_be_had_is_the_vms_end_with_its_place() {
        block_on(async {
            let slot = VmSlot::default();
            let mut follower = slot.journal().follow(Some(0));
            slot.create(spec(Path::new("/absent/log"))).unwrap();
            slot.vm().unwrap().ended().await;
            let end = slot.read().unwrap().end.unwrap();
            assert_eq!(end.pointer.as_deref(), Some("/console/serial"));
            let detail = end.detail.clone().unwrap();
            assert!(
                detail.starts_with("console output to /absent/log: No such file"),
                "{detail}"
            );
            slot.delete().await.unwrap();
            let name = Some("web".to_owned());
            for expected in [
                EventKind::Created { name },
                EventKind::Ended { end },
                EventKind::Deleted,
            ] {
                let event = follower.next().await.unwrap();
                assert!(
                    matches!(&event, Delivery::Event(event) if event.kind == expected),
                    "{event:?}, not {expected:?}"
                );
            }
        });
    }

    #[test]
    fn a_delete_goes_on_if_nobody_waits_and_two_are_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        block_on(async {
            let slot = VmSlot::default();
            slot.create(spec(&log)).unwrap();
            drop(slot.delete());
            let (one, other) = tokio::join!(slot.delete(), slot.delete());
            assert_eq!((one, other), (Ok(()), Ok(())));
            assert_eq!(slot.read(), None);
            // Created, ended, deleted: once each.
            assert_eq!(slot.journal().last(), 3);
        });
    }

    #[test]
    fn metrics_are_there_in_every_state() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        block_on(async {
            let slot = VmSlot::default();
            let read = || async {
                let text = slot.metrics().await.into_text();
                Snapshot::parse(&text).unwrap()
            };
            let version = [("version", env!("CARGO_PKG_VERSION"))];
            let none = read().await;
            assert_eq!(none.value("paddock_build_info", &version), Some(1.0));
            assert!(none.value("paddock_process_resident_memory_bytes", &[]) > Some(1e6));
            assert_eq!(none.value("paddock_vm_resets_total", &[]), None);

            slot.create(spec(&log)).unwrap();
            let starting = read().await;
            assert_eq!(
                starting.value("paddock_vm_info", &[("name", "web")]),
                Some(1.0)
            );
            assert_eq!(starting.value("paddock_vm_resets_total", &[]), Some(0.0));
            let created = [("step", "vm_created")];
            assert!(starting.value("paddock_boot_timeline_seconds", &created) > Some(0.0));
            slot.vm().unwrap().ended().await;
            let ended = read().await;
            let state = |state| ended.value("paddock_vm_state", &[("state", state)]);
            assert_eq!((state("ended"), state("running")), (Some(1.0), Some(0.0)));
            let exits = [("vcpu", "0"), ("kind", "mmio-read")];
            assert_eq!(ended.value("paddock_vcpu_exits_total", &exits), Some(0.0));

            slot.delete().await.unwrap();
            assert_eq!(read().await.value("paddock_vm_resets_total", &[]), None);
        });
    }

    #[test]
    fn the_timeline_begins_with_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        block_on(async {
            let slot = VmSlot::default();
            let first = slot.create(spec(&log)).unwrap().timeline;
            assert!(first.vm_created_us.is_some() && first.machine_built_us.is_none());
            slot.delete().await.unwrap();
            let second = slot.create(spec(&log)).unwrap().timeline;
            assert!(second.vm_created_us > first.vm_created_us);
            assert_eq!(second.process_started_ms, first.process_started_ms);
            slot.delete().await.unwrap();
        });
    }

    #[test]
    fn a_place_that_is_held_takes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        block_on(async {
            let (slot, vm, driver) = VmSlot::holding(spec(&log), Box::new(open_consoles));
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Exists));
            let deleted = slot.delete();
            let (outcome, deleted) = tokio::join!(driver.run(), deleted);
            assert!(matches!(outcome, Ok(Outcome::Stopped) | Err(_)));
            assert_eq!((deleted, vm.state()), (Ok(()), VmState::Ended));
            assert_eq!(slot.create(spec(&log)), Err(Refusal::Ending));
        });
    }
}
