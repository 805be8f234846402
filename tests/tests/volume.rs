//! A guest on real KVM on a replicated volume: its replicas are killed, hang, run out of space and come back under its writes.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::net::{SocketAddr, TcpListener};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use paddock_longhorn::controller::controller_service_client::ControllerServiceClient;
use paddock_longhorn::messages as m;
use paddock_probe::protocol::Area;
use paddock_tests::host::run;
use paddock_tests::longhorn::GuestVolume;
use paddock_tests::longhorn::guest::{self, modes, wait_for_modes, wait_until_compared};
use paddock_tests::{Ctl, Vm, amount, blocks};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// Random blocks all over the disk.
fn area(size: u64, generation: u64, count: u64) -> Area {
    Area {
        generation,
        count: Some(count),
        ..Area::new("/dev/vda", size, 42)
    }
}

/// Why the VM has stopped, and no other disk has failed.
fn failure(vm: &Vm) -> (Value, Value) {
    let failures = vm.api().get("/vm").body["disk_failures"].clone();
    assert_eq!(failures.as_array().map(Vec::len), Some(1), "{failures}");
    (failures[0]["disk"].clone(), failures[0]["errno"].clone())
}

fn is_well(vm: &Vm) -> bool {
    let body = vm.api().get("/vm").body;
    body["disk_failures"].as_array().is_none_or(Vec::is_empty)
}

#[test]
fn replicas_are_killed_one_after_the_other_and_come_back() {
    let mut volume = GuestVolume::start(3, SIZE, 4 * SIZE);
    let vm = volume.boot(",on-error=stop");
    let api = vm.api();
    let mut events = api.events(0);
    events.wait_for_state("running");
    let count = amount(500, 6000);
    // One, then two of three: the guest sees nothing of it.
    let first = blocks::write_during(&vm, &area(SIZE, 1, count), || {
        for (number, left) in [["failed", "rw", "rw"], ["failed", "failed", "rw"]]
            .iter()
            .enumerate()
        {
            sleep(Duration::from_millis(200));
            volume.replicas[number].kill();
            wait_for_modes(&vm, left);
        }
    });
    blocks::verify(&vm, &first);
    assert!(is_well(&vm));
    // The last, too: the VM waits for it, and what was held is done on it alone, for the others have missed something.
    let second = area(SIZE, first.generation + 1, count);
    let second = blocks::write_during(&vm, &second, || {
        sleep(Duration::from_millis(100));
        volume.replicas[2].kill();
        events.wait_for("disk-error");
        events.wait_for_state("paused");
        assert_eq!(failure(&vm), (json!("data"), json!(5)));
        volume.restart();
        assert_eq!(api.act("resume").status, 202);
        events.wait_for("disk-recovered");
    });
    assert_eq!(modes(&vm), ["failed", "failed", "rw"]);
    blocks::verify(&vm, &second);
    assert!(is_well(&vm));
    vm.power_off();
    let lost = volume.addresses(&[0, 1]);
    volume.paddock("rebuild", &[0, 1, 2], &["--anew", &lost]);
    volume.assert_alike(&[0, 1, 2]);
}

#[test]
fn all_replicas_are_lost_at_once_and_found_again_without_a_word() {
    let mut volume = GuestVolume::start(3, SIZE, 4 * SIZE);
    let vm = volume.boot(",on-error=retry");
    let api = vm.api();
    let mut events = api.events(0);
    let all = area(SIZE, 1, amount(500, 6000));
    let all = blocks::write_during(&vm, &all, || {
        sleep(Duration::from_millis(200));
        for replica in &mut volume.replicas {
            replica.kill();
        }
        events.wait_for("disk-error");
        assert_eq!(api.state(), "running");
        volume.restart();
        events.wait_for("disk-recovered");
    });
    wait_until_compared(&vm);
    // Which of them missed something that was acknowledged to the others is told by when each was found dead.
    let good: Vec<usize> = (0..3)
        .filter(|&number| modes(&vm)[number] == "rw")
        .collect();
    assert!(!good.is_empty(), "{:?}", modes(&vm));
    for _ in 0..3 {
        // Reads go to one replica after the other once they have been compared.
        blocks::verify(&vm, &all);
    }
    vm.power_off();
    if good.len() > 1 {
        volume.assert_alike(&good);
    }
}

