//! Directories and calls that make no sense.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::{open, snapshot};
use crate::files::directory::Directory;
use crate::files::names::snapshot_file;
use crate::testing::{MIB, place};
use crate::volume::change::Snapshot;
use crate::volume::replica::{Options, Replica, now};
use crate::volume::state::State;

fn write_meta(directory: &Path, text: &str) {
    std::fs::write(directory.join("volume.meta"), text).unwrap();
}

/// What opening a directory says that `spoil` has spoiled.
fn error_after(spoil: impl FnOnce(&Path)) -> String {
    let place = place();
    let options = Options::new(place.path());
    let replica = open(&options, MIB);
    replica.snapshot(&snapshot("a")).unwrap();
    replica.snapshot(&snapshot("b")).unwrap();
    replica.close().unwrap();
    spoil(place.path());
    let replica = Replica::new(options);
    let error = replica.open().unwrap_err();
    assert!(replica.status().open.is_none());
    error.text()
}

/// The process of a replica that is being rebuilt dies when the head's metadata have come, and not all that is below it.
#[test]
fn a_rebuild_that_came_to_no_end_can_begin_anew() {
    for lost in [".img", ".img.meta"] {
        let place = place();
        let path = |name: &str| place.path().join(name);
        let options = Options::new(place.path());
        let replica = open(&options, MIB);
        replica.snapshot(&snapshot("a")).unwrap();
        replica.snapshot(&snapshot("b")).unwrap();
        replica.set_rebuilding(true).unwrap();
        drop(replica);
        let head = "volume-head-002.img.meta";
        let before = std::fs::read(path(head)).unwrap();
        let lost = path(&format!("volume-snap-a{lost}"));
        std::fs::rename(&lost, path("away")).unwrap();
        let mut heads = ["volume-head-002.img", "volume-head-003.img"].into_iter();
        for round in ["c", "d"] {
            let replica = Replica::new(options.clone());
            replica.open().unwrap();
            let status = replica.status();
            assert_eq!(status.state, State::Rebuilding);
            let chain = status.open.unwrap().chain;
            assert_eq!(chain, [heads.next().unwrap()]);
            let refused = replica.set_rebuilding(false).unwrap_err().text();
            assert!(refused.contains("rebuild it again"), "{refused}");
            if round == "c" {
                assert_eq!(
                    std::fs::read(path(head)).unwrap(),
                    before,
                    "nothing is changed"
                );
                // As the next rebuild begins, and that may be interrupted, too.
                replica.snapshot(&snapshot(round)).unwrap();
            } else {
                replica.reload().unwrap_err();
                std::fs::rename(path("away"), &lost).unwrap();
                replica.reload().unwrap();
                replica.set_rebuilding(false).unwrap();
                let chain = replica.status().open.unwrap().chain;
                let expected = ["head-003", "snap-c", "snap-b", "snap-a"];
                assert_eq!(chain, expected.map(|name| format!("volume-{name}.img")));
            }
        }
    }
}

