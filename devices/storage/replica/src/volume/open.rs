//! Opening a directory: what is there is read, checked, and cleaned of what a crash left. Nothing is removed that could be anybody's data.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::chain::{Chain, Flags};
use super::replica::Options;
use super::table::{MOST_BYTES, Table};
use crate::error::{Error, Result};
use crate::files::counter::Counter;
use crate::files::directory::Directory;
use crate::files::image::{self, Image};
use crate::files::metadata::{self, DiskMeta, VolumeMeta};
use crate::files::names::{self, CHECKSUM, META, TEMPORARY, VOLUME_META};

/// The most layers of a chain, and so the most snapshots: one byte says in which layer a sector is.
pub const MOST_LAYERS: usize = 250;

/// Bytes of a sector as users see it. A volume is a multiple of it.
pub const SECTOR_SIZE: i64 = 512;

/// An open volume, as those see it who change it.
#[derive(Debug)]
pub struct Volume {
    pub(super) directory: Directory,
    pub(super) meta: VolumeMeta,
    /// All files that are layers, by name, those outside the chain included.
    pub(super) disks: BTreeMap<String, DiskMeta>,
    /// The chain from the bottom up, without the backing file.
    pub(super) layers: Vec<Arc<Image>>,
    pub(super) backing: Option<Arc<Image>>,
    pub(super) table: Arc<Table>,
    pub(super) counter: Option<Arc<Counter>>,
    pub(super) flags: Arc<Flags>,
    /// Why there is nothing but the head in the chain, in a replica that is marked as being rebuilt. In a rebuild the head's metadata come first, and name files
    /// that are still to come, so that a process that dies then leaves a chain with a hole.
    pub(super) hole: Option<String>,
}

/// Reads `volume.meta`; `None` where there is none, or an empty one.
///
/// # Errors
/// When it makes no sense.
pub fn read_meta(directory: &Directory) -> Result<Option<VolumeMeta>> {
    let Some(bytes) = directory.read(VOLUME_META)? else {
        return Ok(None);
    };
    let path = directory.path_of(VOLUME_META);
    metadata::parse(&bytes)
        .map_err(|error| Error::broken(&path, format!("is not what it should be: {error}")))
}

fn check_size(size: i64, path: &Path) -> Result<u64> {
    match u64::try_from(size) {
        Ok(bytes) if bytes > 0 && bytes <= MOST_BYTES && size % SECTOR_SIZE == 0 => Ok(bytes),
        _ => Err(Error::broken(
            path,
            format!(
                "a volume of {size} bytes is not possible; sizes are multiples of {SECTOR_SIZE}, up to 1 PiB"
            ),
        )),
    }
}

