//! The VMMs that are compared: how each is asked for the same guest. Peers are used as they come, by their documented options.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::BenchError;
use crate::files;

/// What init says on the console (guests/probe).
const UP: &str = "paddock-probe: up";
/// What it says when it has measured something.
const MEASURED: &str = "paddock-probe: measured";
/// How long a guest may take to get there.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
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
}

/// A guest with one vCPU.
#[derive(Debug, Default)]
pub struct Guest {
    /// RAM in MiB.
    pub memory: u64,
    /// A raw disk image.
    pub disk: Option<PathBuf>,
    /// An existing tap.
    pub tap: Option<String>,
    /// What its init measures (guests/probe).
    pub task: Option<String>,
}

impl Vmm {
    /// Those there are: ours, Debian's QEMU, and the peers whose binaries the environment names.
    #[must_use]
    pub fn found() -> Vec<Self> {
        let mut found = vec![
            Self::Paddock(files::paddock()),
            Self::Qemu("qemu-system-x86_64".into()),
        ];
        if let Some(path) = std::env::var_os("PADDOCK_BENCH_CLOUD_HYPERVISOR") {
            found.push(Self::CloudHypervisor(path.into()));
        }
        found
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Paddock(_) => "paddock",
            Self::Qemu(_) => "qemu",
            Self::CloudHypervisor(_) => "cloud-hypervisor",
        }
    }

    /// Its binary: a path, or a name to be found in `$PATH`.
    #[must_use]
    pub fn binary(&self) -> &Path {
        match self {
            Self::Paddock(path) | Self::Qemu(path) | Self::CloudHypervisor(path) => path,
        }
    }

    /// Whether it can be asked for a raw disk and an existing tap.
    #[must_use]
    pub fn has_disk_and_nic(&self) -> bool {
        true
    }

    fn command(&self, guest: &Guest) -> Command {
        // Lines on the serial port are slow in every VMM alike, and not what is measured.
        let mut kernel_arguments = "console=ttyS0 quiet panic=-1 probe.announce".to_owned();
        if let Some(task) = &guest.task {
            kernel_arguments += &format!(" probe.measure={task}");
        }
        let kernel_arguments = kernel_arguments.as_str();
        let (kernel, initramfs) = (files::guest("vmlinux"), files::guest("initramfs.cpio"));
        let mut command = Command::new(self.binary());
        let memory = guest.memory;
        match self {
            Self::Paddock(_) => {
                command.args(["run", "--cpus", "1", "--memory", &format!("{memory}M")]);
                command.args(["--cmdline", kernel_arguments]);
                command.arg("--kernel").arg(kernel);
                command.arg("--initramfs").arg(initramfs);
                if let Some(disk) = &guest.disk {
                    command.arg("--disk").arg(disk);
                }
                if let Some(tap) = &guest.tap {
                    command.args(["--net", &format!("tap={tap}")]);
                }
            }
            Self::Qemu(_) => {
                command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "1"]);
                command.args(["-m", &format!("{memory}M"), "-serial", "stdio"]);
                command.args(["-append", kernel_arguments]);
                command.arg("-kernel").arg(kernel);
                command.arg("-initrd").arg(initramfs);
                if let Some(disk) = &guest.disk {
                    let disk = disk.display();
                    let drive = format!("if=none,id=disk,format=raw,aio=io_uring,file={disk}");
                    command.args(["-object", "iothread,id=io", "-drive", &drive]);
                    command.args(["-device", "virtio-blk-pci,drive=disk,iothread=io"]);
                }
                if let Some(tap) = &guest.tap {
                    let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no");
                    command.args(["-netdev", &netdev]);
                    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
                }
                command.args(["-device", "virtio-rng-pci"]);
            }
            Self::CloudHypervisor(_) => {
                command.args(["--cpus", "boot=1", "--memory", &format!("size={memory}M")]);
                command.args(["--serial", "tty", "--console", "off"]);
                command.args(["--cmdline", kernel_arguments]);
                command.arg("--kernel").arg(kernel);
                command.arg("--initramfs").arg(initramfs);
                if let Some(disk) = &guest.disk {
                    let disk = disk.display();
                    command.args(["--disk", &format!("path={disk},direct=on")]);
                }
                if let Some(tap) = &guest.tap {
                    command.args(["--net", &format!("tap={tap}")]);
                }
            }
        }
        command
    }

    /// Whether it serves an API before it has a VM, or before the VM runs.
    #[must_use]
    pub fn has_api(&self) -> bool {
        true
    }

    /// Starts it with an API on `socket` and no guest.
    pub(super) fn serve(&self, socket: &Path) -> Result<Running, BenchError> {
        let socket = socket.display();
        let mut command = Command::new(self.binary());
        match self {
            Self::Paddock(_) => command.args(["serve", "--api-socket", &socket.to_string()]),
            Self::Qemu(_) => command
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
                .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256M"])
                .args(["-qmp", &format!("unix:{socket},server=on,wait=off")]),
            Self::CloudHypervisor(_) => command.args(["--api-socket", &socket.to_string()]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn();
        child.map(Running).map_err(|source| BenchError::Host {
            what: format!("starting {}", self.binary().display()),
            source,
        })
    }

    /// Starts a guest and waits for its init; says how long that took.
    pub(super) fn boot(&self, guest: &Guest) -> Result<(Running, Duration), BenchError> {
        let (running, took, _) = self.boot_to(guest, UP)?;
        Ok((running, took))
    }

    /// Starts a guest and waits for the number that it measured.
    pub(super) fn measured(&self, guest: &Guest) -> Result<f64, BenchError> {
        let (_running, _, line) = self.boot_to(guest, MEASURED)?;
        let number = line.rsplit(' ').next().map(str::trim);
        let number = number.and_then(|number| number.parse().ok());
        number.ok_or_else(|| BenchError::Vmm {
            vmm: self.name(),
            what: "the guest measured no number".to_owned(),
            output: line,
        })
    }

    /// Starts a guest and waits for a line with `text`; says how long that took, and gives the line.
    fn boot_to(
        &self,
        guest: &Guest,
        text: &str,
    ) -> Result<(Running, Duration, String), BenchError> {
        let mut command = self.command(guest);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().map_err(|source| BenchError::Host {
            what: format!("starting {}", self.binary().display()),
            source,
        })?;
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
        drop(sender);
        let running = Running(child);
        let line = self.wait_for(text, &lines, began + BOOT_DEADLINE)?;
        Ok((running, began.elapsed(), line))
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
                    format!("no {text:?} after {BOOT_DEADLINE:?}")
                }
                Err(RecvTimeoutError::Disconnected) => "it ended while booting".to_owned(),
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
pub(super) struct Running(Child);

impl Running {
    /// The VMM's process id.
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
