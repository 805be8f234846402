//! From descriptor chains to commands and back (VIRTIO 1.2 §5.6.6).
//!
//! Runs on the device's worker. Every byte is the guest's: what can be answered is answered, and only a chain without room for
//! the answer is a reason to ask for a reset.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_scsi::{
    VIRTIO_SCSI_CDB_DEFAULT_SIZE, VIRTIO_SCSI_SENSE_DEFAULT_SIZE, VIRTIO_SCSI_T_AN_QUERY,
    VIRTIO_SCSI_T_AN_SUBSCRIBE, VIRTIO_SCSI_T_TMF,
};

use super::cdrom::{CDB_LENGTH, Cdb, SENSE_LENGTH, Sense};
use crate::virtio::GuestMap;
use crate::virtio::chain::{Chain, RingError, Segments};

/// Bytes of a command before the CDB: LUN, tag, and three bytes that do not matter here.
const COMMAND_HEADER: usize = 19;
/// Bytes of its response before the sense data.
const RESPONSE_HEADER: usize = 12;
/// The most the driver can ask CDB and sense data to have, in bytes: far more than either can use.
const MAX_SIZE: u32 = 4096;
/// Bytes of a task management function, and of a request about asynchronous notifications.
const TMF_LENGTH: usize = 24;
const NOTIFICATION_LENGTH: usize = 16;

/// Bytes of an event.
pub(super) const EVENT_LENGTH: usize = 16;

/// The sizes that the driver chooses. Written on vCPU threads.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) cdb: AtomicU32,
    pub(super) sense: AtomicU32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            cdb: AtomicU32::new(VIRTIO_SCSI_CDB_DEFAULT_SIZE),
            sense: AtomicU32::new(VIRTIO_SCSI_SENSE_DEFAULT_SIZE),
        }
    }
}

impl Sizes {
    /// What the driver wrote, or the most there can be.
    pub(super) fn limited(size: &AtomicU32) -> u32 {
        size.load(Ordering::Acquire).min(MAX_SIZE)
    }

    /// Back to what they are after a reset.
    pub(super) fn reset(&self) {
        let fresh = Self::default();
        self.cdb.store(fresh.cdb.into_inner(), Ordering::Release);
        self.sense
            .store(fresh.sense.into_inner(), Ordering::Release);
    }
}

/// How the transport answers: VIRTIO_SCSI_S_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Response {
    Ok = 0,
    Overrun = 1,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Failure = 9,
    FunctionSucceeded = 10,
    FunctionRejected = 11,
    IncorrectLun = 12,
}

/// How the command ended (SAM-5 §5.3), as the unit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Good,
    Check(Sense),
    /// Not now: the driver tries again.
    Busy,
}

impl Status {
    fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Check(_) => 2,
            Self::Busy => 8,
        }
    }
}

/// Whom a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// The drive: target 0, unit 0.
    Drive,
    /// Another unit of target 0.
    Absent,
    /// Another target, or an address that is none.
    NoTarget,
}

impl Unit {
    /// An address as VIRTIO has it (§5.6.6.1): 1, the target, a unit of one level, zeros.
    pub(super) fn at(address: [u8; 8]) -> Self {
        match address {
            [1, 0, 0 | 0x40, 0, 0, 0, 0, 0] => Self::Drive,
            [1, 0, ..] => Self::Absent,
            _ => Self::NoTarget,
        }
    }
}

/// The address of the drive, as events have it.
pub(super) const DRIVE: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

/// Where an answer goes.
#[derive(Debug)]
pub(super) struct Reply {
    /// The chain's head.
    pub(super) head: u16,
    /// For status and sense data.
    header: Segments,
    /// For the data that is asked for.
    pub(super) data: Segments,
}