impl Volume {
    /// Opens a directory, and makes a volume of `size` bytes where there is none.
    ///
    /// # Errors
    /// Names what is wrong, and where.
    pub fn open(options: &Options, size: i64) -> Result<Self> {
        let directory = Directory::open(&options.directory)?;
        // Before anything is read or removed: another process may be in the middle of a change.
        let alone = directory.lock(true);
        if !alone && !directory.lock(false) {
            let problem = "another process is changing this replica; stop it first";
            return Err(Error::broken(directory.path(), problem));
        }
        image::probe(&directory)?;
        let backing = match &options.backing_file {
            Some(path) => Some(Arc::new(Image::open_backing(path)?)),
            None => None,
        };
        if alone {
            remove_temporaries(&directory)?;
        }
        let mut disks = read_disks(&directory)?;
        let mut meta = match read_meta(&directory)? {
            Some(meta) if !meta.head.is_empty() || !disks.is_empty() => meta,
            None if !disks.is_empty() => recover(&directory, &disks)?,
            found => {
                let size = found.map_or(size, |meta| meta.size);
                let (meta, disk) = create(&directory, size)?;
                disks.insert(meta.head.clone(), disk);
                meta
            }
        };
        let path = directory.path_of(VOLUME_META);
        let bytes = check_size(meta.size, &path)?;
        if names::head_number(&meta.head).is_none() || !disks.contains_key(&meta.head) {
            let problem = format!(
                "names {:?} as its head, which is none or has no metadata",
                meta.head
            );
            return Err(Error::broken(&path, problem));
        }
        match &backing {
            Some(image) => image.name().clone_into(&mut meta.backing_file_path),
            None if !meta.backing_file_path.is_empty() => {
                let problem = format!(
                    "the volume was made on the backing file {}; name it by --backing-file",
                    meta.backing_file_path
                );
                return Err(Error::broken(&path, problem));
            }
            None => {}
        }
        clean(&directory, &meta.head, &mut disks, alone)?;
        let mut hole = None;
        let layers = match open_chain(&directory, &meta.head, &disks, bytes) {
            Err(error @ Error::Broken { .. }) if meta.rebuilding && alone => {
                let layers = open_head(&directory, &meta.head, &disks, bytes)?;
                let error = error.text();
                tracing::warn!(
                    error,
                    "a rebuild came to no end; only another makes it whole"
                );
                hole = Some(error);
                layers
            }
            layers => layers?,
        };
        meta.parent.clone_from(&disks[&meta.head].parent);
        let counter = match options.count_revisions {
            true => Some(Arc::new(Counter::open(&directory)?)),
            false => None,
        };
        let flags = Arc::new(Flags::default());
        if !meta.error.is_empty() {
            flags.fail(meta.error.clone());
        }
        let volume = Self {
            table: Arc::new(Table::new(bytes)),
            directory,
            meta,
            disks,
            layers,
            backing,
            counter,
            flags,
            hole,
        };
        // Others may open it as well, to take it over.
        volume.share()?;
        volume.write_meta(true)?;
        Ok(volume)
    }

    /// Lets others open the directory as well. Between a lock alone and one with others there is a moment without any, in which another process may have got
    /// it alone: it may be in the middle of a change.
    pub(super) fn share(&self) -> Result<()> {
        if self.directory.lock(false) {
            return Ok(());
        }
        let problem = "another process has just begun to change this replica; stop it first";
        Err(Error::broken(self.directory.path(), problem))
    }

    /// Has all layers on stable storage.
    pub(super) fn sync(&self) -> Result<()> {
        for image in &self.layers {
            let fail = |error| Error::io("sync", &self.directory.path_of(image.name()), error);
            image.sync().map_err(fail)?;
        }
        Ok(())
    }

    /// Writes `volume.meta`.
    pub(super) fn write_meta(&self, dirty: bool) -> Result<()> {
        let meta = VolumeMeta {
            dirty,
            ..self.meta.clone()
        };
        self.directory
            .replace(&[(VOLUME_META, metadata::format(&meta))])
    }

    /// The chain for the data path.
    pub(super) fn chain(&self, options: &Options) -> Arc<Chain> {
        let children = self.children();
        let mut unmappable = 0;
        let mut contiguous = true;
        let mut unmarked = false;
        for image in self.layers.iter().rev().skip(1) {
            let branches = children.get(image.name()).map_or(0, BTreeSet::len);
            let Some(disk) = self.disks.get(image.name()).filter(|_| branches <= 1) else {
                break;
            };
            contiguous &= disk.removed;
            unmarked |= !disk.removed;
            unmappable += usize::from(contiguous);
        }
        Arc::new(Chain {
            layers: self.backing.iter().chain(&self.layers).cloned().collect(),
            table: Arc::clone(&self.table),
            // Checked when it was opened.
            size: u64::try_from(self.meta.size).unwrap_or(0),
            counter: self.counter.clone(),
            flags: Arc::clone(&self.flags),
            unmappable,
            mark_before_unmap: options.unmap_marks && unmarked,
        })
    }

