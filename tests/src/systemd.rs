//! A real systemd, Debian's, as PID 1 of namespaces of its own: for the unit that `vmm/systemd` holds, as an operator installs it.
//!
//! It sees the host's files, but has a `/run`, `/tmp`, `/var/lib` and `/var/log`, control groups and processes of its own, and `/etc` and
//! `/usr/bin` with a few files laid over the host's. All of that goes with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::files;
use crate::host::shell;

/// Where Debian has it.
const PROGRAM: &str = "/lib/systemd/systemd";
/// The template under test.
const SERVICE: &str = include_str!("../../vmm/systemd/paddock@.service");
/// Its log, which would be in the journal: there is no journal here.
const LOG: &str = "[Service]\nStandardOutput=append:/run/%p-%i.log\nStandardError=inherit\n";
/// What every unit needs.
const TARGETS: [&str; 7] = [
    "default",
    "sysinit",
    "basic",
    "network",
    "network-online",
    "nss-lookup",
    "shutdown",
];
/// How long systemd may take to be there, or to be gone.
const DEADLINE: Duration = Duration::from_secs(60);

/// In the control group `$1`, with the directory `$2`: becomes unshare, and systemd below it.
const OUTER: &str = r#"echo $$ > "$1/cgroup.procs" &&
exec unshare --mount --pid --cgroup --uts --ipc --fork --kill-child=KILL --mount-proc sh -ec "$3" sh "$2""#;

const INNER: &str = r"
# Between the host's control groups and ours, which are of one file system: that cannot be mounted upon itself.
mount -t tmpfs own /sys/fs/cgroup
mount -t cgroup2 own /sys/fs/cgroup
mount -t overlay -o lowerdir=$1/etc:/etc overlay /etc
mount -t overlay -o lowerdir=$1/bin:/usr/bin overlay /usr/bin
for own in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 own $own; done
cp -r $1/units /run/units
mount -t tmpfs -o mode=1777 own /tmp
mount -t tmpfs -o mode=1777 own /var/tmp
# As udev makes it.
mknod -m 660 /run/kvm c 10 232
chgrp kvm /run/kvm
mount --bind /run/kvm /dev/kvm
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=paddock-tests SYSTEMD_UNIT_PATH=/run/units \
    SYSTEMD_GENERATOR_PATH=/nowhere SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nowhere \
    /lib/systemd/systemd --system --log-target=null --show-status=no
";

/// systemd, and all it started; ended on drop.
#[derive(Debug)]
pub struct Systemd {
    unshare: Child,
    /// systemd itself, as the host numbers it.
    pid: u32,
    group: PathBuf,
    _directory: TempDir,
}

