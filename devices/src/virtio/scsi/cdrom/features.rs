//! GET CONFIGURATION (MMC-6 §6.6): the drive's features and profiles, and which are current.

use super::{Answer, BLOCK, CD_BLOCKS, Cdb, Checked, Drive, Sense, answer, be16};

const CD_ROM: u16 = 0x0008;
const DVD_ROM: u16 = 0x0010;

/// Feature codes.
const PROFILES: u16 = 0x0000;
const CORE: u16 = 0x0001;
const MORPHING: u16 = 0x0002;
const REMOVABLE_MEDIUM: u16 = 0x0003;
const RANDOM_READABLE: u16 = 0x0010;
const CD_READ: u16 = 0x001e;
const DVD_READ: u16 = 0x001f;

/// Which features are asked for.
const ALL: u8 = 0;
const CURRENT: u8 = 1;
const ONE: u8 = 2;

/// A feature that the drive has.
struct Feature {
    code: u16,
    version: u8,
    /// It is there whatever the medium.
    persistent: bool,
    current: bool,
    content: Vec<u8>,
}

impl Feature {
    fn always(code: u16, version: u8, content: Vec<u8>) -> Self {
        Self {
            code,
            version,
            persistent: true,
            current: true,
            content,
        }
    }

    fn with_medium(code: u16, current: bool, content: Vec<u8>) -> Self {
        Self {
            code,
            version: 0,
            persistent: false,
            current,
            content,
        }
    }

    fn append(&self, data: &mut Vec<u8>) {
        data.extend_from_slice(&self.code.to_be_bytes());
        data.push(self.version << 2 | u8::from(self.persistent) << 1 | u8::from(self.current));
        data.push(u8::try_from(self.content.len()).unwrap_or(u8::MAX));
        data.extend_from_slice(&self.content);
    }
}

impl Drive {
    pub(super) fn get_configuration(&self, cdb: &Cdb) -> Checked<Answer> {
        let (asked, from) = (cdb[1] & 3, be16(cdb, 2));
        let mut data = vec![0; 8];
        data[6..8].copy_from_slice(&self.profile().unwrap_or(0).to_be_bytes());
        for feature in self.features() {
            let wanted = match asked {
                ALL => feature.code >= from,
                CURRENT => feature.code >= from && feature.current,
                ONE => feature.code == from,
                _ => return Err(Sense::INVALID_FIELD),
            };
            if wanted {
                feature.append(&mut data);
            }
        }
        let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
        data[..4].copy_from_slice(&length.to_be_bytes());
        Ok(answer(data, be16(cdb, 7).into()))
    }

    /// What the medium is.
    fn profile(&self) -> Option<u16> {
        let blocks = self.ready().ok()?;
        Some(if blocks > CD_BLOCKS { DVD_ROM } else { CD_ROM })
    }

    /// In the order of their codes.
    fn features(&self) -> [Feature; 7] {
        let profile = self.profile();
        let is = |known| profile == Some(known);
        let profiles = [DVD_ROM, CD_ROM].map(|known| {
            let [high, low] = known.to_be_bytes();
            [high, low, u8::from(is(known)), 0]
        });
        // One block is read at a time if need be, and errors are recovered from.
        let mut random = u32::try_from(BLOCK).unwrap_or(0).to_be_bytes().to_vec();
        random.extend_from_slice(&[0, 1, 1, 0]);
        [
            Feature::always(PROFILES, 0, profiles.concat()),
            // SCSI, and INQUIRY data that is always the same.
            Feature::always(CORE, 2, vec![0, 0, 0, 1, 0x02, 0, 0, 0]),
            Feature::always(MORPHING, 1, vec![0; 4]),
            // A tray that ejects and can be locked.
            Feature::always(REMOVABLE_MEDIUM, 0, vec![0x29, 0, 0, 0]),
            Feature::with_medium(RANDOM_READABLE, profile.is_some(), random),
            Feature::with_medium(CD_READ, is(CD_ROM), vec![0; 4]),
            Feature::with_medium(DVD_READ, is(DVD_ROM), vec![0; 4]),
        ]
    }
}
