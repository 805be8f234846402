//! The virtio console port: finding it, reading lines from it, writing lines to it.
//!
//! The kernel's port has two habits the rest need not know about: while nobody holds the host's end a read returns end of
//! file at once, and a write waits. So the reader looks now and then whether somebody does, and all writing is done by a thread of its own behind a bounded
//! queue: what must arrive waits for room, what may be lost (heartbeats) does not.

use crate::sysfs;
use paddock_probe::protocol::{Event, FromGuest, MAX_LINE, Reply};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

const CLASS: &str = "/sys/class/virtio-ports";

/// How often the port is looked for, and the host's end looked at while nobody holds it.
const POLL: Duration = Duration::from_millis(20);

/// Lines waiting to be written. Output of commands comes in pieces of some KiB, so this is a few MiB.
const QUEUE: usize = 256;

/// The names of the ports there are.
pub fn names() -> Vec<String> {
    sysfs::names(CLASS)
        .iter()
        .map(|port| sysfs::text(format!("{CLASS}/{port}/name")))
        .collect()
}

/// The device file of the port called `name`, waiting for it until `deadline`.
pub fn find(name: &str, deadline: Instant) -> Option<PathBuf> {
    loop {
        for port in sysfs::names(CLASS) {
            if sysfs::text(format!("{CLASS}/{port}/name")) == name {
                return Some(PathBuf::from("/dev").join(port));
            }
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Opens a port for reading and writing. Only one process may.
pub fn open(path: &PathBuf) -> io::Result<(File, File)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok((file.try_clone()?, file))
}

// ---- reading ----------------------------------------------------------------------------------------------

/// What the reader hands out.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// A line without its line feed.
    Line(Vec<u8>),
    /// A line beyond [`MAX_LINE`], thrown away.
    TooLong,
    /// The host's end was taken, for the first time or anew.
    Connected,
}

/// Reads lines from the port.
#[derive(Debug)]
pub struct Lines {
    port: File,
    connected: bool,
    splitter: Splitter,
}

impl Lines {
    pub fn new(port: File) -> Self {
        Self {
            port,
            connected: false,
            splitter: Splitter::default(),
        }
    }

    /// The next thing to happen. Waits as long as it takes.
    ///
    /// # Errors
    /// Where the port is gone.
    pub fn next(&mut self) -> io::Result<Input> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(input) = self.splitter.next() {
                return Ok(input);
            }
            if !self.connected {
                if self.is_hung_up()? {
                    thread::sleep(POLL);
                    continue;
                }
                self.connected = true;
                return Ok(Input::Connected);
            }
            match self.port.read(&mut buffer) {
                Ok(0) => {
                    // Half a line from a host that went away means nothing to the one that comes.
                    self.splitter = Splitter::default();
                    self.connected = false;
                }
                Ok(count) => self.splitter.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether nobody holds the host's end.
    fn is_hung_up(&self) -> io::Result<bool> {
        let mut ports = [PollFd::new(&self.port, PollFlags::IN)];
        rustix::event::poll(&mut ports, Some(&Timespec::default()))?;
        Ok(ports[0].revents().contains(PollFlags::HUP))
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Splitter {
    buffer: Vec<u8>,
    searched: usize,
    skipping: bool,
}

impl Splitter {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Input> {
        while let Some(end) = self.buffer[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
        {
            let rest = self.buffer.split_off(self.searched + end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.pop();
            if std::mem::take(&mut self.skipping) || line.len() > MAX_LINE {
                return Some(Input::TooLong);
            }
            if !line.is_empty() {
                return Some(Input::Line(line));
            }
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > MAX_LINE {
            self.buffer = Vec::new();
            self.searched = 0;
            self.skipping = true;
        }
        None
    }
}

// ---- writing ----------------------------------------------------------------------------------------------

enum Outgoing {
    Line(String),
    /// Says when everything before it has been handed to the host.
    Flush(SyncSender<()>),
}

/// Where replies and events go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer(SyncSender<Outgoing>);

impl Writer {
    /// Starts the writing thread.
    pub fn start(port: File) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || write_all(port, &receiver))?;
        Ok(Self(sender))
    }

    /// Sends the answer to a request; waits for room.
    pub fn reply(&self, reply: Reply) {
        self.send(&FromGuest::Reply(reply));
    }

    /// Sends an event; waits for room.
    pub fn event(&self, event: Event) {
        self.send(&FromGuest::Event(event));
    }

    /// Sends an event if there is room; whether there was.
    pub fn try_event(&self, event: Event) -> bool {
        let Some(line) = to_line(&FromGuest::Event(event)) else {
            return false;
        };
        !matches!(
            self.0.try_send(Outgoing::Line(line)),
            Err(TrySendError::Full(_))
        )
    }

    /// Waits until what was sent so far has reached the host, but no longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let (sender, receiver) = mpsc::sync_channel(1);
        if self.0.send(Outgoing::Flush(sender)).is_ok() {
            let _ = receiver.recv_timeout(limit);
        }
    }

    fn send(&self, message: &FromGuest) {
        if let Some(line) = to_line(message) {
            // The thread ends only with the process.
            let _ = self.0.send(Outgoing::Line(line));
        }
    }
}

fn to_line(message: &FromGuest) -> Option<String> {
    let mut line = serde_json::to_string(message).ok()?;
    line.push('\n');
    Some(line)
}

fn write_all(mut port: File, lines: &Receiver<Outgoing>) {
    for outgoing in lines {
        match outgoing {
            Outgoing::Line(line) => {
                if let Err(error) = port.write_all(line.as_bytes()) {
                    crate::init::console(&format!("cannot write to the port: {error}"));
                }
            }
            Outgoing::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<Input> {
        let mut splitter = Splitter::default();
        let mut inputs = Vec::new();
        for piece in pieces {
            splitter.push(piece);
            while let Some(input) = splitter.next() {
                inputs.push(input);
            }
        }
        inputs
    }

    #[test]
    fn lines_are_put_together() {
        let lines = split(&[b"on", b"e\ntwo\n\nth", b"ree", b"\nfour"]);
        let expected = ["one", "two", "three"].map(|line| Input::Line(line.into()));
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_to_its_end() {
        let long = vec![b'x'; MAX_LINE];
        let lines = split(&[&long, b"yy", b"zz\nshort\n"]);
        assert_eq!(lines, [Input::TooLong, Input::Line(b"short".to_vec())]);
    }
}
