//! Changes below the head: snapshots that are marked, removed, replaced.

use std::sync::Arc;

use super::open::{Volume, open_chain, remove_disk};
use super::table::Table;
use crate::error::{Error, Result};
use crate::files::metadata::{self, DiskMeta};
use crate::files::names::{self, META};

/// A step of removing a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The data of `target` goes into `source`, which is below it.
    Coalesce {
        /// The snapshot that goes.
        source: String,
        /// The one above it.
        target: String,
    },
    /// `source` takes the place of `target`.
    Replace {
        /// The snapshot that goes.
        source: String,
        /// The one above it.
        target: String,
    },
    /// It is removed.
    Remove {
        /// The snapshot.
        source: String,
    },
    /// What the head above it has is given back in `source`, which stays.
    Prune {
        /// The snapshot.
        source: String,
        /// The head.
        target: String,
    },
}

impl Volume {
    /// The file of a snapshot, by its name or its file's name.
    fn find(&self, name: &str) -> Option<String> {
        [name.to_owned(), names::snapshot_file(name)]
            .into_iter()
            .find(|name| self.disks.contains_key(name))
    }

    /// What is known of a file is what its metadata says: that is written first.
    fn write_disk(&mut self, name: &str, disk: DiskMeta) -> Result<()> {
        let bytes = metadata::format(&disk);
        self.directory
            .replace(&[(&format!("{name}{META}"), bytes)])?;
        self.disks.insert(name.to_owned(), disk);
        Ok(())
    }

    /// Marks a snapshot as one that is to go.
    pub(super) fn mark_as_removed(&mut self, name: &str) -> Result<()> {
        let Some(file) = self.find(name) else {
            tracing::info!(%name, "there is no such snapshot; it may have been removed already");
            return Ok(());
        };
        if file == self.meta.head {
            return Err(Error::refused(
                "cannot mark the active differencing disk as removed",
            ));
        }
        let Some(disk) = self.disks.get(&file).filter(|disk| !disk.removed) else {
            return Ok(());
        };
        let mut disk = disk.clone();
        disk.removed = true;
        self.write_disk(&file, disk)
    }

    /// Marks the snapshots below the head as removed, down to one that others are based on.
    pub(super) fn mark_chain_as_removed(&mut self) -> Result<()> {
        let children = self.children();
        let snapshots = self.layers.iter().rev().skip(1).map(|image| image.name());
        let single =
            snapshots.take_while(|name| children.get(name).map_or(0, |above| above.len()) <= 1);
        let files: Vec<_> = single.map(str::to_owned).collect();
        files.iter().try_for_each(|file| self.mark_as_removed(file))
    }

    /// What to do to remove a snapshot.
    pub(super) fn prepare_remove(&self, name: &str) -> Result<Vec<Step>> {
        let Some(source) = self.find(name) else {
            tracing::info!(%name, "there is no such snapshot; it may have been removed already");
            return Ok(Vec::new());
        };
        if source == self.meta.head {
            return Err(Error::refused("cannot delete the active differencing disk"));
        }
        if !self.disks[&source].removed {
            return Err(Error::refused(format!(
                "disk {source} hasn't been marked as removed"
            )));
        }
        let children = self.children();
        let mut above = children.get(&*source).into_iter().flatten();
        Ok(match (above.next(), above.next()) {
            (None, _) => vec![Step::Remove { source }],
            (Some(&child), None) if child == self.meta.head => vec![Step::Prune {
                source,
                target: child.to_owned(),
            }],
            (Some(&child), None) => {
                let target = child.to_owned();
                vec![
                    Step::Coalesce {
                        source: source.clone(),
                        target: target.clone(),
                    },
                    Step::Replace { source, target },
                ]
            }
            // Others are based on it.
            (Some(_), Some(_)) => Vec::new(),
        })
    }

    /// Removes a file from the disks, and from the chain if it is there; those above it are then based on the one below it.
    pub(super) fn remove(&mut self, name: &str, force: bool) -> Result<()> {
        if name == self.meta.head {
            return Err(Error::refused("cannot delete the active differencing disk"));
        }
        let Some(disk) = self.disks.get(name) else {
            return Err(Error::refused(format!("cannot find disk {name}")));
        };
        let parent = disk.parent.clone();
        let children = self.children();
        let above: Vec<_> = children
            .get(name)
            .into_iter()
            .flatten()
            .map(|&child| child.to_owned())
            .collect();
        if above.len() > 1 && !force {
            let problem = format!(
                "cannot remove snapshot {name} with {} children",
                above.len()
            );
            return Err(Error::refused(problem));
        }
        self.alone()?;
        for child in &above {
            let mut disk = self.disks[child].clone();
            disk.parent.clone_from(&parent);
            self.write_disk(child, disk)?;
        }
        // Those above it no longer need it, but the chain that is open has it until the new one is.
        self.rechain()?;
        self.disks.remove(name);
        remove_disk(&self.directory, name)
    }

    /// Puts a file in the place of another, and removes it where it was.
    pub(super) fn replace(&mut self, target: &str, source: &str) -> Result<()> {
        if target == self.meta.head {
            return Err(Error::refused(
                "cannot replace the active differencing disk",
            ));
        }
        if source == self.meta.head || !self.disks.contains_key(source) || target == source {
            return Err(Error::refused(format!(
                "cannot find source of replacing: {source}"
            )));
        }
        let children = self.children();
        let above = children.get(source).map_or(0, |above| above.len());
        if above > 1 {
            return Err(Error::refused(format!(
                "cannot remove snapshot {source} with {above} children"
            )));
        }
        if !names::is_image(target) {
            return Err(Error::refused(format!(
                "{target:?} is not the name of a disk"
            )));
        }
        self.alone()?;
        self.directory
            .remove(&format!("{target}{}", names::CHECKSUM))?;
        self.directory.link(source, target)?;
        self.directory.sync()?;
        self.remove(source, false)
    }

    /// Opens the chain anew; nothing is known of its sectors then.
    fn rechain(&mut self) -> Result<()> {
        let size = u64::try_from(self.meta.size).unwrap_or(0);
        self.layers = open_chain(&self.directory, &self.meta.head, &self.disks, size)?;
        self.meta
            .parent
            .clone_from(&self.disks[&self.meta.head].parent);
        self.table = Arc::new(Table::new(size));
        self.write_meta(true)
    }
}
