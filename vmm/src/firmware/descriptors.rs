//! QEMU's firmware descriptors: JSON files that say which images a host has, for which machines, and what they need
//! (QEMU's `docs/interop/firmware.json`).
//!
//! The rules are those that libvirt follows, so that a host's administrator finds one thing in one place: of files of the same name the one
//! in the directory of the higher precedence counts, an empty one hides what it stands for, and the lowest name wins among those
//! that will do. The directories are the host's: at most [`FILES_MAX`] files of [`FILE_SIZE_MAX`] bytes are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::image::{FirmwareKind, read_file, smm_error};
use super::{FirmwareError, FirmwareErrorKind};

/// Descriptors that are looked at in each directory.
pub const FILES_MAX: usize = 256;
/// The largest descriptor, in bytes.
pub const FILE_SIZE_MAX: u64 = 1 << 20;

const ARCHITECTURE: &str = "x86_64";
/// What the platform is shaped after.
const MACHINES: [&str; 2] = ["q35", "pc-q35"];
const SMM: &str = "requires-smm";
/// Where Debian has `SeaBIOS`, which has no descriptor there.
const BIOS: [&str; 2] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
];

/// The part of a descriptor that matters here. Others may be there: newer QEMUs add some.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    tag = "device"
)]
enum Mapping {
    Flash {
        /// "split" where it is not there.
        mode: Option<String>,
        executable: Image,
        nvram_template: Option<Image>,
    },
    Memory {
        filename: PathBuf,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Image {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// An image that this host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The descriptor.
    pub descriptor: PathBuf,
    /// What kind of firmware it says it is.
    pub kind: FirmwareKind,
    /// The image.
    pub executable: PathBuf,
    /// The template for its variables.
    pub template: Option<PathBuf>,
    /// Its features, such as "secure-boot".
    pub features: BTreeSet<String>,
}

/// What the descriptors of a host say.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// Those that will do, the best first.
    offers: Vec<Offer>,
    /// The others, and why not.
    passed_over: Vec<(PathBuf, String)>,
    /// Images that need system management mode.
    smm: Vec<PathBuf>,
}

/// Where descriptors are looked for, the highest precedence first: the user's, the administrator's, the distribution's.
#[must_use]
pub fn directories() -> Vec<PathBuf> {
    // One that is empty or relative counts as not set (XDG Base Directory Specification).
    let variable = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let user = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let system = ["/etc", "/usr/share"].map(PathBuf::from);
    user.into_iter()
        .chain(system)
        .map(|directory| directory.join("qemu/firmware"))
        .collect()
}

impl Descriptors {
    /// Reads what is in `directories`, of which the first has the highest precedence. What is missing or cannot be read is passed over.
    #[must_use]
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
        for directory in directories {
            for name in names(directory) {
                let path = directory.join(&name);
                files.entry(name).or_insert(path);
            }
        }
        let mut this = Self::default();
        for path in files.into_values() {
            match this.examine(&path) {
                Ok(Some(offer)) => this.offers.push(offer),
                Ok(None) => {}
                Err(reason) => this.passed_over.push((path, reason)),
            }
        }
        this
    }

    /// What a descriptor offers; `None`: it only hides another. The error says why it will not do.
    fn examine(&mut self, path: &Path) -> Result<Option<Offer>, String> {
        let text = read_file(path, FILE_SIZE_MAX).map_err(|error| error.message().to_owned())?;
        if text.is_empty() {
            return Ok(None);
        }
        let document: Document = serde_json::from_slice(&text)
            .map_err(|error| format!("is no firmware descriptor: {error}"))?;
        let smm = document.features.iter().any(|feature| feature == SMM);
        if let (true, Mapping::Flash { executable, .. }) = (smm, &document.mapping) {
            self.smm.push(executable.filename.clone());
        }
        let fits = |target: &Target| {
            let machine = |pattern: &String| pattern == "*" || is_machine(pattern);
            target.architecture == ARCHITECTURE && target.machines.iter().any(machine)
        };
        if !document.targets.iter().any(fits) {
            return Err("is for other machines".to_owned());
        }
        if smm {
            return Err("needs system management mode".to_owned());
        }
        let kind = kind(&document.interface_types)?;
        let (executable, template) = images(kind, document.mapping)?;
        for file in std::iter::once(&executable).chain(&template) {
            if !file.is_file() {
                return Err(format!("{} is not there", file.display()));
            }
        }
        Ok(Some(Offer {
            descriptor: path.to_path_buf(),
            kind,
            executable,
            template,
            features: document.features.into_iter().collect(),
        }))
    }

