//! The power button, and the end after it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::answers::vm;
use super::fake::{Fake, answer, chunk, stream};
use crate::cli::Status;

const WORDS: &str = "vm power-button --wait";
/// What is asked for, and nothing after the press: that might start the process anew.
const ASKED: [&str; 3] = [
    "GET /api/v1/events",
    "GET /api/v1/vm",
    "POST /api/v1/vm/actions/power-button",
];

/// What a process does once the button is pressed.
#[derive(Clone, Copy)]
enum Then {
    /// It lives on.
    Lives,
    /// It ends as it should.
    Ends,
    /// It is killed.
    IsKilled,
}

fn event(seq: u64, kind: &str, mut data: Value) -> String {
    data["seq"] = json!(seq);
    data["time_ms"] = json!(1);
    data["type"] = json!(kind);
    format!("id: {seq}\nevent: {kind}\ndata: {data}\n\n")
}

fn end(seq: u64, end: &Value) -> String {
    event(seq, "ended", json!({ "end": end }))
}

fn powered_off() -> Value {
    json!({"reason": "powered-off"})
}

/// A process whose VM's last event so far is number 2, and which tells these events after the press.
fn process(events: String, then: Then) -> Fake {
    let follower = Arc::new(Mutex::new(None::<UnixStream>));
    Fake::with(
        move |_, request, mut stream_| match request.method.as_str() {
            "GET" if request.target.ends_with("/events") => {
                // Of another VM, which the one that is read is not.
                let before = end(2, &powered_off());
                stream_.write_all(&stream(&before)).unwrap();
                *follower.lock() = Some(stream_);
            }
            "GET" => stream_.write_all(&answer(200, &vm("running"))).unwrap(),
            _ => {
                stream_.write_all(&answer(202, &Value::Null)).unwrap();
                let mut slot = follower.lock();
                let kept = slot.as_mut().unwrap();
                if !events.is_empty() {
                    kept.write_all(&chunk(&events)).unwrap();
                }
                match then {
                    Then::Lives => {}
                    Then::Ends => kept.write_all(b"0\r\n\r\n").unwrap(),
                    Then::IsKilled => *slot = None,
                }
            }
        },
    )
}

#[test]
fn the_end_is_seen_on_one_connection() {
    let pressed = event(3, "action", json!({"action": "power-button"}));
    let told = "the power button was pressed\nthe VM ended: its guest powered off\n";
    for then in [Then::Lives, Then::Ends, Then::IsKilled] {
        let events = pressed.clone() + &end(4, &powered_off());
        let fake = process(events, then);
        assert_eq!(fake.ctl(WORDS).well(), told);
        assert_eq!(fake.lines(), ASKED);
    }
    let fake = process(pressed + &end(4, &powered_off()), Then::Ends);
    let printed = fake.ctl(&format!("{WORDS} --json")).well();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        printed,
        json!({"seq": 4, "time_ms": 1, "type": "ended", "end": {"reason": "powered-off"}})
    );
}

#[test]
fn an_end_that_is_none_of_a_power_button_is_a_failure() {
    let crash = json!({"reason": "crashed", "detail": "RIP 0\nCR3 1\n"});
    let fake = process(end(3, &crash), Then::Ends);
    let done = fake.ctl(WORDS);
    assert_eq!(done.error(), "the guest crashed: RIP 0\nCR3 1");
    assert_eq!(done.result.unwrap_err().status(), Status::Error);
    let fake = process(event(3, "ended", json!({"end": 3})), Then::Ends);
    let error = fake.ctl(WORDS).error();
    assert!(error.contains("the VM's end is not understood"), "{error}");
}

#[test]
fn a_vm_that_is_gone_is_told() {
    let gone = "the power button was pressed\nthe VM is gone\n";
    for (events, then) in [
        // A process that ran one VM ends with it.
        (String::new(), Then::Ends),
        // Another client was faster.
        (event(3, "deleted", json!({})), Then::Lives),
        (event(3, "created", json!({"name": "next"})), Then::Lives),
    ] {
        let fake = process(events, then);
        assert_eq!(fake.ctl(WORDS).well(), gone);
        assert_eq!(fake.lines(), ASKED);
    }
}

#[test]
fn what_is_not_known_is_no_success() {
    let gap = "id: 9\nevent: gap\ndata: {\"lost\":7}\n\n".to_owned();
    for (events, then, told) in [
        (String::new(), Then::IsKilled, "the connection was lost: "),
        (gap, Then::Lives, "events were lost: "),
    ] {
        let fake = process(events, then);
        let done = fake.ctl(WORDS);
        let error = done.error();
        assert!(error.starts_with(told), "{error}");
        assert!(error.ends_with("vm show"), "{error}");
        assert_eq!(done.result.unwrap_err().status(), Status::Error);
        assert_eq!(fake.lines(), ASKED);
    }
}

#[test]
fn waiting_for_it_has_the_end_that_is_wanted() {
    let fake = process(String::new(), Then::Lives);
    let error = fake.ctl(&format!("{WORDS} --max-wait 1")).error();
    assert!(error.contains("the guest has not powered off"), "{error}");
    assert_eq!(fake.lines(), ASKED);
    // Nothing is pressed where the end could not be seen, or there is no VM.
    let problem = json!({"detail": "there is no VM", "code": "no-vm"});
    let fake = Fake::start(move |number, _| match number {
        0 => stream(": alive\n\n"),
        _ => answer(404, &problem),
    });
    let error = fake.ctl(WORDS).error();
    assert!(error.starts_with("there is no VM (no-vm)"), "{error}");
    assert_eq!(fake.lines(), ASKED[..2]);
}
