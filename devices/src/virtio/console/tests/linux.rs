//! The host's side of the tests, and a driver that does what Linux does.

use super::*;

pub(super) struct Host {
    pub(super) ports: Arc<ConsolePorts>,
    pub(super) sink: Arc<Collector>,
    pub(super) directory: tempfile::TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sink = Arc::new(Collector::default());
        let socket = |name: &str, file: &str| PortSpec {
            name: name.to_owned(),
            console: false,
            backend: PortBackend::Socket(
                PrivateSocket::bind(&directory.path().join(file)).unwrap(),
            ),
        };
        let ports = ConsolePorts::new(vec![
            PortSpec {
                name: String::new(),
                console: true,
                backend: PortBackend::Host(Arc::clone(&sink) as _),
            },
            socket("org.qemu.guest_agent.0", "agent"),
            socket("paddock.probe", "probe"),
        ])
        .unwrap();
        Self {
            ports,
            sink,
            directory,
        }
    }

    pub(super) fn path(&self, port: usize) -> PathBuf {
        let file = if port == AGENT { "agent" } else { "probe" };
        self.directory.path().join(file)
    }

    pub(super) fn connect(&self, port: usize) -> UnixStream {
        connect(&self.path(port))
    }

    pub(super) fn device(&self) -> VirtioConsole {
        VirtioConsole::new("console0", Arc::clone(&self.ports))
    }
}

pub(super) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A guest's driver of the whole device.
pub(super) struct Linux {
    pub(super) guest: Guest,
    pub(super) queues: Vec<Driver>,
    /// Control messages received and not yet asked for.
    pub(super) heard: Vec<(u32, u16, u16, Vec<u8>)>,
    pub(super) features: u64,
}

impl Linux {
    pub(super) fn new(device: &mut VirtioConsole, features: u64) -> Self {
        let guest = Guest::new();
        let queues: Vec<Driver> = (0..)
            .zip(device.queue_max_sizes())
            .map(|(index, size)| guest.queue(index, *size))
            .collect();
        for (index, queue) in (0..).zip(&queues) {
            device
                .start_queue(index, queue.resources(features))
                .unwrap();
        }
        Self {
            guest,
            queues,
            heard: Vec::new(),
            features,
        }
    }

    /// Started, with every port set up and open.
    pub(super) fn up(device: &mut VirtioConsole) -> Self {
        let mut linux = Self::new(device, F_MULTIPORT | F_SIZE);
        linux.shake_hands();
        for port in 0..3 {
            linux.say(port, 6, 1);
        }
        linux
    }

    pub(super) fn shake_hands(&mut self) {
        for _ in 0..32 {
            self.queues[2].add(&[], &[4096]);
        }
        self.queues[2].kick();
        self.say(u32::MAX, 0, 1);
        for port in 0..3 {
            assert_eq!(self.hear(), (port, 1, 1, vec![]), "PORT_ADD");
            self.say(port, 3, 1);
        }
        assert_eq!(self.hear_of(0, 4).2, 1, "CONSOLE_PORT");
        assert_eq!(self.hear_of(0, 6).2, 1, "the host's console is open");
        assert_eq!(self.hear_of(1, 7).3, b"org.qemu.guest_agent.0");
        assert_eq!(self.hear_of(2, 7).3, b"paddock.probe");
    }

    /// Sends a control message.
    pub(super) fn say(&mut self, port: u32, event: u16, value: u16) {
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.queues[3].add_bytes(&[&message], &[]);
        self.queues[3].kick();
        self.queues[3].wait_used();
    }

    pub(super) fn poll_control(&mut self) {
        while let Some(used) = self.queues[2].try_used() {
            let message = used.written;
            let port = u32::from_le_bytes(message[..4].try_into().unwrap());
            let event = u16::from_le_bytes(message[4..6].try_into().unwrap());
            let value = u16::from_le_bytes(message[6..8].try_into().unwrap());
            self.heard.push((port, event, value, message[8..].to_vec()));
            self.queues[2].add(&[], &[4096]);
            self.queues[2].kick();
        }
    }

    pub(super) fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        wait_for("a control message", || {
            self.poll_control();
            (!self.heard.is_empty()).then(|| self.heard.remove(0))
        })
    }

    /// The next message of this kind about this port.
    pub(super) fn hear_of(&mut self, port: u32, event: u16) -> (u32, u16, u16, Vec<u8>) {
        wait_for("a control message of a kind", || {
            self.poll_control();
            let at = self
                .heard
                .iter()
                .position(|m| (m.0, m.1) == (port, event))?;
            Some(self.heard.remove(at))
        })
    }

    /// Waits until the port is told open (or closed) at the host's end.
    pub(super) fn wait_open(&mut self, port: usize, open: bool) {
        let heard = self.hear_of(u32::try_from(port).unwrap(), 6);
        assert_eq!(heard.2, u16::from(open));
    }

    /// Offers buffers for `port`'s input.
    pub(super) fn offer(&mut self, port: usize, layout: &[usize]) {
        let queue = &mut self.queues[usize::from(rx_queue(port))];
        queue.add(&[], layout);
        queue.kick();
    }

    pub(super) fn try_read(&mut self, port: usize) -> Option<Vec<u8>> {
        let queue = &mut self.queues[usize::from(rx_queue(port))];
        queue.try_used().map(|used| used.written)
    }

    pub(super) fn read(&mut self, port: usize) -> Vec<u8> {
        wait_for("input", || self.try_read(port))
    }

    /// Writes without waiting for the device to take it.
    pub(super) fn post(&mut self, port: usize, layout: &[&[u8]]) {
        let queue = &mut self.queues[usize::from(tx_queue(port))];
        queue.add_bytes(layout, &[]);
        queue.kick();
    }

    pub(super) fn try_posted(&mut self, port: usize) -> bool {
        let queue = &mut self.queues[usize::from(tx_queue(port))];
        queue.try_used().is_some()
    }

    pub(super) fn write(&mut self, port: usize, bytes: &[u8]) {
        self.post(port, &[bytes]);
        wait_for("output taken", || self.try_posted(port).then_some(()));
    }

    pub(super) fn stop(&self, device: &mut VirtioConsole) -> Vec<Queue> {
        let indices = 0..u16::try_from(self.queues.len()).unwrap();
        let queues = indices.map(|i| device.stop_queue(i).unwrap()).collect();
        assert_eq!(self.guest.broken(), None);
        queues
    }
}
