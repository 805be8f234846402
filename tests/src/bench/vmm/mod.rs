//! The VMMs that are compared: how each is asked for the same guest. Peers are used as they come, by their documented options.

mod cloud_hypervisor;
mod firecracker;
mod paddock;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::BenchError;
use super::running::{Measuring, Running};
use crate::files;

/// What init says on the console (guests/probe).
const UP: &str = "paddock-probe: up";

/// A VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vmm {
    /// Ours.
    Paddock(PathBuf),
    /// Debian's QEMU, machine q35.
    Qemu(PathBuf),
    /// Cloud Hypervisor.
    CloudHypervisor(PathBuf),
    /// Firecracker.
    Firecracker(PathBuf),
}

/// A guest with one vCPU.
#[derive(Debug, Default)]
pub struct Guest {
    /// RAM in MiB.
    pub memory: u64,
    /// Its disk.
    pub disk: Option<Disk>,
    /// An existing tap.
    pub tap: Option<String>,
    /// What its init measures (guests/probe).
    pub task: Option<String>,
    /// Where the VMM serves its API meanwhile.
    pub api: Option<PathBuf>,
    /// What boots the disk; without it, Debian's kernel runs the probe as its init.
    pub firmware: Option<Firmware>,
}

/// UEFI firmware of a distribution, as it is.
#[derive(Debug)]
pub struct Firmware {
    /// Its code.
    pub code: PathBuf,
    /// Its variables, to be written.
    pub variables: PathBuf,
    /// What SMBIOS tells the guest.
    pub oem_string: String,
}

/// The kernel that a guest boots, where it does not boot by firmware.
struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    arguments: String,
}

/// A raw disk image or block device.
#[derive(Debug)]
pub struct Disk {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it can be read and written past the page cache, which Paddock then does by itself.
    pub direct: bool,
}

impl Vmm {
    /// Those there are: ours, Debian's QEMU, and the peers whose binaries the environment names.
    #[must_use]
    pub fn found() -> Vec<Self> {
        let mut found = vec![
            Self::Paddock(files::paddock()),
            Self::Qemu("qemu-system-x86_64".into()),
        ];
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        found.extend(named("PADDOCK_BENCH_CLOUD_HYPERVISOR").map(Self::CloudHypervisor));
        found.extend(named("PADDOCK_BENCH_FIRECRACKER").map(Self::Firecracker));
        found
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Paddock(_) => "paddock",
            Self::Qemu(_) => "qemu",
            Self::CloudHypervisor(_) => "cloud-hypervisor",
            Self::Firecracker(_) => "firecracker",
        }
    }

    /// Its binary: a path, or a name to be found in `$PATH`.
    #[must_use]
    pub fn binary(&self) -> &Path {
        match self {
            Self::Paddock(path)
            | Self::Qemu(path)
            | Self::CloudHypervisor(path)
            | Self::Firecracker(path) => path,
        }
    }

    /// Whether it runs firmware that nobody has built for it.
    #[must_use]
    pub fn runs_stock_firmware(&self) -> bool {
        matches!(self, Self::Paddock(_) | Self::Qemu(_))
    }

    /// How it is asked for a guest, and what must live as long as it does.
    fn command(&self, guest: &Guest) -> std::io::Result<(Command, Option<NamedTempFile>)> {
        let mut command = Command::new(self.binary());
        if let Some(firmware) = &guest.firmware {
            match self {
                Self::Paddock(_) => paddock::guest_of_firmware(&mut command, guest, firmware),
                Self::Qemu(_) => qemu::guest_of_firmware(&mut command, guest, firmware),
                Self::CloudHypervisor(_) | Self::Firecracker(_) => {
                    return Err(std::io::ErrorKind::Unsupported.into());
                }
            }
            return Ok((command, None));
        }
        // Lines on the serial port are slow in every VMM alike, and not what is measured.
        let mut arguments = "console=ttyS0 quiet panic=-1 probe.announce".to_owned();
        if let Some(task) = &guest.task {
            arguments += &format!(" probe.measure={task}");
        }
        let boot = Boot {
            kernel: files::guest("vmlinux"),
            initramfs: files::guest("initramfs.cpio"),
            arguments,
        };
        let mut kept = None;
        match self {
            Self::Paddock(_) => paddock::guest(&mut command, guest, &boot),
            Self::Qemu(_) => qemu::guest(&mut command, guest, &boot),
            Self::CloudHypervisor(_) => cloud_hypervisor::guest(&mut command, guest, &boot),
            Self::Firecracker(_) => {
                kept = Some(firecracker::guest(&mut command, guest, &boot)?);
            }
        }
        Ok((command, kept))
    }

    /// What its API is asked first, to be answered.
    pub(super) fn question(&self) -> &'static str {
        match self {
            Self::Paddock(_) => paddock::QUESTION,
            Self::Qemu(_) => qemu::QUESTION,
            Self::CloudHypervisor(_) => cloud_hypervisor::QUESTION,
            Self::Firecracker(_) => firecracker::QUESTION,
        }
    }

    /// Starts it with an API on `socket` and no guest.
    pub(super) fn serve(&self, socket: &Path) -> Result<Running, BenchError> {
        let mut command = Command::new(self.binary());
        match self {
            Self::Paddock(_) => paddock::serve(&mut command, socket),
            Self::Qemu(_) => qemu::serve(&mut command, socket),
            Self::CloudHypervisor(_) => cloud_hypervisor::serve(&mut command, socket),
            Self::Firecracker(_) => firecracker::serve(&mut command, socket),
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.spawn(command, None)
    }

    fn not_started(&self, source: std::io::Error) -> BenchError {
        BenchError::Host {
            what: format!("starting {}", self.binary().display()),
            source,
        }
    }

    /// Starts a guest and waits for its init; says how long that took.
    pub(super) fn boot(&self, guest: &Guest) -> Result<(Running, Duration), BenchError> {
        let mut running = self.start(guest)?;
        let up = running.wait_for(UP)?;
        Ok((running, up.after))
    }

    /// Starts a guest that measures, and stops it once it does.
    pub(super) fn measuring(&self, guest: &Guest) -> Result<Measuring, BenchError> {
        Measuring::new(self.start(guest)?)
    }

    /// Starts a guest.
    pub(super) fn start(&self, guest: &Guest) -> Result<Running, BenchError> {
        let made = self.command(guest);
        let (mut command, kept) = made.map_err(|source| self.not_started(source))?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command, kept)
    }

    fn spawn(
        &self,
        mut command: Command,
        kept: Option<NamedTempFile>,
    ) -> Result<Running, BenchError> {
        command.stdin(Stdio::null());
        Running::start(self.name(), command, kept).map_err(|source| self.not_started(source))
    }
}
