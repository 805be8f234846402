//! Stock UEFI firmware, which every VMM runs as it is: from power-on or a reset to what the firmware loads.
//!
//! It is Debian 13's, with the variables that its package comes with, so that the first boot fills their flash, as that of a new VM does.
//! Each measurement has a copy of the disk and of the variables: every boot is that of a new VM, and no file system has to be repaired.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::BenchError;
use super::vmm::{Disk, Firmware, Guest, Vmm};
use crate::files;
use crate::firmware::{CODE, Suite};

const SUITE: Suite = Suite::Trixie;
const VARIABLES: &str = "OVMF_VARS_4M.fd";

/// What the EFI application says when it starts, the first and the second time, and before it does what ends its first run.
const STARTED: &str = "EFI-APP-START boots=1";
const ENDS: &str = "EFI-APP-OK boots=1";
const STARTED_AGAIN: &str = "EFI-APP-START boots=2";
/// What Debian says on the serial port when all of it is up.
const LOGIN: &str = "login:";

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the VMM's start to an EFI application.
    Application,
    /// From a reset to the same one.
    Reset,
    /// From the VMM's start to a distribution's login.
    Debian,
}

/// Seconds.
pub(super) fn measure(vmm: &Vmm, kind: Kind) -> Result<f64, BenchError> {
    let directory = tempfile::tempdir().map_err(|source| BenchError::Host {
        what: "making a temporary directory".to_owned(),
        source,
    })?;
    let (image, memory) = match kind {
        Kind::Application | Kind::Reset => ("efi-app.raw", 256),
        Kind::Debian => ("debian.raw", 512),
    };
    let guest = Guest {
        memory,
        // The copy is on a tmpfs, which cannot do without the page cache.
        disk: Some(Disk {
            path: copy(&files::guest(image), directory.path())?,
            direct: false,
        }),
        firmware: Some(Firmware {
            code: SUITE.file(CODE),
            variables: copy(&SUITE.file(VARIABLES), directory.path())?,
            oem_string: "efi-app:boots=1 reset; poweroff".to_owned(),
        }),
        ..Guest::default()
    };
    let mut running = vmm.start(&guest)?;
    let took: Duration = match kind {
        Kind::Application => running.wait_for(STARTED)?.after,
        Kind::Reset => {
            let ends = running.wait_for(ENDS)?.after;
            running.wait_for(STARTED_AGAIN)?.after.saturating_sub(ends)
        }
        Kind::Debian => running.wait_for(LOGIN)?.after,
    };
    Ok(took.as_secs_f64())
}

/// A copy of a file, with its holes.
fn copy(file: &Path, directory: &Path) -> Result<PathBuf, BenchError> {
    let failed = |source| BenchError::Host {
        what: format!("copying {} to {}", file.display(), directory.display()),
        source,
    };
    let output = Command::new("cp")
        .arg("--sparse=always")
        .args([file, directory])
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(failed(std::io::Error::other(said)));
    }
    Ok(directory.join(file.file_name().unwrap_or_default()))
}
