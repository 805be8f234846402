//! `paddock serve` as a service: what it is passed, and what it tells. Needs no KVM.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);

/// Passes standard input on as descriptor 3, the only one that is listed, under the name `$NAME`.
const LAUNCHER: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; \
                        if [ \"$NAME\" ]; then export LISTEN_FDNAMES=\"$NAME\"; fi; exec \"$0\" \"$@\"";

struct Place {
    directory: TempDir,
    manager: UnixDatagram,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(SOON)).unwrap();
        Self { directory, manager }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `paddock serve` with `passed` as descriptor 3.
    fn serve(&self, passed: impl Into<OwnedFd>, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", LAUNCHER, env!("CARGO_BIN_EXE_paddock"), "serve"])
            .args(arguments)
            .env("NAME", name)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(Stdio::from(passed.into()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// What the service manager hears next.
    fn heard(&self) -> String {
        let mut buffer = [0; 1024];
        let count = self.manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    /// What the API says of the VM.
    fn asks(&self) -> String {
        self.requests("GET", "")
    }

    /// The API's answer to a request about the VM.
    fn requests(&self, method: &str, body: &str) -> String {
        let mut client = UnixStream::connect(self.path("api.sock")).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} /api/v1/vm HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn terminate(child: Child) -> Output {
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    child.wait_with_output().unwrap()
}

#[test]
fn a_socket_unit_is_enough() {
    for (name, arguments) in [
        ("api", &[][..]),
        ("", &[]),
        ("web.socket", &[]),
        ("web.socket", &["--api-socket", "fd:web.socket"]),
        ("", &["--api-socket", "fd:3"]),
    ] {
        let place = Place::new();
        let listener = UnixListener::bind(place.path("api.sock")).unwrap();
        let child = place.serve(listener, name, arguments).spawn().unwrap();
        assert_eq!(place.heard(), "READY=1\nSTATUS=no VM");
        assert!(place.asks().starts_with("HTTP/1.1 404"), "{}", place.asks());
        let output = terminate(child);
        assert!(output.status.success(), "{output:?}");
        // 30 s for a guest to power off, 20 s for its disks, 10 s for the rest.
        assert_eq!(place.heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000");
        assert!(place.path("api.sock").exists(), "it is not ours to remove");
    }
}

#[test]
fn what_was_passed_and_is_not_what_it_should_be() {
    let null = || std::fs::File::open("/dev/null").unwrap();
    for (name, arguments, status, expected) in [
        (
            "api",
            &[][..],
            1,
            "fd:api: the passed descriptor is no socket",
        ),
        (
            "kvm",
            &[],
            1,
            "--kvm: fd:kvm: the passed descriptor is not /dev/kvm",
        ),
        ("", &[], 2, "--api-socket is missing"),
        ("", &["--api-socket", "fd:4"], 1, "passed are: 3"),
        ("x", &["--api-socket", "fd:y"], 1, "passed are: 3 (x)"),
        (
            "x",
            &["--api-socket", "fd:2"],
            2,
            "standard input, output or error",
        ),
    ] {
        let output = Place::new()
            .serve(null(), name, arguments)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{log}");
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
}

#[test]
fn a_vm_that_is_refused_uses_up_nothing_that_was_passed() {
    let place = Place::new();
    let log = std::fs::File::create(place.path("log")).unwrap();
    let socket = place.path("api.sock");
    let arguments = ["--api-socket", socket.to_str().unwrap()];
    let child = place.serve(log, "log", &arguments).spawn().unwrap();
    assert_eq!(place.heard(), "READY=1\nSTATUS=no VM");
    let put = |more: &str, status: &str| {
        let answer = place.requests(
            "PUT",
            &format!(r#"{{"boot": {{"kernel": "/absent"}}{more}}}"#),
        );
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{answer}");
    };
    // Without a kernel it ends at once, and stays until it is deleted.
    let end = || {
        let began = Instant::now();
        loop {
            let answer = place.asks();
            if answer.contains(r#""state":"ended""#) {
                return answer;
            }
            assert!(began.elapsed() < SOON, "{answer}");
            std::thread::sleep(SOON / 1000);
        }
    };
    let delete = || {
        let answer = place.requests("DELETE", "");
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    };
    let uses = r#", "console": {"serial": {"file": "fd:log"}}"#;
    put(&format!(r#"{uses}, "unknown": 1"#), "422");
    put(&format!(r#"{uses}, "cpus": {{"count": 0}}"#), "422");
    put(&format!("{uses},"), "400");
    put("", "201");
    put(uses, "409");
    end();
    put(uses, "409");
    delete();

    // The first that is not refused has it, and it alone.
    put(uses, "201");
    let ended = end();
    assert!(!ended.contains("/console/serial"), "{ended}");
    delete();
    put(uses, "201");
    let ended = end();
    assert!(
        ended.contains("fd:log: the descriptor was used already"),
        "{ended}"
    );
    assert!(terminate(child).status.success());
}

#[test]
fn the_watchdog_is_kept_quiet() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("api.sock")).unwrap();
    let mut command = place.serve(listener, "api", &[]);
    let child = command.env("WATCHDOG_USEC", "100000").spawn().unwrap();
    assert_eq!(place.heard(), "READY=1\nSTATUS=no VM");
    for _ in 0..3 {
        assert_eq!(place.heard(), "WATCHDOG=1");
    }
    assert!(terminate(child).status.success());
}

#[test]
fn logs_for_the_journal_have_a_severity_and_no_time() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let log = std::fs::File::create(place.path("log")).unwrap();
    let metadata = log.metadata().unwrap();
    let listener = UnixListener::bind(place.path("api.sock")).unwrap();
    let child = place
        .serve(listener, "api", &["--log-level", "info"])
        .env(
            "JOURNAL_STREAM",
            format!("{}:{}", metadata.dev(), metadata.ino()),
        )
        .env("WATCHDOG_USEC", "often")
        .stderr(log)
        .spawn()
        .unwrap();
    assert_eq!(place.heard(), "READY=1\nSTATUS=no VM");
    assert!(terminate(child).status.success());
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    let expected = "<4>the environment: WATCHDOG_USEC is \"often\", which is no number\n\
                    <6>the API is ready socket=fd:api\n";
    assert_eq!(log, expected);
}
