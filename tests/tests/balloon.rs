//! The balloon, seen from both sides: what the guest gives, the process no longer holds.
//!
//! Where the target is the spec's, the guest's driver is taken off the device and put back, which deflates the balloon and inflates it to the
//! target again while the VM runs. One test sets it by the API.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::thread::sleep;
use std::time::Duration;

use paddock_probe::protocol::{Exec, MemoryTouch, MemoryVerify};
use paddock_tests::host::run;
use paddock_tests::{Vm, amount, memory, within};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// What the guests here have.
const MEMORY: u64 = 320 * MIB;
/// What they are asked to give.
const BALLOON: u64 = 96 * MIB;
/// What they use to see whether it is good memory.
const USED: u64 = 160 * MIB;
/// What the process holds at least once they have used nearly everything.
const FULL: u64 = 220 * MIB;
/// How long a guest may take to give it, or to report what it left free: Linux looks every two seconds.
const DEADLINE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(180);
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";
/// virtio-balloon's PCI device id.
const DEVICE: u16 = 0x1045;

/// A VM with a balloon; `memory` says more of its memory.
fn boot(memory: &str, balloon: &str) -> Vm {
    let vm = Vm::builder()
        .memory(&format!("{}M{memory}", MEMORY / MIB))
        .args(["--balloon", balloon])
        .boot();
    let info = vm.info();
    let balloons = info.pci.iter().filter(|f| f.device == DEVICE);
    assert_eq!(balloons.count(), 1);
    vm
}

/// What the process holds: resident bytes, and its share of them.
fn held(vm: &Vm) -> (u64, u64) {
    memory::held(vm.pid())
}

fn until(vm: &Vm, what: &str, done: impl FnMut() -> bool) {
    if !within(DEADLINE, done) {
        let held = held(vm);
        vm.fail(&format!("{what}; the process holds {held:?} bytes"));
    }
}

/// Waits until the process holds `bytes` less than `before`, by either count.
fn given_back(vm: &Vm, before: (u64, u64), bytes: u64) {
    until(vm, "the process holds on to memory", || {
        let now = held(vm);
        now.0 + bytes <= before.0 && now.1 + bytes <= before.1
    });
}

/// Has the guest use all its memory but `rest` for a file, and remove it again or keep it.
fn fill(vm: &Vm, rest: i64, keep: bool) {
    let available = i64::try_from(vm.meminfo("MemAvailable") / MIB).unwrap();
    let count = available - rest;
    let remove = if keep { "" } else { "&& rm /fill/file" };
    let line = format!(
        "mkdir -p /fill && {{ grep -q ' /fill ' /proc/mounts || mount -t tmpfs -o size=1G fill /fill; }} && \
         dd if=/dev/zero of=/fill/file bs=1M count={count} 2>&1 {remove}"
    );
    let mut exec = Exec::shell(line);
    exec.timeout_ms = 120_000;
    let reply = vm.call_within(exec, LONG);
    assert!(reply.success(), "{reply:?}");
}

/// The device's name on the guest's virtio bus.
fn device(vm: &Vm) -> String {
    let name = vm.shell(&format!("cd {DRIVER} && echo virtio*"));
    name.trim().to_owned()
}

fn bind(vm: &Vm, device: &str, how: &str) {
    vm.shell(&format!("echo {device} > {DRIVER}/{how}"));
}

/// The feature bits that the guest's driver took.
fn features(vm: &Vm, device: &str) -> Vec<usize> {
    let bits = vm.shell(&format!("cat /sys/bus/virtio/devices/{device}/features"));
    let bits = bits.trim().bytes().enumerate();
    bits.filter(|(_, bit)| *bit == b'1')
        .map(|(index, _)| index)
        .collect()
}

/// Nothing about the balloon was worth a warning.
fn was_quiet(vm: &Vm) {
    let log = vm.log();
    let loud = ["balloon: ", "needs a reset", "panicked"];
    if loud.iter().any(|word| log.contains(word)) {
        vm.fail("the log has warnings");
    }
}

