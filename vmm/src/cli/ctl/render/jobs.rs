//! Jobs.

use std::time::{Duration, SystemTime};

use super::{Cell, Page};
use crate::cli::ctl::jobs::ToldJob;

/// Jobs, a line each.
pub fn jobs(page: &mut Page, jobs: &[ToldJob]) {
    let rows = jobs.iter().map(|job| {
        vec![
            Cell::new(job.id.to_string()),
            Cell::new(&job.kind),
            Cell::new(&job.device),
            Cell::state(&job.state),
            Cell::new(&job.phase),
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
pub fn description(job: &ToldJob) -> String {
    let what = format!("{} {}", job.kind, job.device);
    format!("job {} ({})", job.id, what.trim_end())
}

/// How far it is.
pub fn so_far(job: &ToldJob) -> String {
    let mut text = format!(
        "{}: {}, {}",
        description(job),
        job.phase,
        duration(elapsed(job))
    );
    if let Some(deadline) = job.deadline_ms {
        let limit = Duration::from_millis(deadline.saturating_sub(job.started_ms));
        text += &format!(" of at most {}", duration(limit));
    }
    text
}

/// How it ended.
pub fn outcome(job: &ToldJob) -> String {
    let described = description(job);
    let elapsed = duration(elapsed(job));
    let told = match job.state.as_str() {
        _ if !job.is_over() => return so_far(job),
        "succeeded" => return format!("{described} succeeded in {elapsed}"),
        "cancelled" => return format!("{described} was cancelled after {elapsed}"),
        "failed" => format!("{described} failed"),
        other => format!("{described} ended: {other}"),
    };
    match &job.failure {
        Some(failure) => format!("{told}: {failure}"),
        None => told,
    }
}

/// The server's clock is this host's.
fn elapsed(job: &ToldJob) -> Duration {
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
