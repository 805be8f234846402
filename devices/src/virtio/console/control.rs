//! The control channel (VIRTIO 1.2 §5.3.6.2): which ports there are, what they are, and who has them open.
//!
//! What the driver is to be told is kept as a few flags a port, not as a queue of messages: however often clients come and go, or the
//! driver asks, nothing grows. Pure state, on the worker's thread.

/// Length of a message without its payload.
pub(super) const HEADER: usize = 8;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What the driver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// It is ready for ports.
    DeviceReady,
    /// It has set this port up, or failed to.
    PortReady(u32, bool),
    /// It has opened or closed this port.
    PortOpen(u32, bool),
}

impl Request {
    /// Decodes a message; `None` for one that makes no sense.
    pub(super) fn decode(message: [u8; HEADER]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = message;
        let port = u32::from_le_bytes([a, b, c, d]);
        let yes = u16::from_le_bytes([g, h]) != 0;
        match u16::from_le_bytes([e, f]) {
            DEVICE_READY if yes => Some(Self::DeviceReady),
            PORT_READY => Some(Self::PortReady(port, yes)),
            PORT_OPEN => Some(Self::PortOpen(port, yes)),
            _ => None,
        }
    }
}

/// What the driver is told about a port, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// There is such a port.
    Add,
    /// It is a console.
    Console,
    /// Its name.
    Name,
    /// The size of its window.
    Size,
    /// Somebody has come.
    Open,
    /// Somebody has gone.
    Close,
}

impl Notice {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Console,
        Self::Name,
        Self::Size,
        Self::Open,
        Self::Close,
    ];

    fn bit(self) -> u8 {
        match self {
            Self::Add => 1 << 0,
            Self::Console => 1 << 1,
            Self::Name => 1 << 2,
            Self::Size => 1 << 3,
            Self::Open => 1 << 4,
            Self::Close => 1 << 5,
        }
    }

    /// The message, for port number `port`.
    pub(super) fn encode(self, port: u32, name: &str, [columns, rows]: [u16; 2]) -> Vec<u8> {
        let (event, value) = match self {
            Self::Add => (PORT_ADD, 1_u16),
            Self::Console => (CONSOLE_PORT, 1),
            Self::Name => (PORT_NAME, 1),
            Self::Size => (RESIZE, 1),
            Self::Open => (PORT_OPEN, 1),
            Self::Close => (PORT_OPEN, 0),
        };
        let mut message = Vec::with_capacity(HEADER + name.len());
        message.extend(port.to_le_bytes());
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        match self {
            Self::Name => message.extend(name.as_bytes()),
            // As specified. Linux before 6.15 takes them the other way round.
            Self::Size => {
                message.extend(columns.to_le_bytes());
                message.extend(rows.to_le_bytes());
            }
            _ => {}
        }
        message
    }
}

/// What both sides know of a port.
#[derive(Debug, Default)]
pub(super) struct PortControl {
    /// The driver has set it up.
    ready: bool,
    /// A program in the guest has it open.
    guest_open: bool,
    /// The driver was told that somebody is at the other end, and not yet that he has gone.
    told_open: bool,
    /// The [`Notice`]s to give.
    pending: u8,
}

impl PortControl {
    fn want(&mut self, notice: Notice, yes: bool) {
        if yes {
            self.pending |= notice.bit();
        } else {
            self.pending &= !notice.bit();
        }
    }

    /// The driver starts from nothing.
    pub(super) fn device_ready(&mut self) {
        *self = Self::default();
        self.want(Notice::Add, true);
    }

    /// The driver has set the port up, or failed to.
    pub(super) fn port_ready(&mut self, yes: bool, console: bool, named: bool, sized: bool) {
        self.ready = yes;
        self.want(Notice::Console, yes && console);
        self.want(Notice::Name, yes && named);
        self.want(Notice::Size, yes && console && sized);
    }

    /// A program in the guest opens or closes it.
    pub(super) fn set_guest_open(&mut self, yes: bool) {
        self.guest_open = yes;
    }

    /// The window has a new size.
    pub(super) fn resized(&mut self, console: bool) {
        if self.ready && console {
            self.want(Notice::Size, true);
        }
    }

