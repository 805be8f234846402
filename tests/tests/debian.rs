//! The Debian disk image boots to a login, with its agent, and shuts down when its power button is pressed.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use paddock_tests::host::run;
use paddock_tests::{Vm, files};

/// Emulated twice over, a distribution takes its time.
const LOGIN_DEADLINE: Duration = Duration::from_secs(300);

#[test]
fn boots_to_a_login_and_shuts_down_by_its_power_button() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("debian.raw");
    run(&format!(
        "cp --sparse=always {} {}",
        files::guest("debian.raw").display(),
        disk.display()
    ));
    let agent = directory.path().join("agent.sock");
    let mut vm = Vm::builder()
        .cpus(&2)
        .memory("1G")
        .debian(&disk)
        .args([
            "--port".to_owned(),
            format!("name=org.qemu.guest_agent.0,socket={}", agent.display()),
        ])
        .start();
    vm.wait_for_console("login:", 1, LOGIN_DEADLINE);
    vm.connect();
    let os = vm.shell(". /etc/os-release; echo $ID $VERSION_ID; findmnt -no SOURCE /");
    assert!(os.starts_with("debian 12\n/dev/vda"), "{os}");
    assert_eq!(vm.shell("systemctl is-system-running --wait"), "running\n");

    // The guest agent, by its own protocol, as any agent's client speaks it.
    let mut link = UnixStream::connect(&agent).unwrap();
    link.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    link.write_all(b"{\"execute\":\"guest-get-osinfo\"}\n")
        .unwrap();
    let mut answer = String::new();
    BufReader::new(&link).read_line(&mut answer).unwrap();
    assert!(answer.contains("\"id\": \"debian\""), "{answer}");

    vm.signal("TERM");
    vm.expect_exit(0);
}
