//! What is said of the medium (MMC-6 §6): its size, and a table of contents of one session with one data track.

use super::{Answer, BLOCK, Cdb, Checked, Drive, Sense, answer, be16, be32, with_length};

/// A data track that was recorded uninterrupted, as the Q sub-channel has it: its address is its position.
const DATA_TRACK: u8 = 0x14;
const LEAD_OUT: u8 = 0xaa;
/// Blocks before the first that can be read, in minutes, seconds and frames.
const PREGAP: u64 = 150;
const FRAMES: u64 = 75;
const SECONDS: u64 = 60;

/// Bytes of an address, in one of its two forms.
type Address = [u8; 4];

/// A block as its number, or as its place in time on a CD. A DVD's last blocks are beyond what can be written so.
fn address(block: u64, msf: bool) -> Address {
    if !msf {
        return u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes();
    }
    let frames = block + PREGAP;
    let small = |number| u8::try_from(number).unwrap_or(u8::MAX);
    match frames / (FRAMES * SECONDS) {
        minutes @ 0..=255 => [
            0,
            small(minutes),
            small(frames / FRAMES % SECONDS),
            small(frames % FRAMES),
        ],
        _ => [0, 255, 59, 74],
    }
}

impl Drive {
    /// The last block and the bytes of one.
    pub(super) fn read_capacity(&self) -> Checked<Answer> {
        let last = self.ready()?.saturating_sub(1);
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        let block = u32::try_from(BLOCK).unwrap_or(u32::MAX);
        Ok(Answer::Data(
            [last.to_be_bytes(), block.to_be_bytes()].concat(),
        ))
    }

    pub(super) fn read_toc(&self, cdb: &Cdb) -> Checked<Answer> {
        let blocks = self.ready()?;
        let msf = cdb[1] & 2 != 0;
        let (first, allocated) = (cdb[6], be16(cdb, 7));
        // Old drivers have the format in the control byte.
        let format = match cdb[2] & 0xf {
            0 => cdb[9] >> 6,
            format => format,
        };
        let toc = match format {
            0 => contents(blocks, first, msf)?,
            1 => sessions(msf),
            2 if first <= 1 => raw(blocks, msf),
            _ => return Err(Sense::INVALID_FIELD),
        };
        Ok(answer(with_length(toc), allocated.into()))
    }

    /// One finished session, which cannot be added to.
    pub(super) fn read_disc_information(&self, cdb: &Cdb) -> Checked<Answer> {
        self.ready()?;
        if cdb[1] & 7 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let mut data = vec![0; 34];
        data[2] = 0x0e; // The last session and the disc are complete.
        data[3..7].fill(1); // First track, sessions, first and last track of the last session.
        data[7] = 0x20; // For unrestricted use.
        Ok(answer(with_length(data), be16(cdb, 7).into()))
    }

    /// The track, by a block of it, its number or its session's.
    pub(super) fn read_track_information(&self, cdb: &Cdb) -> Checked<Answer> {
        let blocks = self.ready()?;
        let wanted = be32(cdb, 2);
        let there = match cdb[1] & 3 {
            0 => u64::from(wanted) < blocks,
            1 | 2 => wanted == 1,
            _ => false,
        };
        if !there {
            return Err(Sense::INVALID_FIELD);
        }
        let mut data = vec![0; 36];
        (data[2], data[3]) = (1, 1); // Track and session.
        data[5] = 4; // Data, recorded uninterrupted.
        data[6] = 1; // Mode 1.
        data[24..28].copy_from_slice(&address(blocks, false));
        data[28..32].copy_from_slice(&address(blocks.saturating_sub(1), false));
        Ok(answer(with_length(data), be16(cdb, 7).into()))
    }

    pub(super) fn mechanism_status(&self, cdb: &Cdb) -> Answer {
        let allocated = u32::from(be16(cdb, 8));
        let door = u8::from(self.open) << 4;
        answer(vec![0, door, 0, 0, 0, 1, 0, 0], allocated)
    }
}

/// The tracks from `first` on, and where they end.
fn contents(blocks: u64, first: u8, msf: bool) -> Checked<Vec<u8>> {
    let mut toc = vec![0, 0, 1, 1];
    let mut add = |number, block| {
        toc.extend_from_slice(&[0, DATA_TRACK, number, 0]);
        toc.extend_from_slice(&address(block, msf));
    };
    match first {
        0 | 1 => add(1, 0),
        LEAD_OUT => {}
        _ => return Err(Sense::INVALID_FIELD),
    }
    add(LEAD_OUT, blocks);
    Ok(toc)
}

/// The first track of the last session.
fn sessions(msf: bool) -> Vec<u8> {
    let mut toc = vec![0, 0, 1, 1, 0, DATA_TRACK, 1, 0];
    toc.extend_from_slice(&address(0, msf));
    toc
}

/// What stands in the lead-in.
fn raw(blocks: u64, msf: bool) -> Vec<u8> {
    const FIRST_TRACK: u8 = 0xa0;
    const LAST_TRACK: u8 = 0xa1;
    const END: u8 = 0xa2;
    let mut toc = vec![0, 0, 1, 1];
    for (point, place) in [
        (FIRST_TRACK, [0, 1, 0, 0]),
        (LAST_TRACK, [0, 1, 0, 0]),
        (END, address(blocks, msf)),
        (1, address(0, msf)),
    ] {
        toc.extend_from_slice(&[1, DATA_TRACK, 0, point, 0, 0, 0]);
        toc.extend_from_slice(&place);
    }
    toc
}
