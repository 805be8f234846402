//! The worker of a console device: one thread for all its queues.
//!
//! Queues are handed over and taken back between two rounds; a round gives each port its turn. Between
//! rounds no chain is held, so a queue can go at any time. Waiting is level-triggered: for a socket only while there is something
//! to do with it, or for its hang-up alone.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Notice, PortControl, Request};
use super::data::{self, PIECE, Received, Sending, Told};
use super::ports::{ConsolePorts, Link, Port};
use super::{CONTROL_RX, CONTROL_TX, F_MULTIPORT, rx_queue, tx_queue};
use crate::throttle::Throttle;
use crate::virtio::ring::Ring;
use crate::virtio::service::{self, Orders};
use crate::virtio::worker::{EventLoop, Wake};

/// First token of the ports' sockets; below are the queues.
const SOCKETS: u32 = 32;
const HOST: u32 = 62;
const ORDERS: u32 = 63;

/// How long new clients wait when the host has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What a port's socket is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Watch {
    #[default]
    Nothing,
    /// A new client.
    Listener,
    /// The client: its data, room for ours, and always its hang-up.
    Client { read: bool, write: bool },
}

#[derive(Debug, Default)]
struct PortState {
    control: PortControl,
    sending: Sending,
    starved: bool,
    watch: Watch,
    /// A client waits to be let in.
    knocked: bool,
}

/// Everything the worker has.
#[derive(Debug)]
pub(super) struct Engine {
    id: String,
    ports: Arc<ConsolePorts>,
    states: Vec<PortState>,
    rings: Vec<Option<Ring>>,
    multiport: bool,
    told_size: [u16; 2],
    /// The host had no descriptor for a new client: not before then.
    accept_after: Option<Instant>,
    scratch: Vec<u8>,
    /// The device's own: a guest that resets it would loosen any other.
    log: Arc<Throttle>,
}

impl service::Engine for Engine {
    fn give(&mut self, index: u16, features: u64, ring: Ring) {
        self.multiport = features & F_MULTIPORT != 0;
        if let Some(slot) = self.rings.get_mut(usize::from(index)) {
            *slot = Some(ring);
        }
    }

    fn take(&mut self, index: u16) -> Option<Ring> {
        self.rings.get_mut(usize::from(index))?.take()
    }

    fn run(mut self, events: &EventLoop, orders: &Orders) -> Self {
        if let Err(error) = self.serve(events, orders) {
            tracing::error!(device = %self.id, %error, "console: waiting for events");
        }
        for state in &mut self.states {
            state.watch = Watch::Nothing;
        }
        self
    }
}

impl Engine {
    /// With no queue running and a driver that knows nothing.
    pub(super) fn new(id: String, ports: Arc<ConsolePorts>, log: Arc<Throttle>) -> Self {
        let count = ports.count();
        Self {
            id,
            states: (0..count).map(|_| PortState::default()).collect(),
            rings: (0..super::queue_count(count)).map(|_| None).collect(),
            multiport: false,
            told_size: ports.size(),
            accept_after: None,
            scratch: vec![0; PIECE],
            log,
            ports,
        }
    }

    fn serve(&mut self, events: &EventLoop, orders: &Orders) -> io::Result<()> {
        events.add_event(orders.doorbell(), ORDERS)?;
        events.add_event(self.ports.wake_event(), HOST)?;
        loop {
            let again = self.round(events)?;
            let wake = events.wait(self.patience(again))?;
            if wake == Wake::Stop {
                return Ok(());
            }
            if wake.has(HOST) {
                let _ = self.ports.wake_event().read();
            }
            for (token, ring) in (0..).zip(&self.rings) {
                if let Some(ring) = ring.as_ref().filter(|_| wake.has(token)) {
                    ring.acknowledge();
                }
            }
            for port in 0..self.states.len() {
                if wake.has(SOCKETS + small(port)) {
                    self.socket_ready(port);
                }
            }
            if wake.has(ORDERS) {
                orders.obey(events, self);
            }
        }
    }

