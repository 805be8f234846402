//! Disks, CD-ROM drives and network interfaces.

use super::*;

#[test]
fn ids_are_unique_among_all_devices() {
    let spec = valid(&json!({
        "boot": {"kernel": "k"},
        "disks": [{"path": "a"}, {"path": "b", "id": "disk0"}, {"path": "c"}, {"path": "d", "id": "disk3"}],
        "nics": [{"tap": "a"}, {"tap": "b", "id": "nic0"}],
    }));
    let disks: Vec<_> = spec.disks.iter().map(|disk| disk.id.as_str()).collect();
    let nics: Vec<_> = spec.nics.iter().map(|nic| nic.id.as_str()).collect();
    assert_eq!(disks, ["disk1", "disk0", "disk2", "disk3"]);
    assert_eq!(nics, ["nic1", "nic0"]);
    refuses(
        &json!({
            "boot": {"kernel": "k"},
            "disks": [{"path": "a", "id": "x"}, {"path": "b", "id": "rng"}],
            "nics": [{"tap": "a", "id": "x"}],
        }),
        &[("/disks/1/id", Duplicate), ("/nics/0/id", Duplicate)],
    );
}

#[test]
fn disks_on_nbd_servers() {
    let disk = |nbd: Value| with("disks", json!([{"nbd": nbd}]));
    let spec = valid(&disk(json!({"uri": "nbd://h/x"})));
    let DiskSource::Nbd(export) = &spec.disks[0].source else {
        panic!("{:?}", spec.disks[0].source);
    };
    let seconds = [
        export.connect_timeout,
        export.request_timeout,
        export.reconnect_deadline,
    ];
    assert_eq!(seconds.map(|time| time.as_secs()), [10, 30, 60]);
    let tls = json!({"ca": "/ca", "certificate": "/c", "key": "/k", "hostname": "h"});
    let all = json!({"uri": "NBDS+unix:///?socket=/s", "tls": tls, "connect_timeout_ms": 100,
        "request_timeout_ms": 200, "reconnect_deadline_ms": 300});
    let spec = valid(&disk(all.clone()));
    let again = serde_json::to_value(VmConfig::from(&spec)).unwrap();
    assert_eq!(again["disks"][0]["nbd"], all);
    assert_eq!(valid(&again), spec);
    for (nbd, at, code) in [
        (json!({}), "", MissingField),
        (json!({"uri": "http://h/"}), "/uri", Malformed),
        (json!({"uri": "x".repeat(16385)}), "/uri", OutOfRange),
        (json!({"uri": "nbds://h"}), "", MissingField),
        (
            json!({"uri": "nbd://h", "tls": {"ca": "/c"}}),
            "/tls",
            Conflict,
        ),
        (json!({"uri": "nbds://h", "tls": {}}), "/tls", MissingField),
        (
            json!({"uri": "nbds://h", "tls": {"ca": ""}}),
            "/tls/ca",
            Malformed,
        ),
        (
            json!({"uri": "nbds://h", "tls": {"ca": "/c", "key": "/k"}}),
            "/tls",
            MissingField,
        ),
        (
            json!({"uri": "nbds://h", "tls": {"ca": "/c", "certificate": "/c"}}),
            "/tls",
            MissingField,
        ),
        (
            json!({"uri": "nbds://h", "tls": {"ca": "/c", "hostname": ""}}),
            "/tls/hostname",
            OutOfRange,
        ),
        (
            json!({"uri": "nbd://h", "connect_timeout_ms": 99}),
            "/connect_timeout_ms",
            OutOfRange,
        ),
        (
            json!({"uri": "nbd://h", "request_timeout_ms": 3_600_001}),
            "/request_timeout_ms",
            OutOfRange,
        ),
        (
            json!({"uri": "nbd://h", "reconnect_deadline_ms": 0}),
            "/reconnect_deadline_ms",
            OutOfRange,
        ),
    ] {
        refuses(&disk(nbd), &[(&format!("/disks/0/nbd{at}"), code)]);
    }
    let same = |read_only| {
        let disk = json!({"nbd": {"uri": "nbd://h"}, "read_only": read_only});
        with("disks", json!([disk, disk]))
    };
    valid(&same(true));
    refuses(&same(false), &[("/disks/1/nbd/uri", Duplicate)]);
    for (field, value) in [
        ("path", json!("a")),
        ("format", json!("raw")),
        ("direct", json!("on")),
        ("engine", json!("threads")),
        ("block_size", json!(4096)),
        ("backing", json!({"path": "b"})),
    ] {
        let mut both = json!({"nbd": {"uri": "nbd://h"}});
        both[field] = value;
        let at = format!("/disks/0/{field}");
        refuses(&with("disks", json!([both])), &[(&at, Conflict)]);
    }
}

