//! A replica: its settings, its state, and whatever changes it. Called by the threads of the control plane, one at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::chain::Chain;
use super::change::Snapshot;
use super::gate::Gate;
use super::open::Volume;
use super::remove::Step;
use super::state::{State, Status, closed};
use crate::error::{Error, Result};
use crate::files::directory::Directory;
use crate::files::image::Image;
use crate::files::names::{META, REVISION_COUNTER, VOLUME_META, is_image};

/// How long requests that are in flight may take to end before a change.
const PATIENCE: Duration = Duration::from_secs(60);

/// The present time by RFC 3339, to the second, as Longhorn writes it.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// How a replica is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are.
    pub directory: PathBuf,
    /// The raw image at the bottom.
    pub backing_file: Option<PathBuf>,
    /// Writes are counted.
    pub count_revisions: bool,
    /// An unmap marks the snapshots below the head as removed first.
    pub unmap_marks: bool,
    /// The most snapshots that are not to go.
    pub most_snapshots: i32,
    /// The most bytes that they may take; 0 for any. Kept for the engine.
    pub most_snapshot_bytes: i64,
}

impl Options {
    /// A replica in `directory` that does not count writes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            backing_file: None,
            count_revisions: false,
            unmap_marks: false,
            most_snapshots: 250,
            most_snapshot_bytes: 0,
        }
    }
}

/// A replica.
#[derive(Debug)]
pub struct Replica {
    gate: Arc<Gate>,
    control: Mutex<Control>,
}

#[derive(Debug)]
struct Control {
    options: Options,
    volume: Option<Volume>,
}

impl Replica {
    /// A replica that is not open. Nothing is looked at yet.
    #[must_use]
    pub fn new(options: Options) -> Arc<Self> {
        let control = Mutex::new(Control {
            options,
            volume: None,
        });
        Arc::new(Self {
            gate: Arc::default(),
            control,
        })
    }

    /// Where the data path goes in.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Whether it serves, as a ping asks.
    ///
    /// # Errors
    /// The answer to the ping.
    pub fn ping(&self) -> std::result::Result<(), String> {
        match self.gate.chain() {
            None => Err(format!(
                "ping failure: replica state {}",
                State::Closed.name()
            )),
            Some(chain) => match chain.flags.error() {
                Some(error) => Err(format!("ping failure due to {error}")),
                None => Ok(()),
            },
        }
    }

    /// What is to be told of it.
    #[must_use]
    pub fn status(&self) -> Status {
        let control = self.control.lock();
        let Some(volume) = &control.volume else {
            let (state, meta) = closed(&control.options);
            return Status {
                state,
                meta,
                open: None,
            };
        };
        let open = volume.status(&control.options);
        let mut meta = volume.meta.clone();
        meta.dirty |= volume.flags.dirty.load(Ordering::Relaxed);
        let state = match volume.flags.error() {
            Some(error) => {
                meta.error = error;
                State::Error
            }
            None if meta.rebuilding => State::Rebuilding,
            None if meta.dirty => State::Dirty,
            None => State::Open,
        };
        Status {
            state,
            meta,
            open: Some(open),
        }
    }