    /// How long to wait for events.
    fn patience(&self, again: bool) -> Option<Duration> {
        if again {
            return Some(Duration::ZERO);
        }
        self.accept_after
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Gives everything its turn; whether to come back at once.
    fn round(&mut self, events: &EventLoop) -> io::Result<bool> {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|at| *at > now);
        let mut again = self.hear();
        self.notice_size();
        for port in 0..self.states.len() {
            again |= self.move_data(port);
            self.settle(port);
        }
        again |= self.tell();
        for port in 0..self.states.len() {
            self.watch(events, port)?;
        }
        Ok(again)
    }

    /// Serves the driver's control messages.
    fn hear(&mut self) -> bool {
        let Self {
            states,
            ports,
            rings,
            ..
        } = self;
        let Some(ring) = ring_of(rings, CONTROL_TX) else {
            return false;
        };
        data::hear(ring, |message| match Request::decode(message) {
            Some(Request::DeviceReady) => {
                for state in states.iter_mut() {
                    state.control.device_ready();
                }
            }
            Some(Request::PortReady(port, yes)) => {
                if let Some((state, port)) = find(states, ports, port) {
                    let sized = ports.size() != [0, 0];
                    let named = !port.name.is_empty();
                    state.control.port_ready(yes, port.console, named, sized);
                    state.control.set_connected(port.is_connected());
                }
            }
            Some(Request::PortOpen(port, yes)) => {
                if let Some((state, port)) = find(states, ports, port) {
                    state.control.set_guest_open(yes);
                    if yes {
                        ports.opened(port);
                    }
                }
            }
            None => {}
        })
    }

    /// Tells the driver what it does not know yet; whether that changes what can be done.
    fn tell(&mut self) -> bool {
        let Some(ring) = ring_of(&mut self.rings, CONTROL_RX) else {
            return false;
        };
        let size = self.ports.size();
        let (mut changed, mut too_small, mut starved) = (false, 0, false);
        'ports: for (number, (state, port)) in
            (0..).zip(self.states.iter_mut().zip(self.ports.ports()))
        {
            while let Some(notice) = state.control.next() {
                match data::tell(ring, &notice.encode(number, &port.name, size)) {
                    Told::Yes => {
                        state.control.told(notice);
                        changed |= matches!(notice, Notice::Open | Notice::Close);
                    }
                    // A driver that offers nothing but small buffers gets its turn again with the next kick.
                    Told::TooSmall if too_small < 64 => too_small += 1,
                    Told::TooSmall | Told::NoBuffer => {
                        starved = true;
                        break 'ports;
                    }
                }
            }
        }
        let memory = ring.memory();
        ring.flush(&memory);
        starved && ring.arm(&memory) || changed
    }

    /// A new window size goes by message, or by the configuration where the driver knows no messages.
    fn notice_size(&mut self) {
        let size = self.ports.size();
        if size == self.told_size {
            return;
        }
        self.told_size = size;
        if self.multiport {
            for (state, port) in self.states.iter_mut().zip(self.ports.ports()) {
                state.control.resized(port.console);
            }
        } else if let Some(ring) = self.rings.iter().flatten().next() {
            ring.signal_config();
        }
    }

    /// Whether the guest gets data of this port.
    fn delivers(&self, port: usize) -> bool {
        if self.multiport {
            self.states
                .get(port)
                .is_some_and(|state| state.control.delivers())
        } else {
            port == 0
        }
    }

    fn move_data(&mut self, index: usize) -> bool {
        let delivers = self.delivers(index);
        let (Some(port), Some(state)) = (self.ports.ports().get(index), self.states.get_mut(index))
        else {
            return false;
        };
        let mut again = false;
        match ring_of(&mut self.rings, tx_queue(index)) {
            Some(ring) => again |= data::send(port, &mut state.sending, ring, &mut self.scratch),
            None => state.sending.blocked = false,
        }
        state.starved = true;
        if let Some(ring) = ring_of(&mut self.rings, rx_queue(index)).filter(|_| delivers) {
            let received = data::receive(port, ring, &mut self.scratch);
            state.starved = received == Received::Starved;
            again |= received == Received::More;
        }
        again
    }

