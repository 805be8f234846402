//! Taps and bridges on a real kernel. Needs root, `ip` and `bridge` (iproute2), and a kernel with bridge VLAN filtering: run in
//! the lab. Each test has a network namespace of its own, so it leaves nothing behind on the host, whatever happens.

#![cfg(feature = "lab-tests")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod create;
mod existing;
mod frames;
mod passed;
mod sandbox;

use paddock_network::{BridgePort, NetworkError, Tap, TapSource, VlanId};

/// Opens an existing tap.
fn existing(name: &str, queue_pairs: u16) -> Result<Tap, NetworkError> {
    let name = name.parse()?;
    Tap::open(&TapSource::Existing { name }, queue_pairs)
}

/// A tap to be made on `bridge`.
fn port(bridge: &str) -> BridgePort {
    BridgePort {
        bridge: bridge.parse().unwrap(),
        tap: None,
        vlan: None,
        mtu: None,
    }
}

/// The same, in a VLAN.
fn access(bridge: &str, vlan: u16) -> BridgePort {
    BridgePort {
        vlan: Some(VlanId::try_from(vlan).unwrap()),
        ..port(bridge)
    }
}

fn make(port: &BridgePort, queue_pairs: u16) -> Result<Tap, NetworkError> {
    Tap::open(&TapSource::Bridge(port.clone()), queue_pairs)
}

/// The error's message and what is below it.
fn message(error: &NetworkError) -> String {
    let below = std::error::Error::source(error).map(|e| format!(": {e}"));
    format!("{error}{}", below.unwrap_or_default())
}
