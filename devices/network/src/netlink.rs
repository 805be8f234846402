//! Synchronous rtnetlink: one request, one answer, a deadline. For setting up a handful of links while a VM is built,
//! before any async runtime is needed, and small enough for a privileged helper.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use netlink_packet_core::Nla;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, InfoTun, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily as Family, RouteNetlinkMessage};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::address::InterfaceName;
use crate::probe::VlanRange;

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

    /// The VLANs of all bridges' ports, and of the bridges themselves, by interface.
    pub(crate) fn bridge_vlans(&mut self) -> io::Result<BTreeMap<String, Vec<VlanRange>>> {
        let mut message = LinkMessage::default();
        message.header.interface_family = Family::Bridge;
        message.attributes.push(LinkAttribute::ExtMask(vec![
            LinkExtentMask::BrvlanCompressed,
        ]));
        self.send(RouteNetlinkMessage::GetLink(message), NLM_F_DUMP)?;
        let mut vlans = BTreeMap::new();
        let mut buffer = vec![0; ANSWER_SIZE];
        loop {
            let length = self.receive(&mut buffer)?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if collect_vlans(bytes, self.sequence, &mut vlans)? {
                return Ok(vlans);
            }
        }
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.send(message, flags)?;
        self.answer()
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// One datagram; returns its length.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            return match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, length)) if length > buffer.len() => Err(Errno::MSGSIZE.into()),
                Ok((_, length)) => Ok(length),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn answer(&self) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut buffer = vec![0; ANSWER_SIZE];
        loop {
            let length = self.receive(&mut buffer)?;
            let answer = parse(buffer.get(..length).unwrap_or_default())?;
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

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Takes the VLANs out of one datagram of a dump. True if it was the last.
fn collect_vlans(
    mut bytes: &[u8],
    sequence: u32,
    vlans: &mut BTreeMap<String, Vec<VlanRange>>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = parse(bytes)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        // Each message begins at a multiple of four. One without a length would be read for ever.
        let step = length.max(1).checked_next_multiple_of(4);
        bytes = step.and_then(|step| bytes.get(step..)).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                let name = link
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name.clone()),
                        _ => None,
                    });
                if let Some(name) = name {
                    vlans.entry(name).or_default().extend(ranges(&link));
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

/// The VLANs in a message about a port: single ones, and pairs that begin and end a range.
fn ranges(link: &LinkMessage) -> Vec<VlanRange> {
    let parts = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(parts) => Some(parts),
            _ => None,
        });
    let mut begun = None;
    let mut ranges = Vec::new();
    for part in parts.flatten() {
        let AfSpecBridge::VlanInfo(info) = part else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begun = Some(info.vid);
            continue;
        }
        let first = begun.take().unwrap_or(info.vid);
        ranges.push(VlanRange {
            first,
            last: info.vid,
            pvid: info.flags.contains(BridgeVlanInfoFlags::Pvid),
        });
    }
    ranges
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::DoneMessage;
    use netlink_packet_route::link::BridgeVlanInfo;

    use super::*;

    fn message(sequence: u32, payload: NetlinkPayload<RouteNetlinkMessage>) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn port(
        name: &str,
        vlans: &[(u16, BridgeVlanInfoFlags)],
    ) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut link = LinkMessage::default();
        link.header.interface_family = Family::Bridge;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let parts = vlans
            .iter()
            .map(|&(vid, flags)| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }));
        // The kernel leaves an empty list out.
        if !vlans.is_empty() {
            link.attributes
                .push(LinkAttribute::AfSpecBridge(parts.collect()));
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
    }

    #[test]
    fn vlans_of_ports() {
        let none = BridgeVlanInfoFlags::empty();
        let first = [
            message(1, port("late", &[(9, none)])),
            message(
                7,
                port(
                    "eth0",
                    &[
                        (1, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged),
                        (100, BridgeVlanInfoFlags::RangeBegin),
                        (200, BridgeVlanInfoFlags::RangeEnd),
                        (300, none),
                    ],
                ),
            ),
            message(7, port("tap0", &[])),
        ]
        .concat();
        let mut vlans = BTreeMap::new();
        assert!(!collect_vlans(&first, 7, &mut vlans).unwrap());
        let last = message(7, NetlinkPayload::Done(DoneMessage::default()));
        assert!(collect_vlans(&last, 7, &mut vlans).unwrap());
        let range = |first, last, pvid| VlanRange { first, last, pvid };
        assert_eq!(
            vlans,
            BTreeMap::from([
                (
                    "eth0".to_owned(),
                    vec![
                        range(1, 1, true),
                        range(100, 200, false),
                        range(300, 300, false)
                    ]
                ),
                ("tap0".to_owned(), Vec::new()),
            ])
        );
    }

    #[test]
    fn this_kernel_answers_the_dump() {
        // Whatever bridges it has; a dump that is not understood to its end would run into the deadline.
        let loopback = Netlink::open().unwrap().bridge_vlans().unwrap();
        assert!(!loopback.contains_key("lo"));
    }

    #[test]
    fn cut_messages_are_an_error() {
        let whole = message(7, port("eth0", &[(1, BridgeVlanInfoFlags::empty())]));
        for length in 1..whole.len() - 4 {
            assert!(
                collect_vlans(&whole[..length], 7, &mut BTreeMap::new()).is_err(),
                "{length}"
            );
        }
    }
}
