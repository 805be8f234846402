//! `paddock run` on a terminal: the guest's console is on it, raw, with a key to leave by, and the terminal comes back as it was.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paddock_tests::files;
use paddock_tests::vm::BOOT_DEADLINE;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// A terminal with `paddock` on it.
struct Terminal {
    keyboard: File,
    device: File,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn run(arguments: &[&str]) -> Self {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        // Not as the controlling terminal of this process, whom SIGHUP would end with the terminal.
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(OpenptFlags::NOCTTY.bits().cast_signed())
            .open(name.to_str().unwrap())
            .unwrap();
        let end = || OwnedFd::from(device.try_clone().unwrap());
        let child = Command::new(files::paddock())
            .arg("run")
            .args(["--kernel", files::guest("vmlinuz").to_str().unwrap()])
            .args(arguments)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = File::from(main);
        let mut screen = keyboard.try_clone().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            keyboard,
            device,
            shown,
            child,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, text: &str) {
        let end = Instant::now() + BOOT_DEADLINE;
        while !self.text().contains(text) {
            assert!(
                Instant::now() < end,
                "{text:?} is not on the terminal:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Whether keys arrive one by one and unseen, as a guest's console wants them.
    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.device).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn exit_status(&mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_console_is_on_the_terminal_until_the_escape_key() {
    let initramfs = files::guest("initramfs.cpio");
    let mut terminal = Terminal::run(&[
        "--initramfs",
        initramfs.to_str().unwrap(),
        "--cmdline",
        "console=ttyS0 quiet panic=-1",
    ]);
    // Without its port the probe offers a shell on the console.
    terminal.wait_for("paddock-probe: up");
    terminal.wait_for("# ");
    assert!(terminal.is_raw());
    terminal.press(b"echo $((6 * 7))-is-the-answer\r");
    terminal.wait_for("42-is-the-answer");
    // Ctrl-C is the guest's: the shell lives, and so does the VM.
    terminal.press(b"\x03");
    terminal.press(b"echo still-$((1 + 1))\r");
    terminal.wait_for("still-2");
    terminal.press(&[ESCAPE, b'?']);
    terminal.wait_for("power button");
    terminal.press(&[ESCAPE, b'q']);
    assert_eq!(terminal.exit_status(), Some(5));
    assert!(!terminal.is_raw(), "the terminal is as it was");
}

#[test]
fn the_terminal_comes_back_after_an_error_too() {
    let mut terminal = Terminal::run(&["--disk", "/absent.img"]);
    assert_eq!(terminal.exit_status(), Some(1));
    terminal.wait_for("/absent.img");
    assert!(!terminal.is_raw());
}