impl Systemd {
    /// Starts it with the template, with `paddock` in `/usr/bin`, and with these specs as `/etc/paddock/NAME.toml`.
    ///
    /// # Panics
    /// When it does not come up, or is not installed.
    #[must_use]
    pub fn start(specs: &[(&str, String)]) -> Self {
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: install Debian's package systemd"
        );
        let directory = lay_out(specs);
        let group = make_group();
        let unshare = Command::new("sh")
            .args(["-c", OUTER, "sh"])
            .args([&group, directory.path()])
            .arg(INNER)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("sh: {error}"));
        let mut this = Self {
            unshare,
            pid: 0,
            group,
            _directory: directory,
        };
        this.wait_until_up();
        this
    }

    fn wait_until_up(&mut self) {
        let own = self.unshare.id();
        let children = format!("/proc/{own}/task/{own}/children");
        let end = Instant::now() + DEADLINE;
        loop {
            let child = fs::read_to_string(&children).unwrap_or_default();
            if let Ok(pid) = child.trim().parse() {
                self.pid = pid;
                let state = self.systemctl("is-system-running");
                if String::from_utf8_lossy(&state.stdout).trim() == "running" {
                    return;
                }
            }
            let ended = self.unshare.try_wait();
            assert!(
                matches!(ended, Ok(None)) && Instant::now() < end,
                "systemd does not come up: {ended:?}"
            );
            sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command as root where systemd is.
    #[must_use]
    pub fn shell(&self, command: &str) -> Output {
        let pid = self.pid;
        let quoted = command.replace('\'', r"'\''");
        shell(&format!("nsenter -t {pid} -m -p -C -u -i sh -c '{quoted}'"))
    }

    /// Runs `systemctl` with these arguments.
    #[must_use]
    pub fn systemctl(&self, arguments: &str) -> Output {
        self.shell(&format!("systemctl --no-pager {arguments}"))
    }

    /// Installs a drop-in for a unit.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn drop_in(&self, unit: &str, name: &str, text: &str) {
        let directory = self.path(&format!("/run/units/{unit}.service.d"));
        make(&directory, None);
        make(&directory.join(name), Some(text));
        let reloaded = self.systemctl("daemon-reload");
        assert!(reloaded.status.success(), "{reloaded:?}");
    }

    /// Starts a unit: returns when it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_unit(&self, unit: &str) {
        let started = self.systemctl(&format!("start {unit}"));
        if !started.status.success() {
            self.fail(unit, &format!("does not start: {started:?}"));
        }
    }

    /// Sends the unit's main process, and no other, a signal.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn kill(&self, unit: &str, signal: &str) {
        let pid = self.property(unit, "MainPID");
        let sent = self.shell(&format!("kill -s {signal} {pid}"));
        if !sent.status.success() {
            self.fail(unit, &format!("SIG{signal}: {sent:?}"));
        }
    }

    /// A property of a unit.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let shown = self.systemctl(&format!("show --value --property={name} {unit}"));
        String::from_utf8_lossy(&shown.stdout).trim().to_owned()
    }

    /// Waits until a property of a unit has a value.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn wait_for(&self, unit: &str, name: &str, wanted: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.property(unit, name) != wanted {
            if Instant::now() > end {
                self.fail(unit, &format!("{name} is not {wanted}"));
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// A path as systemd and its services see it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Fails the test with what there is to see of a unit.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, unit: &str, what: &str) -> ! {
        let status = self.systemctl(&format!("status {unit}"));
        let logs = self.shell("tail -n 60 /run/*.log");
        panic!(
            "{unit}: {what}\n{}\n{}",
            String::from_utf8_lossy(&status.stdout),
            String::from_utf8_lossy(&logs.stdout)
        );
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // PID 1 goes with unshare, and takes everybody along.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let group = self.group.display();
        let end = Instant::now() + DEADLINE;
        while self.group.exists() && Instant::now() < end {
            let _ = shell(&format!("find {group} -depth -type d -exec rmdir {{}} +"));
            sleep(Duration::from_millis(100));
        }
    }
}

/// The files of ours.
fn lay_out(specs: &[(&str, String)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("directory: {error}"));
    let root = directory.path();
    for path in ["etc/paddock", "bin", "units/paddock@.service.d"] {
        make(&root.join(path), None);
    }
    for target in TARGETS {
        let unit = format!("[Unit]\nDescription={target}\nDefaultDependencies=no\n");
        make(&root.join(format!("units/{target}.target")), Some(&unit));
    }
    make(&root.join("units/paddock@.service"), Some(SERVICE));
    make(&root.join("units/paddock@.service.d/log.conf"), Some(LOG));
    for (name, spec) in specs {
        make(&root.join(format!("etc/paddock/{name}.toml")), Some(spec));
    }
    // Without one, systemd takes it for its first boot.
    let id = "0123456789abcdef0123456789abcdef\n";
    make(&root.join("etc/machine-id"), Some(id));
    // udev's package makes the group.
    let mut groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if !groups.lines().any(|line| line.starts_with("kvm:")) {
        groups.push_str("kvm:x:994:\n");
    }
    make(&root.join("etc/group"), Some(&groups));
    let program = root.join("bin/paddock");
    fs::copy(files::paddock(), &program).unwrap_or_else(|error| panic!("paddock: {error}"));
    allow(&program, 0o755);
    for path in ["etc", "bin"] {
        allow(&root.join(path), 0o755);
    }
    directory
}

/// Makes a file that everybody may read, or a directory.
fn make(path: &Path, text: Option<&str>) {
    let (made, mode) = match text {
        Some(text) => (fs::write(path, text), 0o644),
        None => (fs::create_dir_all(path), 0o755),
    };
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    allow(path, mode);
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A control group of its own, which becomes systemd's root.
fn make_group() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then_some(place)
    });
    let Some(mount) = mount else {
        panic!("no cgroup2 is mounted, and systemd needs one");
    };
    let group = Path::new(mount).join(format!("paddock-tests-{}", std::process::id()));
    make(&group, None);
    group
}
