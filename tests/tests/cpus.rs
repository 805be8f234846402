//! CPUs that come and go while the guest runs, seen from both sides: Linux finds what is plugged in by itself, runs programs on it once it
//! is online, and lets go of it when asked, if it can.
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

use paddock_probe::protocol::{CpuSpin, Cpus};
use paddock_tests::host::run;
use paddock_tests::threads::cpu_time;
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Vm, amount, within};
use serde_json::{Value, json};

/// Where Linux can be told not to let go of CPUs.
const LETS_GO: &str = "/sys/firmware/acpi/hotplug/processor/enabled";

fn boot(cpus: &str) -> Vm {
    Vm::builder().api().cpus(cpus).boot()
}

/// The CPUs, as the API tells it.
fn cpus_of(vm: &Vm) -> Value {
    let answer = vm.api().get("/vm/cpus");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Asks for so many, and gives the job.
#[track_caller]
fn ask(vm: &Vm, wanted: u64, deadline_ms: u64) -> Value {
    let path = format!("/vm/cpus?deadline_ms={deadline_ms}");
    let answer = vm
        .api()
        .request("PUT", &path, Some(&json!({ "wanted": wanted })));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.body["kind"], "resize-cpus");
    answer.body
}

/// Has so many CPUs, and waits until the guest has them.
#[track_caller]
fn set(vm: &Vm, wanted: u64) {
    let total = wanted.abs_diff(cpus_of(vm)["present"].as_u64().unwrap());
    let started = ask(vm, wanted, 60_000);
    let job = vm.end_of_job(&started);
    if job["state"] != "succeeded" {
        vm.fail(&job.to_string());
    }
    let all = json!({"done": total, "total": total});
    assert_eq!(job.get("progress"), (total > 0).then_some(&all), "{job}");
    let now = cpus_of(vm);
    assert_eq!(
        (&now["wanted"], &now["present"], &now["job"]),
        (&json!(wanted), &json!(wanted), &Value::Null)
    );
    has(vm, wanted);
}

/// Waits until the guest has so many CPUs, puts them all online, as distributions do by a udev rule, and sees that each runs programs.
#[track_caller]
fn has(vm: &Vm, count: u64) {
    let all: Vec<u32> = (0..u32::try_from(count).unwrap()).collect();
    until(vm, &format!("the guest does not have CPUs {all:?}"), || {
        vm.call(Cpus {}).present == all
    });
    // A CPU is present a moment before it has this file.
    vm.shell(&format!(
        "for n in $(seq 1 {}); do \
           f=/sys/devices/system/cpu/cpu$n/online; \
           until [ -e $f ]; do sleep 0.1; done; \
           [ $(cat $f) = 1 ] || echo 1 > $f; \
         done",
        count - 1
    ));
    let cpus = vm.call(Cpus {});
    assert_eq!((&cpus.online, &cpus.ran), (&all, &all));
}

fn until(vm: &Vm, what: &str, done: impl FnMut() -> bool) {
    if !within(CALL_DEADLINE, done) {
        vm.fail(&format!("{what}; {}", cpus_of(vm)));
    }
}

