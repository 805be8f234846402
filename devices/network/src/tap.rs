//! Taps: opened by name, or made as a port of a bridge. Runs on the control plane while a VM is built; the queues are then
//! read and written by device workers.
//!
//! A tap that Paddock makes is not persistent: it goes with its last descriptor, however the process ends, and takes
//! its place on the bridge and its VLANs with it. An existing tap is left as it was found.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::address::{InterfaceName, VlanId};
use crate::backend::{Backend, HEADER_SIZE, Offloads};
use crate::error::{NetworkError, NetworkErrorKind as Kind};
use crate::ioctl;
use crate::netlink::{Link, LinkKind, Netlink, TapState};
use crate::port::Bridge;

/// Where a tap comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapSource {
    /// It is there already; needs no privilege if it belongs to this process's user.
    Existing {
        /// Its name.
        name: InterfaceName,
    },
    /// It is made as a port of a bridge; needs CAP_NET_ADMIN.
    Bridge(BridgePort),
}

/// A tap to be made on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// The bridge, which must be there.
    pub bridge: InterfaceName,
    /// What to call the tap; `None` takes a free `pdk` number. A name that is taken is an error.
    pub tap: Option<InterfaceName>,
    /// The access VLAN: the guest's untagged frames are in it, and it gets no others. `None` leaves what the bridge gives a port.
    pub vlan: Option<VlanId>,
    /// The tap's MTU in bytes, at least 68; `None` takes the bridge's.
    pub mtu: Option<u16>,
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    name: InterfaceName,
    queues: Vec<OwnedFd>,
    mtu: Option<u16>,
    supported: Offloads,
    /// How many queues are attached. Locked by the control plane and by control queues, never on the way of a frame.
    active: Mutex<usize>,
}

/// The kernel's `MAX_TAP_QUEUES`.
const MAX_QUEUES: u16 = 256;
/// How long a tap may stay busy: its last owner may be just ending, or in between the fork and the exec of a child.
const LETTING_GO: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(20);
/// The smallest MTU an IPv4 host may have.
const MIN_MTU: u16 = 68;
/// Frames with a virtio-net header and nothing else in front.
const TAP_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

impl Tap {
    /// Opens or makes the tap, with `queue_pairs` queues (1 to 256).
    ///
    /// # Errors
    /// Says what is wrong with the tap or bridge and, where it can, the command that mends it.
    pub fn open(source: &TapSource, queue_pairs: u16) -> Result<Self, NetworkError> {
        let name: &dyn fmt::Display = match source {
            TapSource::Existing { name } => name,
            TapSource::Bridge(port) => &port.bridge,
        };
        if !(1..=MAX_QUEUES).contains(&queue_pairs) {
            return Err(NetworkError::new(
                Kind::InvalidSetting,
                name,
                format!("a tap has 1 to {MAX_QUEUES} queue pairs, not {queue_pairs}"),
            ));
        }
        let mut netlink = Netlink::open().map_err(|e| {
            NetworkError::new(Kind::Host, name, "asking the kernel about it failed").because(e)
        })?;
        match source {
            TapSource::Existing { name } => {
                let patience = Instant::now() + LETTING_GO;
                loop {
                    match Self::open_existing(&mut netlink, name, queue_pairs) {
                        Err(error) if error.kind() == Kind::Busy && Instant::now() < patience => {
                            std::thread::sleep(RETRY);
                        }
                        result => return result,
                    }
                }
            }
            TapSource::Bridge(port) => Self::create(&mut netlink, port, queue_pairs),
        }
    }

