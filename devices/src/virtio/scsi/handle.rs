//! The owner's side of a CD-ROM drive: the medium goes in and out, and one sees what the guest makes of it.
//!
//! Shared by the VM's owner and the device's worker. The lock is held while a command is looked at, which does no I/O.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use paddock_storage::Disk;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::cdrom::{Answer, Cdb, Drive, Looks};

/// Why the medium stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CdromError {
    /// The guest uses it. It has been asked to let go of it.
    #[error(
        "the guest has locked the tray, for it uses the medium; it was asked to eject it: try again later, or force it"
    )]
    Locked,
}

/// What a drive has done since the VM was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterValues {
    /// Commands of the guest, of any kind, that were answered.
    pub commands: u64,
    /// Bytes of the medium that were read for it.
    pub read_bytes: u64,
    /// Times the host could not read the medium.
    pub errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commands: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// What can lie in the tray. Only read.
#[derive(Debug, Clone)]
pub struct Medium {
    /// What to call it: its path.
    pub name: String,
    /// Its bytes. Any size will do: the last block is filled up with zeros.
    pub disk: Arc<dyn Disk>,
}

/// A drive at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdromStatus {
    /// The name of the medium in the tray.
    pub medium: Option<String>,
    /// The size of that medium in bytes.
    pub size: Option<u64>,
    /// The tray is open: the guest has ejected the medium, and does not see it.
    pub open: bool,
    /// The guest has locked the tray: it uses the medium.
    pub locked: bool,
    /// The guest has a driver.
    pub driver: bool,
    /// What was done so far.
    pub counters: CounterValues,
}

/// The way to a CD-ROM drive. Cheap to clone; outlives the device, and a reset: the medium stays, the guest's lock does not.
#[derive(Clone)]
pub struct CdromHandle(Arc<Shared>);

struct Shared {
    tray: Mutex<Tray>,
    driver: AtomicBool,
    counters: Counters,
    /// Wakes the worker, while there is one.
    doorbell: Mutex<Option<Arc<EventFd>>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

struct Tray {
    drive: Drive,
    medium: Option<Medium>,
    /// Counts media: reads of an earlier one go on no longer.
    generation: u64,
    /// Queues of this medium that were given up although the host had not answered.
    abandoned: u32,
    /// Counts what the owner did that a driver may want to hear of.
    notices: u64,
}

/// How often the queue of a medium may be given up with reads that the host does not answer. Each costs their memory and maybe threads until it
/// does, and the guest can have it happen by resets.
pub(super) const ABANDONED_MOST: u32 = 4;

/// The medium that a command reads.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) generation: u64,
    pub(super) disk: Arc<dyn Disk>,
}

