//! Opening an image and those that it is an overlay of: locks, headers, and what they say of each other.
//!
//! Runs on the control plane before the guest does. Paths are the operator's; what is found there may be anything.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::check::{self, CheckError};
use super::header::{Header, MAX_HEADER};
use super::image::{Image, Layer};
use super::problem::Qcow2Problem;
use super::{Backing, BackingFormat, Qcow2Options};
use crate::raw::open::{adopt_locked, direct, open_locked, read_fully, size_of};
use crate::{OpenError, OpenErrorKind, RawOptions};

/// The most images of a chain.
const MAX_CHAIN: usize = 32;

/// What O_DIRECT is tried with, in bytes; imago finds out what it can do with less.
const BLOCK: u32 = 4096;

pub(super) fn open(options: &Qcow2Options) -> Result<Image, OpenError> {
    let raw = raw_options(options);
    let file = open_locked(&raw)?;
    assemble(file, &raw, options)
}

pub(super) fn adopt(file: OwnedFd, options: &Qcow2Options) -> Result<Image, OpenError> {
    let raw = raw_options(options);
    let file = adopt_locked(file.into(), &raw)?;
    assemble(file, &raw, options)
}

fn raw_options(options: &Qcow2Options) -> RawOptions {
    RawOptions {
        read_only: options.read_only,
        direct: options.direct,
        ..RawOptions::new(&options.path)
    }
}

fn assemble(file: File, raw: &RawOptions, options: &Qcow2Options) -> Result<Image, OpenError> {
    let backing = options.backing.as_ref();
    let kept = file
        .try_clone()
        .map_err(|error| OpenError::because(&raw.path, OpenErrorKind::Io, error))?;
    let layer = qcow2(file, raw, backing, 1)?;
    tracing::debug!(path = %raw.path.display(), header = ?layer.header, "opened a qcow2 image");
    Ok(Image::new(raw, kept, layer))
}

/// Opens what an image is an overlay of.
fn open_backing(
    backing: &Backing,
    overlay: &RawOptions,
    depth: usize,
) -> Result<FormatAccess<Storage>, OpenError> {
    let raw = RawOptions {
        read_only: true,
        direct: overlay.direct,
        ..RawOptions::new(&backing.path)
    };
    let file = open_locked(&raw)?;
    match &backing.format {
        BackingFormat::Qcow2(next) => {
            qcow2(file, &raw, next.as_deref(), depth).map(|layer| layer.access)
        }
        BackingFormat::Raw => {
            direct(&file, &raw, BLOCK)?;
            let storage = Storage::try_from(file);
            let access = storage.and_then(|storage| Raw::open_image(storage, false));
            let access = access.map_err(|e| OpenError::because(&raw.path, OpenErrorKind::Io, e))?;
            Ok(FormatAccess::new(access))
        }
    }
}

/// Judges an image, and opens it with what it is an overlay of.
fn qcow2(
    file: File,
    raw: &RawOptions,
    backing: Option<&Backing>,
    depth: usize,
) -> Result<Layer, OpenError> {
    let wrong = |problem| OpenError::new(&raw.path, OpenErrorKind::Qcow2(problem));
    let io_error = |error| OpenError::because(&raw.path, OpenErrorKind::Io, error);
    if depth > MAX_CHAIN {
        return Err(wrong(Qcow2Problem::Chain));
    }
    let size = size_of(&file).map_err(io_error)?;
    let mut bytes = vec![0; usize::try_from(size).map_or(MAX_HEADER, |size| size.min(MAX_HEADER))];
    read_fully(&file, &mut bytes, 0).map_err(io_error)?;
    let header = Header::parse(&bytes, size).map_err(wrong)?;
    drop(bytes);
    compare_backing(&header, &raw.path, backing).map_err(wrong)?;
    if !raw.read_only {
        check::check(&file, &header).map_err(|error| match error {
            CheckError::Io(error) => io_error(error),
            CheckError::Problem(problem) => wrong(problem),
        })?;
    }
    let backing = backing.map(|backing| open_backing(backing, raw, depth + 1));
    let backing = backing.transpose()?;
    let backing_size = backing.as_ref().map(FormatAccess::size);
    let is_direct = direct(&file, raw, BLOCK)?.is_some();
    let storage = Storage::try_from(file).map_err(io_error)?;
    let access = Qcow2::<Storage>::builder(storage)
        .write(!raw.read_only)
        .backing(backing)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(io_error)?;
    Ok(Layer {
        access: FormatAccess::new(access),
        header,
        backing_size,
        is_direct,
    })
}

/// What the user says and what the image says must be the same, or one of them does not know what the other is doing.
fn compare_backing(
    header: &Header,
    image: &Path,
    given: Option<&Backing>,
) -> Result<(), Qcow2Problem> {
    let (named, given) = match (&header.backing, given) {
        (None, None) => return Ok(()),
        (None, Some(_)) => return Err(Qcow2Problem::NoBacking),
        (Some(named), None) => {
            return Err(Qcow2Problem::BackingNotNamed {
                path: beside(image, &named.name),
                format: named.format.clone(),
            });
        }
        (Some(named), Some(given)) => (named, given),
    };
    let path = beside(image, &named.name);
    if lexical(&path) != lexical(&given.path) {
        return Err(Qcow2Problem::BackingIsOther { path });
    }
    let format = match given.format {
        BackingFormat::Raw => "raw",
        BackingFormat::Qcow2(_) => "qcow2",
    };
    match &named.format {
        Some(named) if named != format => Err(Qcow2Problem::BackingFormat {
            format: named.clone(),
        }),
        _ => Ok(()),
    }
}

/// A path in an image's header, from the working directory on.
fn beside(image: &Path, name: &str) -> PathBuf {
    let name = name.strip_prefix("file:").unwrap_or(name);
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// A path without detours, as far as can be seen without looking at the disk: only to compare it with another.
fn lexical(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path);
    let mut plain = PathBuf::new();
    for component in absolute.as_deref().unwrap_or(path).components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    plain
}
