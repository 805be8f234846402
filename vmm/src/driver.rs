//! The state driver: the one task that owns the VM and every transition of it.
//!
//! ```text
//!              build, start          power-off, stop, crash
//!  Starting ─────────────────▶ Running ─────────────────────▶ Ended
//!     ▲                           │
//!     └──────── Resetting ◀───────┘ reset (by the guest or a request)
//! ```
//!
//! Runs on the control plane's runtime. Others hold a [`VmHandle`]: they read the watched state and enqueue requests, and one that
//! is illegal in the present state is refused at once. What takes long (building, tearing down) runs on a blocking
//! thread, so the control plane never stands still.

use std::fmt;
use std::sync::Arc;

use paddock_api::spec::{OnReset, VmSpec};
use paddock_devices::legacy::PowerEvents;
use paddock_devices::throttle::Throttle;
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::machine::resources::{Consoles, Resources};
use crate::machine::{Machine, MachineEvents};
use crate::vcpu::report::CrashReport;

/// Requests that wait for the driver.
const REQUESTS: usize = 16;
/// Events of one life of the machine. The first that ends it decides, so the rest may be lost.
const EVENTS: usize = 16;

/// Where the VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Being built.
    Starting,
    /// The guest runs.
    Running,
    /// Being torn down and built anew.
    Resetting,
    /// Over.
    Ended,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Resetting => "resetting",
            Self::Ended => "ended",
        })
    }
}

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Presses the power button; what that does is the guest's choice.
    PowerButton,
    /// Resets the machine.
    Reset,
    /// Ends the VM without asking the guest.
    Stop,
}

impl Request {
    /// Whether it may be asked in `state`.
    fn is_legal(self, state: VmState) -> bool {
        match self {
            Self::PowerButton | Self::Reset => state == VmState::Running,
            Self::Stop => state != VmState::Ended,
        }
    }
}

/// A request that cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not in this state.
    #[error("{request:?} is not possible while the VM is {state}")]
    WrongState {
        /// What was asked.
        request: Request,
        /// The state it was asked in.
        state: VmState,
    },
    /// Too many requests wait already.
    #[error("too many requests are waiting for the VM")]
    Busy,
}

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

/// The way to a VM from other tasks and threads.
#[derive(Debug, Clone)]
pub struct VmHandle {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<VmState>,
}

impl VmHandle {
    /// Enqueues a request.
    ///
    /// # Errors
    /// When it is illegal in the present state, or too many wait.
    pub fn request(&self, request: Request) -> Result<(), Refused> {
        let state = self.state();
        if !request.is_legal(state) {
            return Err(Refused::WrongState { request, state });
        }
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Busy,
                mpsc::error::TrySendError::Closed(_) => Refused::WrongState {
                    request,
                    state: VmState::Ended,
                },
            })
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> VmState {
        *self.state.borrow()
    }

    /// The state to watch.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<VmState> {
        self.state.clone()
    }
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
struct Events(mpsc::Sender<Event>);

