//! Disks that stop, report and are resized.

use std::sync::mpsc::{Receiver, Sender, channel};

use paddock_api::disk::FailureHandling;
use paddock_api::spec::ByteSize;
use paddock_storage::longhorn::VolumeError;
use paddock_storage::testing::{Fault, MemoryDisk};
use paddock_storage::{Capabilities, DiskQueue, IoError, Operation, Request};

use super::*;

fn disks() -> (Disks, Arc<Journal>) {
    let journal = Arc::<Journal>::default();
    (Disks::new(Arc::clone(&journal), Held::new().0), journal)
}

fn kinds(journal: &Arc<Journal>) -> Vec<EventKind> {
    use paddock_api::journal::Delivery;
    journal.close();
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.build().unwrap().block_on(async {
        let (mut follower, mut kinds) = (journal.follow(Some(0)), Vec::new());
        while let Some(Delivery::Event(event)) = follower.next().await {
            kinds.push(event.kind.clone());
        }
        kinds
    })
}

#[test]
fn a_disk_that_stops_is_an_event_a_state_and_a_wish() {
    let (disks, journal) = disks();
    let memory = MemoryDisk::new(4096);
    memory.script([Fault::Error(IoError::Os(libc::ENOSPC))]);
    let disk = disks.opened(
        "data",
        Arc::new(memory),
        None,
        OnError::Stop,
        DiskLimits::default(),
    );
    disks.attach(&disk);
    assert_eq!(disks.failures(), []);
    let mut queue = disk.backend().open_queue(4).unwrap();
    let operation = Operation::Flush;
    queue.submit(Request { tag: 0, operation });
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    let failures = disks.failures();
    let failure = &failures[0];
    assert_eq!(
        (failure.disk.as_str(), failure.errno),
        ("data", libc::ENOSPC)
    );
    assert_eq!(failure.handling, FailureHandling::Stopped);
    assert!(failure.error.contains("No space left"), "{failure:?}");
    assert_eq!((failure.requests, failure.offset), (1, None));
    assert!(failure.since_ms > 1_600_000_000_000);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(disks.stopped());
    disks.resume();
    let start = std::time::Instant::now();
    while done.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20));
        queue.reap(&mut done);
        std::thread::yield_now();
    }
    while !disks.failures().is_empty() {
        std::thread::yield_now();
    }
    drop(queue);
    disks.detach("data");
    assert!(disk.is_unused() && disks.find("data").is_none());
    let names: Vec<_> = kinds(&journal).iter().map(EventKind::name).collect();
    assert_eq!(names, ["disk-error", "disk-recovered"]);
}

/// Whoever follows the events learns that the guest saw errors, before it hears that the disk works again.
#[test]
fn a_disk_that_reports_says_so() {
    let (disks, journal) = disks();
    let memory = MemoryDisk::new(4096);
    memory.script([Fault::Error(IoError::Os(libc::EIO))]);
    let on_error = OnError::Retry {
        deadline: Duration::from_millis(1),
        interval: Duration::from_secs(60),
        then: AfterRetry::Report,
    };
    let any = DiskLimits::default();
    let disk = disks.opened("data", Arc::new(memory), None, on_error, any);
    let mut queue = disk.backend().open_queue(4).unwrap();
    let mut done = Vec::new();
    let start = std::time::Instant::now();
    for tag in 0..2 {
        let operation = Operation::Flush;
        queue.submit(Request { tag, operation });
        queue.kick();
        while done.len() as u64 <= tag {
            assert!(start.elapsed() < Duration::from_secs(20));
            queue.reap(&mut done);
            std::thread::yield_now();
        }
    }
    let results: Vec<_> = done.iter().map(|completion| completion.result).collect();
    assert_eq!(results, [Err(IoError::Os(libc::EIO)), Ok(())]);
    let kinds = kinds(&journal);
    let names: Vec<_> = kinds.iter().map(EventKind::name).collect();
    assert_eq!(names, ["disk-error", "disk-reporting", "disk-recovered"]);
    assert!(
        matches!(&kinds[1], EventKind::DiskReporting { errno: libc::EIO, error, .. } if error.contains("Input/output")),
        "{kinds:?}"
    );
}

