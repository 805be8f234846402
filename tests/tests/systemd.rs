//! Under a service manager: what it hears of a VM's life, and a VM without any right of its own, all of it passed in.
//!
//! What needs no guest is tested in the `vmm` crate.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use paddock_probe::client::Client;
use paddock_probe::protocol::{Exec, NetPing, NetUp, PowerOff};
use paddock_tests::host::{FileSystem, Link, run};
use paddock_tests::longhorn::{Replica, ReplicaOptions, own_replica};
use paddock_tests::systemd::Systemd;
use paddock_tests::viewer::Viewer;
use paddock_tests::vm::{BOOT_DEADLINE, CALL_DEADLINE, END_DEADLINE, text};
use paddock_tests::{Api, Vm, files};
use serde_json::json;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const NOBODY: u32 = 65534;
const TAP: &str = "pdkpassed";
/// The drop-in for a VM with disks on the network.
const NETWORK_DISKS: &str = include_str!("../../vmm/systemd/network-disks.conf");

/// A service manager.
struct Manager {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(BOOT_DEADLINE)).unwrap();
        Self { directory, socket }
    }

    fn address(&self) -> String {
        text(&self.directory.path().join("notify")).to_owned()
    }

    /// All lines up to this one, which must come.
    fn hears(&self, wanted: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 1024];
        while !lines.iter().any(|line| line == wanted) {
            let count = match self.socket.recv(&mut buffer) {
                Ok(count) => count,
                Err(error) => panic!("{wanted} is not told ({error}), but {lines:?}"),
            };
            let message = String::from_utf8(buffer[..count].to_vec()).unwrap();
            lines.extend(message.lines().map(str::to_owned));
        }
        lines
    }
}

#[test]
fn a_vms_life_as_the_manager_hears_it() {
    let manager = Manager::new();
    let vm = Vm::builder()
        .api()
        .env("NOTIFY_SOCKET", &manager.address())
        .env("WATCHDOG_USEC", "2000000")
        .start();
    let before = manager.hears("READY=1");
    assert!(before.contains(&"STATUS=starting".to_owned()), "{before:?}");
    let told = manager.hears("WATCHDOG=1");
    assert!(!told.contains(&"STOPPING=1".to_owned()), "{told:?}");
    let mut vm = vm;
    vm.connect();
    let api = vm.api();
    for (action, state) in [("pause", "paused"), ("resume", "running")] {
        let answer = api.act(action);
        assert!(answer.status < 300, "{answer:?}");
        manager.hears(&format!("STATUS={state}"));
    }
    vm.power_off();
    manager.hears("STOPPING=1");
    manager.hears("STATUS=ended: the guest powered off");
}

#[test]
fn the_manager_is_told_how_long_the_end_may_take() {
    let manager = Manager::new();
    let mut vm = Vm::builder()
        .args(["--shutdown-timeout", "1"])
        .env("NOTIFY_SOCKET", &manager.address())
        .start();
    manager.hears("READY=1");
    vm.signal("TERM");
    manager.hears("EXTEND_TIMEOUT_USEC=31000000");
    // The probe's guest may heed the button, or not.
    vm.signal("QUIT");
    vm.expect_exit(5);
    manager.hears("STATUS=ended: it was stopped");
}

