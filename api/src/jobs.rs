//! Jobs: what takes a while. A request starts one and gets it as its answer; its phases, its progress and its end are events, and it can be
//! read, waited for and cancelled by its number.
//!
//! Whoever does the work holds the [`JobHandle`]; everybody else asks [`Jobs`]. Any thread may; nothing blocks. Of the jobs that
//! are over, the last ones are kept.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::journal::Journal;
use crate::resource::EventKind;

/// Jobs that may run at once.
pub const MAX_RUNNING: usize = 64;
/// Jobs that are kept once they are over.
const KEPT: usize = 128;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Opens a disk or NIC of the host and plugs it into the running VM.
    AddDevice,
    /// Asks the guest to let go of a disk or NIC, takes it out of the VM and closes it.
    RemoveDevice,
    /// Plugs CPUs into the running VM, or asks the guest to let go of some. Its progress counts those CPUs.
    ResizeCpus,
    /// Adds a replica to a disk's volume and gives it what the others have. Its progress counts bytes, as the per cent of the replica tell.
    AddReplica,
    /// Has the replicas of a disk's volume give back what a snapshot takes. Its progress counts per cent.
    RemoveSnapshot,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobPhase {
    /// The host's side is being opened.
    Opening,
    /// The guest has been asked, and does what it has to.
    WaitingForGuest,
    /// Requests under way are waited for, and the host's side is being closed.
    Closing,
    /// Files are transferred to a replica, which is written already.
    Rebuilding,
    /// The replicas give back what snapshots have that are to go.
    Purging,
}

/// Whether a job runs, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It is being done.
    Running,
    /// It is done.
    Succeeded,
    /// It could not be done; `failure` says why. Nothing is left half done, but of several CPUs some may have come or gone.
    Failed,
    /// It was cancelled. Nothing is left half done, but of several CPUs some may have come or gone.
    Cancelled,
}

/// How much of a job is done. What is counted, its kind tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// So many are done, 0 to `total`; never fewer than were told before.
    pub done: u64,
    /// Of so many.
    #[schema(minimum = 1)]
    pub total: u64,
}

/// Something that takes a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Counts from 1 in each process.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// The id of the device that it is about; `cpus` if it is about the CPUs.
    pub device: String,
    /// Whether it runs.
    pub state: JobState,
    /// How far it is, or was when it ended.
    pub phase: JobPhase,
    /// How much of it is done, if there is something to count. It is all, if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<JobProgress>,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ends at the latest, in milliseconds since 1970, if the guest may take as long as it likes otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// When it ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Why it failed, and what can be done about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A job that cannot be had or cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// No such number.
    #[error("there is no job {0}; GET /api/v1/jobs lists those that run and the last that ended")]
    NoSuchJob(u64),
    /// It is over, or past the point where it can be undone.
    #[error("job {0} cannot be cancelled any more")]
    TooLate(u64),
    /// No more at once.
    #[error("{MAX_RUNNING} jobs are running already; wait for one to end, or cancel one")]
    TooMany,
}

/// The jobs of the process. A cheap handle.
#[derive(Debug, Clone)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    journal: Arc<Journal>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    /// Oldest first.
    jobs: VecDeque<Entry>,
    tally: Tally,
}

/// How many jobs there are and were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// They run.
    pub running: u64,
    /// They were done.
    pub succeeded: u64,
    /// They could not be done.
    pub failed: u64,
    /// They were cancelled.
    pub cancelled: u64,
}

impl Tally {
    fn of(&mut self, state: JobState) -> &mut u64 {
        match state {
            JobState::Running => &mut self.running,
            JobState::Succeeded => &mut self.succeeded,
            JobState::Failed => &mut self.failed,
            JobState::Cancelled => &mut self.cancelled,
        }
    }
}

#[derive(Debug)]
struct Entry {
    job: Job,
    /// True once someone wants it cancelled. Gone once it is over or cannot be cancelled any more.
    cancel: Option<watch::Sender<bool>>,
}

