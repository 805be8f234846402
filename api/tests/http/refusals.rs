//! What is refused, with which status and code, and what people are told.

use paddock_api::resource::{EndReason, VmEnd, VmState};

use super::harness::{Harness, JSON, SPEC};

#[track_caller]
fn pairs(errors: &[(String, String)]) -> Vec<(&str, &str)> {
    errors.iter().map(|(a, b)| (&**a, &**b)).collect()
}

#[test]
fn all_that_is_wrong_with_a_spec_is_told_at_once() {
    let server = Harness::start();
    let answer = server.put(
        r#"{"boot": {"kernel": ""}, "cpus": {"count": "two", "sockets": 1}, "memory": {"size": "12"},
            "disks": [{"id": "a", "path": "a"}, {"id": "a", "path": "b"}], "console": {"serial": "terminal"}, "name": "Web"}"#,
    );
    assert_eq!(answer.refusal(), (422, "invalid-spec".to_owned()));
    let errors = answer.errors();
    assert_eq!(
        pairs(&errors),
        [
            ("/boot/kernel", "malformed"),
            ("/console/serial", "unknown-value"),
            ("/cpus/count", "wrong-type"),
            ("/cpus/sockets", "unknown-field"),
            ("/disks/1/id", "duplicate"),
            ("/memory/size", "out-of-range"),
            ("/name", "malformed"),
        ]
    );
    assert!(answer.detail().contains("7 places"), "{}", answer.detail());
    assert_eq!(server.get("/api/v1/vm").status, 404, "nothing was made");
}

