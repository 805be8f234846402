//! A console on a unix socket: several viewers at once see what the guest prints, each from the history on, and all of them type.
//!
//! ```text
//!  vCPU thread ──append──▶ history ◀──read── hub's thread ──▶ viewers
//!                            └────────wake────────▲ └──typed──▶ the device
//! ```
//!
//! The guest's threads append to the [`History`] under a short lock and wake the hub if it sleeps; they never wait for a viewer. One
//! thread a console does the rest and waits only in poll(2). Memory is bounded: one ring for all viewers, one buffer of typed bytes.
//!
//! - **A viewer that does not read** keeps its connection, so that a suspended terminal can be taken up again. When the guest has
//!   overtaken it, it goes on at the history's start, and is told how much it missed.
//! - **When all places are taken** a further viewer is told so and hung up on, unless one has read nothing for a minute: that one gives its
//!   place up.
//! - **What is typed** reaches the guest in the order it was read; while the guest takes nothing, nothing more is read, and the viewers'
//!   sockets hold them up. A viewer that has shut down its sending side goes on seeing; what one typed just before it left still counts.
//!
//! Viewers are whoever may open the socket, its owner: they cannot harm the guest otherwise than by typing, nor the process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paddock_devices::console::ConsoleSink;
use paddock_devices::socket::{Client, PrivateSocket};
use paddock_devices::threads;
use paddock_devices::throttle::Throttle;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::InputSwitch;
use super::history::{History, Place};
use super::viewer::Viewer;

/// Viewers at once, at most.
pub const MAX_VIEWERS: usize = 16;
/// See [`Server::patience`].
const PATIENCE: Duration = Duration::from_secs(60);
/// At the end, a viewer that has read nothing for so long is not waited for.
const LAST_PATIENCE: Duration = Duration::from_millis(500);
/// How often the end looks at what there is still to do.
const CLOSING_ROUND: Duration = Duration::from_millis(100);
/// How long bytes gather before they are sent: the guest's bytes come one by one.
const GATHER: Duration = Duration::from_millis(1);
/// What a viewer is sent at once: the others get their turn in between.
const PIECE: usize = 16 * 1024;
/// Typed bytes that wait for the guest, at most.
const TYPED: usize = 4096;
/// How soon the guest is offered again what it had no room for: at first, and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
/// How long new viewers wait when the host has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// New viewers that are let in or turned away at once.
const ACCEPTS: usize = 16;

/// A console on a unix socket. When this goes, the viewers are hung up on and the socket is removed.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the hub's thread shares with the guest's.
struct Shared {
    name: String,
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    /// The thread wants to be woken when something is printed.
    asleep: bool,
    /// The hub is going away.
    closing: Option<Closing>,
}

/// The end of a hub: what was printed last is still sent.
#[derive(Debug, Clone, Copy)]
struct Closing {
    since: Instant,
    deadline: Instant,
}

impl Hub {
    /// Serves `socket`; what is typed goes to `input`. `name` is for logs and the thread.
    ///
    /// # Errors
    /// When the host gives no descriptor or thread.
    pub fn start(name: &str, socket: PrivateSocket, input: Arc<InputSwitch>) -> io::Result<Self> {
        Self::with_patience(name, socket, input, PATIENCE)
    }

