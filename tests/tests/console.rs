//! Consoles on unix sockets: several viewers see the guest and type, late ones see the history, slow ones hold nobody up; and logs that
//! are rotated.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paddock_probe::protocol::Exec;
use paddock_tests::host::{SmallFileSystem, run};
use paddock_tests::viewer::{Viewer, idle, without_marks};
use paddock_tests::vm::{BOOT_DEADLINE, CALL_DEADLINE, refused, text};
use paddock_tests::{Vm, amount, files};
use tempfile::TempDir;

/// For a flood: each byte of a console costs the lab exits.
const FLOOD_DEADLINE: Duration = Duration::from_secs(300);

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("console.sock");
    (directory, socket)
}

/// Starts a shell on the guest's console `tty`; the first terminal that a session's first process opens is the session's.
fn offer_shell(vm: &Vm, tty: &str) {
    vm.shell(&format!(
        "setsid sh -c 'exec sh </dev/{tty} >/dev/{tty} 2>&1' </dev/null >/dev/null 2>&1 &"
    ));
}

/// Prints the numbers up to `count` on `tty`, with `separator` in between, and then `last`. The guest's kernel hands a console whole lines
/// at a time, so that many short ones take long.
fn flood(vm: &Vm, tty: &str, (count, separator): (u64, &str), last: &str) {
    let line = format!("{{ seq -s '{separator}' 1 {count}; echo {last}; }} >/dev/{tty}");
    let mut command = Exec::shell(line);
    command.timeout_ms = u64::try_from(FLOOD_DEADLINE.as_millis()).unwrap();
    let reply = vm.call_within(command, FLOOD_DEADLINE + CALL_DEADLINE);
    assert!(reply.success(), "{reply:?}");
}

fn reboot(vm: &mut Vm, viewer: &Viewer, boots: usize) {
    vm.start_reboot();
    viewer.wait_for(vm, "paddock-probe: up", boots, BOOT_DEADLINE);
    vm.connect();
}

/// Two viewers and a late one, who all see the guest and type, over a reset; `flag` puts the console `tty` on a socket.
fn viewers(flag: &str, tty: &str) {
    let (_directory, socket) = scratch();
    // Left by a process that was killed.
    drop(UnixListener::bind(&socket).unwrap());
    let mut vm = Vm::builder()
        .command_line(&format!("console={tty}"))
        .args([flag, &format!("socket={}", socket.display())])
        .start();
    let mut two = [Viewer::connect(&socket), Viewer::connect(&socket)];
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    vm.connect();
    for viewer in &two {
        viewer.wait_for(&vm, "paddock-probe: up, 1 cpus", 1, BOOT_DEADLINE);
    }
    offer_shell(&vm, tty);
    for typist in 0..2 {
        two[typist].wait_for(&vm, "# ", 1 + typist, CALL_DEADLINE);
        two[typist].press(&format!("echo $((40 + {typist}))-typed\r"));
        for viewer in &two {
            viewer.wait_for(&vm, &format!("{}-typed", 40 + typist), 1, CALL_DEADLINE);
        }
    }
    let mut late = Viewer::connect(&socket);
    late.wait_for(&vm, "41-typed", 1, CALL_DEADLINE);
    let history = late.text();
    assert!(history.contains("paddock-probe: up, 1 cpus") && history.contains("40-typed"));

    reboot(&mut vm, &late, 2);
    let prompts = late.text().matches("# ").count();
    offer_shell(&vm, tty);
    late.wait_for(&vm, "# ", prompts + 1, CALL_DEADLINE);
    late.press("echo after-$((1 + 1))\r");
    for viewer in two.iter().chain([&late]) {
        viewer.wait_for(&vm, "after-2", 1, CALL_DEADLINE);
    }
    // From before the reset on.
    Viewer::connect(&socket).wait_for(&vm, "41-typed", 1, CALL_DEADLINE);
    vm.power_off();
    assert!(!socket.exists(), "the socket is removed at the end");
    let [one, two] = two.map(Viewer::everything);
    let late = late.everything();
    assert_eq!(one, two);
    assert_eq!(one, late, "all that a viewer missed was in the history");
}

