//! What stands behind the ports: unix sockets, or the host's own console code. Made once; outlives the devices, so that clients stay
//! connected while the VM resets.
//!
//! Data is moved by the device's worker; input and size come from any thread of the host.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ConsoleError;
use crate::console::{ConsoleInput, ConsoleSink};
use crate::socket::{Client, PrivateSocket, Transfer};

/// Ports of one device, at most.
pub const MAX_PORTS: usize = 15;
/// Length of a port's name, at most.
pub const MAX_NAME: usize = 64;
/// Input that waits for the guest, at most.
const INPUT: usize = 4096;

/// What stands behind a port.
#[derive(Debug)]
pub enum PortBackend {
    /// A unix socket. Clients are served one after the other; the guest sees the port open and close with them. Data
    /// crosses as fast as both ends take it: a slow client holds the guest's writes to this port up, a guest that does not read
    /// leaves data in the socket. While there is no client, what the guest writes is dropped. A client that leaves before the guest
    /// has opened the port takes its data with it.
    Socket(PrivateSocket),
    /// The host's console code: output to this sink, input through [`ConsolePorts::input`].
    Host(Arc<dyn ConsoleSink>),
}

/// A port to make.
#[derive(Debug)]
pub struct PortSpec {
    /// The name the guest finds it under, such as "org.qemu.guest_agent.0"; may be empty.
    pub name: String,
    /// Whether it is a text console (hvc0, hvc1, …) rather than a device in /dev/virtio-ports. A guest kernel spins while a console
    /// does not take its output: one behind a socket therefore drops what a slow client does not take.
    pub console: bool,
    /// What stands behind it.
    pub backend: PortBackend,
}

/// Is told what the guest does with its ports. Called on the device's worker, as often as the guest likes: it must return at once.
pub trait PortEvents: Send + Sync + fmt::Debug {
    /// A program in the guest has opened a port that is no console. Kernels open consoles by themselves, and no other ports.
    fn port_opened(&self);
}

/// What went through a port, since the ports were made.
#[derive(Debug, Default)]
pub struct PortCounters {
    from_guest: AtomicU64,
    to_guest: AtomicU64,
}

impl PortCounters {
    /// Bytes of the guest's that the other end took.
    #[must_use]
    pub fn from_guest(&self) -> u64 {
        self.from_guest.load(Ordering::Relaxed)
    }

    /// Bytes that were given to the guest.
    #[must_use]
    pub fn to_guest(&self) -> u64 {
        self.to_guest.load(Ordering::Relaxed)
    }
}

/// The ports of a console device.
#[derive(Debug)]
pub struct ConsolePorts {
    ports: Vec<Port>,
    /// Tells the worker of input and sizes.
    wake: Arc<EventFd>,
    /// Columns and rows of the consoles; 0 is unknown.
    size: AtomicU32,
    events: OnceLock<Arc<dyn PortEvents>>,
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) console: bool,
    pub(super) link: Link,
    counters: Arc<PortCounters>,
}

#[derive(Debug)]
pub(super) enum Link {
    Socket {
        socket: PrivateSocket,
        /// Touched by the worker alone; kept here from one device to the next.
        client: Mutex<Option<Client>>,
    },
    Host {
        sink: Arc<dyn ConsoleSink>,
        input: Arc<PortInput>,
    },
}