impl Events {
    fn send(&self, event: Event) {
        // Full means that the machine's fate is decided already.
        let _ = self.0.try_send(event);
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

impl MachineEvents for Events {
    fn crashed(&self, report: CrashReport) {
        self.send(Event::Crashed(Box::new(report)));
    }

    fn power(&self) -> Arc<dyn PowerEvents> {
        Arc::new(self.clone())
    }
}

/// Owns a VM. Nothing happens until [`run`](Self::run).
#[derive(Debug)]
pub struct Driver {
    spec: Arc<VmSpec>,
    consoles: Consoles,
    requests: mpsc::Receiver<Request>,
    state: watch::Sender<VmState>,
    /// For what is said of every reset: a guest can do nothing but reset.
    log: Throttle,
}

/// Why one life of the machine ended.
enum Turn {
    Again,
    End(Outcome),
}

impl Driver {
    /// A driver for `spec`, and the way to its VM.
    #[must_use]
    pub fn new(spec: VmSpec, consoles: Consoles) -> (VmHandle, Self) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (state, watch) = watch::channel(VmState::Starting);
        let driver = Self {
            spec: Arc::new(spec),
            consoles,
            requests,
            state,
            log: Throttle::new(),
        };
        let handle = VmHandle {
            requests: sender,
            state: watch,
        };
        (handle, driver)
    }

    /// Builds the VM, runs it to its end, and tears it down.
    ///
    /// # Errors
    /// When it cannot be built, at the start or after a reset.
    pub async fn run(mut self) -> Result<Outcome, Error> {
        let result = self.live().await;
        self.state.send_replace(VmState::Ended);
        result
    }

    async fn live(&mut self) -> Result<Outcome, Error> {
        let (spec, consoles) = (Arc::clone(&self.spec), self.consoles.clone());
        let opening = blocking(move || Resources::open(&spec, consoles));
        let Some(resources) = self.unless_stopped(opening).await? else {
            return Ok(Outcome::Stopped);
        };
        let mut resources = resources?;
        let mut tell = true;
        loop {
            let (sender, mut events) = mpsc::channel(EVENTS);
            let events_in = Events(sender);
            let spec = Arc::clone(&self.spec);
            let building = blocking(move || Machine::build(&spec, resources, &events_in));
            let Some(machine) = self.unless_stopped(building).await? else {
                return Ok(Outcome::Stopped);
            };
            let machine = machine?;
            machine.start();
            self.state.send_replace(VmState::Running);
            if tell {
                tracing::info!("guest started");
            }
            match self.run_machine(&machine, &mut events).await {
                Turn::Again => {
                    self.state.send_replace(VmState::Resetting);
                    let held_back = self.log.pass();
                    tell = held_back.is_some();
                    if let Some(held_back) = held_back {
                        tracing::info!(held_back, "guest resets");
                    }
                    let recycling = blocking(move || machine.recycle());
                    let Some(recycled) = self.unless_stopped(recycling).await? else {
                        return Ok(Outcome::Stopped);
                    };
                    resources = recycled;
                }
                Turn::End(outcome) => {
                    blocking(move || machine.stop()).await?;
                    return Ok(outcome);
                }
            }
        }
    }

    /// Waits for a step that may take as long as a dead disk does; `None` when the VM is stopped meanwhile. The step is left behind:
    /// it holds nothing that the end of the process does not free.
    async fn unless_stopped<T>(
        &mut self,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Error> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                result = &mut step => return result.map(Some),
                request = self.requests.recv() => match request {
                    Some(Request::Stop) | None => return Ok(None),
                    // Made while the guest ran, and overtaken by its reset.
                    Some(Request::PowerButton | Request::Reset) => {}
                },
            }
        }
    }

    /// Serves requests and events until this life of the machine is over.
    async fn run_machine(&mut self, machine: &Machine, events: &mut mpsc::Receiver<Event>) -> Turn {
        loop {
            tokio::select! {
                Some(event) = events.recv() => match event {
                    Event::PowerOff => return Turn::End(Outcome::PoweredOff),
                    Event::Reset => return self.on_reset(),
                    Event::Crashed(report) => return Turn::End(Outcome::Crashed(report)),
                },
                request = self.requests.recv() => match request {
                    Some(Request::PowerButton) => machine.press_power_button(),
                    Some(Request::Reset) => return Turn::Again,
                    // All handles gone: nobody is left to stop it otherwise.
                    Some(Request::Stop) | None => return Turn::End(Outcome::Stopped),
                },
            }
        }
    }

    fn on_reset(&self) -> Turn {
        match self.spec.on_reset {
            OnReset::Reboot => Turn::Again,
            OnReset::Exit => Turn::End(Outcome::ResetRequested),
        }
    }
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Host {
            action: "running a blocking step",
            source: std::io::Error::other(error),
        })
}

#[cfg(test)]
mod tests {
    use super::{Consoles, Driver, Refused, Request, VmHandle, VmState};
    use crate::console::ConsoleEnd;
    use tokio::sync::{mpsc, watch};

    #[test]
    fn a_step_that_never_ends_can_be_stopped() {
        let spec = r#"{"boot": {"kernel": "/absent"}}"#;
        let consoles = Consoles {
            serial: ConsoleEnd::nowhere(),
            hvc0: None,
        };
        let spec = paddock_api::spec::VmSpec::from_json(spec).unwrap();
        let (vm, mut driver) = Driver::new(spec, consoles);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        vm.request(Request::Stop).unwrap();
        let never = std::future::pending::<Result<(), crate::Error>>();
        let ended = runtime.block_on(driver.unless_stopped(never)).unwrap();
        assert_eq!(ended, None);
        let done = std::future::ready(Ok(3));
        let ended = runtime.block_on(driver.unless_stopped(done)).unwrap();
        assert_eq!(ended, Some(3));
    }

    fn handle(state: VmState) -> (VmHandle, mpsc::Receiver<Request>, watch::Sender<VmState>) {
        let (requests, receiver) = mpsc::channel(1);
        let (sender, state) = watch::channel(state);
        (VmHandle { requests, state }, receiver, sender)
    }

    #[test]
    fn illegal_requests_are_refused_when_they_are_made() {
        let (vm, _receiver, state) = handle(VmState::Starting);
        let refused = vm.request(Request::PowerButton).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "PowerButton is not possible while the VM is starting"
        );
        state.send_replace(VmState::Running);
        assert_eq!(vm.request(Request::PowerButton), Ok(()));
        assert_eq!(vm.request(Request::Reset), Err(Refused::Busy));
        state.send_replace(VmState::Ended);
        assert!(vm.request(Request::Stop).is_err());
    }

    #[test]
    fn a_vm_whose_driver_is_gone_has_ended() {
        let (vm, receiver, _state) = handle(VmState::Running);
        drop(receiver);
        assert_eq!(
            vm.request(Request::Stop),
            Err(Refused::WrongState {
                request: Request::Stop,
                state: VmState::Ended
            })
        );
    }
}
