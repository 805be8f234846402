//! Metrics and the boot timeline of a real guest: what it does is what is counted, and a reset turns nothing back.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::time::{Duration, SystemTime};

use paddock_probe::protocol::{Area, BlocksVerify, BlocksWrite, NetPing, NetUp, PowerOff, Random};
use paddock_tests::host::Bridge;
use paddock_tests::vm::CALL_DEADLINE;
use paddock_tests::{Api, Metrics, Vm, files, within};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const HOST: &str = "10.97.0.1";
const GUEST: &str = "10.97.0.2/24";
/// The guest's part of the timeline, in its order.
const GUESTS_STEPS: [&str; 4] = [
    "machine_built",
    "first_instruction",
    "first_console_byte",
    "init_up",
];

/// Waits until the metrics are so, and gives them.
fn until(vm: &Vm, api: &Api, what: &str, done: impl Fn(&Metrics) -> bool) -> Metrics {
    let mut metrics = api.metrics();
    let came = within(CALL_DEADLINE, || {
        metrics = api.metrics();
        done(&metrics)
    });
    if !came {
        vm.fail(&format!("{what}: {metrics:#?}"));
    }
    metrics
}

fn disk_sum(metrics: &Metrics, what: &str, kind: &str) -> f64 {
    let labels = [("disk", "root"), ("kind", kind)];
    metrics.sum(&format!("paddock_disk_{what}_total"), &labels)
}

/// A step of the timeline, as `GET /vm` has it; it must be in the metrics, too.
#[track_caller]
fn step(api: &Api, timeline: &Value, name: &str) -> u64 {
    let Some(time) = timeline[format!("{name}_us")].as_u64() else {
        panic!("no {name} in {timeline}");
    };
    let series = format!("paddock_boot_timeline_seconds{{step=\"{name}\"}}");
    let seconds = api.metrics().get(&series);
    let told = Duration::from_secs_f64(seconds);
    let shown = Duration::from_micros(time);
    assert!(told.abs_diff(shown) < Duration::from_micros(1), "{name}");
    time
}

/// The guest's steps are there, after `start`, and in their order. What it prints first may leave its port late.
#[track_caller]
fn in_order(api: &Api, timeline: &Value, start: u64) {
    let [built, first, printed, up] = GUESTS_STEPS.map(|name| step(api, timeline, name));
    let right = start <= built && built <= first && first <= printed && first <= up;
    assert!(right, "{timeline}");
}

#[test]
fn io_moves_the_counters_by_what_was_done_and_a_reset_does_not_turn_them_back() {
    let (mut vm, api) = Vm::serve();
    let directory = tempfile::tempdir().unwrap();
    let disk = files::empty_disk(directory.path(), "disk.img", 16 * MIB);
    let mut spec = vm.spec(2);
    spec["name"] = json!("counted");
    spec["disks"] = json!([{"id": "root", "path": disk, "queues": 2}]);
    spec["rng"] = json!(true);
    spec["balloon"] = json!({"size": "16MiB"});
    vm.create(&api, &spec);
    let before = api.metrics();
    assert_eq!(before.get("paddock_vm_info{name=\"counted\"}"), 1.0);
    assert_eq!(before.get("paddock_vm_state{state=\"running\"}"), 1.0);

    requests_are_counted(&vm, &api, &before);
    exits_and_bytes_are_counted(&vm, &api, &before);
    nothing_is_turned_back_by_a_reset(&mut vm, &api);
    vm.signal("QUIT");
    vm.expect_exit(0);
}

fn requests_are_counted(vm: &Vm, api: &Api, before: &Metrics) {
    // Direct and one by one: each block is a request.
    let area = Area::new("/dev/vda", MIB, 7);
    let mut write = BlocksWrite::new(area.clone());
    write.issue.jobs = 2;
    write.flush = true;
    let written = vm.call(write);
    assert!(written.is_clean(), "{written:?}");
    let mut verify = BlocksVerify::new(area);
    verify.issue.jobs = 2;
    assert!(vm.call(verify).is_clean());
    let after = api.metrics();
    let moved = |what: &str, kind: &str| {
        let (before, after) = (disk_sum(before, what, kind), disk_sum(&after, what, kind));
        after - before
    };
    assert_eq!(moved("bytes", "write"), MIB as f64);
    assert_eq!(moved("requests", "write"), 256.0);
    assert!(moved("bytes", "read") >= MIB as f64);
    assert!(moved("requests", "read") >= 256.0);
    assert!(moved("requests", "flush") >= 1.0);
    assert_eq!(moved("errors", "write") + moved("errors", "read"), 0.0);
    assert!(moved("request_seconds", "write") > 0.0);
    for queue in ["0", "1"] {
        let labels = [("queue", queue), ("kind", "write")];
        let requests = after.sum("paddock_disk_requests_total", &labels);
        assert!(requests > 0.0, "queue {queue} was used");
    }
    let histogram = "paddock_disk_request_duration_seconds";
    let labels = "{disk=\"root\",kind=\"write\"}";
    let requests = disk_sum(&after, "requests", "write");
    assert_eq!(after.get(&format!("{histogram}_count{labels}")), requests);
}

