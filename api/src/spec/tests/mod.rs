//! The spec as a whole: what is read, what is refused and how.

mod boot;
mod console;
mod devices;
mod passed;
mod processors;
mod properties;
mod volumes;

use serde_json::{Value, json};

use super::*;

fn valid(document: &Value) -> VmSpec {
    Draft::from_value(document.clone()).validate().unwrap()
}

/// Pointer and code of each problem.
fn refused(document: &Value) -> Vec<(String, ProblemCode)> {
    let error = Draft::from_value(document.clone()).validate().unwrap_err();
    error
        .problems()
        .iter()
        .map(|problem| (problem.pointer.as_str().to_owned(), problem.code))
        .collect()
}

#[track_caller]
fn refuses(document: &Value, expected: &[(&str, ProblemCode)]) {
    let found = refused(document);
    let found: Vec<_> = found
        .iter()
        .map(|(at, code)| (at.as_str(), *code))
        .collect();
    assert_eq!(found, expected, "{document}");
}

/// A valid document with `section` set to `value`.
fn with(section: &str, value: Value) -> Value {
    let mut document = json!({"boot": {"kernel": "k"}});
    document[section] = value;
    document
}

use ProblemCode::{
    Conflict, Duplicate, Malformed, MissingField, OutOfRange, UnknownField, UnknownValue, WrongType,
};

#[test]
fn defaults() {
    let spec = valid(&json!({
        "boot": {"kernel": "k"},
        "cpus": {"count": 6},
        "disks": [{"path": "a"}],
        "nics": [{"bridge": "br0", "vlan": 100}],
    }));
    assert_eq!((spec.name, spec.uuid, spec.rng), (None, None, true));
    let Boot::Kernel(kernel) = spec.boot else {
        panic!("{:?}", spec.boot);
    };
    assert_eq!((kernel.initramfs, kernel.command_line.as_str()), (None, ""));
    let Topology {
        sockets,
        cores,
        threads,
    } = spec.cpus.topology;
    assert_eq!((spec.cpus.count, sockets, cores, threads), (6, 1, 6, 1));
    assert!(!spec.cpus.nested);
    assert_eq!(spec.memory.size, ByteSize::from_mib(512));
    assert_eq!(spec.memory.max, spec.memory.size);
    assert_eq!((spec.memory.shared, spec.memory.hugepages), (false, None));
    let disk = &spec.disks[0];
    assert_eq!(
        (disk.id.as_str(), disk.queues, disk.queue_size.get()),
        ("disk0", 4, 256)
    );
    let file = DiskFile {
        path: "a".into(),
        format: ImageFormat::Raw,
        backing: None,
        direct: DirectIo::Auto,
        engine: DiskEngine::Auto,
        block_size: None,
    };
    assert_eq!(disk.source, DiskSource::File(file));
    let nic = &spec.nics[0];
    assert_eq!(
        (nic.id.as_str(), nic.queue_pairs, nic.mac, nic.mtu),
        ("nic0", 1, None, None)
    );
    assert_eq!(spec.console.serial, ConsoleTarget::Terminal);
    assert_eq!(spec.console.hvc0, ConsoleTarget::Off);
    assert_eq!(spec.on_reset, OnReset::Reboot);
    assert_eq!(spec.balloon, None);
}

#[test]
fn toml_says_the_same_as_json() {
    let toml = r#"
        name = "web"
        rng = false
        balloon = { size = "64M", deflate_on_oom = true }
        [boot]
        kernel = "/boot/vmlinuz"
        command_line = "console=ttyS0"
        [memory]
        size = "1GiB"
        hugepages = "2M"
        [[disks]]
        path = "a.img"
        read_only = true
        [[nics]]
        tap = "tap0"
        mac = "02:00:00:00:00:01"
        [console]
        serial = { file = "serial.log" }
        [[console.ports]]
        name = "agent"
        socket = "agent.sock"
    "#;
    let json = json!({
        "name": "web",
        "rng": false,
        "balloon": {"size": 64 << 20, "deflate_on_oom": true},
        "boot": {"kernel": "/boot/vmlinuz", "command_line": "console=ttyS0"},
        "memory": {"size": 1 << 30, "hugepages": "2MiB"},
        "disks": [{"path": "a.img", "read_only": true}],
        "nics": [{"tap": "tap0", "mac": "02-00-00-00-00-01"}],
        "console": {
            "serial": {"file": "serial.log"},
            "ports": [{"name": "agent", "socket": "agent.sock"}],
        },
    });
    assert_eq!(VmSpec::from_toml(toml).unwrap(), valid(&json));
}