#[test]
fn viewers_of_the_serial_port() {
    viewers("--serial", "ttyS0");
}

#[test]
fn a_viewer_that_never_reads_holds_nobody_up() {
    let (_directory, socket) = scratch();
    let mut vm = Vm::builder()
        .args(["--hvc0", &format!("socket={}", socket.display())])
        .start();
    let sleeper = idle(&socket);
    let reader = Viewer::connect(&socket);
    vm.connect();
    // 1.3 MB, and in soak 3.4: far more than a socket's buffer and the history together, which may be 350 KB.
    flood(
        &vm,
        "hvc0",
        (amount(200_000, 500_000), " "),
        "the flood is over",
    );
    reader.wait_for(&vm, "the flood is over\r\n", 1, CALL_DEADLINE);

    let sleeper = Viewer::from(sleeper);
    sleeper.wait_for(&vm, "the flood is over\r\n", 1, CALL_DEADLINE);
    let (read, lost_to_reader) = without_marks(&reader.text());
    let (slept, lost_to_sleeper) = without_marks(&sleeper.text());
    assert!(slept.starts_with("1 2 3 "));
    assert!(lost_to_sleeper > 0, "it is told that it missed something");
    assert_eq!(
        slept.len() + lost_to_sleeper,
        read.len() + lost_to_reader,
        "and how much"
    );
    assert!(
        slept.len() < 512 << 10,
        "nothing is kept for it beyond its socket's buffer and the history"
    );
    vm.power_off();
}

/// What is in the files of the log at `path`, oldest first, each with its length. While they are being rotated, one may be left out.
fn log_files(path: &Path) -> (String, Vec<u64>) {
    let older = (1..100).map(|number| PathBuf::from(format!("{}.{number}", path.display())));
    let mut files: Vec<_> = older.take_while(|file| file.exists()).collect();
    files.reverse();
    files.push(path.to_owned());
    let mut whole = Vec::new();
    let mut lengths = Vec::new();
    for file in files {
        let contents = fs::read(file).unwrap_or_default();
        lengths.push(u64::try_from(contents.len()).unwrap());
        whole.extend(contents);
    }
    (String::from_utf8(whole).unwrap(), lengths)
}

#[test]
fn a_log_is_rotated_and_goes_on_over_a_reset() {
    let (directory, socket) = scratch();
    let log = directory.path().join("serial.log");
    let options = format!(
        "socket={},log={},log-size=4K,log-files=3",
        socket.display(),
        log.display()
    );
    let mut vm = Vm::builder().args(["--serial", &options]).start();
    let viewer = Viewer::connect(&socket);
    vm.connect();
    flood(&vm, "ttyS0", (4000, "\n"), "full");
    viewer.wait_for(&vm, "full\r\n", 1, CALL_DEADLINE);
    let written = |vm: &Vm, last: &str| {
        vm.wait_until(
            "the log does not end as the console did",
            CALL_DEADLINE,
            || log_files(&log).0.ends_with(last),
        );
        let (kept, lengths) = log_files(&log);
        assert_eq!(lengths.len(), 3);
        assert!(lengths.iter().all(|length| *length <= 4096), "{lengths:?}");
        // Lines are short, so little is left empty for the sake of whole ones.
        assert!(lengths[..2].iter().all(|length| *length > 3072));
        assert!(viewer.text().ends_with(&kept), "the log is what was shown");
    };
    written(&vm, "4000\r\nfull\r\n");
    let mode = fs::metadata(&log).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    reboot(&mut vm, &viewer, 2);
    vm.wait_until("not both boots are in the log", CALL_DEADLINE, || {
        let kept = log_files(&log).0;
        kept.contains("full\r\n") && kept.contains("paddock-probe: up")
    });
    flood(&vm, "ttyS0", (10, " "), "after the reset");
    viewer.wait_for(&vm, "after the reset\r\n", 1, CALL_DEADLINE);
    written(&vm, "after the reset\r\n");
    vm.power_off();
    let kept = log_files(&log).0;
    assert!(viewer.everything().ends_with(&kept), "up to the end");
}