impl Jobs {
    /// No jobs yet; what becomes of them is told to `journal`.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        let kept = Mutex::default();
        Self(Arc::new(Inner { journal, kept }))
    }

    /// Starts a job about the device of this id, which has `deadline` if the guest is to be waited for.
    ///
    /// # Errors
    /// [`JobError::TooMany`].
    pub fn start(
        &self,
        kind: JobKind,
        device: &str,
        phase: JobPhase,
        deadline: Option<Duration>,
    ) -> Result<JobHandle, JobError> {
        self.start_counting(kind, device, phase, deadline, 0)
    }

    /// The same, with so many things to be done, each of which counts; there is nothing to count if they are 0.
    ///
    /// # Errors
    /// [`JobError::TooMany`].
    pub fn start_counting(
        &self,
        kind: JobKind,
        device: &str,
        phase: JobPhase,
        deadline: Option<Duration>,
        total: u64,
    ) -> Result<JobHandle, JobError> {
        let (cancel, cancelled) = watch::channel(false);
        let mut kept = self.0.kept.lock();
        let is_running = |entry: &&Entry| entry.job.state == JobState::Running;
        if kept.jobs.iter().filter(is_running).count() >= MAX_RUNNING {
            return Err(JobError::TooMany);
        }
        kept.last += 1;
        kept.tally.running += 1;
        let now = now();
        let job = Job {
            id: kept.last,
            kind,
            device: device.to_owned(),
            state: JobState::Running,
            phase,
            progress: (total > 0).then_some(JobProgress { done: 0, total }),
            started_ms: milliseconds(now),
            deadline_ms: deadline.map(|deadline| milliseconds(now.saturating_add(deadline))),
            ended_ms: None,
            failure: None,
        };
        kept.jobs.push_back(Entry {
            job: job.clone(),
            cancel: Some(cancel),
        });
        kept.forget_the_oldest();
        let id = job.id;
        self.0.journal.publish(EventKind::Job { job });
        drop(kept);
        Ok(JobHandle {
            id,
            jobs: Arc::downgrade(&self.0),
            cancelled,
            over: false,
        })
    }

    /// All that run and the last that ended, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Job> {
        let kept = self.0.kept.lock();
        kept.jobs.iter().map(|entry| entry.job.clone()).collect()
    }

    /// How many there are and were, those that are forgotten included.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.0.kept.lock().tally
    }

    /// A job by its number.
    ///
    /// # Errors
    /// [`JobError::NoSuchJob`].
    pub fn read(&self, id: u64) -> Result<Job, JobError> {
        let mut kept = self.0.kept.lock();
        let entry = kept.entry(id).ok_or(JobError::NoSuchJob(id))?;
        Ok(entry.job.clone())
    }

    /// Asks for a job to be cancelled; it ends soon after, and may still succeed.
    ///
    /// # Errors
    /// When there is no such job, or it is too late.
    pub fn cancel(&self, id: u64) -> Result<Job, JobError> {
        let mut kept = self.0.kept.lock();
        let entry = kept.entry(id).ok_or(JobError::NoSuchJob(id))?;
        let cancel = entry.cancel.as_ref().ok_or(JobError::TooLate(id))?;
        cancel.send_replace(true);
        Ok(entry.job.clone())
    }
}

impl Kept {
    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        self.jobs.iter_mut().find(|entry| entry.job.id == id)
    }

    fn forget_the_oldest(&mut self) {
        let is_over = |entry: &Entry| entry.job.state != JobState::Running;
        while self.jobs.iter().filter(|entry| is_over(entry)).count() > KEPT {
            if let Some(oldest) = self.jobs.iter().position(is_over) {
                self.jobs.remove(oldest);
            }
        }
    }
}