#[test]
fn every_problem_at_once() {
    refuses(
        &json!({
            "nmae": "web",
            "name": "Web",
            "boot": {"initramfs": 3},
            "cpus": {"count": "two", "topology": {"cores": 0}},
            "memory": {"size": "1GB", "shared": 1},
            "disks": [{"path": "a", "id": "x"}, "b", {"id": "x", "queues": -1, "direct": "yes"}],
            "nics": [{"tap": "t", "bridge": "b", "mac": 5}, {}],
        }),
        &[
            ("/boot", MissingField),
            ("/boot/initramfs", WrongType),
            ("/cpus/count", WrongType),
            ("/cpus/topology/cores", OutOfRange),
            ("/disks/1", WrongType),
            ("/disks/2", MissingField),
            ("/disks/2/direct", UnknownValue),
            ("/disks/2/id", Duplicate),
            ("/disks/2/queues", WrongType),
            ("/memory/shared", WrongType),
            ("/memory/size", Malformed),
            ("/name", Malformed),
            ("/nics/0", Conflict),
            ("/nics/0/mac", WrongType),
            ("/nics/1", MissingField),
            ("/nmae", UnknownField),
        ],
    );
}

#[test]
fn messages_say_what_to_do() {
    let message = |document: &Value| {
        Draft::from_value(document.clone())
            .validate()
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message(&with("cpus", json!({"cuont": 2}))),
        "invalid VM spec: /cpus/cuont: unknown field; did you mean \"count\"? \
         the fields known here are count, max, topology, nested [unknown-field]"
    );
    assert_eq!(
        message(&with(
            "disks",
            json!([{"path": "a", "queue_size": 100, "direct": "maybe"}])
        )),
        "invalid VM spec, 2 problems:\n  \
         /disks/0/direct: unknown value `maybe`, expected `auto`, `on`, `off` [unknown-value]\n  \
         /disks/0/queue_size: the queue size must be a power of two, 16 to 1024, not 100 [out-of-range]"
    );
    assert_eq!(
        message(&with("rng", json!("yes"))),
        "invalid VM spec: /rng: expected true or false, found string \"yes\" [wrong-type]"
    );
    assert_eq!(
        message(&with("cpus", json!({"count": -1}))),
        "invalid VM spec: /cpus/count: expected an integer from 0 up, found integer `-1` [wrong-type]"
    );
    assert_eq!(
        message(&with("balloon", json!({"size": "1GiB"}))),
        "invalid VM spec: /balloon/size: the balloon's size must be less than the memory, 512MiB, not 1GiB [out-of-range]"
    );
    assert!(message(&json!("web")).contains("expected an object that describes a VM"));
    assert!(message(&json!([])).contains("expected no array here"));
}

#[test]
fn what_was_wrong_in_shape_is_not_called_missing() {
    refuses(&json!({"boot": 1}), &[("/boot", WrongType)]);
    refuses(
        &json!({"boot": {"kernel": 1}}),
        &[("/boot/kernel", WrongType)],
    );
    refuses(&json!([]), &[("", WrongType)]);
    refuses(&json!({}), &[("", MissingField)]);
    refuses(
        &with("nics", json!([{"tap": 1}])),
        &[("/nics/0/tap", WrongType)],
    );
    refuses(
        &with("memory", json!({"size": true, "hugepages": "1GiB"})),
        &[("/memory/size", WrongType)],
    );
    refuses(&with("disks", json!({})), &[("/disks", WrongType)]);
    refuses(
        &with("console", json!({"ports": [{"socket": []}]})),
        &[
            ("/console/ports/0", MissingField),
            ("/console/ports/0/socket", WrongType),
        ],
    );
}

