//! The events, over connections that are lost.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::fake::{Fake, stream};
use crate::cli::Status;

fn messages(numbers: std::ops::RangeInclusive<u64>) -> String {
    numbers.fold(String::new(), |mut text, seq| {
        let data = json!({"seq": seq, "time_ms": seq, "type": "state", "state": "running"});
        let _ = write!(text, ": alive\n\nid: {seq}\nevent: state\ndata: {data}\n\n");
        text
    })
}

fn numbers(printed: &str) -> Vec<u64> {
    let events = printed.lines().map(serde_json::from_str::<Value>);
    events
        .map(|event| event.unwrap()["seq"].as_u64().unwrap())
        .collect()
}

/// With the end that a stream has.
fn whole(text: &str) -> Vec<u8> {
    [stream(text), b"0\r\n\r\n".to_vec()].concat()
}

#[test]
fn a_lost_connection_is_made_again_where_it_was() {
    let fake = Fake::script(vec![
        stream(&messages(1..=3)),
        // One that brings nothing.
        stream(": alive\n\n"),
        whole(&messages(4..=5)),
    ]);
    let printed = fake.ctl("events --after 0 --json").well();
    assert_eq!(numbers(&printed), [1, 2, 3, 4, 5]);
    assert_eq!(
        fake.lines(),
        [
            "GET /api/v1/events?after=0",
            "GET /api/v1/events?after=3",
            "GET /api/v1/events?after=3",
        ]
    );
}

#[test]
fn it_is_not_made_again_for_ever() {
    let fake = Fake::script(vec![stream(&messages(1..=1)), stream(": alive\n\n")]);
    let done = fake.ctl("events");
    assert!(done.error().contains("the connection ended"), "{done:?}");
    assert!(done.printed.contains("state     running"), "{done:?}");
    assert_eq!(fake.lines().len(), 6);
    // Without any event there is no place to go on from.
    let fake = Fake::script(vec![stream(": alive\n\n")]);
    assert!(fake.ctl("events").error().contains("the connection ended"));
    assert_eq!(fake.lines(), ["GET /api/v1/events"]);
}

#[test]
fn an_end_before_the_wanted_number_is_a_failure() {
    let fake = Fake::script(vec![stream(&messages(1..=3)), whole(&messages(4..=5))]);
    let done = fake.ctl("events --after 0 --count 6 --json");
    assert_eq!(done.error(), "the process ended after 5 of 6 events");
    assert_eq!(numbers(&done.printed), [1, 2, 3, 4, 5]);
    assert_eq!(done.result.unwrap_err().status(), Status::Error);
    // As many as were wanted, or no number.
    for words in ["events --count 2", "events"] {
        Fake::script(vec![whole(&messages(1..=2))])
            .ctl(words)
            .well();
    }
}

#[test]
fn gaps_are_told() {
    let gap = "id: 4\nevent: gap\ndata: {\"lost\":4}\n\n";
    let fake = Fake::script(vec![whole(&(gap.to_owned() + &messages(5..=5)))]);
    let printed = fake.ctl("events --after 0").well();
    assert!(
        printed.starts_with("4                                gap       4 events were lost"),
        "{printed}"
    );
    let printed = fake.ctl("events --after 0 --json --count 1").well();
    assert_eq!(
        serde_json::from_str::<Value>(&printed).unwrap(),
        json!({"type": "gap", "seq": 4, "lost": 4})
    );
}
