//! The state driver: the one task that owns the VM and every transition of it.
//!
//! ```text
//!              build, start          power-off, stop, crash
//!  Starting ─────────────────▶ Running ────────────────────▶ Stopping ──▶ Ended
//!     ▲                           │
//!     └──────── Resetting ◀─────┬─┘ reset (by the guest or a request)
//!                               │ ▲
//!                        pause  ▼ │  resume
//!                              Paused
//! ```
//!
//! Runs on the control plane's runtime. Others hold a [`VmHandle`]: they read the watched state and enqueue requests, and one that
//! is illegal in the present state is refused at once. What takes long (building, tearing down) runs on a blocking
//! thread, so the control plane never stands still.

mod changes;
mod handle;
mod inventory;
mod media;
mod opening;
mod plugging;
mod release;
mod resizing;

use std::fmt;
use std::sync::Arc;

use paddock_api::jobs::{Jobs, MAX_RUNNING};
use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
pub use paddock_api::resource::VmState;
use paddock_api::spec::{OnReset, VmSpec};
use paddock_devices::cpu_hotplug::CpuEvents;
use paddock_devices::legacy::PowerEvents;
use paddock_devices::pci::hotplug::SlotEvents;
use paddock_devices::throttle::Throttle;
use tokio::sync::{Notify, mpsc, watch};

pub use changes::Changes;
pub use handle::{Refused, Request, Status, VmHandle};
use inventory::Inventory;
use media::Media;
pub use media::MediaChanges;
use opening::Opening;
use plugging::Plugging;
pub use release::{Held, Released};
pub use resizing::CpuChanges;
use resizing::Resizing;

use crate::Error;
use crate::balloon::Balloon;
use crate::cdrom::Cdroms;
use crate::console::ConsoleEnds;
use crate::growth::Growth;
use crate::machine::resources::Resources;
use crate::machine::{Machine, MachineEvents};
use crate::metrics::Meters;
use crate::processors::Processors;
use crate::variables::Variables;
use crate::vcpu::report::CrashReport;

/// Requests that wait for the driver.
const REQUESTS: usize = 16;
/// Events of one life of the machine. The first that ends it decides, so the rest may be lost.
const EVENTS: usize = 16;

/// How a VM ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, and the spec says that this is the end.
    ResetRequested,
    /// Someone asked for the end.
    Stopped,
    /// The guest cannot go on.
    Crashed(Box<CrashReport>),
}

/// What the machine tells the driver.
#[derive(Debug)]
enum Event {
    PowerOff,
    Reset,
    Crashed(Box<CrashReport>),
}

/// Leaves events for the driver, from vCPU threads.
#[derive(Debug, Clone)]
struct Events {
    sender: mpsc::Sender<Event>,
    /// The guest let go of a device or a CPU; which one, the machine knows. Never lost, as an event may be.
    released: Arc<Notify>,
}

impl Events {
    fn send(&self, event: Event) {
        // Full means that the machine's fate is decided already.
        let _ = self.sender.try_send(event);
    }
}

impl PowerEvents for Events {
    fn power_off(&self) {
        self.send(Event::PowerOff);
    }

    fn reset(&self) {
        self.send(Event::Reset);
    }
}

impl SlotEvents for Events {
    fn slot_released(&self) {
        self.released.notify_one();
    }
}

impl CpuEvents for Events {
    fn cpu_released(&self) {
        self.released.notify_one();
    }
}

impl MachineEvents for Events {
    fn crashed(&self, report: CrashReport) {
        self.send(Event::Crashed(Box::new(report)));
    }

    fn power(&self) -> Arc<dyn PowerEvents> {
        Arc::new(self.clone())
    }

    fn slots(&self) -> Arc<dyn SlotEvents> {
        Arc::new(self.clone())
    }

    fn cpus(&self) -> Arc<dyn CpuEvents> {
        Arc::new(self.clone())
    }
}

