//! Headers of UEFI firmware volumes (PI specification, volume 3, §3.2): what tells firmware and variable stores from other files, and how
//! long they are meant to be.
//!
//! Pure functions on files of the host, which may hold anything.

/// Bytes of a header without its block map.
const HEADER: usize = 56;
const GUID_AT: usize = 16;
const LENGTH_AT: usize = 32;
const SIGNATURE_AT: usize = 40;
const HEADER_LENGTH_AT: usize = 48;
const SIGNATURE: &[u8] = b"_FVH";

/// `gEfiSystemNvDataFvGuid`, as it lies in memory.
const NV_DATA: [u8; 16] = [
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
];
/// `EFI_FIRMWARE_FILE_SYSTEM2_GUID` and `3`.
const FILE_SYSTEMS: [[u8; 16]; 2] = [
    [
        0x78, 0xe5, 0x8c, 0x8c, 0x3d, 0x8a, 0x1c, 0x4f, 0x99, 0x35, 0x89, 0x61, 0x85, 0xc3, 0x2d,
        0xd3,
    ],
    [
        0x7a, 0xc0, 0x73, 0x54, 0xcb, 0x3d, 0xca, 0x4d, 0xbd, 0x6f, 0x1e, 0x96, 0x89, 0xe7, 0x34,
        0x9a,
    ],
];

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// UEFI variables.
    Variables,
    /// Files: code.
    Files,
    /// Something else.
    Other,
}

/// A volume, as its header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// What it holds.
    pub kind: VolumeKind,
    /// Its length in bytes, header included.
    pub length: u64,
}

/// Why there is no volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// Something else is there.
    #[error("there is no header of a UEFI firmware volume")]
    NoSignature,
    /// It was one.
    #[error("the header of its firmware volume is damaged")]
    Damaged,
}

impl Volume {
    /// The volume at the start of `bytes`.
    ///
    /// # Errors
    /// When there is none, or its header is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, VolumeError> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(VolumeError::NoSignature);
        };
        if !header[SIGNATURE_AT..].starts_with(SIGNATURE) {
            return Err(VolumeError::NoSignature);
        }
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let whole = usize::from(word(HEADER_LENGTH_AT));
        let whole = bytes
            .get(..whole)
            .filter(|whole| whole.len() >= HEADER && whole.len().is_multiple_of(2))
            .ok_or(VolumeError::Damaged)?;
        let sum = whole.chunks_exact(2).fold(0u16, |sum, pair| {
            sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]]))
        });
        if sum != 0 {
            return Err(VolumeError::Damaged);
        }
        let mut length = [0; 8];
        length.copy_from_slice(&header[LENGTH_AT..LENGTH_AT + 8]);
        let length = u64::from_le_bytes(length);
        if length < whole.len() as u64 {
            return Err(VolumeError::Damaged);
        }
        let guid = &header[GUID_AT..GUID_AT + 16];
        let kind = if guid == NV_DATA {
            VolumeKind::Variables
        } else if FILE_SYSTEMS.iter().any(|known| known == guid) {
            VolumeKind::Files
        } else {
            VolumeKind::Other
        };
        Ok(Self { kind, length })
    }
}

/// Why a file is no variable store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVariables {
    /// Not even a volume.
    #[error("is no variable store: {0}")]
    NoVolume(#[from] VolumeError),
    /// A volume with code, or something else.
    #[error("is a UEFI firmware volume, but none with variables")]
    OtherVolume,
    /// The store was made for a flash of another size, or is not all there.
    #[error("has {size} bytes, while the variable store in it has {length}")]
    Length {
        /// Of the file.
        size: usize,
        /// Of the volume.
        length: u64,
    },
}

/// Checks that `image` is a variable store, all of it.
///
/// Firmware that was interrupted while it rewrote the store's first sector mends that from its spare copy, which is the second half: so
/// it is enough if either has a good header.
///
/// # Errors
/// When neither has.
pub fn check_variables(image: &[u8]) -> Result<(), NotVariables> {
    let checked = |bytes: &[u8]| match Volume::parse(bytes)? {
        Volume {
            kind: VolumeKind::Variables,
            length,
        } if length == image.len() as u64 => Ok(()),
        Volume {
            kind: VolumeKind::Variables,
            length,
        } => Err(NotVariables::Length {
            size: image.len(),
            length,
        }),
        _ => Err(NotVariables::OtherVolume),
    };
    let spare = image.get(image.len() / 2..).unwrap_or_default();
    checked(image).or_else(|error| checked(spare).map_err(|_| error))
}

