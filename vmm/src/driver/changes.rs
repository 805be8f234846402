//! Requests to add and remove devices: checked, noted in the inventory and handed to the driver in one step, so that of two clients that
//! want the same at once, one is refused.

use std::sync::Arc;
use std::time::Duration;

use paddock_api::device::{DeviceKind, DeviceState};
use paddock_api::jobs::{Job, JobError, JobHandle, JobKind, JobPhase, Jobs};
use paddock_api::resource::VmState;
use paddock_api::service::{AddError, Refusal};
use paddock_api::spec::VmSpec;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::inventory::{self, Denied, Inventory};
use super::plugging::Change;

/// The way to a VM's devices.
#[derive(Debug, Clone)]
pub struct Changes {
    pub(super) inventory: Inventory,
    pub(super) jobs: Jobs,
    /// With room for each job that may run.
    pub(super) to_driver: mpsc::Sender<Change>,
}

/// Why a change does not begin.
enum Obstacle {
    Denied(Denied),
    Job(JobError),
    /// The driver is gone.
    Ended,
}

impl From<Denied> for Obstacle {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Changes {
    /// The spec at present.
    #[must_use]
    pub fn spec(&self) -> Arc<VmSpec> {
        self.inventory.spec()
    }

    /// The state of a device, and the job that changes it.
    #[must_use]
    pub fn state_of(&self, id: &str) -> (DeviceState, Option<u64>) {
        self.inventory.state_of(id)
    }

    /// Starts to add a device, described by JSON.
    ///
    /// # Errors
    /// When the description is wrong, or it is not possible now.
    pub async fn add(
        &self,
        kind: DeviceKind,
        description: String,
        state: impl Fn() -> VmState,
    ) -> Result<Job, AddError> {
        let description: Arc<str> = description.into();
        loop {
            require_running(state())?;
            let (before, text) = (self.inventory.spec(), Arc::clone(&description));
            let old = Arc::clone(&before);
            // A document made to be slow to check takes a while.
            let checked = tokio::task::spawn_blocking(move || match kind {
                DeviceKind::Disk => old.with_disk(&text),
                DeviceKind::Nic => old.with_nic(&text),
            });
            let after = checked.await.map_err(|_| Refusal::Ending)??;
            let newest = match kind {
                DeviceKind::Disk => after.disks.last().map(|disk| disk.id.to_string()),
                DeviceKind::Nic => after.nics.last().map(|nic| nic.id.to_string()),
            };
            let id = newest.ok_or(Refusal::Ending)?;
            require_running(state())?;
            match self.begin_adding(kind, &id, &before, after) {
                Ok(job) => return Ok(job),
                // Someone else was faster: look again at what there is now.
                Err(Obstacle::Denied(_)) => {}
                Err(Obstacle::Job(error)) => return Err(Refusal::from(error).into()),
                Err(Obstacle::Ended) => return Err(ended().into()),
            }
        }
    }

    fn begin_adding(
        &self,
        kind: DeviceKind,
        id: &str,
        before: &Arc<VmSpec>,
        after: VmSpec,
    ) -> Result<Job, Obstacle> {
        let mut answer = None;
        self.inventory
            .begin_adding::<Obstacle>(before, after, id, || {
                let job = self
                    .jobs
                    .start(JobKind::AddDevice, id, JobPhase::Opening, None)
                    .map_err(Obstacle::Job)?;
                let number = job.id();
                answer = job.job();
                let id = id.to_owned();
                self.send(Change::Add { kind, id, job })?;
                Ok(number)
            })?;
        answer.ok_or(Obstacle::Ended)
    }