/// Opens the outer ends of a VM's consoles; called on a blocking thread. What stays open longer than the VM keeps a [`Held`].
pub type OpenConsoles = Box<dyn FnOnce(&VmSpec, &Held) -> Result<Arc<ConsoleEnds>, Error> + Send>;

/// Owns a VM. Nothing happens until [`run`](Self::run).
pub struct Driver {
    consoles: OpenConsoles,
    turns: Turns,
    changing: Changing,
}

/// What changes while the machine runs.
#[derive(Debug)]
struct Changing {
    plugging: Plugging,
    resizing: Resizing,
    media: Media,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driver").field(&self.turns).finish()
    }
}

/// What others see of the VM's life.
#[derive(Debug)]
struct Life {
    status: watch::Sender<Status>,
    journal: Arc<Journal>,
}

impl Life {
    /// The VM has another state.
    fn set(&self, state: VmState) {
        self.status.send_modify(|status| status.state = state);
        self.journal.publish(EventKind::State { state });
    }

    fn state(&self) -> VmState {
        self.status.borrow().state
    }

    /// It is over.
    fn end(&self, result: &Result<Outcome, Error>) {
        let end = handle::end_of(result);
        self.status.send_replace(Status {
            state: VmState::Ended,
            end: Some(end.clone()),
        });
        self.journal.publish(EventKind::Ended { end });
    }
}

/// Why one life of the machine ended.
enum Fate {
    Again,
    End(Outcome),
}

/// Why the machine is not served any more.
enum Turn {
    Pause,
    Resume,
    Over(Fate),
}

impl Driver {
    /// A driver for `spec`, and the way to its VM. Events go to `journal`.
    #[must_use]
    pub fn new(
        spec: VmSpec,
        consoles: OpenConsoles,
        journal: Arc<Journal>,
        jobs: Jobs,
    ) -> (VmHandle, Self) {
        let spec = Arc::new(spec);
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (status, watch) = watch::channel(Status {
            state: VmState::Starting,
            end: None,
        });
        let (held, released) = Held::new();
        let opening = Opening::new(held.clone());
        let inventory = Inventory::new(Arc::clone(&spec));
        let (to_driver, changes) = mpsc::channel(MAX_RUNNING);
        let plugging = Plugging::new(inventory.clone(), changes, opening.clone(), held.clone());
        let changes = Changes {
            inventory,
            jobs,
            to_driver,
        };
        let processors = Processors::new(&spec);
        let (to_driver, resizes) = mpsc::channel(1);
        let cpus = CpuChanges {
            processors: processors.clone(),
            jobs: changes.jobs.clone(),
            to_driver,
        };
        let cdroms = Cdroms::new(&spec);
        let (to_driver, requests_for_media) = mpsc::channel(REQUESTS);
        let media = MediaChanges {
            drives: cdroms.clone(),
            status: watch.clone(),
            to_driver,
        };
        let changing = Changing {
            plugging,
            resizing: Resizing::new(processors.clone(), resizes),
            media: Media::new(
                requests_for_media,
                Arc::clone(&journal),
                opening,
                held.clone(),
            ),
        };
        let (balloon, growth) = (Balloon::new(&spec), Growth::new(&spec));
        let meters = Arc::new(Meters::new(&spec));
        let variables = Variables::new(Arc::clone(&journal));
        let handle = VmHandle {
            requests: sender,
            variables: variables.clone(),
            balloon: balloon.clone(),
            growth: growth.clone(),
            media,
            changes,
            cpus,
            status: watch,
            released,
            journal: Arc::clone(&journal),
            meters: Arc::clone(&meters),
        };
        let turns = Turns {
            spec,
            requests,
            life: Life { status, journal },
            balloon,
            growth,
            cdroms,
            processors,
            variables,
            meters,
            held,
            paused: false,
            log: Throttle::new(),
        };
        let driver = Self {
            consoles,
            turns,
            changing,
        };
        (handle, driver)
    }

