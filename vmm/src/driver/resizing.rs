//! Changing the number of CPUs of the running machine, for the driver, and the requests to do so.
//!
//! ```text
//! more:   machine.add_cpu, one at a time ──▶ done
//!                    │
//!                    └ failure, cancel ──▶ failed or cancelled, and what was plugged in stays
//! fewer:  machine.want_cpu_back ──▶ WaitingForGuest ──▶ let go of, all of them ──▶ done
//!                                          │
//!                                          └ deadline, cancel ──▶ machine.keep_cpu ──▶ failed, and what was not let go of stays
//! ```
//!
//! One job at a time does so, and counts the CPUs that have come or gone. Polled by the driver between its other work, CPU by CPU: however
//! many come, what else is asked is heard in between. What a reset overtakes is done by it: the machine is built anew with as many CPUs as
//! are wanted.

use std::time::Duration;

use paddock_api::jobs::{Job, JobError, JobHandle, JobKind, JobPhase, Jobs};
use paddock_api::resource::VmState;
use paddock_api::service::Refusal;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::chain;
use crate::machine::Machine;
use crate::processors::{Difference, Processors};

/// What the jobs are about.
const ABOUT: &str = "cpus";
/// How often a guest that has not looked is told again, and how many times at most: one without ACPI never looks.
const REMINDER: Duration = Duration::from_secs(1);
const REMINDERS: u32 = 60;

/// A change that was begun in [`Processors`].
#[derive(Debug)]
pub struct Resize {
    /// When to give up, where the guest has to let go of CPUs.
    deadline: Option<Instant>,
    /// How many CPUs have to come or go.
    total: u64,
    /// What is told of it.
    job: JobHandle,
}

impl Resize {
    /// Tells how many have come or gone.
    fn count(&self, processors: &Processors) {
        let left = processors.difference().number();
        self.job.count(self.total.saturating_sub(left));
    }
}

/// The way to a VM's CPUs.
#[derive(Debug, Clone)]
pub struct CpuChanges {
    pub(super) processors: Processors,
    pub(super) jobs: Jobs,
    /// With room for the one job that may run.
    pub(super) to_driver: mpsc::Sender<Resize>,
}

/// Why a change does not begin.
enum Obstacle {
    Job(JobError),
    /// The driver is gone.
    Ended,
}

impl CpuChanges {
    /// The CPUs.
    #[must_use]
    pub fn processors(&self) -> &Processors {
        &self.processors
    }

    /// Starts to have `wanted` CPUs. Where that is fewer, the guest has until the deadline to let go of the others.
    ///
    /// # Errors
    /// When there cannot be so many, or it is not possible now.
    pub fn resize(&self, wanted: u64, deadline: Duration, state: VmState) -> Result<Job, Refusal> {
        if !matches!(state, VmState::Running | VmState::Paused) {
            return Err(Refusal::CpusNotNow { state });
        }
        let wanted = self.processors.check(wanted);
        let wanted = wanted.map_err(|error| Refusal::CpuCount(error.to_string()))?;
        let mut answer = None;
        let begun = self.processors.begin(wanted, |difference| {
            let total = difference.number();
            let (phase, limit) = if difference.shrinks() {
                (JobPhase::WaitingForGuest, Some(deadline))
            } else {
                (JobPhase::Opening, None)
            };
            let kind = JobKind::ResizeCpus;
            let job = self.jobs.start_counting(kind, ABOUT, phase, limit, total);
            let job = job.map_err(Obstacle::Job)?;
            let number = job.id();
            answer = job.job();
            let deadline = limit.map(|limit| Instant::now() + limit);
            let resize = Resize {
                deadline,
                total,
                job,
            };
            let sent = self.to_driver.try_send(resize);
            sent.map_err(|_| Obstacle::Ended)?;
            Ok(number)
        });
        match (begun, answer) {
            (Ok(Ok(())), Some(job)) => Ok(job),
            (Err(job), _) => Err(Refusal::CpusBusy { job }),
            (Ok(Err(Obstacle::Job(error))), _) => Err(error.into()),
            _ => {
                let state = VmState::Ended;
                Err(Refusal::CpusNotNow { state })
            }
        }
    }
}

/// What comes next; see [`Resizing::next`].
#[derive(Debug)]
pub enum Next {
    Begin(Resize),
    /// One more CPU.
    PlugIn,
    GiveUp {
        cancelled: bool,
    },
    Remind,
}

/// The change under way.
#[derive(Debug)]
pub struct Resizing {
    processors: Processors,
    requests: mpsc::Receiver<Resize>,
    /// CPUs are missing, or it waits for the guest.
    pending: Option<Resize>,
    reminders: u32,
    next_reminder: Instant,
}

