//! The worker of the adapter: one thread for its queues.
//!
//! Queues are handed over and taken back between two rounds; in a round each queue gets a turn that is bounded by its size. Between rounds
//! only reads are held, and those are ended when the request queue goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_bindings::bindings::virtio_scsi::{
    VIRTIO_SCSI_T_ASYNC_NOTIFY, VIRTIO_SCSI_T_EVENTS_MISSED, VIRTIO_SCSI_T_NO_EVENT,
    VIRTIO_SCSI_T_TMF_ABORT_TASK, VIRTIO_SCSI_T_TMF_ABORT_TASK_SET,
    VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET, VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
    VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, VIRTIO_SCSI_T_TMF_QUERY_TASK,
    VIRTIO_SCSI_T_TMF_QUERY_TASK_SET,
};

use super::cdrom::{Answer, Sense, execute_without_unit};
use super::handle::{CdromHandle, Loaded};
use super::reads::{Ended, Reads};
use super::request::{Command, Control, DRIVE, EVENT_LENGTH, Response, Sizes, Status, Unit};
use super::{CONTROL, EVENTS, QUEUE_SIZE, QUEUES, REQUESTS};
use crate::throttle::Throttle;
use crate::virtio::GuestMap;
use crate::virtio::chain::{Chain, RingError};
use crate::virtio::ring::Ring;
use crate::virtio::service::{self, Orders};
use crate::virtio::worker::{EventLoop, Wake};

/// The first tokens are the queues.
const MEDIUM: u32 = 62;
const ORDERS: u32 = 63;

/// The asynchronous notification that there is: the medium's (§5.6.6.2).
const MEDIA_CHANGE: u32 = 16;

/// The brakes on the log. The device's own: a guest that resets it would loosen any other.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    /// For media that the host cannot read.
    pub(super) failures: Throttle,
    /// For media that the host does not let us read at all.
    openings: Throttle,
}

/// What the event queue has to tell.
#[derive(Debug, Default)]
struct Notices {
    /// The driver wants to hear of the medium.
    subscribed: bool,
    /// How much of what the owner did is known.
    seen: u64,
    due: bool,
    /// There was no room for one before.
    missed: bool,
}

/// Everything the worker has.
#[derive(Debug)]
pub(super) struct Engine {
    id: String,
    handle: CdromHandle,
    sizes: Arc<Sizes>,
    brakes: Arc<Brakes>,
    rings: [Option<Ring>; QUEUES],
    reads: Reads,
    notices: Notices,
    drain_deadline: Duration,
    /// Commands to be answered in this round.
    ended: Vec<Ended>,
}

impl service::Engine for Engine {
    fn give(&mut self, index: u16, _features: u64, ring: Ring) {
        // The device lets no other queue start.
        if let Some(slot) = self.rings.get_mut(usize::from(index)) {
            *slot = Some(ring);
        }
    }

    fn take(&mut self, index: u16) -> Option<Ring> {
        if usize::from(index) == REQUESTS {
            self.settle();
        }
        self.rings.get_mut(usize::from(index))?.take()
    }

    fn run(mut self, events: &EventLoop, orders: &Orders) -> Self {
        if let Err(error) = self.serve(events, orders) {
            tracing::error!(device = self.id, %error, "scsi: waiting for events");
        }
        // The host cancels what a thread has asked for when it ends.
        self.reads.close(events);
        self
    }
}

impl Engine {
    /// Nothing running and a driver that knows nothing.
    pub(super) fn new(
        id: String,
        handle: CdromHandle,
        sizes: Arc<Sizes>,
        brakes: Arc<Brakes>,
        drain_deadline: Duration,
    ) -> Self {
        Self {
            reads: Reads::new(id.clone(), handle.clone(), Arc::clone(&brakes)),
            notices: Notices {
                seen: handle.notices(),
                ..Notices::default()
            },
            id,
            handle,
            sizes,
            brakes,
            rings: [const { None }; QUEUES],
            drain_deadline,
            ended: Vec::new(),
        }
    }