#[test]
fn disks() {
    let same = |first, second| {
        with(
            "disks",
            json!([{"path": "a", "read_only": first}, {"path": "a", "read_only": second}]),
        )
    };
    valid(&same(true, true));
    for (first, second) in [(true, false), (false, true), (false, false)] {
        refuses(&same(first, second), &[("/disks/1/path", Duplicate)]);
    }
    for (field, value, code) in [
        ("queues", json!(0), OutOfRange),
        ("queues", json!(65), OutOfRange),
        ("queue_size", json!(8), OutOfRange),
        ("block_size", json!(1024), OutOfRange),
        ("serial", json!(""), Malformed),
        ("serial", json!("x".repeat(21)), Malformed),
        ("engine", json!("aio"), UnknownValue),
        ("readonly", json!(true), UnknownField),
    ] {
        let mut disk = json!({"path": "a"});
        disk[field] = value;
        refuses(
            &with("disks", json!([disk])),
            &[(&format!("/disks/0/{field}"), code)],
        );
    }
    let large = json!({"path": "a", "block_size": 4096});
    let spec = valid(&with("disks", json!([large])));
    let again = serde_json::to_value(VmConfig::from(&spec)).unwrap();
    assert_eq!(again["disks"][0]["block_size"], 4096);
    let qcow2 = json!({"path": "a", "format": "qcow2", "block_size": 512});
    refuses(
        &with("disks", json!([qcow2])),
        &[("/disks/0/block_size", Conflict)],
    );
    let named = json!({"path": "a", "format": "qcow2", "engine": "threads",
        "backing": {"path": "b", "format": "qcow2", "backing": {"path": "c"}}});
    let spec = valid(&with("disks", json!([named])));
    let again = serde_json::to_value(VmConfig::from(&spec)).unwrap();
    assert_eq!(valid(&again), spec);
    assert_eq!(
        again["disks"][0]["backing"]["backing"],
        json!({"path": "c", "format": "raw"})
    );
    let raw = json!({"path": "b", "backing": {"path": "c"}});
    let mut long = json!({"path": "c", "format": "qcow2"});
    for _ in 0..32 {
        long = json!({"path": "b", "format": "qcow2", "backing": long});
    }
    long["path"] = json!("a");
    let at_the_end = format!("/disks/0{}", "/backing".repeat(32));
    for (disk, at, code) in [
        (raw.clone(), "/disks/0/backing", Conflict),
        (
            json!({"path": "a", "format": "qcow2", "backing": raw}),
            "/disks/0/backing/backing",
            Conflict,
        ),
        (
            json!({"path": "a", "format": "qcow2", "backing": {}}),
            "/disks/0/backing",
            MissingField,
        ),
        (
            json!({"path": "a", "format": "qcow2", "backing": {"path": "fd:3"}}),
            "/disks/0/backing/path",
            Malformed,
        ),
        (
            json!({"path": "a", "format": "qcow2", "engine": "io_uring"}),
            "/disks/0/engine",
            Conflict,
        ),
        (
            json!({"path": "a", "format": "vmdk"}),
            "/disks/0/format",
            UnknownValue,
        ),
        (long, &at_the_end, OutOfRange),
    ] {
        refuses(&with("disks", json!([disk])), &[(at, code)]);
    }
    let many = |count: usize| {
        let disks: Vec<_> = (0..count).map(|n| json!({"path": n.to_string()})).collect();
        with("disks", disks.into())
    };
    assert_eq!(valid(&many(128)).disks[127].id.as_str(), "disk127");
    refuses(&many(129), &[("/disks", OutOfRange)]);
}