    /// Everything that will do, the best first.
    #[must_use]
    pub fn offers(&self) -> &[Offer] {
        &self.offers
    }

    /// The descriptors of what will not do, and why not.
    #[must_use]
    pub fn passed_over(&self) -> &[(PathBuf, String)] {
        &self.passed_over
    }

    /// The UEFI firmware to take where none is named.
    ///
    /// # Errors
    /// When there is none; it says what there is and why that will not do.
    pub fn uefi(&self) -> Result<&Offer, FirmwareError> {
        let is_uefi = |offer: &&Offer| offer.kind == FirmwareKind::Uefi;
        self.offers.iter().find(is_uefi).ok_or_else(|| {
            let mut message =
                "this host has no UEFI firmware that would do; install the package ovmf, or name an image".to_owned();
            for (path, reason) in &self.passed_over {
                message.push_str(&format!("; {} {reason}", path.display()));
            }
            FirmwareError::new(FirmwareErrorKind::NoneFound, message)
        })
    }

    /// The BIOS to take where none is named.
    ///
    /// # Errors
    /// When there is none.
    pub fn bios(&self) -> Result<PathBuf, FirmwareError> {
        let described = self
            .offers
            .iter()
            .find(|offer| offer.kind == FirmwareKind::Bios)
            .map(|offer| offer.executable.clone());
        described
            .or_else(|| {
                BIOS.map(PathBuf::from)
                    .into_iter()
                    .find(|path| path.is_file())
            })
            .ok_or_else(|| {
                FirmwareError::new(
                    FirmwareErrorKind::NoneFound,
                    "this host has no BIOS for VMs; install the package seabios, or name an image",
                )
            })
    }

    /// The template for variables that a descriptor names for this image.
    #[must_use]
    pub fn template_of(&self, image: &Path) -> Option<&Path> {
        let same = |offer: &&Offer| is_same_file(&offer.executable, image);
        self.offers.iter().find(same)?.template.as_deref()
    }

    /// Refuses an image of which a descriptor says that it needs system management mode. (An image is looked at itself by
    /// [`super::image::FirmwareImage::load`].)
    ///
    /// # Errors
    /// When it does.
    pub fn check(&self, image: &Path) -> Result<(), FirmwareError> {
        if self.smm.iter().any(|smm| is_same_file(smm, image)) {
            return Err(smm_error(image));
        }
        Ok(())
    }
}

/// The names in a directory that are descriptors': JSON, and not hidden.
fn names(directory: &Path) -> Vec<OsString> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let is_descriptor = |name: &OsString| {
        let name = name.to_string_lossy();
        name.ends_with(".json") && !name.starts_with('.')
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names.filter(is_descriptor).collect();
    names.sort();
    names.truncate(FILES_MAX);
    names
}

/// Whether a pattern such as "pc-q35-*" is about a machine like this one, of whatever version.
fn is_machine(pattern: &str) -> bool {
    MACHINES.into_iter().any(|machine| {
        pattern
            .strip_prefix(machine)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '*']))
    })
}

fn kind(interfaces: &[String]) -> Result<FirmwareKind, String> {
    let has = |wanted: &str| interfaces.iter().any(|interface| interface == wanted);
    if has("uefi") {
        Ok(FirmwareKind::Uefi)
    } else if has("bios") {
        Ok(FirmwareKind::Bios)
    } else {
        Err(format!(
            "is neither UEFI nor a BIOS ({})",
            interfaces.join(", ")
        ))
    }
}

/// The image, and the template of its variables.
fn images(kind: FirmwareKind, mapping: Mapping) -> Result<(PathBuf, Option<PathBuf>), String> {
    let raw = |image: Image| match image.format.as_str() {
        "raw" => Ok(image.filename),
        other => Err(format!(
            "{} is in the format {other}",
            image.filename.display()
        )),
    };
    match mapping {
        Mapping::Flash {
            mode,
            executable,
            nvram_template,
        } => match mode.as_deref() {
            None | Some("split") => Ok((raw(executable)?, nvram_template.map(raw).transpose()?)),
            Some("combined" | "stateless") => Ok((raw(executable)?, None)),
            Some(other) => Err(format!("has a flash of an unknown mode ({other})")),
        },
        Mapping::Memory { filename } if kind == FirmwareKind::Bios => Ok((filename, None)),
        Mapping::Memory { .. } => Err("is for memory rather than flash".to_owned()),
        Mapping::Other => Err("is in a device that this platform has not".to_owned()),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other
        || matches!(
            (fs::canonicalize(one), fs::canonicalize(other)),
            (Ok(one), Ok(other)) if one == other
        )
}

#[cfg(test)]
mod tests;