/// Images that only have headers, for tests here and in other crates.
#[cfg(any(test, feature = "test-utils"))]
pub mod double {
    use super::{HEADER_LENGTH_AT, LENGTH_AT, NV_DATA, SIGNATURE, SIGNATURE_AT, VolumeKind};

    /// A volume of `size` bytes, 0xFF behind its header.
    #[must_use]
    pub fn volume(kind: VolumeKind, size: usize) -> Vec<u8> {
        const LENGTH: usize = 72;
        let mut image = vec![0xff; size.max(LENGTH)];
        image[..LENGTH].fill(0);
        let guid = match kind {
            VolumeKind::Variables => NV_DATA,
            VolumeKind::Files => super::FILE_SYSTEMS[0],
            VolumeKind::Other => [7; 16],
        };
        image[super::GUID_AT..][..16].copy_from_slice(&guid);
        image[LENGTH_AT..][..8].copy_from_slice(&(size as u64).to_le_bytes());
        image[SIGNATURE_AT..][..4].copy_from_slice(SIGNATURE);
        image[HEADER_LENGTH_AT] = LENGTH.to_le_bytes()[0];
        let sum = image[..LENGTH].chunks_exact(2).fold(0u16, |sum, pair| {
            sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]]))
        });
        image[HEADER_LENGTH_AT + 2..][..2].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
        image.truncate(size);
        image
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::double::volume;
    use super::*;

    /// The first bytes of Debian's `OVMF_VARS_4M.fd`.
    const OVMF_VARS_4M: [u8; 72] = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b,
        0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50, 0x00, 0x40, 0x08, 0, 0, 0, 0, 0,
        0x5f, 0x46, 0x56, 0x48, 0xff, 0xfe, 0x04, 0x00, 0x48, 0x00, 0xaf, 0xb8, 0, 0, 0, 2, 0x84,
        0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn debians_headers_are_understood() {
        let volume = Volume::parse(&OVMF_VARS_4M).unwrap();
        assert_eq!(volume.kind, VolumeKind::Variables);
        assert_eq!(volume.length, 0x84000);
        for at in [0, 16, 33, 48, 50, 71] {
            let mut damaged = OVMF_VARS_4M;
            damaged[at] ^= 1;
            assert_eq!(Volume::parse(&damaged), Err(VolumeError::Damaged), "{at}");
        }
        for length in [0, 16, 55] {
            let cut = &OVMF_VARS_4M[..length];
            assert_eq!(Volume::parse(cut), Err(VolumeError::NoSignature));
        }
        assert_eq!(
            Volume::parse(&OVMF_VARS_4M[..71]),
            Err(VolumeError::Damaged)
        );
    }

    #[test]
    fn stores_are_told_from_other_files() {
        let good = volume(VolumeKind::Variables, 0x20000);
        assert_eq!(check_variables(&good), Ok(()));
        let cases = [
            (
                b"Dear diary,\n".repeat(1000),
                "is no variable store: there is no header of a UEFI firmware volume",
            ),
            (
                Vec::new(),
                "is no variable store: there is no header of a UEFI firmware volume",
            ),
            (
                good[..0x1f000].to_vec(),
                "has 126976 bytes, while the variable store in it has 131072",
            ),
            (
                [&good[..], &[0]].concat(),
                "has 131073 bytes, while the variable store in it has 131072",
            ),
            (
                volume(VolumeKind::Files, 0x20000),
                "is a UEFI firmware volume, but none with variables",
            ),
        ];
        for (image, message) in cases {
            assert_eq!(check_variables(&image).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_store_whose_first_sector_is_being_rewritten_is_one() {
        let good = volume(VolumeKind::Variables, 0x20000);
        let mut interrupted = good.clone();
        interrupted[0x10000..0x11000].copy_from_slice(&good[..0x1000]);
        interrupted[..0x1000].fill(0xff);
        assert_eq!(check_variables(&interrupted), Ok(()));
        interrupted[..40].copy_from_slice(&good[..40]);
        assert_eq!(check_variables(&interrupted), Ok(()));
        interrupted[0x10000 + 20] = 0;
        assert!(check_variables(&interrupted).is_err());
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            size in 0usize..300,
            damage in prop::collection::vec((0usize..72, any::<u8>()), 0..6),
        ) {
            let mut image = volume(VolumeKind::Variables, 4096);
            for (at, byte) in damage {
                image[at] = byte;
            }
            image.truncate(size);
            let _ = check_variables(&image);
        }
    }
}