impl ConsolePorts {
    /// Makes the ports, in this order, the first being port 0; sockets are kept until this is dropped.
    ///
    /// # Errors
    /// When there are none or more than [`MAX_PORTS`], a name is bad or given twice, or the host has no descriptor left.
    pub fn new(specs: Vec<PortSpec>) -> Result<Arc<Self>, ConsoleError> {
        if specs.is_empty() || specs.len() > MAX_PORTS {
            return Err(ConsoleError::Count { count: specs.len() });
        }
        check_names(&specs)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Event)?;
        let wake = Arc::new(event);
        let ports = specs
            .into_iter()
            .map(|spec| Port::new(spec, &wake))
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            ports,
            wake,
            size: AtomicU32::new(0),
            events: OnceLock::new(),
        }))
    }

    /// The number of ports.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// The keyboard side of a [`PortBackend::Host`] port.
    #[must_use]
    pub fn input(&self, port: usize) -> Option<Arc<dyn ConsoleInput>> {
        match &self.ports.get(port)?.link {
            Link::Host { input, .. } => Some(Arc::clone(input) as _),
            Link::Socket { .. } => None,
        }
    }

    /// Who is told what the guest does. The first one stays.
    pub fn set_events(&self, events: Arc<dyn PortEvents>) {
        let _ = self.events.set(events);
    }

    /// The ports' names with what went through them, in their order.
    #[must_use]
    pub fn counters(&self) -> Vec<(String, Arc<PortCounters>)> {
        let ports = self.ports.iter();
        ports
            .map(|port| (port.name.clone(), Arc::clone(&port.counters)))
            .collect()
    }

    /// Tells the guest the size of its consoles' window.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = u32::from(columns) << 16 | u32::from(rows);
        if self.size.swap(size, Ordering::Relaxed) != size {
            wake(&self.wake);
        }
    }

    /// Columns and rows; 0 is unknown.
    pub(super) fn size(&self) -> [u16; 2] {
        let size = self.size.load(Ordering::Relaxed);
        [size >> 16, size & 0xffff].map(|half| u16::try_from(half).unwrap_or(0))
    }

    pub(super) fn ports(&self) -> &[Port] {
        &self.ports
    }

    pub(super) fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// The guest has opened `port`.
    pub(super) fn opened(&self, port: &Port) {
        if let Some(events) = self.events.get().filter(|_| !port.console) {
            events.port_opened();
        }
    }
}

fn check_names(specs: &[PortSpec]) -> Result<(), ConsoleError> {
    for (port, spec) in specs.iter().enumerate() {
        let name = &spec.name;
        let printable = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if name.len() > MAX_NAME || !printable || name == "." || name == ".." {
            return Err(ConsoleError::Name {
                port,
                name: name.clone(),
            });
        }
        let earlier = specs.iter().take(port);
        let first = earlier.clone().position(|other| other.name == *name);
        if let Some(first) = first.filter(|_| !name.is_empty()) {
            return Err(ConsoleError::Duplicate {
                first,
                second: port,
                name: name.clone(),
            });
        }
    }
    Ok(())
}

impl Port {
    fn new(spec: PortSpec, wake: &Arc<EventFd>) -> Result<Self, ConsoleError> {
        let link = match spec.backend {
            PortBackend::Socket(socket) => Link::Socket {
                socket,
                client: Mutex::new(None),
            },
            PortBackend::Host(sink) => Link::Host {
                sink,
                input: Arc::new(PortInput {
                    waiting: Mutex::new(Waiting::default()),
                    space: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Event)?,
                    wake: Arc::clone(wake),
                }),
            },
        };
        Ok(Self {
            name: spec.name,
            console: spec.console,
            link,
            counters: Arc::default(),
        })
    }

    /// Whether somebody is at the other end.
    pub(super) fn is_connected(&self) -> bool {
        match &self.link {
            Link::Socket { client, .. } => client.lock().is_some(),
            Link::Host { .. } => true,
        }
    }

    /// Reads into `buffer`, which is not empty.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Transfer {
        let read = self.take(buffer);
        if let Transfer::Done(count) = read {
            let counter = &self.counters.to_guest;
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
        read
    }

    fn take(&self, buffer: &mut [u8]) -> Transfer {
        match &self.link {
            Link::Socket { client, .. } => client
                .lock()
                .as_mut()
                .map_or(Transfer::Later, |client| client.read(buffer)),
            Link::Host { input, .. } => match input.take(buffer) {
                0 => Transfer::Later,
                count => Transfer::Done(count),
            },
        }
    }

    /// Writes `bytes`, which are not empty; [`Transfer::Never`] when there is nobody to take them.
    pub(super) fn write(&self, bytes: &[u8]) -> Transfer {
        let written = self.give(bytes);
        if let Transfer::Done(count) = written {
            let counter = &self.counters.from_guest;
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
        written
    }

    fn give(&self, bytes: &[u8]) -> Transfer {
        match &self.link {
            Link::Socket { client, .. } => match client.lock().as_mut() {
                None => Transfer::Never,
                Some(client) => match client.write(bytes) {
                    Transfer::Later if self.console => Transfer::Never,
                    other => other,
                },
            },
            Link::Host { sink, .. } => {
                sink.write(bytes);
                Transfer::Done(bytes.len())
            }
        }
    }
}