impl Resizing {
    /// For these CPUs.
    pub fn new(processors: Processors, requests: mpsc::Receiver<Resize>) -> Self {
        Self {
            processors,
            requests,
            pending: None,
            reminders: 0,
            next_reminder: Instant::now(),
        }
    }

    /// Waits for the next thing to [`apply`](Self::apply). Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Next {
        let remind = async {
            if self.reminders == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep_until(self.next_reminder).await;
        };
        let Some(resize) = &self.pending else {
            return tokio::select! {
                Some(resize) = self.requests.recv() => Next::Begin(resize),
                () = remind => Next::Remind,
            };
        };
        let deadline = async {
            match resize.deadline {
                None => std::future::pending().await,
                Some(deadline) => tokio::time::sleep_until(deadline).await,
            }
        };
        let is_missing = self.missing().is_some();
        tokio::select! {
            // A CPU at a time, or a job that is cancelled would not be heard before the last.
            biased;
            () = resize.job.cancelled() => Next::GiveUp { cancelled: true },
            () = deadline => Next::GiveUp { cancelled: false },
            () = remind => Next::Remind,
            // After all that is ready on the control plane's thread: each CPU takes a while.
            () = tokio::task::yield_now(), if is_missing => Next::PlugIn,
        }
    }

    /// The next CPU that has to come.
    fn missing(&self) -> Option<u32> {
        match self.processors.difference() {
            Difference::Missing(cpus) => cpus.first().copied(),
            Difference::Surplus(_) => None,
        }
    }

    /// Goes on with it.
    pub fn apply(&mut self, next: Next, machine: &mut Machine) {
        match next {
            Next::Begin(resize) => self.begin(resize, machine),
            Next::PlugIn => self.plug_in(|cpu| machine.add_cpu(cpu).map_err(|error| chain(&error))),
            Next::GiveUp { cancelled } => self.give_up(cancelled, machine),
            Next::Remind => {
                self.next_reminder = Instant::now() + REMINDER;
                let unseen = machine.remind_of_cpus();
                self.reminders = if unseen { self.reminders - 1 } else { 0 };
            }
        }
    }

    /// Goes on with what the guest has let go of.
    pub fn released(&mut self, machine: &Machine) {
        self.let_go(machine.take_released_cpus());
    }

    fn let_go(&mut self, cpus: impl IntoIterator<Item = u32>) {
        for cpu in cpus {
            tracing::info!(cpu, "guest has let go");
            self.processors.let_go(cpu);
            if let Some(resize) = &self.pending {
                resize.count(&self.processors);
            }
        }
        self.end_if_done();
    }

    /// Ends the job once there are as many as are wanted.
    fn end_if_done(&mut self) {
        let is_done = self.processors.difference() == Difference::Surplus(Vec::new());
        if let Some(resize) = self.pending.take_if(|_| is_done) {
            self.processors.settle();
            resize.job.succeed();
        }
    }

    /// A reset has taken the machine apart: the next one has as many CPUs as are wanted.
    pub fn reset(&mut self) {
        self.reminders = 0;
        if let Some(resize) = self.pending.take() {
            self.processors.forget_job();
            resize.job.succeed();
        }
    }

    fn begin(&mut self, resize: Resize, machine: &Machine) {
        self.reminders = REMINDERS;
        self.next_reminder = Instant::now() + REMINDER;
        if let Difference::Surplus(cpus) = self.processors.difference() {
            for cpu in cpus {
                tracing::info!(cpu, "guest is asked to let go");
                machine.want_cpu_back(cpu);
            }
        }
        self.pending = Some(resize);
        self.end_if_done();
    }

    /// `add` plugs in one; its error says why it could not.
    fn plug_in(&mut self, add: impl FnOnce(u32) -> Result<(), String>) {
        let (Some(cpu), Some(resize)) = (self.missing(), &self.pending) else {
            return;
        };
        match add(cpu) {
            Ok(()) => {
                tracing::info!(cpu, "plugged in");
                self.processors.plugged_in(cpu);
                resize.count(&self.processors);
                self.end_if_done();
            }
            Err(failure) => {
                tracing::warn!(cpu, failure, "not plugged in");
                if let Some(resize) = self.settle() {
                    resize.job.fail(failure);
                }
            }
        }
    }

    fn give_up(&mut self, cancelled: bool, machine: &Machine) {
        match self.processors.difference() {
            Difference::Missing(_) => self.stop_plugging_in(),
            Difference::Surplus(_) => self.stop_waiting(cancelled, machine),
        }
    }

    /// It was cancelled: nothing else ends it early that the guest has no part in.
    fn stop_plugging_in(&mut self) {
        if let Some(resize) = self.settle() {
            tracing::info!("no more are plugged in");
            resize.job.cancel();
        }
    }

    fn stop_waiting(&mut self, cancelled: bool, machine: &Machine) {
        // Let go of at the last moment.
        self.released(machine);
        if self.pending.is_none() {
            return;
        }
        let mut kept = Vec::new();
        if let Difference::Surplus(cpus) = self.processors.difference() {
            for cpu in cpus {
                let refusal = machine.cpu_refusal(cpu);
                if machine.keep_cpu(cpu) {
                    kept.push((cpu, refusal));
                }
            }
        }
        // Which ends the job if none were kept.
        self.released(machine);
        let Some(resize) = self.settle() else {
            return;
        };
        if cancelled {
            tracing::info!(cpus = ?kept, "guest may keep them");
            resize.job.cancel();
        } else {
            tracing::warn!(cpus = ?kept, "guest did not let go in time; they stay");
            resize.job.fail(failure(&kept));
        }
    }

    /// What there is now is what is wanted. Gives what was pending, whose job is yet to be ended.
    fn settle(&mut self) -> Option<Resize> {
        let resize = self.pending.take()?;
        self.processors.settle();
        Some(resize)
    }
}

