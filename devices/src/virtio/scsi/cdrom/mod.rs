//! The CD-ROM drive (SPC-4, MMC-6) as pure logic: what it answers to each command, and what a tray with a medium goes through.
//!
//! Needs no thread and does no I/O: a read is an [`Answer`] that says which blocks to get. Each command is the guest's, all 16 bytes of
//! it; whatever they are, the answer is one of a few, and no longer than its command allows.

mod disc;
mod events;
mod features;
mod identity;
mod mode;
mod sense;
#[cfg(test)]
mod tests;

pub(super) use sense::{LENGTH as SENSE_LENGTH, Sense};

/// Bytes of a block.
pub(super) const BLOCK: u64 = 2048;
/// Bytes of a command that are looked at; no command of a CD-ROM drive has more than 12.
pub(super) const CDB_LENGTH: usize = 16;
/// The most blocks of a CD (80 minutes and some). What has more is a DVD.
const CD_BLOCKS: u64 = (800 << 20) / BLOCK;

/// A command descriptor block; what the driver did not give is zero.
pub(super) type Cdb = [u8; CDB_LENGTH];

/// Operation codes.
mod opcode {
    pub(super) const TEST_UNIT_READY: u8 = 0x00;
    pub(super) const REQUEST_SENSE: u8 = 0x03;
    pub(super) const READ_6: u8 = 0x08;
    pub(super) const INQUIRY: u8 = 0x12;
    pub(super) const MODE_SENSE_6: u8 = 0x1a;
    pub(super) const START_STOP_UNIT: u8 = 0x1b;
    pub(super) const SEND_DIAGNOSTIC: u8 = 0x1d;
    pub(super) const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
    pub(super) const READ_CAPACITY: u8 = 0x25;
    pub(super) const READ_10: u8 = 0x28;
    pub(super) const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub(super) const READ_TOC: u8 = 0x43;
    pub(super) const GET_CONFIGURATION: u8 = 0x46;
    pub(super) const GET_EVENT_STATUS_NOTIFICATION: u8 = 0x4a;
    pub(super) const READ_DISC_INFORMATION: u8 = 0x51;
    pub(super) const READ_TRACK_INFORMATION: u8 = 0x52;
    pub(super) const MODE_SENSE_10: u8 = 0x5a;
    pub(super) const REPORT_LUNS: u8 = 0xa0;
    pub(super) const READ_12: u8 = 0xa8;
    pub(super) const MECHANISM_STATUS: u8 = 0xbd;
}

/// What a command comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It was done, and there is nothing to tell.
    Good,
    /// It was done; this is what it asked for, no more than it allowed.
    Data(Vec<u8>),
    /// These blocks, which are on the medium, are to be read. At least one.
    Read {
        /// The first.
        first: u64,
        /// How many.
        blocks: u64,
    },
    /// CHECK CONDITION.
    Check(Sense),
}

/// What happened to the medium and was not asked for yet (GET EVENT STATUS NOTIFICATION).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Somebody wants to have the medium.
    EjectRequest,
    /// There is a medium.
    NewMedium,
    /// There was one.
    Removed,
}

/// What one sees of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looks {
    /// The tray is open.
    pub(super) open: bool,
    /// The guest has locked the tray.
    pub(super) locked: bool,
}

/// A drive, with or without a medium.
#[derive(Debug)]
pub(super) struct Drive {
    serial: String,
    /// Blocks of the medium in the tray.
    medium: Option<u64>,
    open: bool,
    locked: bool,
    /// What the next command is told instead of being carried out: first the reset, then the medium that went, then the one that came.
    was_reset: bool,
    was_removed: bool,
    was_inserted: bool,
    news: Option<News>,
}

/// Whether the drive lets a command pass.
type Checked<T> = Result<T, Sense>;

impl Drive {
    /// A drive that was just switched on, with a closed and empty tray. The serial number is ASCII.
    pub(super) fn new(serial: impl Into<String>) -> Self {
        Self {
            serial: serial.into(),
            medium: None,
            open: false,
            locked: false,
            was_reset: true,
            was_removed: false,
            was_inserted: false,
            news: None,
        }
    }

