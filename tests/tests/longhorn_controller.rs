//! Longhorn's own command line, and a plain client of its controller service, on Paddock's engine with Longhorn's replicas.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every test file has such a helper"
)]

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::TcpListener;
use std::time::Duration;

use paddock_longhorn::controller::controller_service_client::ControllerServiceClient;
use paddock_longhorn::messages as m;
use paddock_storage::longhorn::{Controller, ControllerOptions, Mode, Volume};
use paddock_storage::{Disk, IoError};
use paddock_tests::longhorn::{Cli, Listed, SIZE, Set, User};
use paddock_tests::within;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

const MIB: u64 = 1 << 20;
/// How long Longhorn's replicas may purge.
const PURGE: Duration = Duration::from_secs(60);
const ENGINE: &str = "engine-0";

/// A volume of Paddock's, served to Longhorn's tools.
struct Served {
    controller: Controller,
    volume: Volume,
    set: Set,
}

impl Served {
    fn start(name: &str, revision_counter: bool) -> Self {
        let set = Set::start(name, revision_counter);
        let volume = set.open();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = ControllerOptions {
            instance_name: Some(ENGINE.to_owned()),
        };
        let controller = volume.serve_controller(listener, options).unwrap();
        Self {
            controller,
            volume,
            set,
        }
    }

    fn cli(&self) -> Cli {
        Cli::new(self.controller.address(), &self.set.volume)
    }

    fn client(&self) -> Client {
        let url = format!("http://{}", self.controller.address());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let endpoint = Endpoint::from_shared(url).unwrap();
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        let service = ControllerServiceClient::new(channel);
        Client { runtime, service }
    }

    fn modes(&self) -> Vec<Mode> {
        let replicas = self.volume.replicas();
        replicas.iter().map(|replica| replica.mode).collect()
    }
}

/// A client that waits.
struct Client {
    runtime: tokio::runtime::Runtime,
    service: ControllerServiceClient<Channel>,
}

