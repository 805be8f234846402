//! Events, a line each.
//!
//! Taken as JSON and not as the API's type: a newer process may have events that this program does not know, and they are shown as
//! they are.

use std::time::{Duration, SystemTime};

use paddock_api::jobs::JobProgress;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jobs::{counted, duration};
use super::{Cell, Colour, Page, bytes};

/// Columns of a number and a name that most events have.
const WIDTHS: [usize; 3] = [5, 24, 8];

/// What has a column or a line of its own.
const HEAD: [&str; 3] = ["seq", "time_ms", "type"];

/// An event, or a gap in them.
pub fn event(page: &mut Page, event: &Value) {
    let empty = Map::new();
    let fields = event.as_object().unwrap_or(&empty);
    let seq = fields.get("seq").map(Value::to_string);
    let kind = text(fields, "type");
    let cells = [
        Cell::coloured(seq.unwrap_or_default(), Colour::Dim),
        Cell::coloured(time(fields), Colour::Dim),
        Cell::coloured(kind, Colour::Bold),
        what(kind, fields),
    ];
    page.line(&cells, &WIDTHS);
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> &'a str {
    fields.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// When it happened: UTC, by the millisecond.
fn time(fields: &Map<String, Value>) -> String {
    let time = fields.get("time_ms").and_then(Value::as_u64);
    time.map(moment).unwrap_or_default()
}

/// Milliseconds since 1970: UTC.
pub(super) fn moment(time: u64) -> String {
    // A nonsensical time is shown as it is: formatting knows no years from 10000 on.
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(time));
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    time.filter(|time| *time <= last).map_or_else(
        || "?".to_owned(),
        |time| humantime::format_rfc3339_millis(time).to_string(),
    )
}

fn what(kind: &str, fields: &Map<String, Value>) -> Cell {
    let empty = Map::new();
    let inner = |key: &str| fields.get(key).and_then(Value::as_object).unwrap_or(&empty);
    match kind {
        "created" => Cell::new(text(fields, "name")),
        "state" => state(text(fields, "state"), ""),
        "action" => Cell::new(text(fields, "action")),
        "medium" => {
            let (cdrom, path) = (text(fields, "cdrom"), text(fields, "path"));
            Cell::new(match path {
                "" => format!("{cdrom} is empty"),
                _ => format!("{cdrom} has {path}"),
            })
        }
        "job" => {
            let job = inner("job");
            let (state_now, phase) = (text(job, "state"), text(job, "phase"));
            let counted = |told| {
                let progress = JobProgress::deserialize(told).ok();
                counted(text(job, "kind"), progress)
            };
            let id = job.get("id").map(Value::to_string).unwrap_or_default();
            let told = match state_now {
                "running" => match job.get("progress").and_then(counted) {
                    None => phase.to_owned(),
                    Some(counted) => format!("{phase}, {counted}"),
                },
                "failed" => format!("failed: {}", text(job, "failure")),
                ended => ended.to_owned(),
            };
            let what = format!("{id} {} {}: ", text(job, "kind"), text(job, "device"));
            let colour = Colour::of_state(state_now);
            let colour = if state_now == "running" {
                Colour::None
            } else {
                colour
            };
            Cell::coloured(what + &told, colour)
        }
        "ended" => {
            let end = inner("end");
            let more = [text(end, "pointer"), text(end, "detail")];
            // The first line of a crash; `vm show` has all of it.
            let more = more.map(|text| text.lines().next().unwrap_or_default());
            let more: Vec<_> = more.into_iter().filter(|text| !text.is_empty()).collect();
            state(text(end, "reason"), &more.join(": "))
        }
        "variables" => match text(fields, "error") {
            "" => Cell::coloured("written again", Colour::Green),
            error => Cell::coloured(error, Colour::Red),
        },
        "disk-error" => {
            let (disk, error) = (text(fields, "disk"), text(fields, "error"));
            Cell::coloured(format!("{disk}: {error}"), Colour::Red)
        }
        "disk-reporting" => {
            let (disk, error) = (text(fields, "disk"), text(fields, "error"));
            Cell::coloured(format!("{disk}: the guest is told: {error}"), Colour::Red)
        }
        "disk-recovered" => {
            let number = |key| fields.get(key).and_then(Value::as_u64).unwrap_or_default();
            let disk = text(fields, "disk");
            let (after, attempts) = (number("after_ms"), number("attempts"));
            let told = format!("{disk} after {after} ms, {attempts} attempts");
            Cell::coloured(told, Colour::Green)
        }
        "disk-resized" => {
            let size = fields.get("size").and_then(Value::as_u64);
            let size = size.map(bytes).unwrap_or_default();
            Cell::new(format!("{} has {size}", text(fields, "disk")))
        }
        "replica-added" | "replica-rebuilt" | "replica-failed" | "replica-reopened"
        | "replica-removed" | "comparison-started" | "comparison-done" | "record-failed"
        | "record-recovered" | "snapshot-taken" => volume(kind, fields),
        "deleted" => Cell::default(),
        "gap" => {
            let lost = fields.get("lost").and_then(Value::as_u64);
            let lost = lost.map_or_else(
                || "events were lost: another process answers now".to_owned(),
                |lost| format!("{lost} events were lost: the process keeps only the last ones"),
            );
            Cell::coloured(lost, Colour::Yellow)
        }
        _ => {
            let mut rest = fields.clone();
            rest.retain(|key, _| !HEAD.contains(&key.as_str()));
            Cell::new(Value::Object(rest).to_string())
        }
    }
}

