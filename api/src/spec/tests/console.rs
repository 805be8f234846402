//! Consoles, their logs and named ports.

use super::*;

#[test]
fn console() {
    let spec = valid(&with("console", json!({"hvc0": "terminal"})));
    assert_eq!(spec.console.serial, ConsoleTarget::Off);
    for (console, at, code) in [
        (
            json!({"serial": "terminal", "hvc0": "terminal"}),
            "/console/hvc0",
            Conflict,
        ),
        (json!({"serial": "tty"}), "/console/serial", UnknownValue),
        (
            json!({"serial": {"file": ""}}),
            "/console/serial/file",
            Malformed,
        ),
        (
            json!({"serial": {"fiel": "a"}}),
            "/console/serial",
            UnknownValue,
        ),
        (
            json!({"serial": {"file": "a", "socket": "b"}}),
            "/console/serial",
            WrongType,
        ),
        (
            json!({"serial": {"file": "a"}, "hvc0": {"file": "a"}}),
            "/console/hvc0/file",
            Duplicate,
        ),
        (
            json!({"ports": [{"name": "a"}]}),
            "/console/ports/0",
            MissingField,
        ),
        (
            json!({"ports": [{"name": "a/b", "socket": "s"}]}),
            "/console/ports/0/name",
            Malformed,
        ),
        (
            json!({"ports": [{"name": "a", "socket": "x".repeat(108)}]}),
            "/console/ports/0/socket",
            OutOfRange,
        ),
        (
            json!({"ports": [{"name": "a", "socket": "s"}, {"name": "a", "socket": "t"}]}),
            "/console/ports/1/name",
            Duplicate,
        ),
        (
            json!({"ports": [{"name": "a", "socket": "s"}, {"name": "b", "socket": "s"}]}),
            "/console/ports/1/socket",
            Duplicate,
        ),
        (
            json!({"serial": {"socket": "x".repeat(108)}}),
            "/console/serial/socket",
            OutOfRange,
        ),
        (
            json!({"serial": {"socket": "s"}, "ports": [{"name": "a", "socket": "s"}]}),
            "/console/ports/0/socket",
            Duplicate,
        ),
    ] {
        refuses(&with("console", console), &[(at, code)]);
    }
}

#[test]
fn without_a_terminal() {
    let validate = |document: Value| Draft::from_value(document).without_terminal().validate();
    let spec = validate(json!({"boot": {"kernel": "k"}})).unwrap();
    assert_eq!(spec.console.serial, ConsoleTarget::Off);
    assert_eq!(spec.console.hvc0, ConsoleTarget::Off);
    let file = json!({"boot": {"kernel": "k"}, "console": {"serial": {"file": "log"}}});
    let file = validate(file).unwrap();
    assert_eq!(file.console.serial, ConsoleTarget::File("log".into()));
    let both =
        json!({"boot": {"kernel": "k"}, "console": {"serial": "terminal", "hvc0": "terminal"}});
    let error = validate(both).unwrap_err();
    let problems: Vec<_> = error.problems().iter().collect();
    assert_eq!(problems.len(), 2, "{error}");
    for (problem, pointer) in problems.iter().zip(["/console/hvc0", "/console/serial"]) {
        assert_eq!(problem.pointer.as_str(), pointer);
        assert_eq!(problem.code, UnknownValue);
        assert!(problem.detail.contains("no terminal"), "{problem}");
    }
}

#[test]
fn console_logs() {
    let spec = valid(&with(
        "console",
        json!({"serial": {"socket": "s"}, "serial_log": {"path": "a.log"},
               "hvc0_log": {"path": "b.log", "size": "4K", "files": 1}}),
    ));
    assert_eq!(spec.console.serial, ConsoleTarget::Socket("s".into()));
    let serial = spec.console.serial_log.as_ref().unwrap();
    assert_eq!((serial.size, serial.files), (ByteSize::from_mib(2), 3));
    assert_eq!(serial.file(0).to_str(), Some("a.log"));
    assert_eq!(serial.file(12).to_str(), Some("a.log.12"));
    let hvc0 = spec.console.hvc0_log.as_ref().unwrap();
    assert_eq!((hvc0.size.bytes(), hvc0.files), (4096, 1));
    assert_eq!(spec.console.hvc0, ConsoleTarget::Off);
    assert!(spec.console.has_hvc0());
    let log = |log: Value| json!({"serial_log": log});
    let long = "x".repeat(251);
    for (console, at, code) in [
        (log(json!("a.log")), "", WrongType),
        (log(json!({})), "", MissingField),
        (log(json!({"path": "a", "keep": 3})), "/keep", UnknownField),
        (log(json!({"path": ""})), "/path", Malformed),
        (log(json!({"path": "logs/"})), "/path", Malformed),
        (log(json!({"path": "logs/.."})), "/path", Malformed),
        (log(json!({"path": long})), "/path", OutOfRange),
        (log(json!({"path": "a", "size": 4095})), "/size", OutOfRange),
        (log(json!({"path": "a", "files": 0})), "/files", OutOfRange),
        (
            log(json!({"path": "a", "files": 101})),
            "/files",
            OutOfRange,
        ),
        (log(json!({"path": "a", "files": "3"})), "/files", WrongType),
        (
            json!({"serial": {"file": "a"}, "serial_log": {"path": "a"}}),
            "/path",
            Duplicate,
        ),
        (
            json!({"serial": {"socket": "a.2"}, "serial_log": {"path": "a"}}),
            "/path",
            Duplicate,
        ),
    ] {
        let at = format!("/console/serial_log{at}");
        refuses(&with("console", console), &[(&at, code)]);
    }
    refuses(
        &with(
            "console",
            json!({"serial_log": {"path": "a"}, "hvc0_log": {"path": "a.1"}}),
        ),
        &[("/console/hvc0_log/path", Duplicate)],
    );
}
