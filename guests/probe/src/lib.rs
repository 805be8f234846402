//! What a test on the host and the program inside a test guest have in common.
//!
//! [`protocol`] is the line protocol spoken over the virtio console port [`PORT_NAME`]; [`blocks`] and [`stream`]
//! make and check the data that travels through disks and networks, so that both sides judge it by the same code;
//! `client` (the feature of that name) is the host's end. The guest's end is the binary `paddock-probe`. [`hostile`] is a driver
//! that attacks the devices it is given.
//!
//! Nothing here trusts its input: the host reads what a guest wrote, and the other way round.

pub mod blocks;
#[cfg(feature = "client")]
pub mod client;
pub mod hostile;
pub mod protocol;
pub mod stream;

/// Name of the virtio console port over which host and probe talk.
pub const PORT_NAME: &str = "paddock.probe";
