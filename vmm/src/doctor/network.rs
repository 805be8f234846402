//! What NICs need: the tun driver, the right to make taps, a network below that lets the guests' frames pass. Bridges are
//! [`super::bridge`]'s.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;

use paddock_network::NetworkErrorKind;
use paddock_network::probe::{self, TunFeatures, VlanRange};

use super::access::{self, Owner};
use super::bridge;
use super::chain;
use super::host::{CAP_NET_ADMIN, Host, Identity};
use super::hypervisor::{Cloud, Hypervisor, Platform};
use super::report::{Check, Fix, Group};

const TUN: &str = "/dev/net/tun";
const VHOST_NET: &str = "/dev/vhost-net";

/// What the kernel answered.
#[derive(Debug)]
pub struct Facts {
    /// Whose the tun device is, if it is there.
    pub tun_owner: Option<Owner>,
    /// What opening it gave.
    pub tun: Result<TunFeatures, Refusal>,
    /// Whose the vhost-net device is, if it is there.
    pub vhost_owner: Option<Owner>,
    /// What opening it gave.
    pub vhost: io::Result<()>,
    /// The VLANs of the bridges' ports.
    pub vlans: Result<Vlans, String>,
}

/// The VLANs of bridges and of their ports, by interface.
pub type Vlans = BTreeMap<String, Vec<VlanRange>>;

/// Why there is no tun driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its stable kind.
    pub kind: NetworkErrorKind,
    /// The error.
    pub text: String,
}

impl Facts {
    /// Opens the devices and closes them again.
    #[must_use]
    pub fn gather() -> Self {
        Self {
            tun_owner: Owner::of(TUN),
            tun: probe::tun().map_err(|error| Refusal {
                kind: error.kind(),
                text: chain(&error),
            }),
            vhost_owner: Owner::of(VHOST_NET),
            vhost: OpenOptions::new()
                .read(true)
                .write(true)
                .open(VHOST_NET)
                .map(drop),
            vlans: probe::bridge_vlans().map_err(|error| chain(&error)),
        }
    }
}

/// Looks at the devices, the rights and the bridges.
#[must_use]
pub fn examine(host: &Host, platform: &Platform, who: Option<&Identity>, facts: &Facts) -> Group {
    let mut checks = vec![
        tun(host, who, facts),
        net_admin(host, who),
        vhost_net(host, who, facts),
    ];
    checks.extend(bridge::examine(host, facts.vlans.as_ref()));
    checks.extend(netfilter(host));
    checks.extend(foreign_addresses(platform));
    Group {
        name: "network",
        title: "Network",
        checks,
    }
}

fn tun(host: &Host, who: Option<&Identity>, facts: &Facts) -> Check {
    const NAME: &str = "tun";
    const MEANS: &str = "VMs with a NIC are refused; others run.";
    let check = match (&facts.tun, who) {
        (Ok(features), _) if !features.vnet_header => Check::missing(
            NAME,
            format!("{TUN} opens, but frames carry no virtio-net header"),
            MEANS,
        )
        .fix(Fix::text("Boot a newer kernel.")),
        (Ok(features), _) if !features.multi_queue => Check::degraded(
            NAME,
            format!("{TUN} opens, with one queue a tap"),
            "A NIC with several queues (--net …,queues=N) is refused.",
        )
        .fix(Fix::text("Boot Linux 3.8 or later.")),
        (Ok(_), _) => Check::ok(NAME, format!("{TUN} opens, taps with several queues")),
        (Err(refusal), Some(who)) if refusal.kind == NetworkErrorKind::Permission => {
            let owner = facts.tun_owner;
            let found = format!(
                "{TUN} may not be opened: {}",
                access::describe(host, owner, who)
            );
            Check::missing(NAME, found, MEANS).fix(access::fix(host, TUN, owner, who))
        }
        (Err(refusal), _) => {
            let text = "As root, load the driver; a container must have the device passed in:";
            Check::missing(NAME, refusal.text.clone(), MEANS).fix(Fix::commands(
                text,
                [
                    "modprobe tun".to_owned(),
                    "echo tun > /etc/modules-load.d/tun.conf".to_owned(),
                    format!("docker run --device {TUN} ..."),
                ],
            ))
        }
    };
    let features = facts.tun.as_ref().ok();
    check
        .fact("accessible", features.is_some())
        .fact("vnet_header", features.is_some_and(|f| f.vnet_header))
        .fact("multi_queue", features.is_some_and(|f| f.multi_queue))
}

fn net_admin(host: &Host, who: Option<&Identity>) -> Check {
    const NAME: &str = "net-admin";
    let Some(who) = who else {
        return Check::unknown(
            NAME,
            "/proc/self/status does not tell this process's capabilities",
            "Without CAP_NET_ADMIN a NIC on a bridge is refused.",
        );
    };
    let has = who.has(CAP_NET_ADMIN);
    if has {
        Check::ok(NAME, "CAP_NET_ADMIN: Paddock can make taps on bridges")
    } else {
        let user = who.name(host);
        Check::missing(
            NAME,
            "no CAP_NET_ADMIN",
            "--net bridge=… is refused, for it makes a tap; --net tap=… works, on a tap made for this user.",
        )
        .fix(Fix::commands(
            "As root, make this user a tap on the bridge, or give Paddock the capability:",
            [
                format!("ip tuntap add dev tap0 mode tap multi_queue vnet_hdr user {user}"),
                "ip link set tap0 master br0 up".to_owned(),
                "setcap cap_net_admin+ep \"$(command -v paddock)\"".to_owned(),
                "AmbientCapabilities=CAP_NET_ADMIN    # in a systemd unit".to_owned(),
            ],
        ))
    }
    .fact("cap_net_admin", has)
}

