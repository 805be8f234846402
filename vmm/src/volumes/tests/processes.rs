//! With replica processes, which are this program again: they are killed, and they hang.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_api::jobs::{Job, JobState, Jobs};
use paddock_api::journal::Journal;
use paddock_api::service::Refusal;
use paddock_api::spec::{self, VmSpec};
use paddock_api::volume::{ReplicaMode, SnapshotRequest};
use paddock_replica::data::Address;
use paddock_replica::process::{Settings, run};
use paddock_replica::volume::replica::Options;
use paddock_storage::longhorn::{Nobody, Volume, VolumeOptions};
use paddock_storage::testing;
use paddock_storage::{Buffer, Disk, Operation};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use super::super::{AT_ONCE, DiskVolume, Watch};
use super::told;
use crate::disks::Disks;
use crate::machine::devices::OpenDevice;
use crate::machine::resources::Devices;

const MIB: usize = 1 << 20;
/// Bytes of a volume.
const SIZE: usize = 64 * MIB;
/// Nothing takes as long, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);
/// How long the end of a VM may take.
const END: Duration = Duration::from_secs(20);
/// Where a process is told which replica it is: `PORT DIRECTORY`.
const REPLICA: &str = "PADDOCK_TEST_REPLICA";
/// Files that a replica receives at once.
const AGENT_PORTS: u16 = 3;

/// Not a test: the replica's process, which [`Replica::start`] begins. Otherwise it does nothing.
#[test]
fn a_replica() {
    let Ok(told) = std::env::var(REPLICA) else {
        return;
    };
    let (port, directory) = told.split_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    run(Settings {
        volume: "v".to_owned(),
        instance: String::new(),
        listen: at(port),
        data: Address::Tcp(at(port + 1)),
        size: i64::try_from(SIZE).ok(),
        agent_ports: Some(AGENT_PORTS),
        options: Options {
            count_revisions: true,
            ..Options::new(directory)
        },
    })
    .unwrap();
}

/// A replica's process, killed with this.
struct Replica {
    child: Child,
    address: spec::ReplicaAddress,
}

impl Replica {
    fn start(directory: &Path) -> Self {
        let port = free_ports();
        let name = "volumes::tests::processes::a_replica";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(REPLICA, format!("{port} {}", directory.display()))
            .spawn();
        let this = Self {
            child: child.unwrap(),
            address: format!("127.0.0.1:{port}").parse().unwrap(),
        };
        let agent = SocketAddr::from(([127, 0, 0, 1], port + 2));
        let start = Instant::now();
        while std::net::TcpStream::connect(agent).is_err() {
            assert!(start.elapsed() < LONG, "a replica serves");
            std::thread::sleep(Duration::from_millis(20));
        }
        this
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports in a row that nobody uses.
fn free_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let free = |more: u16| TcpListener::bind(("127.0.0.1", port + more)).is_ok();
        if port < 65000 && (1..3 + AGENT_PORTS).all(free) {
            return port;
        }
    }
    panic!("there are no free ports in a row");
}

/// A volume on the first two of some replicas, with something in it.
struct Bench {
    volume: Arc<DiskVolume>,
    replicas: Vec<Replica>,
    jobs: Jobs,
    journal: Arc<Journal>,
    open: Volume,
    directory: TempDir,
}

impl Bench {
    fn start(replicas: usize) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let replica = |number: usize| {
            let directory = directory.path().join(number.to_string());
            std::fs::create_dir(&directory).unwrap();
            Replica::start(&directory)
        };
        let replicas: Vec<_> = (0..replicas).map(replica).collect();
        let journal = Arc::<Journal>::default();
        let watch = Arc::new(Watch::new("data", Arc::clone(&journal)));
        let first = replicas[..2].iter();
        let first = first.map(|replica| replica.address.to_string().parse().unwrap());
        let records = directory.path().join("records");
        std::fs::create_dir(&records).unwrap();
        let options = VolumeOptions {
            record: Some(records.join("v.json")),
            ..VolumeOptions::new("v", first.collect())
        };
        let open = Volume::open(options, Arc::clone(&watch) as _).unwrap();
        let mut queue = open.open_queue(4).unwrap();
        for offset in (0..SIZE / 2).step_by(MIB) {
            let buffer = Buffer::from(vec![7; MIB]);
            let offset = offset as u64;
            testing::run(&mut *queue, Operation::Write { offset, buffer }).unwrap();
        }
        drop(queue);
        Self {
            volume: DiskVolume::new("data", open.handle(), watch),
            replicas,
            jobs: Jobs::new(Arc::clone(&journal)),
            journal,
            open,
            directory,
        }
    }

    fn modes(&self) -> Vec<&'static str> {
        let replicas = self.volume.replicas();
        replicas.iter().map(|one| one.mode.as_str()).collect()
    }

    fn add(&self, replica: usize) -> Result<Job, Refusal> {
        let address = &self.replicas[replica].address;
        self.volume.add_replica(address, &self.jobs)
    }

    /// The job at its end.
    async fn end(&self, job: &Job) -> Job {
        until("a job's end", || {
            let job = self.jobs.read(job.id).unwrap();
            (job.state != JobState::Running).then_some(job)
        })
        .await
    }
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn calls_that_nobody_waits_for_any_more_have_their_places_until_they_are_done() {
    let bench = Bench::start(2);
    let volume = &bench.volume;
    let (go_on, wait) = tokio::sync::watch::channel(());
    for _ in 0..AT_ONCE {
        let mut wait = wait.clone();
        let hangs = volume.within(|_| async move {
            let _ = wait.changed().await;
            Ok(())
        });
        let gone = tokio::time::timeout(Duration::from_millis(20), hangs).await;
        gone.unwrap_err();
    }
    let refused = volume.snapshots().await;
    assert!(matches!(refused, Err(Refusal::Busy)), "{refused:?}");
    drop(go_on);
    until("a place", || {
        (volume.places.available_permits() == AT_ONCE).then_some(())
    })
    .await;
    assert_eq!(volume.snapshots().await.unwrap(), []);
    bench.open.close().unwrap();
}