fn exits(metrics: &Metrics, kind: &str) -> f64 {
    metrics.sum("paddock_vcpu_exits_total", &[("kind", kind)])
}

/// Each word of the guest costs exits, bytes of the port, and so on.
fn exits_and_bytes_are_counted(vm: &Vm, api: &Api, before: &Metrics) {
    let bytes = 4096;
    vm.call(Random { bytes });
    vm.shell("printf '%200s\\n' x > /dev/ttyS0");
    let serial = "paddock_console_output_bytes_total{console=\"serial\"}";
    let now = until(vm, api, "the guest printed", |now| {
        now.get(serial) >= before.get(serial) + 200.0
    });
    assert!(exits(&now, "port-write") >= exits(before, "port-write") + 200.0);
    assert!(exits(&now, "mmio-write") > 0.0 && exits(&now, "fatal") == 0.0);
    // The kernel may have had a few left.
    let entropy = |metrics: &Metrics| metrics.get("paddock_rng_bytes_total");
    assert!(entropy(&now) >= entropy(before) + f64::from(bytes) - 128.0);
    for direction in ["output", "input"] {
        let port = format!("paddock_port_{direction}_bytes_total{{port=\"paddock.probe\"}}");
        assert!(now.get(&port) > before.get(&port), "{port}");
    }
    assert_eq!(now.get("paddock_balloon_target_bytes"), 16.0 * MIB as f64);
    until(vm, api, "the balloon is inflated", |now| {
        now.get("paddock_balloon_actual_bytes") == 16.0 * MIB as f64
    });
}

fn nothing_is_turned_back_by_a_reset(vm: &mut Vm, api: &Api) {
    let now = api.metrics();
    let mut events = api.events(0);
    assert_eq!(api.act("reset").status, 202);
    events.wait_for_state("resetting");
    let resetting = api.metrics();
    assert_eq!(now.turned_back(&resetting), [""; 0]);
    events.wait_for_state("running");
    vm.connect();
    let later = api.metrics();
    assert_eq!(resetting.turned_back(&later), [""; 0]);
    assert_eq!(later.get("paddock_vm_resets_total"), 1.0);
    assert!(exits(&later, "port-read") > exits(&now, "port-read"));
    assert!(disk_sum(&later, "requests", "read") > disk_sum(&now, "requests", "read"));
}

#[test]
fn frames_are_counted_and_series_go_with_their_device() {
    let bridge = Bridge::new("metbr", 9, &format!("{HOST}/24"));
    let (mut vm, api) = Vm::serve();
    let directory = tempfile::tempdir().unwrap();
    let disk = files::empty_disk(directory.path(), "disk.img", MIB);
    let mut spec = vm.spec(1);
    spec["disks"] = json!([{"id": "spare", "path": disk}]);
    spec["nics"] = json!([{"id": "lan", "bridge": bridge.name(), "vlan": 9}]);
    vm.create(&api, &spec);
    vm.call(NetUp {
        device: vm.info().nics[0].name.clone(),
        address: Some(GUEST.to_owned()),
        gateway: None,
        mtu: None,
    });
    let count = |metrics: &Metrics, what: &str| {
        metrics.get(&format!(
            "paddock_nic_{what}_total{{nic=\"lan\",queue=\"0\"}}"
        ))
    };
    let before = api.metrics();
    let mut ping = NetPing::new(HOST);
    ping.count = 20;
    ping.size = 1000;
    ping.interval_ms = 50;
    let reply = vm.call(ping);
    assert!(reply.received >= 19, "{reply:?}");
    let after = api.metrics();
    for direction in ["receive", "transmit"] {
        let moved = |what: &str| {
            let what = format!("{direction}_{what}");
            count(&after, &what) - count(&before, &what)
        };
        // And ARP, and what the guest's kernel says by itself.
        let (packets, bytes) = (moved("packets"), moved("bytes"));
        assert!((19.0..60.0).contains(&packets), "{direction}: {packets}");
        assert!(
            (19_000.0..40_000.0).contains(&bytes),
            "{direction}: {bytes}"
        );
        assert_eq!(moved("errors"), 0.0);
    }

    for (path, label, id) in [
        ("/vm/nics/lan", "nic", "lan"),
        ("/vm/disks/spare", "disk", "spare"),
    ] {
        let before = api.metrics();
        assert!(before.mentions(label, id));
        let started = api.request("DELETE", path, None);
        assert_eq!(started.status, 202, "{started:?}");
        let now = until(&vm, &api, &format!("{path} is removed"), |now| {
            now.get("paddock_jobs_running") == 0.0
        });
        let succeeded = "paddock_jobs_ended_total{state=\"succeeded\"}";
        assert_eq!(now.get(succeeded), before.get(succeeded) + 1.0);
        assert!(!now.mentions(label, id), "{now:#?}");
    }
    vm.signal("QUIT");
    vm.expect_exit(0);
}

