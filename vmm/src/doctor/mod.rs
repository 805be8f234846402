//! What this host offers to VMs and what it lacks, with what would mend it: `paddock doctor`.
//!
//! First everything is asked that takes more than reading a file: `Facts`. Then functions without side effects judge that and
//! the host's files, a module a group, so that tests make up hosts. The questions are put by the code that would use the answers,
//! where there is any: an image and a tap are opened by the same functions, a VM is built by the same steps.
//!
//! Nothing is changed: taps are not made, a file that is tried with has no name. Runs on the command's thread, and on threads of
//! its own for what may hang. What the host's files and its firmware say may be anything; it is parsed with doubt, and made
//! printable before it is printed.

mod access;
mod bridge;
mod calls;
mod cgroup;
mod firmware;
mod host;
mod hypervisor;
mod kvm;
mod limits;
mod memory;
mod migration;
mod network;
mod patience;
mod print;
mod processor;
pub mod report;
mod storage;
#[cfg(test)]
mod testing;
mod time;
mod trial;

use std::io;
use std::path::PathBuf;

use host::{Host, Identity};
use hypervisor::{Platform, Signatures};
pub use print::{Style, print};
use report::Report;

use crate::error::chain;

/// What the processor and the kernel answered.
#[derive(Debug)]
struct Facts {
    signatures: Signatures,
    kvm: kvm::Facts,
    firmware: firmware::Facts,
    userfaultfd: io::Result<()>,
    network: network::Facts,
    storage: storage::Facts,
    synchronized: Option<bool>,
}

impl Facts {
    fn gather(directories: &[PathBuf]) -> Self {
        Self {
            signatures: Signatures::read(),
            kvm: kvm::Facts::gather(),
            firmware: firmware::Facts::gather(),
            userfaultfd: calls::userfaultfd(),
            network: network::Facts::gather(),
            storage: storage::Facts::gather(directories),
            synchronized: calls::clock_is_synchronized(),
        }
    }
}

/// Looks at this host, and at file systems by directories in them. Takes up to half a minute where something hangs, as a rule far
/// less than a second.
#[must_use]
pub fn examine(directories: &[PathBuf]) -> Report {
    judge(&Host::live(), &Facts::gather(directories))
}

fn judge(host: &Host, facts: &Facts) -> Report {
    let platform = Platform::of(host, &facts.signatures);
    let who = Identity::of(host);
    let who = who.as_ref();
    let groups = vec![
        processor::examine(host, &platform),
        kvm::examine(host, &platform, who, &facts.kvm),
        firmware::examine(&facts.kvm, &facts.firmware),
        memory::examine(host),
        storage::examine(host, &facts.storage),
        network::examine(host, &platform, who, &facts.network),
        limits::examine(host),
        time::examine(host, facts.synchronized),
        migration::examine(host, who, &facts.kvm, &facts.userfaultfd),
    ];
    Report::new(host.text("/proc/sys/kernel/osrelease"), groups)
}

#[cfg(test)]
mod tests;
