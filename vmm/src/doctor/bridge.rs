//! The bridges of this network namespace: whether a NIC on one would reach anything, and whether it keeps VLANs apart.

use std::collections::BTreeSet;

use paddock_network::advice;
use paddock_network::probe::VlanRange;

use super::host::Host;
use super::network::Vlans;
use super::report::{Check, Fix};

/// `IFF_UP` in an interface's `flags`.
const UP: u64 = 1;
const VLAN_OPTION: &str = "CONFIG_BRIDGE_VLAN_FILTERING=y";
const NO_VLANS: &str =
    "--net bridge=…,vlan=… is refused, for nothing would be kept apart; NICs without a VLAN work.";

/// Two rows a bridge; one that says so if there is none.
#[must_use]
pub fn examine(host: &Host, vlans: Result<&Vlans, &String>) -> Vec<Check> {
    if let Some(name) = elsewhere(host) {
        return vec![
            Check::unknown(
                "bridge",
                format!(
                    "the /sys here is another network namespace's: {name} is in one of them only"
                ),
                "Bridges may be there, and --net bridge=… work; they cannot be looked at.",
            )
            .fix(Fix::commands(
                "Enter the namespace in a way that brings its own /sys, or mount it:",
                [
                    "ip netns exec NAME paddock doctor",
                    "mount -t sysfs sysfs /sys",
                ],
            )),
        ];
    }
    let bridges: Vec<_> = host
        .list("/sys/class/net")
        .into_iter()
        .filter(|name| host.exists(&format!("/sys/class/net/{name}/bridge")))
        .map(|name| Bridge::of(host, name))
        .collect();
    if bridges.is_empty() {
        return std::iter::once(no_bridge()).chain(unable(host)).collect();
    }
    bridges
        .iter()
        .flat_map(|bridge| [bridge.state(), bridge.vlans(vlans)])
        .collect()
}

/// An interface that only one of the two shows, the files of this process's network namespace and sysfs, for that was mounted in
/// another namespace.
fn elsewhere(host: &Host) -> Option<String> {
    let text = host.text("/proc/self/net/dev")?;
    let ours: BTreeSet<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    let shown: BTreeSet<_> = host
        .list("/sys/class/net")
        .into_iter()
        // Beside the interfaces there are files of their drivers.
        .filter(|name| host.exists(&format!("/sys/class/net/{name}/mtu")))
        .collect();
    ours.symmetric_difference(&shown).next().cloned()
}

fn no_bridge() -> Check {
    Check::missing(
        "bridge",
        "no bridge in this network namespace",
        "There is nothing that --net bridge=… could put a NIC on.",
    )
    .fix(Fix::commands(
        "As root, with the name of this host's NIC for eth0; its addresses belong on the bridge from then on:",
        [
            advice::make_bridge("br0"),
            "ip link set eth0 master br0".to_owned(),
        ],
    ))
}

/// A kernel whose configuration says that no bridge of it will filter, told before one is made. Where there is no configuration to
/// be read, the first bridge shows.
fn unable(host: &Host) -> Option<Check> {
    let release = host.text("/proc/sys/kernel/osrelease")?;
    // A name from the kernel, but still no path.
    let release = (!release.contains('/')).then_some(release)?;
    let configuration = host.text(&format!("/boot/config-{release}"))?;
    let able = configuration.lines().any(|line| line.trim() == VLAN_OPTION);
    (!able).then(|| kernel_cannot_filter().fact("vlan_filtering", None::<bool>))
}

fn kernel_cannot_filter() -> Check {
    Check::missing(
        "vlan-filtering",
        "this kernel's bridges cannot filter VLANs",
        NO_VLANS,
    )
    .fix(Fix::commands(
        "Boot a kernel that can, such as Debian's; its configuration has",
        [VLAN_OPTION],
    ))
}

struct Bridge {
    name: String,
    up: bool,
    mtu: Option<u64>,
    stp: bool,
    /// In hundredths of a second, as the kernel has it.
    forward_delay: u64,
    /// `None` where the kernel cannot filter.
    vlan_filtering: Option<bool>,
    default_pvid: Option<u64>,
    ports: Vec<Port>,
}

struct Port {
    name: String,
    mtu: Option<u64>,
    /// A tap, so most likely a VM's.
    tap: bool,
}

impl Bridge {
    fn of(host: &Host, name: String) -> Self {
        let path = format!("/sys/class/net/{name}");
        let number = |file: &str| host.number(&format!("{path}/{file}"));
        let ports = host.list(&format!("{path}/brif"));
        Self {
            up: host
                .text(&format!("{path}/flags"))
                .and_then(|flags| u64::from_str_radix(flags.trim_start_matches("0x"), 16).ok())
                .is_none_or(|flags| flags & UP != 0),
            mtu: number("mtu"),
            stp: number("bridge/stp_state").is_some_and(|state| state != 0),
            forward_delay: number("bridge/forward_delay").unwrap_or(0),
            vlan_filtering: host.switch(&format!("{path}/bridge/vlan_filtering")),
            default_pvid: number("bridge/default_pvid"),
            ports: ports
                .into_iter()
                .map(|port| Port {
                    mtu: host.number(&format!("/sys/class/net/{port}/mtu")),
                    tap: host.exists(&format!("/sys/class/net/{port}/tun_flags")),
                    name: port,
                })
                .collect(),
            name,
        }
    }

    fn uplinks(&self) -> Vec<&str> {
        self.ports
            .iter()
            .filter(|port| !port.tap)
            .map(|port| port.name.as_str())
            .collect()
    }