/// Says which CPUs the guest has kept, and what it answered, if it did.
fn failure(kept: &[(u32, Option<u32>)]) -> String {
    let cpus: Vec<_> = kept
        .iter()
        .map(|(cpu, refusal)| match refusal {
            None => cpu.to_string(),
            Some(code) => format!("{cpu} (it {})", meaning(*code)),
        })
        .collect();
    format!(
        "the guest did not let go by the deadline of CPU {}; what is left stays, see in the guest what it needs, and try again",
        cpus.join(", ")
    )
}

/// What a status code of `_OST` means for an eject request (ACPI 6.5 §6.3.5).
fn meaning(code: u32) -> String {
    match code {
        0x80 => "does not support that".to_owned(),
        0x81 => "says that it is in use".to_owned(),
        0x82 => "says that it is busy".to_owned(),
        code => format!("answered {code:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use paddock_api::jobs::{JobProgress, JobState};
    use paddock_api::journal::{Delivery, Follower, Journal};
    use paddock_api::resource::EventKind;
    use paddock_api::spec::VmSpec;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cpus() -> (CpuChanges, Resizing) {
        let text = r#"{"boot": {"kernel": "/k"}, "cpus": {"count": 2, "max": 4}}"#;
        let processors = Processors::new(&VmSpec::from_json(text).unwrap());
        let (to_driver, requests) = mpsc::channel(1);
        let changes = CpuChanges {
            processors: processors.clone(),
            jobs: Jobs::new(Arc::default()),
            to_driver,
        };
        (changes, Resizing::new(processors, requests))
    }

    /// As the driver does, less what it asks of the machine.
    async fn begin(resizing: &mut Resizing) {
        let Next::Begin(resize) = resizing.next().await else {
            panic!("it does not begin");
        };
        resizing.pending = Some(resize);
    }

    async fn plug_in(resizing: &mut Resizing, add: impl FnOnce(u32) -> Result<(), String>) {
        let next = resizing.next().await;
        assert!(matches!(next, Next::PlugIn), "{next:?}");
        resizing.plug_in(add);
    }

    #[test]
    fn what_is_not_possible_is_refused() {
        let (changes, resizing) = cpus();
        for state in [VmState::Starting, VmState::Resetting, VmState::Ended] {
            let refused = changes.resize(3, SECOND, state).unwrap_err();
            assert_eq!(refused, Refusal::CpusNotNow { state });
        }
        let refused = changes.resize(5, SECOND, VmState::Running).unwrap_err();
        assert!(matches!(refused, Refusal::CpuCount(_)), "{refused}");
        let job = changes.resize(1, SECOND, VmState::Paused).unwrap();
        assert_eq!(job.kind, JobKind::ResizeCpus);
        assert_eq!(job.deadline_ms, Some(job.started_ms + 1000));
        let refused = changes.resize(3, SECOND, VmState::Running).unwrap_err();
        assert_eq!(refused, Refusal::CpusBusy { job: job.id });
        drop(resizing);
        assert_eq!(changes.jobs.read(job.id).unwrap().state, JobState::Failed);
    }

    #[tokio::test]
    async fn a_removal_waits_until_its_deadline_or_is_cancelled() {
        let (changes, mut resizing) = cpus();
        for cancelled in [false, true] {
            let deadline = if cancelled { SECOND * 60 } else { SECOND / 100 };
            let job = changes.resize(1, deadline, VmState::Running).unwrap();
            begin(&mut resizing).await;
            if cancelled {
                changes.jobs.cancel(job.id).unwrap();
            }
            let next = resizing.next().await;
            assert!(matches!(next, Next::GiveUp { cancelled: c } if c == cancelled));
            resizing.reset();
            let job = changes.jobs.read(job.id).unwrap();
            assert_eq!(job.state, JobState::Succeeded, "by the reset");
            assert_eq!(changes.processors.status().wanted, 1);
        }
    }

    /// What each event told of the job: how many of how many, and whether it runs.
    async fn told(follower: &mut Follower) -> Vec<(u64, u64, JobState)> {
        let mut all = Vec::new();
        let now = Duration::ZERO;
        while let Ok(Some(Delivery::Event(event))) =
            tokio::time::timeout(now, follower.next()).await
        {
            if let EventKind::Job { job } = &event.kind {
                let progress = job.progress.unwrap();
                all.push((progress.done, progress.total, job.state));
            }
        }
        all
    }

    #[tokio::test]
    async fn each_cpu_counts() {
        let journal = Arc::new(Journal::default());
        let mut follower = journal.follow(Some(0));
        let (mut changes, mut resizing) = cpus();
        changes.jobs = Jobs::new(journal);
        changes.processors.start();
        let running = JobState::Running;

        let job = changes.resize(4, SECOND, VmState::Running).unwrap();
        assert_eq!(job.progress, Some(JobProgress { done: 0, total: 2 }));
        begin(&mut resizing).await;
        let mut added = Vec::new();
        while resizing.pending.is_some() {
            plug_in(&mut resizing, |cpu| {
                added.push(cpu);
                Ok(())
            })
            .await;
        }
        assert_eq!(added, [2, 3]);
        let ended = (2, 2, JobState::Succeeded);
        let expected = [(0, 2, running), (1, 2, running), (2, 2, running), ended];
        assert_eq!(told(&mut follower).await, expected);

        changes.resize(1, SECOND, VmState::Running).unwrap();
        begin(&mut resizing).await;
        resizing.let_go([3]);
        let expected = [(0, 3, running), (1, 3, running)];
        assert_eq!(told(&mut follower).await, expected);
        resizing.let_go([1, 2]);
        let ended = (3, 3, JobState::Succeeded);
        let expected = [(2, 3, running), (3, 3, running), ended];
        assert_eq!(told(&mut follower).await, expected);

        // Some come, and then no more.
        changes.resize(3, SECOND, VmState::Running).unwrap();
        begin(&mut resizing).await;
        plug_in(&mut resizing, |_| Ok(())).await;
        plug_in(&mut resizing, |_| Err("no".to_owned())).await;
        let expected = [(0, 2, running), (1, 2, running), (1, 2, JobState::Failed)];
        assert_eq!(told(&mut follower).await, expected);
        assert_eq!(changes.processors.status().wanted, 2);
    }

    #[tokio::test]
    async fn what_is_asked_meanwhile_is_heard_between_two_cpus() {
        let (changes, mut resizing) = cpus();
        changes.processors.start();
        let job = changes.resize(4, SECOND / 1000, VmState::Running).unwrap();
        assert_eq!(job.deadline_ms, None, "the guest has no part in it");
        begin(&mut resizing).await;
        // On the same thread, as the API is.
        let jobs = changes.jobs.clone();
        let client = tokio::spawn(async move {
            loop {
                let progress = jobs.read(job.id).unwrap().progress;
                if progress == Some(JobProgress { done: 1, total: 2 }) {
                    return jobs.cancel(job.id).unwrap();
                }
                tokio::task::yield_now().await;
            }
        });
        plug_in(&mut resizing, |_| {
            std::thread::sleep(SECOND / 100);
            Ok(())
        })
        .await;
        let next = resizing.next().await;
        assert!(matches!(next, Next::GiveUp { cancelled: true }), "{next:?}");
        client.await.unwrap();
        resizing.stop_plugging_in();
        let job = changes.jobs.read(job.id).unwrap();
        let one = Some(JobProgress { done: 1, total: 2 });
        assert_eq!((job.state, job.progress), (JobState::Cancelled, one));
        let status = changes.processors.status();
        assert_eq!((status.wanted, status.present, status.job), (3, 3, None));

        // A reset does the rest.
        let job = changes.resize(4, SECOND, VmState::Running).unwrap();
        begin(&mut resizing).await;
        resizing.reset();
        let job = changes.jobs.read(job.id).unwrap();
        assert_eq!(job.state, JobState::Succeeded);
        assert_eq!(changes.processors.start(), 4);
    }

    #[test]
    fn a_failure_tells_what_the_guest_answered() {
        let text = failure(&[(3, None), (2, Some(0x80)), (1, Some(0x99))]);
        assert!(
            text.contains("CPU 3, 2 (it does not support that), 1 (it answered 0x99);"),
            "{text}"
        );
    }
}
