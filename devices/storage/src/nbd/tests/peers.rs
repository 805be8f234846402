//! Real servers: qemu-nbd and nbdkit.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::load::{BLOCK, block, four_queues};
use super::{open, options, read, write};
use crate::nbd::NbdErrorKind;
use crate::{Disk, IoError, Operation};

const SIZE: u64 = 4 << 20;

/// A server, killed at the end.
pub(super) struct Peer {
    child: Mutex<Child>,
    program: &'static str,
    arguments: Vec<String>,
}

fn spawn(program: &str, arguments: &[String]) -> Child {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn();
    child.unwrap_or_else(|error| {
        panic!("{program} cannot be started ({error}); tests/run --only setup installs it, in Debian's packages qemu-utils and nbdkit")
    })
}

impl Peer {
    pub(super) fn new(program: &'static str, arguments: Vec<String>) -> Self {
        let child = Mutex::new(spawn(program, &arguments));
        Self {
            child,
            program,
            arguments,
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.lock().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("it is signalled");
    }

    /// Kills it, and starts another.
    fn replace(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        *child = spawn(self.program, &self.arguments);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A directory with an image in it.
pub(super) struct Place {
    directory: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::create(directory.path().join("image")).expect("an image");
        file.set_len(SIZE).expect("an image");
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(super) fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.text("socket"))
    }
}

pub(super) fn strings<const N: usize>(arguments: [&str; N]) -> Vec<String> {
    arguments.map(str::to_owned).to_vec()
}

/// A port that was free a moment ago.
pub(super) fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn qemu(place: &Place, more: &[&str]) -> Peer {
    let mut arguments = strings([
        "-f",
        "raw",
        "-t",
        "-k",
        &place.text("socket"),
        "-x",
        "disk",
        &place.text("image"),
    ]);
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    Peer::new("qemu-nbd", arguments)
}

fn nbdkit(place: &Place, more: &[&str]) -> Peer {
    let mut arguments = strings(["-f", "-U", &place.text("socket")]);
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    // What is left of one that was killed is in the way.
    let _ = std::fs::remove_file(place.path("socket"));
    Peer::new("nbdkit", arguments)
}

fn block_in(file: &Path, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    let file = File::open(file).expect("the image");
    file.read_exact_at(&mut bytes, number * BLOCK as u64)
        .expect("a block");
    bytes
}

#[test]
fn qemu_nbd_serves_four_queues_on_one_connection() {
    let place = Place::new();
    // One client, so no more than one connection would be let in.
    let _peer = qemu(&place, &["--cache=writeback", "--discard=unmap"]);
    let disk = open(&options(&place.unix("disk")));
    assert!(!disk.has_many_connections());
    let capabilities = disk.capabilities();
    assert_eq!(capabilities.size, SIZE);
    assert!(capabilities.flush && capabilities.discard && capabilities.write_zeroes);
    assert_eq!(four_queues(&disk, &disk, |count| count > 400), []);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(write(queue.as_mut(), BLOCK as u64, block(1, 2)), Ok(()));
    assert_eq!(super::one(queue.as_mut(), Operation::Flush), Ok(()));
    assert!(block_in(&place.path("image"), 1) == block(1, 2));
    let wrong =
        crate::nbd::NbdDisk::open(options(&place.unix("other"))).expect_err("no such export");
    assert!(
        matches!(
            wrong.kind,
            NbdErrorKind::Refused { .. } | NbdErrorKind::Timeout
        ),
        "{wrong}"
    );
}

#[test]
fn qemu_nbd_serves_four_connections_by_tcp() {
    let place = Place::new();
    let port = port();
    let text = port.to_string();
    let arguments = strings([
        "-f",
        "raw",
        "-t",
        "-e",
        "8",
        "-b",
        "127.0.0.1",
        "-p",
        &text,
        &place.text("image"),
    ]);
    let _peer = Peer::new("qemu-nbd", arguments);
    for host in ["127.0.0.1", "localhost"] {
        let disk = open(&options(&format!("nbd://{host}:{port}/")));
        assert!(disk.has_many_connections());
        if host == "127.0.0.1" {
            assert_eq!(four_queues(&disk, &disk, |count| count > 400), []);
        }
    }
}

#[test]
fn nbdkit_serves_four_connections() {
    let place = Place::new();
    let _peer = nbdkit(&place, &["file", &place.text("image")]);
    let disk = open(&options(&place.unix("")));
    assert!(disk.has_many_connections());
    assert_eq!(four_queues(&disk, &disk, |count| count > 400), []);
}

#[test]
fn read_only_exports_are_only_read() {
    let place = Place::new();
    let _peer = qemu(&place, &["-r"]);
    let mut wanted = options(&place.unix("disk"));
    wanted.read_only = true;
    let disk = open(&wanted);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(read(queue.as_mut(), 512, 512), Ok(vec![0; 512]));
    assert_eq!(
        write(queue.as_mut(), 512, vec![1; 512]),
        Err(IoError::ReadOnly)
    );
    drop((queue, disk));
    wanted.read_only = false;
    let error = crate::nbd::NbdDisk::open(wanted).expect_err("it is read-only");
    assert_eq!(error.kind, NbdErrorKind::ReadOnly);
}

#[test]
fn block_sizes_are_kept_to() {
    let place = Place::new();
    let image = place.text("image");
    let _peer = nbdkit(
        &place,
        &[
            "--filter=blocksize-policy",
            "file",
            &image,
            "blocksize-minimum=4096",
            "blocksize-preferred=65536",
            "blocksize-maximum=131072",
            "blocksize-error-policy=error",
        ],
    );
    let disk = open(&options(&place.unix("")));
    assert_eq!(disk.capabilities().logical_block_size, 4096);
    assert_eq!(four_queues(&disk, &disk, |count| count > 100), []);
    let mut queue = disk.open_queue(4).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    assert_eq!(write(queue.as_mut(), 4096, bytes.clone()), Ok(()));
    assert_eq!(read(queue.as_mut(), 4096, 1 << 20), Ok(bytes));
}

#[test]
fn errors_of_the_server_are_errors() {
    let place = Place::new();
    let image = place.text("image");
    let _peer = nbdkit(
        &place,
        &[
            "--filter=error",
            "file",
            &image,
            "error=ENOSPC",
            "error-pwrite-rate=100%",
            "error-pread-rate=0",
        ],
    );
    let disk = open(&options(&place.unix("")));
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(
        write(queue.as_mut(), 0, vec![1; 4096]),
        Err(IoError::Os(libc::ENOSPC))
    );
    assert_eq!(read(queue.as_mut(), 0, 4096), Ok(vec![0; 4096]));
}

/// Loads a disk while its server is killed and started again.
fn killed(place: &Place, peer: &Peer, uri: &str) {
    let disk = open(&options(uri));
    let over = AtomicBool::new(false);
    let errors = std::thread::scope(|scope| {
        let load = scope.spawn(|| four_queues(&disk, &disk, |_| over.load(Ordering::Acquire)));
        // Servers are started by a thread that lives on: nbdkit was seen to end with the one that started it.
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(150));
            let _ = std::fs::remove_file(place.path("socket"));
            peer.replace();
        }
        std::thread::sleep(Duration::from_millis(150));
        over.store(true, Ordering::Release);
        load.join().expect("the load ends")
    });
    assert_eq!(errors, []);
}

