//! Standard input, as the guest's keyboard.
//!
//! A thread of its own reads it and hands bytes to the console that the guest has now. From a terminal the escape key is obeyed,
//! always, also when the guest takes no input: then what was typed waits, up to a bound, and the rest is lost as on a real serial
//! line. From a file or pipe all bytes are data, none is lost, and the thread just waits until the guest takes more.
//! At the end of the input the thread ends and the VM runs on.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use paddock_devices::threads;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::escape::{Command, Escape, EscapeKey, Input};

/// Typed bytes that wait for the guest, at most.
const WAITING: usize = 64 * 1024;
/// How soon the guest is offered again what it had no room for.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
const READ_SIZE: usize = 4096;

/// What the keyboard does with what it reads. Called on the keyboard's thread.
pub trait Receiver: Send {
    /// Offers bytes to the guest, who takes as many as it has room for. Never blocks.
    fn deliver(&mut self, bytes: &[u8]) -> usize;
    /// A command was typed.
    fn command(&mut self, command: Command);
    /// Something is to be told to whoever types, in one line.
    fn tell(&mut self, text: &str);
}

/// The thread that reads. Dropping this ends it.
#[derive(Debug)]
pub struct Keyboard {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keyboard {
    /// Starts to read `input`; with an `escape` key, it is obeyed.
    ///
    /// # Errors
    /// When the host has no descriptor or thread left.
    pub fn start(
        input: OwnedFd,
        escape: Option<EscapeKey>,
        receiver: impl Receiver + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let reader = Reader {
            input,
            stop: Arc::clone(&stop),
            escape: escape.map(Escape::new),
            receiver,
            waiting: Vec::new(),
            overrun: false,
        };
        let thread = threads::named("keyboard").spawn(move || reader.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Waits for the end of the input.
    #[cfg(test)]
    fn join(mut self) {
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        // Not joined: another process may have read what made the input readable, and then the thread sits in read(2) until
        // the next key.
        drop(self.thread.take());
    }
}

struct Reader<R> {
    input: OwnedFd,
    stop: Arc<OwnedFd>,
    escape: Option<Escape>,
    receiver: R,
    /// Bytes that the guest had no room for.
    waiting: Vec<u8>,
    /// Bytes were lost since the guest last had room.
    overrun: bool,
}

/// What there is to do.
enum Wake {
    Stop,
    Read,
    Retry,
}

impl<R: Receiver> Reader<R> {
    fn run(mut self) {
        let mut buffer = [0; READ_SIZE];
        loop {
            match self.wait() {
                Ok(Wake::Stop) => return,
                Ok(Wake::Retry) => self.offer(),
                Ok(Wake::Read) => match rustix::io::read(&self.input, &mut buffer) {
                    Ok(0) => break tracing::debug!("end of the console's input"),
                    Ok(length) => self.take(&buffer[..length]),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(error) => break tracing::info!(%error, "the console's input ends"),
                },
                Err(error) => break tracing::info!(%error, "the console's input ends"),
            }
        }
        self.deliver_rest();
    }

    fn wait(&self) -> rustix::io::Result<Wake> {
        // Data that must not be lost is not read before there is room for it.
        let read = self.escape.is_some() || self.waiting.is_empty();
        let timeout = (!self.waiting.is_empty()).then_some(&RETRY);
        let mut fds = [
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.input, PollFlags::IN),
        ];
        let count = if read { 2 } else { 1 };
        match poll(&mut fds[..count], timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let [stop, input] = fds;
        Ok(if !stop.revents().is_empty() {
            Wake::Stop
        } else if read && !input.revents().is_empty() {
            Wake::Read
        } else {
            Wake::Retry
        })
    }

    fn take(&mut self, typed: &[u8]) {
        let Some(escape) = &mut self.escape else {
            self.waiting.extend(typed);
            return self.offer();
        };
        for input in escape.feed(typed) {
            match input {
                Input::Guest(bytes) => {
                    let room = WAITING.saturating_sub(self.waiting.len());
                    self.waiting.extend(bytes.iter().take(room));
                    if bytes.len() > room && !self.overrun {
                        self.overrun = true;
                        self.receiver
                            .tell("the guest takes no input; what is typed now is lost");
                    }
                    self.offer();
                }
                Input::Command(command) => self.receiver.command(command),
                Input::Help => {
                    if let Some(escape) = &self.escape {
                        let help = escape.help();
                        self.receiver.tell(&help);
                    }
                }
            }
        }
    }

    fn offer(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let taken = self.receiver.deliver(&self.waiting).min(self.waiting.len());
        self.waiting.drain(..taken);
        if taken > 0 {
            self.overrun = false;
        }
    }

    /// After the end of the input: what waits still belongs to the guest.
    fn deliver_rest(&mut self) {
        while !self.waiting.is_empty() {
            match poll(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&RETRY)) {
                Ok(0) | Err(Errno::INTR) => self.offer(),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Event {
        Bytes(Vec<u8>),
        Command(Command),
        Tell(String),
    }

    /// A guest with room for `room` bytes, then for none until `more` gives some.
    struct Guest {
        room: usize,
        more: mpsc::Receiver<usize>,
        events: mpsc::Sender<Event>,
    }

    impl Receiver for Guest {
        fn deliver(&mut self, bytes: &[u8]) -> usize {
            self.room += self.more.try_iter().sum::<usize>();
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            if taken > 0 {
                let _ = self.events.send(Event::Bytes(bytes[..taken].to_vec()));
            }
            taken
        }

        fn command(&mut self, command: Command) {
            let _ = self.events.send(Event::Command(command));
        }

        fn tell(&mut self, text: &str) {
            let _ = self.events.send(Event::Tell(text.to_owned()));
        }
    }

    struct Bench {
        typist: UnixStream,
        keyboard: Keyboard,
        more: mpsc::Sender<usize>,
        events: mpsc::Receiver<Event>,
    }

    fn bench(escape: Option<EscapeKey>, room: usize) -> Bench {
        let (typist, input) = UnixStream::pair().unwrap();
        let (more, more_receiver) = mpsc::channel();
        let (sender, events) = mpsc::channel();
        let guest = Guest {
            room,
            more: more_receiver,
            events: sender,
        };
        Bench {
            typist,
            keyboard: Keyboard::start(input.into(), escape, guest).unwrap(),
            more,
            events,
        }
    }

    impl Bench {
        fn next(&self) -> Event {
            self.events.recv_timeout(Duration::from_secs(20)).unwrap()
        }

        /// The next `length` bytes for the guest.
        fn bytes(&self, length: usize) -> Vec<u8> {
            let mut all = Vec::new();
            while all.len() < length {
                match self.next() {
                    Event::Bytes(bytes) => all.extend(bytes),
                    other => panic!("{other:?}"),
                }
            }
            all
        }
    }

    #[test]
    fn a_terminal_obeys_the_escape_key_even_if_the_guest_is_deaf() {
        let mut bench = bench(Some(EscapeKey::default()), 3);
        bench.typist.write_all(b"abcd").unwrap();
        assert_eq!(bench.bytes(3), b"abc");
        bench.typist.write_all(&[b'x'; WAITING]).unwrap();
        bench.typist.write_all(b"\x1dq").unwrap();
        assert!(matches!(bench.next(), Event::Tell(text) if text.contains("lost")));
        assert_eq!(bench.next(), Event::Command(Command::Stop));
        bench.more.send(usize::MAX / 2).unwrap();
        let rest = bench.bytes(WAITING);
        assert!(rest.starts_with(b"dxx") && rest.len() == WAITING);
        bench.typist.write_all(b"\x1d?").unwrap();
        assert!(matches!(bench.next(), Event::Tell(text) if text.contains("q to stop")));
    }

    #[test]
    fn a_pipe_is_data_and_loses_nothing() {
        let mut bench = bench(None, 0);
        let mut typist = bench.typist.try_clone().unwrap();
        let data: Vec<u8> = (0..200_000_u32)
            .map(|n| (n % 256).to_le_bytes()[0])
            .collect();
        let expected = data.clone();
        let typing = std::thread::spawn(move || typist.write_all(&data).unwrap());
        let mut found = Vec::new();
        while found.len() < expected.len() {
            bench.more.send(10_000).unwrap();
            found.extend(bench.bytes(10_000));
        }
        assert!(found == expected);
        typing.join().unwrap();

        // The end of the input ends the thread, after what was left of it.
        bench.typist.write_all(b"end").unwrap();
        bench.typist.shutdown(std::net::Shutdown::Both).unwrap();
        bench.more.send(3).unwrap();
        assert_eq!(bench.bytes(3), b"end");
        bench.keyboard.join();
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        for room in [0, 100] {
            let mut bench = bench(None, room);
            bench.typist.write_all(b"some").unwrap();
            drop(bench.keyboard);
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            loop {
                // The thread owns the sender: it is gone when the thread is.
                match bench.events.recv_timeout(Duration::from_millis(10)) {
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    _ => assert!(std::time::Instant::now() < deadline),
                }
            }
        }
    }
}