/// The end of a VM with two volumes, one of which has a replica that hangs with a write.
#[test]
fn what_hangs_keeps_nothing_else_from_being_closed() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let replica = |number: usize| {
        let directory = directory.path().join(number.to_string());
        std::fs::create_dir(&directory).unwrap();
        Replica::start(&directory)
    };
    let replicas: Vec<_> = (0..4).map(replica).collect();
    let disks = Disks::nowhere();
    let mut devices = Devices::default();
    for (id, pair) in [("a", &replicas[..2]), ("b", &replicas[2..])] {
        let addresses: Vec<_> = pair.iter().map(|one| one.address.to_string()).collect();
        let volume = json!({"name": "v", "replicas": addresses, "timeout": 30});
        let disk = json!({"id": id, "volume": volume});
        let spec = json!({"boot": {"kernel": "/k"}, "disks": [disk]});
        let spec = VmSpec::from_json(&spec.to_string()).unwrap();
        devices.push(OpenDevice::disk("/disks/0", &spec.disks[0], &disks).unwrap());
    }
    let backend = devices[0].open_disk().unwrap().backend();
    let mut queue = backend.open_queue(4).unwrap();
    replicas[1].signal(Signal::STOP);
    let writing = std::thread::spawn(move || {
        let (offset, buffer) = (0, Buffer::from(vec![7; MIB]));
        testing::run(&mut *queue, Operation::Write { offset, buffer })
    });
    // So that it is under way.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!writing.is_finished());
    let start = Instant::now();
    drop(devices);
    let took = start.elapsed();
    assert!(took < END, "{took:?}");
    writing.join().unwrap().unwrap();
    // They would be refused if they were open.
    for good in [&replicas[..1], &replicas[2..]] {
        let good = good.iter().map(|one| one.address.to_string().parse());
        let options = VolumeOptions::new("v", good.collect::<Result<_, _>>().unwrap());
        let volume = Volume::open(options, Arc::new(Nobody)).unwrap();
        assert!(volume.is_compared());
        for replica in volume.replicas() {
            assert_eq!(replica.failure, None);
        }
        volume.close().unwrap();
    }
}

fn named(name: &str) -> SnapshotRequest {
    SnapshotRequest {
        name: Some(name.to_owned()),
        ..SnapshotRequest::default()
    }
}

