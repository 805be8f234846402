//! A VM under test: `paddock run` or `paddock serve` as a child process, its guest's console, and the probe in it.

mod builder;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use paddock_probe::client::Client;
use paddock_probe::protocol::{Call, Event, Exec, Info, InfoReply, PowerOff, Reboot};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::builder::{Kernel, VmBuilder};
use crate::api::Api;
use crate::transcript::{Transcript, tail};
use crate::{files, within};

/// How long a guest may take from `paddock run` to its probe. The lab does some ten thousand exits a second.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long an ordinary request to the probe may take.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long the process may take to end once it has a reason to.
pub const END_DEADLINE: Duration = Duration::from_secs(60);

/// The kernel's command line. Its ciphers, which no test is about, would test themselves for a tenth of the time that a boot takes.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";

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

    /// A process that serves the HTTP API and has no VM yet, and its API.
    ///
    /// # Panics
    /// When it cannot be started, or its API is not there in time.
    #[must_use]
    pub fn serve() -> (Self, Api) {
        let vm = Self::builder().serve();
        let api = vm.api();
        (vm, api)
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
                "command_line": COMMAND_LINE,
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

    /// Creates a VM by the API, such as one of [`spec`](Self::spec), and waits for its guest's probe.
    ///
    /// # Panics
    /// When it is not created, the probe does not answer in time, or the VM does not run then.
    #[track_caller]
    pub fn create(&mut self, api: &Api, spec: &Value) {
        let created = api.create(spec);
        assert_eq!(created.status, 201, "{created:?}");
        self.connect();
        assert_eq!(api.state(), "running");
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

    /// A line of the guest's `/proc/meminfo`, in bytes.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn meminfo(&self, name: &str) -> u64 {
        let line = self.shell(&format!("grep '^{name}:' /proc/meminfo"));
        let kib = line.split_whitespace().nth(1).and_then(|n| n.parse().ok());
        let kib: Option<u64> = kib;
        kib.map_or_else(|| panic!("/proc/meminfo: {line}"), |kib| kib * 1024)
    }

    /// Whether the guest has a disk with this serial number.
    ///
    /// # Panics
    /// When the probe does not answer.
    #[must_use]
    pub fn has_disk(&self, serial: &str) -> bool {
        self.info().disks.iter().any(|disk| disk.serial == serial)
    }

    /// Whether the guest's kernel is to look at the hot-plug registers when it is told that they have something; at first it does.
    ///
    /// # Panics
    /// When that cannot be set.
    pub fn heed_hot_plug(&self, heed: bool) {
        let word = if heed { "enable" } else { "disable" };
        self.shell(&format!(
            "echo {word} > /sys/firmware/acpi/interrupts/gpe01"
        ));
    }

    /// Has the guest start over, and does not wait for it.
    ///
    /// # Panics
    /// When there is no connection to the probe.
    pub fn start_reboot(&self) {
        let reboot = Reboot { method: None };
        let _ = self.probe().call(reboot, Duration::from_secs(10));
    }

    /// Has the guest start over, and waits for its probe; it is the process's boot number `boot`, from 1 on.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn reboot(&mut self, boot: usize) {
        self.start_reboot();
        self.wait_for_boot(boot);
    }

    /// Waits for the guest's probe after a reset; it is the process's boot number `boot`, from 1 on.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn wait_for_boot(&mut self, boot: usize) {
        // What has `probe.announce` on its command line says that it is up before the agent does.
        self.wait_for_console("paddock-probe: up, ", boot, BOOT_DEADLINE);
        self.connect();
    }

    /// Waits until the power button is pressed in the guest.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_for_power_button(&self) {
        let pressed = self
            .probe()
            .wait_event("the power button", CALL_DEADLINE, |event| {
                matches!(event, Event::PowerButton(_)).then_some(())
            });
        if let Err(error) = pressed {
            self.fail(&error.to_string());
        }
    }

    /// Waits for the end of a job, and gives the job; `started` is what the API said of it.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn end_of_job(&self, started: &Value) -> Value {
        let path = format!("/jobs/{}", started["id"]);
        let (api, mut job) = (self.api(), Value::Null);
        let ended = within(CALL_DEADLINE, || {
            job = api.get(&path).body;
            job["state"] != "running"
        });
        if !ended {
            self.fail(&format!("it does not end: {job}"));
        }
        job
    }

    /// Waits until something is so; `otherwise` says what is wrong if it is not in time.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_until(&self, otherwise: &str, deadline: Duration, done: impl FnMut() -> bool) {
        if !within(deadline, done) {
            self.fail(&format!("{otherwise} within {deadline:?}"));
        }
    }

    /// The process id of `paddock`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn has_ended(&mut self) -> bool {
        match self.child.try_wait() {
            Ok(status) => status.is_some(),
            Err(error) => self.fail(&format!("waiting for paddock: {error}")),
        }
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
        let otherwise = format!("{text:?} is not on the console {times} times");
        self.wait_until(&otherwise, deadline, || {
            self.console().matches(text).count() >= times
        });
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
                // The reader sees the end of the pipe after the process is gone, on a busy host a good while after.
                let _ = within(Duration::from_secs(10), || log.is_complete());
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
