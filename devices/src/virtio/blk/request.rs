//! From a descriptor chain to a disk operation (VIRTIO 1.2 §5.2.6).
//!
//! Runs on the queue's worker. The whole request is the guest's: header and data may be cut into descriptors in any way,
//! lengths may not fit, types may not exist. What can be answered is answered with a status; only a chain
//! without room for the status byte is a reason to ask for a reset.

use std::sync::Arc;

use paddock_storage::{IoError, Operation};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

use super::config::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, SECTOR};
use super::counters::Kind;
use crate::virtio::GuestMap;
use crate::virtio::chain::{Chain, RingError, Segments};

/// Bytes of `struct virtio_blk_req` before the data.
const HEADER_SIZE: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_SIZE: usize = 16;

/// The serial number as VIRTIO_BLK_T_GET_ID gives it: padded with zeros.
pub(super) type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// The status byte that ends a request: VIRTIO_BLK_S_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<IoError> for Status {
    fn from(error: IoError) -> Self {
        match error {
            IoError::Unsupported => Self::Unsupported,
            IoError::OutOfRange | IoError::ReadOnly | IoError::Os(_) => Self::IoError,
        }
    }
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) struct Reply {
    /// The chain's head.
    pub head: u16,
    /// The status byte.
    pub status: GuestAddress,
    /// What the device writes before it; filled by the disk for a read.
    pub data: Segments,
    /// Whether the disk fills `data`.
    pub read: bool,
    /// What was asked for.
    pub kind: Kind,
    /// How many bytes the request is about; 0 if it is not for the disk.
    pub bytes: u64,
}

/// What to do about a request.
#[derive(Debug)]
pub(super) enum Action {
    /// Hand it to the disk.
    Submit(Operation),
    /// Answer it.
    Answer(Status),
    /// Answer it with the serial number.
    Identify,
}

/// Reads a request.
///
/// # Errors
/// When there is no status byte, or guest RAM is gone.
pub(super) fn parse(
    chain: Chain,
    memory: &Arc<GuestMap>,
    features: u64,
) -> Result<(Reply, Action), RingError> {
    let Chain {
        head,
        readable,
        writable: mut data,
    } = chain;
    let status = data.pop_last_byte().ok_or(RingError::NoAnswer { head })?;
    let mut header = [0; HEADER_SIZE];
    let (kind, action) = if readable.copy_to(memory, 0, &mut header)? == HEADER_SIZE {
        let (_, payload) = readable.split_at(HEADER_SIZE as u64);
        interpret(header, &payload, &data, memory, features)?
    } else {
        (Kind::Other, Action::Answer(Status::IoError))
    };
    let read = matches!(action, Action::Submit(Operation::Read { .. }));
    let bytes = match &action {
        Action::Submit(operation) => operation.range().map_or(0, |(_, length)| length),
        Action::Answer(_) | Action::Identify => 0,
    };
    let reply = Reply {
        head,
        status,
        data,
        read,
        kind,
        bytes,
    };
    Ok((reply, action))
}

fn interpret(
    header: [u8; HEADER_SIZE],
    payload: &Segments,
    data: &Segments,
    memory: &Arc<GuestMap>,
    features: u64,
) -> Result<(Kind, Action), RingError> {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
    let has = |bit: u32| features & 1 << bit != 0;
    let action = match (kind, offset) {
        (VIRTIO_BLK_T_IN, Some(offset)) if whole_sectors(data) => Action::Submit(Operation::Read {
            offset,
            buffer: data.buffer(memory)?,
        }),
        (VIRTIO_BLK_T_OUT, Some(offset)) if whole_sectors(payload) => {
            Action::Submit(Operation::Write {
                offset,
                buffer: payload.buffer(memory)?,
            })
        }
        (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT, _) => Action::Answer(Status::IoError),
        (VIRTIO_BLK_T_FLUSH, _) => Action::Submit(Operation::Flush),
        (VIRTIO_BLK_T_GET_ID, _) => Action::Identify,
        (VIRTIO_BLK_T_DISCARD, _) if has(VIRTIO_BLK_F_DISCARD) => {
            range(kind, payload, memory, MAX_DISCARD_SECTORS)?
        }
        (VIRTIO_BLK_T_WRITE_ZEROES, _) if has(VIRTIO_BLK_F_WRITE_ZEROES) => {
            range(kind, payload, memory, MAX_WRITE_ZEROES_SECTORS)?
        }
        _ => Action::Answer(Status::Unsupported),
    };
    Ok((Kind::of_type(kind), action))
}

/// A read or write moves at least one sector, and whole ones (§5.2.6.1).
fn whole_sectors(data: &Segments) -> bool {
    !data.is_empty() && data.len().is_multiple_of(SECTOR)
}

/// The one range of a discard or write-zeroes (we announce `max_*_seg` 1).
fn range(
    kind: u32,
    payload: &Segments,
    memory: &GuestMap,
    max_sectors: u32,
) -> Result<Action, RingError> {
    let mut bytes = [0; RANGE_SIZE];
    if payload.len() != RANGE_SIZE as u64 || payload.copy_to(memory, 0, &mut bytes)? != RANGE_SIZE {
        return Ok(Action::Answer(Status::IoError));
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let known = match kind {
        VIRTIO_BLK_T_WRITE_ZEROES => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        _ => 0,
    };
    if flags & !known != 0 {
        // §5.2.6.2: reserved flags, and unmap in a discard, are UNSUPP.
        return Ok(Action::Answer(Status::Unsupported));
    }
    let (Some(offset), 1..) = (sector.checked_mul(SECTOR), sectors) else {
        return Ok(Action::Answer(Status::IoError));
    };
    if sectors > max_sectors {
        return Ok(Action::Answer(Status::IoError));
    }
    let length = u64::from(sectors) * SECTOR;
    Ok(Action::Submit(if kind == VIRTIO_BLK_T_WRITE_ZEROES {
        let may_unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Operation::WriteZeroes {
            offset,
            length,
            may_unmap,
        }
    } else {
        Operation::Discard { offset, length }
    }))
}
