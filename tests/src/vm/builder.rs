//! What a VM under test is to be like, and how its process is started.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{COMMAND_LINE, Directory, Vm, text};
use crate::files;

/// Which of the two files with Debian's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// As Debian ships it: Linux's 64-bit entry.
    BzImage,
    /// The ELF file taken out of it: PVH entry.
    Elf,
}

impl Kernel {
    pub(super) fn path(self) -> PathBuf {
        files::guest(match self {
            Self::BzImage => "vmlinuz",
            Self::Elf => "vmlinux",
        })
    }
}

/// A VM to be started.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    kernel: Kernel,
    initramfs: &'static str,
    cpus: String,
    memory: String,
    command_line: String,
    arguments: Vec<String>,
    api: bool,
    boot_files: Option<[String; 2]>,
    firmware: Option<PathBuf>,
    launcher: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self {
            kernel: Kernel::BzImage,
            initramfs: "initramfs.cpio",
            cpus: "1".to_owned(),
            memory: "256M".to_owned(),
            command_line: COMMAND_LINE.to_owned(),
            arguments: Vec::new(),
            api: false,
            boot_files: None,
            firmware: None,
            launcher: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl VmBuilder {
    /// Boots this kernel.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Boots Debian from `disk`, a copy of the image.
    ///
    /// # Panics
    /// When guests/build has not made it.
    #[must_use]
    pub fn debian(mut self, disk: &Path) -> Self {
        let command_line = files::guest("debian.cmdline");
        self.command_line = std::fs::read_to_string(&command_line)
            .unwrap_or_else(|error| panic!("{}: {error}", command_line.display()))
            .trim()
            .to_owned();
        self.initramfs = "debian-initrd.img";
        self.args(["--disk", text(disk)])
    }

    /// What `--cpus` says.
    #[must_use]
    pub fn cpus(mut self, cpus: &(impl ToString + ?Sized)) -> Self {
        self.cpus = cpus.to_string();
        self
    }

    /// What `--memory` says.
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, more: &str) -> Self {
        let _ = write!(self.command_line, " {more}");
        self
    }

    /// Adds arguments for `paddock run`.
    #[must_use]
    pub fn args<S: ToString>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.to_string()));
        self
    }

    /// Offers the HTTP API.
    #[must_use]
    pub fn api(mut self) -> Self {
        self.api = true;
        self
    }

    /// What `--kernel` and `--initramfs` say.
    #[must_use]
    pub fn boot_files(mut self, kernel: &str, initramfs: &str) -> Self {
        self.boot_files = Some([kernel, initramfs].map(str::to_owned));
        self
    }

    /// Boots by this firmware from a disk, instead of a kernel.
    #[must_use]
    pub fn firmware(mut self, image: &Path) -> Self {
        self.firmware = Some(image.to_path_buf());
        self
    }

    /// Starts this command instead of `paddock`, with the same arguments behind its own: it is to become `paddock`.
    #[must_use]
    pub fn launcher<S: ToString>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.launcher = words.into_iter().map(|word| word.to_string()).collect();
        self
    }

    /// Sets a variable for the process.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The process, without its arguments.
    fn process(&self) -> Command {
        let mut command = match self.launcher.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words);
                command
            }
            None => Command::new(files::paddock()),
        };
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command.envs(environment);
        command
    }

    /// Starts the process and waits for the guest's probe.
    ///
    /// # Panics
    /// When the probe does not answer in time.
    #[must_use]
    pub fn boot(self) -> Vm {
        let mut vm = self.start();
        vm.connect();
        vm
    }

    /// Starts the process.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(self) -> Vm {
        let directory = Directory::new();
        let mut command = self.process();
        command.args(["run", "--log-level", "info"]);
        match &self.firmware {
            Some(image) => {
                command.arg("--firmware").arg(image);
            }
            None => self.add_kernel(&mut command),
        }
        command
            .args(["--cpus", &self.cpus, "--memory", &self.memory])
            .arg("--port")
            .arg(format!(
                "name=paddock.probe,socket={}",
                directory.probe().display()
            ))
            .args(&self.arguments);
        if self.api {
            command.arg("--api-socket").arg(directory.api());
        }
        Vm::spawn(command, directory)
    }

    /// The arguments for a kernel.
    fn add_kernel(&self, command: &mut Command) {
        let [kernel, initramfs] = match &self.boot_files {
            Some(files) => files.each_ref().map(PathBuf::from),
            None => [self.kernel.path(), files::guest(self.initramfs)],
        };
        command
            .arg("--kernel")
            .arg(kernel)
            .arg("--initramfs")
            .arg(initramfs)
            .args(["--cmdline", &self.command_line]);
    }

    /// Starts a process that serves the HTTP API and has no VM yet.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn serve(self) -> Vm {
        let directory = Directory::new();
        let socket = directory.api();
        self.serve_in(directory, &socket)
    }

    /// Starts one with its API at `socket`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn serve_at(self, socket: &Path) -> Vm {
        self.serve_in(Directory::new(), socket)
    }

    fn serve_in(self, directory: Directory, socket: &Path) -> Vm {
        let mut command = self.process();
        command
            .args(["serve", "--log-level", "info", "--api-socket"])
            .arg(socket)
            .args(self.arguments);
        Vm::spawn(command, directory)
    }
}