/// Nothing falls back here: this version does not use it.
fn vhost_net(host: &Host, who: Option<&Identity>, facts: &Facts) -> Check {
    const NAME: &str = "vhost-net";
    const MEANS: &str =
        "Nothing for now: this version of Paddock moves a NIC's frames itself in any case.";
    let check = match (&facts.vhost, who) {
        (Ok(()), _) => Check::ok(NAME, format!("{VHOST_NET} opens")),
        (Err(error), Some(who))
            if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) =>
        {
            let owner = facts.vhost_owner;
            let found = format!(
                "{VHOST_NET} may not be opened: {}",
                access::describe(host, owner, who)
            );
            Check::missing(NAME, found, MEANS).fix(access::fix(host, VHOST_NET, owner, who))
        }
        (Err(error), _) => {
            let found = match error.raw_os_error() {
                Some(libc::ENOENT) => format!("no {VHOST_NET}"),
                Some(libc::ENODEV | libc::ENXIO) => format!("{VHOST_NET} has no driver"),
                _ => format!("{VHOST_NET} cannot be opened: {error}"),
            };
            Check::missing(NAME, found, MEANS)
                .fix(Fix::commands("As root:", ["modprobe vhost_net"]))
        }
    };
    check.fact("accessible", facts.vhost.is_ok())
}

/// The host's packet filter looks into bridges: Docker's default drops what it does not know.
fn netfilter(host: &Host) -> Option<Check> {
    const NAME: &str = "bridge-netfilter";
    const SWITCH: &str = "net.bridge.bridge-nf-call-iptables";
    let on = host.switch("/proc/sys/net/bridge/bridge-nf-call-iptables")?;
    let check = if on {
        Check::degraded(
            NAME,
            "the host's iptables rules see frames that only cross a bridge",
            "A FORWARD policy of DROP, such as Docker's, keeps VMs from each other and from the network, and each frame costs more.",
        )
        .fix(Fix::commands(
            "As root, unless something relies on it (Kubernetes' kube-proxy with bridged pods does):",
            [
                format!("sysctl -w {SWITCH}=0"),
                format!("echo {SWITCH}=0 > /etc/sysctl.d/65-paddock-bridge.conf"),
            ],
        ))
    } else {
        Check::ok(NAME, "iptables leaves frames on bridges alone")
    };
    Some(check.fact("call_iptables", on))
}

/// The network below knows this host's MAC address and may drop frames of others.
fn foreign_addresses(platform: &Platform) -> Option<Check> {
    const WHY: &str = "cannot be seen from inside; this host is a VM, and its guests have MAC addresses of their own";
    const MEANS: &str = "Unless the virtual switch below lets them pass, VMs on a bridge with an uplink reach this host and each other, \
                         and nobody else; VLAN tags may be dropped, too.";
    let fix = match (&platform.hypervisor, platform.cloud) {
        (Hypervisor::None | Hypervisor::Kvm | Hypervisor::Tcg, None) => return None,
        (_, Some(Cloud::Aws | Cloud::Google | Cloud::Azure)) => Fix::text(
            "Clouds drop frames of MAC addresses that they did not give. Route or NAT the VMs' addresses on this host, or use an overlay.",
        ),
        (Hypervisor::VMware, None) => Fix::commands(
            "In vSphere, on the port group of this VM: with a distributed switch of 6.6 or later, switch on MAC learning and \
             forged transmits; with a standard switch set these three to Accept. For VLANs, make it VLAN 4095 (standard) or a trunk \
             (distributed).",
            [
                "esxcli network vswitch standard portgroup policy security set -p PORTGROUP \
                 --allow-promiscuous=true --allow-forged-transmits=true --allow-mac-change=true",
                "esxcli network vswitch standard portgroup set -p PORTGROUP --vlan-id 4095",
            ],
        ),
        (Hypervisor::HyperV, None) => Fix::commands(
            "In PowerShell on the host below, as administrator; the second for VLANs:",
            [
                "Set-VMNetworkAdapter -VMName NAME -MacAddressSpoofing On",
                "Set-VMNetworkAdapterVlan -VMName NAME -Trunk -AllowedVlanIdList 1-4094 -NativeVlanId 0",
            ],
        ),
        (Hypervisor::VirtualBox, None) => Fix::commands(
            "On the host below, with this VM powered off:",
            ["VBoxManage modifyvm NAME --nicpromisc1 allow-all"],
        ),
        _ => Fix::text(
            "In the settings of the hypervisor below, let this machine's NIC send and receive for other MAC addresses (promiscuous \
             mode, MAC spoofing).",
        ),
    };
    Some(Check::unknown("foreign-addresses", WHY, MEANS).fix(fix))
}
