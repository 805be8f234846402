//! Changes that are cut off at each of their steps: afterwards the replica opens, holds what it held, and the change can be made again.

use std::path::Path;
use std::sync::Arc;

use super::{open, snapshot};
use crate::data::{Address, DataServer, Engine};
use crate::error::Result;
use crate::files::directory::faults;
use crate::files::names::snapshot_file;
use crate::testing::{MIB, Served, place};
use crate::volume::replica::{Options, Replica, now};

fn serve_open(replica: &Arc<Replica>) -> Served {
    let address = Address::Tcp("127.0.0.1:0".parse().unwrap());
    Served {
        replica: Arc::clone(replica),
        server: DataServer::start(&address, Arc::clone(replica), Engine::Auto).unwrap(),
    }
}

/// A volume with two snapshots: its first sectors hold 1, 2 and 3, each from another layer.
fn make(directory: &Path) -> Options {
    let options = Options::new(directory);
    let replica = open(&options, MIB);
    let served = serve_open(&replica);
    let mut client = served.client();
    for (byte, name) in [(1, Some("a")), (2, Some("b")), (3, None)] {
        client
            .write(i64::from(byte - 1) * 4096, &[byte; 4096])
            .unwrap();
        if let Some(name) = name {
            replica.snapshot(&snapshot(name)).unwrap();
        }
    }
    replica.close().unwrap();
    options
}

fn first_bytes(replica: &Arc<Replica>) -> Vec<u8> {
    let data = serve_open(replica).client().read(0, 3 * 4096).unwrap();
    data.chunks(4096).map(|sector| sector[0]).collect()
}

/// What the first sectors hold without the layer of `b`.
const WITHOUT_B: [u8; 3] = [1, 0, 3];

fn remove(replica: &Replica) -> Result<()> {
    replica.remove_disk(&snapshot_file("b"), false)
}

fn replace(replica: &Replica) -> Result<()> {
    replica.replace_disk(&snapshot_file("b"), &snapshot_file("a"))
}

/// Cuts `change` off at each step; `after` is what it makes of the volume.
fn cut_everywhere(change: impl Fn(&Replica) -> Result<()>, after: &[u8]) {
    for step in 0.. {
        let place = place();
        let options = make(place.path());
        let replica = open(&options, 0);
        faults::after(Some(step));
        let result = change(&replica);
        faults::after(None);
        drop(replica);
        let replica = open(&options, 0);
        let found = first_bytes(&replica);
        if result.is_ok() {
            assert_eq!(found, after, "nothing was cut off, step {step}");
        } else {
            assert!(
                found == after || found == [1, 2, 3],
                "step {step}: {found:?}"
            );
        }
        let disks = replica.status().open.unwrap().disks;
        for (name, disk) in &disks {
            assert!(
                disk.meta.parent.is_empty() || disks.contains_key(&disk.meta.parent),
                "step {step}: {name}"
            );
        }
        // It may have been made nevertheless.
        if let Err(error) = change(&replica) {
            let text = error.text();
            assert!(
                text.contains("already existing") || text.contains("cannot find"),
                "step {step}: {text}"
            );
        }
        assert_eq!(first_bytes(&replica), after, "step {step}");
        replica.close().unwrap();
        assert_eq!(first_bytes(&open(&options, 0)), after, "step {step}");
        if result.is_ok() {
            assert!(step > 3, "nothing was cut off");
            return;
        }
    }
}

#[test]
fn a_snapshot() {
    cut_everywhere(|replica| replica.snapshot(&snapshot("c")), &[1, 2, 3]);
}

#[test]
fn an_expansion() {
    cut_everywhere(|replica| replica.expand(2 * MIB), &[1, 2, 3]);
}

#[test]
fn a_revert() {
    cut_everywhere(
        |replica| replica.revert(&snapshot_file("b"), &now()),
        &[1, 2, 0],
    );
}

#[test]
fn a_removal() {
    cut_everywhere(remove, &WITHOUT_B);
}

#[test]
fn a_replacement() {
    cut_everywhere(replace, &WITHOUT_B);
}

/// The disk was full, say, and no longer is: the same process makes the change again.
fn cut_and_go_on(change: impl Fn(&Replica) -> Result<()>, after: &[u8]) {
    for step in 0.. {
        let place = place();
        let options = make(place.path());
        let replica = open(&options, 0);
        faults::after(Some(step));
        let result = change(&replica);
        // As often as it is tried.
        let again = change(&replica);
        faults::after(None);
        assert!(replica.status().open.is_some());
        if let Err(error) = change(&replica) {
            let text = error.text();
            assert!(text.contains("cannot find"), "step {step}: {text}");
        }
        assert_eq!(first_bytes(&replica), after, "step {step}");
        replica.close().unwrap();
        drop(replica);
        assert_eq!(first_bytes(&open(&options, 0)), after, "step {step}");
        if result.is_ok() {
            assert!(again.is_err() && step > 3, "nothing was cut off");
            return;
        }
    }
}

#[test]
fn a_removal_in_the_same_process() {
    cut_and_go_on(remove, &WITHOUT_B);
}

#[test]
fn a_replacement_in_the_same_process() {
    cut_and_go_on(replace, &WITHOUT_B);
}

#[test]
fn the_first_files() {
    for step in 0.. {
        let place = place();
        let options = Options::new(place.path());
        let replica = Replica::new(options.clone());
        faults::after(Some(step));
        let result = replica.create(MIB);
        faults::after(None);
        let replica = open(&options, MIB);
        assert_eq!(first_bytes(&replica), [0, 0, 0]);
        assert_eq!(replica.status().meta.size, MIB);
        if result.is_ok() {
            assert!(step > 3);
            return;
        }
    }
}

/// Between linking the new snapshot and naming the new head, as Longhorn's replica does it.
#[test]
fn a_snapshot_that_is_still_the_head() {
    let place = place();
    let options = make(place.path());
    let replica = open(&options, 0);
    let head = replica.status().meta.head;
    drop(replica);
    for suffix in ["", ".meta"] {
        let from = place.path().join(format!("{head}{suffix}"));
        std::fs::hard_link(
            from,
            place.path().join(format!("{}{suffix}", snapshot_file("c"))),
        )
        .unwrap();
    }
    let replica = open(&options, 0);
    assert!(
        !replica
            .status()
            .open
            .unwrap()
            .disks
            .contains_key(&snapshot_file("c"))
    );
    replica.snapshot(&snapshot("c")).unwrap();
    assert_eq!(first_bytes(&replica), [1, 2, 3]);
}

#[test]
fn metadata_of_the_volume_that_is_gone() {
    for empty in [true, false] {
        let place = place();
        let options = make(place.path());
        let path = place.path().join("volume.meta");
        match empty {
            true => std::fs::write(&path, "").unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
        let replica = open(&options, MIB);
        assert_eq!(first_bytes(&replica), [1, 2, 3]);
    }
}
