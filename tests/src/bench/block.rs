//! What a disk does: requests a second that the guest's init counts, on the same block device of the host.
//!
//! The device is a loop device on a file in memory, so that all of it is the VMM's and the kernel's doing; each guest has one of its own.
//!
//! The guests of all VMMs live through all rounds and take turns of a second, so that what else the machine does meets them alike.

use std::path::PathBuf;
use std::process::Command;

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
    let device = Loop::new()?;
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
    _device: Loop,
}

impl Measured {
    fn value(&mut self) -> Result<f64, BenchError> {
        self.guest.value()
    }
}

/// A loop device that goes with this.
struct Loop {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new() -> Result<Self, BenchError> {
        let failed = |source| BenchError::Host {
            what: "making a loop device".to_owned(),
            source,
        };
        let file = tempfile::NamedTempFile::new().map_err(failed)?;
        // Filled: what was never written costs nothing to read.
        let mut left = SIZE;
        while left > 0 {
            let chunk = [0xa5; 1 << 16];
            std::io::Write::write_all(&mut file.as_file(), &chunk).map_err(failed)?;
            left -= chunk.len() as u64;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output()
            .map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(failed(std::io::Error::other(said)));
        }
        let path = String::from_utf8_lossy(&output.stdout).trim().into();
        Ok(Self { path, _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}
