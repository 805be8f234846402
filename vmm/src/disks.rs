//! A VM's disks as others see them: how large they are and how they fail, and the way to resize and to resume them.
//!
//! Made with the state driver; a disk is known here from when it is plugged in until it is taken out or the VM ends, through resets of the machine. Read on the
//! control plane's thread, where none may be closed, for that blocks; told of failures on the disks' threads, which wait for nobody here. The guest decides what is asked of a disk, and the
//! host how it fails: each failure is one event, and so is its end.

use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use paddock_api::device::DeviceKind;
use paddock_api::disk::{DiskFailure, FailureHandling};
use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
use paddock_api::service::Refusal;
use paddock_api::spec::{AfterRetry, ByteSize, DiskLimits, OnError};
use paddock_devices::virtio::blk::ConfigBell;
use paddock_storage::hold::{Failure, Listener, News, Opener, Policy, Retry, Status, Then};
use paddock_storage::limit::{Limits, Rate, Throttled};
use paddock_storage::{Disk, HoldingDisk, IoError, LimitedDisk, ResizeError};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::driver::Held;
use crate::error::chain;
use crate::volumes::{DiskVolume, Watch};

/// How long the host may take to resize a disk.
const RESIZE_DEADLINE: Duration = Duration::from_secs(20);

/// A disk that is open.
#[derive(Debug)]
pub struct OpenDisk {
    id: String,
    /// What stands behind it.
    backend: Arc<dyn Disk>,
    /// The same, if failed requests are held.
    holding: Option<Arc<HoldingDisk>>,
    /// What the device has: the same with limits.
    limited: Arc<LimitedDisk>,
    bell: Arc<ConfigBell>,
    /// The volume that it is, if its engine is ours. Set before anybody else sees the disk.
    volume: OnceLock<Arc<DiskVolume>>,
}

impl OpenDisk {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the device has.
    #[must_use]
    pub fn backend(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.limited) as _
    }

    /// How much I/O the guest may do.
    #[must_use]
    pub fn limits(&self) -> DiskLimits {
        let Limits { requests, bytes } = self.limited.limits();
        let of = |rate: Rate| rate.per_second.get();
        DiskLimits {
            iops: requests.map(of),
            iops_burst: requests.map(|rate| rate.burst),
            bandwidth: bytes.map(of).map(ByteSize::from_bytes),
            bandwidth_burst: bytes.map(|rate| ByteSize::from_bytes(rate.burst)),
        }
    }

    /// What limits have cost.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        self.limited.throttled()
    }

    /// The replicated volume that it is, if its engine is ours.
    #[must_use]
    pub fn volume(&self) -> Option<&Arc<DiskVolume>> {
        self.volume.get()
    }

    /// It is this volume.
    pub(crate) fn is_volume(&self, volume: Arc<DiskVolume>) {
        // Nobody says it twice.
        let _ = self.volume.set(volume);
    }

    /// The way to its driver.
    #[must_use]
    pub fn bell(&self) -> &Arc<ConfigBell> {
        &self.bell
    }

    /// Whether no device has it, nor anybody who is about to do something with it.
    #[must_use]
    pub fn is_unused(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.limited) == 1
    }

    /// How it holds requests, if it may.
    #[must_use]
    pub fn holding(&self) -> Option<Status> {
        self.holding.as_ref().map(|holding| holding.status())
    }

    /// How it fails, if it does.
    #[must_use]
    pub fn failure(&self) -> Option<DiskFailure> {
        let status = self.holding()?;
        let failure = status.failure?;
        let since = failure.since.duration_since(SystemTime::UNIX_EPOCH);
        Some(DiskFailure {
            disk: self.id.clone(),
            errno: failure.errno,
            error: in_words(&failure),
            offset: failure.offset,
            since_ms: since.map_or(0, milliseconds),
            handling: match (status.stopped, status.reporting) {
                (true, _) => FailureHandling::Stopped,
                (_, true) => FailureHandling::Reporting,
                _ => FailureHandling::Retrying,
            },
            requests: status.requests as u64,
            attempts: status.attempts.into(),
        })
    }
}

/// Limits that were checked, for the data plane.
fn limits(limits: DiskLimits) -> Limits {
    let limits = limits.with_bursts();
    let rate = |per_second: Option<u64>, burst: Option<u64>| {
        let per_second = NonZeroU64::new(per_second?)?;
        let burst = burst?;
        Some(Rate { per_second, burst })
    };
    let bytes = |size: Option<ByteSize>| size.map(ByteSize::bytes);
    Limits {
        requests: rate(limits.iops, limits.iops_burst),
        bytes: rate(bytes(limits.bandwidth), bytes(limits.bandwidth_burst)),
    }
}

