//! A hub on a real socket, with a device that takes as much as the test says.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use paddock_devices::console::ConsoleInput;
use tempfile::TempDir;
use vmm_sys_util::eventfd::EventFd;

use super::super::history::HISTORY;
use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Keeps what is typed, up to `room` bytes.
#[derive(Debug)]
struct Device {
    state: Mutex<(Vec<u8>, usize)>,
    space: EventFd,
}

impl Device {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new((Vec::new(), room)),
            space: EventFd::new(0).unwrap(),
        })
    }

    fn typed(&self) -> Vec<u8> {
        self.state.lock().0.clone()
    }

    fn make_room(&self, room: usize) {
        self.state.lock().1 = room;
    }
}

impl ConsoleInput for Device {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let (typed, room) = &mut *self.state.lock();
        let taken = bytes.len().min(*room - typed.len());
        typed.extend(&bytes[..taken]);
        taken
    }

    fn space(&self) -> &EventFd {
        &self.space
    }
}

struct Fixture {
    _directory: TempDir,
    path: PathBuf,
    input: Arc<InputSwitch>,
    device: Arc<Device>,
    guest: Arc<dyn ConsoleSink>,
    hub: Hub,
}

fn bind(path: &Path) -> PrivateSocket {
    PrivateSocket::bind(path).unwrap()
}

impl Fixture {
    fn new() -> Self {
        Self::with_patience(PATIENCE)
    }

    fn with_patience(patience: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let (input, device) = (Arc::<InputSwitch>::default(), Device::new(1 << 20));
        input.connect(Some(Arc::clone(&device) as _));
        let hub = Hub::with_patience("test", bind(&path), Arc::clone(&input), patience).unwrap();
        Self {
            _directory: directory,
            path,
            input,
            device,
            guest: hub.sink(),
            hub,
        }
    }

    fn view(&self) -> UnixStream {
        let viewer = UnixStream::connect(&self.path).unwrap();
        viewer.set_read_timeout(Some(SOON)).unwrap();
        viewer.set_write_timeout(Some(SOON)).unwrap();
        viewer
    }

    /// A viewer who was let in: it saw what is printed now.
    fn welcomed(&self, text: &str) -> UnixStream {
        let mut viewer = self.view();
        self.guest.write(text.as_bytes());
        assert!(sees(&mut viewer, text).ends_with(text));
        viewer
    }
}

