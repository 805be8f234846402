//! What a disk does: requests a second that the guest's init counts, on block devices of the host that are alike, one for each guest.
//!
//! The guests of all VMMs live through all rounds and take turns of a second, so that what else the machine does meets them alike.

use super::ram_disk::RamDisk;
use super::running::Measuring;
use super::vmm::{Disk, Guest, Vmm};
use super::{BenchError, Meter};

/// How long the guest counts, in seconds.
const SLICE: u32 = 1;

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// Requests of 4 KiB a second, `depth` at a time.
pub(super) fn meter(vmm: &Vmm, kind: Kind, depth: u32) -> Result<Meter, BenchError> {
    let device = RamDisk::new().map_err(|source| BenchError::Host {
        what: "taking a RAM disk".to_owned(),
        source,
    })?;
    let kind = match kind {
        Kind::Read => "read",
        Kind::Write => "write",
    };
    let measuring = vmm.measuring(&Guest {
        memory: 256,
        disk: Some(Disk {
            path: device.path.clone(),
            direct: true,
        }),
        task: Some(format!("{kind}:{depth}:{SLICE}:/dev/vda")),
        ..Guest::default()
    })?;
    let mut measured = Measured {
        guest: measuring,
        _device: device,
    };
    Ok(Box::new(move || measured.value()))
}

/// A guest and its device, dropped in this order: the VMM has the device open.
struct Measured {
    guest: Measuring,
    _device: RamDisk,
}

impl Measured {
    fn value(&mut self) -> Result<f64, BenchError> {
        self.guest.value()
    }
}
