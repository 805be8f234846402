//! A guest driver that attacks (`paddock_probe::hostile`): more than 200 cases on each of the devices they are for, from inside a VM; and
//! on the machine around them, also on what only firmware's has.
//!
//! Each case says in the guest what its device did and whether a reset recovered it. From outside, after each group: the process lives, its
//! memory is bounded, its log has grown by no more than its throttles let through, the guest's agent answers, and the
//! kernel's own driver works the device again. All the while the API answers, and its metrics are asked for: they stay the same
//! series, and count what was broken.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use paddock_probe::hostile::{GROUPS, Group, Kind, MEM_BLOCKS, Outcome, Record};
use paddock_probe::protocol::{BlocksRead, Exec, ExecReply, Hello, Random, Range};
use paddock_tests::Vm;
use paddock_tests::api::Api;
use paddock_tests::firmware::{Scratch, Suite};
use paddock_tests::host::Link;
use paddock_tests::memory::besides_ram;
use paddock_tests::metrics::Metrics;
use paddock_tests::vm::{VmBuilder, text};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const RAM: u64 = 256 * MIB;
const TAP: &str = "pdkhostile";
const MAC: &str = "52:54:00:12:34:99";
/// How long a group may take on one device: its storms take a second each, all else together a few.
const GROUP_DEADLINE: Duration = Duration::from_secs(300);
/// How long all groups may take on the console, where nobody can be asked in between.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(900);
/// How long an answer of the API may take, on a host of two cores of which the attacker has both.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the API.
const ANSWER_INTERVAL: Duration = Duration::from_millis(300);
/// Bytes of a memory device's block.
const BLOCK: u64 = 2 * MIB;
/// The most memory the guest can have.
const MAX: u64 = 2 * RAM;
/// What the memory device asks for while it is attacked.
const REQUESTED: u64 = RAM + 2 * MEM_BLOCKS * BLOCK;
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

/// Somebody who asks for the API's metrics and the VM's state all the while.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Watcher {
    fn new(api: Api) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut wrong, mut answers, mut slowest) = (Vec::new(), 0, Duration::ZERO);
            let mut before = api.metrics();
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                let metrics = api.metrics();
                let state = api.state();
                slowest = slowest.max(start.elapsed());
                answers += 1;
                if state != "running" {
                    wrong.push(format!("the API says that the VM is {state}"));
                }
                // A label that the guest chooses would be a new series.
                if metrics.count() != before.count() {
                    wrong.push(format!(
                        "{} series, then {}",
                        before.count(),
                        metrics.count()
                    ));
                }
                let back = before.turned_back(&metrics);
                wrong.extend(
                    back.into_iter()
                        .map(|series| format!("{series} turned back")),
                );
                before = metrics;
                sleep(ANSWER_INTERVAL);
            }
            println!("{answers} answers of the API, the slowest in {slowest:?}");
            if slowest > ANSWER_DEADLINE {
                wrong.push(format!("an answer of the API took {slowest:?}"));
            }
            wrong
        });
        Self { stop, thread }
    }

    /// What was wrong so far, and never again.
    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
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

/// The groups for a machine that boots a kernel by itself.
fn groups() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().filter(|group| !group.firmware)
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

