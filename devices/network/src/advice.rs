//! Commands that mend a host, in one place, so that errors and `paddock doctor` name the same ones.

/// Makes a bridge that keeps VLANs apart.
#[must_use]
pub fn make_bridge(name: &str) -> String {
    format!("ip link add {name} up type bridge vlan_filtering 1")
}

/// Makes a bridge that is there keep VLANs apart.
#[must_use]
pub fn switch_vlan_filtering_on(bridge: &str) -> String {
    format!("ip link set {bridge} type bridge vlan_filtering 1")
}