    fn with_patience(
        name: &str,
        socket: PrivateSocket,
        input: Arc<InputSwitch>,
        patience: Duration,
    ) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::default(),
            wake,
        });
        let server = Server {
            shared: Arc::clone(&shared),
            socket,
            input,
            patience,
            viewers: Vec::new(),
            turn: 0,
            typed: Vec::new(),
            retry: RETRY.0,
            accept_after: None,
            piece: Vec::new(),
            log: Throttle::new(),
        };
        let thread = threads::named(name).spawn(move || server.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Where the guest prints.
    #[must_use]
    pub fn sink(&self) -> Arc<dyn ConsoleSink> {
        Arc::clone(&self.shared) as _
    }

    /// Sends the viewers what was printed last, until `deadline` at the longest, and ends.
    pub fn close(mut self, deadline: Instant) {
        self.end(deadline);
    }

    fn end(&mut self, deadline: Instant) {
        self.shared.state.lock().closing = Some(Closing {
            since: Instant::now(),
            deadline,
        });
        self.shared.wake();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!(console = %self.shared.name, "the console's thread has panicked");
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(Instant::now());
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl ConsoleSink for Shared {
    fn write(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.history.append(bytes);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.wake();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.name).finish()
    }
}

/// The hub's thread.
struct Server {
    shared: Arc<Shared>,
    socket: PrivateSocket,
    input: Arc<InputSwitch>,
    /// How long a viewer may read nothing before its place goes to another.
    patience: Duration,
    viewers: Vec<Viewer>,
    /// The viewer whose keys are read first the next time, so that one that types without end does not shut out the others.
    turn: usize,
    /// Typed bytes that the guest had no room for.
    typed: Vec<u8>,
    retry: Duration,
    /// The host had no descriptor for a new viewer: not before then.
    accept_after: Option<Instant>,
    piece: Vec<u8>,
    log: Throttle,
}

/// What there is to do, as seen before waiting.
#[derive(Clone, Copy)]
struct Plan {
    /// Up to here there is output.
    end: Place,
    closing: Option<Closing>,
}

/// What can be done at once.
#[derive(Default)]
struct Ready {
    woken: bool,
    listener: bool,
    /// For each viewer.
    viewers: Vec<PollFlags>,
}

impl Server {
    fn run(mut self) {
        loop {
            let plan = self.plan();
            if self.is_done(plan) {
                return;
            }
            let ready = match self.wait(plan) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    let console = &self.shared.name;
                    return tracing::error!(%console, %error, "the console's viewers are lost");
                }
            };
            if ready.woken {
                self.calm(plan);
            }
            self.offer();
            self.send(plan, &ready);
            self.receive(&ready);
            self.viewers.retain(|viewer| !viewer.client().is_over());
            if ready.listener {
                self.accept(plan);
            }
        }
    }

    /// Looks at what the guest's threads have left, and asks them for a wake-up where one is needed.
    fn plan(&self) -> Plan {
        let mut state = self.shared.state.lock();
        let end = state.history.end();
        // Viewers that are behind are waited for anyway, and if there are none, nobody is to be told of anything.
        state.asleep = self.viewers.iter().any(|viewer| !viewer.is_behind(end));
        Plan {
            end,
            closing: state.closing,
        }
    }

    fn is_done(&self, plan: Plan) -> bool {
        let Some(closing) = plan.closing else {
            return false;
        };
        let now = Instant::now();
        let waits = |viewer: &Viewer| {
            let since = viewer.took().max(closing.since);
            viewer.is_behind(plan.end) && now.saturating_duration_since(since) < LAST_PATIENCE
        };
        now >= closing.deadline || !self.viewers.iter().any(waits)
    }

    /// Waits until there is something to do.
    fn wait(&self, plan: Plan) -> rustix::io::Result<Ready> {
        let accept_in = self
            .accept_after
            .map(|after| after.saturating_duration_since(Instant::now()))
            .filter(|time| !time.is_zero());
        let accepts = plan.closing.is_none() && accept_in.is_none();
        let listen = if accepts {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let timeout = [
            accept_in,
            (!self.typed.is_empty()).then_some(self.retry),
            plan.closing.map(|_| CLOSING_ROUND),
        ];
        let timeout = timeout.into_iter().flatten().min().map(timespec);
        let mut fds = vec![
            PollFd::new(&self.shared.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.listener().as_fd(), listen),
        ];
        let mut polled = Vec::new();
        for (index, viewer) in self.viewers.iter().enumerate() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::OUT, viewer.is_behind(plan.end));
            wanted.set(
                PollFlags::IN,
                self.typed.is_empty() && viewer.client().sends(),
            );
            // A hang-up is reported without being asked for: once is enough.
            if !viewer.client().is_gone() || wanted.contains(PollFlags::IN) {
                fds.push(PollFd::new(viewer.client().stream(), wanted));
                polled.push(index);
            }
        }
        poll(&mut fds, timeout.as_ref())?;
        let happened = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
        let mut viewers = vec![PollFlags::empty(); self.viewers.len()];
        for (fd, index) in polled.into_iter().enumerate() {
            viewers[index] = happened(fd + 2);
        }
        Ok(Ready {
            woken: !happened(0).is_empty(),
            listener: !happened(1).is_empty(),
            viewers,
        })
    }

    /// After a wake-up: clears it, and lets some more bytes gather.
    fn calm(&self, plan: Plan) {
        let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
        if plan.closing.is_none() {
            std::thread::sleep(GATHER);
        }
    }

    /// Gives each viewer that can take it a piece of the output.
    fn send(&mut self, plan: Plan, ready: &Ready) {
        for (viewer, happened) in self.viewers.iter_mut().zip(&ready.viewers) {
            if happened.intersects(PollFlags::HUP | PollFlags::ERR) {
                viewer.hang_up();
            }
            // One that was not behind was not waited for, and most likely takes what has come since.
            if viewer.is_behind(plan.end) && !happened.contains(PollFlags::OUT) {
                continue;
            }
            let history = |place: &mut Place, piece: &mut Vec<u8>| {
                self.shared.state.lock().history.read(place, PIECE, piece)
            };
            viewer.send(history, &mut self.piece);
        }
    }

    /// Reads what was typed, as long as the guest takes it, each time from another viewer on.
    fn receive(&mut self, ready: &Ready) {
        let count = self.viewers.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let readable = ready
                .viewers
                .get(index)
                .is_some_and(|happened| happened.intersects(PollFlags::IN | PollFlags::HUP));
            if !readable {
                continue;
            }
            if !self.typed.is_empty() {
                self.turn = index;
                return;
            }
            self.viewers[index].receive(TYPED, &mut self.typed);
            self.offer();
        }
        self.turn = (self.turn + 1) % count.max(1);
    }

    /// Offers the guest what was typed.
    fn offer(&mut self) {
        if self.typed.is_empty() {
            return;
        }
        let taken = self.input.enqueue(&self.typed).min(self.typed.len());
        self.typed.drain(..taken);
        self.retry = if taken > 0 {
            RETRY.0
        } else {
            RETRY.1.min(self.retry * 2)
        };
    }

    fn accept(&mut self, plan: Plan) {
        self.accept_after = None;
        for _ in 0..ACCEPTS {
            match self.socket.accept() {
                Ok(Some(client)) => self.admit(client, plan),
                Ok(None) => return,
                Err(error) => {
                    self.accept_after = Some(Instant::now() + ACCEPT_RETRY);
                    if let Some(held_back) = self.log.pass() {
                        let console = &self.shared.name;
                        tracing::warn!(%console, %error, held_back, "letting a viewer in");
                    }
                    return;
                }
            }
        }
    }

    /// Lets a viewer in, in the place of a useless one if need be, or turns it away.
    fn admit(&mut self, mut client: Client, plan: Plan) {
        let console = &self.shared.name;
        if self.viewers.len() >= MAX_VIEWERS {
            let useless = self
                .viewers
                .iter()
                .enumerate()
                .filter(|(_, viewer)| viewer.is_useless(plan.end, self.patience))
                .min_by_key(|(_, viewer)| (!viewer.client().is_gone(), viewer.took()));
            let Some((index, _)) = useless else {
                let text = format!(
                    "[paddock: this console has {MAX_VIEWERS} viewers already, which is the most]\r\n"
                );
                // Whoever cannot take even that is not owed more.
                client.write(text.as_bytes());
                if let Some(held_back) = self.log.pass() {
                    tracing::warn!(%console, held_back, "a viewer too many was turned away");
                }
                return;
            };
            self.viewers.remove(index);
            tracing::debug!(%console, "a viewer that does not read gave its place up");
        }
        let start = self.shared.state.lock().history.start();
        self.viewers.push(Viewer::new(client, start));
        tracing::debug!(%console, viewers = self.viewers.len(), "a viewer has come");
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests;
