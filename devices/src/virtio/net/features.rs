//! Which features a NIC offers, and what the negotiated ones let the host do.

use paddock_network::Offloads;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// What a NIC offers whatever its backend can do.
const ALWAYS: [u32; 7] = [
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
];

/// For each offload of the backend, the features it makes possible: transmit side, then receive side.
const BY_OFFLOAD: [(Offloads, &[u32]); 5] = [
    (
        Offloads::CSUM,
        &[
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        ],
    ),
    (
        Offloads::TSO4,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4],
    ),
    (
        Offloads::TSO6,
        &[VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (
        Offloads::TSO_ECN,
        &[VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_GUEST_ECN],
    ),
    (
        Offloads::USO,
        &[
            VIRTIO_NET_F_HOST_USO,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ],
    ),
];

/// The features that the CTRL_GUEST_OFFLOADS command may switch (§5.1.6.5.6.1): its argument uses their bits.
pub(super) const GUEST_OFFLOADS: [u32; 6] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// A set of feature bits.
pub(super) fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |all, bit| all | 1 << bit)
}

/// The features to offer.
pub(super) fn offered(supported: Offloads, multi_queue: bool, mtu: bool) -> u64 {
    let mut features = bits(&ALWAYS);
    for (offload, possible) in BY_OFFLOAD {
        if supported.contains(offload) {
            features |= bits(possible);
        }
    }
    if multi_queue {
        features |= bits(&[VIRTIO_NET_F_MQ]);
    }
    if mtu {
        features |= bits(&[VIRTIO_NET_F_MTU]);
    }
    features
}

/// What the host may leave unfinished in received frames if these features are on. Features without those they
/// depend on (§5.1.3.1) count as off, as the kernel takes them only together.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    let all = |wanted: &[u32]| features & bits(wanted) == bits(wanted);
    if !all(&[VIRTIO_NET_F_GUEST_CSUM]) {
        return Offloads::NONE;
    }
    let mut offloads = Offloads::CSUM;
    if all(&[VIRTIO_NET_F_GUEST_TSO4]) {
        offloads = offloads | Offloads::TSO4;
    }
    if all(&[VIRTIO_NET_F_GUEST_TSO6]) {
        offloads = offloads | Offloads::TSO6;
    }
    if offloads != Offloads::CSUM && all(&[VIRTIO_NET_F_GUEST_ECN]) {
        offloads = offloads | Offloads::TSO_ECN;
    }
    if all(&[VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6]) {
        offloads = offloads | Offloads::USO;
    }
    offloads
}
