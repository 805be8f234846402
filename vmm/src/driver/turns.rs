//! The lives of the machine, from one reset to the next: what takes long runs on a blocking thread, and requests are served meanwhile.

use std::sync::Arc;

use paddock_api::resource::VmState;
use paddock_api::spec::{OnReset, VmSpec};
use paddock_devices::throttle::Throttle;
use tokio::sync::{Notify, mpsc};

use super::events::{EVENTS, Event, Events};
use super::release::Held;
use super::{Changing, Life, OpenConsoles, Outcome, Request};
use crate::Error;
use crate::balloon::Balloon;
use crate::cdrom::Cdroms;
use crate::disks::Disks;
use crate::growth::Growth;
use crate::machine::Machine;
use crate::machine::resources::{Outside, Resources};
use crate::metrics::Meters;
use crate::processors::Processors;
use crate::variables::Variables;

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

/// The lives of the machine, from one reset to the next.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) spec: Arc<VmSpec>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) life: Life,
    pub(super) balloon: Option<Balloon>,
    pub(super) growth: Growth,
    pub(super) cdroms: Cdroms,
    pub(super) disks: Disks,
    pub(super) processors: Processors,
    pub(super) variables: Variables,
    pub(super) meters: Arc<Meters>,
    pub(super) held: Held,
    /// The guest is to stand still, also when it has reset: a pause that was taken holds until somebody resumes.
    pub(super) paused: bool,
    /// For what is said of every reset: a guest can do nothing but reset.
    pub(super) log: Throttle,
}

impl Turns {
    pub(super) async fn live(
        &mut self,
        consoles: OpenConsoles,
        changing: &mut Changing,
    ) -> Result<Outcome, Error> {
        let (spec, held) = (Arc::clone(&self.spec), self.held.clone());
        let balloon = self.balloon.as_ref();
        let balloon = balloon.map(|balloon| balloon.handle().clone());
        let growth = self.growth.handle().cloned();
        let (processors, meters) = (self.processors.clone(), Arc::clone(&self.meters));
        let (cdroms, disks) = (self.cdroms.clone(), self.disks.clone());
        let opening = self.blocking(move || {
            let outside = Outside {
                consoles: consoles(&spec, &held)?,
                balloon,
                growth,
                cdroms,
                disks,
            };
            Resources::open(&spec, outside, processors, meters)
        });
        let Some(resources) = self.unless_stopped(opening, changing).await? else {
            return Ok(Outcome::Stopped);
        };
        let mut resources = resources?;
        if let Some(store) = resources.variables() {
            self.variables.attach(store);
        }
        let (mut first, mut tell) = (true, true);
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
            if std::mem::take(&mut first) {
                // A guest can do nothing but reset, and each time this would take long.
                crate::heap::trim();
                crate::code::trim();
                crate::stack::trim();
            }
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
                    self.disks.resume();
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
        let disks = self.disks.clone();
        loop {
            tokio::select! {
                () = disks.stopped() => if self.life.state() == VmState::Running {
                    return Turn::Pause;
                },
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
    pub(super) fn blocking<T, W>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, Error>> + use<T, W>
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