/// An interval that reaches the deadline leaves no time for an attempt.
#[test]
fn a_disk_that_is_tried_again_is_tried_at_least_once() {
    let disk = |retry: Value| {
        with(
            "disks",
            json!([{"path": "a", "on_error": {"retry": retry}}]),
        )
    };
    for (retry, deadline, interval) in [
        (json!({}), 60_000, 1000),
        (json!({"deadline_ms": 1500}), 1500, 750),
        (json!({"deadline_ms": 20}), 20, 10),
        (json!({"deadline_ms": 20, "interval_ms": 19}), 20, 19),
        (json!({"interval_ms": 59_999}), 60_000, 59_999),
    ] {
        let spec = valid(&disk(retry));
        let again = serde_json::to_value(VmConfig::from(&spec)).unwrap();
        assert_eq!(
            again["disks"][0]["on_error"],
            json!({"retry": {"deadline_ms": deadline, "interval_ms": interval, "then": "report"}})
        );
        assert_eq!(valid(&again), spec);
    }
    for (retry, at, code) in [
        (json!({"deadline_ms": 19}), "deadline_ms", OutOfRange),
        (json!({"interval_ms": 9}), "interval_ms", OutOfRange),
        (json!({"interval_ms": 60_000}), "interval_ms", Conflict),
        (
            json!({"deadline_ms": 500, "interval_ms": 500}),
            "interval_ms",
            Conflict,
        ),
    ] {
        let at = format!("/disks/0/on_error/retry/{at}");
        refuses(&disk(retry), &[(&at, code)]);
    }
}

/// Who reads a backing file takes what it has in memory, and in the overlay, for the whole truth.
#[test]
fn nobody_writes_a_backing_file() {
    let overlay = |path: &str| {
        json!({"path": path, "format": "qcow2", "read_only": path == "a",
            "backing": {"path": "b", "format": "qcow2", "backing": {"path": "c"}}})
    };
    let disks = |disks: Value| with("disks", disks);
    valid(&disks(json!([overlay("x"), overlay("y")])));
    valid(&disks(
        json!([overlay("x"), {"path": "c", "read_only": true}]),
    ));
    for reader in ["x", "a"] {
        for base in ["b", "c"] {
            refuses(
                &disks(json!([overlay(reader), {"path": base}])),
                &[("/disks/1/path", Duplicate)],
            );
            refuses(
                &disks(json!([{"path": base}, overlay(reader)])),
                &[("/disks/0/path", Duplicate)],
            );
        }
    }
    refuses(
        &disks(json!([overlay("c")])),
        &[("/disks/0/path", Duplicate)],
    );
}

#[test]
fn limits_with_their_bursts_can_be_given() {
    for (iops, bandwidth) in [
        (1, 4096),
        (5, 40_950),
        (10, 40_970),
        (1_000_000_000, 1 << 50),
    ] {
        let limits = DiskLimits {
            iops: Some(iops),
            bandwidth: Some(ByteSize::from_bytes(bandwidth)),
            ..DiskLimits::default()
        };
        let whole = limits.with_bursts();
        assert_eq!(whole.checked(), Ok(whole));
        assert!(whole.iops_burst.is_some() && whole.bandwidth_burst.is_some());
        assert_eq!(whole.with_bursts(), whole);
    }
    let none = DiskLimits::default();
    assert_eq!(none.with_bursts(), none);
}