/// Fails only when the counter is full, and then the event is readable anyway.
fn wake(event: &EventFd) {
    let _ = event.write(1);
}

/// The keyboard side of a port.
#[derive(Debug)]
pub(super) struct PortInput {
    waiting: Mutex<Waiting>,
    space: EventFd,
    wake: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Someone was told that there is no space.
    short: bool,
}

impl PortInput {
    fn take(&self, buffer: &mut [u8]) -> usize {
        let mut waiting = self.waiting.lock();
        let count = buffer.len().min(waiting.bytes.len());
        for (slot, byte) in buffer.iter_mut().zip(waiting.bytes.drain(..count)) {
            *slot = byte;
        }
        if waiting.short && waiting.bytes.len() <= INPUT / 2 {
            waiting.short = false;
            wake(&self.space);
        }
        count
    }
}

impl ConsoleInput for PortInput {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.waiting.lock();
        let taken = bytes.len().min(INPUT - waiting.bytes.len());
        waiting.bytes.extend(bytes.iter().take(taken));
        waiting.short = taken < bytes.len();
        drop(waiting);
        if taken > 0 {
            wake(&self.wake);
        }
        taken
    }

    fn space(&self) -> &EventFd {
        &self.space
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::serial::tests::Collector;

    fn host(name: &str) -> PortSpec {
        PortSpec {
            name: name.to_owned(),
            console: false,
            backend: PortBackend::Host(Arc::new(Collector::default())),
        }
    }

    #[test]
    fn specs_are_checked() {
        let refused = |names: &[&str]| {
            let specs = names.iter().map(|name| host(name)).collect();
            ConsolePorts::new(specs).map(drop).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&[]),
            "0 console ports: a console device has 1 to 15"
        );
        assert!(refused(&["p"; 16]).starts_with("16 console ports"));
        assert_eq!(
            refused(&["a", "", "", "a"]),
            "ports 0 and 3 are both named \"a\": give each a name of its own"
        );
        for bad in ["a/b", "a b", "ü", "..", &"x".repeat(65)] {
            assert!(
                refused(&["ok", bad]).starts_with("port 1: the name"),
                "{bad}"
            );
        }
    }

    #[test]
    fn input_is_bounded_and_tells_of_space() {
        let ports = ConsolePorts::new(vec![host("")]).unwrap();
        let input = ports.input(0).unwrap();
        assert!(ports.input(1).is_none());
        assert_eq!(input.enqueue(&[7; INPUT + 1]), INPUT);
        assert_eq!(ports.wake_event().read().unwrap(), 1);
        let mut buffer = [0; INPUT / 2];
        assert!(input.space().read().is_err());
        assert_eq!(
            ports.ports()[0].read(&mut buffer),
            Transfer::Done(INPUT / 2)
        );
        assert_eq!(input.space().read().unwrap(), 1);
        ports.ports()[0].read(&mut buffer);
        assert_eq!(ports.ports()[0].read(&mut buffer), Transfer::Later);
        assert!(input.space().read().is_err(), "told once");
    }
}
