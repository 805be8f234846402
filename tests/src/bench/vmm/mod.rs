//! The VMMs that are compared: how each is asked for the same guest. Peers are used as they come, by their documented options.

mod cloud_hypervisor;
mod firecracker;
mod paddock;
mod qemu;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tempfile::NamedTempFile;

use super::BenchError;
use crate::files;

/// What init says on the console (guests/probe).
const UP: &str = "paddock-probe: up";
/// What it says when it has measured something.
const MEASURED: &str = "paddock-probe: measured";
/// How long a guest may take to get there.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long one that measures may be silent.
const MEASURED_DEADLINE: Duration = Duration::from_secs(60);
/// Lines of output shown when something goes wrong.
const SHOWN: usize = 30;

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
}

/// What a guest boots from.
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

    /// How it is asked for a guest, and what must live as long as it does.
    fn command(&self, guest: &Guest) -> std::io::Result<(Command, Option<NamedTempFile>)> {
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
        let mut command = Command::new(self.binary());
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
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn();
        let running = |child| Running { child, _kept: None };
        child
            .map(running)
            .map_err(|source| self.not_started(source))
    }

    fn not_started(&self, source: std::io::Error) -> BenchError {
        BenchError::Host {
            what: format!("starting {}", self.binary().display()),
            source,
        }
    }

    /// Starts a guest and waits for its init; says how long that took.
    pub(super) fn boot(&self, guest: &Guest) -> Result<(Running, Duration), BenchError> {
        let began = Instant::now();
        let (running, lines) = self.start(guest)?;
        self.wait_for(UP, &lines, began + BOOT_DEADLINE)?;
        Ok((running, began.elapsed()))
    }

    /// Starts a guest that measures, and stops it once it does.
    pub(super) fn measuring(&self, guest: &Guest) -> Result<Measuring, BenchError> {
        let (running, lines) = self.start(guest)?;
        self.wait_for(MEASURED, &lines, Instant::now() + BOOT_DEADLINE)?;
        running.signal(Signal::STOP)?;
        Ok(Measuring {
            vmm: self.clone(),
            running,
            lines,
        })
    }

    /// Starts a guest; gives what it and its VMM say, line by line.
    fn start(&self, guest: &Guest) -> Result<(Running, Receiver<String>), BenchError> {
        let made = self.command(guest);
        let (mut command, kept) = made.map_err(|source| self.not_started(source))?;
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.map_err(|source| self.not_started(source))?;
        let (sender, lines) = channel();
        let pipes: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in pipes.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok((Running { child, _kept: kept }, lines))
    }

    fn wait_for(
        &self,
        text: &str,
        lines: &Receiver<String>,
        end: Instant,
    ) -> Result<String, BenchError> {
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let what = match lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => {
                    seen.push(line);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    format!("no {text:?} in time")
                }
                Err(RecvTimeoutError::Disconnected) => format!("it ended before {text:?}"),
            };
            let output = seen.split_off(seen.len().saturating_sub(SHOWN)).join("\n");
            return Err(BenchError::Vmm {
                vmm: self.name(),
                what,
                output,
            });
        }
    }
}

/// A VMM with its guest; dropping it ends both.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    _kept: Option<NamedTempFile>,
}

impl Running {
    /// The VMM's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let process = rustix::process::Pid::from_child(&self.child);
        kill_process(process, signal).map_err(|error| BenchError::Host {
            what: format!("sending {signal:?} to a VMM"),
            source: error.into(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A VMM whose guest measures all the time. Its process is stopped except while it is asked.
#[derive(Debug)]
pub(super) struct Measuring {
    vmm: Vmm,
    running: Running,
    lines: Receiver<String>,
}

impl Measuring {
    /// What the guest measures now.
    pub(super) fn value(&self) -> Result<f64, BenchError> {
        // Said after the last value was taken.
        self.lines.try_iter().for_each(drop);
        self.running.signal(Signal::CONT)?;
        // The first one has the time in it for which the process was stopped.
        let mut line = String::new();
        for _ in 0..2 {
            let end = Instant::now() + MEASURED_DEADLINE;
            line = self.vmm.wait_for(MEASURED, &self.lines, end)?;
        }
        self.running.signal(Signal::STOP)?;
        let number = line.rsplit(' ').next().map(str::trim);
        let number = number.and_then(|number| number.parse().ok());
        number.ok_or_else(|| BenchError::Vmm {
            vmm: self.vmm.name(),
            what: "the guest measured no number".to_owned(),
            output: line,
        })
    }
}