#[test]
fn boot() {
    refuses(&json!({"boot": {}}), &[("/boot", MissingField)]);
    refuses(
        &with("boot", json!({"kernel": ""})),
        &[("/boot/kernel", Malformed)],
    );
    refuses(
        &with("boot", json!({"kernel": "a\0b"})),
        &[("/boot/kernel", Malformed)],
    );
    refuses(
        &with("boot", json!({"kernel": "a".repeat(4096)})),
        &[("/boot/kernel", OutOfRange)],
    );
    let line = |text: String| with("boot", json!({"kernel": "k", "command_line": text}));
    valid(&line("x".repeat(2047)));
    refuses(
        &line("x".repeat(2048)),
        &[("/boot/command_line", OutOfRange)],
    );
    refuses(&line("a\nb".into()), &[("/boot/command_line", Malformed)]);
}

#[test]
fn identity() {
    for bad in [
        "",
        "6ba7b8109dad11d180b400c04fd430c8",
        "{6ba7b810-9dad-11d1-80b4-00c04fd430c8}",
    ] {
        refuses(&with("uuid", json!(bad)), &[("/uuid", Malformed)]);
    }
    valid(&with("uuid", json!("00000000-0000-0000-0000-000000000000")));
}

#[test]
fn syntax_errors_have_a_place() {
    let json = VmSpec::from_json("{\n  \"name\": }").unwrap_err();
    let SpecError::Syntax(error) = &json else {
        panic!("{json}");
    };
    assert_eq!(
        (error.line, error.column, error.detail.as_str()),
        (2, 11, "expected value")
    );

    let SpecError::Syntax(error) = VmSpec::from_json("{\n\"rng\": true\n\n").unwrap_err() else {
        panic!("a half object is no JSON");
    };
    assert_eq!((error.line, error.column), (2, 12), "{error}");

    let toml = VmSpec::from_toml("name = \"web\"\nrng = tru\n").unwrap_err();
    let SpecError::Syntax(error) = &toml else {
        panic!("{toml}");
    };
    assert_eq!((error.line, error.column), (2, 7), "{error}");
    assert!(!error.detail.contains('\n'), "{error}");

    for twice in [
        VmSpec::from_json("{\"rng\": true, \"rng\": false}"),
        VmSpec::from_json("{\"boot\": {\"kernel\": \"a\", \"kernel\": \"b\"}}"),
        VmSpec::from_toml("rng = true\nrng = false"),
    ] {
        assert!(matches!(twice, Err(SpecError::Syntax(_))), "{twice:?}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(
        VmSpec::from_json(&deep),
        Err(SpecError::Syntax(_))
    ));
    assert!(matches!(
        VmSpec::from_toml(&format!("a = {deep}")),
        Err(SpecError::Syntax(_))
    ));
}

#[test]
fn a_whole_number_is_an_integer_however_it_is_written() {
    let with = |number: &str| {
        let text = format!(
            "{{\"boot\": {{\"kernel\": \"k\"}}, \"cpus\": {{\"count\": {number}}}, \"memory\": {{\"size\": 268435456.0}}}}"
        );
        VmSpec::from_json(&text)
    };
    for two in ["2", "2.0", "2e0", "0.2e1"] {
        let spec = with(two).unwrap();
        assert_eq!(spec.cpus.count, 2, "{two}");
        assert_eq!(spec.memory.size.bytes(), 256 << 20);
    }
    for wrong in ["2.5", "-2.0", "1e300", "9007199254740992.0"] {
        let error = with(wrong).unwrap_err();
        assert_eq!(
            error.problems()[0].pointer.as_str(),
            "/cpus/count",
            "{wrong}"
        );
    }
}

#[test]
fn answers_stay_small() {
    let fields: serde_json::Map<_, _> = (0..10_000)
        .map(|n| (format!("field{n}"), json!(n)))
        .collect();
    let error = Draft::from_value(fields.into()).validate().unwrap_err();
    assert_eq!(error.problems().len(), 100);
    assert!(error.to_string().ends_with("(there may be more)"));
}