/// Has the guest use memory and checks that it keeps what is written to it.
fn use_memory(vm: &Vm) {
    vm.call_within(MemoryTouch { size: USED }, LONG);
    let verified = vm.call_within(MemoryVerify {}, LONG);
    assert_eq!((verified.pages, verified.wrong), (USED / 4096, 0));
    vm.call(MemoryTouch { size: 4096 });
}

/// Inflates and deflates by driver, and by a reset.
fn inflates_and_deflates(memory: &str) {
    let target = format!("{}M,free-page-reporting=off", BALLOON / MIB);
    let mut vm = boot(memory, &target);
    let name = device(&vm);
    assert_eq!(features(&vm, &name), [1, 32], "STATS_VQ, VERSION_1");

    bind(&vm, &name, "unbind");
    let all = vm.meminfo("MemTotal");
    // Nearly every page of the guest's has been used, so that what the balloon takes was held by the process.
    fill(&vm, 32, false);
    let before = held(&vm);
    assert!(before.0 > FULL, "the process holds {before:?}");
    sleep(Duration::from_secs(5));
    let still = held(&vm);
    assert!(
        still.0 + 16 * MIB > before.0,
        "nobody gave anything back: {before:?}, {still:?}"
    );

    bind(&vm, &name, "bind");
    until(&vm, "the guest does not give what it is asked for", || {
        vm.meminfo("MemTotal") == all - BALLOON
    });
    given_back(&vm, before, 48 * MIB);

    // It can have it again, and all of it is good memory.
    bind(&vm, &name, "unbind");
    assert_eq!(vm.meminfo("MemTotal"), all);
    use_memory(&vm);

    // The target outlives a reset, and a balloon that was full before it.
    bind(&vm, &name, "bind");
    until(&vm, "the guest does not give it again", || {
        vm.meminfo("MemTotal") == all - BALLOON
    });
    vm.reboot(2);
    until(&vm, "the target is gone after a reset", || {
        vm.meminfo("MemTotal").abs_diff(all - BALLOON) < MIB
    });
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn private_memory_is_given_back_and_returned() {
    inflates_and_deflates("");
}

#[test]
fn what_the_guest_leaves_free_is_given_back_unasked() {
    let vm = boot("", "0");
    let name = device(&vm);
    assert_eq!(
        features(&vm, &name),
        [1, 5, 32],
        "STATS_VQ, PAGE_REPORTING, VERSION_1"
    );
    let total = vm.meminfo("MemTotal");
    let kept = vm.shell("dd if=/dev/urandom of=/kept bs=1M count=16 2>/dev/null && md5sum /kept");
    fill(&vm, 32, true);
    let full = held(&vm);
    assert!(full.0 > FULL, "the process holds {full:?}");
    vm.shell("rm /fill/file");
    given_back(&vm, full, 160 * MIB);
    assert_eq!(vm.meminfo("MemTotal"), total, "the guest still has it");
    // Once more: what was reported is used again, and reported again.
    fill(&vm, 32, true);
    let again = held(&vm);
    assert!(again.0 > FULL, "the process holds {again:?}");
    vm.shell("rm /fill/file");
    given_back(&vm, again, 160 * MIB);
    assert_eq!(vm.shell("md5sum /kept"), kept);
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn a_guest_in_need_takes_memory_back() {
    let target = format!("{}M,deflate-on-oom,free-page-reporting=off", BALLOON / MIB);
    let vm = boot("", &target);
    let name = device(&vm);
    assert_eq!(
        features(&vm, &name),
        [1, 2, 32],
        "STATS_VQ, DEFLATE_ON_OOM, VERSION_1"
    );
    // Linux counts it as used: it may have it back.
    let total = vm.meminfo("MemTotal");
    until(&vm, "the guest does not give what it is asked for", || {
        vm.meminfo("MemFree") + BALLOON < total
    });
    // 40 MiB more than there are: without its balloon the guest would kill a process.
    fill(&vm, -40, true);
    assert!(vm.meminfo("MemFree") < 32 * MIB);
    assert!(
        !vm.shell("dmesg").contains("Killed process"),
        "the guest had memory left"
    );
    vm.shell("rm /fill/file");
    vm.power_off();
}

#[test]
fn huge_pages_are_given_back_whole() {
    run("echo 160 > /proc/sys/vm/nr_hugepages");
    let free = || -> u64 {
        let count = run("cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        count.trim().parse().unwrap()
    };
    let target = format!("{}M", BALLOON / MIB);
    let vm = boot(",hugepages=2M", &target);
    let name = device(&vm);
    assert_eq!(
        features(&vm, &name),
        [0, 1, 32],
        "MUST_TELL_HOST, STATS_VQ, VERSION_1"
    );
    bind(&vm, &name, "unbind");
    let all = vm.meminfo("MemTotal");
    fill(&vm, 32, false);
    let used = free();
    bind(&vm, &name, "bind");
    until(&vm, "the guest does not give what it is asked for", || {
        vm.meminfo("MemTotal") == all - BALLOON
    });
    // It has given 48 of them, in small pages: some lie in the balloon only in part, and some were never used.
    until(&vm, "the pool does not get its pages", || {
        free() >= used + 16
    });
    bind(&vm, &name, "unbind");
    use_memory(&vm);
    was_quiet(&vm);
    vm.power_off();
    run("echo 0 > /proc/sys/vm/nr_hugepages");
}

#[test]
fn the_target_is_set_and_statistics_are_read_while_the_guest_runs() {
    let mut vm = Vm::builder()
        .api()
        .memory(&format!("{}M", MEMORY / MIB))
        .args(["--balloon", "0,free-page-reporting=off"])
        .boot();
    let api = vm.api();
    let balloon = || api.get("/vm/balloon").body;
    // Sets the target, and waits until the guest has done as it is asked.
    let set = |vm: &Vm, target: u64| {
        let body = json!({ "target": target });
        let answer = api.request("PUT", "/vm/balloon", Some(&body));
        assert_eq!(
            (answer.status, &answer.body["target"]),
            (202, &json!(target))
        );
        until(vm, "the guest does not do as it is asked", || {
            balloon()["actual"] == target
        });
    };
    let statistics = || {
        let answer = api.get("/vm/balloon/statistics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let value = |name: &str| answer.body[name].as_u64().unwrap();
        (value("total"), value("free"), value("available"))
    };
    let all = vm.meminfo("MemTotal");
    fill(&vm, 32, false);
    let before = held(&vm);
    let (total, free, available) = statistics();
    assert_eq!(total, all);
    let near = 16 * MIB;
    assert!(free.abs_diff(vm.meminfo("MemFree")) < near, "{free}");
    assert!(
        available.abs_diff(vm.meminfo("MemAvailable")) < near,
        "{available}"
    );

    set(&vm, BALLOON);
    assert_eq!(vm.meminfo("MemTotal"), all - BALLOON);
    given_back(&vm, before, 48 * MIB);
    let (total, less, _) = statistics();
    assert_eq!(total, all - BALLOON);
    assert!(less + BALLOON < free + near, "{free} were free, now {less}");
    assert!(balloon()["inflated_bytes"].as_u64().unwrap() >= BALLOON);
    set(&vm, BALLOON / 3);
    assert_eq!(vm.meminfo("MemTotal"), all - BALLOON / 3);

    // The target outlives a reset, the guest's word does not outlive its driver.
    vm.reboot(2);
    until(&vm, "the target is gone after a reset", || {
        balloon()["actual"] == BALLOON / 3
    });
    let name = device(&vm);
    bind(&vm, &name, "unbind");
    let now = balloon();
    assert_eq!((&now["actual"], &now["driver"]), (&json!(0), &json!(false)));
    assert_eq!(api.get("/vm/balloon/statistics").status, 409);
    bind(&vm, &name, "bind");
    for _ in 0..amount(3, 25) {
        set(&vm, BALLOON);
        set(&vm, 0);
    }
    assert_eq!(statistics().0, vm.meminfo("MemTotal"));
    use_memory(&vm);
    was_quiet(&vm);
    vm.power_off();
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn shared_memory_is_given_back_and_returned() {
        inflates_and_deflates(",shared=on");
    }
}