/// Opens everything as root and becomes a `paddock` that is nobody.
const LAUNCHER: &str = r#"
use strict; use POSIX (); use Fcntl; use Socket;
$^F = 99;
POSIX::close($_) for 3 .. 99;
my (@names, @open);
sub pass {
    my ($name, $handle) = @_;
    my $number = fileno($handle);
    $number == 3 + @open or die "$name is descriptor $number";
    push @names, $name; push @open, $handle;
}
sub file {
    my ($name, $path, $flags) = @_;
    sysopen(my $handle, $path, $flags) or die "$path: $!";
    pass($name, $handle);
    return $handle;
}
my ($kernel, $initramfs, $disk, $tap, $api, $hvc0) = splice(@ARGV, 0, 6);
file("kvm", "/dev/kvm", O_RDWR);
file("kernel", $kernel, O_RDONLY);
file("initramfs", $initramfs, O_RDONLY);
file("root", $disk, O_RDWR);
for my $queue ("net0", "net1") {
    my $handle = file($queue, "/dev/net/tun", O_RDWR);
    # TUNSETIFF with IFF_TAP, IFF_NO_PI, IFF_VNET_HDR and IFF_MULTI_QUEUE.
    ioctl($handle, 0x400454ca, pack("a16 S x22", $tap, 0x5102)) or die "TUNSETIFF: $!";
}
for (["api", $api], ["hvc0", $hvc0]) {
    my ($name, $path) = @$_;
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    bind($socket, sockaddr_un($path)) && listen($socket, 16) or die "$path: $!";
    pass($name, $socket);
}
# Where it makes the sockets of its ports is its own.
m{socket=(.*)/} and chown(65534, 65534, $1) for @ARGV;
@ENV{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} = ($$, scalar(@open), join(":", @names));
exec("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs", @ARGV);
die "setpriv: $!";
"#;

/// A copy of `paddock` that everybody may run.
fn program(directory: &Path) -> PathBuf {
    let program = directory.join("paddock");
    fs::copy(files::paddock(), &program).unwrap();
    for path in [directory, &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    program
}

#[test]
fn nobody_runs_a_vm_from_what_is_passed() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let (disk, socket, hvc0) = (
        directory.path().join("disk.img"),
        directory.path().join("api.sock"),
        directory.path().join("hvc0.sock"),
    );
    let image = File::create_new(&disk).unwrap();
    image.set_len(64 * MIB).unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
    let _tap = Link::tap(TAP, "multi_queue");
    run(&format!("ip addr add 10.97.0.1/24 dev {TAP}"));
    let (kernel, initramfs) = (files::guest("vmlinuz"), files::guest("initramfs.cpio"));
    let passed = [&kernel, &initramfs, &disk].map(|path| text(path).to_owned());
    let launcher = ["perl", "-e", LAUNCHER].map(str::to_owned);
    let rest = [
        TAP.to_owned(),
        text(&socket).to_owned(),
        text(&hvc0).to_owned(),
        text(&program).to_owned(),
    ];
    let mut vm = Vm::builder()
        .cpus(&2)
        .boot_files("fd:kernel", "fd:initramfs")
        .args(["--disk", "fd:root", "--net", "tap=fd:net0+net1"])
        .args(["--hvc0", "socket=fd:hvc0"])
        .launcher(launcher.into_iter().chain(passed).chain(rest))
        .boot();
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")),
        "{status}"
    );
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");

    // Each does its work, before and after a reset: the same descriptors serve again.
    let viewer = Viewer::connect(&hvc0);
    for round in 1..=2_u8 {
        uses_everything(&vm, &image, round);
        vm.shell("echo seen on hvc0 > /dev/hvc0");
        viewer.wait_for(&vm, "seen on hvc0", round.into(), BOOT_DEADLINE);
        let api = Api::at(&socket);
        let answer = api.get("/vm");
        assert_eq!(answer.body["spec"]["disks"][0]["path"], "fd:root");
        assert_eq!(answer.body["spec"]["nics"][0]["queue_pairs"], 2);
        if round == 1 {
            let mut events = api.events(answer.body["last_event"].as_u64().unwrap());
            assert!(api.act("reset").status < 300);
            events.wait_for_state("resetting");
            events.wait_for_state("running");
            vm.connect();
        }
    }
    what_is_in_use_is_not_had_twice(&Api::at(&socket));
    vm.power_off();
}

fn what_is_in_use_is_not_had_twice(api: &Api) {
    let refused = api.request("POST", "/vm/disks", Some(&json!({"path": "fd:root"})));
    assert_eq!(refused.status, 422, "{refused:?}");
    let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
    let started = api.request("POST", "/vm/disks", Some(&json!({"path": "fd:api"})));
    assert_eq!(started.status, 202, "{started:?}");
    let failure = loop {
        let job = events.wait_for("job")["job"].clone();
        if let Some(failure) = job["failure"].as_str() {
            break failure.to_owned();
        }
    };
    assert!(
        failure.contains("used already, as the API's socket"),
        "{failure}"
    );
}

