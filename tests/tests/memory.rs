//! Memory that grows and shrinks while the guest runs, seen from both sides: what the guest has more, the process holds once it is used,
//! and no longer when it was taken back.
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

use paddock_probe::protocol::{MemoryTouch, MemoryVerify};
use paddock_tests::host::run;
use paddock_tests::{Vm, amount, memory, within};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// What the guests here start with.
const SIZE: u64 = 320 * MIB;
/// What most of them get.
const MORE: u64 = 512 * MIB;
const GROWN: u64 = SIZE + MORE;
/// More than they start with: what uses so much has it in what was added.
const USED: u64 = 560 * MIB;
/// What the process then holds more, and later less, at least.
const MOST: u64 = 350 * MIB;
/// How long a guest may take for it. When it could not, Linux tries again after 50 seconds, and then after twice that.
const DEADLINE: Duration = Duration::from_secs(240);
const LONG: Duration = Duration::from_secs(180);
/// virtio-mem's PCI device id.
const DEVICE: u16 = 0x1058;

/// A VM with an API whose memory may grow; what is added is used by programs only, so that it can be taken back.
fn boot(memory: &str) -> Vm {
    let vm = Vm::builder()
        .api()
        .memory(memory)
        .command_line("memhp_default_state=online_movable")
        .boot();
    let info = vm.info();
    let devices = info.pci.iter().filter(|f| f.device == DEVICE);
    assert_eq!(devices.count(), 1);
    until(&vm, "the guest has no driver", || {
        memory_of(&vm)["driver"] == true
    });
    vm
}

