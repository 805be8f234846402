//! A VM under test: `paddock run` as a child process, its guest's console, and the probe in it.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use paddock_probe::client::Client;
use paddock_probe::protocol::{Call, Exec, Info, InfoReply, PowerOff};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::Api;
use crate::files;

/// How long a guest may take from `paddock run` to its probe. The lab does some ten thousand exits a second.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long an ordinary request to the probe may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long the process may take to end once it has a reason to.
pub const END_DEADLINE: Duration = Duration::from_secs(60);

/// Which of the two files with Debian's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// As Debian ships it: Linux's 64-bit entry.
    BzImage,
    /// The ELF file taken out of it: PVH entry.
    Elf,
}

impl Kernel {
    fn path(self) -> PathBuf {
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
            command_line: "console=ttyS0 quiet panic=-1".to_owned(),
            arguments: Vec::new(),
            api: false,
            boot_files: None,
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
        let [kernel, initramfs] = match &self.boot_files {
            Some(files) => files.each_ref().map(PathBuf::from),
            None => [self.kernel.path(), files::guest(self.initramfs)],
        };
        let mut command = self.process();
        command
            .args(["run", "--log-level", "info", "--kernel"])
            .arg(kernel)
            .arg("--initramfs")
            .arg(initramfs)
            .args(["--cmdline", &self.command_line])
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

/// Where a VM's sockets are.
#[derive(Debug)]
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap_or_else(|error| panic!("temporary directory: {error}")))
    }

    fn probe(&self) -> PathBuf {
        self.0.path().join("probe.sock")
    }

    fn api(&self) -> PathBuf {
        self.0.path().join("api.sock")
    }

    fn console(&self) -> PathBuf {
        self.0.path().join("console.log")
    }
}

/// A running `paddock` with its guest.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Transcript,
    log: Transcript,
    probe: Option<Client>,
    directory: Directory,
}