    /// Whether somebody is at the other end now. A client that goes is always told of before the next is let in.
    pub(super) fn set_connected(&mut self, yes: bool) {
        self.want(Notice::Open, self.ready && yes && !self.told_open);
        self.want(Notice::Close, self.told_open && !yes);
    }

    /// Whether a new client may be let in.
    pub(super) fn admits_client(&self) -> bool {
        !self.told_open
    }

    /// Whether a program in the guest has it open.
    pub(super) fn is_guest_open(&self) -> bool {
        self.guest_open
    }

    /// Whether data may go to the guest: it listens, and knows to whom.
    pub(super) fn delivers(&self) -> bool {
        self.guest_open && self.told_open
    }

    /// The next thing to tell the driver.
    pub(super) fn next(&self) -> Option<Notice> {
        Notice::ALL
            .into_iter()
            .find(|notice| self.pending & notice.bit() != 0)
    }

    /// The driver was told.
    pub(super) fn told(&mut self, notice: Notice) {
        self.want(notice, false);
        match notice {
            Notice::Open => self.told_open = true,
            Notice::Close => self.told_open = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(control: &mut PortControl) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Some(notice) = control.next() {
            control.told(notice);
            notices.push(notice);
        }
        notices
    }

    #[test]
    fn a_port_comes_up_and_clients_come_and_go() {
        let mut control = PortControl::default();
        control.set_connected(true);
        assert_eq!(drain(&mut control), [], "nobody to tell");
        control.device_ready();
        assert_eq!(drain(&mut control), [Notice::Add]);
        control.port_ready(true, true, true, true);
        control.set_connected(true);
        use Notice::{Close, Console, Name, Open, Size};
        assert_eq!(drain(&mut control), [Console, Name, Size, Open]);
        assert!(!control.delivers());
        control.set_guest_open(true);
        assert!(control.delivers() && !control.admits_client());
        control.set_connected(false);
        assert!(!control.admits_client(), "not before the driver knows");
        assert_eq!(drain(&mut control), [Close]);
        assert!(control.admits_client() && !control.delivers());
        control.set_connected(true);
        control.set_connected(false);
        assert_eq!(drain(&mut control), []);
        control.resized(false);
        assert_eq!(drain(&mut control), []);
        control.resized(true);
        assert_eq!(drain(&mut control), [Size]);
    }

    #[test]
    fn messages_are_as_specified() {
        assert_eq!(
            Notice::Name.encode(3, "a.b", [0, 0]),
            b"\x03\0\0\0\x07\0\x01\0a.b"
        );
        assert_eq!(
            Notice::Size.encode(0, "x", [80, 25]),
            b"\0\0\0\0\x05\0\x01\0\x50\0\x19\0"
        );
        assert_eq!(
            Notice::Close.encode(1, "x", [1, 1]),
            b"\x01\0\0\0\x06\0\0\0"
        );
        let decode = Request::decode;
        assert_eq!(
            decode(*b"\xff\xff\xff\xff\0\0\x01\0"),
            Some(Request::DeviceReady)
        );
        assert_eq!(decode(*b"\xff\xff\xff\xff\0\0\0\0"), None);
        assert_eq!(
            decode(*b"\x02\0\0\0\x03\0\0\0"),
            Some(Request::PortReady(2, false))
        );
        assert_eq!(
            decode(*b"\x02\0\0\0\x06\0\x01\0"),
            Some(Request::PortOpen(2, true))
        );
    }

    proptest! {
        #[test]
        fn the_driver_sees_open_and_close_in_turns(steps in prop::collection::vec((0u8..6, any::<bool>()), 0..60)) {
            let mut control = PortControl::default();
            let mut open = false;
            for (step, yes) in steps {
                match step {
                    0 => { control.device_ready(); open = false; }
                    1 => control.port_ready(yes, yes, true, true),
                    2 => control.set_guest_open(yes),
                    3 => control.resized(yes),
                    _ => {}
                }
                control.set_connected(yes);
                if step == 5 {
                    for notice in drain(&mut control) {
                        match notice {
                            Notice::Open => { prop_assert!(!open); open = true; }
                            Notice::Close => { prop_assert!(open); open = false; }
                            _ => {}
                        }
                    }
                }
            }
        }
    }
}
