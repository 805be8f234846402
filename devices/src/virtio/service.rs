//! One worker for all queues of a device whose queues have to do with each other: it runs from the first queue that starts to the last that
//! stops. A device whose queues have not gives each a [`Worker`] of its own.
//!
//! ```text
//! vCPU thread: Service ── orders, doorbell ──▶ Orders, Engine: the worker's thread
//! ```
//!
//! Queues are handed over and taken back between two rounds of the worker's, and the device waits for that. What the engine knows
//! survives its worker, until the device is reset.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ring::Ring;
use super::worker::{EventLoop, Worker, borrow};
use super::{DeviceError, QueueResources};

/// What serves a device's queues on the worker's thread.
pub trait Engine: Sized + Send + 'static {
    /// A queue is the engine's to serve. Its notifications arrive under the token of its index.
    fn give(&mut self, index: u16, features: u64, ring: Ring);

    /// It is not any more; `None` where it never was.
    fn take(&mut self, index: u16) -> Option<Ring>;

    /// The worker's body: waits, [obeys](Orders::obey) and serves until it is to stop.
    fn run(self, events: &EventLoop, orders: &Orders) -> Self;
}

/// What the device asks of its worker.
#[derive(Debug)]
enum Order {
    Start {
        index: u16,
        features: u64,
        ring: Box<Ring>,
        reply: SyncSender<io::Result<()>>,
    },
    Stop {
        index: u16,
        reply: SyncSender<Option<Ring>>,
    },
}

/// The worker's end of the way from the device.
#[derive(Debug)]
pub struct Orders {
    received: Receiver<Order>,
    doorbell: Arc<EventFd>,
}

impl Orders {
    /// Tells of orders, and of whatever else the device's owner rings for.
    #[must_use]
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Does what the device asked for. Only after the doorbell has woken the worker, as it may block otherwise.
    pub fn obey(&self, events: &EventLoop, engine: &mut impl Engine) {
        let _ = self.doorbell.read();
        while let Ok(order) = self.received.try_recv() {
            match order {
                Order::Start {
                    index,
                    features,
                    ring,
                    reply,
                } => {
                    let result = events.add_event(ring.kick(), u32::from(index));
                    if result.is_ok() {
                        engine.give(index, features, *ring);
                    }
                    // The device waits for it; if it does not, it is gone and so will we be.
                    let _ = reply.send(result);
                }
                Order::Stop { index, reply } => {
                    let ring = engine.take(index);
                    if let Some(ring) = &ring {
                        // Fails only if it was never added.
                        let _ = events.remove(borrow(ring.kick()));
                    }
                    let _ = reply.send(ring);
                }
            }
        }
    }
}

/// The device's end: its queues, and their worker while there is one.
#[derive(Debug)]
pub struct Service<E> {
    running: Option<Running<E>>,
    /// What the worker had, while there is none.
    idle: Option<E>,
    started: BTreeSet<u16>,
}

/// The worker and the way to it.
#[derive(Debug)]
struct Running<E> {
    worker: Worker<E>,
    orders: Sender<Order>,
    doorbell: Arc<EventFd>,
}

impl<E> Default for Service<E> {
    fn default() -> Self {
        Self {
            running: None,
            idle: None,
            started: BTreeSet::new(),
        }
    }
}

impl<E: Engine> Service<E> {
    /// Starts a queue of the device `id`, with its worker if that does not run: `make` makes what it does not have yet, and `spawned` is given
    /// the doorbell before the queue is served.
    ///
    /// # Errors
    /// When the queue is started already, or the host gives no thread or descriptor.
    pub fn start(
        &mut self,
        id: &str,
        index: u16,
        resources: QueueResources,
        make: impl FnOnce() -> E,
        spawned: impl FnOnce(&Arc<EventFd>),
    ) -> Result<(), DeviceError> {
        let result = if self.started.contains(&index) {
            Err(io::ErrorKind::AlreadyExists.into())
        } else {
            let features = resources.features;
            let ring = Box::new(Ring::new(index, resources));
            self.running(id, make, spawned).and_then(|running| {
                let order = |reply| Order::Start {
                    index,
                    features,
                    ring,
                    reply,
                };
                let ended = || io::Error::other("the device's worker has ended");
                running.ask(order).unwrap_or_else(|| Err(ended()))
            })
        };
        if result.is_ok() {
            self.started.insert(index);
        } else if self.started.is_empty() {
            self.retire();
        }
        result.map_err(|source| DeviceError {
            device: id.to_owned(),
            action: format!("starting queue {index}"),
            source,
        })
    }

    /// Stops a queue, and the worker with the last. `None` when it was not started, or is lost with a worker that panicked.
    pub fn stop(&mut self, index: u16) -> Option<Queue> {
        if !self.started.remove(&index) {
            return None;
        }
        let asked = self
            .running
            .as_ref()
            .and_then(|running| running.ask(|reply| Order::Stop { index, reply }));
        if asked.is_none() || self.started.is_empty() {
            self.retire();
        }
        // A worker that ended by itself left its queues behind.
        let ring =
            asked.unwrap_or_else(|| self.idle.as_mut().and_then(|engine| engine.take(index)))?;
        Some(ring.into_queue())
    }

