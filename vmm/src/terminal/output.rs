//! A descriptor that may block, made safe for threads that must not: a bounded buffer and a thread that writes it out.
//!
//! [`Output::write`] is called on vCPU threads and device workers with bytes that the guest chose, often one at a time. It takes a
//! short lock and never waits for the descriptor. When nobody reads, the oldest bytes are dropped, and the reader is told so where
//! they are missing.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_devices::console::ConsoleSink;
use paddock_devices::threads;
use parking_lot::{Condvar, Mutex};

/// Bytes that wait for a slow reader, at most: a few thousand lines.
const CAPACITY: usize = 256 * 1024;
/// How long bytes gather before they are written: the guest's bytes come one by one, and a system call and a wake-up for each
/// would slow it down. Too short to be noticed at a keyboard.
const GATHER: Duration = Duration::from_millis(1);
/// What one write takes out of the buffer at most, so that a slow reader leaves room behind it soon.
const CHUNK: usize = 16 * 1024;

/// A sink for bytes that never blocks. Clones share the same buffer; with the last one gone, what is left is written and the
/// thread ends.
#[derive(Clone)]
pub struct Output(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_all();
    }
}

struct Shared {
    name: String,
    state: Mutex<State>,
    /// Something happened: the writer has work, or whoever waits for an empty buffer may look again.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    buffer: VecDeque<u8>,
    /// Bytes dropped in front of the buffer and not yet told.
    dropped: u64,
    /// The writer is asleep and wants a notification.
    idle: bool,
    /// Bytes taken out of the buffer are being written.
    writing: bool,
    /// The descriptor failed: nothing is written any more.
    closed: bool,
    /// All handles are gone: nothing comes any more.
    ended: bool,
    /// Write without gathering first.
    hurry: bool,
}

impl Output {
    /// Starts a thread that writes to `writer`; `name` is for logs and the thread.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(name: &str, writer: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let work = Arc::clone(&shared);
        threads::named(name).spawn(move || work.write_out(writer))?;
        Ok(Self(Arc::new(Owner(shared))))
    }

    /// Takes all of `bytes` and returns at once.
    pub fn write(&self, bytes: &[u8]) {
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        if state.closed {
            return;
        }
        let skipped = bytes.len().saturating_sub(CAPACITY);
        let kept = &bytes[skipped..];
        let too_many = (state.buffer.len() + kept.len()).saturating_sub(CAPACITY);
        state.buffer.drain(..too_many);
        state.dropped += as_u64(skipped) + as_u64(too_many);
        state.buffer.extend(kept);
        if state.idle {
            state.idle = false;
            drop(state);
            shared.changed.notify_all();
        }
    }

    /// Waits until everything written so far has reached the descriptor. `false` if that takes longer than `deadline`
    /// or can no longer happen.
    #[must_use]
    pub fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        state.hurry = true;
        shared.changed.notify_all();
        while !state.closed && (state.writing || !state.buffer.is_empty()) {
            if shared.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.hurry = false;
        !state.closed && !state.writing && state.buffer.is_empty()
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Output").field(&self.0.0.name).finish()
    }
}

impl ConsoleSink for Output {
    fn write(&self, bytes: &[u8]) {
        Output::write(self, bytes);
    }
}

impl Shared {
    /// The writer thread.
    fn write_out(&self, mut writer: impl Write) {
        let mut chunk = Vec::new();
        while self.next_chunk(&mut chunk) {
            let result = writer.write_all(&chunk).and_then(|()| writer.flush());
            let mut state = self.state.lock();
            state.writing = false;
            if let Err(error) = result {
                state.closed = true;
                state.buffer = VecDeque::new();
                drop(state);
                self.changed.notify_all();
                tracing::warn!(output = %self.name, %error, "output is lost from here on");
                return;
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits for bytes and takes some out of the buffer; `false` when none will come.
    fn next_chunk(&self, chunk: &mut Vec<u8>) -> bool {
        chunk.clear();
        let mut state = self.state.lock();
        while state.buffer.is_empty() {
            if state.ended {
                return false;
            }
            state.idle = true;
            self.changed.wait(&mut state);
        }
        state.idle = false;
        if state.buffer.len() < CHUNK && !state.hurry && !state.ended {
            self.changed.wait_for(&mut state, GATHER);
        }
        if state.dropped > 0 {
            let lost = std::mem::take(&mut state.dropped);
            chunk.extend(
                format!("\r\n[paddock: {lost} bytes of output were lost here]\r\n").bytes(),
            );
        }
        let length = state.buffer.len().min(CHUNK);
        chunk.extend(state.buffer.drain(..length));
        if state.buffer.is_empty() {
            // A burst must not hold its memory for ever.
            state.buffer.shrink_to(CHUNK);
        }
        state.writing = true;
        true
    }
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A writer whose writes wait for permission, and what was written.
    struct Gate {
        permits: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.permits.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.written.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Output, mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (open, permits) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate {
            permits,
            written: Arc::clone(&written),
        };
        (Output::new("test", gate).unwrap(), open, written)
    }

    #[test]
    fn bytes_arrive_in_order() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let output = Output::new("test", writer).unwrap();
        let expected: Vec<u8> = (0..100_000_u32)
            .map(|n| (n % 251).to_le_bytes()[0])
            .collect();
        for part in expected.chunks(7) {
            output.write(part);
        }
        drop(output);
        let mut found = Vec::new();
        io::Read::read_to_end(&mut { reader }, &mut found).unwrap();
        assert!(found == expected, "{} bytes", found.len());
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_nobody_and_is_told_what_it_missed() {
        let (output, open, written) = gated();
        output.write(b"first");
        // The writer takes what is there within its gathering time and then waits at the gate.
        while !output.0.0.state.lock().writing {
            std::thread::yield_now();
        }
        for byte in 0..=CAPACITY {
            output.write(&[b'a' + u8::try_from(byte % 26).unwrap()]);
        }
        output.write(&vec![b'Z'; CAPACITY - 2]);
        assert_eq!(output.0.0.state.lock().buffer.len(), CAPACITY);
        assert!(
            !output.flush(Duration::from_millis(10)),
            "a flush has a deadline"
        );
        for _ in 0..100 {
            open.send(()).unwrap();
        }
        assert!(output.flush(SOON));
        let written = written.lock();
        let text = std::str::from_utf8(&written).unwrap();
        let notice = format!("[paddock: {} bytes of output were lost here]", CAPACITY - 1);
        assert!(text.starts_with("first"), "{}", &text[..80]);
        assert!(text.contains(&notice), "{}", &text[..80]);
        assert!(text.ends_with("ZZZ"));
    }

    #[test]
    fn one_write_larger_than_the_buffer_keeps_its_end() {
        let (output, open, written) = gated();
        let mut bytes = vec![b'x'; CAPACITY + 10];
        bytes.push(b'!');
        output.write(&bytes);
        for _ in 0..100 {
            open.send(()).unwrap();
        }
        assert!(output.flush(SOON));
        assert!(written.lock().ends_with(b"x!"));
        assert!(String::from_utf8_lossy(&written.lock()).contains("11 bytes of output were lost"));
    }

    #[test]
    fn a_descriptor_that_fails_ends_it_quietly() {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let output = Output::new("test", writer).unwrap();
        output.write(b"to nobody");
        assert!(!output.flush(SOON));
        output.write(b"more");
        assert!(output.0.0.state.lock().buffer.is_empty());
    }
}
