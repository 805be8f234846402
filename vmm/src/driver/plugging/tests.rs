//! What becomes of changes while a reset has left no machine.

use paddock_api::device::DeviceState;
use paddock_api::jobs::{JobKind, JobState, Jobs};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Setup {
    jobs: Jobs,
    inventory: Inventory,
    to_driver: mpsc::Sender<Change>,
    plugging: Plugging,
}

impl Setup {
    fn new() -> Self {
        let text = r#"{"boot": {"kernel": "/k"}, "disks": [{"path": "/absent"}]}"#;
        let inventory = Inventory::new(Arc::new(VmSpec::from_json(text).unwrap()));
        let (to_driver, changes) = mpsc::channel(1);
        let opening = Opening::new(Held::new().0);
        let plugging = Plugging::new(
            inventory.clone(),
            changes,
            opening,
            Disks::nowhere(),
            Held::new().0,
        );
        Self {
            jobs: Jobs::new(Arc::default()),
            inventory,
            to_driver,
            plugging,
        }
    }

    /// Asks for the removal of the disk; the job's number.
    fn remove(&self, deadline: Duration) -> u64 {
        let (kind, id) = (DeviceKind::Disk, "disk0".to_owned());
        let phase = JobPhase::WaitingForGuest;
        let begun = self.jobs.start(JobKind::RemoveDevice, &id, phase, None);
        let job = begun.unwrap();
        let number = job.id();
        let noted = self
            .inventory
            .begin_removing::<inventory::Denied>(&inventory::key(kind, &id), || Ok(number));
        assert_eq!(noted, Ok(()), "nothing else changes it");
        let deadline = Instant::now() + deadline;
        let change = Change::Remove {
            kind,
            id,
            deadline,
            job,
        };
        self.to_driver.try_send(change).unwrap();
        number
    }

    fn state(&self, job: u64) -> JobState {
        self.jobs.read(job).unwrap().state
    }

    async fn advance(&mut self) {
        let advanced = self.plugging.advance_without_machine();
        let within = tokio::time::timeout(10 * SECOND, advanced).await;
        within.expect("nothing comes");
    }
}

#[tokio::test]
async fn a_removal_is_given_up_while_a_reset_waits() {
    let mut setup = Setup::new();
    for cancelled in [false, true] {
        let deadline = if cancelled { SECOND * 60 } else { SECOND / 100 };
        let job = setup.remove(deadline);
        setup.advance().await;
        assert_eq!(setup.state(job), JobState::Running);
        if cancelled {
            setup.jobs.cancel(job).unwrap();
        }
        while setup.state(job) == JobState::Running {
            setup.advance().await;
        }
        let ended = setup.jobs.read(job).unwrap();
        if cancelled {
            assert_eq!(ended.state, JobState::Cancelled);
        } else {
            let failure = ended.failure.unwrap();
            assert!(failure.contains("still resetting"), "{failure}");
        }
        // The reset takes out what is left of these, so the disk is in the next machine.
        assert!(setup.plugging.removals.is_empty());
        let state = setup.inventory.state_of("disk0");
        assert_eq!(state, (DeviceState::Present, None));
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_opened_fails_while_a_reset_waits() {
    let mut setup = Setup::new();
    let (kind, id) = (DeviceKind::Disk, "disk0".to_owned());
    let phase = JobPhase::Opening;
    let job = setup.jobs.start(JobKind::AddDevice, &id, phase, None);
    let job = job.unwrap();
    let number = job.id();
    setup
        .to_driver
        .try_send(Change::Add { kind, id, job })
        .unwrap();
    while setup.state(number) == JobState::Running {
        setup.advance().await;
    }
    assert_eq!(setup.state(number), JobState::Failed);
    assert!(setup.inventory.spec().disks.is_empty());
}

#[tokio::test]
async fn a_disk_that_was_opened_waits_for_the_machine() {
    let mut setup = Setup::new();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let disk = serde_json::json!({"path": image.path()}).to_string();
    let after = setup.inventory.spec().with_disk(&disk).unwrap();
    let device = OpenDevice::disk("new", &after.disks[1], &setup.plugging.disks).unwrap();
    let phase = JobPhase::Opening;
    let job = setup.jobs.start(JobKind::AddDevice, "new", phase, None);
    let (id, job) = ("new".to_owned(), job.unwrap());
    let number = job.id();
    let result = Some(Ok(device));
    let step = Step::Opened { id, job, result };
    setup.plugging.steps.spawn(async { step });
    setup.advance().await;
    // Nothing else comes: the wait for it does not spin.
    let more = setup.plugging.advance_without_machine();
    assert!(tokio::time::timeout(SECOND / 20, more).await.is_err());
    assert_eq!(setup.state(number), JobState::Running);
    let next = setup.plugging.next().await;
    let Next(Event::Step(step)) = next else {
        panic!("{next:?}");
    };
    assert!(matches!(&*step, Step::Opened { id, .. } if id == "new"));
}
