//! The thread of one queue. It lives as long as the device, also while the queue is stopped: the kernel cancels what a thread
//! has in an io_uring when the thread ends, so the thread that submits to a disk stays until the disk has answered.
//!
//! Orders come through a channel from the threads that serve the transport's registers; each waits for its answer, with
//! a deadline. Nothing here is the guest's but what [`BlkQueue`] looks at.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use paddock_storage::{Disk, DiskQueue};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::queue::BlkQueue;
use crate::virtio::QueueResources;
use crate::virtio::worker::{EventLoop, Wake, Worker, borrow};

const ORDER: u32 = 0;
const KICK: u32 = 1;
const COMPLETION: u32 = 2;

/// How much longer than the disk's deadline an answer may take before the thread is taken to be stuck in the host.
const GRACE: Duration = Duration::from_secs(5);

enum Order {
    Start(Box<QueueResources>, Sender<io::Result<()>>),
    Stop(Duration, Sender<Option<Queue>>),
    Reset(Sender<()>),
}

/// What a stopped queue has left behind on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Rest {
    /// Nothing.
    None,
    /// Requests that the driver waits for.
    Requests,
    /// Requests from before a reset, for which nobody waits.
    Orphans,
}

/// What makes up a queue, whoever starts it.
pub(super) struct QueueSetup {
    pub id: Arc<str>,
    pub index: u16,
    pub disk: Arc<dyn Disk>,
    pub serial: String,
    pub drain_deadline: Duration,
    pub counters: Arc<Counters>,
}

/// The device's side of a queue's thread.
#[derive(Debug)]
pub(super) struct QueueThread {
    worker: Option<Worker<()>>,
    orders: Sender<Order>,
    event: Arc<EventFd>,
    rest: Arc<AtomicU8>,
    deadline: Duration,
    running: bool,
}

impl QueueThread {
    /// Starts the thread of a stopped queue.
    pub(super) fn new(setup: QueueSetup) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let rest = Arc::new(AtomicU8::new(Rest::None as u8));
        let (orders, receiver) = channel();
        let deadline = setup.drain_deadline + GRACE;
        let stem: String = setup.id.chars().take(10).collect();
        let name = format!("{stem}-q{}", setup.index);
        let mut host = Host {
            setup,
            orders: receiver,
            event: Arc::clone(&event),
            rest: Arc::clone(&rest),
            core: None,
            kick: None,
            disk_waits: false,
            host_errors: 0,
        };
        let worker = Worker::spawn(&name, move |events| {
            if let Err(error) = host.run(&events) {
                host.fail(&error);
            }
        })?;
        Ok(Self {
            worker: Some(worker),
            orders,
            event,
            rest,
            deadline,
            running: false,
        })
    }

    /// Gives an order and waits for the answer. `None` when the thread does not answer.
    fn order<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = channel();
        self.orders.send(order(reply)).ok()?;
        self.event.write(1).ok()?;
        answer.recv_timeout(self.deadline).ok()
    }

    pub(super) fn start(&mut self, resources: QueueResources) -> io::Result<()> {
        if self.running {
            return Err(io::Error::other("it is running"));
        }
        let started = self.order(|reply| Order::Start(Box::new(resources), reply));
        // Without an answer it may still start, so that it is to be stopped.
        self.running = !matches!(started, Some(Err(_)));
        started.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Stops the queue, or waits once more for the requests of a stopped one.
    pub(super) fn stop(&mut self, patience: Duration) -> Option<Queue> {
        if !self.running && self.rest() != Rest::Requests {
            return None;
        }
        self.running = false;
        let stop = |reply| Order::Stop(patience, reply);
        self.order(stop).unwrap_or_else(|| {
            // It may come back, but until then nothing is known about its requests.
            self.rest.store(Rest::Requests as u8, Ordering::Release);
            None
        })
    }

    /// The driver has reset the device.
    pub(super) fn reset(&mut self) {
        if self.rest() != Rest::None {
            let _ = self.order(Order::Reset);
        }
    }

    pub(super) fn rest(&self) -> Rest {
        match self.rest.load(Ordering::Acquire) {
            0 => Rest::None,
            1 => Rest::Requests,
            _ => Rest::Orphans,
        }
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.stop(self.deadline - GRACE);
        // What is held back from the host goes with the device.
        self.reset();
        if self.rest() != Rest::None {
            // It would not end before the host is done, and neither would we. What it holds is the host's until then.
            std::mem::forget(self.worker.take());
        }
    }
}