    fn serve(&mut self, events: &EventLoop, orders: &Orders) -> io::Result<()> {
        events.add_event(orders.doorbell(), ORDERS)?;
        loop {
            let again = self.round(events);
            let wake = events.wait(again.then_some(Duration::ZERO))?;
            if wake == Wake::Stop {
                return Ok(());
            }
            for (token, ring) in (0..).zip(&self.rings) {
                if let Some(ring) = ring.as_ref().filter(|_| wake.has(token)) {
                    ring.acknowledge();
                }
            }
            if wake.has(ORDERS) {
                orders.obey(events, self);
            }
        }
    }

    /// Gives each queue its turn; whether to come back at once.
    fn round(&mut self, events: &EventLoop) -> bool {
        self.notice_medium(events);
        // What a function aborts is answered before the function is.
        let requests = self.with_ring(REQUESTS, |this, ring, memory| {
            this.serve_requests(ring, memory, events)
        });
        let control = self.with_ring(CONTROL, Self::serve_control);
        self.with_ring(EVENTS, Self::tell_events);
        requests || control
    }

    /// Takes a ring out for a turn, if it is there. Whether to come back at once.
    fn with_ring(
        &mut self,
        index: usize,
        turn: impl FnOnce(&mut Self, &mut Ring, &GuestMap) -> bool,
    ) -> bool {
        let Some(mut ring) = self.rings.get_mut(index).and_then(Option::take) else {
            return false;
        };
        let memory = ring.memory();
        let more = turn(self, &mut ring, &memory);
        ring.flush(&memory);
        // Buffers for events wait until there is one.
        let again = ring.arm(&memory) && index != EVENTS;
        if let Some(slot) = self.rings.get_mut(index) {
            *slot = Some(ring);
        }
        more || again
    }

    /// The owner changed the medium: what was read of the old one cannot be had any more.
    fn notice_medium(&mut self, events: &EventLoop) {
        let notices = self.handle.notices();
        if notices != self.notices.seen {
            self.notices.seen = notices;
            self.notices.due |= self.notices.subscribed;
        }
        let generation = self.handle.generation();
        if self.reads.generation().is_some_and(|old| old != generation) {
            let gone = Status::Check(Sense::REMOVED);
            self.reads
                .abort(|_| true, gone, Response::Ok, &mut self.ended);
            self.reads.close(events);
        }
    }

