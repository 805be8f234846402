//! What stands behind a NIC: taps, bridges and VLANs. Knows no virtio.
//!
//! [`Tap::open`] gives a [`Backend`]: queue pairs that carry whole Ethernet frames behind a 12-byte virtio-net header,
//! and the few things a NIC tells its host side (offloads, active queues). Everything here that can wait is called from
//! the control plane while a VM is built; the queues' descriptors are then read and written by device workers.
//!
//! A guest influences nothing in this crate but the arguments of [`Backend::set_offloads`] and
//! [`Backend::set_active_queues`], and the frames.

pub mod address;
pub mod advice;
mod backend;
#[cfg(feature = "test-utils")]
pub mod double;
mod error;
mod ioctl;
mod netlink;
mod port;
pub mod probe;
mod tap;

pub use address::{InterfaceName, MacAddress, VlanId};
pub use backend::{Backend, HEADER_SIZE, MAX_FRAME_SIZE, Offloads};
pub use error::{NetworkError, NetworkErrorKind};
pub use tap::{BridgePort, Tap, TapSource};
