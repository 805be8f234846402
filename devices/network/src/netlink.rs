//! Synchronous rtnetlink: one request, one answer, a deadline. For setting up a handful of links while a VM is built,
//! before any async runtime is needed, and small enough for a privileged helper.

use std::io;
use std::time::Duration;

use netlink_packet_core::Nla;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoTun, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage,
};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::address::InterfaceName;

/// The kernel answers while it is asked; a minute means that it hangs on a lock, and so would we.
const DEADLINE: Duration = Duration::from_secs(60);

/// Room for an answer about one link, which the kernel keeps below 32 KiB.
const ANSWER_SIZE: usize = 64 * 1024;

/// A conversation with the kernel's routing subsystem.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub up: bool,
    pub mtu: Option<u32>,
    pub kind: LinkKind,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkKind {
    Bridge {
        vlan_filtering: bool,
        default_pvid: u16,
    },
    Tap(TapState),
    /// Anything else, by the kernel's name for it; hardware and loopback have none.
    Other(Option<String>),
}

/// How a tap was made and who has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TapState {
    pub multi_queue: bool,
    /// How many queues are open, in use or detached. Known for multi-queue taps only.
    pub queues: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Looks a link up by name; `None` if there is none.
    pub(crate) fn link(&mut self, name: &InterfaceName) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_string()));
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewLink(answer))) => Ok(Some(describe(&answer))),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a change and waits until it is done.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_ACK).map(drop)
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        self.answer()
    }

    fn answer(&self) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut buffer = vec![0; ANSWER_SIZE];
        loop {
            let received = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC);
            let bytes = match received {
                Ok((_, length)) => buffer
                    .get(..length)
                    .ok_or(io::Error::from(Errno::MSGSIZE))?,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => return Err(errno.into()),
            };
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if answer.header.sequence_number != self.sequence {
                continue; // The late answer to a request that was given up.
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                _ => Ok(None),
            };
        }
    }
}

fn describe(message: &LinkMessage) -> Link {
    let mut mtu = None;
    let mut kind = LinkKind::Other(None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(value) => mtu = Some(*value),
            LinkAttribute::LinkInfo(infos) => kind = describe_kind(infos),
            _ => {}
        }
    }
    Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu,
        kind,
    }
}

fn describe_kind(infos: &[LinkInfo]) -> LinkKind {
    let name = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    match (name, data) {
        (Some(InfoKind::Bridge), Some(InfoData::Bridge(bridge))) => describe_bridge(bridge),
        (Some(InfoKind::Tun), Some(InfoData::Tun(tun))) => describe_tun(tun),
        (name, _) => LinkKind::Other(name.map(ToString::to_string)),
    }
}

fn describe_bridge(attributes: &[InfoBridge]) -> LinkKind {
    // A kernel without BRIDGE_VLAN_FILTERING does not mention either.
    let mut filtering = false;
    let mut pvid = 0;
    for attribute in attributes {
        match attribute {
            InfoBridge::VlanFiltering(on) => filtering = *on,
            InfoBridge::VlanDefaultPvid(vid) => pvid = *vid,
            _ => {}
        }
    }
    LinkKind::Bridge {
        vlan_filtering: filtering,
        default_pvid: pvid,
    }
}

// From the kernel's <linux/if_link.h>.
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
const TYPE_TAP: u8 = 2;

fn describe_tun(attributes: &[InfoTun]) -> LinkKind {
    let mut is_tap = false;
    let mut state = TapState::default();
    for attribute in attributes {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        let number = <[u8; 4]>::try_from(value.as_slice()).map_or(0, u32::from_ne_bytes);
        match attribute.kind() {
            IFLA_TUN_TYPE => is_tap = value == [TYPE_TAP],
            IFLA_TUN_MULTI_QUEUE => state.multi_queue = value == [1],
            IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES => {
                state.queues = state.queues.saturating_add(number);
            }
            _ => {}
        }
    }
    if is_tap {
        LinkKind::Tap(state)
    } else {
        LinkKind::Other(Some("tun".to_owned()))
    }
}
