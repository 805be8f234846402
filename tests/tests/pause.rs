//! A guest that stands still and goes on: nothing moves in it meanwhile, nothing is lost, and it does not complain.
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

use paddock_probe::protocol::{Area, BlocksVerify, BlocksWrite, Info, PowerOff, Reboot};
use paddock_tests::threads::cpu_time;
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Api, Events, Vm, amount, files};

const MIB: u64 = 1 << 20;
/// So long a guest that stands still does not answer.
const SILENCE: Duration = Duration::from_secs(1);

/// Asks for `action` and waits for what comes of it.
fn act(api: &Api, events: &mut Events, action: &str, state: &str) {
    let answer = api.act(action);
    assert_eq!(answer.status, 202, "{answer:?}");
    events.wait_for_state(state);
    assert_eq!(api.state(), state);
}

#[test]
fn a_guest_stands_still_and_goes_on() {
    let vm = Vm::builder().cpus("2").api().boot();
    let api = vm.api();
    let mut events = api.events(0);
    events.wait_for_state("running");
    assert_eq!(api.act("resume").code(), "wrong-state");
    // Longer than the guest's watchdogs wait, under the soak.
    for seconds in [0, 0, 1, amount(3, 60)] {
        act(&api, &mut events, "pause", "paused");
        for refused in ["pause", "nmi", "reset"] {
            assert_eq!(api.act(refused).code(), "wrong-state");
        }
        let before = cpu_time(vm.pid(), "vcpu").unwrap();
        assert!(vm.probe().call(Info {}, SILENCE).is_err(), "it answers");
        let spent = cpu_time(vm.pid(), "vcpu").unwrap() - before;
        assert!(spent < SILENCE / 10, "its vCPUs' threads took {spent:?}");
        sleep(Duration::from_secs(seconds));
        act(&api, &mut events, "resume", "running");
        vm.call(Info {});
    }
    // The wall clock went on, and nobody complains.
    let guest: i64 = vm.shell("date +%s").trim().parse().unwrap();
    let host = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let apart = guest.abs_diff(i64::try_from(host.as_secs()).unwrap());
    assert!(apart <= 3, "{apart} s apart");
    let messages = vm.shell("dmesg");
    for complaint in [
        "soft lockup",
        "rcu: INFO",
        "blocked for more than",
        "Marking clocksource",
    ] {
        assert!(!messages.contains(complaint), "{messages}");
    }

    // The button is pressed while it stands still, and felt when it goes on.
    act(&api, &mut events, "pause", "paused");
    assert_eq!(api.act("power-button").status, 202);
    act(&api, &mut events, "resume", "running");
    vm.wait_for_power_button();
    vm.power_off();
}

#[test]
fn a_pause_outlives_a_reset_that_comes_with_it() {
    let mut vm = Vm::builder().cpus("2").api().boot();
    let api = vm.api();
    let (mut boots, mut paused) = (1, 0);
    for round in 0..amount(3, 16) {
        let mut events = api.events(api.get("/vm").body["last_event"].as_u64().unwrap());
        let rebooting = vm.probe().start(Reboot { method: None }).unwrap();
        sleep(Duration::from_millis(20 * round));
        if api.act("pause").status == 202 {
            events.wait_for_state("paused");
            sleep(SILENCE);
            assert_eq!(api.state(), "paused");
            act(&api, &mut events, "resume", "running");
            paused += 1;
        }
        drop(rebooting);
        boots += 1;
        vm.wait_for_boot(boots);
    }
    assert!(paused > 0, "no pause was taken");
    vm.power_off();
}

#[test]
fn writes_go_on_where_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let size = amount(12, 64) * MIB;
    let path = files::empty_disk(directory.path(), "disk", size);
    let disk = format!("path={}", path.display());
    let vm = Vm::builder().cpus("2").api().args(["--disk", &disk]).boot();
    let api = vm.api();
    let mut events = api.events(0);
    events.wait_for_state("running");
    let area = Area::new("/dev/vda", size, 5);
    let writing = vm.probe().start(BlocksWrite::new(area.clone())).unwrap();
    let mut pauses = 0;
    while !writing.is_ready() || pauses < 3 {
        act(&api, &mut events, "pause", "paused");
        sleep(Duration::from_millis(100));
        act(&api, &mut events, "resume", "running");
        sleep(Duration::from_millis(300));
        pauses += 1;
    }
    let written = writing.wait(CALL_DEADLINE).unwrap();
    assert!(written.errors.is_empty(), "{written:?}");
    let verified = vm.call_within(BlocksVerify::new(area), Duration::from_secs(300));
    assert!(
        verified.errors.is_empty() && verified.mismatches.is_empty(),
        "{verified:?}"
    );
    vm.power_off();
}

#[test]
fn a_paused_vm_can_be_ended_in_every_way() {
    let (mut vm, api) = Vm::serve();
    let spec = vm.spec(1);
    vm.create(&api, &spec);
    assert_eq!(api.act("pause").status, 202);
    assert_eq!(api.delete().status, 204);

    vm.create(&api, &spec);
    let mut events = api.events(0);
    assert_eq!(api.act("pause").status, 202);
    events.wait_for_state("paused");
    // Asked nicely, it gets the chance to end by itself.
    vm.signal("TERM");
    vm.wait_for_power_button();
    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    vm.expect_exit(0);
}