#[test]
fn the_timeline_leads_from_the_process_to_user_space_and_starts_over_with_a_reset() {
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let earliest = now();
    let (mut vm, api) = Vm::serve();
    let latest = now();
    let mut events = api.events(0);
    let spec = vm.spec(1);
    vm.create(&api, &spec);
    let first = api.get("/vm").body["timeline"].clone();
    let started = u128::from(first["process_started_ms"].as_u64().unwrap());
    assert!((earliest..=latest).contains(&started), "{first}");
    assert!(step(&api, &first, "vm_created") > step(&api, &first, "api_ready"));
    assert!(first.get("last_reset_us").is_none(), "{first}");
    in_order(&api, &first, first["vm_created_us"].as_u64().unwrap());
    let up = Duration::from_micros(first["init_up_us"].as_u64().unwrap());
    assert!(up.as_millis() < now() - earliest, "{first}");
    // What comes later does not change it.
    vm.shell("echo hello > /dev/ttyS0");
    assert_eq!(api.get("/vm").body["timeline"], first);

    assert_eq!(api.act("reset").status, 202);
    events.wait_for_state("resetting");
    events.wait_for_state("running");
    vm.connect();
    let second = api.get("/vm").body["timeline"].clone();
    for name in ["process_started_ms", "api_ready_us", "vm_created_us"] {
        assert_eq!(second[name], first[name]);
    }
    let reset = step(&api, &second, "last_reset");
    assert!(reset > first["init_up_us"].as_u64().unwrap(), "{second}");
    in_order(&api, &second, reset);
    vm.signal("QUIT");
    vm.expect_exit(0);
}

#[test]
fn metrics_are_there_before_during_and_after_a_vm() {
    let (mut vm, api) = Vm::serve();
    let mut events = api.events(0);
    let resident = "paddock_process_resident_memory_bytes";
    let state = |metrics: &Metrics, state: &str| {
        metrics.find(&format!("paddock_vm_state{{state=\"{state}\"}}"))
    };
    let none = api.metrics();
    assert!((1e6..1e8).contains(&none.get(resident)));
    assert_eq!(none.get("paddock_guest_resident_memory_bytes"), 0.0);
    assert_eq!(state(&none, "running"), None);
    let spec = vm.spec(1);
    assert_eq!(api.create(&spec).status, 201);
    // Whatever state it is in by now.
    assert!(api.metrics().find("paddock_vm_resets_total").is_some());
    vm.connect();
    let running = until(&vm, &api, "guest memory is told apart", |now| {
        now.get("paddock_guest_resident_memory_bytes") > 20.0 * MIB as f64
    });
    let guest = running.get("paddock_guest_resident_memory_bytes");
    let overhead = running.get("paddock_process_overhead_memory_bytes");
    assert!(guest <= 256.0 * MIB as f64, "{guest}");
    assert!((1e5..64.0 * MIB as f64).contains(&overhead), "{overhead}");
    assert!(running.get("paddock_process_threads") >= 2.0);
    let cpu = |metrics: &Metrics| metrics.sum("paddock_process_cpu_seconds_total", &[]);
    assert!(cpu(&running) > cpu(&none));

    let _ = vm.probe().call(PowerOff {}, CALL_DEADLINE);
    events.wait_for("ended");
    let ended = api.metrics();
    assert_eq!(state(&ended, "ended"), Some(1.0));
    // What it did is not forgotten before the VM is.
    assert_eq!(running.turned_back(&ended), [""; 0]);
    assert_eq!(api.delete().status, 204);
    let deleted = api.metrics();
    assert_eq!(state(&deleted, "ended"), None);
    assert!(!deleted.mentions("vcpu", "0"));
    vm.signal("TERM");
    vm.expect_exit(0);
}
