//! The way to a VM: what can be asked of it, how it is, and how it ended.

use std::sync::Arc;

use paddock_api::journal::Journal;
use paddock_api::resource::{Action, EndReason, EventKind, VmEnd, VmState};
use paddock_devices::virtio::balloon::BalloonError;
use tokio::sync::{mpsc, watch};

use super::Outcome;
use super::changes::Changes;
use super::media::MediaChanges;
use super::release::Released;
use super::resizing::CpuChanges;
use crate::Error;
use crate::balloon::Balloon;
use crate::disks::Disks;
use crate::error::chain;
use crate::growth::{Growth, GrowthError};
use crate::metrics::Meters;
use crate::variables::Variables;

/// What can be asked of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Presses the power button; what that does is the guest's choice.
    PowerButton,
    /// Resets the machine.
    Reset,
    /// Gives every vCPU a non-maskable interrupt.
    Nmi,
    /// Stops the vCPUs where they are.
    Pause,
    /// Lets them go on.
    Resume,
    /// Ends the VM without asking the guest.
    Stop,
    /// Asks the guest for so much of its memory, from now on and after a reset as well.
    SetBalloon {
        /// Bytes: a multiple of 4096, less than the guest's memory.
        target: u64,
    },
    /// Asks the guest to have so much memory, from now on and after a reset as well.
    SetMemory {
        /// Bytes: from what the VM started with to what it may grow to, in whole blocks.
        requested: u64,
    },
}

impl Request {
    /// Whether it may be asked in `state`.
    fn is_legal(self, state: VmState) -> bool {
        match self.action() {
            Some(action) => action.states().contains(&state),
            None => state != VmState::Ended,
        }
    }

    /// As the API's clients know it; a stop is not an action.
    fn action(self) -> Option<Action> {
        match self {
            Self::PowerButton => Some(Action::PowerButton),
            Self::Reset => Some(Action::Reset),
            Self::Nmi => Some(Action::Nmi),
            Self::Pause => Some(Action::Pause),
            Self::Resume => Some(Action::Resume),
            Self::Stop | Self::SetBalloon { .. } | Self::SetMemory { .. } => None,
        }
    }
}

impl From<Action> for Request {
    fn from(action: Action) -> Self {
        match action {
            Action::PowerButton => Self::PowerButton,
            Action::Reset => Self::Reset,
            Action::Nmi => Self::Nmi,
            Action::Pause => Self::Pause,
            Action::Resume => Self::Resume,
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
    /// The VM was made without a balloon.
    #[error("the VM has no balloon; its spec must ask for one when it is created")]
    NoBalloon,
    /// The balloon cannot be so large.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The memory cannot be so large or so small.
    #[error(transparent)]
    Memory(#[from] GrowthError),
    /// Too many requests wait already.
    #[error("too many requests are waiting for the VM")]
    Busy,
}

/// How a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: VmState,
    /// How it ended, once it has.
    pub end: Option<VmEnd>,
}

/// The way to a VM from other tasks and threads.
#[derive(Debug, Clone)]
pub struct VmHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) released: Released,
    pub(super) changes: Changes,
    pub(super) cpus: CpuChanges,
    pub(super) balloon: Option<Balloon>,
    pub(super) growth: Growth,
    pub(super) variables: Variables,
    pub(super) disks: Disks,
    pub(super) media: MediaChanges,
    pub(super) journal: Arc<Journal>,
    pub(super) meters: Arc<Meters>,
}

impl VmHandle {
    /// Enqueues a request.
    ///
    /// # Errors
    /// When it is illegal in the present state or for this VM, or too many wait.
    pub fn request(&self, request: Request) -> Result<(), Refused> {
        let state = self.state();
        if !request.is_legal(state) {
            return Err(Refused::WrongState { request, state });
        }
        match request {
            Request::SetBalloon { target } => {
                let balloon = self.balloon.as_ref().ok_or(Refused::NoBalloon)?;
                balloon.check_target(target)?;
            }
            Request::SetMemory { requested } => self.growth.check(requested)?,
            _ => {}
        }
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Busy,
                mpsc::error::TrySendError::Closed(_) => Refused::WrongState {
                    request,
                    state: VmState::Ended,
                },
            })?;
        if let Some(action) = request.action() {
            self.journal.publish(EventKind::Action { action });
        }
        Ok(())
    }

    /// Ends the VM without asking the guest, however many requests wait; one that has ended is left as it is.
    pub async fn stop(&self) {
        // Fails if the driver is gone, and with it the VM.
        let _ = self.requests.send(Request::Stop).await;
    }

    /// The present state.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.status.borrow().state
    }

    /// The present state, and the end.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The state to watch.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The VM's balloon, if it has one: its size and the guest's memory statistics.
    #[must_use]
    pub fn balloon(&self) -> Option<&Balloon> {
        self.balloon.as_ref()
    }

    /// The VM's disks: how they are, and the way to resize them.
    #[must_use]
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// The VM's CD-ROM drives, and the way to change their media.
    #[must_use]
    pub fn media(&self) -> &MediaChanges {
        &self.media
    }

    /// The VM's memory: how much it has, and may have.
    #[must_use]
    pub fn memory(&self) -> &Growth {
        &self.growth
    }

    /// The VM's CPUs: how many it has, and may have, and the way to have more or fewer.
    #[must_use]
    pub fn cpus(&self) -> &CpuChanges {
        &self.cpus
    }

    /// The file of the variables of the VM's firmware, if it has one.
    #[must_use]
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// What the VM counts, and when it came how far.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The way to the VM's devices.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Returns when the VM has ended. Something of it may still be held.
    pub async fn ended(&self) {
        let mut status = self.watch();
        // Fails if the driver is gone, and with it the VM.
        let _ = status.wait_for(|s| s.state == VmState::Ended).await;
    }

    /// Returns when the VM has ended and nothing of it is held any more.
    pub async fn released(&self) {
        self.released.clone().wait().await;
    }

    /// Whether both lead to the same VM.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }
}