#[tokio::test]
async fn replicas_come_and_go_while_the_volume_is_used() {
    let bench = Bench::start(3);
    let volume = &bench.volume;
    assert_eq!(bench.modes(), ["rw", "rw"]);
    let job = bench.add(2).unwrap();
    assert_eq!(volume.state().job, Some(job.id));
    let busy = bench.add(2).unwrap_err();
    assert!(
        matches!(busy, Refusal::VolumeBusy { .. } | Refusal::VolumeState(_)),
        "{busy:?}"
    );
    let job = bench.end(&job).await;
    assert_eq!((job.state, &job.failure), (JobState::Succeeded, &None));
    assert_eq!(bench.modes(), ["rw", "rw", "rw"]);
    assert_eq!(volume.state().job, None);
    let again = bench.add(2).unwrap_err();
    assert!(matches!(again, Refusal::VolumeState(_)), "{again:?}");

    let [records, away] = ["records", "away"].map(|name| bench.directory.path().join(name));
    std::fs::rename(&records, &away).unwrap();
    bench.replicas[2].signal(Signal::KILL);
    let failed = until("its failure", || {
        volume.replicas().into_iter().find_map(|one| one.failure)
    });
    let failed = failed.await;
    assert!(failed.since_ms > 1_600_000_000_000, "{failed:?}");
    assert!(!failed.reason.is_empty());
    until("its event", || (volume.tally().failures == 1).then_some(())).await;
    let unrecorded = until("a record that fails", || volume.state().record_failure).await;
    assert!(unrecorded.since_ms >= failed.since_ms, "{unrecorded:?}");
    let error = unrecorded.error;
    assert!(
        error.contains("records/v.json: it cannot be written: No such file"),
        "{error}"
    );
    std::fs::rename(&away, &records).unwrap();
    until("a record", || {
        volume.state().record_failure.is_none().then_some(())
    })
    .await;
    let removed = volume.remove_replica(&bench.replicas[2].address);
    assert_eq!(removed.await.unwrap().len(), 2);
    let removed = volume.remove_replica(&bench.replicas[2].address);
    assert!(matches!(removed.await.unwrap_err(), Refusal::NoReplica(_)));
    let removed = volume.remove_replica(&bench.replicas[1].address);
    assert_eq!(removed.await.unwrap()[0].mode, ReplicaMode::ReadWrite);
    let removed = volume.remove_replica(&bench.replicas[0].address);
    let last = removed.await.unwrap_err();
    assert!(
        matches!(&last, Refusal::VolumeState(told) if told.contains("only replica")),
        "{last:?}"
    );

    // Nobody is there any more.
    let job = bench.add(2).unwrap();
    let job = bench.end(&job).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.failure.unwrap().contains("cannot be reached"));
    assert_eq!(bench.modes(), ["rw"]);
    bench.open.close().unwrap();
    let closed = volume.snapshots().await.unwrap_err();
    assert!(
        matches!(&closed, Refusal::VolumeState(told) if told.contains("closed")),
        "{closed:?}"
    );
    let (b, c) = (&bench.replicas[1].address, &bench.replicas[2].address);
    let journal = Arc::clone(&bench.journal);
    let told = std::thread::spawn(move || told(&journal)).join().unwrap();
    let expected = [
        format!("replica-added {c}"),
        format!("replica-rebuilt {c}"),
        format!("replica-failed {c}"),
        "record-failed".to_owned(),
        "record-recovered".to_owned(),
        format!("replica-removed {c}"),
        format!("replica-removed {b}"),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn snapshots_are_taken_and_what_they_take_is_given_back() {
    let bench = Bench::start(2);
    let volume = &bench.volume;
    assert_eq!(volume.snapshots().await.unwrap(), []);
    let mut request = named("one");
    request.labels.insert("by".to_owned(), "me".to_owned());
    assert_eq!(volume.take_snapshot(request).await.unwrap().name, "one");
    let again = volume.take_snapshot(named("one")).await.unwrap_err();
    assert!(matches!(again, Refusal::VolumeState(_)), "{again:?}");
    let made_up = volume.take_snapshot(SnapshotRequest::default());
    let made_up = made_up.await.unwrap().name;
    let snapshots = volume.snapshots().await.unwrap();
    let one = snapshots.iter().find(|one| one.name == "one").unwrap();
    assert!(one.user_created && !one.removed && one.size >= (SIZE / 2) as u64);
    assert_eq!(one.labels["by"], "me");
    let other = snapshots.iter().find(|one| one.name == made_up).unwrap();
    assert_eq!(other.parent.as_deref(), Some("one"));

    let none = volume.remove_snapshot("none", &bench.jobs).await;
    assert!(matches!(none.unwrap_err(), Refusal::NoSnapshot(_)));
    let job = volume.remove_snapshot("one", &bench.jobs).await.unwrap();
    let job = bench.end(&job).await;
    assert_eq!((job.state, &job.failure), (JobState::Succeeded, &None));
    let left = volume.snapshots().await.unwrap();
    let names: Vec<_> = left.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, [made_up.as_str()]);
    assert_eq!(volume.tally().snapshots, 2);
    bench.open.close().unwrap();
}

#[tokio::test]
async fn a_replica_that_hangs_keeps_nobody_waiting_and_can_be_given_up() {
    let bench = Bench::start(3);
    let volume = &bench.volume;
    bench.replicas[2].signal(Signal::STOP);
    let job = bench.add(2).unwrap();
    let start = Instant::now();
    assert_eq!(bench.modes(), ["rw", "rw"]);
    assert_eq!(volume.state().job, Some(job.id));
    assert!(start.elapsed() < Duration::from_secs(5), "nobody waits");
    bench.jobs.cancel(job.id).unwrap();
    assert_eq!(bench.end(&job).await.state, JobState::Cancelled);
    assert_eq!(volume.state().job, None);

    // One of those that are used.
    bench.replicas[1].signal(Signal::STOP);
    let taken = volume.take_snapshot(named("s")).await.unwrap();
    assert_eq!(taken.name, "s");
    assert_eq!(bench.modes(), ["rw", "failed"]);
    bench.open.close().unwrap();
}
