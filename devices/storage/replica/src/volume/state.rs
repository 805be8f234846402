//! What is told of a replica: its state, its files and what they take.

use std::collections::BTreeMap;

use super::open::{Volume, read_meta};
use super::replica::Options;
use crate::error::Error;
use crate::files::directory::Directory;
use crate::files::metadata::{DiskMeta, VolumeMeta};

/// What a replica is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There are no files.
    Initial,
    /// There are.
    Closed,
    /// It is served, and was not written.
    Open,
    /// It is served.
    Dirty,
    /// It is served, and not complete.
    Rebuilding,
    /// Something is wrong with it.
    Error,
}

impl State {
    /// As it is told.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Dirty => "dirty",
            Self::Rebuilding => "rebuilding",
            Self::Error => "error",
        }
    }
}

/// A layer's file, as it is told.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its metadata.
    pub meta: DiskMeta,
    /// Those directly above it.
    pub children: Vec<String>,
    /// Bytes that it takes on the host; -1 where that is not known.
    pub space: i64,
}

/// What is told of a replica.
#[derive(Debug, Clone)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Its metadata; nothing in state `initial` and `error`.
    pub meta: VolumeMeta,
    /// More, where it is open.
    pub open: Option<OpenStatus>,
}

/// What is told of an open replica.
#[derive(Debug, Clone)]
pub struct OpenStatus {
    /// The files from the head down, without those to go.
    pub chain: Vec<String>,
    /// All of them.
    pub disks: BTreeMap<String, Disk>,
    /// Snapshots that are not to go, those outside the chain included.
    pub snapshots: i32,
    /// How many more there may be.
    pub remaining: i32,
    /// Bytes that the chain's snapshots take which are not to go.
    pub snapshot_bytes: i64,
    /// The counter of writes, if they are counted.
    pub revision: Option<i64>,
    /// When the head was written last, in nanoseconds since 1970.
    pub modified: i64,
    /// Bytes that the head takes.
    pub head_bytes: i64,
    /// The setting.
    pub unmap_marks: bool,
}

/// The state of a replica that is not open.
pub(super) fn closed(options: &Options) -> (State, VolumeMeta) {
    let meta = match Directory::open_existing(&options.directory) {
        Ok(directory) => read_meta(&directory),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    match meta {
        Ok(Some(meta)) => (State::Closed, meta),
        Ok(None) => (State::Initial, VolumeMeta::default()),
        Err(error) => {
            tracing::error!(
                error = error.text(),
                "the replica's metadata cannot be read"
            );
            (State::Error, VolumeMeta::default())
        }
    }
}

impl Volume {
    /// Snapshots that are not to go.
    pub(super) fn snapshots(&self) -> i32 {
        let count = self
            .disks
            .iter()
            .filter(|(name, disk)| **name != self.meta.head && !disk.removed)
            .count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// Bytes that a file takes. A layer whose file is gone is an error for good.
    fn space(&self, name: &str) -> i64 {
        match self.directory.stat(name) {
            Ok(stat) => stat.st_blocks * 512,
            Err(error) => {
                self.flags
                    .fail(format!("Failed to get file {name} size: {}", error.text()));
                -1
            }
        }
    }

    /// What is told of it.
    pub(super) fn status(&self, options: &Options) -> OpenStatus {
        let disks = self.told_disks();
        let live = |name: &str| !self.disks.get(name).is_some_and(|disk| disk.removed);
        let below_head = self.layers.iter().rev().skip(1).map(|image| image.name());
        let snapshot_bytes = below_head
            .filter(|name| live(name))
            .map(|name| disks[name].space)
            .sum();
        let snapshots = self.snapshots();
        OpenStatus {
            chain: self
                .layers
                .iter()
                .rev()
                .map(|image| image.name())
                .filter(|name| live(name))
                .map(str::to_owned)
                .collect(),
            head_bytes: disks[&self.meta.head].space,
            disks,
            snapshots,
            remaining: options.most_snapshots.saturating_sub(snapshots),
            snapshot_bytes,
            revision: self.counter.as_ref().map(|counter| counter.get()),
            modified: self.modified(),
            unmap_marks: options.unmap_marks,
        }
    }

    /// All files as they are told, the backing file among them.
    fn told_disks(&self) -> BTreeMap<String, Disk> {
        let children = self.children();
        let describe = |(name, meta): (&String, &DiskMeta)| {
            let above = children.get(name.as_str()).into_iter().flatten();
            let disk = Disk {
                meta: meta.clone(),
                children: above.map(|&child| child.to_owned()).collect(),
                space: self.space(name),
            };
            (name.clone(), disk)
        };
        let mut disks: BTreeMap<_, _> = self.disks.iter().map(describe).collect();
        if let Some(backing) = &self.backing {
            let meta = DiskMeta {
                name: backing.name().to_owned(),
                ..DiskMeta::default()
            };
            let space = backing
                .space()
                .ok()
                .and_then(|bytes| i64::try_from(bytes).ok())
                .unwrap_or(-1);
            let children = Vec::new();
            disks.insert(
                meta.name.clone(),
                Disk {
                    meta,
                    children,
                    space,
                },
            );
        }
        disks
    }

    /// When the head was written last, in nanoseconds since 1970; 0 where that is not known.
    fn modified(&self) -> i64 {
        self.directory.stat(&self.meta.head).map_or(0, |stat| {
            let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
            stat.st_mtime
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds)
        })
    }
}
