//! One connection for all queues of a disk, where a server does not say that its cache is one for all connections: a flush would cover
//! only what came by its own. A thread has the connection; queues hand it their requests and get the answers back.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::NbdQueue;
use super::requests::CANCELED;
use super::session::Handle;
use crate::{Completion, DiskQueue, Request};

/// Bytes of the thread's stack.
const STACK_SIZE: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// What one queue gets back.
#[derive(Debug)]
struct Outbox {
    done: Mutex<Vec<Completion>>,
    event: EventFd,
}

impl Outbox {
    fn push(&self, completion: Completion) {
        let mut done = lock(&self.done);
        if done.is_empty() {
            let _ = self.event.write(1);
        }
        done.push(completion);
    }

    fn cancel(&self, tag: u64) {
        let result = Err(CANCELED);
        self.push(Completion { tag, result });
    }
}

#[derive(Debug, Default)]
struct Orders {
    requests: Vec<(Arc<Outbox>, Request)>,
    /// Queues whose requests nobody waits for any more.
    abandoned: Vec<Arc<Outbox>>,
    closed: bool,
}

#[derive(Debug)]
struct Inbox {
    orders: Mutex<Orders>,
    event: EventFd,
}

/// The thread, which ends with this.
#[derive(Debug)]
pub(super) struct Funnel {
    inbox: Arc<Inbox>,
}

impl Funnel {
    pub(super) fn new(handle: Arc<Handle>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox {
            orders: Mutex::default(),
            event: event()?,
        });
        let mut queue = NbdQueue::new(handle)?;
        queue.watch(crate::fd::borrow(&inbox.event))?;
        let theirs = Arc::clone(&inbox);
        std::thread::Builder::new()
            .name("nbd-io".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || serve(queue, &theirs))?;
        Ok(Self { inbox })
    }
}

impl Drop for Funnel {
    fn drop(&mut self) {
        lock(&self.inbox.orders).closed = true;
        let _ = self.inbox.event.write(1);
    }
}

/// The thread: its own numbers for the requests, for each queue has tags of its own.
fn serve(mut queue: NbdQueue, inbox: &Inbox) {
    let mut owners: HashMap<u64, (Arc<Outbox>, u64)> = HashMap::new();
    let mut numbers = 0..;
    let mut done = Vec::new();
    loop {
        if queue.wait(None) {
            let _ = inbox.event.read();
            let mut orders = lock(&inbox.orders);
            if orders.closed {
                return;
            }
            let requests = std::mem::take(&mut orders.requests);
            let abandoned = std::mem::take(&mut orders.abandoned);
            drop(orders);
            for ((outbox, request), number) in requests.into_iter().zip(&mut numbers) {
                let Request { tag, operation } = request;
                owners.insert(number, (outbox, tag));
                queue.submit(Request {
                    tag: number,
                    operation,
                });
            }
            for outbox in abandoned {
                let owner = |tag| owners.get(&tag).map(|(owner, _)| owner);
                let whose = |tag| owner(tag).is_some_and(|owner| Arc::ptr_eq(owner, &outbox));
                queue.abandon_those(whose);
            }
        }
        queue.reap(&mut done);
        for Completion { tag, result } in done.drain(..) {
            if let Some((outbox, tag)) = owners.remove(&tag) {
                outbox.push(Completion { tag, result });
            }
        }
    }
}

/// A queue that shares the connection.
pub(super) struct FunnelQueue {
    funnel: Arc<Funnel>,
    outbox: Arc<Outbox>,
    staged: Vec<Request>,
    in_flight: usize,
    abandoned: bool,
}

impl FunnelQueue {
    pub(super) fn new(funnel: Arc<Funnel>) -> io::Result<Self> {
        let outbox = Outbox {
            done: Mutex::default(),
            event: event()?,
        };
        Ok(Self {
            funnel,
            outbox: Arc::new(outbox),
            staged: Vec::new(),
            in_flight: 0,
            abandoned: false,
        })
    }
}

impl DiskQueue for FunnelQueue {
    fn submit(&mut self, request: Request) {
        self.in_flight += 1;
        if self.abandoned {
            return self.outbox.cancel(request.tag);
        }
        self.staged.push(request);
    }

    fn kick(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut orders = lock(&self.funnel.inbox.orders);
        let staged = self.staged.drain(..);
        orders
            .requests
            .extend(staged.map(|request| (Arc::clone(&self.outbox), request)));
        drop(orders);
        let _ = self.funnel.inbox.event.write(1);
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        crate::fd::borrow(&self.outbox.event)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut done = lock(&self.outbox.done);
        if !done.is_empty() {
            // Written when the list got its first entry, so it is reset where the list is emptied.
            let _ = self.outbox.event.read();
            self.in_flight -= done.len();
            completions.append(&mut done);
        }
    }

    fn abandon(&mut self) {
        self.abandoned = true;
        for request in self.staged.drain(..) {
            self.outbox.cancel(request.tag);
        }
        let mut orders = lock(&self.funnel.inbox.orders);
        // Those that the thread has not taken yet it tells to go, too.
        orders.abandoned.push(Arc::clone(&self.outbox));
        drop(orders);
        let _ = self.funnel.inbox.event.write(1);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for FunnelQueue {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            self.abandon();
        }
    }
}
