//! What a server sends does nothing to a terminal.

use serde_json::{Value, json};

use super::answers::{job, vm};
use super::fake::{Done, Fake, Request, answer, stream, text};

/// Begins with `CSI` as one character; all of it may be in a JSON string as it is.
const EVIL: &str = "\u{9b}2J\u{7f}\u{85}é";

fn metrics() -> String {
    format!("# HELP a_total \x1b[2J{EVIL}\r\n# TYPE a_total counter\na_total{{d=\"{EVIL}\"}} 3\n")
}

/// Answers that are what the API has, but for what is in their texts.
fn evil(request: &Request) -> Vec<u8> {
    let target = request.target.strip_prefix("/api/v1/").unwrap();
    let body = match target.split('?').next().unwrap() {
        "metrics" => return text(&metrics()),
        "events" => {
            let data = json!({"seq": 1, "time_ms": 1, "type": EVIL, "more": EVIL});
            return stream(&format!("id: 1\nevent: state\ndata: {data}\n\n"));
        }
        "vm" => {
            let mut vm = vm("running");
            vm["spec"]["name"] = json!(EVIL);
            vm
        }
        "openapi.json" => json!({"openapi": EVIL}),
        // As another version has it.
        "vm/disks" => json!([{"id": EVIL, "news": EVIL}]),
        "vm/nics" => return answer(409, &json!({"detail": EVIL, "code": EVIL})),
        _ => {
            let mut job = job("succeeded");
            job["device"] = json!(EVIL);
            job
        }
    };
    answer(200, &body)
}

/// All that a command tells.
fn told(done: &Done) -> String {
    let error = done.result.is_err().then(|| done.error());
    format!("{}{}", done.printed, error.unwrap_or_default())
}

#[track_caller]
fn is_harmless(text: &str) {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    assert!(!text.chars().any(obeyed), "{text:?}");
}

const COMMANDS: [&str; 8] = [
    "metrics",
    "openapi",
    "vm show",
    "disks list",
    "nics list",
    "jobs show 3",
    "jobs wait 3",
    "events --count 1",
];

#[test]
fn nothing_is_obeyed_on_a_terminal() {
    let fake = Fake::start(|_, request| evil(request));
    for words in COMMANDS {
        for words in [words.to_owned(), format!("{words} --json")] {
            let told = told(&fake.ctl_on_terminal(&words));
            is_harmless(&told);
            assert!(told.contains('é'), "{words}: {told}");
        }
    }
}

#[test]
fn json_is_the_same_and_harmless_wherever_it_goes() {
    let fake = Fake::start(|_, request| evil(request));
    for words in COMMANDS {
        let printed = fake.ctl(&format!("{words} --json")).printed;
        is_harmless(&printed);
        let read: Value = serde_json::from_str(&printed).unwrap();
        let again = read.to_string();
        assert!(again.contains(EVIL), "{words}: {again:?}");
    }
}

#[test]
fn metrics_for_a_program_are_as_they_came() {
    let fake = Fake::start(|_, request| evil(request));
    let printed = fake.ctl("metrics").well();
    assert_eq!(printed, metrics());
}

#[test]
fn what_is_not_json_is_not_printed_as_such() {
    for words in [
        "openapi",
        "vm show --json",
        "jobs cancel 3 --no-wait --json",
    ] {
        let done = Fake::script(vec![text("\x1b[2J")]).ctl(words);
        let error = done.error();
        assert!(
            error.contains("its answer is not understood"),
            "{words}: {error}"
        );
        assert_eq!(done.printed, "", "{words}");
    }
}