    /// Starts to remove a device.
    ///
    /// # Errors
    /// When there is no such device, or it is not possible now.
    pub fn remove(
        &self,
        kind: DeviceKind,
        id: &str,
        deadline: Duration,
        state: VmState,
    ) -> Result<Job, Refusal> {
        require_running(state)?;
        let mut answer = None;
        let begun = self
            .inventory
            .begin_removing(&inventory::key(kind, id), || {
                let phase = JobPhase::WaitingForGuest;
                let job = self
                    .jobs
                    .start(JobKind::RemoveDevice, id, phase, Some(deadline))
                    .map_err(Obstacle::Job)?;
                let number = job.id();
                answer = job.job();
                self.send(removal(kind, id, deadline, job))?;
                Ok(number)
            });
        let id = id.to_owned();
        match (begun, answer) {
            (Ok(()), Some(job)) => Ok(job),
            (Err(Obstacle::Denied(Denied::Absent)), _) => Err(Refusal::NoDevice { kind, id }),
            (Err(Obstacle::Denied(Denied::Changing(job))), _) => {
                Err(Refusal::DeviceBusy { id, job })
            }
            (Err(Obstacle::Job(error)), _) => Err(error.into()),
            _ => Err(ended()),
        }
    }

    fn send(&self, change: Change) -> Result<(), Obstacle> {
        self.to_driver.try_send(change).map_err(|_| Obstacle::Ended)
    }
}

fn removal(kind: DeviceKind, id: &str, deadline: Duration, job: JobHandle) -> Change {
    Change::Remove {
        kind,
        id: id.to_owned(),
        deadline: Instant::now() + deadline,
        job,
    }
}

fn require_running(state: VmState) -> Result<(), Refusal> {
    if state == VmState::Running {
        Ok(())
    } else {
        Err(Refusal::NotRunning { state })
    }
}

fn ended() -> Refusal {
    let state = VmState::Ended;
    Refusal::NotRunning { state }
}

#[cfg(test)]
mod tests {
    use paddock_api::jobs::{JobState, MAX_RUNNING};

    use super::*;

    fn changes() -> (Changes, mpsc::Receiver<Change>) {
        let text = r#"{"boot": {"kernel": "/k"}, "disks": [{"path": "/a"}]}"#;
        let spec = Arc::new(VmSpec::from_json(text).unwrap());
        let (to_driver, from_clients) = mpsc::channel(MAX_RUNNING);
        let changes = Changes {
            inventory: Inventory::new(spec),
            jobs: Jobs::new(Arc::default()),
            to_driver,
        };
        (changes, from_clients)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn of_many_at_once_each_gets_an_id_of_its_own() {
        let (changes, mut from_clients) = changes();
        let add = |path: &str| {
            let description = format!(r#"{{"path": "{path}"}}"#);
            changes.add(DeviceKind::Disk, description, || VmState::Running)
        };
        let (one, other) = tokio::join!(add("/b"), add("/c"));
        let mut ids = [one.unwrap().device, other.unwrap().device];
        ids.sort();
        assert_eq!(ids, ["disk1", "disk2"]);
        assert_eq!(changes.spec().disks.len(), 3);
        assert!(matches!(from_clients.try_recv(), Ok(Change::Add { .. })));
        assert!(add("/b").await.is_err(), "the same file twice");
    }

    #[tokio::test]
    async fn what_is_not_possible_is_refused() {
        let (changes, from_clients) = changes();
        let remove = |id: &str, state| changes.remove(DeviceKind::Disk, id, SECOND, state);
        let refused = remove("disk0", VmState::Resetting).unwrap_err();
        let state = VmState::Resetting;
        assert_eq!(refused, Refusal::NotRunning { state });
        let refused = remove("nic0", VmState::Running).unwrap_err();
        assert!(matches!(refused, Refusal::NoDevice { .. }));
        assert_eq!(remove("disk0", VmState::Running).unwrap().id, 1);
        let refused = remove("disk0", VmState::Running).unwrap_err();
        assert!(matches!(refused, Refusal::DeviceBusy { job: 1, .. }));
        assert_eq!(changes.state_of("disk0"), (DeviceState::Removing, Some(1)));

        drop(from_clients);
        assert_eq!(changes.jobs.read(1).unwrap().state, JobState::Failed);
        let add = changes.add(DeviceKind::Nic, r#"{"tap": "t"}"#.to_owned(), || {
            VmState::Running
        });
        let refused = add.await.unwrap_err();
        assert_eq!(refused, AddError::Refused(ended()));
        assert!(changes.spec().nics.is_empty(), "nothing is left of it");
    }
}