impl fmt::Debug for CdromHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CdromHandle")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl CdromHandle {
    /// A drive with an empty tray. `serial` is what the guest sees as its serial number, in ASCII. `changed` is called whenever
    /// [`status`](Self::status) has news but for its counters, on a vCPU thread, the device's worker, or the caller's thread: it must
    /// neither block nor call back.
    #[must_use]
    pub fn new(serial: &str, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let tray = Tray {
            drive: Drive::new(serial),
            medium: None,
            generation: 0,
            abandoned: 0,
            notices: 0,
        };
        Self(Arc::new(Shared {
            tray: Mutex::new(tray),
            driver: AtomicBool::new(false),
            counters: Counters::default(),
            doorbell: Mutex::new(None),
            changed: Box::new(changed),
        }))
    }

    /// Puts a medium into the tray, in place of the one that is there, and closes it. Gives the old one back; the drive may be reading it for
    /// another moment.
    ///
    /// # Errors
    /// When the guest has locked the old one in and it is not taken by `force`; the guest is then asked to eject it. Whoever has it
    /// mounted does not get over it being taken away.
    pub fn insert(&self, medium: Medium, force: bool) -> Result<Option<Medium>, CdromError> {
        self.exchange(Some(medium), force)
    }

    /// Takes the medium out of the tray, and gives it back if there was one.
    ///
    /// # Errors
    /// As for [`insert`](Self::insert).
    pub fn eject(&self, force: bool) -> Result<Option<Medium>, CdromError> {
        self.exchange(None, force)
    }

    /// Asks the guest to eject the medium, if it has locked one in.
    ///
    /// # Errors
    /// When it has.
    pub fn ask_to_eject(&self) -> Result<(), CdromError> {
        let mut tray = self.0.tray.lock();
        if tray.medium.is_none() || !tray.drive.looks().locked {
            return Ok(());
        }
        tray.notices += 1;
        tray.drive.request_eject();
        drop(tray);
        self.ring();
        Err(CdromError::Locked)
    }

    fn exchange(&self, medium: Option<Medium>, force: bool) -> Result<Option<Medium>, CdromError> {
        let mut tray = self.0.tray.lock();
        tray.notices += 1;
        let locked = tray.medium.is_some() && tray.drive.looks().locked;
        let result = if locked && !force {
            tray.drive.request_eject();
            Err(CdromError::Locked)
        } else {
            tray.generation += 1;
            tray.abandoned = 0;
            tray.drive.remove();
            if let Some(medium) = &medium {
                tray.drive.insert(medium.disk.size());
            }
            Ok(std::mem::replace(&mut tray.medium, medium))
        };
        drop(tray);
        self.ring();
        if result.is_ok() {
            (self.0.changed)();
        }
        result
    }

    /// The host has not answered reads of the medium of this generation, and nobody waits for it any more.
    pub(super) fn note_abandoned(&self, generation: u64) {
        let mut tray = self.0.tray.lock();
        if tray.generation == generation {
            tray.abandoned += 1;
        }
    }

    /// Whether the host has left so many reads of the medium unanswered that it is asked no more until there is another one.
    pub(super) fn is_given_up(&self, generation: u64) -> bool {
        let tray = self.0.tray.lock();
        tray.generation == generation && tray.abandoned >= ABANDONED_MOST
    }

    /// Has the guest told of the notices that were left.
    fn ring(&self) {
        if let Some(doorbell) = &*self.0.doorbell.lock() {
            // A full counter means that it rings already.
            let _ = doorbell.write(1);
        }
    }

    /// Everything at once.
    #[must_use]
    pub fn status(&self) -> CdromStatus {
        let tray = self.0.tray.lock();
        let Looks { open, locked, .. } = tray.drive.looks();
        let counters = &self.0.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CdromStatus {
            medium: tray.medium.as_ref().map(|medium| medium.name.clone()),
            size: tray.medium.as_ref().map(|medium| medium.disk.size()),
            open,
            locked,
            driver: self.0.driver.load(Ordering::Acquire),
            counters: CounterValues {
                commands: count(&counters.commands),
                read_bytes: count(&counters.read_bytes),
                errors: count(&counters.errors),
            },
        }
    }
}

/// The device's side.
impl CdromHandle {
    /// Has the drive carry out a command. What is to be read is read from the medium that comes with the answer.
    pub(super) fn execute(&self, cdb: &Cdb) -> (Answer, Option<Loaded>) {
        let mut tray = self.0.tray.lock();
        let before = tray.drive.looks();
        let answer = tray.drive.execute(cdb);
        let loaded = match (&answer, &tray.medium) {
            (Answer::Read { .. }, Some(medium)) => Some(Loaded {
                generation: tray.generation,
                disk: Arc::clone(&medium.disk),
            }),
            _ => None,
        };
        self.tell_after(tray, before);
        (answer, loaded)
    }

    /// The drive was reset, by its driver or with the VM.
    pub(super) fn reset_drive(&self) {
        let mut tray = self.0.tray.lock();
        let before = tray.drive.looks();
        tray.drive.reset();
        self.tell_after(tray, before);
    }

    fn tell_after(&self, tray: parking_lot::MutexGuard<'_, Tray>, before: Looks) {
        let changed = tray.drive.looks() != before;
        drop(tray);
        if changed {
            (self.0.changed)();
        }
    }

    /// Which medium there is, or was last.
    pub(super) fn generation(&self) -> u64 {
        self.0.tray.lock().generation
    }

    /// How much the owner has done.
    pub(super) fn notices(&self) -> u64 {
        self.0.tray.lock().notices
    }

    /// The worker that serves the driver, while there is one.
    pub(super) fn set_driver(&self, doorbell: Option<Arc<EventFd>>) {
        let driver = doorbell.is_some();
        *self.0.doorbell.lock() = doorbell;
        if self.0.driver.swap(driver, Ordering::AcqRel) != driver {
            (self.0.changed)();
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }
}
