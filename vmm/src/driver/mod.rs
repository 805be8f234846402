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
mod events;
mod handle;
mod inventory;
mod media;
mod opening;
mod plugging;
mod release;
mod resizing;
mod turns;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::jobs::{Jobs, MAX_RUNNING};
use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
pub use paddock_api::resource::VmState;
use paddock_api::spec::VmSpec;
use paddock_devices::throttle::Throttle;
use tokio::sync::{mpsc, watch};

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
use turns::Turns;

use crate::Error;
use crate::balloon::Balloon;
use crate::cdrom::Cdroms;
use crate::console::ConsoleEnds;
use crate::disks::Disks;
use crate::growth::Growth;
use crate::metrics::Meters;
use crate::processors::Processors;
use crate::variables::Variables;
use crate::vcpu::report::CrashReport;

/// Requests that wait for the driver.
const REQUESTS: usize = 16;

/// How long the end is not told while the host closes files.
const CLOSING_DEADLINE: Duration = Duration::from_secs(2);

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
        let disks = Disks::new(Arc::clone(&journal), held.clone());
        let plugging = Plugging::new(
            inventory.clone(),
            changes,
            opening.clone(),
            disks.clone(),
            held.clone(),
        );
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
            disks: disks.clone(),
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
            disks,
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
        self.changing.plugging.end();
        // Jobs that the end overtakes have failed before it is told.
        drop(self.changing);
        self.turns.processors.forget_job();
        let files = (self.turns.cdroms.empty(), self.turns.disks.end());
        let closing = self.turns.blocking(move || drop(files));
        // Whoever hears of the end may want them. Nobody waits long for a host that does not close a file.
        let _ = tokio::time::timeout(CLOSING_DEADLINE, closing).await;
        self.turns.life.end(&result);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::ThreadId;

    use paddock_api::journal::Delivery;
    use paddock_api::resource::EndReason;
    use paddock_api::service::Refusal;
    use paddock_api::spec::{AfterRetry, DiskLimits, OnError};
    use paddock_storage::testing::{Fault, MemoryDisk};
    use paddock_storage::{
        Capabilities, Disk, DiskQueue, IoError, Operation, Request as DiskRequest,
    };
    use parking_lot::Mutex;

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
        let (go_on, wait) = channel::<()>();
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
            Err(Error::part("/console/serial", io::Error::other("why")))
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

    /// A disk whose close says on which thread it is, and takes as long as `go_on` is there.
    #[derive(Debug)]
    struct SlowToClose {
        memory: MemoryDisk,
        closes: Sender<ThreadId>,
        go_on: Mutex<Receiver<()>>,
    }

    impl Disk for SlowToClose {
        fn capabilities(&self) -> Capabilities {
            self.memory.capabilities()
        }

        fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
            self.memory.open_queue(depth)
        }
    }

    impl Drop for SlowToClose {
        fn drop(&mut self) {
            let _ = self.closes.send(std::thread::current().id());
            let _ = self.go_on.lock().recv();
        }
    }

    /// A VM that cannot be built, and has a disk that fails and is tried again.
    fn with_failing_disk() -> (VmHandle, Driver, Receiver<ThreadId>, Sender<()>) {
        let (vm, driver) = driver(Box::new(|_, _| {
            Err(Error::part("/console/serial", io::Error::other("why")))
        }));
        let memory = MemoryDisk::new(4096);
        memory.script(std::iter::repeat_n(Fault::Error(IoError::Os(libc::EIO)), 2));
        let (closes, closed) = channel();
        let (go_on, wait) = channel();
        let disk = SlowToClose {
            memory,
            closes,
            go_on: Mutex::new(wait),
        };
        let on_error = OnError::Retry {
            deadline: Duration::from_secs(60),
            interval: Duration::from_millis(20),
            then: AfterRetry::Report,
        };
        let limits = DiskLimits::default();
        let open = vm
            .disks()
            .opened("disk0", Arc::new(disk), None, on_error, limits);
        let mut queue = open.backend().open_queue(1).unwrap();
        queue.submit(DiskRequest {
            tag: 0,
            operation: Operation::Flush,
        });
        queue.kick();
        queue.reap(&mut Vec::new());
        vm.disks().attach(&open);
        assert_eq!(vm.disks().failures().len(), 1);
        (vm, driver, closed, go_on)
    }

    #[test]
    fn disks_are_closed_when_the_end_is_told() {
        let (vm, driver, closed, go_on) = with_failing_disk();
        drop(go_on);
        block_on(async {
            driver.run().await.unwrap_err();
            let closer = closed.try_recv().expect("the disk is still open");
            assert_ne!(closer, std::thread::current().id());
            let disks = vm.disks();
            assert!(disks.all().is_empty() && disks.failures().is_empty());
            let id = "disk0".to_owned();
            let refused = Err(Refusal::DiskClosed { id });
            assert_eq!(disks.limit("disk0", DiskLimits::default(), true), refused);
            assert_eq!(disks.resize("disk0", None, true).await, refused);
            vm.released().await;
            // Nobody tries what is closed.
            let last = vm.journal.last();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(vm.journal.last(), last);
        });
    }

    #[test]
    fn a_disk_that_is_not_closed_is_held_and_the_end_told() {
        let (vm, driver, closed, go_on) = with_failing_disk();
        block_on(async {
            driver.run().await.unwrap_err();
            assert_eq!(vm.state(), VmState::Ended);
            closed.try_recv().expect("the disk is still open");
            let soon = Duration::from_millis(20);
            let released = tokio::time::timeout(soon, vm.released()).await;
            assert!(released.is_err(), "the disk is not closed");
            drop(go_on);
            vm.released().await;
        });
    }

    #[test]
    fn a_disk_that_is_opened_after_the_end_is_not_the_vms() {
        let (vm, driver) = driver(Box::new(|_, _| {
            Err(Error::part("/console/serial", io::Error::other("why")))
        }));
        let disk = Arc::new(MemoryDisk::new(4096));
        let limits = DiskLimits::default();
        let open = vm
            .disks()
            .opened("disk0", disk, None, OnError::Report, limits);
        block_on(async {
            driver.run().await.unwrap_err();
            vm.disks().attach(&open);
            assert!(open.is_unused() && vm.disks().all().is_empty());
        });
    }
}