impl Inner {
    fn change(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.entry(id) {
            let before = entry.job.state;
            change(entry);
            // Under the lock, so that events come in the order of the changes.
            let job = entry.job.clone();
            let after = job.state;
            self.journal.publish(EventKind::Job { job });
            *kept.tally.of(before) -= 1;
            *kept.tally.of(after) += 1;
            kept.forget_the_oldest();
        }
    }
}

/// The work's side of a job. Dropped before its end, the job has failed.
pub struct JobHandle {
    id: u64,
    jobs: Weak<Inner>,
    cancelled: watch::Receiver<bool>,
    over: bool,
}

impl fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.id)
    }
}

impl JobHandle {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The job as it is. `None` once it was so long over that it is forgotten, or the process ends.
    #[must_use]
    pub fn job(&self) -> Option<Job> {
        let jobs = self.jobs.upgrade()?;
        let mut kept = jobs.kept.lock();
        kept.entry(self.id).map(|entry| entry.job.clone())
    }

    /// Waits until someone wants it cancelled; for ever, if nobody does.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut cancelled = self.cancelled.clone();
        async move {
            if cancelled.wait_for(|wanted| *wanted).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Goes on to another phase, from which it can be cancelled or not.
    pub fn advance(&self, phase: JobPhase, can_be_cancelled: bool) {
        self.change(|entry| {
            entry.job.phase = phase;
            if !can_be_cancelled {
                entry.cancel = None;
            }
        });
    }

    /// So many things are to be done, as is known only now. Told once.
    pub fn expect(&self, total: u64) {
        let progress = Some(JobProgress { done: 0, total });
        if total > 0 && self.job().is_some_and(|job| job.progress.is_none()) {
            self.change(|entry| entry.job.progress = progress);
        }
    }

    /// So many are done, at most all. Nothing is told where those are no more than before, or there is nothing to count.
    pub fn count(&self, done: u64) {
        let Some(told) = self.job().and_then(|job| job.progress) else {
            return;
        };
        let done = done.min(told.total);
        if done > told.done {
            let now = Some(JobProgress { done, ..told });
            self.change(|entry| entry.job.progress = now);
        }
    }

    /// It is done.
    pub fn succeed(mut self) {
        self.end(JobState::Succeeded, None);
    }

    /// It cannot be done. `failure` says why and what can be done about it.
    pub fn fail(mut self, failure: impl Into<String>) {
        self.end(JobState::Failed, Some(failure.into()));
    }

    /// It was cancelled, and nothing is left half done.
    pub fn cancel(mut self) {
        self.end(JobState::Cancelled, None);
    }

    fn end(&mut self, state: JobState, failure: Option<String>) {
        self.over = true;
        self.change(|entry| {
            entry.cancel = None;
            entry.job.state = state;
            if let (JobState::Succeeded, Some(progress)) = (state, &mut entry.job.progress) {
                progress.done = progress.total;
            }
            entry.job.ended_ms = Some(milliseconds(now()));
            entry.job.failure = failure;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.change(self.id, change);
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if !self.over {
            self.end(JobState::Failed, Some("the VM ended first".to_owned()));
        }
    }
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> (Jobs, Arc<Journal>) {
        let journal = Arc::new(Journal::default());
        (Jobs::new(Arc::clone(&journal)), journal)
    }

    fn removal(jobs: &Jobs) -> JobHandle {
        let deadline = Some(Duration::from_secs(1));
        let phase = JobPhase::WaitingForGuest;
        jobs.start(JobKind::RemoveDevice, "disk0", phase, deadline)
            .unwrap()
    }

    #[test]
    fn a_job_goes_through_its_phases() {
        let (jobs, journal) = jobs();
        let handle = removal(&jobs);
        let job = jobs.read(1).unwrap();
        assert_eq!((job.state, job.ended_ms), (JobState::Running, None));
        assert_eq!(job.deadline_ms, Some(job.started_ms + 1000));
        handle.advance(JobPhase::Closing, false);
        assert_eq!(jobs.cancel(1), Err(JobError::TooLate(1)));
        assert_eq!(handle.job().unwrap().phase, JobPhase::Closing);
        handle.succeed();
        let job = jobs.read(1).unwrap();
        assert_eq!(job.state, JobState::Succeeded);
        assert!(job.ended_ms.unwrap() >= job.started_ms);
        assert_eq!(journal.last(), 3);
        assert_eq!(jobs.read(2), Err(JobError::NoSuchJob(2)));
    }

    #[test]
    fn what_can_be_counted_is() {
        let (jobs, journal) = jobs();
        let start = |total| {
            let phase = JobPhase::Opening;
            jobs.start_counting(JobKind::ResizeCpus, "cpus", phase, None, total)
                .unwrap()
        };
        let progress = |id| jobs.read(id).unwrap().progress;
        let at = |done| Some(JobProgress { done, total: 3 });
        let handle = start(3);
        assert_eq!((progress(1), journal.last()), (at(0), 1));
        for (done, expected, events) in [(0, 0, 1), (1, 1, 2), (1, 1, 2), (0, 1, 2), (9, 3, 3)] {
            handle.count(done);
            assert_eq!((progress(1), journal.last()), (at(expected), events));
        }
        handle.succeed();
        assert_eq!((progress(1), journal.last()), (at(3), 4));
        // What is known only later.
        let handle = start(0);
        for total in [0, 3, 5] {
            handle.expect(total);
        }
        handle.count(2);
        assert_eq!(progress(2), at(2));
        drop(handle);
        // As far as it came.
        let handle = start(3);
        handle.count(1);
        handle.fail("no");
        assert_eq!(progress(3), at(1));
        // Nothing to count.
        let handle = start(0);
        let before = journal.last();
        handle.count(1);
        assert_eq!((progress(4), journal.last()), (None, before));
        handle.succeed();
        let job = serde_json::to_value(jobs.read(4).unwrap()).unwrap();
        assert!(job.get("progress").is_none(), "{job}");
    }

    #[tokio::test]
    async fn a_job_can_be_cancelled_while_it_runs() {
        let (jobs, _) = jobs();
        let handle = removal(&jobs);
        let waiting = tokio::time::timeout(Duration::from_millis(10), handle.cancelled());
        assert!(waiting.await.is_err(), "nobody wants that yet");
        jobs.cancel(1).unwrap();
        jobs.cancel(1).unwrap();
        handle.cancelled().await;
        handle.cancel();
        assert_eq!(jobs.read(1).unwrap().state, JobState::Cancelled);
        assert_eq!(jobs.cancel(1), Err(JobError::TooLate(1)));
        assert_eq!(jobs.cancel(2), Err(JobError::NoSuchJob(2)));
    }

    #[test]
    fn a_job_that_is_dropped_has_failed() {
        let (jobs, _) = jobs();
        drop(removal(&jobs));
        let job = jobs.read(1).unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert!(job.failure.is_some());
    }

    #[test]
    fn neither_running_jobs_nor_ended_ones_pile_up() {
        let (jobs, _) = jobs();
        let running: Vec<_> = (0..MAX_RUNNING).map(|_| removal(&jobs)).collect();
        let one_more = jobs.start(JobKind::AddDevice, "disk1", JobPhase::Opening, None);
        assert_eq!(one_more.unwrap_err(), JobError::TooMany);
        drop(running);
        for _ in 0..2 * KEPT {
            removal(&jobs).succeed();
        }
        let last = removal(&jobs);
        assert_eq!(jobs.list().len(), KEPT + 1);
        let expected = Tally {
            running: 1,
            succeeded: 2 * KEPT as u64,
            failed: MAX_RUNNING as u64,
            cancelled: 0,
        };
        assert_eq!(jobs.tally(), expected);
        assert_eq!(jobs.list().last().unwrap().id, last.id());
    }
}