/// What happened to a volume's replicas and snapshots.
fn volume(kind: &str, fields: &Map<String, Value>) -> Cell {
    let number = |key| fields.get(key).and_then(Value::as_u64).unwrap_or_default();
    let took = || duration(Duration::from_millis(number("took_ms")));
    let (disk, replica) = (text(fields, "disk"), text(fields, "replica"));
    let (told, colour) = match kind {
        "replica-added" => (format!("{replica} is being rebuilt"), Colour::Yellow),
        "replica-rebuilt" => (format!("{replica} after {}", took()), Colour::Green),
        "replica-failed" => {
            let reason = text(fields, "reason");
            (format!("{replica}: {reason}"), Colour::Red)
        }
        "replica-reopened" => (replica.to_owned(), Colour::Green),
        "replica-removed" => (replica.to_owned(), Colour::None),
        "comparison-started" => {
            let told = "its replicas were not closed".to_owned();
            (told, Colour::Yellow)
        }
        "comparison-done" => (format!("after {}", took()), Colour::Green),
        "record-failed" => {
            let error = text(fields, "error");
            (format!("writes wait: {error}"), Colour::Red)
        }
        "record-recovered" => {
            let after = duration(Duration::from_millis(number("after_ms")));
            (format!("after {after}"), Colour::Green)
        }
        _ => {
            let frozen = Duration::from_micros(number("frozen_us")).as_secs_f64() * 1000.0;
            let snapshot = text(fields, "snapshot");
            let told = format!("{snapshot}, I/O stood still for {frozen:.1} ms");
            (told, Colour::None)
        }
    };
    Cell::coloured(format!("{disk}: {told}"), colour)
}

