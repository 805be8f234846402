//! What a disk does: requests a second that the guest's init counts, on the same block device of the host.
//!
//! The devices are RAM disks, one for each guest: they answer within the call that asks them, on the thread that does, so that what is
//! measured is the VMM's and the guest's doing, and no thread of the host's competes with theirs.
//!
//! The guests of all VMMs live through all rounds and take turns of a second, so that what else the machine does meets them alike.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::running::Measuring;
use super::vmm::{Disk, Guest, Vmm};
use super::{BenchError, Meter};

/// Bytes of the device.
const SIZE: u64 = 256 << 20;
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
        what: format!(
            "taking a RAM disk of {SIZE} bytes (modprobe brd rd_nr=8 rd_size={})",
            SIZE >> 10
        ),
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

/// The RAM disks that guests have.
static TAKEN: [AtomicBool; 8] = [const { AtomicBool::new(false) }; 8];

/// A RAM disk of the kernel's, for one guest while this lives.
struct RamDisk {
    number: usize,
    path: PathBuf,
}

impl RamDisk {
    fn new() -> io::Result<Self> {
        let number = TAKEN
            .iter()
            .position(|taken| !taken.swap(true, Ordering::Relaxed))
            .ok_or_else(|| io::Error::other("there are no more"))?;
        let this = Self {
            number,
            path: format!("/dev/ram{number}").into(),
        };
        this.fill()?;
        Ok(this)
    }

    /// Writes all of it: what was never written costs nothing to read.
    fn fill(&self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            // Not one that somebody has mounted.
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(&self.path)?;
        if file.seek(SeekFrom::End(0))? < SIZE {
            return Err(io::Error::other("it is too small"));
        }
        file.rewind()?;
        for _ in 0..SIZE >> 16 {
            file.write_all(&[0xa5; 1 << 16])?;
        }
        file.sync_all()
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        TAKEN[self.number].store(false, Ordering::Relaxed);
    }
}