#[test]
fn metadata_that_lies() {
    let a = snapshot_file("a");
    let b = snapshot_file("b");
    let meta = |file: &str, text: &str| {
        let (file, text) = (format!("{file}.meta"), text.to_owned());
        error_after(move |place| std::fs::write(place.join(file), text).unwrap())
    };
    let cases = [
        (meta(&a, &format!("{{\"Parent\":\"{b}\"}}")), "below itself"),
        (meta(&a, &format!("{{\"Parent\":\"{a}\"}}")), "below itself"),
        (
            meta(&a, "{\"Parent\":\"../../etc/passwd\"}"),
            "cannot be one",
        ),
        (meta(&a, "{\"Parent\":\"/dev/sda\"}"), "cannot be one"),
        (
            meta(&a, "{\"Parent\":\"volume-snap-no.img\"}"),
            "has no metadata or no image",
        ),
        (meta(&a, "{\"Parent\":3}"), "not what it should be"),
        (meta(&a, ""), "is empty"),
        (meta(&a, &"x".repeat(2 << 20)), "too large"),
        (
            error_after(|place| std::fs::remove_file(place.join(&a)).unwrap()),
            "has no metadata or no image",
        ),
        (
            error_after(|place| write_meta(place, "{\"Size\":1048576,\"Head\":\"../x\"}")),
            "is none",
        ),
        (
            error_after(|place| {
                write_meta(place, "{\"Size\":1048576,\"Head\":\"volume-head-009.img\"}");
            }),
            "has no metadata",
        ),
        (
            error_after(|place| {
                write_meta(place, "{\"Size\":-512,\"Head\":\"volume-head-002.img\"}");
            }),
            "not possible",
        ),
        (
            error_after(|place| {
                write_meta(place, "{\"Size\":1000,\"Head\":\"volume-head-002.img\"}");
            }),
            "not possible",
        ),
        (
            error_after(|place| {
                write_meta(
                    place,
                    "{\"Size\":9223372036854775296,\"Head\":\"volume-head-002.img\"}",
                );
            }),
            "not possible",
        ),
        (
            error_after(|place| write_meta(place, "{{")),
            "not what it should be",
        ),
        (
            error_after(|place| {
                std::fs::remove_file(place.join(&a)).unwrap();
                symlink("/etc/passwd", place.join(&a)).unwrap();
            }),
            "cannot open",
        ),
        (
            error_after(|place| {
                write_meta(
                    place,
                    "{\"Size\":1048576,\"Head\":\"volume-head-002.img\",\"BackingFilePath\":\"/b\"}",
                );
            }),
            "--backing-file",
        ),
    ];
    for (error, expected) in cases {
        assert!(
            error.contains(expected),
            "{error:?} is not about {expected:?}"
        );
    }
}

#[test]
fn states() {
    let place = place();
    let options = Options::new(place.path().join("new"));
    let replica = Replica::new(options.clone());
    assert_eq!(replica.status().state, State::Initial);
    replica.open().unwrap_err();
    replica.create(1000).unwrap_err();
    replica.create(0).unwrap_err();
    replica.create(MIB).unwrap();
    assert_eq!(replica.status().state, State::Closed);
    // What is there stays as it is.
    replica.create(2 * MIB).unwrap();
    assert_eq!(replica.status().meta.size, MIB);
    replica.set_rebuilding(true).unwrap_err();
    replica.open().unwrap();
    assert_eq!(replica.status().state, State::Open);
    assert_eq!(
        replica.open().unwrap_err().text(),
        "replica is already open"
    );
    replica.set_rebuilding(false).unwrap_err();
    replica.set_rebuilding(true).unwrap();
    assert_eq!(replica.status().state, State::Rebuilding);
    replica.close().unwrap();
    assert!(replica.status().meta.rebuilding);
    replica.open().unwrap();
    assert_eq!(replica.status().state, State::Rebuilding);
    replica.set_rebuilding(false).unwrap();
    replica.close().unwrap();
    replica.close().unwrap();
    replica.open().unwrap();
    replica.delete().unwrap();
    assert_eq!(replica.status().state, State::Initial);
    assert_eq!(std::fs::read_dir(&options.directory).unwrap().count(), 0);
}

