//! Commands that wait for what they started.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answers::{ended, job, vm};
use super::fake::{Fake, answer};
use crate::cli::Status;

fn script(answers: &[(u16, Value)]) -> Fake {
    let answers = answers.iter().map(|(status, body)| answer(*status, body));
    Fake::script(answers.collect())
}

#[test]
fn jobs_are_waited_for() {
    let fake = script(&[
        (202, job("running")),
        (200, job("running")),
        (200, job("running")),
        (200, job("succeeded")),
    ]);
    assert_eq!(
        fake.ctl("disks remove data").well(),
        "job 3 (remove-device data) succeeded in 1.5 s\n"
    );
    assert_eq!(
        fake.lines(),
        [
            "DELETE /api/v1/vm/disks/data",
            "GET /api/v1/jobs/3",
            "GET /api/v1/jobs/3",
            "GET /api/v1/jobs/3",
        ]
    );
    let fake = script(&[(202, job("running")), (200, job("succeeded"))]);
    let printed = fake.ctl("nics add tap=t --json").well();
    assert_eq!(
        serde_json::from_str::<Value>(&printed).unwrap(),
        job("succeeded")
    );
}

#[test]
fn a_job_that_fails_is_a_failure() {
    for (state, told) in [
        (
            "failed",
            "job 3 (remove-device data) failed: the guest did not let go of it in time",
        ),
        (
            "cancelled",
            "job 3 (remove-device data) was cancelled after 1.5 s",
        ),
    ] {
        for words in ["disks remove data", "jobs wait 3", "jobs wait 3 --json"] {
            let fake = script(&[(202, job("running")), (200, job(state))]);
            let done = fake.ctl(words);
            assert_eq!(done.error(), told);
            assert_eq!(done.printed.is_empty(), !words.contains("--json"));
            assert_eq!(done.result.unwrap_err().status(), Status::Error);
        }
    }
}

/// A job of a kind, with a phase, that this program does not know.
fn new_job(state: &str) -> Value {
    let mut job = job(state);
    job["kind"] = json!("copy-volume");
    job["phase"] = json!("catching-up");
    job
}

#[test]
fn jobs_of_a_newer_process_are_waited_for_too() {
    for (state, told) in [
        ("succeeded", "job 3 (copy-volume data) succeeded in 1.5 s"),
        (
            "failed",
            "job 3 (copy-volume data) failed: the guest did not let go of it in time",
        ),
        ("expired", "job 3 (copy-volume data) ended: expired"),
    ] {
        // A state that is not known is no end without the time of it.
        let mut queued = new_job("queued");
        queued["ended_ms"] = Value::Null;
        for words in ["disks add a", "jobs wait 3"] {
            let running = new_job("running");
            let fake = script(&[(202, running), (200, queued.clone()), (200, new_job(state))]);
            let done = fake.ctl(words);
            assert_eq!(fake.lines().len(), 3, "{words}");
            if state == "succeeded" {
                assert_eq!(done.well(), format!("{told}\n"));
            } else {
                assert_eq!(done.error(), told);
            }
        }
    }
    let fake = script(&[(200, json!([new_job("running")]))]);
    let printed = fake.ctl("jobs list").well();
    assert!(
        printed.contains("3   copy-volume  data    running  catching-up"),
        "{printed}"
    );
}

#[test]
fn a_job_of_another_process_is_not_taken_for_it() {
    let mut other = job("succeeded");
    other["started_ms"] = json!(1_700_000_001_000_u64);
    let fake = script(&[(202, job("running")), (200, other)]);
    let error = fake.ctl("disks remove data").error();
    assert_eq!(
        error,
        "job 3 (remove-device data) is gone: its process has ended, and another one answers"
    );
}

#[test]
fn nobody_has_to_wait() {
    let fake = script(&[(202, job("running"))]);
    let printed = fake.ctl("disks remove data --no-wait").well();
    assert!(
        printed.starts_with("job 3 (remove-device data): waiting-for-guest, ")
            && printed.ends_with(" of at most 30.0 s\n"),
        "{printed}"
    );
    assert_eq!(fake.lines().len(), 1);
    let printed = fake.ctl("nics remove data --no-wait --json").well();
    assert_eq!(
        serde_json::from_str::<Value>(&printed).unwrap(),
        job("running")
    );
}

#[test]
fn waiting_has_the_end_that_is_wanted() {
    let fake = script(&[(202, job("running"))]);
    let started = Instant::now();
    let done = fake.ctl("disks remove data --max-wait 1");
    let waited = started.elapsed();
    assert!(
        waited > Duration::from_millis(900) && waited < Duration::from_secs(20),
        "{waited:?}"
    );
    let error = done.error();
    let ctl = format!("paddock ctl --api-socket {}", fake.socket().display());
    assert!(
        error.starts_with("it takes longer than --max-wait: job 3 (remove-device data) goes on\n"),
        "{error}"
    );
    assert!(error.contains(&format!("{ctl} jobs wait 3\n")), "{error}");
    assert!(error.ends_with(&format!("{ctl} jobs cancel 3")), "{error}");
    assert!(fake.lines().len() < 40, "it does not ask all the time");
}

#[test]
fn a_job_that_was_forgotten_is_told() {
    let problem = json!({"title": "Not Found", "status": 404, "code": "no-job", "detail": "there is no job 3"});
    let fake = script(&[(202, job("running")), (404, problem)]);
    let error = fake.ctl("disks remove data").error();
    assert!(error.starts_with("there is no job 3 (no-job)"), "{error}");
}

#[test]
fn cancelling_waits_too() {
    let fake = script(&[(202, job("running")), (200, job("cancelled"))]);
    let printed = fake.ctl("jobs cancel 3").well();
    assert_eq!(
        printed,
        "job 3 (remove-device data) was cancelled after 1.5 s\n"
    );
    assert_eq!(
        fake.lines(),
        ["POST /api/v1/jobs/3/cancel", "GET /api/v1/jobs/3"]
    );
    let fake = script(&[(202, job("running")), (200, job("succeeded"))]);
    let done = fake.ctl("jobs cancel 3");
    assert!(
        done.error()
            .starts_with("it ended before it was cancelled: job 3"),
        "{done:?}"
    );
}

#[test]
fn a_vm_is_waited_for_until_it_runs() {
    let fake = script(&[
        (201, vm("starting")),
        (200, vm("stopping")),
        (200, vm("running")),
    ]);
    assert_eq!(
        fake.ctl("vm create --kernel k").well(),
        "the VM is running\n"
    );
    assert_eq!(fake.lines().len(), 3);
    let fake = script(&[(201, vm("starting"))]);
    let printed = fake.ctl("vm create --kernel k --no-wait").well();
    assert_eq!(printed, "the VM is being started\n");
    let error = fake.ctl("vm create --kernel k --max-wait 1").error();
    assert!(error.contains("the VM is still being started"), "{error}");

    let failed = ended("failed", "no such file", "/boot/kernel");
    let fake = script(&[(201, vm("starting")), (200, failed)]);
    let done = fake.ctl("vm create --kernel k");
    assert_eq!(
        done.error(),
        "the VM could not be built: /boot/kernel: no such file"
    );
    assert_eq!(done.result.unwrap_err().status(), Status::Error);
}
