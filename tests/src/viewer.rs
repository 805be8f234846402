//! A viewer of a console on a unix socket, as `socat` would be one.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::transcript::{Transcript, tail};
use crate::vm::Vm;
use crate::within;

/// How long anything may take that waits for `paddock` alone.
const SOON: Duration = Duration::from_secs(60);

/// A connected viewer that reads all the time.
#[derive(Debug)]
pub struct Viewer {
    stream: UnixStream,
    seen: Transcript,
}

impl Viewer {
    /// Connects to the console at `socket`, once that is there.
    ///
    /// # Panics
    /// When it is not there in time.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        Self::from(idle(socket))
    }

    /// What it has seen so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.seen.text()
    }

    /// Waits until it has seen `text` at least `times` times; `vm` is whose console it views.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn wait_for(&self, vm: &Vm, text: &str, times: usize, deadline: Duration) {
        let seen = || self.text().matches(text).count() >= times;
        if !within(deadline, seen) {
            vm.fail(&format!(
                "a viewer does not see {text:?} {times} times; the end of what it saw:\n{}",
                tail(&self.text())
            ));
        }
    }

    /// Waits until it is hung up on, and gives all it saw.
    ///
    /// # Panics
    /// When it is not in time.
    #[must_use]
    pub fn everything(self) -> String {
        let end = Instant::now() + SOON;
        while !self.seen.is_complete() {
            assert!(Instant::now() < end, "a viewer is not hung up on");
            sleep(Duration::from_millis(20));
        }
        self.text()
    }

    /// Types.
    ///
    /// # Panics
    /// When the console does not take it in time.
    pub fn press(&mut self, keys: &str) {
        if let Err(error) = self.stream.write_all(keys.as_bytes()) {
            panic!("typing {keys:?}: {error}");
        }
    }
}

impl From<UnixStream> for Viewer {
    /// One that has not read up to now.
    fn from(stream: UnixStream) -> Self {
        let reader = stream
            .try_clone()
            .unwrap_or_else(|error| panic!("a viewer's socket: {error}"));
        Self {
            stream,
            seen: Transcript::follow(Some(reader)),
        }
    }
}

/// A connection to the console at `socket` that nobody reads from, once that is there.
///
/// # Panics
/// When it is not there in time.
#[must_use]
pub fn idle(socket: &Path) -> UnixStream {
    let end = Instant::now() + SOON;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                let set = stream.set_write_timeout(Some(SOON));
                set.unwrap_or_else(|error| panic!("a viewer's socket: {error}"));
                return stream;
            }
            Err(error) => assert!(Instant::now() < end, "{}: {error}", socket.display()),
        }
        sleep(Duration::from_millis(20));
    }
}

/// What a viewer saw without the marks where output is missing, and how many bytes these say are missing.
///
/// # Panics
/// When there is a mark that says something else.
#[must_use]
pub fn without_marks(seen: &str) -> (String, usize) {
    let mut parts = seen.split("\r\n[paddock: ");
    let mut rest = parts.next().unwrap_or_default().to_owned();
    let mut lost = 0;
    for part in parts {
        let mark = part.split_once(" bytes of output were lost here]\r\n");
        let mark = mark.and_then(|(count, after)| Some((count.parse::<usize>().ok()?, after)));
        let Some((count, after)) = mark else {
            panic!("this is no mark: {}", &part[..part.len().min(80)]);
        };
        lost += count;
        rest.push_str(after);
    }
    (rest, lost)
}