    /// What one sees of it.
    pub(super) fn looks(&self) -> Looks {
        Looks {
            open: self.open,
            locked: self.locked,
        }
    }

    /// Whether reads of the medium may go on.
    pub(super) fn is_ready(&self) -> bool {
        self.medium.is_some() && !self.open
    }

    /// A reset: the lock is gone. What lies in the tray stays there, and an open tray stays open: an installer that has ejected its own
    /// medium and reboots does not want to be started again.
    pub(super) fn reset(&mut self) {
        self.locked = false;
        self.was_reset = true;
        (self.was_removed, self.was_inserted) = (false, false);
    }

    /// Puts a medium of so many bytes in, in place of what is there, and closes the tray.
    pub(super) fn insert(&mut self, bytes: u64) {
        self.was_removed |= self.is_ready();
        self.was_inserted = true;
        self.medium = Some(bytes.div_ceil(BLOCK));
        self.open = false;
        self.news = Some(News::NewMedium);
    }

    /// Takes the medium out, if there is one. The tray stays as it is.
    pub(super) fn remove(&mut self) {
        if self.is_ready() {
            self.note_removal();
        }
        self.medium = None;
        self.locked = false;
    }

    /// The guest is asked to let go of the medium.
    pub(super) fn request_eject(&mut self) {
        self.news = Some(News::EjectRequest);
    }

    fn note_removal(&mut self) {
        (self.was_removed, self.was_inserted) = (true, false);
        self.news = Some(News::Removed);
    }

    /// Carries out a command.
    pub(super) fn execute(&mut self, cdb: &Cdb) -> Answer {
        self.obey(cdb).unwrap_or_else(Answer::Check)
    }

    fn obey(&mut self, cdb: &Cdb) -> Checked<Answer> {
        if !tells_no_attention(cdb[0]) {
            if let Some(attention) = self.take_attention() {
                return Err(attention);
            }
        }
        match cdb[0] {
            opcode::TEST_UNIT_READY => self.ready().map(|_| Answer::Good),
            opcode::SYNCHRONIZE_CACHE | opcode::SEND_DIAGNOSTIC => Ok(Answer::Good),
            opcode::REQUEST_SENSE => self.request_sense(cdb),
            opcode::INQUIRY => self.inquiry(cdb),
            opcode::REPORT_LUNS => report_luns(cdb),
            opcode::MODE_SENSE_6 | opcode::MODE_SENSE_10 => self.mode_sense(cdb),
            opcode::START_STOP_UNIT => self.start_stop(cdb),
            opcode::PREVENT_ALLOW_MEDIUM_REMOVAL => {
                self.locked = cdb[4] & 1 != 0;
                Ok(Answer::Good)
            }
            opcode::READ_6 | opcode::READ_10 | opcode::READ_12 => self.read(cdb),
            opcode::READ_CAPACITY => self.read_capacity(),
            opcode::READ_TOC => self.read_toc(cdb),
            opcode::READ_DISC_INFORMATION => self.read_disc_information(cdb),
            opcode::READ_TRACK_INFORMATION => self.read_track_information(cdb),
            opcode::GET_CONFIGURATION => self.get_configuration(cdb),
            opcode::GET_EVENT_STATUS_NOTIFICATION => self.get_event_status(cdb),
            opcode::MECHANISM_STATUS => Ok(self.mechanism_status(cdb)),
            _ => Err(Sense::NO_COMMAND),
        }
    }

    /// What the next command is to be told instead.
    fn take_attention(&mut self) -> Option<Sense> {
        let take = |flag: &mut bool, sense| std::mem::take(flag).then_some(sense);
        take(&mut self.was_reset, Sense::RESET)
            .or_else(|| take(&mut self.was_removed, Sense::REMOVED))
            .or_else(|| take(&mut self.was_inserted, Sense::INSERTED))
    }

    /// The blocks of the medium, if it can be read.
    fn ready(&self) -> Checked<u64> {
        match self.medium {
            _ if self.open => Err(Sense::TRAY_OPEN),
            Some(blocks) => Ok(blocks),
            None => Err(Sense::NO_MEDIUM),
        }
    }