#[test]
fn a_volume_grows_and_outlives_a_replica_that_hangs() {
    let mut volume = GuestVolume::start(3, SIZE, 4 * SIZE);
    let vm = volume.boot("");
    assert_eq!(vm.info().disks[0].size, SIZE);
    let larger = SIZE + 32 * MIB;
    let body = json!({"size": larger});
    let answer = vm.api().request("PUT", "/vm/disks/data/size", Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    vm.wait_until(
        "the guest does not see the new size",
        Duration::from_secs(30),
        || vm.info().disks[0].size == larger,
    );
    let all = area(larger, 1, amount(500, 6000));
    let all = blocks::write_during(&vm, &all, || {
        sleep(Duration::from_millis(100));
        volume.replicas[1].freeze();
        let before = Instant::now();
        wait_for_modes(&vm, &["rw", "failed", "rw"]);
        // It may be that the host has no time for it.
        let waited = before.elapsed();
        assert!(waited > Duration::from_secs(7), "{waited:?}");
    });
    blocks::verify(&vm, &all);
    vm.power_off();
    volume.assert_alike(&[0, 2]);
}

#[test]
fn a_full_replica_stops_the_vm_until_there_is_room() {
    let volume = GuestVolume::start(1, SIZE, 32 * MIB);
    let ballast = volume.path().join("ballast");
    let vm = volume.boot(",on-error=stop");
    let api = vm.api();
    let mut events = api.events(0);
    events.wait_for_state("running");
    let mut all = Area::new("/dev/vda", 20 * MIB, 5);
    all.block_size = 256 << 10;
    // Less is left than the guest writes.
    run(&format!("fallocate -l 16M {}", ballast.display()));
    thread::scope(|scope| {
        let writer = scope.spawn(|| blocks::write(&vm, &all));
        events.wait_for("disk-error");
        events.wait_for_state("paused");
        assert_eq!(failure(&vm), (json!("data"), json!(28)));
        run(&format!("rm {}", ballast.display()));
        assert_eq!(api.act("resume").status, 202);
        events.wait_for("disk-recovered");
        writer.join().unwrap();
    });
    blocks::verify(&vm, &all);
    assert!(is_well(&vm));
    vm.power_off();
}

/// Where nobody listens.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn a_lost_replica_is_rebuilt_by_the_api_while_the_guest_writes() {
    let mut volume = GuestVolume::start(3, SIZE, 8 * SIZE);
    // Where everything shares two emulated processors, a guest that writes all it can leaves little for a rebuild.
    let vm = volume.boot(",iops=400");
    let mut events = vm.api().events(0);
    let address = volume.replicas[0].control();
    let before = area(SIZE, 1, amount(500, 6000));
    blocks::write(&vm, &before);
    let during = blocks::write_during(&vm, &area(SIZE, 2, amount(500, 6000)), || {
        volume.replicas[0].kill();
        wait_for_modes(&vm, &["failed", "rw", "rw"]);
        // Its host has lost all that it had.
        std::fs::remove_dir_all(volume.replicas[0].directory()).unwrap();
        volume.replicas[0].restart();
        guest::remove_replica(&vm, address);
        let _ = guest::add_replica(&vm, address);
        let rebuilt = events.wait_for("replica-rebuilt");
        assert_eq!(rebuilt["replica"], json!(address.to_string()), "{rebuilt}");
    });
    wait_for_modes(&vm, &["rw"; 3]);
    for _ in 0..3 {
        blocks::verify(&vm, &during);
    }
    vm.power_off();
    volume.assert_alike(&[0, 1, 2]);
}

#[test]
fn longhorns_tools_drive_the_volume_of_a_running_guest() {
    let volume = GuestVolume::start(2, SIZE, 8 * SIZE);
    let address = free_address();
    let vm = volume.boot(&format!(",controller={address}"));
    let all = area(SIZE, 1, amount(300, 2000));
    blocks::write(&vm, &all);
    let mut events = vm.api().events(0);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let larger = SIZE + 32 * MIB;
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut service = ControllerServiceClient::new(endpoint.connect().await.unwrap());
        let told = service.volume_get(()).await.unwrap().into_inner();
        assert_eq!((told.name.as_str(), told.replica_count), ("guest", 2));
        let snapshot = m::VolumeSnapshotRequest {
            name: "by-tool".to_owned(),
            ..m::VolumeSnapshotRequest::default()
        };
        service.volume_snapshot(snapshot).await.unwrap();
        let expand = m::SizeRequest {
            size: i64::try_from(larger).unwrap(),
        };
        service.volume_expand(expand).await.unwrap();
    });
    // As if it had been asked for by the API.
    events.wait_for("snapshot-taken");
    events.wait_for("disk-resized");
    let soon = Duration::from_secs(30);
    vm.wait_until("the guest does not see the new size", soon, || {
        vm.info().disks[0].size == larger
    });
    blocks::verify(&vm, &all);
    let snapshots = vm.api().get("/vm/disks/data/snapshots").body;
    assert_eq!(snapshots[0]["name"], "by-tool", "{snapshots}");
    let ctl = Ctl::at(vm.api().socket());
    ctl.well(&["snapshots", "create", "data", "by-ctl"]);
    let names = |snapshots: Value| -> Vec<String> {
        let snapshots = snapshots.as_array().cloned().unwrap_or_default();
        let name = |snapshot: &Value| snapshot["name"].as_str().map(str::to_owned);
        // Growing takes one, too.
        let asked_for = |name: &String| name.starts_with("by-");
        snapshots
            .iter()
            .filter_map(name)
            .filter(asked_for)
            .collect()
    };
    let listed = names(ctl.json(&["snapshots", "list", "data"]));
    assert_eq!(listed, ["by-tool", "by-ctl"]);
    ctl.well(&["snapshots", "remove", "data", "by-tool"]);
    assert_eq!(names(ctl.json(&["snapshots", "list", "data"])), ["by-ctl"]);
    blocks::verify(&vm, &all);
    vm.power_off();
}

#[test]
fn one_that_missed_writes_is_left_out_after_everything_has_crashed() {
    let mut volume = GuestVolume::start(3, SIZE, 4 * SIZE);
    let record = tempfile::tempdir().unwrap();
    let more = format!(",record={}", record.path().join("guest.json").display());
    let vm = volume.boot(&more);
    blocks::write(&vm, &area(SIZE, 1, amount(300, 2000)));
    volume.replicas[0].kill();
    let second = area(SIZE, 2, amount(300, 2000));
    blocks::write(&vm, &second);
    vm.signal("KILL");
    drop(vm);
    volume.restart();
    // By its date it is the one that was written last.
    let heads = volume.replicas[0].directory().join("volume-head-*.img");
    run(&format!("touch -d '1 hour' {}", heads.display()));
    let vm = volume.boot(&more);
    assert_eq!(modes(&vm), ["rw"; 2]);
    for _ in 0..3 {
        blocks::verify(&vm, &second);
    }
    vm.power_off();
}
