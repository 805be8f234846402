//! Making a fresh tap a port of a bridge, in an order that lets no frame pass before its VLAN is set.
//!
//! A new port is given the bridge's default PVID, mostly VLAN 1, the moment it is enslaved. It stays down, so it forwards
//! nothing, until that entry is gone and its own VLAN is in place. All of it disappears with the tap.

use std::io;

use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet6, AfSpecUnspec, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags,
    In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::address::{InterfaceName, MacAddress, VlanId};
use crate::advice;
use crate::error::{NetworkError, NetworkErrorKind as Kind};
use crate::netlink::{Link, LinkKind, Netlink};

/// A bridge that is there and fit for what is asked of it.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    name: InterfaceName,
    index: u32,
    default_pvid: u16,
    /// The MTU a port gets if nobody says another.
    pub mtu: Option<u16>,
}

impl Bridge {
    /// Finds the bridge and checks that it can keep `vlan` apart.
    pub(crate) fn find(
        netlink: &mut Netlink,
        name: &InterfaceName,
        vlan: Option<VlanId>,
    ) -> Result<Self, NetworkError> {
        let link = netlink
            .link(name)
            .map_err(|e| failed(name, "looking it up", e))?;
        let Some(Link {
            index,
            up,
            mtu,
            kind,
        }) = link
        else {
            return Err(NetworkError::new(
                Kind::NotFound,
                name,
                format!(
                    "there is no such bridge; make it with: {}",
                    advice::make_bridge(name.as_str())
                ),
            ));
        };
        let (vlan_filtering, default_pvid) = match kind {
            LinkKind::Bridge {
                vlan_filtering,
                default_pvid,
            } => (vlan_filtering, default_pvid),
            LinkKind::Tap(_) => return Err(not_a_bridge(name, "tap")),
            LinkKind::Other(kind) => {
                return Err(not_a_bridge(name, kind.as_deref().unwrap_or("device")));
            }
        };
        if let (Some(vlan), false) = (vlan, vlan_filtering) {
            return Err(NetworkError::new(
                Kind::VlanFilteringOff,
                name,
                format!(
                    "its vlan_filtering is off, so VLAN {vlan} would keep nothing apart; \
                     switch it on with: {}",
                    advice::switch_vlan_filtering_on(name.as_str())
                ),
            ));
        }
        if !up {
            tracing::warn!(bridge = %name, "the bridge is down and will forward nothing until it is raised");
        }
        Ok(Self {
            name: name.clone(),
            index,
            default_pvid,
            mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        })
    }

    /// Makes the interface a port: enslaved, with its VLAN and MTU, and only then raised.
    pub(crate) fn add_port(
        &self,
        netlink: &mut Netlink,
        tap: &InterfaceName,
        index: u32,
        vlan: Option<VlanId>,
        mtu: Option<u16>,
    ) -> Result<(), NetworkError> {
        quiet_ipv6(netlink, tap, index);
        // A bridge without an address of its own takes its lowest port's, and so would change it as VMs come and go.
        let mut address = MacAddress::random()?.bytes();
        address[0] = 0xfe;
        let mut attributes = vec![LinkAttribute::Address(address.to_vec())];
        if let Some(mtu) = mtu {
            attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        }
        netlink
            .change(set_link(index, attributes))
            .map_err(|e| match (e.raw_os_error(), mtu) {
                (Some(libc::EINVAL), Some(mtu)) => NetworkError::new(
                    Kind::InvalidSetting,
                    tap,
                    format!("the kernel does not take an MTU of {mtu} for a tap"),
                )
                .because(e),
                _ => failed(tap, "setting its address and MTU", e),
            })?;
        netlink
            .change(set_link(index, vec![LinkAttribute::Controller(self.index)]))
            .map_err(|e| failed(tap, &format!("making it a port of {}", self.name), e))?;
        if let Some(vlan) = vlan {
            self.set_access_vlan(netlink, index, vlan)
                .map_err(|e| failed(tap, &format!("putting it into VLAN {vlan}"), e))?;
        }
        raise(netlink, index).map_err(|e| failed(tap, "raising it", e))
    }

    /// Leaves `vlan`, untagged, as the port's only VLAN.
    fn set_access_vlan(&self, netlink: &mut Netlink, index: u32, vlan: VlanId) -> io::Result<()> {
        if self.default_pvid != 0 && self.default_pvid != vlan.get() {
            let info = BridgeVlanInfo {
                flags: BridgeVlanInfoFlags::empty(),
                vid: self.default_pvid,
            };
            let message = RouteNetlinkMessage::DelLink(port_vlan(index, info));
            match netlink.change(message) {
                // The default PVID was changed since it was read.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        let info = BridgeVlanInfo {
            flags: BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            vid: vlan.get(),
        };
        netlink.change(RouteNetlinkMessage::SetLink(port_vlan(index, info)))
    }
}

/// Keeps the host from giving the tap a link-local address and from greeting the guest with neighbour discovery.
fn quiet_ipv6(netlink: &mut Netlink, tap: &InterfaceName, index: u32) {
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let message = set_link(index, vec![LinkAttribute::AfSpecUnspec(vec![inet6])]);
    if let Err(error) = netlink.change(message) {
        // A host without IPv6 has nothing to keep quiet.
        tracing::debug!(tap = %tap, %error, "IPv6 address generation left as it is");
    }
}

fn raise(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

fn set_link(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

fn port_vlan(index: u32, info: BridgeVlanInfo) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecBridge(vec![
        AfSpecBridge::Flags(BridgeFlag::Controller),
        AfSpecBridge::VlanInfo(info),
    ])];
    message
}

fn not_a_bridge(name: &InterfaceName, kind: &str) -> NetworkError {
    NetworkError::new(
        Kind::WrongType,
        name,
        format!("it is a {kind}, not a bridge"),
    )
}

fn failed(name: &InterfaceName, doing: &str, error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetworkError::new(
            Kind::Permission,
            name,
            format!(
                "{doing} needs CAP_NET_ADMIN; run with it, or let someone who has it make the tap and name that one"
            ),
        ),
        _ => NetworkError::new(Kind::Host, name, format!("{doing} failed")),
    }
    .because(error)
}