    fn request_sense(&mut self, cdb: &Cdb) -> Checked<Answer> {
        if cdb[1] & 1 != 0 {
            // The descriptor format.
            return Err(Sense::INVALID_FIELD);
        }
        let sense = self.take_attention().unwrap_or(Sense::NONE);
        Ok(answer(sense.bytes().to_vec(), cdb[4].into()))
    }

    fn start_stop(&mut self, cdb: &Cdb) -> Checked<Answer> {
        let (power, load_eject, start) = (cdb[4] >> 4, cdb[4] & 2 != 0, cdb[4] & 1 != 0);
        if power != 0 || !load_eject {
            // A drive without a motor starts and stops at once.
            return Ok(Answer::Good);
        }
        if self.open != start {
            return Ok(Answer::Good);
        }
        if start {
            self.open = false;
            if self.medium.is_some() {
                // Nor here. Linux closes the tray when the drive is opened and asks then whether it is ready: told of a change, it would
                // refuse to read until it is opened again.
                self.was_inserted = false;
                self.news = Some(News::NewMedium);
            }
        } else {
            if self.locked {
                return Err(Sense::LOCKED);
            }
            self.open = true;
            if self.medium.is_some() {
                // Who ejects knows it: no attention.
                self.was_inserted = false;
                self.news = Some(News::Removed);
            }
        }
        Ok(Answer::Good)
    }

    fn read(&self, cdb: &Cdb) -> Checked<Answer> {
        let have = self.ready()?;
        let (first, blocks) = match cdb[0] {
            opcode::READ_6 => {
                let first = u32::from_be_bytes([0, cdb[1] & 0x1f, cdb[2], cdb[3]]);
                let blocks = if cdb[4] == 0 { 256 } else { cdb[4].into() };
                (first, blocks)
            }
            opcode::READ_10 => (be32(cdb, 2), be16(cdb, 7).into()),
            _ => (be32(cdb, 2), be32(cdb, 6)),
        };
        let (first, blocks) = (u64::from(first), u64::from(blocks));
        if first + blocks > have {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok(match blocks {
            0 => Answer::Good,
            _ => Answer::Read { first, blocks },
        })
    }
}

/// Commands that are carried out whatever there is to tell (SPC-4 §5.14, MMC-6 §4.1).
fn tells_no_attention(code: u8) -> bool {
    matches!(
        code,
        opcode::INQUIRY
            | opcode::REPORT_LUNS
            | opcode::REQUEST_SENSE
            | opcode::GET_CONFIGURATION
            | opcode::GET_EVENT_STATUS_NOTIFICATION
    )
}

/// What a command for a logical unit that is not there comes to, where the target is.
pub(super) fn execute_without_unit(cdb: &Cdb) -> Answer {
    match cdb[0] {
        opcode::INQUIRY => identity::inquiry_without_unit(cdb),
        opcode::REPORT_LUNS => report_luns(cdb).unwrap_or_else(Answer::Check),
        opcode::REQUEST_SENSE => answer(Sense::NO_UNIT.bytes().to_vec(), cdb[4].into()),
        _ => Answer::Check(Sense::NO_UNIT),
    }
}

/// There is unit 0 and no well-known one.
fn report_luns(cdb: &Cdb) -> Checked<Answer> {
    let allocated = be32(cdb, 6);
    let units = match cdb[2] {
        0 | 2 => 1,
        1 => 0,
        _ => return Err(Sense::INVALID_FIELD),
    };
    if allocated < 16 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut list = vec![0; 8 + 8 * units];
    list[3] = if units == 0 { 0 } else { 8 };
    Ok(answer(list, allocated))
}

/// Data cut to what the command allows.
fn answer(mut data: Vec<u8>, allocated: u32) -> Answer {
    data.truncate(usize::try_from(allocated).unwrap_or(usize::MAX));
    if data.is_empty() {
        Answer::Good
    } else {
        Answer::Data(data)
    }
}

fn be16(cdb: &Cdb, at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

/// Writes the length of what follows it into the first two bytes.
fn with_length(mut data: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(data.len().saturating_sub(2)).unwrap_or(u16::MAX);
    if let Some(slot) = data.get_mut(..2) {
        slot.copy_from_slice(&length.to_be_bytes());
    }
    data
}
