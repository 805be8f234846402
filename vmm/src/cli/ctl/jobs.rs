//! Jobs: listed, shown, cancelled, waited for.

use hyper::Method;
use paddock_api::jobs::JobProgress;
use serde::Deserialize;

use super::CtlError;
use super::args::{JobsCommand, Patience};
use super::client::{Answer, Call};
use super::progress::{Counted, Progress};
use super::render;
use super::session::{Pace, Session};

/// A job as the API tells it. Words, because a newer process may have more of them.
#[derive(Debug, Clone, Deserialize)]
pub struct ToldJob {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub kind: String,
    /// What it is about, if that has a name.
    #[serde(default)]
    pub device: String,
    /// Whether it runs, and how it ended.
    pub state: String,
    /// How far it is.
    #[serde(default)]
    pub phase: String,
    /// How much of it is done, if that can be counted.
    #[serde(default)]
    pub progress: Option<JobProgress>,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ends at the latest.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// When it ended.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// Why it failed.
    #[serde(default)]
    pub failure: Option<String>,
}

impl ToldJob {
    /// Whether nothing more comes of it.
    pub fn is_over(&self) -> bool {
        let ended = ["succeeded", "failed", "cancelled"];
        self.ended_ms.is_some() || ended.contains(&self.state.as_str())
    }

    /// Whether both are the same job. Each process counts from 1, and another one may answer by now.
    fn is(&self, other: &Self) -> bool {
        (self.id, self.started_ms) == (other.id, other.started_ms)
    }
}

/// `paddock ctl jobs`
pub async fn execute(session: &Session, command: &JobsCommand) -> Result<(), CtlError> {
    match command {
        JobsCommand::List => {
            let call = Call::get(&["jobs"]);
            let list = |page: &mut _, jobs: &Vec<ToldJob>| render::jobs(page, jobs);
            session.show(call, list).await
        }
        JobsCommand::Show(args) => {
            let one = |page: &mut _, job: &ToldJob| render::jobs(page, std::slice::from_ref(job));
            session.show(read(args.id), one).await
        }
        JobsCommand::Cancel(args) => cancel(session, args.id, args.wait.into()).await,
        JobsCommand::Wait(args) => {
            let answer = session.client.call(read(args.id)).await?;
            finish(session, answer, Patience::up_to(args.max_wait)).await
        }
    }
}

fn read(id: u64) -> Call {
    Call::get(&["jobs", &id.to_string()])
}

async fn cancel(session: &Session, id: u64, patience: Patience) -> Result<(), CtlError> {
    let call = Call::new(Method::POST, &["jobs", &id.to_string(), "cancel"]);
    let answer = session.client.call(call).await?;
    let Patience::UpTo(_) = patience else {
        session.print_json(&answer.text)?;
        return session.say(&format!("job {id} will be cancelled"));
    };
    let (job, answer) = end_of(session, answer, patience).await?;
    session.print_json(&answer.text)?;
    match job.state.as_str() {
        "cancelled" => session.say(&render::outcome(&job)),
        _ => {
            let outcome = render::outcome(&job);
            Err(CtlError::Failed(format!(
                "it ended before it was cancelled: {outcome}"
            )))
        }
    }
}

/// Waits for the end of the job that an answer is, as far as patience goes, and tells it.
pub async fn finish(session: &Session, answer: Answer, patience: Patience) -> Result<(), CtlError> {
    let (job, answer) = end_of(session, answer, patience).await?;
    session.print_json(&answer.text)?;
    if job.is_over() && job.state != "succeeded" {
        return Err(CtlError::Failed(render::outcome(&job)));
    }
    session.say(&render::outcome(&job))
}

/// The job at its end, or as it is where nobody waits.
async fn end_of(
    session: &Session,
    answer: Answer,
    patience: Patience,
) -> Result<(ToldJob, Answer), CtlError> {
    let job: ToldJob = answer.parse()?;
    let Patience::UpTo(limit) = patience else {
        return Ok((job, answer));
    };
    let id = job.id;
    let described = render::description(&job);
    let advice = || {
        let ctl = session.command();
        format!(
            "{described} goes on\n  to wait for it again: {ctl} jobs wait {id}\n  to cancel it:         {ctl} jobs cancel {id}",
        )
    };
    let end = watch(session, job, answer);
    session.wait_for(limit, advice, end).await
}

/// Looks at the job until it has ended. Each look is a connection of its own: a process that is started anew knows no such job, and
/// says so.
async fn watch(
    session: &Session,
    mut job: ToldJob,
    mut answer: Answer,
) -> Result<(ToldJob, Answer), CtlError> {
    let mut progress = Progress::start();
    let mut pace = Pace::default();
    while !job.is_over() {
        let counted = job.progress.map(|progress| Counted {
            progress,
            bytes: job.kind == "add-replica",
        });
        progress.tell(&render::stage(&job), &render::time(&job), counted);
        pace.pause().await;
        answer = session.client.call(read(job.id)).await?;
        let now: ToldJob = answer.parse()?;
        if !now.is(&job) {
            let described = render::description(&job);
            let told =
                format!("{described} is gone: its process has ended, and another one answers");
            return Err(CtlError::Failed(told));
        }
        job = now;
    }
    Ok((job, answer))
}