/// The kernel's own driver has the device back, and it works.
fn works_again(vm: &Vm, kind: Kind) {
    match kind {
        Kind::Blk => {
            vm.wait_until("the disk is not back", BACK_DEADLINE, || {
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
        Kind::Net => vm.wait_until("the NIC is not back", BACK_DEADLINE, || {
            vm.info().nics.iter().any(|nic| nic.mac == MAC)
        }),
        Kind::Rng => {
            vm.wait_until("the entropy device is not back", BACK_DEADLINE, || {
                vm.shell("cat /sys/class/misc/hw_random/rng_available")
                    .contains("virtio")
            });
            let random = vm.call(Random { bytes: 64 });
            assert_ne!(random.data.0, vec![0; 64]);
        }
        Kind::Balloon => balloon_works(vm),
        Kind::Mem => memory_works(vm),
        Kind::Scsi => vm.wait_until("the CD-ROM drive is not back", BACK_DEADLINE, || {
            vm.shell("cat /sys/block/sr*/device/vendor || true")
                .contains("PADDOCK")
        }),
        Kind::Console => vm.wait_until("the ports are not back", BACK_DEADLINE, || {
            vm.info().ports.contains(&"hostile.silent".to_owned())
        }),
    }
    vm.call(Hello {});
}

/// The API's answer, which is no problem.
fn get(vm: &Vm, path: &str) -> Value {
    let answer = vm.api().get(path);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

fn put(vm: &Vm, path: &str, body: &Value) {
    let answer = vm.api().request("PUT", path, Some(body));
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// It is inflated and deflated.
fn balloon_works(vm: &Vm) {
    vm.wait_until("the balloon is not back", BACK_DEADLINE, || {
        get(vm, "/vm/balloon")["driver"] == true
    });
    for target in [4 * MIB, 0] {
        put(vm, "/vm/balloon", &json!({ "target": target }));
        vm.wait_until(
            "the balloon does not reach its target",
            BACK_DEADLINE,
            || get(vm, "/vm/balloon")["actual"] == target,
        );
    }
}

/// Memory is plugged in. It is not taken back: Linux takes its time.
fn memory_works(vm: &Vm) {
    vm.wait_until("the memory device is not back", BACK_DEADLINE, || {
        get(vm, "/vm/memory")["driver"] == true
    });
    let requested = RAM + 64 * MIB;
    put(vm, "/vm/memory", &json!({ "requested": requested }));
    vm.wait_until("the memory does not grow", BACK_DEADLINE, || {
        get(vm, "/vm/memory")["plugged"] == requested
    });
}

/// All groups on the memory device. The kernel does not have it in between: what is plugged in must be nobody's but the attacker's.
fn attack_memory(vm: &Vm, watch: &mut Watch) {
    const EACH: &str =
        "for at in /sys/bus/pci/devices/*; do [ $(cat $at/device) = 0x1058 ] || continue;";
    vm.shell(&format!(
        "{EACH} echo nobody >$at/driver_override; basename $at >$at/driver/unbind; done"
    ));
    vm.wait_until("the kernel keeps the memory device", BACK_DEADLINE, || {
        get(vm, "/vm/memory")["driver"] == false
    });
    put(vm, "/vm/memory", &json!({ "requested": REQUESTED }));
    for group in groups() {
        attack(vm, watch, Kind::Mem, group.name);
        vm.call(Hello {});
    }
    put(vm, "/vm/memory", &json!({ "requested": RAM }));
    vm.shell(&format!(
        "{EACH} echo >$at/driver_override; basename $at >/sys/bus/pci/drivers_probe; done"
    ));
    works_again(vm, Kind::Mem);
}

/// What the attacks must have left in the metrics.
fn judge_metrics(
    watch: &mut Watch,
    before: &Metrics,
    after: &Metrics,
    devices: &[&str],
    risen: &[&str],
) {
    let rise =
        |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    for kind in devices {
        let resets = rise("paddock_device_needs_reset_total", &[("kind", kind)]);
        println!("{kind}: {resets} times in need of a reset");
        if resets < 50.0 {
            watch.fail(format!("{kind}: only {resets} times in need of a reset"));
        }
    }
    for name in risen {
        let rise = rise(name, &[]);
        println!("{name}: {rise} more");
        if rise <= 0.0 {
            watch.fail(format!("{name} did not rise"));
        }
    }
    for name in [
        "paddock_balloon_errors_total",
        "paddock_vm_memory_errors_total",
    ] {
        let rise = rise(name, &[]);
        if rise != 0.0 {
            watch.fail(format!("{name}: {rise} more, and the host has enough"));
        }
    }
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

/// A VM under attack, looked at from all sides.
struct Trial {
    vm: Vm,
    watch: Watch,
    watcher: Watcher,
    before: Metrics,
}

impl Trial {
    fn new(builder: VmBuilder) -> Self {
        // For the sweeps: /dev/mem may then be mapped where drivers of the kernel's are, too.
        let vm = builder.cpus(&2).command_line("iomem=relaxed").api().boot();
        let (watch, before) = (Watch::new(&vm), vm.api().metrics());
        let watcher = Watcher::new(vm.api());
        Self {
            vm,
            watch,
            watcher,
            before,
        }
    }

    /// All groups, on one device after another.
    fn attack(&mut self, kinds: &[Kind]) {
        for group in groups() {
            for kind in kinds {
                attack(&self.vm, &mut self.watch, *kind, group.name);
                works_again(&self.vm, *kind);
            }
        }
    }

    /// The end: each of these devices was broken over and over, and these counters have risen. The VM goes on.
    fn judge(mut self, devices: &[&str], risen: &[&str]) -> Vm {
        for wrong in self.watcher.stop() {
            self.watch.fail(wrong);
        }
        let after = self.vm.api().metrics();
        judge_metrics(&mut self.watch, &self.before, &after, devices, risen);
        let log = self.vm.log();
        assert!(!log.contains("panicked"), "{log}");
        let failures = self.watch.failures;
        let count = failures.len();
        assert!(count == 0, "{count} failures:\n{}", failures.join("\n"));
        self.vm
    }
}

#[test]
fn a_hostile_driver_gives_and_takes_no_memory_but_its_own() {
    let builder = Vm::builder()
        .command_line("memhp_default_state=online_movable")
        .memory(&format!("{RAM},max={MAX}"))
        .args(["--balloon", "size=0,free-page-reporting=on"]);
    let mut trial = Trial::new(builder);
    trial.attack(&[Kind::Balloon]);
    attack_memory(&trial.vm, &mut trial.watch);
    let vm = trial.judge(
        &["balloon", "memory"],
        &[
            "paddock_balloon_inflated_bytes_total",
            "paddock_balloon_reported_bytes_total",
            "paddock_balloon_refused_pages_total",
            "paddock_vm_memory_refused_requests_total",
        ],
    );
    vm.power_off();
}

#[test]
fn a_hostile_driver_reads_its_medium_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let medium = directory.path().join("medium.iso");
    // Empty: what a drive reads from it into its adapter's rings means nothing.
    File::create(&medium).unwrap().set_len(8 * MIB).unwrap();
    let builder = Vm::builder().args(["--cdrom", text(&medium)]);
    let mut trial = Trial::new(builder);
    trial.attack(&[Kind::Scsi]);
    trial.judge(
        &["cdrom"],
        &[
            "paddock_cdrom_commands_total",
            "paddock_cdrom_read_bytes_total",
        ],
    );
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
    let _tap = Link::tap(TAP, "vnet_hdr");
    let mut trial = Trial::new(Vm::builder().args([
        "--disk",
        &format!("path={},queues=2", disk.display()),
        "--net",
        &format!("tap={TAP},mac={MAC}"),
        "--port",
        &silent,
        "--port",
        &alone,
    ]));
    // A client that never reads.
    let client = UnixStream::connect(socket).unwrap();
    trial.attack(&[Kind::Blk, Kind::Net, Kind::Rng]);
    attack_console(&mut trial.vm, &mut trial.watch);
    drop(client);
    let vm = trial.judge(
        &["disk", "nic", "rng", "console"],
        &[
            "paddock_disk_errors_total",
            "paddock_nic_transmit_errors_total",
            "paddock_nic_control_errors_total",
            "paddock_rng_requests_total",
        ],
    );
    vm.power_off();
}

/// What only firmware's machine has, and the chipset as firmware left it. Firmware then finds all of it again: it boots the same VM after a
/// reset, and another one with the same variables.
#[test]
fn a_hostile_driver_leaves_firmware_what_it_needs() {
    let scratch = Scratch::new();
    let vm = || {
        let vm = Suite::Trixie.vm().memory("512M");
        vm.args(scratch.variables()).args(scratch.disk("uki.raw"))
    };
    let mut trial = Trial::new(vm());
    let chosen = |group: &&Group| group.firmware || group.name == "chipset";
    for group in GROUPS.iter().filter(chosen) {
        attack(&trial.vm, &mut trial.watch, Kind::Rng, group.name);
        works_again(&trial.vm, Kind::Rng);
    }
    let mut first = trial.judge(&[], &["paddock_rng_requests_total"]);
    first.reboot(2);
    first.power_off();
    vm().boot().power_off();
}