/// The thread's own side.
struct Host {
    setup: QueueSetup,
    orders: Receiver<Order>,
    event: Arc<EventFd>,
    rest: Arc<AtomicU8>,
    /// The queue while it runs, and after that while the disk still has requests of it.
    core: Option<BlkQueue>,
    /// What the driver notifies; `Some` while the queue runs.
    kick: Option<Arc<EventFd>>,
    /// While the disk has requests it waits for the event loop, too, and not the other way round.
    disk_waits: bool,
    /// Failures on the host so far: a guest that resets the device does not begin anew in the log.
    host_errors: u64,
}

impl Host {
    fn run(&mut self, events: &EventLoop) -> io::Result<()> {
        events.add_event(&self.event, ORDER)?;
        let mut more = false;
        loop {
            // With more to do this only looks for orders: a guest that never pauses must not keep us from them.
            let wake = self.wait(events, more.then_some(Duration::ZERO))?;
            if wake == Wake::Stop {
                return Ok(());
            }
            if wake.has(ORDER) {
                self.event.read()?;
                while let Ok(order) = self.orders.try_recv() {
                    self.obey(order, events);
                }
            }
            more = match (&mut self.core, &self.kick) {
                (Some(core), Some(_)) => core.serve(),
                (Some(_), None) => {
                    self.hold(events);
                    false
                }
                _ => false,
            };
        }
    }