    /// A port that is no tap, and takes smaller frames than the bridge promises.
    fn narrow(&self) -> Option<(&Port, u64, u64)> {
        let promised = self.mtu?;
        let port = self
            .ports
            .iter()
            .filter(|port| !port.tap)
            .min_by_key(|port| port.mtu.unwrap_or(u64::MAX))?;
        let has = port.mtu.filter(|has| *has < promised)?;
        Some((port, has, promised))
    }

    fn state(&self) -> Check {
        const NAME: &str = "bridge";
        let name = &self.name;
        let check = if !self.up {
            Check::degraded(NAME, "it is down", "It passes nothing until it is raised.").fix(
                Fix::commands("As root:", [format!("ip link set {name} up")]),
            )
        } else if let Some((port, has, promised)) = self.narrow() {
            Check::degraded(
                NAME,
                format!("its MTU is {promised}, that of its port {} only {has}", port.name),
                format!("VMs take the bridge's MTU: their frames of more than {has} bytes are lost at {}.", port.name),
            )
            .fix(Fix::commands(
                "As root, widen the port (if the network behind it carries so much) or narrow the bridge:",
                [
                    format!("ip link set {} mtu {promised}", port.name),
                    format!("ip link set {name} mtu {has}"),
                ],
            ))
        } else if self.stp {
            let seconds = self.forward_delay.saturating_mul(2) / 100;
            Check::degraded(
                NAME,
                "it speaks the spanning tree protocol",
                format!("A new NIC passes nothing for its first {seconds} s; DHCP of a quick guest fails."),
            )
            .fix(Fix::commands(
                "As root, if no loop is possible behind it:",
                [format!("ip link set {name} type bridge stp_state 0")],
            ))
        } else {
            let uplinks = self.uplinks();
            if uplinks.is_empty() {
                Check::ok(NAME, "it is up, without an uplink")
                    .means("VMs on it reach each other and this host.")
            } else {
                Check::ok(NAME, format!("it is up, with {}", uplinks.join(", ")))
            }
        };
        check
            .about(name)
            .fact("up", self.up)
            .fact("mtu", self.mtu)
            .fact("stp", self.stp)
            .fact("ports", self.ports.len())
            .fact("uplinks", self.uplinks())
    }

    fn vlans(&self, vlans: Result<&Vlans, &String>) -> Check {
        const NAME: &str = "vlan-filtering";
        let name = &self.name;
        let check = match self.vlan_filtering {
            Some(true) => match vlans {
                Ok(vlans) => self.filtering(NAME, vlans),
                Err(error) => Check::ok(
                    NAME,
                    format!("it keeps VLANs apart; who is in which is not known: {error}"),
                ),
            },
            Some(false) => Check::missing(NAME, "it is off", NO_VLANS).fix(Fix::commands(
                "As root. Ports that are there keep the default VLAN, so untagged traffic goes on:",
                [advice::switch_vlan_filtering_on(name)],
            )),
            None => kernel_cannot_filter(),
        };
        check
            .about(name)
            .fact("vlan_filtering", self.vlan_filtering)
            .fact("default_pvid", self.default_pvid)
    }

    /// The VLANs that taps are in, and nobody else.
    fn stranded<'a>(&'a self, vlans: &'a Vlans) -> Vec<(&'a str, u16)> {
        let of = |name: &str| vlans.get(name).map_or(&[][..], Vec::as_slice);
        let mut carriers = self.uplinks();
        if carriers.is_empty() {
            return Vec::new(); // Nothing on this bridge is to leave the host.
        }
        // The host itself may be the one they are to reach.
        carriers.push(&self.name);
        let taps = self.ports.iter().filter(|port| port.tap);
        taps.filter_map(|tap| {
            let own = of(&tap.name).iter().find(|range| range.pvid)?.first;
            let carried = carriers
                .iter()
                .any(|carrier| of(carrier).iter().any(|range| range.contains(own)));
            (!carried).then_some((tap.name.as_str(), own))
        })
        .collect()
    }

    fn filtering(&self, name: &'static str, vlans: &Vlans) -> Check {
        let carried: Vec<_> = self
            .uplinks()
            .into_iter()
            .map(|uplink| (uplink, list(vlans.get(uplink).map_or(&[], Vec::as_slice))))
            .collect();
        let stranded = self.stranded(vlans);
        let check =
            if stranded.is_empty() {
                let carries: String = carried
                    .iter()
                    .map(|(uplink, vlans)| format!("; {uplink} carries {vlans}"))
                    .collect();
                Check::ok(name, format!("it keeps VLANs apart{carries}"))
            } else {
                let who: Vec<_> = stranded
                    .iter()
                    .map(|(tap, vlan)| format!("VLAN {vlan} of {tap}"))
                    .collect();
                let mut missing: Vec<_> = stranded.iter().map(|(_, vlan)| *vlan).collect();
                missing.sort_unstable();
                missing.dedup();
                let uplink = carried.first().map_or("UPLINK", |(uplink, _)| *uplink);
                Check::degraded(
                name,
                format!("it keeps VLANs apart, but no uplink carries {}", who.join(", ")),
                "VMs in such a VLAN reach each other, and nothing beyond this host.",
            )
            .fix(Fix::commands(
                "As root, unless that is meant; the switch behind the uplink must carry it, too:",
                missing
                    .into_iter()
                    .map(|vlan| format!("bridge vlan add dev {uplink} vid {vlan}")),
            ))
            };
        let facts: serde_json::Map<_, _> = carried
            .into_iter()
            .map(|(uplink, vlans)| (uplink.to_owned(), vlans.into()))
            .collect();
        check.fact("uplink_vlans", facts)
    }
}

/// "1, 100-200", or "no VLAN".
fn list(ranges: &[VlanRange]) -> String {
    if ranges.is_empty() {
        return "no VLAN".to_owned();
    }
    let words: Vec<_> = ranges
        .iter()
        .map(|range| match (range.first, range.last) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    words.join(", ")
}
