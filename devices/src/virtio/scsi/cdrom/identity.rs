//! INQUIRY (SPC-4 §6.6): who the drive is.

use super::{Answer, Cdb, Checked, Drive, Sense, answer, be16};

/// A CD-ROM drive.
const DEVICE_TYPE: u8 = 0x05;
/// No unit is there, and none can be (peripheral qualifier 3, type 0x1f).
const NO_UNIT: u8 = 0x7f;
const REMOVABLE: u8 = 0x80;
/// SPC-3, which is what drivers expect of a drive.
const VERSION: u8 = 0x05;
const RESPONSE_FORMAT: u8 = 0x02;
/// Several commands at once.
const COMMAND_QUEUE: u8 = 0x02;
const VENDOR: &[u8; 8] = b"PADDOCK ";
const PRODUCT: &[u8; 16] = b"CD-ROM          ";
const REVISION: &[u8; 4] = b"1   ";

/// Vital product data pages.
const SUPPORTED_PAGES: u8 = 0x00;
const SERIAL_NUMBER: u8 = 0x80;
const IDENTIFICATION: u8 = 0x83;

impl Drive {
    pub(super) fn inquiry(&self, cdb: &Cdb) -> Checked<Answer> {
        let (vital, page) = (cdb[1] & 1 != 0, cdb[2]);
        let data = match (vital, page) {
            (false, 0) => standard(DEVICE_TYPE),
            (true, SUPPORTED_PAGES) => {
                vital_page(page, &[SUPPORTED_PAGES, SERIAL_NUMBER, IDENTIFICATION])
            }
            (true, SERIAL_NUMBER) => vital_page(page, self.serial.as_bytes()),
            (true, IDENTIFICATION) => vital_page(page, &self.designator()),
            _ => return Err(Sense::INVALID_FIELD),
        };
        Ok(answer(data, be16(cdb, 3).into()))
    }

    /// The unit by vendor and what the vendor calls it, in ASCII.
    fn designator(&self) -> Vec<u8> {
        let serial = self.serial.as_bytes();
        let serial = &serial[..serial.len().min(200)];
        let length = u8::try_from(VENDOR.len() + serial.len()).unwrap_or(u8::MAX);
        let mut bytes = vec![0x02, 0x01, 0, length];
        bytes.extend_from_slice(VENDOR);
        bytes.extend_from_slice(serial);
        bytes
    }
}

pub(super) fn inquiry_without_unit(cdb: &Cdb) -> Answer {
    if cdb[1] & 1 != 0 || cdb[2] != 0 {
        return Answer::Check(Sense::NO_UNIT);
    }
    answer(standard(NO_UNIT), be16(cdb, 3).into())
}

fn standard(device_type: u8) -> Vec<u8> {
    let mut data = vec![device_type, REMOVABLE, VERSION, RESPONSE_FORMAT];
    data.extend_from_slice(&[31, 0, 0, COMMAND_QUEUE]);
    data.extend_from_slice(VENDOR);
    data.extend_from_slice(PRODUCT);
    data.extend_from_slice(REVISION);
    data
}

fn vital_page(page: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let mut data = vec![DEVICE_TYPE, page];
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(content);
    data
}
