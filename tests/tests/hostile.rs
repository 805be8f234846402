//! A guest driver that attacks (`paddock_probe::hostile`): more than 200 cases on each of the devices they are for, from inside a VM.
//!
//! Each case says in the guest what its device did and whether a reset recovered it. From outside, after each group: the process lives, its
//! memory is bounded, its log has grown by no more than its throttles let through, the guest's agent answers, and the
//! kernel's own driver works the device again.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use paddock_probe::hostile::{GROUPS, Kind, Outcome, Record};
use paddock_probe::protocol::{BlocksRead, Exec, ExecReply, Hello, Random, Range};
use paddock_tests::Vm;
use paddock_tests::host::{run, shell};
use paddock_tests::memory::besides_ram;

const MIB: u64 = 1 << 20;
const RAM: u64 = 256 * MIB;
const TAP: &str = "pdkhostile";
const MAC: &str = "52:54:00:12:34:99";
/// How long a group may take on one device: its storms take a second each, all else together a few.
const GROUP_DEADLINE: Duration = Duration::from_secs(300);
/// How long all groups may take on the console, where nobody can be asked in between.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(900);
/// How long the kernel's driver may take to have its device again.
const BACK_DEADLINE: Duration = Duration::from_secs(30);

/// How much the process may have in memory besides guest RAM beyond what it had before the first attack. What grows with a guest's doing: on
/// each of the disk's two queues a full ring of 256 requests of 1024 pieces of 16 bytes (4 MiB), for every other queue a buffer of 64 KiB;
/// and what malloc keeps of it when it is over, at most as much again.
const MEMORY_KIB: u64 = 2 * (2 * 4 + 1) * 1024;

/// Lines that may be logged in some time: one in five seconds of each throttle passes. A virtio function has one in its transport
/// and one for MSI-X, its device at most one more; and there is the function beside the one under attack.
fn lines_allowed(elapsed: Duration) -> usize {
    let intervals = usize::try_from(elapsed.as_secs() / 5).unwrap() + 1;
    2 * 3 * intervals
}

struct Tap;

impl Tap {
    fn new() -> Self {
        run(&format!(
            "ip tuntap add {TAP} mode tap vnet_hdr && ip link set {TAP} up"
        ));
        Self
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = shell(&format!("ip link delete {TAP}"));
    }
}

/// What is looked at from outside.
struct Watch {
    memory: u64,
    lines: usize,
    since: Instant,
    failures: Vec<String>,
}

impl Watch {
    fn new(vm: &Vm) -> Self {
        Self {
            memory: besides_ram(vm.pid(), RAM),
            lines: vm.log().lines().count(),
            since: Instant::now(),
            failures: Vec::new(),
        }
    }

    fn fail(&mut self, what: String) {
        println!("{what}");
        self.failures.push(what);
    }

    /// A part begins.
    fn begin(&mut self, vm: &Vm) {
        self.lines = vm.log().lines().count();
        self.since = Instant::now();
    }

    /// Takes the results of a part and looks at the process.
    fn end(&mut self, vm: &Vm, part: &str, output: &str, wanted: usize) {
        let records: Vec<Record> = output
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        for record in &records {
            println!("{record}");
            if record.outcome != Outcome::Passed {
                self.failures.push(record.to_string());
            }
        }
        if records.len() != wanted {
            self.fail(format!(
                "{part}: {} of {wanted} cases have a result",
                records.len()
            ));
        }
        let (elapsed, lines) = (self.since.elapsed(), vm.log().lines().count() - self.lines);
        if lines > lines_allowed(elapsed) {
            self.fail(format!("{part}: {lines} lines of log in {elapsed:?}"));
        }
        let grown = besides_ram(vm.pid(), RAM).saturating_sub(self.memory);
        if grown > MEMORY_KIB {
            self.fail(format!("{part}: {grown} KiB more than before"));
        }
        println!("{part}: {elapsed:?}, {lines} lines of log, {grown} KiB more than at first");
    }
}

/// The cases there are for a device, in one group or in all.
fn cases(kind: Kind, name: Option<&str>) -> usize {
    GROUPS
        .iter()
        .filter(|group| name.is_none_or(|name| group.name == name))
        .flat_map(|group| group.cases)
        .filter(|case| case.kinds.contains(&kind))
        .count()
}

/// Waits until something is so.
fn wait(vm: &Vm, what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !look() {
        if Instant::now() > end {
            vm.fail(&format!("{what} within {deadline:?}"));
        }
        sleep(Duration::from_millis(200));
    }
}

