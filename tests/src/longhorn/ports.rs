//! Ports of this machine for a replica or an engine, which no other test of this or another process is given meanwhile.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports of a range that may be used: a replica's three and those of its sync agent.
const COUNT: u16 = 10;
/// From one range to the next. The last port of a range is held for as long as it is used.
const STEP: u16 = 16;
/// The ranges: below the ports that the kernel gives to whoever asks for any.
const FIRST: u16 = 20_000;
const RANGES: u16 = 750;

/// A range of ports.
#[derive(Debug)]
pub(super) struct Ports {
    first: u16,
    _held: TcpListener,
}

impl Ports {
    /// How many of them are a sync agent's: what Longhorn's manager gives a replica, less the replica's own three.
    pub(super) const SYNC_AGENT: u16 = COUNT - 3;

    /// A range that nobody uses.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn free() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes begin at different places, for they look for free ranges at the same time.
        let start = std::process::id() % u32::from(RANGES);
        for _ in 0..RANGES {
            let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let range = u16::try_from((start + next) % u32::from(RANGES)).unwrap_or(0);
            let first = FIRST + range * STEP;
            if let Ok(held) = TcpListener::bind(at(first + STEP - 1)) {
                if (first..first + COUNT).all(|port| TcpListener::bind(at(port)).is_ok()) {
                    return Self { first, _held: held };
                }
            }
        }
        panic!("no free range of {COUNT} ports from {FIRST} on");
    }

    /// One of them, as an address of this machine.
    pub(super) fn address(&self, number: u16) -> SocketAddr {
        assert!(number < COUNT, "port {number} of a range of {COUNT}");
        at(self.first + number)
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranges_do_not_meet() {
        let (one, other) = (Ports::free(), Ports::free());
        assert!(one.first.abs_diff(other.first) >= STEP);
        let taken = TcpListener::bind(one.address(COUNT - 1)).is_ok();
        assert!(taken, "a range's ports are its owner's");
    }
}