    /// Stops everything and forgets what the engine knew; whether there was anything.
    pub fn reset(&mut self) -> bool {
        let any = self.running.is_some() || self.idle.is_some();
        self.retire();
        self.started.clear();
        self.idle = None;
        any
    }

    /// Whether there is a worker.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn running(
        &mut self,
        id: &str,
        make: impl FnOnce() -> E,
        spawned: impl FnOnce(&Arc<EventFd>),
    ) -> io::Result<&Running<E>> {
        let running = match self.running.take() {
            Some(running) => running,
            None => self.spawn(id, make, spawned)?,
        };
        Ok(self.running.insert(running))
    }

    fn spawn(
        &mut self,
        id: &str,
        make: impl FnOnce() -> E,
        spawned: impl FnOnce(&Arc<EventFd>),
    ) -> io::Result<Running<E>> {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (sender, received) = channel();
        let orders = Orders {
            received,
            doorbell: Arc::clone(&doorbell),
        };
        let engine = self.idle.take().unwrap_or_else(make);
        let worker = Worker::spawn(id, move |events| engine.run(&events, &orders))?;
        spawned(&doorbell);
        Ok(Running {
            worker,
            orders: sender,
            doorbell,
        })
    }

    /// Ends the worker and keeps what it had.
    fn retire(&mut self) {
        if let Some(running) = self.running.take() {
            self.idle = running.worker.stop();
        }
    }
}

impl<E> Running<E> {
    /// Has the worker do something and waits for its answer; `None` when it has ended.
    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.orders.send(order(reply)).ok()?;
        self.doorbell.write(1).ok()?;
        answer.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::virtio::test_driver::{Guest, wait_for};
    use crate::virtio::worker::Wake;

    /// Serves nothing.
    #[derive(Debug, Default)]
    struct Keeper {
        rings: Vec<(u16, Ring)>,
        given: usize,
        /// The worker ends when it has obeyed once, and says so.
        ends: Option<Arc<AtomicBool>>,
    }

    impl Engine for Keeper {
        fn give(&mut self, index: u16, _features: u64, ring: Ring) {
            self.rings.push((index, ring));
            self.given += 1;
        }

        fn take(&mut self, index: u16) -> Option<Ring> {
            let at = self.rings.iter().position(|(other, _)| *other == index)?;
            Some(self.rings.remove(at).1)
        }

        fn run(mut self, events: &EventLoop, orders: &Orders) -> Self {
            events.add_event(orders.doorbell(), 63).unwrap();
            while events.wait(None).unwrap() != Wake::Stop {
                orders.obey(events, &mut self);
                if let Some(ends) = &self.ends {
                    ends.store(true, Ordering::Release);
                    break;
                }
            }
            self
        }
    }

    fn start(
        service: &mut Service<Keeper>,
        guest: &Guest,
        index: u16,
        ends: Option<&Arc<AtomicBool>>,
    ) -> Result<(), DeviceError> {
        let resources = guest.queue(index, 16).resources(0);
        let make = || Keeper {
            ends: ends.map(Arc::clone),
            ..Keeper::default()
        };
        service.start("kept", index, resources, make, |_| ())
    }

    #[test]
    fn the_worker_runs_from_the_first_queue_to_the_last_and_is_remembered() {
        let (mut service, guest) = (Service::default(), Guest::new());
        for _ in 0..2 {
            for index in [0, 2] {
                start(&mut service, &guest, index, None).unwrap();
            }
            let again = start(&mut service, &guest, 2, None).unwrap_err();
            assert_eq!(again.source.kind(), io::ErrorKind::AlreadyExists);
            assert!(service.stop(1).is_none(), "never started");
            assert!(service.stop(0).is_some() && service.is_running());
            assert!(service.stop(2).is_some() && !service.is_running());
            assert!(service.stop(2).is_none(), "stopped already");
        }
        assert_eq!(service.idle.as_ref().map(|keeper| keeper.given), Some(4));
        assert!(service.reset());
        assert!(service.idle.is_none() && !service.reset());
    }

    #[test]
    fn a_worker_that_ended_leaves_its_queues() {
        let (mut service, guest) = (Service::default(), Guest::new());
        let ends = Arc::new(AtomicBool::new(false));
        start(&mut service, &guest, 0, Some(&ends)).unwrap();
        wait_for("the worker's end", || {
            ends.load(Ordering::Acquire).then_some(())
        });
        let lost = start(&mut service, &guest, 1, Some(&ends)).unwrap_err();
        assert!(lost.source.to_string().contains("has ended"), "{lost}");
        assert!(service.stop(0).is_some() && !service.is_running());
        start(&mut service, &guest, 0, Some(&ends)).unwrap();
    }
}