/// Reads until `text` has come.
fn sees(viewer: &mut UnixStream, text: &str) -> String {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(text.as_bytes()) {
        let count = viewer.read(&mut buffer).unwrap();
        assert!(
            count > 0,
            "hung up after {}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend(&buffer[..count]);
    }
    String::from_utf8(seen).unwrap()
}

fn everything(mut viewer: UnixStream) -> String {
    let mut seen = String::new();
    match viewer.read_to_string(&mut seen) {
        Ok(_) => {}
        // It had typed something that was not read any more.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    seen
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the marks for lost output out of `seen`; gives the rest and the number of bytes lost.
fn without_marks(seen: &str) -> (String, usize) {
    let (mut rest, mut lost) = (String::new(), 0);
    let mut parts = seen.split("\r\n[paddock: ");
    rest.push_str(parts.next().unwrap());
    for part in parts {
        let (count, more) = part
            .split_once(" bytes of output were lost here]\r\n")
            .unwrap();
        lost += count.parse::<usize>().unwrap();
        rest.push_str(more);
    }
    (rest, lost)
}

#[test]
fn all_viewers_see_the_guest_and_late_ones_the_history_first() {
    let fixture = Fixture::new();
    let mode = std::fs::metadata(&fixture.path).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    fixture.guest.write(b"before anybody\n");
    let (mut one, mut two) = (fixture.view(), fixture.view());
    for viewer in [&mut one, &mut two] {
        assert_eq!(sees(viewer, "anybody\n"), "before anybody\n");
    }
    for byte in b"byte by byte\n" {
        fixture.guest.write(&[*byte]);
    }
    for viewer in [&mut one, &mut two] {
        assert_eq!(sees(viewer, "byte\n"), "byte by byte\n");
    }
    drop(one);
    let mut late = fixture.view();
    assert_eq!(sees(&mut late, "byte\n"), "before anybody\nbyte by byte\n");
    fixture.guest.write(b"now\n");
    for viewer in [&mut two, &mut late] {
        assert_eq!(sees(viewer, "now\n"), "now\n");
    }
}

#[test]
fn all_viewers_type() {
    let fixture = Fixture::new();
    let (mut one, mut two) = (fixture.view(), fixture.view());
    one.write_all(b"one").unwrap();
    wait_until("typed by the first", || fixture.device.typed() == b"one");
    two.write_all(b", two").unwrap();
    wait_until("by the second", || fixture.device.typed() == b"one, two");
    // It says that it types no more, but looks on.
    one.shutdown(Shutdown::Write).unwrap();
    // This one says something and is gone.
    let mut hasty = fixture.view();
    hasty.write_all(b", and gone").unwrap();
    drop(hasty);
    wait_until("typed in haste", || {
        fixture.device.typed() == b"one, two, and gone"
    });
    fixture.guest.write(b"still there?");
    assert_eq!(sees(&mut one, "?"), "still there?");
}

#[test]
fn what_the_guest_does_not_take_waits_and_holds_up_nothing_else() {
    let fixture = Fixture::new();
    fixture.device.make_room(10);
    let mut viewer = fixture.welcomed("up\n");
    let mut other = fixture.welcomed("again\n");
    sees(&mut viewer, "again\n");
    let typed: Vec<u8> = (0..100_000_u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    let keys = typed.clone();
    let mut keyboard = viewer.try_clone().unwrap();
    let typist = std::thread::spawn(move || keyboard.write_all(&keys).unwrap());
    wait_until("the first bytes", || fixture.device.typed().len() == 10);
    for viewer in [&mut viewer, &mut other] {
        fixture.guest.write(b"busy\n");
        sees(viewer, "busy\n");
    }
    fixture.device.make_room(usize::MAX);
    typist.join().unwrap();
    wait_until("all bytes", || fixture.device.typed().len() >= typed.len());
    assert!(fixture.device.typed() == typed, "in order");
}

#[test]
fn a_viewer_who_types_without_end_leaves_room_for_others() {
    let fixture = Fixture::new();
    fixture.device.make_room(usize::MAX);
    let mut endless = fixture.view();
    let keyboard = endless.try_clone().unwrap();
    let typist = std::thread::spawn(move || while endless.write_all(&[b'x'; 4096]).is_ok() {});
    wait_until("typing", || !fixture.device.typed().is_empty());
    let mut other = fixture.view();
    other.write_all(b"!").unwrap();
    wait_until("the other's key", || fixture.device.typed().contains(&b'!'));
    keyboard.shutdown(Shutdown::Both).unwrap();
    typist.join().unwrap();
}

#[test]
fn a_viewer_that_does_not_read_is_told_what_it_missed() {
    let fixture = Fixture::new();
    let mut idle = fixture.view();
    let mut reader = fixture.welcomed("start\n");
    // More than the history and any socket's buffer, in portions that the one who reads keeps up with.
    let mut printed = "start\n".len();
    for portion in 0..200 {
        let text = format!("{}{portion:>7}\n", "x\n".repeat(16 * 1024));
        fixture.guest.write(text.as_bytes());
        printed += text.len();
        let seen = sees(&mut reader, &text[text.len() - 8..]);
        assert_eq!(seen.len(), text.len(), "nothing is missing");
    }
    fixture.guest.write(b"end\n");
    let (seen, lost) = without_marks(&sees(&mut idle, "    199\nend\n"));
    assert!(seen.starts_with("start\nx\n"));
    assert!(lost > 0);
    assert_eq!(seen.len() + lost, printed + "end\n".len());
}

#[test]
fn a_flood_waits_for_nobody() {
    let fixture = Fixture::new();
    let _idle = fixture.view();
    let mut reader = fixture.welcomed("start\n");
    let reads = std::thread::spawn(move || sees(&mut reader, "the end"));
    let line = format!("{}\n", "y".repeat(99));
    let printed = 64 << 20;
    let start = Instant::now();
    for _ in 0..printed / line.len() {
        fixture.guest.write(line.as_bytes());
    }
    // Copying it takes a fraction of a second; waiting for the idle viewer would take for ever.
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    fixture.guest.write(b"the end");
    let (seen, lost) = without_marks(&reads.join().unwrap());
    let printed = printed / line.len() * line.len() + "the end".len();
    assert_eq!(seen.len() + lost, printed);
}

#[test]
fn a_late_viewer_of_much_sees_the_last_of_it() {
    let fixture = Fixture::new();
    for n in 0..50_000 {
        fixture.guest.write(format!("line {n:>5}\n").as_bytes());
    }
    let seen = sees(&mut fixture.view(), "line 49999\n");
    assert!(seen.len() <= HISTORY && seen.len() > HISTORY - 11);
    assert!(seen.starts_with("line "));
}

#[test]
fn viewers_are_counted() {
    let fixture = Fixture::new();
    let mut viewers: Vec<_> = (0..MAX_VIEWERS)
        .map(|n| fixture.welcomed(&format!("{n}\n")))
        .collect();
    // All of them read, so none is to go for another.
    let last = format!("{}\n", MAX_VIEWERS - 1);
    for viewer in &mut viewers[..MAX_VIEWERS - 1] {
        sees(viewer, &last);
    }
    let refused = everything(fixture.view());
    assert_eq!(
        refused,
        "[paddock: this console has 16 viewers already, which is the most]\r\n"
    );
    fixture.guest.write(b"all here\n");
    for viewer in &mut viewers {
        sees(viewer, "all here\n");
    }
    viewers.pop();
    let mut next = fixture.view();
    assert!(sees(&mut next, "all here\n").starts_with("0\n1\n"));
}

#[test]
fn a_viewer_that_has_read_nothing_for_long_gives_its_place_up() {
    let fixture = Fixture::with_patience(Duration::ZERO);
    let idle = fixture.view();
    let mut viewers: Vec<_> = (1..MAX_VIEWERS)
        .map(|n| fixture.welcomed(&format!("{n}\n")))
        .collect();
    for _ in 0..100 {
        let text = format!("{}\n", "z".repeat(16 * 1024));
        fixture.guest.write(text.as_bytes());
        for viewer in &mut viewers {
            sees(viewer, "z\n");
        }
    }
    let _next = fixture.welcomed("next\n");
    for viewer in &mut viewers {
        sees(viewer, "next\n");
    }
    // What it had not read is there, and then the end, long before the hub's.
    assert!(everything(idle).starts_with("1\n2\n"));
}

#[test]
fn a_reset_changes_the_device_and_nothing_else() {
    let fixture = Fixture::new();
    let mut viewer = fixture.welcomed("old\n");
    fixture.input.connect(None);
    viewer.write_all(b"to nobody").unwrap();
    let device = Device::new(100);
    fixture.input.connect(Some(Arc::clone(&device) as _));
    viewer.write_all(b"to the new").unwrap();
    wait_until("the new device's keys", || device.typed().ends_with(b"new"));
    assert!(fixture.device.typed().is_empty());
    fixture.guest.write(b"new\n");
    assert_eq!(sees(&mut viewer, "new\n"), "new\n");
    assert_eq!(sees(&mut fixture.view(), "new\n"), "old\nnew\n");
}

#[test]
fn the_end_sends_what_was_printed_last_and_removes_the_socket() {
    let fixture = Fixture::new();
    let idle = fixture.view();
    let reader = fixture.welcomed("up\n");
    let reads = std::thread::spawn(move || everything(reader));
    fixture.guest.write(&[b'q'; 100 * 1024]);
    fixture.guest.write(b"the end");
    let Fixture { hub, path, .. } = fixture;
    let start = Instant::now();
    hub.close(start + SOON);
    assert!(start.elapsed() < SOON, "an idle viewer is not waited for");
    let seen = reads.join().unwrap();
    assert_eq!(seen.len(), 100 * 1024 + "the end".len());
    assert!(seen.ends_with("the end"));
    assert!(!path.exists());
    assert!(everything(idle).starts_with("up\n"));
}

#[test]
fn a_hub_that_is_merely_dropped_removes_its_socket() {
    let fixture = Fixture::new();
    drop(fixture.hub);
    assert!(!fixture.path.exists());
}