    fn serve_requests(&mut self, ring: &mut Ring, memory: &GuestMap, events: &EventLoop) -> bool {
        let mut more = true;
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = ring.pop(memory) else {
                more = false;
                break;
            };
            let served = self.begin(chain, memory, events);
            if ring.check(served).is_none() {
                break;
            }
        }
        let mut ended = std::mem::take(&mut self.ended);
        let pumped = self.reads.pump(memory, &mut ended);
        self.ended = ended;
        let pumped = ring.check(pumped);
        self.answer_ended(ring, memory);
        pumped == Some(true) || pumped.is_some() && more
    }

    /// Takes one command, and answers it if it needs nothing of the medium.
    fn begin(
        &mut self,
        chain: Chain,
        memory: &GuestMap,
        events: &EventLoop,
    ) -> Result<(), RingError> {
        let head = chain.head;
        if self.reads.has(head) {
            return Err(RingError::Twice { head });
        }
        let command = Command::parse(chain, memory, &self.sizes)?;
        let (answer, loaded) = match command.unit {
            Some(Unit::Drive) => self.handle.execute(&command.cdb),
            Some(Unit::Absent) => (execute_without_unit(&command.cdb), None),
            Some(Unit::NoTarget) => return self.refuse(command, Response::BadTarget),
            None => return self.refuse(command, Response::Failure),
        };
        let Command { reply, tag, .. } = command;
        let room = reply.data.len();
        let (status, response, transferred) = match (answer, loaded) {
            (Answer::Good, _) => (Status::Good, Response::Ok, 0),
            (Answer::Check(sense), _) => (Status::Check(sense), Response::Ok, 0),
            (Answer::Data(data), _) => {
                let written = reply.data.copy_from(memory, 0, &data)?;
                let response = match data.len() {
                    length if length > written => Response::Overrun,
                    _ => Response::Ok,
                };
                (Status::Good, response, written as u64)
            }
            (Answer::Read { blocks, .. }, _) if blocks * super::cdrom::BLOCK > room => {
                (Status::Good, Response::Overrun, 0)
            }
            (Answer::Read { first, blocks }, Some(loaded)) if self.opened(&loaded, events) => {
                self.reads.begin(reply, tag, first, blocks);
                return Ok(());
            }
            (Answer::Read { .. }, _) => (Status::Busy, Response::Ok, 0),
        };
        self.ended.push(Ended {
            reply,
            status,
            response,
            transferred,
        });
        Ok(())
    }

    /// Answers a command that does not get as far as a unit.
    fn refuse(&mut self, command: Command, response: Response) -> Result<(), RingError> {
        self.ended.push(Ended {
            reply: command.reply,
            status: Status::Good,
            response,
            transferred: 0,
        });
        Ok(())
    }

    /// Whether the medium can be read.
    fn opened(&mut self, loaded: &Loaded, events: &EventLoop) -> bool {
        if self
            .reads
            .generation()
            .is_some_and(|old| old != loaded.generation)
        {
            self.notice_medium(events);
        }
        match self.reads.open(loaded, events, MEDIUM) {
            Ok(()) => true,
            Err(error) => {
                if let Some(held_back) = self.brakes.openings.pass() {
                    let cdrom = &self.id;
                    tracing::warn!(cdrom, %error, held_back, "the host lets nobody read the medium");
                }
                false
            }
        }
    }

    fn answer_ended(&mut self, ring: &mut Ring, memory: &GuestMap) {
        for ended in self.ended.drain(..) {
            // First, so that whoever hears of a command by way of the guest finds it counted.
            let commands = &self.handle.counters().commands;
            commands.fetch_add(1, Ordering::Relaxed);
            let Ended {
                reply,
                status,
                response,
                transferred,
            } = ended;
            let written = reply.write(memory, status, response, transferred);
            if let Some(written) = ring.check(written) {
                ring.push_used(memory, reply.head, written);
            }
        }
    }

    /// Ends all reads, before the request queue goes.
    fn settle(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        let (reads, deadline) = (&mut self.reads, self.drain_deadline);
        if let Some(mut ring) = self.rings.get_mut(REQUESTS).and_then(Option::take) {
            let memory = ring.memory();
            let settled = reads.settle(deadline, &memory, &mut ended);
            ring.check(settled);
            self.ended = ended;
            self.answer_ended(&mut ring, &memory);
            ring.flush(&memory);
            if let Some(slot) = self.rings.get_mut(REQUESTS) {
                *slot = Some(ring);
            }
        }
    }

    fn serve_control(&mut self, ring: &mut Ring, memory: &GuestMap) -> bool {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = ring.pop(memory) else {
                return false;
            };
            let served = self.control(&chain, memory);
            let Some(written) = ring.check(served) else {
                return false;
            };
            ring.push_used(memory, chain.head, written);
        }
        true
    }

    /// Does what one request of the control queue asks for. Returns the bytes of its answer.
    fn control(&mut self, chain: &Chain, memory: &GuestMap) -> Result<u64, RingError> {
        let request = Control::parse(chain, memory)?;
        let mut answer = Vec::with_capacity(5);
        match request {
            Control::Manage {
                function,
                unit,
                tag,
            } => {
                let response = self.manage(function, unit, tag);
                self.flush_aborted();
                answer.push(response as u8);
            }
            Control::Notifications {
                subscribe,
                unit,
                events,
            } => {
                let (actual, response) = match unit {
                    Unit::Drive => (events & MEDIA_CHANGE, Response::Ok),
                    Unit::Absent => (0, Response::IncorrectLun),
                    Unit::NoTarget => (0, Response::BadTarget),
                };
                if subscribe && unit == Unit::Drive {
                    self.notices.subscribed = actual != 0;
                }
                answer.extend_from_slice(&actual.to_le_bytes());
                answer.push(response as u8);
            }
            Control::Unknown => answer.push(Response::FunctionRejected as u8),
        }
        let written = chain.writable.copy_from(memory, 0, &answer)?;
        if written < answer.len() {
            return Err(RingError::NoAnswer { head: chain.head });
        }
        Ok(written as u64)
    }

    /// A task management function (§5.6.6.2).
    fn manage(&mut self, function: u32, unit: Unit, tag: u64) -> Response {
        // The nexus is with the target, whatever the unit.
        let nexus = function == VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET;
        match unit {
            Unit::NoTarget => return Response::BadTarget,
            Unit::Absent if !nexus => return Response::IncorrectLun,
            Unit::Absent | Unit::Drive => {}
        }
        let (reads, ended) = (&mut self.reads, &mut self.ended);
        let mut abort = |which: Option<u64>, response| {
            let which = |other| which.is_none_or(|tag| tag == other);
            reads.abort(which, Status::Good, response, ended);
        };
        match function {
            VIRTIO_SCSI_T_TMF_ABORT_TASK => abort(Some(tag), Response::Aborted),
            VIRTIO_SCSI_T_TMF_ABORT_TASK_SET | VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET => {
                abort(None, Response::Aborted);
            }
            VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET | VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET => {
                abort(None, Response::Reset);
                self.handle.reset_drive();
            }
            VIRTIO_SCSI_T_TMF_QUERY_TASK if self.reads.has_tag(Some(tag)) => {
                return Response::FunctionSucceeded;
            }
            VIRTIO_SCSI_T_TMF_QUERY_TASK_SET if self.reads.has_tag(None) => {
                return Response::FunctionSucceeded;
            }
            VIRTIO_SCSI_T_TMF_QUERY_TASK | VIRTIO_SCSI_T_TMF_QUERY_TASK_SET => {}
            // There is no auto contingent allegiance to be cleared, and no other function.
            _ => return Response::FunctionRejected,
        }
        Response::Ok
    }

    /// The driver frees what a function aborted as soon as it hears of the function.
    fn flush_aborted(&mut self) {
        if !self.ended.is_empty() {
            self.with_ring(REQUESTS, |this, ring, memory| {
                this.answer_ended(ring, memory);
                false
            });
        }
    }

    /// Tells the driver what it wants to hear, as soon as it has room for it.
    fn tell_events(&mut self, ring: &mut Ring, memory: &GuestMap) -> bool {
        if !self.notices.due && !self.notices.missed {
            return false;
        }
        let Some(chain) = ring.pop(memory) else {
            // Whatever it is, the driver has to look for itself by then.
            self.notices.missed |= std::mem::take(&mut self.notices.due);
            return false;
        };
        let (mut kind, mut reason) = (VIRTIO_SCSI_T_NO_EVENT, 0);
        if std::mem::take(&mut self.notices.due) {
            (kind, reason) = (VIRTIO_SCSI_T_ASYNC_NOTIFY, MEDIA_CHANGE);
        }
        if std::mem::take(&mut self.notices.missed) {
            kind |= VIRTIO_SCSI_T_EVENTS_MISSED;
        }
        let mut event = [0; EVENT_LENGTH];
        event[..4].copy_from_slice(&kind.to_le_bytes());
        event[4..12].copy_from_slice(&DRIVE);
        event[12..].copy_from_slice(&reason.to_le_bytes());
        let head = chain.head;
        let written = match chain.writable.copy_from(memory, 0, &event) {
            Ok(written) if written < EVENT_LENGTH => Err(RingError::NoAnswer { head }),
            written => written,
        };
        if let Some(written) = ring.check(written) {
            ring.push_used(memory, head, written as u64);
        }
        false
    }
}