    /// Sees clients off and lets new ones in.
    fn settle(&mut self, index: usize) {
        let (Some(port), Some(state)) = (self.ports.ports().get(index), self.states.get_mut(index))
        else {
            return;
        };
        let Link::Socket { socket, client } = &port.link else {
            return;
        };
        let mut client = client.lock();
        let heard = !self.multiport || state.control.is_guest_open();
        if client
            .as_ref()
            .is_some_and(|client| client.is_over() || client.is_gone() && !heard)
        {
            // Closing its descriptor ends the watch.
            *client = None;
            state.watch = Watch::Nothing;
            state.sending.cut_off();
            state.control.set_connected(false);
        }
        if client.is_none() && std::mem::take(&mut state.knocked) && state.control.admits_client() {
            match socket.accept() {
                Ok(new) => *client = new,
                Err(error) => {
                    self.accept_after = Some(Instant::now() + ACCEPT_RETRY);
                    if let Some(held_back) = self.log.pass() {
                        tracing::warn!(device = %self.id, port = index, %error, held_back, "console: accepting a client");
                    }
                }
            }
            state.control.set_connected(client.is_some());
        }
    }

    /// A port's socket is ready for what it is waited for.
    fn socket_ready(&mut self, index: usize) {
        let (Some(port), Some(state)) = (self.ports.ports().get(index), self.states.get_mut(index))
        else {
            return;
        };
        match (state.watch, &port.link) {
            (Watch::Listener, _) => state.knocked = true,
            (
                Watch::Client {
                    read: false,
                    write: false,
                },
                Link::Socket { client, .. },
            ) => {
                if let Some(client) = client.lock().as_mut() {
                    client.hang_up();
                }
            }
            _ => {}
        }
    }

    /// Waits for what can be served now.
    fn watch(&mut self, events: &EventLoop, index: usize) -> io::Result<()> {
        let delivers = self.delivers(index);
        let (Some(port), Some(state)) = (self.ports.ports().get(index), self.states.get_mut(index))
        else {
            return Ok(());
        };
        let Link::Socket { socket, client } = &port.link else {
            return Ok(());
        };
        let client = client.lock();
        let wanted = match client.as_ref() {
            Some(client) if client.is_gone() => Watch::Nothing,
            Some(client) => Watch::Client {
                read: delivers && !state.starved && client.sends(),
                write: state.sending.blocked,
            },
            None if state.control.admits_client() && self.accept_after.is_none() => Watch::Listener,
            None => Watch::Nothing,
        };
        let token = SOCKETS + small(index);
        match (state.watch, wanted, client.as_ref()) {
            (old, new, _) if old == new => return Ok(()),
            (Watch::Client { .. }, Watch::Client { read, write }, Some(client)) => {
                events.modify(client.stream(), token, read, write)?;
            }
            (old, new, client) => {
                match (old, client) {
                    (Watch::Listener, _) => events.remove(socket.listener())?,
                    (Watch::Client { .. }, Some(client)) => events.remove(client.stream())?,
                    _ => {}
                }
                match (new, client) {
                    (Watch::Listener, _) => events.add(socket.listener(), token)?,
                    (Watch::Client { read, write }, Some(client)) => {
                        events.add(client.stream(), token)?;
                        events.modify(client.stream(), token, read, write)?;
                    }
                    _ => {}
                }
            }
        }
        state.watch = wanted;
        Ok(())
    }
}

fn ring_of(rings: &mut [Option<Ring>], index: u16) -> Option<&mut Ring> {
    rings.get_mut(usize::from(index))?.as_mut()
}

fn find<'a>(
    states: &'a mut [PortState],
    ports: &'a ConsolePorts,
    port: u32,
) -> Option<(&'a mut PortState, &'a Port)> {
    let index = usize::try_from(port).ok()?;
    Some((states.get_mut(index)?, ports.ports().get(index)?))
}

/// A port's number, which is below [`MAX_PORTS`](super::MAX_PORTS).
fn small(port: usize) -> u32 {
    u32::try_from(port).unwrap_or_default()
}
