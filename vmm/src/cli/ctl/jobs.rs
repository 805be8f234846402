//! Jobs: listed, shown, cancelled, waited for.

use hyper::Method;
use paddock_api::jobs::{Job, JobState};

use super::CtlError;
use super::args::{JobsCommand, Patience};
use super::client::{Answer, Call};
use super::output::Progress;
use super::render;
use super::session::{Pace, Session};

/// `paddock ctl jobs`
pub async fn execute(session: &Session, command: &JobsCommand) -> Result<(), CtlError> {
    match command {
        JobsCommand::List => {
            let call = Call::get(&["jobs"]);
            let list = |page: &mut _, jobs: &Vec<Job>| render::jobs(page, jobs);
            session.show(call, list).await
        }
        JobsCommand::Show(args) => {
            let one = |page: &mut _, job: &Job| render::jobs(page, std::slice::from_ref(job));
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
    match job.state {
        JobState::Cancelled => session.say(&render::outcome(&job)),
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
    match job.state {
        JobState::Running | JobState::Succeeded => session.say(&render::outcome(&job)),
        JobState::Failed | JobState::Cancelled => Err(CtlError::Failed(render::outcome(&job))),
    }
}

/// The job at its end, or as it is where nobody waits.
async fn end_of(
    session: &Session,
    answer: Answer,
    patience: Patience,
) -> Result<(Job, Answer), CtlError> {
    let job: Job = answer.parse()?;
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

/// Looks at the job until it has ended.
async fn watch(
    session: &Session,
    mut job: Job,
    mut answer: Answer,
) -> Result<(Job, Answer), CtlError> {
    let progress = Progress::start();
    let mut pace = Pace::default();
    while job.state == JobState::Running {
        progress.tell(&render::so_far(&job));
        pace.pause().await;
        answer = session.client.call(read(job.id)).await?;
        job = answer.parse()?;
    }
    Ok((job, answer))
}