    /// Takes queues that somebody else opened and attached, one for each queue pair. `subject` is what to call them in errors.
    ///
    /// Needs no privilege at all. The MTU is known only if the interface is in this network namespace.
    ///
    /// # Errors
    /// Says which of them is no queue of a tap as Paddock needs it: with virtio-net headers, without packet information, and
    /// with several queues, of one tap with several.
    pub fn adopt(queues: Vec<OwnedFd>, subject: &dyn fmt::Display) -> Result<Self, NetworkError> {
        let wrong = |kind, message: String| NetworkError::new(kind, subject, message);
        let mut attached = None;
        for (index, queue) in queues.iter().enumerate() {
            let (name, flags) = ioctl::attached_to(queue.as_fd()).map_err(|e| {
                let message = format!("descriptor {} of it is no tap's queue; open /dev/net/tun and attach it with TUNSETIFF", index + 1);
                wrong(Kind::WrongType, message).because(e)
            })?;
            check_flags(flags, queues.len() > 1)
                .map_err(|(kind, message)| wrong(kind, format!("{name}: {message}")))?;
            match &attached {
                Some(first) if *first != name => {
                    let message =
                        format!("its descriptors are of different taps, {first} and {name}");
                    return Err(wrong(Kind::WrongType, message));
                }
                _ => attached = Some(name),
            }
            rustix::io::ioctl_fionbio(queue, true).map_err(|e| {
                wrong(Kind::Host, "making it non-blocking failed".to_owned()).because(e)
            })?;
        }
        let Some(name) = attached else {
            return Err(wrong(
                Kind::InvalidSetting,
                "there is no descriptor".to_owned(),
            ));
        };
        let name: InterfaceName = name.parse()?;
        // It may be in another network namespace, and this process may not be allowed to ask.
        let found = Netlink::open()
            .ok()
            .and_then(|mut netlink| find_tap(&mut netlink, &name).ok());
        if found.as_ref().is_some_and(|(link, _)| !link.up) {
            tracing::warn!(tap = %name, "the tap is down and will pass nothing until it is raised");
        }
        let mtu = found.and_then(|(link, _)| mtu_of(&link));
        Self::with_queues(name, queues, mtu)
    }

    /// The tap's name.
    #[must_use]
    pub fn interface(&self) -> &InterfaceName {
        &self.name
    }

    fn open_existing(
        netlink: &mut Netlink,
        name: &InterfaceName,
        queue_pairs: u16,
    ) -> Result<Self, NetworkError> {
        // Checked first, for TUNSETIFF would make what is not there.
        let (link, state) = find_tap(netlink, name)?;
        if queue_pairs > 1 && !state.multi_queue {
            return Err(NetworkError::new(
                Kind::WrongQueueMode,
                name,
                format!(
                    "the tap has a single queue and {queue_pairs} are asked for; ask for one queue pair, or make it with: \
                     ip tuntap add dev {name} mode tap multi_queue"
                ),
            ));
        }
        if state.queues > 0 {
            return Err(busy(name));
        }
        let mode = if state.multi_queue {
            libc::IFF_MULTI_QUEUE
        } else {
            0
        };
        let mut queues = Vec::with_capacity(usize::from(queue_pairs));
        for _ in 0..queue_pairs {
            let tun = open_tun(name)?;
            ioctl::attach(&tun, name.as_str(), TAP_FLAGS | mode)
                .map_err(|e| attach_failed(name, e))?;
            queues.push(tun);
        }
        // What was looked at may have been replaced, or joined by another process, before it was attached to.
        let (after, state) = find_tap(netlink, name)?;
        if after.index != link.index {
            return Err(NetworkError::new(
                Kind::NotFound,
                name,
                "the tap was deleted while it was being opened",
            ));
        }
        if state.multi_queue && state.queues != u32::from(queue_pairs) {
            return Err(busy(name));
        }
        if !after.up {
            tracing::warn!(tap = %name, "the tap is down and will pass nothing until it is raised");
        }
        Self::with_queues(name.clone(), queues, mtu_of(&after))
    }