#[test]
fn qemu_nbd_killed_under_load_loses_nothing() {
    let place = Place::new();
    let peer = qemu(&place, &["-e", "8"]);
    killed(&place, &peer, &place.unix("disk"));
}

#[test]
fn nbdkit_killed_under_load_loses_nothing() {
    let place = Place::new();
    let peer = nbdkit(&place, &["file", &place.text("image")]);
    killed(&place, &peer, &place.unix(""));
}

/// nbdkit's `cache` filter keeps writes in a file of its own until a flush, so that they die with it.
#[test]
fn a_cache_that_dies_with_nbdkit_loses_nothing() {
    let place = Place::new();
    let image = place.text("image");
    let peer = nbdkit(
        &place,
        &["--filter=cache", "file", &image, "cache=writeback"],
    );
    killed(&place, &peer, &place.unix(""));
}

#[test]
fn a_server_that_is_stopped_runs_into_the_deadline() {
    let place = Place::new();
    let peer = qemu(&place, &["-e", "8"]);
    let mut quick = options(&place.unix("disk"));
    quick.request_timeout = Duration::from_millis(200);
    quick.connect_timeout = Duration::from_millis(500);
    quick.reconnect_deadline = Duration::from_secs(1);
    let disk = open(&quick);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(write(queue.as_mut(), 0, vec![1; 4096]), Ok(()));
    peer.signal(rustix::process::Signal::STOP);
    assert_eq!(
        write(queue.as_mut(), 4096, vec![2; 4096]),
        Err(IoError::Os(libc::ETIMEDOUT))
    );
    peer.signal(rustix::process::Signal::CONT);
    let end = std::time::Instant::now() + super::PATIENCE;
    while read(queue.as_mut(), 0, 4096) != Ok(vec![1; 4096]) {
        assert!(
            std::time::Instant::now() < end,
            "the server is not found again"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