impl Vm {
    /// A VM with one vCPU and 256 MiB, to be changed.
    #[must_use]
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    fn spawn(mut command: Command, directory: Directory) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", files::paddock().display()));
        let console = Transcript::follow(child.stdout.take());
        let log = Transcript::follow(child.stderr.take());
        Self {
            child,
            console,
            log,
            probe: None,
            directory,
        }
    }

    /// Its API, as soon as it is there.
    ///
    /// # Panics
    /// When it is not there in time.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::at(&self.directory.api())
    }

    /// A spec for the API, of a VM with this many vCPUs, 256 MiB, and the probe. Its serial console goes to
    /// [`console_file`](Self::console_file).
    #[must_use]
    pub fn spec(&self, cpus: u32) -> Value {
        json!({
            "boot": {
                "kernel": Kernel::BzImage.path(),
                "initramfs": files::guest("initramfs.cpio"),
                "command_line": "console=ttyS0 quiet panic=-1",
            },
            "cpus": {"count": cpus},
            "memory": {"size": "256MiB"},
            "console": {
                "serial": {"file": self.console_file()},
                "ports": [{"name": "paddock.probe", "socket": self.directory.probe()}],
            },
        })
    }

    /// Where a VM of [`spec`](Self::spec) prints.
    #[must_use]
    pub fn console_file(&self) -> PathBuf {
        self.directory.console()
    }

    /// Connects to the guest's probe, waiting for it as long as a boot takes; again after a reset.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub fn connect(&mut self) {
        if let Err(error) = self.try_connect() {
            self.fail(&format!("the guest's probe does not answer: {error:?}"));
        }
    }

    fn try_connect(&mut self) -> Result<(), paddock_probe::client::Error> {
        self.probe = None;
        let (client, _) = Client::connect(self.directory.probe(), BOOT_DEADLINE)?;
        self.probe = Some(client);
        Ok(())
    }

    /// Asks the probe for something ordinary.
    ///
    /// # Panics
    /// When it does not answer, or answers that it cannot.
    pub fn call<C: Call>(&self, call: C) -> C::Reply {
        self.call_within(call, CALL_DEADLINE)
    }

    /// Asks the probe for something that may take long.
    ///
    /// # Panics
    /// When it does not answer, or answers that it cannot.
    pub fn call_within<C: Call>(&self, call: C, deadline: Duration) -> C::Reply {
        let result = self.probe().call(call, deadline);
        match result {
            Ok(reply) => reply,
            Err(error) => self.fail(&format!("the probe: {error:?}")),
        }
    }

    /// The connection to the probe.
    ///
    /// # Panics
    /// When there is none.
    pub fn probe(&self) -> &Client {
        match &self.probe {
            Some(probe) => probe,
            None => panic!("the VM was not connected to its probe"),
        }
    }

    /// What the guest found.
    ///
    /// # Panics
    /// When the probe does not answer.
    pub fn info(&self) -> InfoReply {
        self.call(Info {})
    }

    /// Runs a shell command in the guest and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn shell(&self, command: &str) -> String {
        let reply = self.call(Exec::shell(command));
        if !reply.success() {
            self.fail(&format!("{command:?} in the guest: {reply:?}"));
        }
        reply.stdout.to_text()
    }

    /// The process id of `paddock`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `paddock` a signal.
    pub fn signal(&self, name: &str) {
        crate::host::run(&format!("kill -s {name} {}", self.child.id()));
    }

    /// Powers the guest off and expects the process to end with success.
    ///
    /// # Panics
    /// When it does not.
    pub fn power_off(mut self) {
        let _ = self.probe().call(PowerOff {}, CALL_DEADLINE);
        self.expect_exit(0);
    }

    /// Waits for the process to end with this exit status.
    ///
    /// # Panics
    /// When it ends otherwise, or not in time.
    pub fn expect_exit(&mut self, wanted: i32) {
        let end = Instant::now() + END_DEADLINE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < end => sleep(Duration::from_millis(20)),
                Ok(None) => self.fail("paddock does not end"),
                Err(error) => self.fail(&format!("waiting for paddock: {error}")),
            }
        };
        if status.code() != Some(wanted) {
            let how = status.signal().map(|s| format!(" by signal {s}"));
            self.fail(&format!(
                "paddock ended with {:?}{}, not {wanted}",
                status.code(),
                how.unwrap_or_default()
            ));
        }
    }

    /// What the guest has printed so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// What `paddock` has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until the guest's console holds `text` at least `times` times.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for_console(&self, text: &str, times: usize, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.console().matches(text).count() < times {
            if Instant::now() > end {
                self.fail(&format!("{text:?} is not on the console {times} times"));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// How `paddock` is: running, or how it ended. Leaves it to be waited for.
    fn process(&self) -> String {
        // What comes first in a line may come a moment before the process is seen to have ended.
        sleep(Duration::from_millis(200));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        match pid.map(|pid| waitid(WaitId::Pid(pid), options)) {
            Some(Ok(Some(status))) => format!(
                "ended, exit status {:?}, signal {:?}",
                status.exit_status(),
                status.terminating_signal()
            ),
            Some(Ok(None)) => "running".to_owned(),
            other => format!("unknown: {other:?}"),
        }
    }

    /// Fails the test with what there is to see.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, what: &str) -> ! {
        panic!(
            "{what}\n--- paddock: {}\n--- console, its end:\n{}\n--- paddock's log:\n{}\n---",
            self.process(),
            tail(&self.console()),
            tail(&self.log())
        );
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Nothing of a test outlives it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Everything that came out of a pipe or socket so far.
#[derive(Debug, Clone)]
pub(crate) struct Transcript {
    kept: Arc<Mutex<Vec<u8>>>,
    /// No more will come.
    complete: Arc<AtomicBool>,
}

impl Transcript {
    /// Reads `pipe`, if there is one, to its end.
    pub(crate) fn follow(pipe: Option<impl Read + Send + 'static>) -> Self {
        let this = Self {
            kept: Arc::default(),
            complete: Arc::default(),
        };
        let Self { kept, complete } = this.clone();
        if let Some(mut pipe) = pipe {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&buffer[..count]);
                }
                complete.store(true, Ordering::Release);
            });
        }
        this
    }

    pub(crate) fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// Whether the other end is closed and all of it read.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }
}

/// Runs `paddock run` with arguments that must not work, and returns exit status and standard error.
///
/// # Panics
/// When it cannot be started, or is not done within half a minute.
#[must_use]
pub fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(files::paddock())
        .arg("run")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", files::paddock().display()));
    let log = Transcript::follow(child.stderr.take());
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // The reader sees the end of the pipe just after the process is gone.
                sleep(Duration::from_millis(100));
                return (status.code(), log.text());
            }
            Ok(None) if Instant::now() < end => sleep(Duration::from_millis(20)),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("paddock run {arguments:?}: {other:?}\n{}", log.text());
            }
        }
    }
}

/// A path as text.
///
/// # Panics
/// When it is not UTF-8.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str()
        .unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}