#[test]
fn nics() {
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let spec = |uuid: &str| {
        valid(&json!({
            "uuid": uuid,
            "boot": {"kernel": "k"},
            "nics": [{"tap": "a"}, {"tap": "b"}, {"tap": "c", "mac": "52:54:00:00:00:01"}],
        }))
    };
    let macs: Vec<_> = spec(uuid).nics.iter().filter_map(|nic| nic.mac).collect();
    assert_eq!(macs.len(), 3);
    assert_ne!(macs[0], macs[1]);
    assert_eq!(macs[2].to_string(), "52:54:00:00:00:01");
    assert_eq!(
        spec(uuid),
        spec(&uuid.to_uppercase()),
        "derived addresses stay the same"
    );
    assert_ne!(
        spec("6ba7b810-9dad-11d1-80b4-00c04fd430c9").nics[0].mac,
        Some(macs[0])
    );

    for (nic, at, code) in [
        (json!({}), "/nics/0", MissingField),
        (json!({"tap": "a", "bridge": "b"}), "/nics/0", Conflict),
        (json!({"tap": "a", "vlan": 1}), "/nics/0/vlan", Conflict),
        (json!({"tap": "a/b"}), "/nics/0/tap", Malformed),
        (
            json!({"bridge": "sixteen-bytes-ab"}),
            "/nics/0/bridge",
            Malformed,
        ),
        (
            json!({"bridge": "b", "vlan": 0}),
            "/nics/0/vlan",
            OutOfRange,
        ),
        (
            json!({"bridge": "b", "vlan": 4095}),
            "/nics/0/vlan",
            OutOfRange,
        ),
        (
            json!({"bridge": "b", "mac": "01:00:00:00:00:00"}),
            "/nics/0/mac",
            OutOfRange,
        ),
        (
            json!({"bridge": "b", "mtu": 1279}),
            "/nics/0/mtu",
            OutOfRange,
        ),
        (
            json!({"bridge": "b", "queue_pairs": 9}),
            "/nics/0/queue_pairs",
            OutOfRange,
        ),
    ] {
        refuses(&with("nics", json!([nic])), &[(at, code)]);
    }
    refuses(
        &with(
            "nics",
            json!([
                {"tap": "a", "mac": "02:00:00:00:00:0a"},
                {"tap": "a", "mac": "02:00:00:00:00:0A"},
            ]),
        ),
        &[("/nics/1/mac", Duplicate), ("/nics/1/tap", Duplicate)],
    );
    valid(&with("nics", json!([{"bridge": "a"}, {"bridge": "a"}])));
}

#[test]
fn cdroms() {
    let spec = valid(&with(
        "cdroms",
        json!([{"path": "a.iso"}, {}, {"id": "tools", "path": "fd:3"}]),
    ));
    let drives: Vec<_> = spec
        .cdroms
        .iter()
        .map(|drive| (drive.id.as_str(), drive.path.as_deref()))
        .collect();
    let path = |text| Some(std::path::Path::new(text));
    assert_eq!(
        drives,
        [
            ("cdrom0", path("a.iso")),
            ("cdrom1", None),
            ("tools", path("fd:3"))
        ]
    );
    assert_eq!(spec.passed().len(), 1);
    // Several drives may have the same medium; nobody writes it.
    valid(&with("cdroms", json!([{"path": "a"}, {"path": "a"}])));
    let beside = |disk: Value| {
        let mut spec = with("cdroms", json!([{"path": "a"}]));
        spec["disks"] = json!([disk]);
        spec
    };
    valid(&beside(json!({"path": "a", "read_only": true})));
    refuses(
        &beside(json!({"path": "a"})),
        &[("/cdroms/0/path", Duplicate)],
    );
    let spec = valid(&beside(json!({"path": "b", "id": "cdrom0"})));
    assert_eq!(spec.cdroms[0].id.as_str(), "cdrom1");
    for (cdrom, at, code) in [
        (json!({"path": ""}), "/cdroms/0/path", Malformed),
        (json!({"path": "fd:0"}), "/cdroms/0/path", OutOfRange),
        (json!({"id": "rng"}), "/cdroms/0/id", Duplicate),
        (json!({"id": "a b"}), "/cdroms/0/id", Malformed),
        (
            json!({"read_only": true}),
            "/cdroms/0/read_only",
            UnknownField,
        ),
    ] {
        refuses(&with("cdroms", json!([cdrom])), &[(at, code)]);
    }
    valid(&with("cdroms", json!([{}, {}, {}, {}, {}, {}, {}, {}])));
    refuses(
        &with("cdroms", vec![json!({}); 9].into()),
        &[("/cdroms", OutOfRange)],
    );
}
