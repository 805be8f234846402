//! Descriptors in place of paths and taps.

use serde_json::{Value, json};

use crate::spec::{NicAttachment, ProblemCode, SpecError, VmConfig, VmSpec};

fn read(spec: &Value) -> Result<VmSpec, SpecError> {
    VmSpec::from_json(&spec.to_string())
}

fn problems(spec: &Value) -> Vec<(String, ProblemCode)> {
    let error = read(spec).unwrap_err();
    let problems = error.problems().iter();
    problems
        .map(|problem| (problem.pointer.to_string(), problem.code))
        .collect()
}

fn all_passed() -> Value {
    json!({
        "boot": {"kernel": "fd:3", "initramfs": "fd:initrd"},
        "disks": [{"path": "fd:5"}, {"path": "./fd:5", "read_only": true}],
        "nics": [{"tap": "fd:6+7"}, {"tap": "fd:net", "queue_pairs": 1}],
        "console": {
            "serial": {"file": "fd:log"},
            "hvc0": {"socket": "fd:hvc0"},
            "ports": [{"name": "agent", "socket": "fd:12"}],
        },
    })
}

#[test]
fn a_vm_of_nothing_else() {
    let spec = read(&all_passed()).unwrap();
    assert_eq!(spec.nics[0].queue_pairs, 2);
    let NicAttachment::PassedTap(tap) = &spec.nics[0].attachment else {
        panic!("{:?}", spec.nics[0]);
    };
    assert_eq!(tap.to_string(), "fd:6+7");
    assert_eq!(spec.nics[1].queue_pairs, 1);
    let again = VmSpec::try_from(VmConfig::from(&spec)).unwrap();
    assert_eq!(again, spec);
    let passed: Vec<_> = spec.passed().iter().map(ToString::to_string).collect();
    let names = "fd:3 fd:initrd fd:5 fd:log fd:hvc0 fd:12 fd:6 fd:7 fd:net";
    assert_eq!(passed.join(" "), names);
}

#[test]
fn each_is_used_once() {
    let mut spec = all_passed();
    spec["disks"] = json!([
        {"path": "fd:3", "read_only": true},
        {"path": "fd:9", "read_only": true},
        {"path": "fd:09", "read_only": true},
    ]);
    spec["nics"] = json!([{"tap": "fd:8+8"}, {"tap": "fd:initrd"}]);
    spec["console"]["serial"] = json!({"socket": "fd:12"});
    let duplicate = |at: &str| (at.to_owned(), ProblemCode::Duplicate);
    let expected = [
        "/console/ports/0/socket",
        "/disks/0/path",
        "/disks/2/path",
        "/nics/0/tap",
        "/nics/1/tap",
    ];
    assert_eq!(problems(&spec), expected.map(duplicate));
    // Also by what is added later.
    let error = read(&all_passed())
        .unwrap()
        .with_disk(r#"{"path": "fd:7"}"#);
    let error = error.unwrap_err();
    assert_eq!(error.problems()[0].code, ProblemCode::Duplicate, "{error}");
}

#[test]
fn what_cannot_be() {
    let spec = json!({
        "boot": {"kernel": "fd:0", "initramfs": "fd:"},
        "disks": [{"path": "fd:1"}, {"path": "fd:a b"}, {"path": "fd:3+4"}],
        "nics": [
            {"tap": "fd:2"},
            {"tap": "fd:3+4", "queue_pairs": 3},
            {"tap": "fd:10+11+12+13+14+15+16+17+18"},
            {"tap": "fd:20", "vlan": 7},
        ],
        "console": {
            "serial": {"file": "fd:1"},
            "serial_log": {"path": "fd:log"},
            "hvc0": {"socket": "fd:"},
            "ports": [{"name": "agent", "socket": "fd:/"}],
        },
    });
    let expected = [
        ("/boot/initramfs", ProblemCode::Malformed),
        ("/boot/kernel", ProblemCode::OutOfRange),
        ("/console/hvc0/socket", ProblemCode::Malformed),
        ("/console/ports/0/socket", ProblemCode::Malformed),
        ("/console/serial/file", ProblemCode::OutOfRange),
        ("/console/serial_log/path", ProblemCode::Malformed),
        ("/disks/0/path", ProblemCode::OutOfRange),
        ("/disks/1/path", ProblemCode::Malformed),
        ("/disks/2/path", ProblemCode::Malformed),
        ("/nics/0/tap", ProblemCode::OutOfRange),
        ("/nics/1/queue_pairs", ProblemCode::Conflict),
        ("/nics/2/tap", ProblemCode::OutOfRange),
        ("/nics/3/vlan", ProblemCode::Conflict),
    ];
    let expected = expected.map(|(at, code)| (at.to_owned(), code));
    assert_eq!(problems(&spec), expected);
}
