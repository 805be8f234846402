//! A guest on real KVM on an export of an NBD server that is killed and started again under its writes.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use paddock_probe::protocol::Area;
use paddock_tests::{Vm, amount, blocks, files, within};

const SIZE: u64 = 64 << 20;

/// A server of an image on a socket; killed on drop.
struct Server {
    command: Vec<String>,
    socket: PathBuf,
    process: Option<Child>,
}

impl Server {
    /// Starts one by this command, which serves on `socket`.
    fn start(command: &[&str], socket: &Path) -> Self {
        let mut server = Self {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            socket: socket.to_owned(),
            process: None,
        };
        server.restart();
        server
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
            std::fs::remove_file(&self.socket).unwrap();
        }
    }

    fn restart(&mut self) {
        self.kill();
        let process = Command::new(&self.command[0])
            .args(&self.command[1..])
            .spawn();
        let program = &self.command[0];
        let process = process.unwrap_or_else(|error| panic!("{program}, install it: {error}"));
        self.process = Some(process);
        let serves = || UnixStream::connect(&self.socket).is_ok();
        assert!(
            within(Duration::from_secs(30), serves),
            "{program} does not serve"
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Has a guest write by 4 queues while the server is killed, twice, and looks at the blocks from both sides. `command` gets the image's path at its end.
fn killed_under_writes(command: &[&str], socket_flag: &str) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let image = files::empty_disk(directory.path(), "image", SIZE);
    let [at, path] = [&socket, &image].map(|path| path.to_str().unwrap());
    let (program, rest) = command.split_first().unwrap();
    let command = [&[*program, socket_flag, at][..], rest, &[path]].concat();
    let mut server = Server::start(&command, &socket);
    let disk = format!("nbd=nbd+unix:///?socket={at},queues=4");
    let vm = Vm::builder().cpus(&4).args(["--disk", &disk]).boot();
    let found = &vm.info().disks[0];
    assert_eq!((found.size, found.queues), (SIZE, 4));
    let area = Area {
        count: Some(amount(600, 8000)),
        ..Area::new("/dev/vda", SIZE, 42)
    };
    let area = blocks::write_during(&vm, &area, || {
        // At some moments only there is something that it has acknowledged and not flushed.
        for _ in 0..6 {
            sleep(Duration::from_millis(300));
            server.kill();
            // Requests come meanwhile, and wait.
            sleep(Duration::from_millis(300));
            server.restart();
        }
    });
    blocks::verify(&vm, &area);
    vm.power_off();
    let count = blocks::verify_file(&File::open(&image).unwrap(), &area);
    assert_eq!(Some(count), area.count);
}

#[test]
fn qemu_nbd_is_killed_under_random_writes_on_4_queues() {
    let command = ["qemu-nbd", "--persistent", "--shared=16", "--format=raw"];
    killed_under_writes(&command, "--socket");
}

#[test]
fn nbdkit_is_killed_under_random_writes_on_4_queues() {
    // The filter keeps in a file of its own what was not flushed, and that is gone with the process.
    let command = [
        "nbdkit",
        "--foreground",
        "--filter=cache",
        "file",
        "cache=writeback",
    ];
    killed_under_writes(&command, "--unix");
}
