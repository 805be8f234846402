//! A firmware image: told by its contents, and given its places in the guest's address space.
//!
//! ```text
//!            4 GiB - 2^n               4 GiB - code          4 GiB
//! two files      │ variables (VARS.fd)     │ code (CODE.fd)     │     2^n = 2 or 4 MiB in Debian's packages
//! one file       │ variables, code (OVMF.fd)                    │     its variables are the template of the VM's own
//! BIOS                                     │ bios-256k.bin      │     its last 128 KiB also below 1 MiB
//! ```
//!
//! What an image needs of the platform (system management mode) its contents do not tell: it is compressed. Names do, and QEMU's
//! descriptors ([`super::descriptors`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use paddock_devices::firmware::flash::SECTOR;
use paddock_devices::firmware::volume::{self, Volume, VolumeKind};

use super::{FirmwareError, FirmwareErrorKind};
use crate::layout;
use crate::memory::Bytes;

/// The end of the flash.
const FLASH_END: u64 = layout::HIGH_RAM_START;
/// The largest flash.
const FLASH_MAX: u64 = FLASH_END - layout::FLASH_MIN;
/// The reset vector: the last bytes below 4 GiB.
const RESET_VECTOR: usize = 16;
/// What of a BIOS is below 1 MiB as well.
const BIOS_LOW: usize = 128 << 10;
/// A far jump, which is what a BIOS has at its reset vector. UEFI's code has a near one, or none at once.
const FAR_JUMP: u8 = 0xea;

/// Parts of the names of images that need system management mode: the variants of a plain one.
const SMM_VARIANTS: [&str; 4] = ["secboot", "ms", "snakeoil", "strictnx"];

/// What kind of firmware it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirmwareKind {
    /// UEFI.
    Uefi,
    /// A BIOS of the PC: `SeaBIOS`.
    Bios,
}

/// A checked image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareImage {
    path: PathBuf,
    kind: FirmwareKind,
    code: Vec<u8>,
    /// The variables that came in the same file.
    variables: Option<Vec<u8>>,
}

impl FirmwareImage {
    /// Reads and checks an image.
    ///
    /// # Errors
    /// When it cannot be read, is no firmware, not all of it, or firmware that cannot run here.
    pub fn load(path: &Path) -> Result<Self, FirmwareError> {
        let bytes = read_file(path, FLASH_MAX)?;
        refuse_smm(path)?;
        Self::recognize(path, bytes)
    }

    /// As [`FirmwareImage::load`], of an image that somebody else opened; `path` is what to call it.
    ///
    /// # Errors
    /// As [`FirmwareImage::load`].
    pub fn from_file(path: &Path, file: File) -> Result<Self, FirmwareError> {
        let bytes = read_open_file(path, file, FLASH_MAX)?;
        refuse_smm(path)?;
        Self::recognize(path, bytes)
    }

