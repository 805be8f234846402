//! Writing the journal anew on a new connection, and flushing it. It blocks, on the thread that connects.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::{Asked, Connection, Ledger};
use super::journal::Entry;
use super::protocol;
use crate::IoError;

/// The most writes on their way at once.
const WINDOW: usize = 32;

/// Writes these in order, then flushes. A server that says nothing for the time of `patience` fails.
///
/// # Errors
/// When the connection fails, or the server fails to write.
pub(super) fn replay(
    connection: &mut Connection,
    entries: Vec<Entry>,
    patience: Duration,
) -> io::Result<()> {
    let mut window: Vec<Entry> = Vec::new();
    for entry in entries {
        // A server may carry out in any order what it has at once.
        if window.len() >= WINDOW || window.iter().any(|other| other.overlaps(&entry)) {
            let asked = window.drain(..).map(Entry::ask);
            carry_out(connection, asked, patience)?;
        }
        window.push(entry);
    }
    carry_out(connection, window.drain(..).map(Entry::ask), patience)?;
    let flush = Asked::new(protocol::CMD_FLUSH, 0, 0);
    carry_out(connection, std::iter::once(flush), patience)
}

#[derive(Default)]
struct OnTheirWay {
    asked: HashMap<u64, Asked>,
    error: Option<IoError>,
}

impl Ledger for OnTheirWay {
    fn asked(&mut self, cookie: u64) -> Option<&mut Asked> {
        self.asked.get_mut(&cookie)
    }

    // Nothing is read.
    fn data(&mut self, _cookie: u64, _at: u32, _bytes: &[u8]) {}
    fn zeros(&mut self, _cookie: u64, _at: u32, _length: u32) {}

    fn answered(&mut self, cookie: u64, result: Result<(), IoError>) {
        self.asked.remove(&cookie);
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

fn carry_out(
    connection: &mut Connection,
    requests: impl Iterator<Item = Asked>,
    patience: Duration,
) -> io::Result<()> {
    let mut ledger = OnTheirWay::default();
    for (cookie, asked) in (1..).zip(requests) {
        connection.ask(cookie, &asked);
        ledger.asked.insert(cookie, asked);
    }
    let mut end = Instant::now() + patience;
    while !ledger.asked.is_empty() {
        connection.send()?;
        if connection.receive(&mut ledger)? {
            end = Instant::now() + patience;
            continue;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut ready = PollFlags::IN;
        ready.set(PollFlags::OUT, connection.has_outgoing());
        let mut fds = [PollFd::from_borrowed_fd(connection.fd(), ready)];
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match ledger.error {
        None => Ok(()),
        Some(error) => Err(io::Error::other(error)),
    }
}