/// The memory, as the API tells it.
fn memory_of(vm: &Vm) -> Value {
    let answer = vm.api().get("/vm/memory");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

fn plugged(vm: &Vm) -> u64 {
    memory_of(vm)["plugged"].as_u64().unwrap()
}

/// Asks for so much memory.
fn ask(vm: &Vm, requested: u64) {
    let body = json!({ "requested": requested });
    let answer = vm.api().request("PUT", "/vm/memory", Some(&body));
    assert_eq!(
        (answer.status, &answer.body["requested"]),
        (202, &json!(requested))
    );
}

/// Asks for so much memory, and waits until the guest has it.
fn set(vm: &Vm, requested: u64) {
    ask(vm, requested);
    until(vm, "the guest does not do as it is asked", || {
        plugged(vm) == requested
    });
}

/// What the process holds: resident bytes.
fn held(vm: &Vm) -> u64 {
    memory::held(vm.pid()).0
}

/// How much memory the guest says it has.
fn total(vm: &Vm) -> u64 {
    vm.meminfo("MemTotal")
}

/// Waits until the guest has `bytes`, give or take what it sets aside for itself.
fn has(vm: &Vm, bytes: u64) {
    until(
        vm,
        &format!("the guest does not have {bytes} bytes"),
        || total(vm).abs_diff(bytes) < 16 * MIB,
    );
}

fn until(vm: &Vm, what: &str, done: impl FnMut() -> bool) {
    if !within(DEADLINE, done) {
        let (held, memory) = (held(vm), memory_of(vm));
        vm.fail(&format!("{what}; the process holds {held} bytes, {memory}"));
    }
}

/// Has the guest use memory and checks that it keeps what is written to it. It holds on to it.
fn use_memory(vm: &Vm, size: u64) {
    vm.call_within(MemoryTouch { size }, LONG);
    let verified = vm.call_within(MemoryVerify {}, LONG);
    assert_eq!((verified.pages, verified.wrong), (size / 4096, 0));
}

fn let_go(vm: &Vm) {
    vm.call(MemoryTouch { size: 4096 });
}

/// Nothing about the memory was worth a warning.
fn was_quiet(vm: &Vm) {
    let log = vm.log();
    let loud = ["memory device: ", "needs a reset", "panicked"];
    if loud.iter().any(|word| log.contains(word)) {
        vm.fail("the log has warnings");
    }
}

/// Grows, uses what is new, shrinks, and starts small after a reset.
fn grows_and_shrinks(options: &str) {
    let mut vm = boot(&format!("{}M,max=2G{options}", SIZE / MIB));
    let all = json!({"size": SIZE, "max": 2048 * MIB, "requested": SIZE, "plugged": SIZE, "driver": true});
    assert_eq!(memory_of(&vm), all);
    let first = total(&vm);
    let small = held(&vm);
    assert!(small < SIZE + 64 * MIB, "the process holds {small}");

    set(&vm, GROWN);
    has(&vm, first + MORE);
    let plugged_in = held(&vm);
    assert!(
        plugged_in < small + MORE / 2,
        "it costs {plugged_in} before it is used"
    );
    use_memory(&vm, USED);
    let large = held(&vm);
    assert!(large >= small + MOST, "{small}, and in use {large}");

    let_go(&vm);
    set(&vm, SIZE);
    has(&vm, first);
    until(&vm, "the process holds on to memory", || {
        held(&vm) + MOST <= large
    });
    use_memory(&vm, SIZE / 4);
    let_go(&vm);

    for (_, more) in (0..amount(2, 8)).zip([256, 8, 384, 132].into_iter().cycle()) {
        let more = more * MIB;
        set(&vm, SIZE + more);
        set(&vm, SIZE);
    }

    // The guest starts with what it had at first, and is asked for as much as before its reset.
    set(&vm, GROWN);
    has(&vm, first + MORE);
    use_memory(&vm, USED);
    let large = held(&vm);
    vm.reboot(2);
    assert!(
        held(&vm) + MOST <= large,
        "what was plugged in outlived the reset"
    );
    let map = vm.shell("cat /sys/firmware/memmap/*/start");
    let starts = map.lines().map(|start| start.trim_start_matches("0x"));
    let high = starts.filter(|start| u64::from_str_radix(start, 16).unwrap() >= 4 << 30);
    assert_eq!(high.count(), 0, "the memory map tells of it: {map}");
    until(&vm, "what is asked is gone after a reset", || {
        plugged(&vm) == GROWN
    });
    has(&vm, first + MORE);
    use_memory(&vm, USED);
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn private_memory_grows_and_shrinks() {
    grows_and_shrinks("");
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let vm = boot(&format!("{}M,max=1G", SIZE / MIB));
    for requested in [0, SIZE - 2 * MIB, SIZE + MIB, 1026 * MIB] {
        let body = json!({ "requested": requested });
        let answer = vm.api().request("PUT", "/vm/memory", Some(&body));
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    assert_eq!(memory_of(&vm)["requested"], SIZE);
    vm.power_off();
}

#[test]
fn huge_pages_are_there_before_they_are_plugged_in() {
    const START: u64 = 256 * MIB;
    run("echo 160 > /proc/sys/vm/nr_hugepages");
    let free = || -> u64 {
        let count = run("cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let reserved = run("cat /sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages");
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        number(&count) - number(&reserved)
    };
    let vm = boot(&format!("{}M,max=1G,hugepages=2M", START / MIB));
    assert_eq!(free(), 32, "what it may grow by is not reserved");
    set(&vm, START + 32 * MIB);
    assert_eq!(free(), 16);
    // More than the pool has: the guest gets what there is, and lives.
    ask(&vm, START + 256 * MIB);
    sleep(Duration::from_secs(15));
    let now = plugged(&vm);
    assert!(
        (START + 32 * MIB..=START + 64 * MIB).contains(&now),
        "{now} bytes"
    );
    assert_eq!(free(), 32 - (now - START) / (2 * MIB));
    use_memory(&vm, 128 * MIB);
    let_go(&vm);
    set(&vm, START);
    assert_eq!(free(), 32);
    vm.power_off();
    run("echo 0 > /proc/sys/vm/nr_hugepages");
}

/// Of what CI does once, the rest.
mod soak {
    use super::*;

    #[test]
    fn shared_memory_grows_and_shrinks() {
        grows_and_shrinks(",shared=on");
    }
}