    fn create(
        netlink: &mut Netlink,
        port: &BridgePort,
        queue_pairs: u16,
    ) -> Result<Self, NetworkError> {
        if let Some(mtu) = port.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetworkError::new(
                Kind::InvalidSetting,
                &port.bridge,
                format!("an MTU of {mtu} is too small for IP, which needs {MIN_MTU}"),
            ));
        }
        let bridge = Bridge::find(netlink, &port.bridge, port.vlan)?;
        let wanted = port.tap.as_ref().map_or("pdk%d", InterfaceName::as_str);
        let mode = if queue_pairs > 1 {
            libc::IFF_MULTI_QUEUE
        } else {
            0
        };
        let first = open_tun(&wanted)?;
        let got = ioctl::attach(&first, wanted, TAP_FLAGS | mode | libc::IFF_TUN_EXCL)
            .map_err(|e| create_failed(wanted, e))?;
        let name: InterfaceName = got.parse()?;
        let mut queues = vec![first];
        for _ in 1..queue_pairs {
            let tun = open_tun(&name)?;
            ioctl::attach(&tun, name.as_str(), TAP_FLAGS | mode)
                .map_err(|e| attach_failed(&name, e))?;
            queues.push(tun);
        }
        let (link, _) = find_tap(netlink, &name)?;
        let mtu = port.mtu.or(bridge.mtu);
        bridge.add_port(netlink, &name, link.index, port.vlan, mtu)?;
        let (link, _) = find_tap(netlink, &name)?;
        Self::with_queues(name, queues, mtu_of(&link))
    }

    fn with_queues(
        name: InterfaceName,
        queues: Vec<OwnedFd>,
        mtu: Option<u16>,
    ) -> Result<Self, NetworkError> {
        let host = |doing: &str, e: io::Error| {
            NetworkError::new(Kind::Host, &name, format!("{doing} failed")).because(e)
        };
        let mut supported = Offloads::NONE;
        if let Some(tun) = queues.first() {
            let size = i32::try_from(HEADER_SIZE).unwrap_or(i32::MAX);
            ioctl::set_header_size(tun.as_fd(), size)
                .map_err(|e| host("setting the size of its virtio-net header", e))?;
            supported = probe_offloads(tun.as_fd());
            ioctl::set_offloads(tun.as_fd(), 0)
                .map_err(|e| host("switching its offloads off", e))?;
        }
        let active = Mutex::new(queues.len());
        Ok(Self {
            name,
            queues,
            mtu,
            supported,
            active,
        })
    }
}

impl Backend for Tap {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn queue_pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(MAX_QUEUES)
    }

    fn queue(&self, pair: u16) -> Option<BorrowedFd<'_>> {
        self.queues.get(usize::from(pair)).map(AsFd::as_fd)
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn supported_offloads(&self) -> Offloads {
        self.supported
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let tun = self.queues.first().ok_or(io::ErrorKind::NotFound)?;
        ioctl::set_offloads(tun.as_fd(), offloads.bits())
    }

    fn set_active_queues(&self, pairs: u16) -> io::Result<()> {
        let wanted = usize::from(pairs).clamp(1, self.queues.len().max(1));
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        // One at a time, so that `active` stays true if the kernel refuses one.
        while *active < wanted {
            ioctl::set_queue_active(self.queues[*active].as_fd(), true)?;
            *active += 1;
        }
        while *active > wanted {
            ioctl::set_queue_active(self.queues[*active - 1].as_fd(), false)?;
            *active -= 1;
        }
        Ok(())
    }
}

/// Whether a queue was attached as [`TAP_FLAGS`] say.
fn check_flags(flags: i32, several: bool) -> Result<(), (Kind, String)> {
    let fail = |kind, message: &str| Err((kind, message.to_owned()));
    if flags & libc::IFF_TAP == 0 {
        return fail(Kind::WrongType, "it is a tun, not a tap");
    }
    if flags & libc::IFF_NO_PI == 0 || flags & libc::IFF_VNET_HDR == 0 {
        return fail(
            Kind::InvalidSetting,
            "it was not attached with IFF_NO_PI and IFF_VNET_HDR; attach it with both",
        );
    }
    if several && flags & libc::IFF_MULTI_QUEUE == 0 {
        return fail(
            Kind::WrongQueueMode,
            "it was not attached with IFF_MULTI_QUEUE, and several descriptors were given",
        );
    }
    Ok(())
}

