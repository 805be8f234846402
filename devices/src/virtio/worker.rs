//! A device's worker thread: spawned when a queue starts, joined when it stops, its state handed back.
//!
//! The body waits in [`EventLoop::wait`] for its own descriptors and for the stop event, and returns its state when stopped.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::threads;

/// A thread that owns a `T` until it is stopped. Dropping it stops it, too: no thread is left behind on guest RAM.
#[derive(Debug)]
pub struct Worker<T> {
    stop: Arc<EventFd>,
    /// `None` once it was joined.
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread named `name` (cut to the kernel's 15 bytes). `body` gets an event loop that knows the stop event.
    ///
    /// # Errors
    /// When the host gives no thread or descriptor.
    pub fn spawn(
        name: &str,
        body: impl FnOnce(EventLoop) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let events = EventLoop::new(Arc::clone(&stop))?;
        let thread = threads::named(name).spawn(move || body(events))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Asks the thread to stop, waits for it, and returns its state; `None` if it panicked.
    pub fn stop(mut self) -> Option<T> {
        self.join()
    }
}

impl<T> Worker<T> {
    fn join(&mut self) -> Option<T> {
        let thread = self.thread.take()?;
        // An eventfd write fails only when the counter is full, and then it is readable anyway.
        let _ = self.stop.write(1);
        thread.join().ok()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.join();
    }
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The worker is asked to stop.
    Stop,
    /// These of the registered tokens are ready: a bit set by token.
    Ready(u64),
}

impl Wake {
    /// Whether `token` is ready.
    #[must_use]
    pub fn has(self, token: u32) -> bool {
        matches!(self, Self::Ready(bits) if bits & (1 << token) != 0)
    }
}

/// The token of the stop event.
const STOP: u64 = u64::MAX;

/// Waiting on a handful of descriptors, level-triggered unless said otherwise.
#[derive(Debug)]
pub struct EventLoop {
    epoll: rustix::fd::OwnedFd,
    stop: Arc<EventFd>,
}

impl EventLoop {
    fn new(stop: Arc<EventFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let this = Self { epoll, stop };
        this.register(borrow(&this.stop), STOP, epoll::EventFlags::IN)?;
        Ok(this)
    }

    fn register(&self, fd: BorrowedFd<'_>, data: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(data),
            flags,
        )?)
    }

    /// Waits for `fd` to become readable under `token` (below 64). Level-triggered: read it, or be woken again.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn add(&self, fd: impl AsFd, token: u32) -> io::Result<()> {
        assert!(token < 64, "tokens are bits of a u64");
        self.register(fd.as_fd(), u64::from(token), epoll::EventFlags::IN)
    }

    /// [`add`](Self::add) for an eventfd.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn add_event(&self, event: &EventFd, token: u32) -> io::Result<()> {
        self.add(borrow(event), token)
    }

    /// [`add_event`](Self::add_event), edge-triggered: each write to the event wakes once, and it need not be read.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn add_edge(&self, event: &EventFd, token: u32) -> io::Result<()> {
        assert!(token < 64, "tokens are bits of a u64");
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        self.register(borrow(event), u64::from(token), flags)
    }

    /// Changes what `fd` is waited for: readable, writable, both or neither.
    ///
    /// # Errors
    /// When the descriptor was not added.
    pub fn modify(
        &self,
        fd: impl AsFd,
        token: u32,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, readable);
        flags.set(epoll::EventFlags::OUT, writable);
        Ok(epoll::modify(
            &self.epoll,
            fd.as_fd(),
            epoll::EventData::new_u64(u64::from(token)),
            flags,
        )?)
    }

    /// Stops waiting for `fd`.
    ///
    /// # Errors
    /// When the descriptor was not added.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd.as_fd())?)
    }

    /// Blocks until something is ready, the worker is to stop (which wins), or the timeout passes (`Ready(0)`).
    ///
    /// # Errors
    /// When epoll itself fails, which leaves the worker nothing to do but end.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Wake> {
        let timeout = timeout.map(|t| rustix::event::Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        // On the stack: this is on the way of every request.
        let mut buffer = [const { MaybeUninit::uninit() }; 16];
        let ready = loop {
            match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?.0,
            }
        };
        let mut bits = 0;
        for event in ready.iter() {
            match event.data.u64() {
                STOP => return Ok(Wake::Stop),
                token => bits |= 1_u64 << token,
            }
        }
        Ok(Wake::Ready(bits))
    }

    /// Whether the worker is to stop, for one that is in the middle of something long. Takes nothing from [`wait`](Self::wait).
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        // Where epoll fails, the next wait says so.
        matches!(self.wait(Some(Duration::ZERO)), Ok(Wake::Stop) | Err(_))
    }
}

impl AsFd for EventLoop {
    /// Readable while something is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// An eventfd as an I/O-safe descriptor; `vmm_sys_util` does not implement `AsFd`.
#[expect(unsafe_code, reason = "vmm_sys_util::EventFd does not implement AsFd")]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is owned by `event`, which outlives the returned borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::{Wake, Worker};
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn a_worker_hands_its_state_back() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let other = event.try_clone().unwrap();
        let (seen, wait_seen) = std::sync::mpsc::channel();
        let worker = Worker::spawn("a-name-longer-than-fifteen", move |events| {
            events.add_event(&other, 3).unwrap();
            let mut wakes = 0;
            while let Wake::Ready(bits) = events.wait(None).unwrap() {
                assert_eq!(bits, 1 << 3);
                assert!(!events.is_stopping());
                other.read().unwrap();
                wakes += 1;
                seen.send(()).unwrap();
            }
            assert!(events.is_stopping(), "it stays so");
            wakes
        })
        .unwrap();
        event.write(1).unwrap();
        wait_seen.recv().unwrap();
        assert_eq!(worker.stop(), Some(1));
    }

    #[test]
    fn a_dropped_worker_is_stopped() {
        let held = std::sync::Arc::new(());
        let inside = std::sync::Arc::clone(&held);
        let worker = Worker::spawn("dropped", move |events| {
            let _inside = inside;
            events.wait(None).unwrap()
        })
        .unwrap();
        drop(worker);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
