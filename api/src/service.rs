//! What the server needs of whoever runs the VM. The `vmm` crate's state driver stands behind it; tests have a fake.
//!
//! Called on the control plane's thread. Nothing here may block.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::balloon::{Balloon, MemoryStatistics};
use crate::cdrom::Cdrom;
use crate::cpus::Cpus;
use crate::device::{DeviceKind, Disk, Nic};
use crate::jobs::{Job, JobError, Jobs};
use crate::journal::Journal;
use crate::memory::Memory;
use crate::metrics::Exposition;
use crate::resource::{Action, Vm, VmState};
use crate::spec::{DiskLimits, ReplicaAddress, SpecError, VmSpec, quoted};
use crate::volume::{Replica, Snapshot, SnapshotRequest, SnapshotTaken};

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

    /// The VM's disks, in the order in which they were added.
    ///
    /// # Errors
    /// When there is no VM.
    fn disks(&self) -> Result<Vec<Disk>, Refusal>;

    /// The VM's network interfaces, in the order in which they were added.
    ///
    /// # Errors
    /// When there is no VM.
    fn nics(&self) -> Result<Vec<Nic>, Refusal>;

    /// Starts to add a device, described by JSON as in the VM's spec. The id is its own from then on.
    ///
    /// # Errors
    /// When the description is wrong, or it is not possible now.
    fn add_device(&self, kind: DeviceKind, description: String) -> Pending<Result<Job, AddError>>;

    /// Starts to remove a device; the guest has until the deadline to let go of it.
    ///
    /// # Errors
    /// When there is no such device, or it is not possible now.
    fn remove_device(&self, kind: DeviceKind, id: &str, deadline: Duration)
    -> Result<Job, Refusal>;

    /// Makes a disk so large, in bytes, or looks how large it has become, and gives it as it then is. The guest is told.
    ///
    /// # Errors
    /// When there is no such disk, it cannot be so large, or it is not possible now.
    fn resize_disk(&self, id: &str, size: Option<u64>) -> Pending<Result<Disk, Refusal>>;

    /// Limits the guest's I/O on a disk from now on, and gives the disk as it then is. The limits were checked.
    ///
    /// # Errors
    /// When there is no such disk, or it is not open.
    fn limit_disk(&self, id: &str, limits: DiskLimits) -> Result<Disk, Refusal>;

    /// The replicas of a disk that is a replicated volume.
    ///
    /// # Errors
    /// When there is no such disk, it is not open, or it is no volume.
    fn replicas(&self, id: &str) -> Result<Vec<Replica>, Refusal>;

    /// Starts to add a replica to a disk's volume, and to give it what the others have.
    ///
    /// # Errors
    /// When there is no such volume, or it is not possible now.
    fn add_replica(&self, id: &str, address: ReplicaAddress) -> Result<Job, Refusal>;

    /// Lets go of a replica of a disk's volume, and gives those that are left.
    ///
    /// # Errors
    /// When there is no such volume or replica, or it is the only one that has everything.
    fn remove_replica(
        &self,
        id: &str,
        address: ReplicaAddress,
    ) -> Pending<Result<Vec<Replica>, Refusal>>;

    /// The snapshots of a disk's volume, the oldest first.
    ///
    /// # Errors
    /// When there is no such volume, or its replicas do not answer.
    fn snapshots(&self, id: &str) -> Pending<Result<Vec<Snapshot>, Refusal>>;

    /// Takes a snapshot of a disk's volume. The request was checked.
    ///
    /// # Errors
    /// When there is no such volume, there is a snapshot of that name, or it is not possible now.
    fn take_snapshot(
        &self,
        id: &str,
        request: SnapshotRequest,
    ) -> Pending<Result<SnapshotTaken, Refusal>>;

    /// Marks a snapshot of a disk's volume as removed, and starts to give back what it takes.
    ///
    /// # Errors
    /// When there is no such volume or snapshot, or it is not possible now.
    fn remove_snapshot(&self, id: &str, name: &str) -> Pending<Result<Job, Refusal>>;

    /// The VM's CD-ROM drives, in the order of its spec.
    ///
    /// # Errors
    /// When there is no VM.
    fn cdroms(&self) -> Result<Vec<Cdrom>, Refusal>;

    /// Opens a medium and puts it into a drive, in place of the one that is there. Gives the drive as it then is.
    ///
    /// # Errors
    /// When there is no such drive, the medium cannot be had, the guest has locked the old one in and it is not taken by `force`, or it is
    /// not possible now.
    fn insert_medium(
        &self,
        id: &str,
        path: PathBuf,
        force: bool,
    ) -> Pending<Result<Cdrom, Refusal>>;

    /// Takes the medium out of a drive, if there is one, and gives the drive as it then is.
    ///
    /// # Errors
    /// When there is no such drive, the guest has locked the medium in and it is not taken by `force`, or it is not possible now.
    fn eject_medium(&self, id: &str, force: bool) -> Pending<Result<Cdrom, Refusal>>;

    /// The VM's CPUs.
    ///
    /// # Errors
    /// When there is no VM.
    fn cpus(&self) -> Result<Cpus, Refusal>;

    /// Starts to have so many CPUs; the guest has until the deadline to let go of those that are too many.
    ///
    /// # Errors
    /// When there cannot be so many, or it is not possible now.
    fn set_cpus(&self, wanted: u64, deadline: Duration) -> Result<Job, Refusal>;

    /// The VM's memory.
    ///
    /// # Errors
    /// When there is no VM.
    fn memory(&self) -> Result<Memory, Refusal>;

    /// Asks the guest to have so much memory, in bytes, and gives the memory as it then is.
    ///
    /// # Errors
    /// When it cannot be so large or so small, or it is not possible now.
    fn set_memory(&self, requested: u64) -> Result<Memory, Refusal>;

    /// The VM's balloon.
    ///
    /// # Errors
    /// When there is no VM, or it has no balloon.
    fn balloon(&self) -> Result<Balloon, Refusal>;

    /// Asks the guest for so much of its memory, in bytes, and gives the balloon as it then is.
    ///
    /// # Errors
    /// When there is no balloon, it cannot be so large, or it is not possible now.
    fn set_balloon(&self, target: u64) -> Result<Balloon, Refusal>;

    /// Asks the guest for its memory statistics, and waits for them a while.
    ///
    /// # Errors
    /// When there is no balloon, or the guest does not answer.
    fn memory_statistics(&self) -> Pending<Result<MemoryStatistics, Refusal>>;

    /// The metrics of the process and of the VM, if there is one. In every state, and without asking the guest; what the host would
    /// take long for is left out.
    fn metrics(&self) -> Pending<Exposition>;

    /// The jobs of the process.
    fn jobs(&self) -> &Jobs;

    /// Where events are kept.
    fn journal(&self) -> &Arc<Journal>;
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    #[error("{action} is possible only while the VM is {}; it is {state}", action.states_in_words())]
    WrongState {
        /// What was asked for.
        action: Action,
        /// The state.
        state: VmState,
    },
    /// Devices are not changed in this state.
    #[error("devices can be added and removed only while the VM is running; it is {state}")]
    NotRunning {
        /// The state.
        state: VmState,
    },
    /// There is no such device.
    #[error("the VM has no {kind} with the id {}", quoted(id))]
    NoDevice {
        /// What kind was looked for.
        kind: DeviceKind,
        /// By which id.
        id: String,
    },
    /// Something is being done with the device.
    #[error("job {job} is adding or removing {id}; wait for its end, or cancel it")]
    DeviceBusy {
        /// The device's id.
        id: String,
        /// The job.
        job: u64,
    },
    /// The disk is not open: it is being added, or the VM is only starting or has ended.
    #[error(
        "disk {} is not open now; it is while the VM is running or paused",
        quoted(id)
    )]
    DiskClosed {
        /// The disk's id.
        id: String,
    },
    /// The disk cannot be so large.
    #[error("{0}")]
    DiskSize(String),
    /// The host failed to do it, or did not get it done in time.
    #[error("{0}")]
    HostFailed(String),
    /// The disk is no replicated volume.
    #[error(
        "disk {} is no replicated volume whose engine is in this process: it has no replicas and no snapshots here",
        quoted(id)
    )]
    NoVolume {
        /// The disk's id.
        id: String,
    },
    /// The volume is not in a state for that.
    #[error("{0}")]
    VolumeState(String),
    /// The volume has no such replica.
    #[error("{0}")]
    NoReplica(String),
    /// The volume has no such snapshot.
    #[error("{0}")]
    NoSnapshot(String),
    /// The volume's replicas do not do what they are asked for, or do not answer.
    #[error("{0}")]
    ReplicaError(String),
    /// The volume's replicas or snapshots are being changed.
    #[error(
        "job {job} is changing the replicas or snapshots of {id}; wait for its end, or cancel it"
    )]
    VolumeBusy {
        /// The disk's id.
        id: String,
        /// The job.
        job: u64,
    },
    /// There is no such CD-ROM drive.
    #[error("the VM has no CD-ROM drive with the id {}", quoted(id))]
    NoCdrom {
        /// By which id one was looked for.
        id: String,
    },
    /// Media are not changed in this state.
    #[error("media come and go only while the VM is running or paused; it is {state}")]
    MediumNotNow {
        /// The state.
        state: VmState,
    },
    /// The medium cannot be had.
    #[error("{0}")]
    NoMedium(String),
    /// The guest does not let go of the medium.
    #[error("{0}")]
    TrayLocked(String),
    /// There cannot be so many CPUs.
    #[error("{0}")]
    CpuCount(String),
    /// CPUs are not changed in this state.
    #[error("CPUs come and go only while the VM is running or paused; it is {state}")]
    CpusNotNow {
        /// The state.
        state: VmState,
    },
    /// Their number is being changed.
    #[error("job {job} is changing the number of CPUs; wait for its end, or cancel it")]
    CpusBusy {
        /// The job.
        job: u64,
    },
    /// The VM was made without one.
    #[error("the VM has no balloon; its spec must ask for one when it is created")]
    NoBalloon,
    /// The balloon cannot be so large.
    #[error("{0}")]
    BalloonTarget(String),
    /// The memory cannot be so large or so small.
    #[error("{0}")]
    MemoryRequest(String),
    /// The guest does not tell its memory statistics.
    #[error("{0}")]
    GuestSilent(String),
    /// The VM is over.
    #[error("the VM has ended")]
    Ended,
    /// No more jobs.
    #[error(transparent)]
    TooManyJobs(#[from] JobError),
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

/// Why a device is not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Not now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its description is wrong, in itself or beside the VM's other devices.
    #[error(transparent)]
    Wrong(#[from] SpecError),
}
