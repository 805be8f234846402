//! Disks in replicated volumes.

use super::*;

fn with_disks(disks: Value) -> Value {
    with("disks", disks)
}

#[test]
fn volumes() {
    let disk = json!({"volume": {"name": "pvc-1", "replicas": ["tcp://10.0.0.1:10000", "[::1]:9502"],
        "size": "10GiB", "timeout": 30, "revision_counter": false, "salvage": true,
        "record": "/var/lib/r", "controller": "[::1]:9501"}});
    let spec = valid(&with_disks(json!([disk])));
    let DiskSource::Volume(volume) = &spec.disks[0].source else {
        panic!("{spec:?}");
    };
    assert_eq!(volume.name.as_str(), "pvc-1");
    let replicas: Vec<_> = volume.replicas.iter().map(ToString::to_string).collect();
    assert_eq!(replicas, ["10.0.0.1:10000", "[::1]:9502"]);
    let few = json!({"name": "v", "replicas": ["a:1"]});
    let spec = valid(&with_disks(json!([{"volume": few}])));
    let DiskSource::Volume(volume) = &spec.disks[0].source else {
        panic!("{spec:?}");
    };
    assert_eq!((volume.timeout, volume.size), (8, None));
    assert_eq!((volume.revision_counter, volume.salvage), (None, false));
}

#[test]
fn a_volume_that_cannot_be() {
    for (field, value, code) in [
        ("name", json!(""), Malformed),
        ("size", json!(4097), OutOfRange),
        ("size", json!(0), OutOfRange),
        ("timeout", json!(7), OutOfRange),
        ("timeout", json!(31), OutOfRange),
        ("salvage", json!("yes"), WrongType),
        ("record", json!(""), Malformed),
        ("record", json!("fd:3"), Malformed),
        ("controller", json!("localhost:9501"), Malformed),
        ("controller", json!("127.0.0.1:0"), Malformed),
        ("controller", json!(9501), WrongType),
        ("socket", json!("s"), UnknownField),
    ] {
        let mut volume = json!({"name": "v", "replicas": ["a:1"]});
        volume[field] = value;
        let at = format!("/disks/0/volume/{field}");
        refuses(&with_disks(json!([{"volume": volume}])), &[(&at, code)]);
    }
    let at = |volume: Value| refused(&with_disks(json!([{"volume": volume}])));
    let one = |at: &str, code| vec![(at.to_owned(), code)];
    assert_eq!(
        at(json!({"name": "v"})),
        one("/disks/0/volume", MissingField)
    );
    assert_eq!(
        at(json!({"replicas": ["a:1"]})),
        one("/disks/0/volume", MissingField)
    );
    assert_eq!(
        at(json!({"name": "v", "replicas": ["a:1", "b"]})),
        one("/disks/0/volume/replicas/1", Malformed)
    );
    assert_eq!(
        at(json!({"name": "v", "replicas": vec!["a:1"; 17]})),
        one("/disks/0/volume/replicas", OutOfRange)
    );
}

#[test]
fn the_content_of_a_disk_is_in_one_place() {
    let volume = json!({"name": "v", "replicas": ["a:1"]});
    let socket = json!({"path": "/s", "size": "1GiB"});
    for disk in [
        json!({"nbd": {"uri": "nbd://h"}, "volume": volume}),
        json!({"volume": volume, "longhorn_socket": socket}),
    ] {
        refuses(&with_disks(json!([disk])), &[("/disks/0", Conflict)]);
    }
    let behind = json!({"path": "a", "longhorn_socket": socket});
    refuses(&with_disks(json!([behind])), &[("/disks/0/path", Conflict)]);
    for (field, value) in [
        ("path", json!("a")),
        ("format", json!("raw")),
        ("direct", json!("on")),
        ("engine", json!("threads")),
        ("backing", json!({"path": "b"})),
    ] {
        let mut disk = json!({"volume": volume});
        disk[field] = value;
        let at = format!("/disks/0/{field}");
        refuses(&with_disks(json!([disk])), &[(&at, Conflict)]);
    }
    refuses(&with_disks(json!([{}])), &[("/disks/0", MissingField)]);
}

#[test]
fn a_replica_is_used_once() {
    let disk = |replicas: &[&str]| json!({"volume": {"name": "v", "replicas": replicas}, "read_only": true});
    refuses(
        &with_disks(json!([disk(&["a:1", "tcp://a:1"])])),
        &[("/disks/0/volume/replicas/1", Duplicate)],
    );
    refuses(
        &with_disks(json!([disk(&["a:1"]), disk(&["b:1", "a:1"])])),
        &[("/disks/1/volume/replicas/1", Duplicate)],
    );
}

#[test]
fn a_record_is_one_volumes() {
    let disk = |replica: &str, record: &str| json!({"volume": {"name": replica, "replicas": [format!("{replica}:1")], "record": record}});
    let own = [disk("a", "/r/a"), disk("b", "/r/b")];
    let spec = valid(&with_disks(json!(own)));
    let same = [
        disk("a", "/r/a"),
        disk("b", "/r/b"),
        disk("c", "/r/./a"),
        json!({"path": "/c"}),
        disk("d", "/r//b"),
    ];
    refuses(
        &with_disks(json!(same)),
        &[
            ("/disks/2/volume/record", Duplicate),
            ("/disks/4/volume/record", Duplicate),
        ],
    );
    // What is wrong by itself is told once.
    refuses(
        &with_disks(json!([disk("a", ""), disk("b", "")])),
        &[
            ("/disks/0/volume/record", Malformed),
            ("/disks/1/volume/record", Malformed),
        ],
    );
    let added = spec.with_disk(&disk("c", "/r/b").to_string()).unwrap_err();
    let [problem] = added.problems() else {
        panic!("{added}");
    };
    assert_eq!(problem.pointer.as_str(), "/volume/record");
    assert_eq!(
        problem.detail,
        "/disks/1/volume/record is the same file; give each volume a record of its own"
    );
    spec.with_disk(&disk("c", "/r/c").to_string()).unwrap();
}

#[test]
fn engine_sockets() {
    let disk = |path: &str, size: Value, read_only: bool| json!({"longhorn_socket": {"path": path, "size": size}, "read_only": read_only});
    let gib = || json!("1GiB");
    let spec = valid(&with_disks(json!([
        disk("/s", gib(), true),
        disk("/s", gib(), true)
    ])));
    assert!(matches!(
        &spec.disks[0].source,
        DiskSource::LonghornSocket(socket) if socket.size == ByteSize::from_mib(1024)
    ));
    refuses(
        &with_disks(json!([disk("/s", gib(), true), disk("/s", gib(), false)])),
        &[("/disks/1/longhorn_socket/path", Duplicate)],
    );
    let long = "s".repeat(108);
    for (path, size, at, code) in [
        ("", gib(), "path", Malformed),
        ("fd:3", gib(), "path", Malformed),
        (&long, gib(), "path", OutOfRange),
        ("/s", json!(100), "size", OutOfRange),
    ] {
        let at = format!("/disks/0/longhorn_socket/{at}");
        refuses(
            &with_disks(json!([disk(path, size, false)])),
            &[(&at, code)],
        );
    }
    refuses(
        &with_disks(json!([{"longhorn_socket": {"path": "/s"}}])),
        &[("/disks/0/longhorn_socket", MissingField)],
    );
}