/// The kernel's own driver has the device back, and it works.
fn works_again(vm: &Vm, kind: Kind) {
    match kind {
        Kind::Blk => {
            wait(vm, "the disk is not back", BACK_DEADLINE, || {
                vm.info().disks.iter().any(|disk| disk.name == "vda")
            });
            let read = vm.call(BlocksRead {
                range: Range {
                    path: "/dev/vda".to_owned(),
                    offset: 0,
                    length: 4096,
                },
                direct: true,
            });
            assert_eq!((read.error, read.data.0.len()), (None, 4096));
        }
        Kind::Net => wait(vm, "the NIC is not back", BACK_DEADLINE, || {
            vm.info().nics.iter().any(|nic| nic.mac == MAC)
        }),
        Kind::Rng => {
            wait(vm, "the entropy device is not back", BACK_DEADLINE, || {
                vm.shell("cat /sys/class/misc/hw_random/rng_available")
                    .contains("virtio")
            });
            let random = vm.call(Random { bytes: 64 });
            assert_ne!(random.data.0, vec![0; 64]);
        }
        Kind::Console => wait(vm, "the ports are not back", BACK_DEADLINE, || {
            vm.info().ports.contains(&"hostile.silent".to_owned())
        }),
    }
    vm.call(Hello {});
}

/// One group on one device, asked for through the agent.
fn attack(vm: &Vm, watch: &mut Watch, kind: Kind, group: &str) {
    let wanted = cases(kind, Some(group));
    if wanted == 0 {
        return;
    }
    let part = format!("{group} on {}", kind.name());
    watch.begin(vm);
    let mut exec = Exec::argv(["paddock-probe", "--attack", kind.name(), group]);
    exec.timeout_ms = u64::try_from(GROUP_DEADLINE.as_millis()).unwrap();
    let reply: ExecReply = vm.call_within(exec, GROUP_DEADLINE + Duration::from_secs(30));
    watch.end(vm, &part, &reply.stdout.to_text(), wanted);
    if !reply.success() {
        watch.fail(format!(
            "{part}: {:?}, {}",
            reply.status,
            reply.stderr.to_text()
        ));
    }
    works_again(vm, kind);
}

/// All groups on the console. It takes the agent's own port away, so the attack runs by itself and leaves its results in a file; init
/// starts another agent as soon as the port is back.
fn attack_console(vm: &mut Vm, watch: &mut Watch) {
    watch.begin(vm);
    vm.shell(
        "mkdir -p /run/hostile && setsid sh -c 'sleep 1; paddock-probe --attack console >/run/hostile/out 2>/run/hostile/err; \
         echo $? >/run/hostile/status; echo hostile: done >/dev/console' </dev/null >/dev/null 2>&1 &",
    );
    // Nothing is said meanwhile: what the port gets is the attacker's.
    vm.wait_for_console("hostile: done", 1, CONSOLE_DEADLINE);
    vm.connect();
    let status = vm.shell("cat /run/hostile/status");
    let output = vm.shell("cat /run/hostile/out");
    watch.end(vm, "the console", &output, cases(Kind::Console, None));
    if status.trim() != "0" {
        let error = vm.shell("cat /run/hostile/err");
        watch.fail(format!("the console: status {status}, {error}"));
    }
    works_again(vm, Kind::Console);
}

#[test]
fn a_hostile_driver_hurts_nobody_but_its_guest() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    // Empty: what a device reads from it into its own rings means nothing.
    File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
    let port = |name: &str| {
        let socket = directory.path().join(name);
        (
            format!("name=hostile.{name},socket={}", socket.display()),
            socket,
        )
    };
    let (silent, socket) = port("silent");
    let (alone, _) = port("alone");
    let _tap = Tap::new();
    let mut vm = Vm::builder()
        .cpus(&2)
        // For the sweeps: /dev/mem may then be mapped where drivers of the kernel's are, too.
        .command_line("iomem=relaxed")
        .args([
            "--disk",
            &format!("path={},queues=2", disk.display()),
            "--net",
            &format!("tap={TAP},mac={MAC}"),
            "--port",
            &silent,
            "--port",
            &alone,
        ])
        .boot();
    // A client that never reads.
    let client = UnixStream::connect(socket).unwrap();
    let mut watch = Watch::new(&vm);
    for group in GROUPS {
        for kind in [Kind::Blk, Kind::Net, Kind::Rng] {
            attack(&vm, &mut watch, kind, group.name);
        }
    }
    attack_console(&mut vm, &mut watch);
    drop(client);
    let log = vm.log();
    assert!(!log.contains("panicked"), "{log}");
    vm.power_off();
    assert!(
        watch.failures.is_empty(),
        "{} failures:\n{}",
        watch.failures.len(),
        watch.failures.join("\n")
    );
}
