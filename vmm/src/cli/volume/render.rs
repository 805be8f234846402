//! Volumes as they are shown: JSON for programs, tables for people made of the same.

use paddock_storage::longhorn::{self as storage, Found, Inside, Standing};
use serde::Serialize;

use crate::cli::ctl::render::{Cell, Colour, Page, bytes};

/// A volume, as its replicas were found.
#[derive(Debug, Serialize)]
pub struct Volume {
    volume: String,
    replicas: Vec<Replica>,
}

#[derive(Debug, Serialize)]
struct Replica {
    address: String,
    standing: &'static str,
    problem: Option<String>,
    size: Option<u64>,
    head: Option<String>,
    head_bytes: Option<u64>,
    revision_counter: Option<u64>,
    chain: Option<Vec<String>>,
    snapshots: Option<Vec<Snapshot>>,
}

/// A snapshot.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    name: String,
    created: String,
    user_created: bool,
    removed: bool,
    size: u64,
    parent: Option<String>,
    labels: Vec<(String, String)>,
}

impl From<&storage::Snapshot> for Snapshot {
    fn from(snapshot: &storage::Snapshot) -> Self {
        let snapshot = snapshot.clone();
        Self {
            name: snapshot.name,
            created: snapshot.created,
            user_created: snapshot.user_created,
            removed: snapshot.removed,
            size: snapshot.size,
            parent: snapshot.parent,
            labels: snapshot.labels,
        }
    }
}

/// The word for it.
fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Complete => "complete",
        Standing::Unclean => "unclean",
        Standing::InUse => "in-use",
        Standing::Stale => "stale",
        Standing::Incomplete => "incomplete",
        Standing::Empty => "empty",
        Standing::Broken => "broken",
        Standing::Unreachable => "unreachable",
    }
}

impl From<&Found> for Replica {
    fn from(found: &Found) -> Self {
        let inside = found.inside.as_ref();
        let of = |inside: &Inside| inside.snapshots.iter().map(Snapshot::from).collect();
        Self {
            address: found.address.to_string(),
            standing: word(found.standing),
            problem: found.problem.clone(),
            size: found.size,
            head: inside.map(|inside| inside.head.clone()),
            head_bytes: inside.map(|inside| inside.head_bytes),
            revision_counter: inside.and_then(|inside| inside.revision_counter),
            chain: inside.map(|inside| inside.chain.clone()),
            snapshots: inside.map(of),
        }
    }
}

impl Volume {
    /// What was found.
    pub fn new(name: &str, found: &[Found]) -> Self {
        Self {
            volume: name.to_owned(),
            replicas: found.iter().map(Replica::from).collect(),
        }
    }
}

fn standing(word: &str) -> Cell {
    let colour = match word {
        "complete" => Colour::Green,
        "unclean" | "in-use" | "empty" => Colour::Yellow,
        _ => Colour::Red,
    };
    Cell::coloured(word, colour)
}

fn row(replica: &Replica) -> Vec<Cell> {
    let size = |size: Option<u64>| Cell::new(size.map(bytes).unwrap_or_default());
    let number =
        |number: Option<u64>| Cell::new(number.map_or_else(String::new, |n| n.to_string()));
    let chain = replica.chain.as_ref();
    vec![
        Cell::new(&replica.address),
        standing(replica.standing),
        size(replica.size),
        number(replica.revision_counter),
        size(replica.head_bytes),
        number(chain.map(|chain| chain.len() as u64)),
        Cell::new(replica.problem.as_deref().unwrap_or_default()),
    ]
}

/// The replicas, a line each, and the snapshots of the best of them.
pub fn volume(page: &mut Page, volume: &Volume) {
    let headings = [
        "REPLICA",
        "STANDING",
        "SIZE",
        "WRITES",
        "HEAD",
        "SNAPSHOTS",
        "PROBLEM",
    ];
    let rows = volume.replicas.iter().map(row).collect();
    page.table(&headings, rows, "no replicas");
    let complete = |replica: &&Replica| replica.standing == "complete";
    let mut open = volume.replicas.iter().filter(|r| r.snapshots.is_some());
    let best = open.clone().find(complete).or_else(|| open.next());
    if let Some(list) = best.and_then(|best| best.snapshots.as_ref()) {
        page.blank();
        snapshots(page, list);
    }
}

/// Snapshots, a line each.
pub fn snapshots(page: &mut Page, list: &[Snapshot]) {
    let rows = list.iter().map(|snapshot| {
        let labels = snapshot.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let kind = match (snapshot.removed, snapshot.user_created) {
            (true, _) => "to go",
            (false, true) => "",
            (false, false) => "by a rebuild or growth",
        };
        vec![
            Cell::new(&snapshot.name),
            Cell::new(&snapshot.created),
            Cell::new(bytes(snapshot.size)),
            Cell::new(snapshot.parent.as_deref().unwrap_or_default()),
            Cell::new(labels.join(",")),
            Cell::new(kind),
        ]
    });
    let headings = ["SNAPSHOT", "CREATED", "SIZE", "PARENT", "LABELS", "NOTE"];
    page.table(&headings, rows.collect(), "no snapshots");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str, standing: Standing, inside: Option<Inside>) -> Found {
        Found {
            address: address.parse().unwrap(),
            standing,
            problem: (standing != Standing::Complete).then(|| "it \x1b[2J".to_owned()),
            size: Some(10 << 20),
            inside,
        }
    }

    fn inside() -> Inside {
        let snapshot = storage::Snapshot {
            name: "s".to_owned(),
            created: "2026-01-02T03:04:05Z".to_owned(),
            user_created: true,
            removed: false,
            size: 4096,
            parent: None,
            labels: vec![("a".to_owned(), "b".to_owned())],
        };
        Inside {
            head: "volume-head-001.img".to_owned(),
            head_bytes: 8192,
            chain: vec!["s".to_owned()],
            snapshots: vec![snapshot],
            revision_counter: Some(7),
        }
    }

    #[test]
    fn a_volume_for_people() {
        let found = [
            found("a:1", Standing::Unreachable, None),
            found("b:1", Standing::Complete, Some(inside())),
        ];
        let mut page = Page::new(false);
        volume(&mut page, &Volume::new("v", &found));
        let expected = "\
REPLICA  STANDING     SIZE    WRITES  HEAD   SNAPSHOTS  PROBLEM
a:1      unreachable  10 MiB                            it \\u{1b}[2J
b:1      complete     10 MiB  7       8 KiB  1

SNAPSHOT  CREATED               SIZE   PARENT  LABELS  NOTE
s         2026-01-02T03:04:05Z  4 KiB          a=b
";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn a_volume_for_programs() {
        let found = [found("b:1", Standing::Complete, Some(inside()))];
        let json = serde_json::to_value(Volume::new("v", &found)).unwrap();
        let replica = &json["replicas"][0];
        assert_eq!(replica["standing"], "complete");
        assert_eq!(replica["revision_counter"], 7);
        assert_eq!(replica["problem"], serde_json::Value::Null);
        assert_eq!(replica["snapshots"][0]["labels"][0][1], "b");
    }
}