impl Client {
    fn call<'a, T, F>(
        &'a mut self,
        call: impl FnOnce(&'a mut ControllerServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>> + 'a,
    {
        let called = self.runtime.block_on(call(&mut self.service));
        called.map(Response::into_inner)
    }

    #[track_caller]
    fn refused<'a, T: std::fmt::Debug, F>(
        &'a mut self,
        code: Code,
        words: &str,
        call: impl FnOnce(&'a mut ControllerServiceClient<Channel>) -> F,
    ) where
        F: Future<Output = Result<Response<T>, Status>> + 'a,
    {
        let status = self.call(call).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
}

fn replica_address(address: &str) -> m::ReplicaAddress {
    m::ReplicaAddress {
        address: address.to_owned(),
        instance_name: String::new(),
    }
}

fn new_replica(address: &str) -> m::ControllerReplicaCreateRequest {
    m::ControllerReplicaCreateRequest {
        address: address.to_owned(),
        snapshot_required: true,
        mode: m::ReplicaMode::Wo.into(),
    }
}

fn name(name: &str) -> m::NameMessage {
    m::NameMessage {
        name: name.to_owned(),
    }
}

#[test]
fn the_command_line_takes_lists_removes_and_purges_snapshots() {
    let served = Served::start("cli-snapshots", false);
    let cli = served.cli();
    let mut user = User::new(&served.volume);
    user.write(0, SIZE, 1).unwrap();
    assert_eq!(cli.run(["snapshot", "create", "one"]).trim(), "one");
    user.write(0, MIB, 2).unwrap();
    cli.run(["snapshot", "create", "--label", "of=test", "two"]);
    user.write(0, MIB, 3).unwrap();
    let unnamed = cli.run(["snapshot", "create"]).trim().to_owned();
    let listed = cli.run(["snapshot", "ls"]);
    for name in ["one", "two", &unnamed] {
        assert!(listed.contains(name), "{listed}");
    }
    let described = cli.run(["snapshot", "info"]);
    assert!(described.contains(r#""of": "test""#), "{described}");
    let refusal = cli.try_run(["snapshot", "create", "two"]).unwrap_err();
    assert!(refusal.contains("has a snapshot two already"), "{refusal}");

    let names = || {
        let snapshots = served.volume.snapshots().unwrap();
        let there = snapshots.into_iter().filter(|snapshot| !snapshot.removed);
        // Those of one second are in no order.
        let names = there.map(|snapshot| snapshot.name);
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(names().len(), 3);
    cli.run(["snapshot", "rm", "two"]);
    assert_eq!(names(), BTreeSet::from(["one".to_owned(), unnamed]));
    cli.run(["snapshot", "purge"]);
    user.write(0, MIB, 4).unwrap();
    let purged = || served.volume.snapshots().unwrap().len() == 2;
    assert!(within(PURGE, purged), "{:?}", served.volume.snapshots());
    let idle = || {
        !cli.run(["snapshot", "purge-status"])
            .contains(r#""isPurging": true"#)
    };
    assert!(within(PURGE, idle), "it purges for ever");
    user.check(0, MIB, 4);
    user.check(MIB, SIZE, 1);
    served.set.assert_alike(&[0, 1, 2]);
    drop(user);
    served.volume.close().unwrap();
}

#[test]
fn the_command_line_replaces_a_replica_under_writes() {
    for revision_counter in [false, true] {
        let served = Served::start("cli-rebuild", revision_counter);
        let cli = served.cli();
        let mut user = User::new(&served.volume);
        user.write(0, SIZE, 1).unwrap();
        cli.run(["snapshot", "create", "one"]);
        let address = served.set.replicas[1].address();
        let modes = || -> Vec<String> {
            let listed: Vec<Listed> = cli.replicas();
            listed.into_iter().map(|replica| replica.mode).collect()
        };
        assert_eq!(modes(), ["RW", "RW", "RW"]);
        cli.run(["rm-replica", &address]);
        assert_eq!(modes(), ["RW", "RW"]);
        // What it misses.
        user.write(0, SIZE / 2, 2).unwrap();
        let mut generation = 2;
        std::thread::scope(|scope| {
            let rebuild = scope.spawn(|| cli.add_replica(&address, SIZE));
            while !rebuild.is_finished() {
                generation += 1;
                user.write(SIZE / 4, SIZE / 2, generation).unwrap();
            }
            rebuild.join().unwrap();
        });
        assert!(generation > 2, "nothing was written meanwhile");
        assert_eq!(modes(), ["RW", "RW", "RW"]);
        let listed = cli.replicas();
        assert!(
            listed.iter().any(|replica| replica.address == address),
            "{listed:?}"
        );
        user.check(0, SIZE / 4, 2);
        user.check(SIZE / 4, SIZE / 2, generation);
        user.check(SIZE / 2, SIZE, 1);
        served.set.assert_alike(&[0, 1, 2]);
        drop(user);
        served.volume.close().unwrap();
        // All three are found to have seen the same.
        let volume = served.set.open();
        let failed = volume.replicas().into_iter().find_map(|r| r.failure);
        assert_eq!(failed, None);
        volume.close().unwrap();
    }
}

#[test]
fn the_command_line_grows_the_volume_and_goes_back_to_a_snapshot() {
    let served = Served::start("cli-others", false);
    let cli = served.cli();
    let mut user = User::new(&served.volume);
    user.write(0, SIZE, 1).unwrap();
    cli.run(["snapshot", "create", "one"]);
    user.write(0, SIZE, 2).unwrap();
    let info = cli.run(["info"]);
    for part in [
        format!(r#""name": "{}""#, served.set.volume),
        format!(r#""size": {SIZE}"#),
        r#""replicaCount": 3"#.to_owned(),
        r#""frontendState": "up""#.to_owned(),
        r#""snapshotMaxCount": 250"#.to_owned(),
    ] {
        assert!(info.contains(&part), "{part} is not in {info}");
    }

    // Not under the VM's feet.
    let refusal = cli.try_run(["frontend", "shutdown"]).unwrap_err();
    assert!(refusal.contains("a VM uses it"), "{refusal}");
    let refusal = cli.try_run(["snapshot", "revert", "one"]).unwrap_err();
    assert!(refusal.contains("nobody uses the volume"), "{refusal}");
    drop(user);
    cli.run(["frontend", "shutdown"]);
    assert!(cli.run(["info"]).contains(r#""frontendState": "down""#));
    assert!(served.volume.open_queue(1).is_err());
    cli.run(["snapshot", "revert", "one"]);
    let refusal = cli.try_run(["frontend", "start", "tgt-blockdev"]);
    assert!(refusal.unwrap_err().contains("no frontend"));
    cli.run(["frontend", "start", "vm"]);
    let mut user = User::new(&served.volume);
    user.check(0, SIZE, 1);

    let size = (2 * SIZE).to_string();
    cli.run(["expand", "--size", &size]);
    assert_eq!(served.volume.size(), 2 * SIZE);
    user.write(SIZE, 2 * SIZE, 3).unwrap();
    user.check(SIZE, 2 * SIZE, 3);
    let smaller = SIZE.to_string();
    let refusal = cli.try_run(["expand", "--size", &smaller]).unwrap_err();
    assert!(refusal.contains("cannot become smaller"), "{refusal}");
    assert!(cli.run(["info"]).contains("cannot become smaller"));
    drop(user);
    served.volume.close().unwrap();
}

#[test]
fn another_volume_or_engine_is_refused() {
    let served = Served::start("names", false);
    let wrong = Cli::new(served.controller.address(), "another");
    let refusal = wrong.try_run(["info"]).unwrap_err();
    assert!(refusal.contains("incorrect volume name"), "{refusal}");
    let mut client = served.client();
    let mut get = |key: &'static str, value: &str| {
        let mut request = Request::new(());
        let value = MetadataValue::try_from(value).unwrap();
        request.metadata_mut().insert(key, value);
        client.call(|service| service.volume_get(request))
    };
    let status = get("volume-name", "another").unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let status = get("instance-name", "engine-1").unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(get("instance-name", ENGINE).unwrap().replica_count, 3);
    assert_eq!(
        get("volume-name", &served.set.volume)
            .unwrap()
            .replica_count,
        3
    );
}

#[test]
fn a_rebuild_that_nobody_finishes_is_cleaned_up() {
    let served = Served::start("abandoned", false);
    let mut client = served.client();
    let mut user = User::new(&served.volume);
    user.write(0, SIZE, 1).unwrap();
    let address = served.set.replicas[2].address();
    let at = || replica_address(&address);
    client.call(|c| c.replica_delete(at())).unwrap();
    // As with Longhorn, once more is as well.
    client.call(|c| c.replica_delete(at())).unwrap();
    client.refused(Code::NotFound, "no replica", |c| c.replica_get(at()));
    client.refused(Code::NotFound, "no replica", |c| {
        c.replica_prepare_rebuild(at())
    });
    let rebuilt = client.call(|c| c.controller_replica_create(new_replica(&address)));
    assert_eq!(rebuilt.unwrap().mode, i32::from(m::ReplicaMode::Wo));
    client.refused(Code::AlreadyExists, "remove it first", |c| {
        c.controller_replica_create(new_replica(&address))
    });
    // It has the same files as the others, but not what is in them: it is not believed.
    client.refused(Code::FailedPrecondition, "not been prepared", |c| {
        c.replica_verify_rebuild(at())
    });
    let prepared = client.call(|c| c.replica_prepare_rebuild(at())).unwrap();
    assert!(!prepared.sync_file_info_list.is_empty());
    user.write(0, MIB, 2).unwrap();
    client.refused(Code::FailedPrecondition, "being rebuilt", |c| {
        c.volume_snapshot(m::VolumeSnapshotRequest::default())
    });
    client.refused(Code::FailedPrecondition, "not transferred", |c| {
        c.replica_verify_rebuild(at())
    });
    assert_eq!(
        served.modes(),
        [Mode::ReadWrite, Mode::ReadWrite, Mode::Failed]
    );
    let cli = served.cli();
    cli.run(["rm-replica", &address]);
    cli.run(["snapshot", "create", "after"]);
    cli.add_replica(&address, SIZE);
    assert_eq!(served.modes(), [Mode::ReadWrite; 3]);
    user.check(0, MIB, 2);
    user.check(MIB, SIZE, 1);
    served.set.assert_alike(&[0, 1, 2]);
    drop(user);
    served.volume.close().unwrap();
}

#[test]
fn replicas_are_left_by_order_but_not_the_last() {
    let served = Served::start("order", false);
    let mut client = served.client();
    let mut user = User::new(&served.volume);
    let state = |index: usize, mode: m::ReplicaMode| m::ControllerReplica {
        address: Some(replica_address(&served.set.replicas[index].address())),
        mode: mode.into(),
    };
    for index in [0, 1] {
        let update = state(index, m::ReplicaMode::Err);
        let updated = client.call(|c| c.replica_update(update)).unwrap();
        assert_eq!(updated.mode, i32::from(m::ReplicaMode::Err));
    }
    client.refused(Code::FailedPrecondition, "the only replica", |c| {
        c.replica_update(state(2, m::ReplicaMode::Err))
    });
    client.refused(Code::FailedPrecondition, "the only replica", |c| {
        c.replica_delete(replica_address(&served.set.replicas[2].address()))
    });
    client.refused(Code::FailedPrecondition, "ERR only", |c| {
        c.replica_update(state(0, m::ReplicaMode::Rw))
    });
    client.refused(Code::InvalidArgument, "HOST:PORT", |c| {
        c.replica_update(m::ControllerReplica::default())
    });
    client.refused(Code::InvalidArgument, "HOST:PORT", |c| {
        c.replica_get(replica_address("tcp://nowhere"))
    });
    client.refused(Code::InvalidArgument, "mode WO", |c| {
        c.controller_replica_create(m::ControllerReplicaCreateRequest {
            mode: m::ReplicaMode::Rw.into(),
            ..new_replica("tcp://127.0.0.1:9")
        })
    });
    // Nobody is there.
    client.refused(Code::FailedPrecondition, "cannot be reached", |c| {
        c.controller_replica_create(new_replica("tcp://127.0.0.1:9"))
    });
    user.write(0, MIB, 1).unwrap();
    user.check(0, MIB, 1);
}

#[test]
fn snapshots_are_limited() {
    let served = Served::start("limits", false);
    let mut client = served.client();
    let count = |count| m::CountRequest { count };
    let size = |size| m::SizeRequest { size };
    let snapshot = |name: &str| m::VolumeSnapshotRequest {
        name: name.to_owned(),
        labels: HashMap::new(),
        freeze_filesystem: true,
    };
    for wrong in [-1, 0, 251] {
        client.refused(Code::InvalidArgument, "1 to 250", |c| {
            c.volume_snapshot_max_count_set(count(wrong))
        });
    }
    let mut user = User::new(&served.volume);
    user.write(0, MIB, 1).unwrap();
    client.call(|c| c.volume_snapshot(snapshot("one"))).unwrap();
    user.write(0, 4 * MIB, 2).unwrap();
    client.call(|c| c.volume_snapshot(snapshot("two"))).unwrap();
    client.refused(Code::FailedPrecondition, "2 snapshots", |c| {
        c.volume_snapshot_max_count_set(count(1))
    });
    let volume = client.call(|c| c.volume_snapshot_max_count_set(count(2)));
    assert_eq!(volume.unwrap().snapshot_max_count, 2);
    client.refused(Code::FailedPrecondition, "as many as it may", |c| {
        c.volume_snapshot(snapshot("three"))
    });
    client
        .call(|c| c.volume_snapshot_max_count_set(count(10)))
        .unwrap();

    client.refused(Code::InvalidArgument, "give 0", |c| {
        c.volume_snapshot_max_size_set(size(-1))
    });
    client.refused(Code::FailedPrecondition, "no fewer", |c| {
        c.volume_snapshot_max_size_set(size(4096))
    });
    let most = i64::try_from(6 * MIB).unwrap();
    let volume = client.call(|c| c.volume_snapshot_max_size_set(size(most)));
    assert_eq!(volume.unwrap().snapshot_max_size, most);
    user.write(0, 8 * MIB, 3).unwrap();
    client.refused(Code::FailedPrecondition, "would take", |c| {
        c.volume_snapshot(snapshot("three"))
    });
    client
        .call(|c| c.volume_snapshot_max_size_set(size(0)))
        .unwrap();
    client
        .call(|c| c.volume_snapshot(snapshot("three")))
        .unwrap();
    // Nothing of it was taken for a fault of a replica's.
    assert_eq!(served.modes(), [Mode::ReadWrite; 3]);

    client.refused(Code::InvalidArgument, "multiple of 4096", |c| {
        c.volume_expand(size(-4096))
    });
    client.refused(Code::FailedPrecondition, "multiple of 4096", |c| {
        c.volume_expand(size(4097))
    });
    drop(user);
    client.refused(Code::NotFound, "no snapshot", |c| {
        c.volume_revert(name("nothing"))
    });
}

#[test]
fn what_is_set_is_told_and_what_is_done_is_measured() {
    let served = Served::start("told", false);
    let mut client = served.client();
    let version = client.call(|c| c.version_detail_get(())).unwrap();
    let version = version.version.unwrap();
    assert_eq!(
        (version.cli_api_version, version.cli_api_min_version),
        (12, 8)
    );
    let api = (
        version.controller_api_version,
        version.controller_api_min_version,
    );
    assert_eq!(api, (6, 4));
    let on = m::SwitchRequest { enabled: true };
    let volume = client.call(|c| c.volume_unmap_mark_snap_chain_removed_set(on));
    assert!(volume.unwrap().unmap_mark_snap_chain_removed);
    client.refused(Code::InvalidArgument, "at least 1", |c| {
        c.replica_rebuild_concurrent_sync_limit_set(m::CountRequest { count: 0 })
    });
    let two = m::CountRequest { count: 2 };
    client
        .call(|c| c.replica_rebuild_concurrent_sync_limit_set(two))
        .unwrap();
    let limit = client.call(|c| c.replica_rebuild_concurrent_sync_limit_get(()));
    assert_eq!(limit.unwrap(), two);
    client
        .call(|c| c.journal_list(m::JournalListRequest { limit: 10 }))
        .unwrap();

    let mut user = User::new(&served.volume);
    let mut metrics = || {
        user.write(0, MIB, 1).unwrap();
        user.check(0, MIB, 1);
        let reply = client.call(|c| c.metrics_get(())).unwrap();
        reply.metrics.unwrap()
    };
    let sane = |now: m::Metrics| {
        now.read_iops > 0
            && now.write_iops > 0
            && now.read_throughput >= now.read_iops * 512
            && now.write_throughput >= now.write_iops * 512
            && (1_000..10_000_000_000).contains(&now.read_latency)
            && (1_000..10_000_000_000).contains(&now.write_latency)
    };
    assert!(within(Duration::from_secs(20), || sane(metrics())));
    let mut idle = || client.call(|c| c.metrics_get(())).unwrap().metrics.unwrap();
    let zero = m::Metrics::default();
    assert!(within(Duration::from_secs(20), || idle() == zero));
}

#[test]
fn a_volume_is_shut_down_once_nobody_uses_it() {
    let served = Served::start("shutdown", false);
    let mut client = served.client();
    let mut user = User::new(&served.volume);
    user.write(0, MIB, 1).unwrap();
    client.refused(Code::FailedPrecondition, "a VM uses it", |c| {
        c.volume_shutdown(())
    });
    let start = m::VolumeStartRequest::default;
    let volume = client.call(|c| c.volume_start(start())).unwrap();
    assert_eq!(
        (volume.replica_count, volume.frontend_state.as_str()),
        (3, "up")
    );
    user.check(0, MIB, 1);
    drop(user);
    let volume = client.call(|c| c.volume_shutdown(())).unwrap();
    assert_eq!(
        (volume.replica_count, volume.frontend_state.as_str()),
        (0, "down")
    );
    client.call(|c| c.volume_shutdown(())).unwrap();
    client.refused(Code::FailedPrecondition, "was closed", |c| {
        c.volume_start(start())
    });
    client.refused(Code::FailedPrecondition, "closed", |c| {
        c.volume_expand(m::SizeRequest {
            size: i64::try_from(2 * SIZE).unwrap(),
        })
    });
    let list = client.call(|c| c.replica_list(())).unwrap();
    assert!(list.replicas.is_empty());
    // Its replicas are closed, and can be opened by another engine.
    let again = served.set.open();
    User::new(&again).check(0, MIB, 1);
    again.close().unwrap();
}

#[test]
fn it_is_served_until_it_is_dropped() {
    let served = Served::start("dropped", false);
    let address = served.controller.address();
    let Served {
        controller,
        volume,
        set: _set,
    } = served;
    let connects = || std::net::TcpStream::connect(address).is_ok();
    assert!(connects());
    drop(controller);
    assert!(within(Duration::from_secs(10), || !connects()));
    assert_eq!(User::new(&volume).write(0, MIB, 1), Ok::<(), IoError>(()));
    volume.close().unwrap();
}