/// The end of a VM as the API's clients see it.
pub(super) fn end_of(result: &Result<Outcome, Error>) -> VmEnd {
    match result {
        Ok(Outcome::PoweredOff) => VmEnd::new(EndReason::PoweredOff),
        Ok(Outcome::ResetRequested) => VmEnd::new(EndReason::Reset),
        Ok(Outcome::Stopped) => VmEnd::new(EndReason::Stopped),
        Ok(Outcome::Crashed(report)) => VmEnd {
            detail: Some(report.to_string().trim_end().to_owned()),
            ..VmEnd::new(EndReason::Crashed)
        },
        Err(error) => {
            // Without the pointer, which has a place of its own.
            let cause = error.at_pointer().unwrap_or(error);
            VmEnd {
                detail: Some(chain(cause)),
                pointer: error.pointer().map(ToOwned::to_owned),
                ..VmEnd::new(EndReason::Failed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use paddock_api::jobs::Jobs;
    use paddock_api::spec::VmSpec;

    use super::super::inventory::Inventory;
    use super::super::release::Held;
    use super::*;
    use crate::cdrom::Cdroms;
    use crate::processors::Processors;

    /// What stands behind a handle.
    struct Ends {
        requests: mpsc::Receiver<Request>,
        status: watch::Sender<Status>,
        _held: Held,
    }

    fn handle(state: VmState) -> (VmHandle, Ends) {
        let (requests, receiver) = mpsc::channel(1);
        let (sender, status) = watch::channel(Status { state, end: None });
        let (held, released) = Held::new();
        let spec = VmSpec::from_json(r#"{"boot": {"kernel": "/k"}}"#).unwrap();
        let cpus = CpuChanges {
            processors: Processors::new(&spec),
            jobs: Jobs::new(Arc::default()),
            to_driver: mpsc::channel(1).0,
        };
        let media = MediaChanges {
            drives: Cdroms::new(&spec),
            status: status.clone(),
            to_driver: mpsc::channel(1).0,
        };
        let handle = VmHandle {
            requests,
            cpus,
            status,
            released,
            variables: Variables::new(Arc::default()),
            disks: Disks::nowhere(),
            journal: Arc::default(),
            meters: Arc::new(Meters::new(&spec)),
            growth: Growth::new(&spec),
            media,
            changes: Changes {
                inventory: Inventory::new(Arc::new(spec)),
                jobs: Jobs::new(Arc::default()),
                to_driver: mpsc::channel(1).0,
            },
            balloon: None,
        };
        let ends = Ends {
            requests: receiver,
            status: sender,
            _held: held,
        };
        (handle, ends)
    }

    #[test]
    fn illegal_requests_are_refused_when_they_are_made() {
        let (vm, ends) = handle(VmState::Starting);
        let refused = vm.request(Request::PowerButton).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "PowerButton is not possible while the VM is starting"
        );
        ends.status.send_modify(|s| s.state = VmState::Running);
        assert_eq!(vm.request(Request::PowerButton), Ok(()));
        assert_eq!(vm.request(Request::Reset), Err(Refused::Busy));
        ends.status.send_modify(|s| s.state = VmState::Stopping);
        assert!(vm.request(Request::Nmi).is_err());
        ends.status.send_modify(|s| s.state = VmState::Ended);
        assert!(vm.request(Request::Stop).is_err());
        assert_eq!(vm.journal.last(), 1, "what was refused is no event");
    }

    #[test]
    fn memory_that_cannot_be_is_refused_when_it_is_asked_for() {
        let (vm, _ends) = handle(VmState::Running);
        let size = 512 << 20;
        assert_eq!(
            vm.request(Request::SetMemory { requested: 1 << 30 }),
            Err(Refused::Memory(GrowthError::Fixed { size }))
        );
    }

    #[test]
    fn a_vm_whose_driver_is_gone_has_ended() {
        let (vm, ends) = handle(VmState::Running);
        drop(ends);
        assert_eq!(
            vm.request(Request::Stop),
            Err(Refused::WrongState {
                request: Request::Stop,
                state: VmState::Ended
            })
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            vm.stop().await;
            vm.ended().await;
            vm.released().await;
        });
    }

    #[test]
    fn the_last_holder_releases() {
        let (vm, mut ends) = handle(VmState::Running);
        let left_behind = ends._held.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let soon = std::time::Duration::from_millis(10);
        runtime.block_on(async {
            vm.stop().await;
            assert_eq!(ends.requests.recv().await, Some(Request::Stop));
            drop(ends);
            let released = tokio::time::timeout(soon, vm.released()).await;
            assert!(released.is_err(), "a step that was left behind holds it");
            drop(left_behind);
            vm.released().await;
        });
    }

    #[test]
    fn ends_say_where_and_why() {
        let missing = std::io::Error::other("no such file");
        let end = end_of(&Err(Error::part("/disks/0", missing)));
        assert_eq!(end.reason, EndReason::Failed);
        assert_eq!(end.pointer.as_deref(), Some("/disks/0"));
        assert_eq!(end.detail.as_deref(), Some("no such file"));
        let end = end_of(&Err(Error::TooManyDevices(30)));
        assert_eq!(end.pointer, None);
        assert!(end.detail.unwrap().contains("30 places"));
        let end = end_of(&Ok(Outcome::PoweredOff));
        assert_eq!(end, VmEnd::new(EndReason::PoweredOff));
    }
}