#[test]
fn calls_that_cannot_be() {
    let place = place();
    let mut options = Options::new(place.path());
    options.most_snapshots = 3;
    let replica = open(&options, MIB);
    for name in ["../x", "a/b", "", &"x".repeat(300)] {
        replica.snapshot(&snapshot(name)).unwrap_err();
    }
    replica.snapshot(&snapshot("a")).unwrap();
    let head = replica.status().meta.head;
    for error in [
        replica.remove_disk(&head, true),
        replica.remove_disk("volume-snap-no.img", true),
        replica.replace_disk(&head, &snapshot_file("a")),
        replica.replace_disk(&snapshot_file("a"), &head),
        replica.replace_disk(&snapshot_file("a"), &snapshot_file("a")),
        replica.replace_disk("../../x", &snapshot_file("a")),
        replica.mark_as_removed(&head),
        replica.prepare_remove(&snapshot_file("a")).map(drop),
        replica.revert("volume-snap-no.img", &now()),
        replica.revert(&head, &now()),
        replica.expand(MIB - 4096),
        replica.expand(MIB + 512),
        replica.expand(i64::MAX / 4096 * 4096),
        replica.set_revision(3),
    ] {
        error.unwrap_err();
    }
    replica.expand(MIB).unwrap();
    replica.mark_as_removed("no").unwrap();
    replica.mark_as_removed("a").unwrap();
    let error = replica.revert(&snapshot_file("a"), &now()).unwrap_err();
    assert!(error.text().contains("marked as removed"));
    for name in ["b", "c", "d"] {
        let _ = replica.snapshot(&snapshot(name));
    }
    let error = replica.snapshot(&snapshot("e")).unwrap_err();
    assert!(
        error.text().contains("too many active disks"),
        "{}",
        error.text()
    );
}

#[test]
fn a_backing_file_is_below_everything() {
    let place = place();
    let base = place.path().join("base.img");
    std::fs::write(&base, vec![7; 8192]).unwrap();
    let mut options = Options::new(place.path().join("r"));
    options.backing_file = Some(base.clone());
    let served = crate::testing::serve(options.clone(), MIB, crate::data::Engine::Auto);
    let mut client = served.client();
    client.write(4096, &[8; 100]).unwrap();
    let data = client.read(0, 12288).unwrap();
    assert!(
        data[..4096] == [7; 4096] && data[4096..4196] == [8; 100] && data[4196..8192] == [7; 3996]
    );
    assert!(data[8192..] == [0; 4096]);
    served.replica.close().unwrap();
    options.backing_file = None;
    assert!(
        Replica::new(options.clone())
            .open()
            .unwrap_err()
            .text()
            .contains("--backing-file")
    );
    std::fs::write(&base, b"QFI\xfb and more").unwrap();
    options.backing_file = Some(base);
    assert!(
        Replica::new(options)
            .open()
            .unwrap_err()
            .text()
            .contains("qcow2")
    );
}

#[test]
fn another_process_that_has_it_open_keeps_the_chain_as_it_is() {
    let place = place();
    let options = Options::new(place.path());
    let first = open(&options, MIB);
    let second = open(&options, 0);
    for result in [first.snapshot(&snapshot("a")), second.expand(2 * MIB)] {
        assert!(result.unwrap_err().text().contains("another process"));
    }
    second.close().unwrap();
    first.snapshot(&snapshot("a")).unwrap();
}

#[test]
fn what_another_process_is_changing_stays() {
    let place = place();
    let options = Options::new(place.path());
    open(&options, MIB).close().unwrap();
    let left = ["volume-head-009.img", "volume.meta.tmp"].map(|name| place.path().join(name));
    for path in &left {
        std::fs::write(path, "").unwrap();
    }
    let other = Directory::open_existing(place.path()).unwrap();
    assert!(other.lock(true));
    let error = Replica::new(options.clone()).open().unwrap_err().text();
    assert!(error.contains("another process is changing"), "{error}");
    assert!(left.iter().all(|path| path.exists()));

    // Nor while it only has the replica open.
    assert!(other.lock(false));
    Replica::new(options.clone()).open().unwrap();
    assert!(left.iter().any(|path| path.exists()));
    drop(other);
    Replica::new(options).open().unwrap();
    assert!(!left.iter().any(|path| path.exists()));
}

#[test]
fn labels_that_could_not_be_read_again() {
    let place = place();
    let options = Options::new(place.path());
    let replica = open(&options, MIB);
    // JSON makes six bytes of each of these.
    let labels = [("x".to_owned(), "\u{1}".repeat(200 << 10))].into();
    let large = Snapshot {
        labels: Some(labels),
        ..snapshot("a")
    };
    let error = replica.snapshot(&large).unwrap_err().text();
    assert!(error.contains("fewer labels"), "{error}");
    replica.snapshot(&snapshot("a")).unwrap();
    replica.close().unwrap();
    open(&options, 0);
}
