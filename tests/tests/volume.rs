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
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use paddock_longhorn::controller::controller_service_client::ControllerServiceClient;
use paddock_longhorn::messages as m;
use paddock_probe::protocol::Area;
use paddock_tests::host::{FileSystem, run};
use paddock_tests::longhorn::{Replica, ReplicaOptions, own_replica};
use paddock_tests::{Vm, amount, blocks, files, within};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// How long replicas may take to be found failed, or to be compared.
const SOON: Duration = Duration::from_secs(60);

/// A volume on replicas of ours.
struct Volume {
    replicas: Vec<Replica>,
    /// Last: the replicas end before it goes.
    place: FileSystem,
}

impl Volume {
    /// Starts so many replicas on a file system of `space` bytes.
    fn start(count: usize, space: u64) -> Self {
        let place = FileSystem::ext4(space);
        let options = ReplicaOptions::by(own_replica(), "guest");
        let replicas = (0..count).map(|number| {
            let directory = place.path().join(format!("r{number}"));
            Replica::start(&directory, SIZE, options.clone())
        });
        Self {
            replicas: replicas.collect(),
            place,
        }
    }

    /// Boots a guest with an API and the volume, on 4 queues.
    fn boot(&self, more: &str) -> Vm {
        let mut disk = format!("volume=guest,id=data,queues=4{more}");
        for replica in &self.replicas {
            disk += &format!(",replica={}", replica.control());
        }
        let builder = Vm::builder().cpus(&4).api();
        builder.args(["--disk", &disk]).boot()
    }

    fn restart(&mut self) {
        for replica in &mut self.replicas {
            replica.restart();
        }
    }

    fn addresses(&self, numbers: &[usize]) -> String {
        let addresses = numbers.iter().map(|&number| &self.replicas[number]);
        let addresses: Vec<_> = addresses.map(|r| r.control().to_string()).collect();
        addresses.join(",")
    }

    /// Runs `paddock volume`, which has to go well, on some of the replicas. No VM has them open.
    #[track_caller]
    fn paddock(&self, command: &str, numbers: &[usize], more: &[&str]) -> String {
        let addresses = self.addresses(numbers);
        let done = Command::new(files::paddock())
            .args(["volume", command, "guest", "--replica", &addresses])
            .args(more)
            .output();
        let done = done.unwrap();
        assert!(done.status.success(), "{command}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Reads some of the replicas, which have to hold the same.
    #[track_caller]
    fn assert_alike(&self, numbers: &[usize]) {
        let told = self.paddock("check", numbers, &[]);
        let same = format!("{} replicas hold the same", numbers.len());
        assert!(told.starts_with(&same), "{told}");
    }
}

/// What the VM does with each replica.
fn modes(vm: &Vm) -> Vec<String> {
    let replicas = vm.api().get("/vm/disks/data/replicas").body;
    let replicas = replicas.as_array().unwrap().iter();
    let mode = replicas.map(|replica| replica["mode"].as_str().unwrap().to_owned());
    mode.collect()
}

#[track_caller]
fn wait_for_modes(vm: &Vm, wanted: &[&str]) {
    assert!(within(SOON, || modes(vm) == wanted), "{:?}", modes(vm));
}

/// Waits until the replicas are known to have the same: all of them are read from then on.
#[track_caller]
fn wait_until_compared(vm: &Vm) {
    let volume = || vm.api().get("/vm/disks/data").body["volume"].clone();
    let compared = || {
        let volume = volume();
        volume.is_object() && volume["comparison"].is_null()
    };
    assert!(within(SOON, compared), "{}", volume());
}

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
    let mut volume = Volume::start(3, 4 * SIZE);
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
    let mut volume = Volume::start(3, 4 * SIZE);
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
    let mut volume = Volume::start(3, 4 * SIZE);
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
    let volume = Volume::start(1, 32 * MIB);
    let ballast = volume.place.path().join("ballast");
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

/// How many replicas the VM uses.
fn replicas(vm: &Vm) -> usize {
    let replicas = vm.api().get("/vm/disks/data/replicas").body;
    let replicas = replicas.as_array().unwrap();
    assert!(
        replicas.iter().all(|one| one["mode"] == "rw"),
        "{replicas:?}"
    );
    replicas.len()
}

#[test]
fn a_lost_replica_is_rebuilt_by_the_api_while_the_guest_writes() {
    let mut volume = Volume::start(3, 8 * SIZE);
    let vm = volume.boot("");
    let api = vm.api();
    let mut events = api.events(0);
    let replicas = "/vm/disks/data/replicas";
    let address = volume.addresses(&[0]);
    let before = area(SIZE, 1, amount(500, 6000));
    blocks::write(&vm, &before);
    let during = blocks::write_during(&vm, &area(SIZE, 2, amount(500, 6000)), || {
        volume.replicas[0].kill();
        wait_for_modes(&vm, &["failed", "rw", "rw"]);
        // Its host has lost all that it had.
        std::fs::remove_dir_all(volume.replicas[0].directory()).unwrap();
        volume.replicas[0].restart();
        let removed = api.request("DELETE", &format!("{replicas}/{address}"), None);
        assert_eq!(removed.status, 200, "{removed:?}");
        let added = api.request("POST", replicas, Some(&json!({"address": address})));
        assert_eq!(added.status, 202, "{added:?}");
        let rebuilt = events.wait_for("replica-rebuilt");
        assert_eq!(rebuilt["replica"], json!(address), "{rebuilt}");
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
    let volume = Volume::start(2, 8 * SIZE);
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
    vm.power_off();
}

#[test]
fn one_that_missed_writes_is_left_out_after_everything_has_crashed() {
    let mut volume = Volume::start(3, 4 * SIZE);
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
    assert_eq!(replicas(&vm), 2);
    for _ in 0..3 {
        blocks::verify(&vm, &second);
    }
    vm.power_off();
}
