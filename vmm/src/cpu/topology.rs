//! Sockets, cores and threads, and the APIC ids that carry them.
//!
//! An APIC id is three fields, each as wide as its count needs: socket, core, thread. Counts that are not a power of two
//! leave gaps between ids, which is what hardware does too, and what keeps every level a shift away for the guest.

use crate::layout::MAX_VCPUS;

/// The highest APIC id of 8 bits that is not the broadcast id.
const APIC_ID_MAX: u32 = 254;

/// How vCPUs are arranged. Valid by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

/// Why vCPUs cannot be arranged so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A count is zero.
    #[error("{sockets} sockets of {cores} cores of {threads} threads: each must be at least 1")]
    Zero {
        /// Sockets asked for.
        sockets: u32,
        /// Cores of a socket asked for.
        cores: u32,
        /// Threads of a core asked for.
        threads: u32,
    },
    /// More vCPUs than 8-bit APIC ids.
    #[error("{0} vCPUs, at most {MAX_VCPUS} are possible: use fewer")]
    TooMany(u64),
    /// The gaps between ids take them beyond 8 bits.
    #[error(
        "the last vCPU's APIC id would be {0}, at most {APIC_ID_MAX} is possible: use fewer vCPUs, or make cores and threads powers of two"
    )]
    ApicId(u32),
}

/// A vCPU's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Socket, from 0.
    pub socket: u32,
    /// Core in its socket, from 0.
    pub core: u32,
    /// Thread in its core, from 0.
    pub thread: u32,
}

/// Bits that tell `count` things apart.
const fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

impl Topology {
    /// `sockets` of `cores` each of `threads` each.
    ///
    /// # Errors
    /// When a count is zero, or there are more vCPUs than APIC ids.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        if sockets == 0 || cores == 0 || threads == 0 {
            return Err(TopologyError::Zero {
                sockets,
                cores,
                threads,
            });
        }
        let cpus = u64::from(sockets)
            .saturating_mul(cores.into())
            .saturating_mul(threads.into());
        if cpus > MAX_VCPUS.into() {
            return Err(TopologyError::TooMany(cpus));
        }
        let this = Self {
            sockets,
            cores,
            threads,
        };
        let last = this.apic_id(this.cpus() - 1);
        if last > APIC_ID_MAX {
            return Err(TopologyError::ApicId(last));
        }
        Ok(this)
    }

    /// vCPUs in all.
    #[must_use]
    pub const fn cpus(&self) -> u32 {
        self.sockets * self.cpus_per_socket()
    }

    /// vCPUs of one socket.
    #[must_use]
    pub const fn cpus_per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// Threads of one core.
    #[must_use]
    pub const fn threads(&self) -> u32 {
        self.threads
    }

    /// How far to shift an APIC id right to lose the thread.
    #[must_use]
    pub const fn core_shift(&self) -> u32 {
        width(self.threads)
    }

    /// How far to shift an APIC id right to lose thread and core.
    #[must_use]
    pub const fn socket_shift(&self) -> u32 {
        width(self.threads) + width(self.cores)
    }

    /// Where the vCPU `index` sits: threads of a core are neighbours, then cores of a socket.
    #[must_use]
    pub const fn place(&self, index: u32) -> Place {
        Place {
            socket: index / self.cpus_per_socket(),
            core: index / self.threads % self.cores,
            thread: index % self.threads,
        }
    }

    /// The APIC id of the vCPU `index`; also KVM's id for it.
    #[must_use]
    pub const fn apic_id(&self, index: u32) -> u32 {
        let place = self.place(index);
        place.socket << self.socket_shift() | place.core << self.core_shift() | place.thread
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn apic_ids_are_unique_and_in_order_for_every_count() {
        for (sockets, threads) in [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3)] {
            for cores in 1..=254 {
                let Ok(topology) = Topology::new(sockets, cores, threads) else {
                    continue;
                };
                let ids: Vec<_> = (0..topology.cpus()).map(|i| topology.apic_id(i)).collect();
                assert!(
                    ids.windows(2).all(|pair| pair[0] < pair[1]),
                    "{topology:?} {ids:?}"
                );
                assert!(ids.iter().all(|&id| id <= APIC_ID_MAX));
                let sockets_seen: BTreeSet<_> =
                    ids.iter().map(|id| id >> topology.socket_shift()).collect();
                assert_eq!(sockets_seen.len(), usize::try_from(sockets).unwrap());
            }
        }
        assert_eq!(Topology::new(1, 254, 1).unwrap().cpus(), 254);
    }

    #[test]
    fn powers_of_two_leave_no_gaps_and_others_do() {
        let dense = Topology::new(2, 4, 2).unwrap();
        assert_eq!(
            (0..16).map(|i| dense.apic_id(i)).collect::<Vec<_>>(),
            (0..16).collect::<Vec<_>>()
        );
        let gaps = Topology::new(2, 3, 1).unwrap();
        assert_eq!(
            (0..6).map(|i| gaps.apic_id(i)).collect::<Vec<_>>(),
            [0, 1, 2, 4, 5, 6]
        );
        assert_eq!(
            gaps.place(4),
            Place {
                socket: 1,
                core: 1,
                thread: 0
            }
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(
            Topology::new(1, 0, 1),
            Err(TopologyError::Zero {
                sockets: 1,
                cores: 0,
                threads: 1
            })
        );
        assert_eq!(Topology::new(1, 255, 1), Err(TopologyError::TooMany(255)));
        assert_eq!(
            Topology::new(u32::MAX, u32::MAX, u32::MAX),
            Err(TopologyError::TooMany(u64::MAX))
        );
        assert_eq!(Topology::new(3, 65, 1), Err(TopologyError::ApicId(320)));
        assert!(Topology::new(2, 65, 1).is_ok());
    }
}