    /// Waits for orders, for the driver and for the disk.
    fn wait(&mut self, events: &EventLoop, timeout: Option<Duration>) -> io::Result<Wake> {
        match &mut self.core {
            Some(core) if self.disk_waits && core.in_flight() > 0 => match core.wait(timeout) {
                true => events.wait(Some(Duration::ZERO)),
                false => Ok(Wake::Ready(0)),
            },
            _ => events.wait(timeout),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::error!(disk = %self.setup.id, queue = self.setup.index, %error, "the worker ends");
        if let Some(core) = &mut self.core {
            core.give_up("the device's worker failed on the host");
        }
    }

    fn obey(&mut self, order: Order, events: &EventLoop) {
        // Whoever asked may have given up waiting.
        match order {
            Order::Start(resources, reply) => {
                let _ = reply.send(self.start(*resources, events));
            }
            Order::Stop(patience, reply) => {
                let _ = reply.send(self.stop(patience, events));
            }
            Order::Reset(reply) => {
                if let Some(core) = &mut self.core {
                    core.orphan();
                    self.set_rest(Rest::Orphans);
                    self.hold(events);
                } else {
                    // Whoever gave up waiting for a stop may have noted requests after we had answered the last.
                    self.set_rest(Rest::None);
                }
                let _ = reply.send(());
            }
        }
    }

    fn start(&mut self, resources: QueueResources, events: &EventLoop) -> io::Result<()> {
        let kick = Arc::clone(&resources.kick);
        if let Some(core) = &mut self.core {
            core.resume(resources).map_err(|_| {
                io::Error::other("requests of another ring are in flight; reset the device first")
            })?;
            events.add_edge(&kick, KICK)?;
        } else {
            let mut disk = self.setup.disk.open_queue(resources.queue.size())?;
            events.add_edge(&kick, KICK)?;
            match listen(disk.as_mut(), events) {
                Ok(waits) => self.disk_waits = waits,
                Err(error) => {
                    let _ = events.remove(borrow(&kick));
                    return Err(error);
                }
            }
            let id = Arc::clone(&self.setup.id);
            let serial = self.setup.serial.as_bytes();
            let counters = Arc::clone(&self.setup.counters);
            let mut core =
                BlkQueue::new(id, self.setup.index, resources, serial, disk).counting_in(counters);
            core.host_errors = self.host_errors;
            self.core = Some(core);
        }
        self.kick = Some(kick);
        self.set_rest(Rest::None);
        Ok(())
    }

    fn stop(&mut self, patience: Duration, events: &EventLoop) -> Option<Queue> {
        if let Some(kick) = self.kick.take() {
            let _ = events.remove(borrow(&kick));
        }
        let Some(core) = self.core.as_mut() else {
            self.set_rest(Rest::None);
            return None;
        };
        let drained = core.drain(patience);
        let ring = Queue::try_from(core.ring().state()).ok();
        if drained.is_ok() {
            self.forget(events);
        } else {
            tracing::error!(disk = %self.setup.id, queue = self.setup.index, requests = core.in_flight(),
                milliseconds = patience.as_millis(),
                "the disk does not complete its requests; they are kept, and the guest is told nothing of them");
            self.set_rest(Rest::Requests);
        }
        ring
    }

    /// Takes note of what completes while the queue is stopped.
    fn hold(&mut self, events: &EventLoop) {
        let orphaned = self.core.as_mut().is_some_and(|core| {
            core.hold();
            core.is_orphaned() && core.in_flight() == 0
        });
        if orphaned {
            self.forget(events);
        }
    }

    /// The disk has nothing of the queue any more.
    fn forget(&mut self, events: &EventLoop) {
        if let Some(core) = self.core.take() {
            self.host_errors = core.host_errors;
            let event = match self.disk_waits {
                true => core.notice(),
                false => Some(core.completion_event()),
            };
            event.map(|event| events.remove(event));
        }
        self.set_rest(Rest::None);
    }

    fn set_rest(&self, rest: Rest) {
        self.rest.store(rest as u8, Ordering::Release);
    }
}

/// Has the disk wait for the event loop, if it can, or the event loop for the disk. Whether it is the disk.
fn listen(disk: &mut dyn DiskQueue, events: &EventLoop) -> io::Result<bool> {
    let waits = disk.watch(events.as_fd())?;
    let event = match waits {
        true => disk.notice(),
        false => Some(disk.completion_event()),
    };
    event.map_or(Ok(waits), |event| {
        events.add(event, COMPLETION).map(|()| waits)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use paddock_storage::IoError;
    use paddock_storage::testing::{Fault, MemoryDisk};

    use super::*;
    use crate::testing::LogLines;
    use crate::virtio::test_driver::Guest;

    #[test]
    fn a_failing_disk_and_a_guest_that_resets_do_not_fill_the_log() {
        const LIVES: usize = 40;
        let patience = Duration::from_secs(5);
        let disk = MemoryDisk::new(4096);
        disk.script([const { Fault::Error(IoError::Os(libc::EIO)) }; LIVES]);
        let lines = Arc::new(AtomicUsize::new(0));
        let subscriber = LogLines(Arc::clone(&lines));
        let mut host = Host {
            setup: QueueSetup {
                id: "disk0".into(),
                index: 0,
                disk: Arc::new(disk),
                serial: String::new(),
                drain_deadline: patience,
                counters: Arc::new(Counters::new(1)),
            },
            orders: channel().1,
            event: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            rest: Arc::default(),
            core: None,
            kick: None,
            disk_waits: false,
            host_errors: 0,
        };
        let worker = Worker::spawn("lives", move |events| {
            tracing::subscriber::with_default(subscriber, || {
                let guest = Guest::new();
                for _ in 0..LIVES {
                    let mut driver = guest.queue(0, 16);
                    // A read of sector 0.
                    driver.add_bytes(&[&[0; 16]], &[512, 1]);
                    host.start(driver.resources(0), &events).unwrap();
                    host.core.as_mut().unwrap().serve();
                    host.stop(patience, &events).unwrap();
                    assert_eq!(driver.wait_used().written.last(), Some(&1));
                }
            });
        })
        .unwrap();
        worker.stop().unwrap();
        // The first, the second, the fourth, …
        assert_eq!(lines.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn an_answer_that_comes_too_late_leaves_no_requests_for_ever() {
        let patience = Duration::from_millis(50);
        let mut thread = QueueThread::new(QueueSetup {
            id: "disk0".into(),
            index: 0,
            disk: Arc::new(MemoryDisk::new(4096)),
            serial: String::new(),
            drain_deadline: patience,
            counters: Arc::new(Counters::new(1)),
        })
        .unwrap();
        // What `stop` notes when the thread is done a moment after it was given up.
        let given_up = |thread: &QueueThread| {
            thread.rest.store(Rest::Requests as u8, Ordering::Release);
        };
        given_up(&thread);
        thread.reset();
        assert_eq!(thread.rest(), Rest::None);
        given_up(&thread);
        assert!(thread.stop(patience).is_none());
        assert_eq!(thread.rest(), Rest::None);
    }
}
