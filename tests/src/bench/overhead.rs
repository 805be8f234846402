//! What a VM costs besides its RAM: the VMM's proportional set size (PSS) once the guest is idle and the API is up, less what of it is guest RAM.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use super::BenchError;
use super::vmm::{Disk, Guest, Vmm};
use crate::memory::sum_besides_ram;

/// Guest RAM in MiB.
const MEMORY: u64 = 256;
/// How long the guest is left alone before its VMM is weighed.
const IDLE: Duration = Duration::from_secs(3);
const TAP: &str = "bench0";

/// What is weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// All memory.
    All,
    /// Anonymous memory: what no page cache can give back.
    Anonymous,
}

/// MiB.
pub(super) fn measure(vmm: &Vmm, kind: Kind) -> Result<f64, BenchError> {
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| BenchError::Host { what, source }
    };
    let directory = tempfile::tempdir().map_err(host("making a temporary directory"))?;
    let disk = directory.path().join("disk.raw");
    let file = std::fs::File::create(&disk).map_err(host("making a disk image"))?;
    file.set_len(1 << 30).map_err(host("making a disk image"))?;
    let _tap = Tap::new()?;
    let guest = Guest {
        memory: MEMORY,
        // The file is on a tmpfs, which cannot do without the page cache.
        disk: Some(Disk {
            path: disk,
            direct: false,
        }),
        tap: Some(TAP.to_owned()),
        api: Some(directory.path().join("api.sock")),
        ..Guest::default()
    };
    let (running, _) = vmm.boot(&guest)?;
    sleep(IDLE);
    let field = match kind {
        Kind::All => "Pss:",
        Kind::Anonymous => "Anonymous:",
    };
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", running.pid()))
        .map_err(host("reading the VMM's memory map"))?;
    let kibibytes = sum_besides_ram(&smaps, field, MEMORY << 20);
    // Less than 2^32 KiB.
    #[expect(clippy::cast_precision_loss)]
    Ok(kibibytes as f64 / 1024.0)
}

/// A tap that nobody listens on.
struct Tap;

impl Tap {
    fn new() -> Result<Self, BenchError> {
        let command = format!("ip tuntap add {TAP} mode tap vnet_hdr && ip link set {TAP} up");
        let status = Command::new("sh").args(["-c", &command]).status();
        let failed = |source| BenchError::Host {
            what: format!("making the tap {TAP}"),
            source,
        };
        match status {
            Ok(status) if status.success() => Ok(Self),
            Ok(status) => Err(failed(std::io::Error::other(status.to_string()))),
            Err(source) => Err(failed(source)),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", TAP]).status();
    }
}