#[test]
fn a_log_on_a_full_disk_is_told_of_once_and_mends_itself() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallFileSystem::new(directory.path().join("disk"), "64k");
    let log = disk.path().join("hvc0.log");
    let vm = Vm::builder()
        .args(["--hvc0", &format!("off,log={}", log.display())])
        .boot();
    flood(&vm, "hvc0", (30_000, " "), "lost");
    let losses = |vm: &Vm| vm.log().matches("the console's log loses output").count();
    vm.wait_until(
        "there is no word about the full disk",
        CALL_DEADLINE,
        || losses(&vm) > 0,
    );
    // The log is tried again all the time, and the guest does not notice.
    for second in 0..7 {
        flood(&vm, "hvc0", (100, " "), &format!("second {second}"));
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(losses(&vm), 1, "{}", vm.log());

    disk.grow("4m");
    vm.wait_until("the log does not go on", CALL_DEADLINE, || {
        vm.shell("echo there is room >/dev/hvc0");
        log_files(&log).0.contains("there is room")
    });
    let kept = log_files(&log).0;
    assert!(kept.starts_with("1 2 3 "));
    let (_, lost) = without_marks(&kept[kept.rfind("\r\n[paddock: ").unwrap()..]);
    assert!(lost > 64 << 10, "{lost} bytes were lost");
    assert!(vm.log().contains("the console's log goes on"));
    vm.power_off();
}

/// Connects as the user with this number and gives how many bytes it was sent first.
fn shown_to(user: u32, socket: &Path) -> String {
    run(&format!(
        "setpriv --reuid={user} --regid={user} --clear-groups timeout 60 perl -MSocket -e '\
         socket(S, PF_UNIX, SOCK_STREAM, 0) or die $!; connect(S, sockaddr_un($ARGV[0])) or die $!; \
         sysread(S, $seen, 16); print length($seen)' {}",
        text(socket)
    ))
}

#[test]
fn another_user_gets_nothing_even_if_the_file_lets_them() {
    let (directory, socket) = scratch();
    let vm = Vm::builder()
        .args(["--serial", &format!("socket={}", socket.display())])
        .boot();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(shown_to(0, &socket), "16");
    assert_eq!(shown_to(65534, &socket), "0");
    assert!(vm.log().contains("another user's"), "{}", vm.log());
    vm.power_off();
}

#[test]
fn a_socket_that_cannot_be_made_is_refused() {
    let (directory, socket) = scratch();
    let kernel = files::guest("vmlinuz");
    let fails = |options: &str, status: i32, part: &str| {
        let (code, log) = refused(&["--kernel", text(&kernel), "--serial", options]);
        assert_eq!(code, Some(status), "{options}: {log}");
        assert!(log.contains(part), "{part:?} is not in: {log}");
    };
    let at = |path: &Path| format!("socket={}", path.display());
    let listener = UnixListener::bind(&socket).unwrap();
    fails(&at(&socket), 1, "another process listens on this socket");
    drop(listener);
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    fails(&at(&file), 1, "exists and is not a socket");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    fails(
        &at(&directory.path().join("absent/socket")),
        1,
        "absent/socket",
    );
    let log = format!("off,log={}", directory.path().display());
    fails(&log, 1, text(directory.path()));
    fails("off,log-files=3", 2, "path is missing");
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn viewers_of_the_virtio_console() {
        viewers("--hvc0", "hvc0");
    }
}