fn in_words(failure: &Failure) -> String {
    IoError::Os(failure.errno).to_string()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A VM's disks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Disks {
    journal: Arc<Journal>,
    /// Of threads that resize one: they may hang, and there are few.
    resizing: Arc<Semaphore>,
    /// `None` once the VM has ended.
    attached: Arc<Mutex<Option<Attached>>>,
    /// A disk has stopped.
    stops: Arc<Notify>,
}

/// The disks that are the VM's. To drop the last user of one closes it, which may block.
#[derive(Debug)]
pub(crate) struct Attached {
    /// In the order in which they were plugged in.
    disks: Vec<Arc<OpenDisk>>,
    /// Open files are something of the VM; dropped after them.
    held: Held,
}

impl Disks {
    /// Of a VM that has none yet, and is held until its end. Events go to `journal`.
    #[must_use]
    pub fn new(journal: Arc<Journal>, held: Held) -> Self {
        let attached = Attached {
            disks: Vec::new(),
            held,
        };
        Self {
            journal,
            resizing: Arc::new(Semaphore::new(1)),
            attached: Arc::new(Mutex::new(Some(attached))),
            stops: Arc::default(),
        }
    }

    /// A disk that was opened, with the policy and the limits of its spec. `opener` opens it anew, if that can be.
    #[must_use]
    pub fn opened(
        &self,
        id: &str,
        disk: Arc<dyn Disk>,
        opener: Option<Opener>,
        on_error: OnError,
        at_first: DiskLimits,
    ) -> Arc<OpenDisk> {
        let policy = match on_error {
            OnError::Report => None,
            OnError::Stop => Some(Policy::Stop),
            OnError::Retry {
                deadline,
                interval,
                then,
            } => Some(Policy::Retry(Retry {
                deadline,
                interval,
                then: match then {
                    AfterRetry::Report => Then::Report,
                    AfterRetry::Stop => Then::Stop,
                },
            })),
        };
        let holding = policy.map(|policy| {
            let disk = Arc::clone(&disk);
            Arc::new(HoldingDisk::new(disk, policy, opener, self.listener(id)))
        });
        let backend = holding.clone().map_or(disk, |holding| holding as _);
        let limited = LimitedDisk::new(Arc::clone(&backend), limits(at_first));
        Arc::new(OpenDisk {
            id: id.to_owned(),
            backend,
            holding,
            limited: Arc::new(limited),
            bell: Arc::default(),
            volume: OnceLock::new(),
        })
    }

    /// What a volume tells that is the disk of this id.
    #[must_use]
    pub fn watch(&self, id: &str) -> Arc<Watch> {
        Arc::new(Watch::new(id, Arc::clone(&self.journal)))
    }

    /// The volume behind a disk. `known` says whether the VM has such a disk at all.
    ///
    /// # Errors
    /// When it is not there, or is no volume whose engine is ours.
    pub fn volume(&self, id: &str, known: bool) -> Result<Arc<DiskVolume>, Refusal> {
        let disk = self.open(id, known)?;
        let none = || Refusal::NoVolume { id: id.to_owned() };
        disk.volume().cloned().ok_or_else(none)
    }

    fn listener(&self, id: &str) -> Listener {
        let (journal, stops) = (Arc::clone(&self.journal), Arc::clone(&self.stops));
        let id = id.to_owned();
        Box::new(move |news| {
            let disk = id.clone();
            match news {
                News::Failed(failure) => {
                    let error = in_words(&failure);
                    tracing::error!(disk, error, "the disk fails; its requests are held");
                    journal.publish(EventKind::DiskError {
                        disk,
                        errno: failure.errno,
                        error,
                        offset: failure.offset,
                    });
                }
                News::Stopped(_) => stops.notify_one(),
                News::Reporting(failure) => {
                    let error = in_words(&failure);
                    tracing::error!(disk, error, "the disk did not recover; the guest is told");
                    journal.publish(EventKind::DiskReporting {
                        disk,
                        errno: failure.errno,
                        error,
                    });
                }
                News::Recovered { after, attempts } => {
                    tracing::info!(disk, ?after, attempts, "the disk works again");
                    journal.publish(EventKind::DiskRecovered {
                        disk,
                        after_ms: milliseconds(after),
                        attempts: attempts.into(),
                    });
                }
            }
        })
    }

    /// A disk is the VM's from now on, unless that has ended: a step that it left behind may get here late.
    pub(crate) fn attach(&self, disk: &Arc<OpenDisk>) {
        if let Some(attached) = &mut *self.attached.lock() {
            attached.disks.push(Arc::clone(disk));
        }
    }

    /// A disk is not the VM's any more.
    pub(crate) fn detach(&self, id: &str) {
        if let Some(attached) = &mut *self.attached.lock() {
            attached.disks.retain(|disk| disk.id != id);
        }
    }

    /// The VM has ended, and has no disks from now on. Those it had are the caller's, who drops them where that may block.
    #[must_use]
    pub(crate) fn end(&self) -> Option<Attached> {
        self.attached.lock().take()
    }