/// The offloads the kernel takes for a tap, largest set first: USO is refused before Linux 6.2.
fn probe_offloads(tun: BorrowedFd<'_>) -> Offloads {
    let tso = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::TSO_ECN;
    [tso | Offloads::USO, tso, Offloads::CSUM]
        .into_iter()
        .find(|set| ioctl::set_offloads(tun, set.bits()).is_ok())
        .unwrap_or(Offloads::NONE)
}

fn mtu_of(link: &Link) -> Option<u16> {
    link.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn find_tap(netlink: &mut Netlink, name: &InterfaceName) -> Result<(Link, TapState), NetworkError> {
    let link = netlink.link(name).map_err(|e| {
        NetworkError::new(Kind::Host, name, "asking the kernel about it failed").because(e)
    })?;
    let Some(link) = link else {
        return Err(NetworkError::new(
            Kind::NotFound,
            name,
            format!(
                "there is no such tap in this network namespace; make it with: ip tuntap add dev {name} mode tap"
            ),
        ));
    };
    let kind = match &link.kind {
        LinkKind::Tap(state) => {
            let state = *state;
            return Ok((link, state));
        }
        LinkKind::Bridge { .. } => "bridge",
        LinkKind::Other(kind) => kind.as_deref().unwrap_or("device"),
    };
    Err(NetworkError::new(
        Kind::WrongType,
        name,
        format!("it is a {kind}, not a tap"),
    ))
}

pub(crate) fn open_tun(tap: &dyn fmt::Display) -> Result<OwnedFd, NetworkError> {
    ioctl::open_tun().map_err(|error| {
        let device = ioctl::TUN_DEVICE;
        let (kind, message) = match error.raw_os_error() {
            Some(libc::ENOENT) => (
                Kind::NoTunDevice,
                format!(
                    "{device} is missing; make it with: modprobe tun, and in a container pass the device in"
                ),
            ),
            Some(libc::ENODEV | libc::ENXIO) => (
                Kind::NoTunDevice,
                format!("{device} has no driver; load it with: modprobe tun"),
            ),
            Some(libc::EACCES | libc::EPERM) => (
                Kind::Permission,
                format!("this process may not open {device}; it needs read and write access to it"),
            ),
            _ => (Kind::Host, format!("opening {device} failed")),
        };
        NetworkError::new(kind, tap, message).because(error)
    })
}

fn busy(name: &InterfaceName) -> NetworkError {
    NetworkError::new(
        Kind::Busy,
        name,
        "another process has the tap open; one VM's NIC needs a tap of its own",
    )
}

fn attach_failed(name: &InterfaceName, error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        Some(libc::EBUSY) => busy(name),
        Some(libc::EPERM | libc::EACCES) => NetworkError::new(
            Kind::Permission,
            name,
            format!(
                "the tap belongs to another user; make it with: ip tuntap add dev {name} mode tap user USER, or run with CAP_NET_ADMIN"
            ),
        ),
        _ => NetworkError::new(Kind::Host, name, "attaching to the tap failed"),
    }
    .because(error)
}

fn create_failed(name: &str, error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        // With IFF_TUN_EXCL: EBUSY for a tap, EINVAL for an interface of another kind.
        Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => NetworkError::new(
            Kind::AlreadyExists,
            &name,
            format!("there is an interface of this name; choose another, or delete it with: ip link del {name}"),
        ),
        Some(libc::EPERM | libc::EACCES) => NetworkError::new(
            Kind::Permission,
            &name,
            "making a tap needs CAP_NET_ADMIN; run with it, or let someone who has it make the tap and name that one",
        ),
        _ => NetworkError::new(Kind::Host, &name, "making the tap failed"),
    }
    .because(error)
}