    /// Makes the files where there are none.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn create(&self, size: i64) -> Result<()> {
        let control = self.control.lock();
        if control.volume.is_some() || closed(&control.options).0 != State::Initial {
            return Ok(());
        }
        let volume = Volume::open(&control.options, size)?;
        volume.write_meta(volume.meta.dirty)
    }

    /// Opens it.
    ///
    /// # Errors
    /// When it is open already, or its files are not as they should be.
    pub fn open(&self) -> Result<()> {
        let mut control = self.control.lock();
        if control.volume.is_some() {
            return Err(Error::refused("replica is already open"));
        }
        if closed(&control.options).0 == State::Initial {
            return Err(Error::refused(
                "the replica has no files yet; create it first, with a size",
            ));
        }
        let volume = Volume::open(&control.options, 0)?;
        self.publish(&control.options, &volume)?;
        control.volume = Some(volume);
        Ok(())
    }

    fn publish(&self, options: &Options, volume: &Volume) -> Result<()> {
        let chain = volume.chain(options);
        self.gate.alone(PATIENCE, |place| {
            *place = Some(chain);
            Ok(())
        })
    }

    /// Changes what is open while no request is in flight; nothing where nothing is open.
    fn change(&self, change: impl FnOnce(&mut Volume) -> Result<()>) -> Result<()> {
        let mut control = self.control.lock();
        let Control { options, volume } = &mut *control;
        let Some(volume) = volume else {
            return Ok(());
        };
        self.gate.alone(PATIENCE, |place| {
            let result = change(volume);
            // Others may open it again. One that changes it by now would do so under our hands.
            if let Err(error) = volume.share() {
                volume.flags.fail(error.text());
            }
            // Also a change that failed may have changed something.
            *place = Some(volume.chain(options));
            result
        })
    }

    /// Closes it: everything is on stable storage, and its metadata says so.
    ///
    /// # Errors
    /// When that cannot be; it is open then.
    pub fn close(&self) -> Result<()> {
        let mut control = self.control.lock();
        let Some(volume) = &control.volume else {
            return Ok(());
        };
        self.gate.alone(PATIENCE, |place| {
            volume.sync()?;
            volume.write_meta(false)?;
            *place = None;
            Ok(())
        })?;
        control.volume = None;
        Ok(())
    }

    /// Everything that was answered is on stable storage; it stays as open as it is.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn sync(&self) -> Result<()> {
        let control = self.control.lock();
        match &control.volume {
            Some(volume) => self.gate.alone(PATIENCE, |_| volume.sync()),
            None => Ok(()),
        }
    }

    /// Opens all files anew.
    ///
    /// # Errors
    /// When they are not as they should be; those that were open stay open.
    pub fn reload(&self) -> Result<()> {
        let mut control = self.control.lock();
        let Control { options, volume } = &mut *control;
        let Some(old) = volume else {
            return Ok(());
        };
        self.gate.alone(PATIENCE, |place| {
            old.sync()?;
            let mut new = Volume::open(options, 0)?;
            new.meta.dirty = old.meta.dirty;
            let dirty = old.flags.dirty.load(Ordering::Relaxed);
            new.flags.dirty.store(dirty, Ordering::Relaxed);
            *place = Some(new.chain(options));
            *old = new;
            Ok(())
        })
    }

    /// Removes all files of an open replica.
    ///
    /// # Errors
    /// When some of them stay.
    pub fn delete(&self) -> Result<()> {
        let mut control = self.control.lock();
        let Some(volume) = &control.volume else {
            return Ok(());
        };
        self.gate.alone(PATIENCE, |place| {
            *place = None;
            let directory = &volume.directory;
            // Without it there is no replica any more.
            directory.remove(VOLUME_META)?;
            directory.sync()?;
            for name in volume.disks.keys() {
                super::open::remove_disk(directory, name)?;
            }
            directory.remove(REVISION_COUNTER)?;
            directory.sync()
        })?;
        control.volume = None;
        Ok(())
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// When there is one of this name, or too many, or it cannot be taken.
    pub fn snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        self.check_room()?;
        self.change(|volume| volume.snapshot(snapshot, volume.meta.size))
    }

    fn check_room(&self) -> Result<()> {
        let control = self.control.lock();
        let Some(volume) = &control.volume else {
            return Ok(());
        };
        match volume.snapshots() < control.options.most_snapshots {
            true => Ok(()),
            false => Err(Error::refused(format!(
                "too many active disks: {}",
                volume.layers.len()
            ))),
        }
    }

    /// Goes back to a snapshot, by its file's name.
    ///
    /// # Errors
    /// When there is none, or it cannot be.
    pub fn revert(&self, file: &str, created: &str) -> Result<()> {
        self.change(|volume| volume.revert(file, created))
    }

    /// Grows it.
    ///
    /// # Errors
    /// When the size is not possible, or it cannot be.
    pub fn expand(&self, size: i64) -> Result<()> {
        self.check_room()?;
        self.change(|volume| volume.expand(size))
    }

    /// Removes a layer's file, by its name; also one that others are based on if `force`.
    ///
    /// # Errors
    /// When it is none, or must not go.
    pub fn remove_disk(&self, name: &str, force: bool) -> Result<()> {
        self.change(|volume| volume.remove(name, force))
    }

    /// Puts the file `source` in the place of `target`.
    ///
    /// # Errors
    /// When that must not be.
    pub fn replace_disk(&self, target: &str, source: &str) -> Result<()> {
        self.change(|volume| volume.replace(target, source))
    }

    /// What to do to remove a snapshot that is marked.
    ///
    /// # Errors
    /// When it is not marked, or the head.
    pub fn prepare_remove(&self, name: &str) -> Result<Vec<Step>> {
        match &self.control.lock().volume {
            Some(volume) => volume.prepare_remove(name),
            None => Ok(Vec::new()),
        }
    }

    /// Marks a snapshot as one that is to go, by its name or its file's.
    ///
    /// # Errors
    /// When it is the head, or cannot be marked.
    pub fn mark_as_removed(&self, name: &str) -> Result<()> {
        self.change(|volume| volume.mark_as_removed(name))
    }

    /// Marks what an unmap wants to give back. Not to be called by who is inside the gate.
    ///
    /// # Errors
    /// When it cannot be marked.
    pub fn mark_chain_as_removed(&self) -> Result<()> {
        self.change(Volume::mark_chain_as_removed)
    }

    /// Says whether it is complete.
    ///
    /// # Errors
    /// When it is in no state for that.
    pub fn set_rebuilding(&self, rebuilding: bool) -> Result<()> {
        let state = self.status().state;
        let possible = match rebuilding {
            true => matches!(state, State::Open | State::Dirty),
            false => state == State::Rebuilding,
        };
        if !possible {
            let state = state.name();
            return Err(Error::refused(format!(
                "cannot set rebuilding={rebuilding} from state {state}"
            )));
        }
        self.change(|volume| {
            if let Some(hole) = &volume.hole {
                return Err(Error::refused(format!(
                    "a rebuild came to no end here: {hole}; rebuild it again, or empty its directory"
                )));
            }
            let before = std::mem::replace(&mut volume.meta.rebuilding, rebuilding);
            // What was received is on stable storage before it counts as complete.
            let synced = volume.sync();
            synced
                .and_then(|()| volume.write_meta(true))
                .inspect_err(|_| volume.meta.rebuilding = before)
        })
    }

    /// Sets the counter of writes.
    ///
    /// # Errors
    /// When writes are not counted, or it cannot be written.
    pub fn set_revision(&self, number: i64) -> Result<()> {
        self.change(|volume| match &volume.counter {
            Some(counter) => counter.set(number),
            None => Err(Error::refused("the revision counter is disabled")),
        })
    }

    /// Sets whether an unmap marks snapshots.
    ///
    /// # Errors
    /// When requests are stuck.
    pub fn set_unmap_marks(&self, enabled: bool) -> Result<()> {
        self.control.lock().options.unmap_marks = enabled;
        self.change(|_| Ok(()))
    }

    /// Sets the most snapshots.
    pub fn set_most_snapshots(&self, count: i32) {
        self.control.lock().options.most_snapshots = count;
    }

    /// Sets the most bytes of snapshots.
    pub fn set_most_snapshot_bytes(&self, bytes: i64) {
        self.control.lock().options.most_snapshot_bytes = bytes;
    }

    /// The directory, for those who transfer files.
    ///
    /// # Errors
    /// When it is not there.
    pub fn directory(&self) -> Result<Directory> {
        let path = self.control.lock().options.directory.clone();
        Directory::open_existing(&path)
    }

    /// An image of the directory, for those who transfer it or fold it; writable, for what is no longer to be served as it is.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn image(&self, name: &str) -> Result<Image> {
        let directory = self.directory()?;
        if !is_image(name) {
            return Err(Error::refused(format!(
                "{name:?} is not the name of a disk"
            )));
        }
        if !directory.has(&format!("{name}{META}")) {
            return Err(Error::refused(format!("disk {name} has no metadata")));
        }
        Image::open(&directory, name, false)
    }

    /// The chain that is served.
    #[must_use]
    pub fn chain(&self) -> Option<Arc<Chain>> {
        self.gate.chain()
    }
}