fn state(word: &str, more: &str) -> Cell {
    let colour = Colour::of_state(word);
    if more.is_empty() {
        return Cell::coloured(word, colour);
    }
    Cell::coloured(format!("{word}: {more}"), colour)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(event_: &Value) -> String {
        let mut page = Page::new(false);
        event(&mut page, event_);
        page.into_text()
    }

    #[test]
    fn each_kind_has_its_line() {
        let job = |state: &str| {
            json!({"id": 3, "kind": "remove-device", "device": "data", "state": state, "phase": "waiting-for-guest",
                   "started_ms": 1, "failure": "it is \x1b[31m in use"})
        };
        for (event, told) in [
            (json!({"type": "created", "name": "web"}), "created   web"),
            (json!({"type": "created"}), "created"),
            (
                json!({"type": "state", "state": "running"}),
                "state     running",
            ),
            (json!({"type": "action", "action": "nmi"}), "action    nmi"),
            (
                json!({"type": "medium", "cdrom": "cdrom0", "path": "/a.iso"}),
                "medium    cdrom0 has /a.iso",
            ),
            (
                json!({"type": "medium", "cdrom": "cdrom0"}),
                "medium    cdrom0 is empty",
            ),
            (
                json!({"type": "job", "job": job("running")}),
                "job       3 remove-device data: waiting-for-guest",
            ),
            (
                json!({"type": "job", "job": job("failed")}),
                "job       3 remove-device data: failed: it is \\u{1b}[31m in use",
            ),
            (
                json!({"type": "ended", "end": {"reason": "failed", "pointer": "/boot", "detail": "a\nb"}}),
                "ended     failed: /boot: a",
            ),
            (
                json!({"type": "job", "job": {"id": 4, "kind": "resize-cpus", "device": "cpus", "state": "running", "phase": "opening",
                                              "progress": {"done": 1, "total": 2}}}),
                "job       4 resize-cpus cpus: opening, 1 of 2 CPUs",
            ),
            (
                json!({"type": "variables", "error": "vm.fd: cannot be written"}),
                "variables  vm.fd: cannot be written",
            ),
            (json!({"type": "variables"}), "variables  written again"),
            (
                json!({"type": "disk-error", "disk": "data", "errno": 5, "error": "Input/output error"}),
                "disk-error  data: Input/output error",
            ),
            (
                json!({"type": "disk-reporting", "disk": "data", "errno": 5, "error": "Input/output error"}),
                "disk-reporting  data: the guest is told: Input/output error",
            ),
            (
                json!({"type": "disk-recovered", "disk": "data", "after_ms": 7, "attempts": 2}),
                "disk-recovered  data after 7 ms, 2 attempts",
            ),
            (
                json!({"type": "disk-resized", "disk": "data", "size": 2048}),
                "disk-resized  data has 2 KiB",
            ),
            (
                json!({"type": "replica-added", "disk": "data", "replica": "a:1"}),
                "replica-added  data: a:1 is being rebuilt",
            ),
            (
                json!({"type": "replica-rebuilt", "disk": "data", "replica": "a:1", "took_ms": 1500}),
                "replica-rebuilt  data: a:1 after 1.5 s",
            ),
            (
                json!({"type": "replica-failed", "disk": "data", "replica": "a:1", "reason": "gone", "rebuilding": false}),
                "replica-failed  data: a:1: gone",
            ),
            (
                json!({"type": "replica-reopened", "disk": "data", "replica": "a:1"}),
                "replica-reopened  data: a:1",
            ),
            (
                json!({"type": "replica-removed", "disk": "data", "replica": "a:1"}),
                "replica-removed  data: a:1",
            ),
            (
                json!({"type": "comparison-started", "disk": "data"}),
                "comparison-started  data: its replicas were not closed",
            ),
            (
                json!({"type": "comparison-done", "disk": "data", "took_ms": 100}),
                "comparison-done  data: after 0.1 s",
            ),
            (
                json!({"type": "record-failed", "disk": "data", "error": "r: No space left on device"}),
                "record-failed  data: writes wait: r: No space left on device",
            ),
            (
                json!({"type": "record-recovered", "disk": "data", "after_ms": 2500}),
                "record-recovered  data: after 2.5 s",
            ),
            (
                json!({"type": "snapshot-taken", "disk": "data", "snapshot": "s", "frozen_us": 1500}),
                "snapshot-taken  data: s, I/O stood still for 1.5 ms",
            ),
            (json!({"type": "deleted"}), "deleted"),
            (
                json!({"type": "throttled", "by": 2}),
                "throttled  {\"by\":2}",
            ),
        ] {
            let mut event = event;
            event["seq"] = json!(12);
            event["time_ms"] = json!(1_700_000_000_123_u64);
            assert_eq!(
                line(&event),
                format!("12     2023-11-14T22:13:20.123Z  {told}\n")
            );
        }
        let gap = line(&json!({"type": "gap", "seq": 4, "lost": 3}));
        assert!(gap.contains("3 events were lost"), "{gap}");
    }

    #[test]
    fn nonsense_is_shown_and_harms_nobody() {
        for event in [
            json!(null),
            json!([1]),
            json!({"seq": "x", "time_ms": u64::MAX, "type": "job", "job": 3}),
            json!({"type": 3}),
            json!({"type": "job", "job": {"state": "running", "progress": [1]}}),
        ] {
            assert!(line(&event).ends_with('\n'), "{event}");
        }
    }
}
