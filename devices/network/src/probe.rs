//! What the host offers to NICs, asked in the way that opening one asks. Makes no interface and changes none.
//!
//! For `paddock doctor`; runs on its threads. Guests have no part in it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use crate::error::{NetworkError, NetworkErrorKind as Kind};
use crate::ioctl;
use crate::netlink::Netlink;
use crate::tap;

/// What the tun driver can do, of what Paddock uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunFeatures {
    /// Frames carry a virtio-net header, without which no NIC works.
    pub vnet_header: bool,
    /// A tap can have several queues.
    pub multi_queue: bool,
}

/// VLANs that a port of a bridge is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanRange {
    /// The first one.
    pub first: u16,
    /// The last one; of a single VLAN it is the first.
    pub last: u16,
    /// Untagged frames from the port are in it.
    pub pvid: bool,
}

impl VlanRange {
    /// Whether a VLAN is one of these.
    #[must_use]
    pub fn contains(&self, vlan: u16) -> bool {
        (self.first..=self.last).contains(&vlan)
    }
}

/// The VLANs of the ports of all bridges in this network namespace, and of the bridges themselves, by interface. Bridges that do
/// not filter have none.
///
/// # Errors
/// When the kernel does not tell.
pub fn bridge_vlans() -> Result<BTreeMap<String, Vec<VlanRange>>, NetworkError> {
    Netlink::open()
        .and_then(|mut netlink| netlink.bridge_vlans())
        .map_err(|error| {
            let doing = "asking the kernel for the VLANs of its ports failed";
            NetworkError::new(Kind::Host, &"bridges", doing).because(error)
        })
}

/// Opens the tun driver as a NIC would and asks what it can do.
///
/// # Errors
/// When it cannot be opened: what a NIC would be refused with.
pub fn tun() -> Result<TunFeatures, NetworkError> {
    let device = ioctl::TUN_DEVICE;
    let tun = tap::open_tun(&device)?;
    let flags = ioctl::features(tun.as_fd()).map_err(|error| {
        NetworkError::new(Kind::Host, &device, "asking the driver about itself failed")
            .because(error)
    })?;
    let has = |flag: libc::c_int| u32::try_from(flag).is_ok_and(|flag| flags & flag == flag);
    Ok(TunFeatures {
        vnet_header: has(libc::IFF_VNET_HDR),
        multi_queue: has(libc::IFF_MULTI_QUEUE),
    })
}