    /// Builds the VM, runs it to its end, and tears it down.
    ///
    /// # Errors
    /// When it cannot be built, at the start or after a reset.
    pub async fn run(mut self) -> Result<Outcome, Error> {
        let result = self.turns.live(self.consoles, &mut self.changing).await;
        // Jobs that the end overtakes have failed before it is told.
        drop(self.changing);
        self.turns.processors.forget_job();
        // Nobody waits for a host that does not close a file.
        let media = self.turns.cdroms.empty();
        drop(self.turns.blocking(move || drop(media)));
        self.turns.life.end(&result);
        result
    }
}

/// The lives of the machine, from one reset to the next.
#[derive(Debug)]
struct Turns {
    spec: Arc<VmSpec>,
    requests: mpsc::Receiver<Request>,
    life: Life,
    balloon: Option<Balloon>,
    growth: Growth,
    cdroms: Cdroms,
    processors: Processors,
    variables: Variables,
    meters: Arc<Meters>,
    held: Held,
    /// The guest is to stand still, also when it has reset: a pause that was taken holds until somebody resumes.
    paused: bool,
    /// For what is said of every reset: a guest can do nothing but reset.
    log: Throttle,
}

impl Turns {
    async fn live(
        &mut self,
        consoles: OpenConsoles,
        changing: &mut Changing,
    ) -> Result<Outcome, Error> {
        let (spec, held) = (Arc::clone(&self.spec), self.held.clone());
        let balloon = self.balloon.as_ref();
        let balloon = balloon.map(|balloon| balloon.handle().clone());
        let growth = self.growth.handle().cloned();
        let (processors, meters) = (self.processors.clone(), Arc::clone(&self.meters));
        let cdroms = self.cdroms.clone();
        let opening = self.blocking(move || {
            let consoles = consoles(&spec, &held)?;
            Resources::open(
                &spec, consoles, balloon, growth, &cdroms, processors, meters,
            )
        });
        let Some(resources) = self.unless_stopped(opening, changing).await? else {
            return Ok(Outcome::Stopped);
        };
        let mut resources = resources?;
        if let Some(store) = resources.variables() {
            self.variables.attach(store);
        }
        let mut tell = true;
        loop {
            let (sender, mut events) = mpsc::channel(EVENTS);
            let released = Arc::new(Notify::new());
            let events_in = Events {
                sender,
                released: Arc::clone(&released),
            };
            let spec = Arc::clone(&self.spec);
            let building = self.blocking(move || Machine::build(&spec, resources, &events_in));
            let Some(machine) = self.unless_stopped(building, changing).await? else {
                return Ok(Outcome::Stopped);
            };
            let mut machine = machine?;
            self.meters.times.machine_built.set();
            changing.plugging.resume(&machine);
            if self.paused {
                machine = self.pause(machine).await?;
            } else {
                machine.start();
                self.life.set(VmState::Running);
            }
            crate::heap::trim();
            if tell {
                tracing::info!("guest started");
            }
            let fate;
            (machine, fate) = self
                .run_machine(machine, &mut events, &released, changing)
                .await?;
            match fate {
                Fate::Again => {
                    changing.resizing.reset();
                    self.meters.reset();
                    self.life.set(VmState::Resetting);
                    let held_back = self.log.pass();
                    tell = held_back.is_some();
                    if let Some(held_back) = held_back {
                        tracing::info!(held_back, "guest resets");
                    }
                    let recycling = self.blocking(move || machine.recycle());
                    let Some(recycled) = self.unless_stopped(recycling, changing).await? else {
                        return Ok(Outcome::Stopped);
                    };
                    resources = recycled;
                    // Until here the guest still ran.
                    self.meters.times.forget_guest();
                    changing.plugging.reset(&mut resources);
                    while changing.plugging.is_closing() {
                        if self.is_stopped_meanwhile(changing).await {
                            return Ok(Outcome::Stopped);
                        }
                    }
                }
                Fate::End(outcome) => {
                    self.life.set(VmState::Stopping);
                    self.blocking(move || machine.stop()).await?;
                    return Ok(outcome);
                }
            }
        }
    }