fn uses_everything(vm: &Vm, image: &File, round: u8) {
    let letter = char::from(b'a' + round);
    vm.shell(&format!(
        "printf {letter}{letter}{letter}{letter} | dd of=/dev/vda bs=4 seek=1024 conv=notrunc && sync"
    ));
    let mut written = [0; 4];
    image.read_exact_at(&mut written, 4096).unwrap();
    assert_eq!(written, [b'a' + round; 4]);
    let device = vm.info().nics[0].name.clone();
    vm.call(NetUp {
        device,
        address: Some("10.97.0.2/24".to_owned()),
        gateway: None,
        mtu: None,
    });
    let mut ping = NetPing::new("10.97.0.1");
    ping.count = 5;
    let reply = vm.call(ping);
    assert!(reply.received >= 4 && reply.corrupt == 0, "{reply:?}");
}

/// The spec of a VM with all it has in the unit's directories.
fn unit_spec(name: &str) -> String {
    format!(
        r#"
[boot]
kernel = "/var/lib/paddock/{name}/vmlinuz"
initramfs = "/var/lib/paddock/{name}/initramfs.cpio"
command_line = "console=ttyS0 quiet panic=-1"
[memory]
size = "256MiB"
[[disks]]
path = "/var/lib/paddock/{name}/disk.img"
engine = "io_uring"
[console]
serial = {{ file = "/var/log/paddock/{name}/serial.log" }}
[[console.ports]]
name = "paddock.probe"
socket = "/run/paddock/{name}/probe.sock"
"#
    )
}

/// What an operator puts there before the first start, as root.
fn install(systemd: &Systemd, name: &str) {
    let state = systemd.path(&format!("/var/lib/paddock/{name}"));
    fs::create_dir_all(&state).unwrap();
    for file in ["vmlinuz", "initramfs.cpio"] {
        fs::copy(files::guest(file), state.join(file)).unwrap();
    }
    let disk = state.join("disk.img");
    File::create_new(&disk).unwrap().set_len(64 * MIB).unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The unit's process and user, once it is known that these are its own, without any capability.
fn own_user(systemd: &Systemd, name: &str) -> (String, String) {
    let pid = systemd.property(&format!("paddock@{name}"), "MainPID");
    let status = systemd.shell(&format!("cat /proc/{pid}/status"));
    let status = String::from_utf8(status.stdout).unwrap();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key}: {status}")).trim()
    };
    let user = value("Uid:").split_whitespace().next().unwrap().to_owned();
    // What systemd has for users that come and go.
    assert!((61184..=65519).contains(&user.parse::<u32>().unwrap()));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), "0000000000000000", "{set} {status}");
    }
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2");
    (pid, user)
}

fn probe(systemd: &Systemd, name: &str) -> Client {
    let socket = systemd.path(&format!("/run/paddock/{name}/probe.sock"));
    match Client::connect(socket, BOOT_DEADLINE) {
        Ok((client, _)) => client,
        Err(error) => systemd.fail(&format!("paddock@{name}"), &format!("no probe: {error:?}")),
    }
}

