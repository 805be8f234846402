//! A VM's disks as others see them: how large they are and how they fail, and the way to resize and to resume them.
//!
//! Made with the state driver; a disk is known here from when it is plugged in until it is taken out or the VM ends, through resets of the machine. Read on the
//! control plane's thread, where none may be closed, for that blocks; told of failures on the disks' threads, which wait for nobody here. The guest decides what is asked of a disk, and the
//! host how it fails: each failure is one event, and so is its end.

mod open;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use paddock_api::device::DeviceKind;
use paddock_api::disk::DiskFailure;
use paddock_api::journal::Journal;
use paddock_api::resource::EventKind;
use paddock_api::service::Refusal;
use paddock_api::spec::{AfterRetry, DiskLimits, OnError};
use paddock_storage::hold::{Listener, News, Opener, Policy, Retry, Then};
use paddock_storage::{Disk, HoldingDisk, LimitedDisk, ResizeError};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

pub use self::open::OpenDisk;
use self::open::{in_words, limits, milliseconds};
use crate::driver::Held;
use crate::error::chain;
use crate::volumes::{DiskVolume, Watch, refusal};

/// How long the host may take to resize a disk.
const RESIZE_DEADLINE: Duration = Duration::from_secs(20);

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
    // Of a volume there is another who tells it, whoever made it larger.
    if size != before && disk.volume().is_none() {
        tracing::info!(disk = disk.id, before, size, "disk resized");
        let disk = disk.id.clone();
        journal.publish(EventKind::DiskResized { disk, size });
    }
    // Also if it was as large already: it may have been opened anew since the driver was told.
    disk.bell.ring();
    Ok(())
}

/// Whether the size is wrong, the volume not ready for it, or the host.
fn not_resized(error: &ResizeError) -> Refusal {
    use io::ErrorKind::{FileTooLarge, InvalidInput, QuotaExceeded, StorageFull};
    if let ResizeError::Io(error) = error {
        let volume = error.get_ref().and_then(|source| source.downcast_ref());
        if let Some(error) = volume {
            return refusal(error);
        }
    }
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
