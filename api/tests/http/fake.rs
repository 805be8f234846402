//! A VM that is nothing but its state, moved on by the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paddock_api::journal::Journal;
use paddock_api::resource::{Action, EventKind, Vm, VmEnd, VmState};
use paddock_api::service::{Pending, Refusal, VmService};
use paddock_api::spec::{VmConfig, VmSpec};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

#[derive(Debug, Clone)]
pub struct Fake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vm: Mutex<Option<Vm>>,
    journal: Arc<Journal>,
    full: AtomicBool,
    stuck: AtomicBool,
    ending: AtomicBool,
    /// A delete needs one of these to get to its end.
    deletes: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        Self(Arc::new(Inner {
            vm: Mutex::default(),
            journal: Arc::default(),
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
        if state != VmState::Running {
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

    fn journal(&self) -> &Arc<Journal> {
        &self.0.journal
    }
}