    fn recognize(path: &Path, mut bytes: Vec<u8>) -> Result<Self, FirmwareError> {
        let image = |kind, code, variables| Self {
            path: path.to_path_buf(),
            kind,
            code,
            variables,
        };
        match Volume::parse(&bytes) {
            Ok(Volume {
                kind: VolumeKind::Files,
                ..
            }) => {
                check_code(path, &bytes, 0)?;
                Ok(image(FirmwareKind::Uefi, bytes, None))
            }
            Ok(Volume {
                kind: VolumeKind::Variables,
                length,
            }) => {
                let end = variables_end(path, &bytes, length)?;
                check_code(path, &bytes, end)?;
                let code = bytes.split_off(end);
                Ok(image(FirmwareKind::Uefi, code, Some(bytes)))
            }
            _ if is_bios(&bytes) => {
                refuse_other_bios(path)?;
                Ok(image(FirmwareKind::Bios, bytes, None))
            }
            _ => Err(not_firmware(path, &bytes)),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of firmware it is.
    #[must_use]
    pub fn kind(&self) -> FirmwareKind {
        self.kind
    }

    /// The code, which the guest cannot change.
    #[must_use]
    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// Where the code lies: up to 4 GiB.
    #[must_use]
    pub fn code_place(&self) -> Range<u64> {
        FLASH_END - self.code.len() as u64..FLASH_END
    }

    /// The size of its variable store in bytes: what its code leaves of a flash of a power of two. `None`: it has none.
    #[must_use]
    pub fn variables_size(&self) -> Option<usize> {
        if let Some(variables) = &self.variables {
            return Some(variables.len());
        }
        let size = self.code.len().next_power_of_two() - self.code.len();
        (self.kind == FirmwareKind::Uefi && size > 0).then_some(size)
    }

    /// Where the variables lie: up to the code.
    #[must_use]
    pub fn variables_place(&self) -> Option<Range<u64>> {
        let end = self.code_place().start;
        Some(end - self.variables_size()? as u64..end)
    }

    /// The variable store that came with the code in one file: the template of a VM's own.
    #[must_use]
    pub fn own_template(&self) -> Option<&[u8]> {
        self.variables.as_deref()
    }

    /// What a BIOS wants to find in RAM, too, and where; RAM there stays writable.
    #[must_use]
    pub fn low_copy(&self) -> Option<(u64, &[u8])> {
        if self.kind != FirmwareKind::Bios {
            return None;
        }
        let start = self.code.len().saturating_sub(BIOS_LOW);
        let part = self.code.get(start..)?;
        Some((layout::HIGH_MEMORY - part.len() as u64, part))
    }

    /// The template for a new variable store: the descriptor's or the user's, if there is one, and otherwise the one that lies beside the
    /// code, or came with it.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or belongs to other firmware.
    pub fn template(&self, named: Option<&Path>) -> Result<Vec<u8>, FirmwareError> {
        let Some(size) = self.variables_size() else {
            let message = "has no variables, so it takes no variable store; leave that out";
            return Err(self.error(FirmwareErrorKind::WrongVariables, message));
        };
        match (named, &self.variables) {
            (Some(path), _) => read_template(path, size),
            (None, Some(variables)) => Ok(variables.clone()),
            (None, None) => {
                let path = self.template_beside().ok_or_else(|| {
                    let message = format!(
                        "no template for its variables ({}) lies beside it; name one, such as OVMF_VARS_4M.fd",
                        Bytes(size as u64)
                    );
                    self.error(FirmwareErrorKind::WrongVariables, message)
                })?;
                read_template(&path, size)
            }
        }
    }

    /// The file that has VARS where this one has CODE in its name.
    fn template_beside(&self) -> Option<PathBuf> {
        let real = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        [&self.path, &real].into_iter().find_map(|path| {
            let name = path.file_name()?.to_str()?;
            let pairs = [("CODE", "VARS"), ("code", "vars")];
            let (code, variables) = pairs.into_iter().find(|(code, _)| name.contains(code))?;
            let beside = path.with_file_name(name.replace(code, variables));
            beside.is_file().then_some(beside)
        })
    }

    fn error(&self, kind: FirmwareErrorKind, message: impl Into<String>) -> FirmwareError {
        FirmwareError::of(&self.path, kind, message)
    }
}

/// Reads a template for a variable store of `size` bytes.
///
/// # Errors
/// When it cannot be read, is no variable store, or one of another size.
pub fn read_template(path: &Path, size: usize) -> Result<Vec<u8>, FirmwareError> {
    let bytes = read_file(path, FLASH_MAX)?;
    let wrong =
        |message: String| FirmwareError::of(path, FirmwareErrorKind::WrongVariables, message);
    volume::check_variables(&bytes)
        .map_err(|error| wrong(format!("as a template for variables: {error}")))?;
    if bytes.len() != size {
        return Err(wrong(format!(
            "is a variable store of {}, this firmware has one of {}; take the template that belongs to it",
            Bytes(bytes.len() as u64),
            Bytes(size as u64)
        )));
    }
    Ok(bytes)
}

/// Where the variables of an image end that starts with some.
fn variables_end(path: &Path, bytes: &[u8], length: u64) -> Result<usize, FirmwareError> {
    let size = bytes.len() as u64;
    let end = usize::try_from(length).ok().filter(|_| length < size);
    match end {
        Some(end) if end.is_multiple_of(SECTOR) => Ok(end),
        Some(_) => Err(not_firmware(path, bytes)),
        None if length == size => Err(FirmwareError::of(
            path,
            FirmwareErrorKind::NotFirmware,
            "is a store for UEFI variables without code; give it as the variables' template, and as firmware the CODE file beside it",
        )),
        None => Err(truncated(path, size, length)),
    }
}

/// Checks that UEFI code is complete: its volumes from `start` on, and the reset vector at the end.
fn check_code(path: &Path, bytes: &[u8], start: usize) -> Result<(), FirmwareError> {
    let mut at = start;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        // Between and behind volumes there may be filling.
        let Ok(volume) = Volume::parse(rest) else {
            if at == start {
                return Err(not_firmware(path, bytes));
            }
            break;
        };
        let end = (at as u64).saturating_add(volume.length);
        if end > bytes.len() as u64 {
            return Err(truncated(path, bytes.len() as u64, end));
        }
        at = usize::try_from(end).unwrap_or(usize::MAX);
    }
    if !bytes.len().is_multiple_of(SECTOR) || !has_reset_vector(bytes) {
        return Err(FirmwareError::of(
            path,
            FirmwareErrorKind::Truncated,
            "has no x86 reset vector at its end: it is not all there, or made for another architecture; install it again",
        ));
    }
    Ok(())
}

fn truncated(path: &Path, size: u64, promised: u64) -> FirmwareError {
    FirmwareError::of(
        path,
        FirmwareErrorKind::Truncated,
        format!("has {size} bytes, its headers promise {promised}; was it copied completely?"),
    )
}

/// Whether there are instructions where the processor begins.
fn has_reset_vector(bytes: &[u8]) -> bool {
    bytes
        .last_chunk::<RESET_VECTOR>()
        .is_some_and(|vector| *vector != [0; RESET_VECTOR] && *vector != [0xff; RESET_VECTOR])
}

/// A PC's BIOS: some 64 KiB, and at the reset vector a far jump followed by its date.
fn is_bios(bytes: &[u8]) -> bool {
    let whole = !bytes.is_empty() && bytes.len().is_multiple_of(64 << 10) && bytes.len() <= 1 << 20;
    whole
        && bytes
            .last_chunk::<RESET_VECTOR>()
            .is_some_and(|vector| vector[0] == FAR_JUMP && vector[7] == b'/' && vector[10] == b'/')
}

/// Builds of `SeaBIOS` for other machines: they boot nothing here.
fn refuse_other_bios(path: &Path) -> Result<(), FirmwareError> {
    if !names(path).iter().any(|name| name.contains("microvm")) {
        return Ok(());
    }
    Err(FirmwareError::of(
        path,
        FirmwareErrorKind::NotFirmware,
        "is for machines without PCI; use bios-256k.bin beside it",
    ))
}

fn not_firmware(path: &Path, bytes: &[u8]) -> FirmwareError {
    let what = if bytes.starts_with(b"QFI\xfb") {
        "is a qcow2 image; unpack it with qemu-img convert -O raw"
    } else if bytes.starts_with(b"\x7fELF") {
        "is an ELF file; boot it as a kernel"
    } else {
        "is neither a UEFI image nor a BIOS; give OVMF_CODE_4M.fd of the package ovmf, or bios-256k.bin of the package seabios"
    };
    FirmwareError::of(path, FirmwareErrorKind::NotFirmware, what)
}

/// Refuses images that are known to hang without system management mode, by their names.
fn refuse_smm(path: &Path) -> Result<(), FirmwareError> {
    let needs_smm = |name: &String| {
        let is_code = name.to_ascii_lowercase().contains("code");
        name.contains(".secboot.")
            || name.contains("-smm")
            || (is_code && (name.contains(".ms.") || name.contains(".snakeoil.")))
    };
    if names(path).iter().any(needs_smm) {
        Err(smm_error(path))
    } else {
        Ok(())
    }
}

pub(super) fn smm_error(path: &Path) -> FirmwareError {
    let name = names(path).into_iter().next().unwrap_or_default();
    let plain: Vec<_> = name
        .split('.')
        .filter(|part| !SMM_VARIANTS.contains(part))
        .collect();
    let plain = match plain.join(".") {
        plain if plain == name => "one without it, such as OVMF_CODE_4M.fd".to_owned(),
        plain => format!("{plain} beside it"),
    };
    let message = format!(
        "needs system management mode, which this platform does not have, and would hang; use {plain}. Debian 12's checks signatures (Secure \
         Boot) with the variables of OVMF_VARS_4M.ms.fd, though the guest's kernel could change them"
    );
    FirmwareError::of(path, FirmwareErrorKind::NeedsSmm, message)
}

/// The name of a file, and the one it has where it really lies.
fn names(path: &Path) -> Vec<String> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    [path, &real].into_iter().filter_map(name).collect()
}