    /// For each file, those directly above it.
    pub(super) fn children(&self) -> HashMap<&str, BTreeSet<&str>> {
        let mut children: HashMap<_, BTreeSet<_>> = HashMap::new();
        for (name, disk) in self
            .disks
            .iter()
            .filter(|(_, disk)| !disk.parent.is_empty())
        {
            children
                .entry(disk.parent.as_str())
                .or_default()
                .insert(name.as_str());
        }
        children
    }
}

/// What was never put in its place.
fn remove_temporaries(directory: &Directory) -> Result<()> {
    for name in directory.names()? {
        let Some(base) = name.strip_suffix(TEMPORARY) else {
            continue;
        };
        let bare = base.strip_suffix(META).unwrap_or(base);
        if names::is_image(bare) || [VOLUME_META, names::REVISION_COUNTER].contains(&base) {
            tracing::info!(file = %name, "removing what a crash left");
            directory.remove(&name)?;
        }
    }
    Ok(())
}

fn read_disks(directory: &Directory) -> Result<BTreeMap<String, DiskMeta>> {
    let mut disks = BTreeMap::new();
    for file in directory.names()? {
        let Some(name) = file.strip_suffix(META).filter(|name| names::is_image(name)) else {
            continue;
        };
        let broken = |problem: String| Error::broken(&directory.path_of(&file), problem);
        let bytes = directory.read(&file)?.unwrap_or_default();
        let parsed = metadata::parse::<DiskMeta>(&bytes)
            .map_err(|error| broken(format!("is not what it should be: {error}")))?;
        let mut disk = parsed.ok_or_else(|| broken("is empty".to_owned()))?;
        if !disk.parent.is_empty() && !names::is_image(&disk.parent) {
            return Err(broken(format!(
                "names {:?} as the file below it, which cannot be one",
                disk.parent
            )));
        }
        // Longhorn leaves the name in it that the file had as a head.
        name.clone_into(&mut disk.name);
        disks.insert(name.to_owned(), disk);
    }
    Ok(disks)
}

/// Makes `volume.meta` of what else is there.
fn recover(directory: &Directory, disks: &BTreeMap<String, DiskMeta>) -> Result<VolumeMeta> {
    let path = directory.path_of(VOLUME_META);
    let heads: Vec<_> = disks
        .keys()
        .filter(|name| names::head_number(name).is_some())
        .collect();
    let [head] = heads.as_slice() else {
        let problem = format!(
            "is missing, and cannot be made anew, for there are {} heads",
            heads.len()
        );
        return Err(Error::broken(&path, problem));
    };
    tracing::warn!(path = %path.display(), %head, "is missing, and is made anew");
    let size = Image::open(directory, head, true)?.size();
    Ok(VolumeMeta {
        size: i64::try_from(size).unwrap_or(i64::MAX),
        head: (*head).clone(),
        sector_size: SECTOR_SIZE,
        ..VolumeMeta::default()
    })
}

/// Makes the first head.
fn create(directory: &Directory, size: i64) -> Result<(VolumeMeta, DiskMeta)> {
    let bytes = check_size(size, directory.path())?;
    let head = names::head_file(0);
    if directory.has(&head) {
        let old = Image::open(directory, &head, true)?;
        let data = old
            .data(0, old.size())
            .map_err(|error| Error::io("look at", &directory.path_of(&head), error))?;
        if !data.is_empty() {
            let problem =
                "holds data and has no metadata; move it away, or write its metadata by hand";
            return Err(Error::broken(&directory.path_of(&head), problem));
        }
        directory.remove(&head)?;
    }
    Image::create(directory, &head, bytes)?;
    let disk = DiskMeta {
        name: head.clone(),
        created: super::replica::now(),
        ..DiskMeta::default()
    };
    let meta = VolumeMeta {
        size,
        head: head.clone(),
        dirty: true,
        sector_size: SECTOR_SIZE,
        ..VolumeMeta::default()
    };
    directory.replace(&[
        (&format!("{head}{META}"), metadata::format(&disk)),
        (VOLUME_META, metadata::format(&meta)),
    ])?;
    // It is not open yet.
    let meta = VolumeMeta {
        dirty: false,
        ..meta
    };
    Ok((meta, disk))
}

