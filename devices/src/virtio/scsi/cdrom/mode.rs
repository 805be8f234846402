//! MODE SENSE (SPC-4 §6.13, MMC-6 §7): what the drive can do. Nothing can be changed or saved.

use super::{Answer, Cdb, Checked, Drive, Sense, answer, be16, opcode};

const ERROR_RECOVERY: u8 = 0x01;
const AUDIO_CONTROL: u8 = 0x0e;
const POWER_CONDITION: u8 = 0x1a;
const CAPABILITIES: u8 = 0x2a;
const ALL: u8 = 0x3f;

/// Which values are asked for.
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// What a 48× drive reads in a second, in kilobytes.
const SPEED: u16 = 8467;
/// Its buffer, in kilobytes.
const BUFFER: u16 = 2048;

impl Drive {
    pub(super) fn mode_sense(&self, cdb: &Cdb) -> Checked<Answer> {
        let (control, page, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
        if control == SAVED {
            return Err(Sense::NOT_SAVED);
        }
        if subpage != 0 && subpage != 0xff {
            return Err(Sense::INVALID_FIELD);
        }
        let mut pages = Vec::new();
        for (code, content) in self.pages() {
            if page == code || page == ALL {
                pages.push(code);
                pages.push(u8::try_from(content.len()).unwrap_or(u8::MAX));
                match control {
                    CHANGEABLE => pages.resize(pages.len() + content.len(), 0),
                    _ => pages.extend_from_slice(&content),
                }
            }
        }
        if pages.is_empty() {
            return Err(Sense::INVALID_FIELD);
        }
        // Medium type and device-specific parameter are not used by such drives, and there are no block descriptors.
        if cdb[0] == opcode::MODE_SENSE_6 {
            let length = u8::try_from(3 + pages.len()).unwrap_or(u8::MAX);
            let header = vec![length, 0, 0, 0];
            Ok(answer([header, pages].concat(), cdb[4].into()))
        } else {
            let data = super::with_length([vec![0; 8], pages].concat());
            Ok(answer(data, be16(cdb, 7).into()))
        }
    }

    /// The pages in the order of their codes, without code and length.
    fn pages(&self) -> [(u8, Vec<u8>); 4] {
        let mut recovery = vec![0; 10];
        recovery[1] = 5; // Retries.
        let mut audio = vec![0; 14];
        audio[0] = 0x04; // Answers at once.
        let power = vec![0; 10];
        [
            (ERROR_RECOVERY, recovery),
            (AUDIO_CONTROL, audio),
            (POWER_CONDITION, power),
            (CAPABILITIES, self.capabilities()),
        ]
    }

    fn capabilities(&self) -> Vec<u8> {
        let mut page = vec![0; 20];
        page[0] = 0x1b; // Reads CD-R, CD-RW, DVD-ROM and DVD-R.
        page[2] = 0x40; // Multi-session.
        // A tray that ejects and can be locked, and whether it is.
        page[4] = 0x29 | u8::from(self.locked) << 1;
        page[6..8].copy_from_slice(&SPEED.to_be_bytes());
        page[10..12].copy_from_slice(&BUFFER.to_be_bytes());
        page[12..14].copy_from_slice(&SPEED.to_be_bytes());
        page
    }
}