#[test]
fn bodies_that_are_no_spec() {
    let server = Harness::start();
    for (body, code, pointer) in [
        ("{}", "missing-field", ""),
        ("null", "wrong-type", ""),
        ("[]", "wrong-type", ""),
        ("3", "wrong-type", ""),
        (r#"{"boot": {"kernel": 3}}"#, "wrong-type", "/boot/kernel"),
        (
            r#"{"boot": {"kernel": "k"}, "boots": 1}"#,
            "unknown-field",
            "/boots",
        ),
    ] {
        let answer = server.put(body);
        assert_eq!(answer.refusal(), (422, "invalid-spec".to_owned()), "{body}");
        let errors = answer.errors();
        assert!(
            pairs(&errors).contains(&(pointer, code)),
            "{body}: {errors:?}"
        );
    }
}

#[test]
fn bodies_that_are_not_json() {
    let server = Harness::start();
    for body in [
        &b"{"[..],
        b"\xff\xfe{}",
        b"boot: {}",
        b"{} {}",
        &[b'['; 10_000],
    ] {
        let answer = server.request("PUT", "/api/v1/vm", JSON, body);
        assert_eq!(answer.refusal(), (400, "invalid-json".to_owned()));
    }
    let answer = server.put("{\"boot\":\n nonsense}");
    assert!(answer.detail().contains("line 2"), "{}", answer.detail());
    assert_eq!(pairs(&answer.errors()), [("", "malformed")]);
    // Empty, without a length.
    assert_eq!(server.put("").refusal().0, 400);
}

#[test]
fn the_body_must_be_called_json() {
    let server = Harness::start();
    for (headers, told) in [
        ("", "none"),
        ("Content-Type: text/plain\r\n", "text/plain"),
        ("Content-Type: application/jsonp\r\n", "application/jsonp"),
        ("Content-Type: \u{e9}\r\n", "other than ASCII"),
    ] {
        let answer = server.request("PUT", "/api/v1/vm", headers, SPEC.as_bytes());
        assert_eq!(answer.refusal(), (415, "unsupported-media-type".to_owned()));
        assert!(answer.detail().contains(told), "{}", answer.detail());
    }
}

#[test]
fn large_bodies() {
    let server = Harness::start();
    let large = vec![b' '; 4 << 20];
    // Sent as a whole before the answer is read, as most clients do.
    let answer = server.request("PUT", "/api/v1/vm", JSON, &large);
    assert_eq!(answer.refusal(), (413, "body-too-large".to_owned()));

    // Not sent at all: the client asks first.
    let mut client = server.connect();
    let headers = format!("{JSON}Expect: 100-continue\r\nContent-Length: 4194304\r\n");
    client.send("PUT", "/api/v1/vm", &headers, b"");
    assert_eq!(client.answer().refusal().0, 413);

    // Chunks without end.
    let mut client = server.connect();
    let headers = format!("{JSON}Transfer-Encoding: chunked\r\n");
    client.send("PUT", "/api/v1/vm", &headers, b"");
    let mut sent = 0;
    while sent < 1 << 30 {
        let chunk = [b"10000\r\n", &large[..0x10000], b"\r\n"].concat();
        if client.try_write(&chunk).is_err() {
            break;
        }
        sent += 0x10000;
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    assert_eq!(client.answer().refusal().0, 413);
    client.rest();

    // As large as can be, and right.
    let mut spec = SPEC.as_bytes().to_vec();
    spec.resize(1 << 20, b' ');
    let answer = server.request("PUT", "/api/v1/vm", JSON, &spec);
    assert_eq!(answer.status, 201);
}

#[test]
fn a_process_has_one_vm() {
    let server = Harness::start();
    assert_eq!(server.put(SPEC).status, 201);
    for state in [
        VmState::Starting,
        VmState::Running,
        VmState::Resetting,
        VmState::Stopping,
    ] {
        server.fake.is_now(state);
        let answer = server.put(SPEC);
        assert_eq!(answer.refusal(), (409, "vm-exists".to_owned()));
        assert!(answer.detail().contains("DELETE"), "{}", answer.detail());
    }
    // Also one that is over: someone may want to read why.
    server.fake.ends(VmEnd::new(EndReason::PoweredOff));
    assert_eq!(server.put(SPEC).status, 409);
    // The spec is checked first: it would be wrong later, too.
    assert_eq!(server.put("{}").status, 422);
}

#[test]
fn actions_that_the_state_forbids() {
    let server = Harness::start();
    for action in ["power-button", "reset", "nmi", "pause", "resume"] {
        let answer = server.post(action);
        assert_eq!(answer.refusal(), (404, "no-vm".to_owned()));
    }
    server.put(SPEC);
    for state in [
        VmState::Starting,
        VmState::Resetting,
        VmState::Stopping,
        VmState::Ended,
    ] {
        server.fake.is_now(state);
        let answer = server.post("reset");
        assert_eq!(answer.refusal(), (409, "wrong-state".to_owned()));
        assert_eq!(
            answer.detail(),
            format!("reset is possible only while the VM is running; it is {state}")
        );
    }
    server.fake.is_now(VmState::Paused);
    for action in ["reset", "nmi", "pause"] {
        let answer = server.post(action);
        assert_eq!(answer.refusal(), (409, "wrong-state".to_owned()));
    }
    assert_eq!(server.post("power-button").status, 202);
    assert_eq!(server.post("resume").status, 202);
    server.fake.is_now(VmState::Running);
    let answer = server.post("resume");
    assert_eq!(
        answer.detail(),
        "resume is possible only while the VM is paused; it is running"
    );
    server.fake.is_full();
    assert_eq!(server.post("reset").refusal(), (503, "busy".to_owned()));
}

#[test]
fn actions_that_do_not_exist() {
    let server = Harness::start();
    server.put(SPEC);
    for action in ["boot", "NMI", "reset%20", "%ff", "%2e%2e"] {
        let answer = server.post(action);
        assert_eq!(answer.refusal(), (404, "not-found".to_owned()), "{action}");
        assert!(
            answer.detail().contains("power-button, reset, nmi"),
            "{}",
            answer.detail()
        );
    }
}

#[test]
fn deletes_that_cannot_be() {
    let server = Harness::start();
    assert_eq!(server.delete().refusal(), (404, "no-vm".to_owned()));
    server.put(SPEC);
    server.fake.is_stuck();
    assert_eq!(server.delete().refusal(), (503, "stuck".to_owned()));
    assert_eq!(server.get("/api/v1/vm").status, 200, "it is still there");
}

#[test]
fn a_process_that_ends_makes_no_vm() {
    let server = Harness::start();
    server.fake.is_ending();
    assert_eq!(server.put(SPEC).refusal(), (503, "ending".to_owned()));
}

#[test]
fn paths_that_do_not_exist() {
    let server = Harness::start();
    let long = format!("/{}", "x".repeat(5000));
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/vm/",
        "/api/v2/vm",
        "/api/v1/vm/firmware",
        "/api/v1/../vm",
        "/%00",
        &long,
    ] {
        let answer = server.get(path);
        assert_eq!(answer.refusal(), (404, "not-found".to_owned()), "{path}");
        let detail = answer.detail();
        assert!(detail.contains("openapi.json"), "{detail}");
        assert!(detail.len() < 400, "{detail}");
    }
}

#[test]
fn methods_that_a_path_does_not_have() {
    let server = Harness::start();
    for (method, path, allowed) in [
        ("POST", "/api/v1/vm", "DELETE"),
        ("PATCH", "/api/v1/vm", "PUT"),
        ("GET", "/api/v1/vm/actions/reset", "POST"),
        ("DELETE", "/api/v1/events", "GET"),
        ("BREW", "/openapi.json", "GET"),
    ] {
        let answer = server.request(method, path, "", b"");
        assert_eq!(answer.refusal(), (405, "method-not-allowed".to_owned()));
        let allow = answer.header("allow").unwrap();
        assert!(allow.contains(allowed), "{method} {path}: {allow}");
    }
}

#[test]
fn places_in_the_events_that_are_none() {
    let server = Harness::start();
    for (query, header) in [
        ("?after=x", ""),
        ("?after=-1", ""),
        ("?after=", ""),
        ("?after=99999999999999999999", ""),
        ("?after=1&after=2", ""),
        ("?from=1", ""),
        ("", "Last-Event-ID: x\r\n"),
        ("?after=1", "Last-Event-ID: \u{e9}\r\n"),
        // What is wrong is refused also where it would not count.
        ("?after=x", "Last-Event-ID: 1\r\n"),
        // More than an int64, which the document says it is.
        ("?after=9223372036854775808", ""),
    ] {
        let target = format!("/api/v1/events{query}");
        let answer = server.request("GET", &target, header, b"");
        let expected = (400, "invalid-parameter".to_owned());
        assert_eq!(answer.refusal(), expected, "{query} {header}");
    }
}

#[test]
fn what_is_not_http() {
    let server = Harness::start();
    for (bytes, status) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n"[..],
            "400",
        ),
        (b"GET /api/v1/vm HTTP/1.1\r\nbad header\r\n\r\n", "400"),
        (
            b"PUT /api/v1/vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "400",
        ),
        (
            b"PUT /api/v1/vm HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "400",
        ),
    ] {
        let mut client = server.connect();
        client.write(bytes);
        let rest = client.rest();
        let expected = format!("HTTP/1.1 {status}");
        assert!(
            rest.starts_with(expected.as_bytes()),
            "{:?}",
            String::from_utf8_lossy(&rest)
        );
    }
    // A head that does not end.
    let mut client = server.connect();
    let _ = client.try_write(b"GET / HTTP/1.1\r\n");
    let line = format!("X: {}\r\n", "y".repeat(1000));
    let mut lines = 0;
    while lines < 10_000 && client.try_write(line.as_bytes()).is_ok() {
        lines += 1;
    }
    assert!(lines < 1000, "{lines} KiB of headers were taken");
    let rest = client.rest();
    assert!(rest.starts_with(b"HTTP/1.1 431"), "{rest:?}");
    // The server is none the worse for it.
    assert_eq!(server.get("/api/v1/vm").status, 404);
}
