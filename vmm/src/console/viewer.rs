//! One viewer of a console: what it is sent, and what it types.
//!
//! On the hub's thread. A viewer reads, types and leaves as it likes; nothing here waits for it, and nothing is kept for it but its place
//! in the history and one notice.

use std::time::{Duration, Instant};

use paddock_devices::socket::{Client, Transfer};

use super::history::Place;

/// A connected viewer.
#[derive(Debug)]
pub(super) struct Viewer {
    client: Client,
    place: Place,
    /// A text of ours that goes out before more of the console's.
    notice: Vec<u8>,
    /// When it last took something, or came.
    took: Instant,
}

impl Viewer {
    /// A viewer that begins at `place`.
    pub(super) fn new(client: Client, place: Place) -> Self {
        Self {
            client,
            place,
            notice: Vec::new(),
            took: Instant::now(),
        }
    }

    /// The connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// It has hung up.
    pub(super) fn hang_up(&mut self) {
        self.client.hang_up();
    }

    /// Whether it has yet to be sent something, when the console's output goes up to `end`.
    pub(super) fn is_behind(&self, end: Place) -> bool {
        !self.client.is_gone() && (self.place < end || !self.notice.is_empty())
    }

    /// When it last took something, or came.
    pub(super) fn took(&self) -> Instant {
        self.took
    }

    /// Whether it keeps a place for nothing: it is gone, or there has been something for it for as long as `patience`, which it did not take.
    /// To be asked after it was offered what there is up to `end`.
    pub(super) fn is_useless(&self, end: Place, patience: Duration) -> bool {
        self.client.is_gone() || (self.is_behind(end) && self.took.elapsed() >= patience)
    }

    /// Sends a piece of the output, as much as the socket takes. `next` appends the bytes at a place to a buffer, or moves the place on
    /// and gives how many bytes are missed; `piece` is scratch space.
    pub(super) fn send(
        &mut self,
        next: impl FnOnce(&mut Place, &mut Vec<u8>) -> u64,
        piece: &mut Vec<u8>,
    ) {
        piece.clear();
        if self.notice.is_empty() {
            let missed = next(&mut self.place, piece);
            if missed > 0 {
                let text = format!("\r\n[paddock: {missed} bytes of output were lost here]\r\n");
                self.notice = text.into_bytes();
            }
        }
        let ours = !self.notice.is_empty();
        let bytes = if ours { &self.notice } else { &*piece };
        if bytes.is_empty() {
            return;
        }
        match self.client.write(bytes) {
            Transfer::Done(sent) => {
                self.took = Instant::now();
                if ours {
                    self.notice.drain(..sent);
                } else {
                    self.place = self.place.after(sent);
                }
            }
            Transfer::Later | Transfer::Never => {}
        }
    }

    /// Appends what was typed to `bytes`, up to `most`, which is not 0.
    pub(super) fn receive(&mut self, most: usize, bytes: &mut Vec<u8>) {
        let before = bytes.len();
        bytes.resize(before + most, 0);
        let typed = match self.client.read(&mut bytes[before..]) {
            Transfer::Done(count) => count,
            Transfer::Later | Transfer::Never => 0,
        };
        bytes.truncate(before + typed);
    }
}
