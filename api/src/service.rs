//! What the server needs of whoever runs the VM. The `vmm` crate's state driver stands behind it; tests have a fake.
//!
//! Called on the control plane's thread. Nothing here may block.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::journal::Journal;
use crate::resource::{Action, Vm, VmState};
use crate::spec::VmSpec;

/// An answer that takes a while.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The one VM that a process may have.
pub trait VmService: fmt::Debug + Send + Sync + 'static {
    /// Makes a VM and starts it. Returns at once: how the start goes is told by its state and by events.
    ///
    /// # Errors
    /// When there is a VM already, or the process is about to end.
    fn create(&self, spec: VmSpec) -> Result<Vm, Refusal>;

    /// The VM as it is, if there is one.
    fn read(&self) -> Option<Vm>;

    /// Enqueues an action.
    ///
    /// # Errors
    /// When there is no VM, it cannot be done in its state, or too many requests wait.
    fn act(&self, action: Action) -> Result<(), Refusal>;

    /// Stops the VM without asking the guest, and forgets it once all its resources are free. Goes on also if nobody waits for
    /// the answer any more.
    ///
    /// # Errors
    /// When there is no VM, or it does not stop in time; then it is still there.
    fn delete(&self) -> Pending<Result<(), Refusal>>;

    /// Where events are kept.
    fn journal(&self) -> &Arc<Journal>;
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A process has one VM.
    #[error(
        "there is a VM already; a process has one, and DELETE /api/v1/vm makes room for another"
    )]
    Exists,
    /// There is none.
    #[error("there is no VM; PUT /api/v1/vm makes one")]
    NoVm,
    /// Not in this state.
    #[error("{action} is possible only while the VM is running; it is {state}")]
    WrongState {
        /// What was asked for.
        action: Action,
        /// The state.
        state: VmState,
    },
    /// Too many requests wait already.
    #[error("too many requests are waiting for the VM; try again later")]
    Busy,
    /// The process is about to end.
    #[error("the process is about to end")]
    Ending,
    /// The VM should have stopped by now.
    #[error(
        "the VM does not stop: a disk or device of the host does not answer; it is still being tried"
    )]
    Stuck,
}