/// Removes what an interrupted change left: a snapshot that is still the head, a head that became a snapshot, a head that was never used. Their files
/// stay while another process has the directory open, too.
fn clean(
    directory: &Directory,
    head: &str,
    disks: &mut BTreeMap<String, DiskMeta>,
    alone: bool,
) -> Result<()> {
    let mut present = HashMap::new();
    for name in directory
        .names()?
        .into_iter()
        .filter(|name| names::is_image(name))
    {
        let stat = directory.stat(&name)?;
        present.insert(name, (stat.st_dev, stat.st_ino));
    }
    let the_head = present.get(head).copied();
    let is_snapshot = |inode| {
        present
            .iter()
            .any(|(name, other)| names::snapshot_name(name).is_some() && *other == inode)
    };
    for (name, &inode) in &present {
        if name == head {
            continue;
        }
        let left_over = match names::head_number(name) {
            None => Some(inode) == the_head,
            Some(_) if is_snapshot(inode) => true,
            Some(_) => {
                let image = Image::open(directory, name, true)?;
                let data = image.data(0, image.size());
                data.map_err(|error| Error::io("look at", &directory.path_of(name), error))?
                    .is_empty()
            }
        };
        if left_over {
            disks.remove(name);
            if alone {
                tracing::info!(file = %name, "removing what a crash left");
                remove_disk(directory, name)?;
            }
        } else if names::head_number(name).is_some() {
            tracing::warn!(file = %name, "is no longer the head, and holds data; it is left alone");
            disks.remove(name);
        }
    }
    disks.retain(|name, _| {
        let there = present.contains_key(name) || name == head;
        if !there {
            tracing::warn!(file = %name, "has metadata only; it is left alone");
        }
        there
    });
    Ok(())
}

/// Removes an image and what belongs to it, the metadata first: an image without is nothing.
pub(super) fn remove_disk(directory: &Directory, name: &str) -> Result<()> {
    for suffix in [META, CHECKSUM, ""] {
        directory.remove(&format!("{name}{suffix}"))?;
    }
    directory.sync()
}

/// Opens the head alone, on nothing.
fn open_head(
    directory: &Directory,
    head: &str,
    disks: &BTreeMap<String, DiskMeta>,
    size: u64,
) -> Result<Vec<Arc<Image>>> {
    let alone = disks.get(head).map(|disk| DiskMeta {
        parent: String::new(),
        ..disk.clone()
    });
    let alone = alone.map(|disk| (head.to_owned(), disk));
    open_chain(directory, head, &alone.into_iter().collect(), size)
}

/// Opens the layers from the head down.
pub(super) fn open_chain(
    directory: &Directory,
    head: &str,
    disks: &BTreeMap<String, DiskMeta>,
    size: u64,
) -> Result<Vec<Arc<Image>>> {
    let mut layers: Vec<Arc<Image>> = Vec::new();
    let mut next = head;
    while !next.is_empty() {
        let path = directory.path_of(next);
        let Some(disk) = disks.get(next) else {
            return Err(Error::broken(
                &path,
                "is a layer of the volume, and has no metadata or no image",
            ));
        };
        if layers.iter().any(|layer| layer.name() == next) {
            return Err(Error::broken(&path, "is below itself"));
        }
        if layers.len() >= MOST_LAYERS {
            let problem =
                format!("the live chain is too long: there are more than {MOST_LAYERS} layers");
            return Err(Error::broken(directory.path(), problem));
        }
        let mut image = Image::open(directory, next, false)?;
        if next == head {
            image
                .grow(size)
                .map_err(|error| Error::io("grow", &path, error))?;
        }
        layers.push(Arc::new(image));
        next = &disk.parent;
    }
    layers.reverse();
    Ok(layers)
}
