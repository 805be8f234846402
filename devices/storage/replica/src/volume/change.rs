//! Changes of the chain's top: snapshots, growth, going back. Each is done by one rename of `volume.meta`; what was made before it is
//! removed when the replica is opened again, and what is removed after it is, too.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::open::{MOST_LAYERS, Volume, open_chain, remove_disk};
use super::replica::now;
use super::table::Table;
use crate::error::{Error, Result};
use crate::files::image::{Image, SECTOR};
use crate::files::metadata::{self, DiskMeta};
use crate::files::names::{self, META, VOLUME_META};

/// What a snapshot is told by.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// A user asked for it.
    pub user_created: bool,
    /// RFC 3339.
    pub created: String,
    /// The user's.
    pub labels: Option<BTreeMap<String, String>>,
}

impl Volume {
    /// Refuses while another process has the replica open, for it would go on with the old chain.
    pub(super) fn alone(&self) -> Result<()> {
        if self.directory.lock(true) {
            return Ok(());
        }
        // It may have been lost.
        let _ = self.directory.lock(false);
        let problem = "another process has this replica open, and would go on with what is to be changed; close it there first";
        Err(Error::refused(problem))
    }

    /// Puts a new head on the present one, which becomes a snapshot.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot, size: i64) -> Result<()> {
        let file = names::snapshot_file(&snapshot.name);
        if !names::is_image(&file) {
            return Err(Error::refused(format!(
                "{:?} cannot be the name of a snapshot",
                snapshot.name
            )));
        }
        if self.disks.contains_key(&file) {
            return Err(Error::refused(format!(
                "snapshot {file} is already existing"
            )));
        }
        if self.layers.len() >= MOST_LAYERS {
            return Err(Error::refused(format!(
                "too many active disks: {}",
                self.layers.len()
            )));
        }
        self.alone()?;
        let old = self.meta.head.clone();
        let (new, new_disk) = self.new_head(&file, &snapshot.created);
        let disk = DiskMeta {
            name: file.clone(),
            user_created: snapshot.user_created,
            created: snapshot.created.clone(),
            labels: snapshot.labels.clone(),
            ..self.disks[&old].clone()
        };
        let mut meta = self.meta.clone();
        meta.head.clone_from(&new);
        meta.parent.clone_from(&file);
        meta.size = size;
        let result = self.try_snapshot(&file, &disk, &new_disk, &meta);
        let head = match result {
            Ok(head) => head,
            Err(error) => {
                self.undo(&[&new, &file]);
                return Err(error);
            }
        };
        // The old name is no longer the head's, whether it can be removed or not.
        if let Err(error) = remove_disk(&self.directory, &old) {
            tracing::warn!(
                error = error.text(),
                "a head that became a snapshot keeps its name until the replica is opened again"
            );
        }
        if let Some(top) = self.layers.last_mut() {
            *top = Arc::new(top.renamed(&file));
        }
        self.layers.push(Arc::new(head));
        self.disks.remove(&old);
        self.disks.insert(file, disk);
        self.disks.insert(new, new_disk);
        if meta.size != self.meta.size {
            self.table = Arc::new(Table::new(u64::try_from(size).unwrap_or(0)));
        }
        self.meta = meta;
        Ok(())
    }

    /// All of it that is on the disk.
    fn try_snapshot(
        &self,
        file: &str,
        disk: &DiskMeta,
        new_disk: &DiskMeta,
        meta: &metadata::VolumeMeta,
    ) -> Result<Image> {
        let directory = &self.directory;
        let dirty = metadata::VolumeMeta {
            dirty: true,
            ..meta.clone()
        };
        let head = Image::create(directory, &meta.head, u64::try_from(meta.size).unwrap_or(0))?;
        let (new_meta, snapshot_meta) = (format!("{}{META}", meta.head), format!("{file}{META}"));
        directory.remove(&format!("{file}{}", names::CHECKSUM))?;
        directory.prepare(&[
            (&new_meta, metadata::format(new_disk)),
            (&snapshot_meta, metadata::format(disk)),
            (VOLUME_META, metadata::format(&dirty)),
        ])?;
        directory.link(&self.meta.head, file)?;
        for name in [&new_meta, &snapshot_meta] {
            directory.rename(&format!("{name}{}", names::TEMPORARY), name)?;
        }
        directory.sync()?;
        directory.put(VOLUME_META)?;
        Ok(head)
    }

    /// Makes `volume.meta` what it was, and removes files.
    fn undo(&self, files: &[&str]) {
        if let Err(error) = self.write_meta(true) {
            // Which of the two is there is not known, so both heads stay.
            self.flags
                .fail(format!("cannot undo a change: {}", error.text()));
            return;
        }
        for file in files {
            if let Err(error) = remove_disk(&self.directory, file) {
                tracing::warn!(error = error.text(), "what could not be finished is left");
            }
        }
    }

    /// The name and the metadata of the next head.
    fn new_head(&self, parent: &str, created: &str) -> (String, DiskMeta) {
        let number = names::head_number(&self.meta.head).unwrap_or(0);
        let mut candidates = (1..=1000).map(|more| names::head_file(number.wrapping_add(more)));
        let free = |name: &String| {
            !self.directory.has(name) && !self.directory.has(&format!("{name}{META}"))
        };
        // With 1000 of them something else is broken, which making the image tells.
        let name = candidates
            .find(free)
            .unwrap_or_else(|| names::head_file(number));
        let disk = DiskMeta {
            name: name.clone(),
            parent: parent.to_owned(),
            created: created.to_owned(),
            ..DiskMeta::default()
        };
        (name, disk)
    }

    /// Grows the volume, by an internal snapshot.
    pub(super) fn expand(&mut self, size: i64) -> Result<()> {
        if size % SECTOR.cast_signed() != 0 {
            return Err(Error::refused(format!(
                "failed to expand the replica to {size} bytes, which is no multiple of {SECTOR}"
            )));
        }
        if size < self.meta.size {
            return Err(Error::refused(format!(
                "cannot expand replica to a smaller size {size}"
            )));
        }
        if size == self.meta.size {
            return Ok(());
        }
        if !u64::try_from(size).is_ok_and(|size| size <= super::table::MOST_BYTES) {
            return Err(Error::refused(format!(
                "cannot expand the replica to {size} bytes, which is more than 1 PiB"
            )));
        }
        let snapshot = Snapshot {
            name: format!("expand-{size}"),
            user_created: false,
            created: now(),
            labels: Some([("replica-expansion".to_owned(), size.to_string())].into()),
        };
        self.snapshot(&snapshot, size)
    }

    /// Goes back to a snapshot: what was written since is gone.
    pub(super) fn revert(&mut self, file: &str, created: &str) -> Result<()> {
        match self.disks.get(file) {
            None => {
                let problem =
                    format!("cannot revert to disk file {file} since it's not in the disk chain");
                return Err(Error::refused(problem));
            }
            Some(disk) if disk.removed => {
                let problem = format!(
                    "cannot revert to disk file {file} since it's already marked as removed"
                );
                return Err(Error::refused(problem));
            }
            Some(_) if file == self.meta.head => {
                return Err(Error::refused(format!(
                    "cannot revert to {file}, which is the head"
                )));
            }
            Some(_) => {}
        }
        self.alone()?;
        let old = self.meta.head.clone();
        let (new, disk) = self.new_head(file, created);
        let size = u64::try_from(self.meta.size).unwrap_or(0);
        let mut meta = self.meta.clone();
        meta.head.clone_from(&new);
        file.clone_into(&mut meta.parent);
        let mut disks = self.disks.clone();
        disks.remove(&old);
        disks.insert(new.clone(), disk.clone());
        let dirty = metadata::VolumeMeta {
            dirty: true,
            ..meta.clone()
        };
        let directory = &self.directory;
        let result = Image::create(directory, &new, size)
            .and_then(|_| directory.replace(&[(&format!("{new}{META}"), metadata::format(&disk))]))
            .and_then(|()| open_chain(directory, &new, &disks, size))
            .and_then(|layers| {
                directory
                    .replace(&[(VOLUME_META, metadata::format(&dirty))])
                    .map(|()| layers)
            });
        match result {
            Ok(layers) => self.layers = layers,
            Err(error) => {
                self.undo(&[&new]);
                return Err(error);
            }
        }
        if let Err(error) = remove_disk(&self.directory, &old) {
            tracing::warn!(error = error.text(), "the old head is left");
        }
        self.meta = meta;
        self.disks = disks;
        self.table = Arc::new(Table::new(size));
        Ok(())
    }
}