#[test]
fn units_under_a_real_systemd() {
    let names = ["web", "db"];
    let systemd = Systemd::start(&names.map(|name| (name, unit_spec(name))));
    for name in names {
        install(&systemd, name);
        systemd.start_unit(&format!("paddock@{name}"));
    }
    nobody_has_what_is_anothers(&systemd);

    let (unit, socket) = ("paddock@web", systemd.path("/run/paddock/web/api.sock"));
    let guest = probe(&systemd, "web");
    let written = Exec::shell("printf seen | dd of=/dev/vda bs=4 seek=1024 conv=notrunc && sync");
    let written = guest.call(written, CALL_DEADLINE).unwrap();
    assert!(written.success(), "{written:?}");
    let mut seen = [0; 4];
    let disk = systemd.path("/var/lib/private/paddock/web/disk.img");
    let disk = File::open(disk).unwrap();
    disk.read_exact_at(&mut seen, 4096).unwrap();
    assert_eq!(&seen, b"seen");
    assert_eq!(Api::at(&socket).get("/vm").body["state"], "running");

    // Whoever connects to a VM that has powered off does not start it.
    let _ = guest.call(PowerOff {}, CALL_DEADLINE);
    systemd.wait_for(unit, "ActiveState", "inactive", END_DEADLINE);
    assert!(UnixStream::connect(&socket).is_err());
    sleep(Duration::from_secs(4));
    assert_eq!(systemd.property(unit, "ActiveState"), "inactive");
    assert_eq!(systemd.property(unit, "Result"), "success");

    // One whose VMM dies is started again; one that is stopped from outside is not.
    systemd.start_unit(unit);
    assert_eq!(systemd.property(unit, "NRestarts"), "0");
    systemd.kill(unit, "KILL");
    systemd.wait_for(unit, "NRestarts", "1", END_DEADLINE);
    systemd.wait_for(unit, "ActiveState", "active", BOOT_DEADLINE);
    assert_eq!(Api::at(&socket).get("/vm").body["state"], "running");
    systemd.kill(unit, "QUIT");
    systemd.wait_for(unit, "ActiveState", "inactive", END_DEADLINE);
    sleep(Duration::from_secs(4));
    assert_eq!(systemd.property(unit, "ActiveState"), "inactive");
    assert_eq!(systemd.property(unit, "Result"), "success");
    assert_eq!(systemd.property("paddock@db", "ActiveState"), "active");
}

/// As whoever has taken over the VMM of `web` could try.
fn nobody_has_what_is_anothers(systemd: &Systemd) {
    let (pid, user) = own_user(systemd, "web");
    assert_ne!(own_user(systemd, "db").1, user);
    let may = |command: &str| {
        let within =
            format!("nsenter -t {pid} -m setpriv --reuid={user} --regid={user} --clear-groups");
        let done = systemd.shell(&format!("{within} {command}"));
        done.status.success()
    };
    for (own, name) in [(true, "web"), (false, "db")] {
        assert_eq!(
            may(&format!("head -c 1 /var/lib/paddock/{name}/disk.img")),
            own
        );
        assert_eq!(may(&format!("ls /run/paddock/{name}/api.sock")), own);
        assert_eq!(may(&format!("ls /var/log/paddock/{name}/serial.log")), own);
    }
    assert!(!may("touch /etc/paddock/web.toml"));
}

/// The unit of a VM whose disk is a volume, with the drop-in that is for it.
#[test]
fn a_volume_under_a_real_systemd() {
    let name = "vol";
    let place = FileSystem::ext4(128 * MIB);
    let directory = place.path().join("r0");
    let options = ReplicaOptions::by(own_replica(), name);
    let replica = Replica::start(&directory, 64 * MIB, options);
    let volume = format!(
        "volume = {{ name = \"{name}\", replicas = [\"{}\"] }}",
        replica.control()
    );
    let file = format!("path = \"/var/lib/paddock/{name}/disk.img\"\nengine = \"io_uring\"");
    let spec = unit_spec(name).replace(&file, &volume);
    assert!(spec.contains(&volume), "{spec}");
    let systemd = Systemd::start(&[(name, spec)]);
    install(&systemd, name);
    let unit = format!("paddock@{name}");
    systemd.drop_in(&unit, "network-disks.conf", NETWORK_DISKS);
    systemd.start_unit(&unit);
    own_user(&systemd, name);

    let guest = probe(&systemd, name);
    let written = Exec::shell("printf seen | dd of=/dev/vda bs=4 seek=1024 conv=notrunc && sync");
    let written = guest.call(written, CALL_DEADLINE).unwrap();
    assert!(written.success(), "{written:?}");
    let is_dirty = || {
        let meta = fs::read_to_string(directory.join("volume.meta")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        meta["Dirty"].as_bool().unwrap()
    };
    assert!(is_dirty());
    systemd.kill(&unit, "QUIT");
    systemd.wait_for(&unit, "ActiveState", "inactive", END_DEADLINE);
    assert_eq!(systemd.property(&unit, "Result"), "success");
    assert!(!is_dirty(), "the volume was closed");
}