/// Reads a regular file of at most `most` bytes.
pub(super) fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, FirmwareError> {
    // O_NONBLOCK: to open a pipe must not hang; a regular file does not care.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| {
            let (kind, message) = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (
                    FirmwareErrorKind::NotFound,
                    "there is no such file; check the path, or install the package ovmf",
                ),
                io::ErrorKind::PermissionDenied => (
                    FirmwareErrorKind::Unreadable,
                    "may not be read by this user; check owner and mode of the file and its directories",
                ),
                _ => (FirmwareErrorKind::Unreadable, "cannot be opened"),
            };
            FirmwareError::of(path, kind, message).with_source(error)
        })?;
    read_open_file(path, file, most)
}

fn read_open_file(path: &Path, file: File, most: u64) -> Result<Vec<u8>, FirmwareError> {
    let unreadable = |error| {
        FirmwareError::of(path, FirmwareErrorKind::Unreadable, "cannot be read").with_source(error)
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        let message = "is no regular file; name one";
        return Err(FirmwareError::of(
            path,
            FirmwareErrorKind::NotAFile,
            message,
        ));
    }
    // It may grow while it is read.
    let mut bytes = Vec::new();
    let mut limited = file.take(most + 1);
    limited.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        let message = format!(
            "is larger than {}, which is all there is room for; it is something else, or made for another platform",
            Bytes(most)
        );
        return Err(FirmwareError::of(path, FirmwareErrorKind::TooBig, message));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