impl Reply {
    /// Writes how the command ended, after `transferred` bytes of data were written. Returns how many bytes the driver is to be told of.
    ///
    /// # Errors
    /// When guest RAM is gone.
    pub(super) fn write(
        &self,
        memory: &GuestMap,
        status: Status,
        response: Response,
        transferred: u64,
    ) -> Result<u64, RingError> {
        let room = usize::try_from(self.header.len()).unwrap_or(RESPONSE_HEADER);
        let mut bytes = vec![0; room.max(RESPONSE_HEADER)];
        let residual = u32::try_from(self.data.len() - transferred).unwrap_or(u32::MAX);
        bytes[4..8].copy_from_slice(&residual.to_le_bytes());
        bytes[10] = status.code();
        bytes[11] = response as u8;
        if let Status::Check(sense) = status {
            let slot = &mut bytes[RESPONSE_HEADER..];
            let length = slot.len().min(SENSE_LENGTH);
            slot[..length].copy_from_slice(&sense.bytes()[..length]);
            let length = u32::try_from(length).unwrap_or(0);
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        self.header.copy_from(memory, 0, &bytes)?;
        Ok(self.header.len() + transferred)
    }
}

/// A command of a request queue.
#[derive(Debug)]
pub(super) struct Command {
    /// Whom it is for; `None` where there is not all of it.
    pub(super) unit: Option<Unit>,
    /// What the driver calls it.
    pub(super) tag: u64,
    pub(super) cdb: Cdb,
    pub(super) reply: Reply,
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// When there is no room for its answer, or guest RAM is gone.
    pub(super) fn parse(chain: Chain, memory: &GuestMap, sizes: &Sizes) -> Result<Self, RingError> {
        let head = chain.head;
        let (cdb_size, sense_size) = (Sizes::limited(&sizes.cdb), Sizes::limited(&sizes.sense));
        let (header, data) = chain
            .writable
            .split_at(RESPONSE_HEADER as u64 + u64::from(sense_size));
        if header.len() < RESPONSE_HEADER as u64 + u64::from(sense_size) {
            return Err(RingError::NoAnswer { head });
        }
        let mut bytes = [0; COMMAND_HEADER + CDB_LENGTH];
        let cdb_used = usize::try_from(cdb_size).map_or(CDB_LENGTH, |size| size.min(CDB_LENGTH));
        chain
            .readable
            .copy_to(memory, 0, &mut bytes[..COMMAND_HEADER + cdb_used])?;
        let complete = chain.readable.len() >= COMMAND_HEADER as u64 + u64::from(cdb_size);
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            _,
            _,
            _,
            cdb @ ..,
        ] = bytes;
        let unit = Unit::at([a0, a1, a2, a3, a4, a5, a6, a7]);
        Ok(Self {
            unit: complete.then_some(unit),
            tag: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            cdb,
            reply: Reply { head, header, data },
        })
    }
}

/// A request of the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// A task management function.
    Manage { function: u32, unit: Unit, tag: u64 },
    /// Which asynchronous notifications there are, or which are wanted from now on.
    Notifications {
        subscribe: bool,
        unit: Unit,
        events: u32,
    },
    /// Something else, or not all of it.
    Unknown,
}

impl Control {
    /// Reads a request.
    ///
    /// # Errors
    /// When guest RAM is gone.
    pub(super) fn parse(chain: &Chain, memory: &GuestMap) -> Result<Self, RingError> {
        let mut bytes = [0; TMF_LENGTH];
        let length = chain.readable.copy_to(memory, 0, &mut bytes)?;
        let field = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let unit = |at: usize| {
            let mut address = [0; 8];
            address.copy_from_slice(&bytes[at..at + 8]);
            Unit::at(address)
        };
        Ok(match field(0) {
            VIRTIO_SCSI_T_TMF if length == TMF_LENGTH => Self::Manage {
                function: field(4),
                unit: unit(8),
                tag: u64::from(field(16)) | u64::from(field(20)) << 32,
            },
            kind @ (VIRTIO_SCSI_T_AN_QUERY | VIRTIO_SCSI_T_AN_SUBSCRIBE)
                if length >= NOTIFICATION_LENGTH =>
            {
                Self::Notifications {
                    subscribe: kind == VIRTIO_SCSI_T_AN_SUBSCRIBE,
                    unit: unit(4),
                    events: field(12),
                }
            }
            _ => Self::Unknown,
        })
    }
}
