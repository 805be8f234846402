//! Jobs.

use std::time::{Duration, SystemTime};

use paddock_api::jobs::JobProgress;

use super::{Cell, Page, bytes};
use crate::cli::ctl::jobs::ToldJob;

/// Jobs, a line each.
pub fn jobs(page: &mut Page, jobs: &[ToldJob]) {
    let rows = jobs.iter().map(|job| {
        vec![
            Cell::new(job.id.to_string()),
            Cell::new(&job.kind),
            Cell::new(&job.device),
            Cell::state(&job.state),
            Cell::new(phase(job)),
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
pub fn stage(job: &ToldJob) -> String {
    format!("{}: {}", description(job), phase(job))
}

/// The phase, with what can be counted in it.
fn phase(job: &ToldJob) -> String {
    match counted(&job.kind, job.progress) {
        None => job.phase.clone(),
        Some(counted) => format!("{}, {counted}", job.phase),
    }
}

/// How much of a job of this kind is done.
pub(super) fn counted(kind: &str, progress: Option<JobProgress>) -> Option<String> {
    let JobProgress { done, total } = progress?;
    let things = match kind {
        "resize-cpus" if total == 1 => " CPU",
        "resize-cpus" => " CPUs",
        "add-replica" => return Some(format!("{} of {}", bytes(done), bytes(total))),
        "remove-snapshot" => " per cent",
        // A newer process may count more.
        _ => "",
    };
    Some(format!("{done} of {total}{things}"))
}

/// How long it takes so far, and may take.
pub fn time(job: &ToldJob) -> String {
    let elapsed = duration(elapsed(job));
    match job.deadline_ms {
        None => elapsed,
        Some(deadline) => {
            let limit = Duration::from_millis(deadline.saturating_sub(job.started_ms));
            format!("{elapsed} of at most {}", duration(limit))
        }
    }
}

/// How it ended.
pub fn outcome(job: &ToldJob) -> String {
    let described = description(job);
    let elapsed = duration(elapsed(job));
    let told = match job.state.as_str() {
        _ if !job.is_over() => return format!("{}, {}", stage(job), time(job)),
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(kind: &str, progress: &Value) -> ToldJob {
        serde_json::from_value(json!({
            "id": 3, "kind": kind, "device": "cpus", "state": "running", "phase": "waiting-for-guest", "started_ms": 5,
            "progress": progress,
        }))
        .unwrap()
    }

    #[test]
    fn what_is_counted_is_told() {
        for (kind, progress, told) in [
            (
                "resize-cpus",
                json!({"done": 1, "total": 3}),
                "waiting-for-guest, 1 of 3 CPUs",
            ),
            (
                "resize-cpus",
                json!({"done": 0, "total": 1}),
                "waiting-for-guest, 0 of 1 CPU",
            ),
            // As a newer process may have it.
            (
                "copy-volume",
                json!({"done": 7, "total": 9, "unit": "MiB"}),
                "waiting-for-guest, 7 of 9",
            ),
            (
                "add-replica",
                json!({"done": 3 << 20, "total": 4_u64 << 30}),
                "waiting-for-guest, 3 MiB of 4 GiB",
            ),
            (
                "remove-snapshot",
                json!({"done": 40, "total": 100}),
                "waiting-for-guest, 40 of 100 per cent",
            ),
            ("resize-cpus", Value::Null, "waiting-for-guest"),
        ] {
            let job = job(kind, &progress);
            assert_eq!(stage(&job), format!("job 3 ({kind} cpus): {told}"));
            let mut page = Page::new(false);
            jobs(&mut page, &[job]);
            let page = page.into_text();
            assert!(page.contains(&format!("running  {told}  ")), "{page}");
        }
    }
}