/// The numbers of the vCPUs that have a thread.
fn threads(vm: &Vm) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vm.pid())).unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut numbers: Vec<u32> = names
        .filter_map(|name| name.trim().strip_prefix("vcpu")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// How often a vCPU has left the guest so far, and whether it is told at all.
fn exits(vm: &Vm, vcpu: u32) -> Option<f64> {
    let series = format!("paddock_vcpu_exits_total{{vcpu=\"{vcpu}\",kind=\"port-write\"}}");
    vm.api().metrics().find(&series)
}

/// A vCPU's thread takes next to no CPU time.
#[track_caller]
fn stands_still(vm: &Vm, thread: &str) {
    const WHILE: Duration = Duration::from_millis(500);
    let before = cpu_time(vm.pid(), thread).unwrap();
    sleep(WHILE);
    let spent = cpu_time(vm.pid(), thread).unwrap() - before;
    assert!(spent < WHILE / 10, "{thread} took {spent:?}");
}

/// Nothing about the CPUs was worth a warning, to either side.
fn was_quiet(vm: &Vm) {
    let (log, kernel) = (vm.log(), vm.shell("dmesg"));
    let loud = ["setting a vCPU back", "nobody wants back", "panicked"];
    if loud.iter().any(|word| log.contains(word)) {
        vm.fail("the log has warnings");
    }
    let loud = ["ACPI Error", "ACPI BIOS Error", "WARNING:", "BUG:"];
    if let Some(line) = kernel
        .lines()
        .find(|line| loud.iter().any(|word| line.contains(word)))
    {
        vm.fail(&format!("the guest complains: {line}"));
    }
}

#[test]
fn cpus_come_and_go() {
    let vm = boot("1,max=4");
    let all = json!({"count": 1, "max": 4, "wanted": 1, "present": 1});
    assert_eq!(cpus_of(&vm), all);
    assert_eq!(
        vm.shell("cat /sys/devices/system/cpu/possible").trim(),
        "0-3"
    );
    has(&vm, 1);
    assert_eq!((threads(&vm), exits(&vm, 1)), (vec![0], None));

    set(&vm, 3);
    assert_eq!(threads(&vm), [0, 1, 2]);
    assert!(exits(&vm, 2).is_some());
    let cores = vm.shell("cat /sys/devices/system/cpu/cpu[0-2]/topology/core_id");
    assert_eq!(
        cores.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2"]
    );
    let spin = CpuSpin {
        threads: None,
        duration_ms: 500,
    };
    let rounds = vm.call(spin).rounds;
    assert!(
        rounds.len() == 3 && rounds.iter().all(|&rounds| rounds > 0),
        "{rounds:?}"
    );

    set(&vm, 1);
    assert_eq!(threads(&vm), [0, 1, 2], "they are parked");
    let before = exits(&vm, 2);
    stands_still(&vm, "vcpu1");
    stands_still(&vm, "vcpu2");
    assert_eq!(exits(&vm, 2), before, "it stands still");
    for (_, wanted) in (0..amount(4, 20)).zip([4, 2, 3, 1].into_iter().cycle()) {
        set(&vm, wanted);
    }
    // What is there already takes nothing.
    set(&vm, cpus_of(&vm)["wanted"].as_u64().unwrap());
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn a_guest_under_load_lets_go() {
    let vm = boot("3,max=4");
    set(&vm, 4);
    // More threads than CPUs: each has something to do, also in the middle of its end.
    vm.shell(
        "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) >/dev/null 2>&1 & echo $!; done > /load",
    );
    let rounds = amount(2, 20);
    for _ in 0..rounds {
        for wanted in [2, 1, 4] {
            set(&vm, wanted);
        }
    }
    let running = vm.shell("for n in $(cat /load); do kill -0 $n && echo $n; done");
    assert_eq!(running.lines().count(), 8, "the load went on: {running}");
    set(&vm, 1);
    for vcpu in ["vcpu1", "vcpu2", "vcpu3"] {
        stands_still(&vm, vcpu);
    }
    vm.shell("kill $(cat /load)");
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn many_that_come_can_be_cancelled_on_the_way() {
    // The guest keeps room for each CPU that may come.
    let vm = Vm::builder().api().cpus("1,max=200").memory("512M").boot();
    let api = vm.api();
    // Its CPUs get the host to themselves.
    let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
    assert_eq!(api.act("pause").status, 202);
    events.wait_for_state("paused");
    let started = ask(&vm, 200, 60_000);
    let cancel = format!("/jobs/{}/cancel", started["id"]);
    assert_eq!(api.request("POST", &cancel, None).status, 202);
    let job = vm.end_of_job(&started);
    assert_eq!(job["state"], "cancelled", "{job}");
    let done = job["progress"]["done"].as_u64().unwrap();
    assert!(done < 199, "{job}");
    let now = cpus_of(&vm);
    assert_eq!(
        (&now["wanted"], &now["present"], &now["job"]),
        (&json!(done + 1), &json!(done + 1), &Value::Null)
    );
    assert_eq!(threads(&vm).len() as u64, done + 1);
    assert_eq!(api.act("resume").status, 202);
    events.wait_for_state("running");
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn what_the_guest_keeps_stays_and_can_be_asked_for_again() {
    let vm = boot("2,max=3");
    set(&vm, 3);
    vm.shell(&format!("echo 0 > {LETS_GO}"));
    let mut events = vm
        .api()
        .events(vm.api().get("/vm").body["last_event"].as_u64().unwrap());
    let started = ask(&vm, 1, 3000);
    let refused = vm
        .api()
        .request("PUT", "/vm/cpus", Some(&json!({"wanted": 2})));
    assert_eq!((refused.status, refused.code()), (409, "device-busy"));
    assert_eq!(cpus_of(&vm)["wanted"], 1);
    let job = vm.end_of_job(&started);
    let failure = job["failure"].as_str().unwrap_or_default();
    assert!(
        failure.contains("did not let go by the deadline of CPU 2"),
        "{job}"
    );
    assert!(
        failure.contains("does not support that"),
        "the guest's answer: {job}"
    );
    let took = job["ended_ms"].as_u64().unwrap() - job["started_ms"].as_u64().unwrap();
    assert!((2900..20_000).contains(&took), "{job}");
    assert_eq!(events.wait_for("job")["job"]["state"], "running");
    assert_eq!(events.wait_for("job")["job"]["state"], "failed");
    let now = cpus_of(&vm);
    assert_eq!((&now["wanted"], &now["present"]), (&json!(3), &json!(3)));

    let started = ask(&vm, 2, 60_000);
    let cancel = format!("/jobs/{}/cancel", started["id"]);
    assert_eq!(vm.api().request("POST", &cancel, None).status, 202);
    assert_eq!(vm.end_of_job(&started)["state"], "cancelled");
    has(&vm, 3);

    vm.shell(&format!("echo 1 > {LETS_GO}"));
    set(&vm, 1);
    // The guest's own ejects are not asked for: it stops using the CPU, which stays.
    set(&vm, 2);
    vm.shell("echo 1 > /sys/bus/acpi/devices/ACPI0007:01/eject");
    until(&vm, "the eject is not noticed", || {
        vm.log().contains("nobody wants back")
    });
    assert_eq!(cpus_of(&vm)["present"], 2);
    vm.power_off();
}

#[test]
fn a_paused_guest_finds_out_when_it_goes_on() {
    let vm = boot("2,max=4");
    let api = vm.api();
    let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
    let mut act = |action, state| {
        assert_eq!(api.act(action).status, 202);
        events.wait_for_state(state);
    };
    act("pause", "paused");
    let job = vm.end_of_job(&ask(&vm, 4, 1000));
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(threads(&vm), [0, 1, 2, 3]);
    act("resume", "running");
    has(&vm, 4);

    // A guest that stands still lets go of nothing.
    act("pause", "paused");
    let job = vm.end_of_job(&ask(&vm, 3, 1000));
    assert_eq!(job["state"], "failed", "{job}");
    act("resume", "running");
    set(&vm, 2);
    // Parked ones neither hold a pause up nor wake with the others.
    for _ in 0..3 {
        act("pause", "paused");
        act("resume", "running");
    }
    has(&vm, 2);
    // One that nobody has put online yet, and that has nowhere to go with an NMI.
    let job = vm.end_of_job(&ask(&vm, 3, 60_000));
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(api.act("nmi").status, 202);
    stands_still(&vm, "vcpu2");
    has(&vm, 3);
    vm.power_off();
}

#[test]
fn a_cpu_that_got_no_thread_can_come_later() {
    const GROUP: &str = "/sys/fs/cgroup/paddock-cpus";
    let vm = boot("1,max=3");
    run("echo +pids > /sys/fs/cgroup/cgroup.subtree_control");
    run(&format!(
        "mkdir {GROUP} && echo {} > {GROUP}/cgroup.procs && echo 1 > {GROUP}/pids.max",
        vm.pid()
    ));
    for _ in 0..2 {
        let job = vm.end_of_job(&ask(&vm, 2, 60_000));
        assert_eq!(job["state"], "failed", "{job}");
        let failure = job["failure"].as_str().unwrap_or_default();
        assert!(failure.contains("starting vCPU threads"), "{failure}");
        let now = cpus_of(&vm);
        assert_eq!((&now["wanted"], &now["present"]), (&json!(1), &json!(1)));
    }
    run(&format!("echo max > {GROUP}/pids.max"));
    set(&vm, 3);
    was_quiet(&vm);
    vm.power_off();
    run(&format!("rmdir {GROUP}"));
}

#[test]
fn what_is_wanted_outlives_a_reset() {
    let mut vm = boot("1,max=4");
    set(&vm, 3);
    vm.reboot(2);
    assert_eq!(vm.call(Cpus {}).online, [0, 1, 2], "from the start");
    assert_eq!(threads(&vm), [0, 1, 2]);
    // What was there at the start can go as well.
    set(&vm, 2);
    set(&vm, 4);

    // A guest that keeps its CPUs loses them when it starts over.
    vm.shell(&format!("echo 0 > {LETS_GO}"));
    let started = ask(&vm, 2, 600_000);
    assert_eq!(vm.api().act("reset").status, 202);
    assert_eq!(vm.end_of_job(&started)["state"], "succeeded");
    vm.wait_for_boot(3);
    assert_eq!(vm.call(Cpus {}).online, [0, 1]);
    let now = cpus_of(&vm);
    assert_eq!((&now["wanted"], &now["present"]), (&json!(2), &json!(2)));
    set(&vm, 3);
    was_quiet(&vm);
    vm.power_off();
}

#[test]
fn cpus_that_cannot_be_are_refused() {
    let vm = boot("2");
    for wanted in [1, 2, 3] {
        let body = json!({ "wanted": wanted });
        let answer = vm.api().request("PUT", "/vm/cpus", Some(&body));
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    vm.power_off();
    let vm = boot("2,max=3");
    for wanted in [0, 4, u64::MAX] {
        let body = json!({ "wanted": wanted });
        let answer = vm.api().request("PUT", "/vm/cpus", Some(&body));
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    assert_eq!(cpus_of(&vm)["wanted"], 2);
    vm.power_off();
}
