//! Jobs.

use std::time::{Duration, SystemTime};

use paddock_api::jobs::{Job, JobState};

use super::{Cell, Page, word};

/// Jobs, a line each.
pub fn jobs(page: &mut Page, jobs: &[Job]) {
    let rows = jobs.iter().map(|job| {
        vec![
            Cell::new(job.id.to_string()),
            Cell::new(word(&job.kind)),
            Cell::new(&job.device),
            Cell::state(&job.state),
            Cell::new(word(&job.phase)),
            Cell::new(duration(elapsed(job))),
            Cell::new(job.failure.as_deref().unwrap_or_default()),
        ]
    });
    let headings = [
        "ID", "KIND", "DEVICE", "STATE", "PHASE", "ELAPSED", "FAILURE",
    ];
    page.table(&headings, rows.collect(), "no jobs");
}

/// Which job it is.
pub fn description(job: &Job) -> String {
    format!("job {} ({} {})", job.id, word(&job.kind), job.device)
}

/// How far it is.
pub fn so_far(job: &Job) -> String {
    let mut text = format!(
        "{}: {}, {}",
        description(job),
        word(&job.phase),
        duration(elapsed(job))
    );
    if let Some(deadline) = job.deadline_ms {
        let limit = Duration::from_millis(deadline.saturating_sub(job.started_ms));
        text += &format!(" of at most {}", duration(limit));
    }
    text
}

/// How it ended.
pub fn outcome(job: &Job) -> String {
    let described = description(job);
    let elapsed = duration(elapsed(job));
    match (job.state, &job.failure) {
        (JobState::Running, _) => so_far(job),
        (JobState::Succeeded, _) => format!("{described} succeeded in {elapsed}"),
        (JobState::Cancelled, _) => format!("{described} was cancelled after {elapsed}"),
        (JobState::Failed, Some(failure)) => format!("{described} failed: {failure}"),
        (JobState::Failed, None) => format!("{described} failed"),
    }
}

/// The server's clock is this host's.
fn elapsed(job: &Job) -> Duration {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let end = job.ended_ms.map_or_else(now, Duration::from_millis);
    end.saturating_sub(Duration::from_millis(job.started_ms))
}

/// A duration as people measure it: tenths of seconds, and from a minute on whole ones.
pub fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
    }
}