/// A disk that is not resized before `go_on` says so.
#[derive(Debug)]
struct SlowToResize {
    memory: MemoryDisk,
    started: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Disk for SlowToResize {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn DiskQueue>> {
        self.memory.open_queue(depth)
    }

    fn resize(&self, _size: Option<u64>) -> Result<u64, ResizeError> {
        let _ = self.started.send(());
        let _ = self.go_on.lock().recv();
        Err(ResizeError::Unsupported)
    }
}

#[tokio::test]
async fn a_disk_that_is_resized_at_the_end_is_held() {
    let (held, released) = Held::new();
    let disks = Disks::new(Arc::default(), held);
    let ((started, starts), (go_on, wait)) = (channel(), channel());
    let disk = SlowToResize {
        memory: MemoryDisk::new(4096),
        started,
        go_on: Mutex::new(wait),
    };
    let any = DiskLimits::default();
    disks.attach(&disks.opened("slow", Arc::new(disk), None, OnError::Report, any));
    let resizing = disks.clone();
    let resizing = tokio::spawn(async move { resizing.resize("slow", None, true).await });
    while starts.try_recv().is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(disks.end());
    let soon = tokio::time::timeout(Duration::from_millis(20), released.clone().wait());
    assert!(soon.await.is_err(), "the disk is still open");
    drop(go_on);
    released.wait().await;
    let refused = resizing.await.unwrap();
    assert!(matches!(refused, Err(Refusal::DiskSize(_))), "{refused:?}");
}

#[test]
fn a_host_that_fails_is_not_a_wrong_size() {
    let refusal = |errno| not_resized(&io::Error::from_raw_os_error(errno).into());
    for errno in [libc::EFBIG, libc::EINVAL, libc::ENOSPC, libc::EDQUOT] {
        let refused = refusal(errno);
        assert!(matches!(refused, Refusal::DiskSize(_)), "{refused:?}");
    }
    for errno in [libc::EIO, libc::ENOTCONN, libc::ESTALE] {
        let refused = refusal(errno);
        assert!(matches!(refused, Refusal::HostFailed(_)), "{refused:?}");
    }
    let volume = |error: VolumeError| not_resized(&io::Error::other(error).into());
    let busy = volume(VolumeError::State {
        volume: "v".to_owned(),
        problem: "a replica is being rebuilt".to_owned(),
    });
    assert!(
        matches!(&busy, Refusal::VolumeState(told) if told.contains("rebuilt")),
        "{busy:?}"
    );
    let refused = volume(VolumeError::Host {
        volume: "v".to_owned(),
        problem: "no".to_owned(),
    });
    assert!(matches!(refused, Refusal::ReplicaError(_)), "{refused:?}");
    let smaller = ResizeError::Smaller { size: 2, wanted: 1 };
    assert!(matches!(not_resized(&smaller), Refusal::DiskSize(_)));
}

#[tokio::test]
async fn a_disk_is_resized_unless_it_cannot_be() {
    let (disks, journal) = disks();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let raw = paddock_storage::RawOptions::new(image.path());
    let raw = Arc::new(paddock_storage::RawDisk::open(&raw).unwrap());
    let fixed = Arc::new(MemoryDisk::new(4096));
    let any = DiskLimits::default();
    disks.attach(&disks.opened("raw", raw, None, OnError::Report, any));
    disks.attach(&disks.opened("fixed", fixed, None, OnError::Stop, any));
    let limits = DiskLimits {
        iops: Some(1000),
        bandwidth: Some(ByteSize::from_mib(1)),
        bandwidth_burst: Some(ByteSize::from_mib(2)),
        ..any
    };
    disks.limit("raw", limits, true).unwrap();
    let now = disks.find("raw").unwrap().limits();
    let iops_burst = Some(100);
    assert_eq!(
        now,
        DiskLimits {
            iops_burst,
            ..limits
        }
    );
    // What is answered can be asked for again, also where a tenth of a second allows nothing.
    for (iops, bandwidth) in [(1, 4096), (9, 40_950)] {
        let least = DiskLimits {
            iops: Some(iops),
            bandwidth: Some(ByteSize::from_bytes(bandwidth)),
            ..any
        };
        disks.limit("raw", least, true).unwrap();
        let now = disks.find("raw").unwrap().limits();
        assert_eq!((now.iops, now.iops_burst), (Some(iops), Some(1)));
        assert_eq!(now.checked(), Ok(now));
    }
    let refused = disks.limit("none", limits, false);
    assert!(matches!(refused, Err(Refusal::NoDevice { .. })));
    disks.resize("raw", Some(2 << 20), true).await.unwrap();
    disks.resize("raw", None, true).await.unwrap();
    assert_eq!(image.as_file().metadata().unwrap().len(), 2 << 20);
    let why = |refusal: Result<(), Refusal>| refusal.unwrap_err().to_string();
    let refused = disks.resize("raw", Some(1 << 20), true).await;
    assert!(why(refused).contains("cannot shrink"));
    let refused = disks.resize("fixed", None, true).await;
    assert!(why(refused).contains("cannot change its size"));
    let refused = disks.resize("new", None, true).await;
    assert_eq!(
        refused,
        Err(Refusal::DiskClosed {
            id: "new".to_owned()
        })
    );
    let refused = disks.resize("none", None, false).await;
    assert!(why(refused).contains("no disk with the id"));
    let event = EventKind::DiskResized {
        disk: "raw".to_owned(),
        size: 2 << 20,
    };
    let seen = std::thread::spawn(move || kinds(&journal));
    assert_eq!(seen.join().unwrap(), [event]);
}