    /// What holds the VM as long as it exists, unless that has ended.
    fn held(&self) -> Option<Held> {
        let attached = self.attached.lock();
        attached.as_ref().map(|attached| attached.held.clone())
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<OpenDisk>> {
        let attached = self.attached.lock();
        let disks = attached.as_ref().map(|attached| attached.disks.clone());
        disks.unwrap_or_default()
    }

    /// The disk of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Arc<OpenDisk>> {
        let attached = self.attached.lock();
        let mut disks = attached.as_ref()?.disks.iter();
        disks.find(|disk| disk.id == id).cloned()
    }

    /// Those that fail, and how.
    #[must_use]
    pub fn failures(&self) -> Vec<DiskFailure> {
        let disks = self.all();
        disks.iter().filter_map(|disk| disk.failure()).collect()
    }

    /// Waits until a disk wants the VM to stand still. Nothing is lost when the wait is given up.
    pub(crate) async fn stopped(&self) {
        loop {
            self.stops.notified().await;
            let mut holding = self.all().into_iter().filter_map(|disk| disk.holding());
            if holding.any(|status| status.stopped) {
                return;
            }
        }
    }

    /// Tries those that fail again, as the VM goes on.
    pub(crate) fn resume(&self) {
        for disk in self.all() {
            if let Some(Err(error)) = disk.holding.as_ref().map(|holding| holding.resume()) {
                tracing::error!(disk = disk.id, %error, "the disk cannot be tried again");
            }
        }
    }

    /// Limits the guest's I/O on a disk. `known` says whether the VM has such a disk at all.
    ///
    /// # Errors
    /// When it is not there.
    pub fn limit(&self, id: &str, wanted: DiskLimits, known: bool) -> Result<(), Refusal> {
        let disk = self.open(id, known)?;
        disk.limited.set(limits(wanted));
        tracing::info!(disk = disk.id, limits = ?disk.limited.limits(), "disk limited");
        Ok(())
    }

    /// The disk of this id, which is open.
    fn open(&self, id: &str, known: bool) -> Result<Arc<OpenDisk>, Refusal> {
        let (kind, name) = (DeviceKind::Disk, id.to_owned());
        self.find(id).ok_or(match known {
            true => Refusal::DiskClosed { id: name },
            false => Refusal::NoDevice { kind, id: name },
        })
    }

    /// Makes a disk so large, or looks how large it has become, and tells its driver. `known` says whether the VM has such a disk at all.
    ///
    /// # Errors
    /// When it is not there, or cannot be so large.
    pub async fn resize(&self, id: &str, size: Option<u64>, known: bool) -> Result<(), Refusal> {
        let disk = self.open(id, known)?;
        let held = self.held();
        let journal = Arc::clone(&self.journal);
        let Ok(place) = Arc::clone(&self.resizing).try_acquire_owned() else {
            return Err(Refusal::Busy);
        };
        let resizing = tokio::task::spawn_blocking(move || {
            // If the VM ends meanwhile, the disk is closed here.
            let _until_then = (place, held);
            let disk = disk;
            resize(&disk, size, &journal)
        });
        match tokio::time::timeout(RESIZE_DEADLINE, resizing).await {
            Ok(Ok(resized)) => resized.map_err(|error| not_resized(&error)),
            Ok(Err(error)) => Err(Refusal::HostFailed(error.to_string())),
            Err(_) => Err(Refusal::HostFailed(format!(
                "the host has not resized it within {RESIZE_DEADLINE:?}"
            ))),
        }
    }
}

/// Resizes a disk and tells its driver. May block as storage does.
fn resize(disk: &OpenDisk, size: Option<u64>, journal: &Journal) -> Result<(), ResizeError> {
    let before = disk.backend.size();
    let size = disk.backend.resize(size)?;
    if size != before {
        tracing::info!(disk = disk.id, before, size, "disk resized");
        let disk = disk.id.clone();
        journal.publish(EventKind::DiskResized { disk, size });
    }
    // Also if it was as large already: it may have been opened anew since the driver was told.
    disk.bell.ring();
    Ok(())
}

/// Whether the size is wrong, or the host.
fn not_resized(error: &ResizeError) -> Refusal {
    use io::ErrorKind::{FileTooLarge, InvalidInput, QuotaExceeded, StorageFull};
    let detail = chain(error);
    match error {
        ResizeError::Io(error) => match error.kind() {
            FileTooLarge | InvalidInput | QuotaExceeded | StorageFull => Refusal::DiskSize(detail),
            _ => Refusal::HostFailed(detail),
        },
        _ => Refusal::DiskSize(detail),
    }
}

#[cfg(test)]
impl Disks {
    /// Of no VM, for tests.
    pub(crate) fn nowhere() -> Self {
        Self::new(Arc::default(), Held::new().0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use paddock_storage::testing::{Fault, MemoryDisk};
    use paddock_storage::{Capabilities, DiskQueue, Operation, Request};

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
}