    /// Waits for a step that may take as long as a dead disk does; `None` when the VM is stopped meanwhile. The step is left behind:
    /// what it holds is released when it is done, or by the end of the process.
    async fn unless_stopped<T>(
        &mut self,
        step: impl Future<Output = Result<T, Error>>,
        changing: &mut Changing,
    ) -> Result<Option<T>, Error> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                result = &mut step => return result.map(Some),
                is_stopped = self.is_stopped_meanwhile(changing) => if is_stopped {
                    return Ok(None);
                },
            }
        }
    }

    /// While there is no machine, serves what comes next; whether that was to stop. Nothing is lost when the wait is given up.
    async fn is_stopped_meanwhile(&mut self, changing: &mut Changing) -> bool {
        let request = tokio::select! {
            () = changing.plugging.advance_without_machine() => return false,
            next = changing.media.next() => {
                changing.media.apply(next);
                return false;
            }
            request = self.requests.recv() => request,
        };
        match request {
            Some(Request::Stop) | None => return true,
            // Made while the guest ran, and overtaken by its reset.
            Some(Request::PowerButton | Request::Reset | Request::Nmi) => {}
            Some(Request::Pause) => self.paused = true,
            Some(Request::Resume) => self.paused = false,
            Some(Request::SetBalloon { target }) => self.set_balloon(target),
            Some(Request::SetMemory { requested }) => self.growth.set(requested),
        }
        false
    }

    /// Serves the machine until this life of it is over, through pauses.
    async fn run_machine(
        &mut self,
        mut machine: Machine,
        events: &mut mpsc::Receiver<Event>,
        released: &Notify,
        changing: &mut Changing,
    ) -> Result<(Machine, Fate), Error> {
        loop {
            match self.serve(&mut machine, events, released, changing).await {
                Turn::Pause => {
                    self.paused = true;
                    machine = self.pause(machine).await?;
                    tracing::info!("guest paused");
                }
                Turn::Resume => {
                    self.paused = false;
                    machine.start();
                    self.life.set(VmState::Running);
                    tracing::info!("guest resumed");
                }
                Turn::Over(fate) => return Ok((machine, fate)),
            }
        }
    }

    /// Has the guest stand still, if it does not yet, with its variables on disk, and tells so.
    async fn pause(&self, machine: Machine) -> Result<Machine, Error> {
        // A vCPU in the middle of a device's reset may take a while, and so may the disk.
        let pausing = self.blocking(move || {
            machine.pause();
            machine
        });
        let machine = pausing.await?;
        self.life.set(VmState::Paused);
        Ok(machine)
    }

    /// Serves requests and events until the guest is to stand still or go on, or this life of the machine is over.
    async fn serve(
        &mut self,
        machine: &mut Machine,
        events: &mut mpsc::Receiver<Event>,
        released: &Notify,
        changing: &mut Changing,
    ) -> Turn {
        let Changing {
            plugging,
            resizing,
            media,
        } = changing;
        let over = |outcome| Turn::Over(Fate::End(outcome));
        loop {
            tokio::select! {
                Some(event) = events.recv() => match event {
                    Event::PowerOff => return over(Outcome::PoweredOff),
                    Event::Reset => return Turn::Over(self.on_reset()),
                    Event::Crashed(report) => return over(Outcome::Crashed(report)),
                },
                request = self.requests.recv() => match request {
                    Some(Request::PowerButton) => machine.press_power_button(),
                    Some(Request::Nmi) => machine.inject_nmi(),
                    Some(Request::Reset) => return Turn::Over(Fate::Again),
                    // Asked for twice, before the first was done, it has nothing left to do.
                    Some(Request::Pause) if self.life.state() == VmState::Running => return Turn::Pause,
                    Some(Request::Resume) if self.life.state() == VmState::Paused => return Turn::Resume,
                    Some(Request::Pause | Request::Resume) => {}
                    Some(Request::SetBalloon { target }) => self.set_balloon(target),
                    Some(Request::SetMemory { requested }) => self.growth.set(requested),
                    // All handles gone: nobody is left to stop it otherwise.
                    Some(Request::Stop) | None => return over(Outcome::Stopped),
                },
                () = released.notified() => {
                    plugging.released(machine);
                    resizing.released(machine);
                }
                next = plugging.next() => plugging.apply(next, machine),
                next = resizing.next() => resizing.apply(next, machine),
                next = media.next() => media.apply(next),
            }
        }
    }

    fn set_balloon(&self, target: u64) {
        if let Some(balloon) = &self.balloon {
            balloon.set_target(target);
        }
    }

    fn on_reset(&self) -> Fate {
        match self.spec.on_reset {
            OnReset::Reboot => Fate::Again,
            OnReset::Exit => Fate::End(Outcome::ResetRequested),
        }
    }

    /// Runs what may block on a thread of its own. If nobody waits for the result any more, it is dropped there, and whatever it holds
    /// counts as held until then.
    fn blocking<T, W>(&self, work: W) -> impl Future<Output = Result<T, Error>> + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        struct Kept<T> {
            value: T,
            _held: Held,
        }
        let held = self.held.clone();
        let step = tokio::task::spawn_blocking(move || Kept {
            value: work(),
            _held: held,
        });
        async {
            let kept = step.await.map_err(|error| Error::Host {
                action: "running a blocking step",
                source: std::io::Error::other(error),
            })?;
            Ok(kept.value)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use paddock_api::journal::Delivery;
    use paddock_api::resource::EndReason;

    use super::*;

    fn driver(consoles: OpenConsoles) -> (VmHandle, Driver) {
        let spec = VmSpec::from_json(r#"{"boot": {"kernel": "/absent"}}"#).unwrap();
        let journal = Arc::<Journal>::default();
        let jobs = Jobs::new(Arc::clone(&journal));
        Driver::new(spec, consoles, journal, jobs)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        let result = runtime.block_on(future);
        runtime.shutdown_background();
        result
    }

    #[test]
    fn a_step_that_never_ends_can_be_stopped_and_is_held_until_it_does() {
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let (vm, driver) = driver(Box::new(move |_, _| {
            let _ = wait.recv();
            Ok(Arc::new(ConsoleEnds::nowhere()))
        }));
        block_on(async {
            vm.request(Request::Stop).unwrap();
            let outcome = driver.run().await.unwrap();
            assert!(matches!(outcome, Outcome::Stopped));
            assert_eq!(vm.status().end.unwrap().reason, EndReason::Stopped);
            let soon = Duration::from_millis(20);
            let released = tokio::time::timeout(soon, vm.released()).await;
            assert!(released.is_err(), "the step has not ended");
            drop(go_on);
            vm.released().await;
        });
    }

    #[test]
    fn a_vm_that_cannot_be_built_says_so_to_all() {
        let (vm, driver) = driver(Box::new(|_, _| {
            Err(Error::part("/console/serial", std::io::Error::other("why")))
        }));
        block_on(async {
            let mut follower = vm.journal.follow(Some(0));
            let error = driver.run().await.unwrap_err();
            assert_eq!(error.to_string(), "/console/serial");
            let status = vm.status();
            assert_eq!(status.state, VmState::Ended);
            let end = status.end.unwrap();
            assert_eq!(end.pointer.as_deref(), Some("/console/serial"));
            let event = follower.next().await;
            assert!(
                matches!(&event, Some(Delivery::Event(event)) if event.kind == EventKind::Ended { end: end.clone() }),
                "{event:?}"
            );
            vm.released().await;
        });
    }
}
