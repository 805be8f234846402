//! Sense data (SPC-4 §4.5): why a command did not end well.

/// Bytes of sense data in the fixed format, the only one this drive has.
pub(crate) const LENGTH: usize = 18;

/// Sense keys.
const NOT_READY: u8 = 2;
const MEDIUM_ERROR: u8 = 3;
const ILLEGAL_REQUEST: u8 = 5;
const UNIT_ATTENTION: u8 = 6;

/// A sense key with its additional code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sense {
    key: u8,
    code: u8,
    qualifier: u8,
    /// The block that could not be read.
    block: Option<u32>,
}

impl Sense {
    /// Nothing to tell.
    pub(super) const NONE: Self = Self::new(0, 0, 0);
    /// The tray is closed and empty.
    pub(super) const NO_MEDIUM: Self = Self::new(NOT_READY, 0x3a, 1);
    /// The tray is open, whatever is in it.
    pub(super) const TRAY_OPEN: Self = Self::new(NOT_READY, 0x3a, 2);
    /// There is no such command.
    pub(super) const NO_COMMAND: Self = Self::new(ILLEGAL_REQUEST, 0x20, 0);
    /// A block that the medium does not have.
    pub(super) const OUT_OF_RANGE: Self = Self::new(ILLEGAL_REQUEST, 0x21, 0);
    /// A field of the command that cannot be so.
    pub(super) const INVALID_FIELD: Self = Self::new(ILLEGAL_REQUEST, 0x24, 0);
    /// There is no such logical unit.
    pub(crate) const NO_UNIT: Self = Self::new(ILLEGAL_REQUEST, 0x25, 0);
    /// Mode pages cannot be saved.
    pub(super) const NOT_SAVED: Self = Self::new(ILLEGAL_REQUEST, 0x39, 0);
    /// The medium is locked into the drive.
    pub(super) const LOCKED: Self = Self::new(ILLEGAL_REQUEST, 0x53, 2);
    /// The drive has been reset.
    pub(super) const RESET: Self = Self::new(UNIT_ATTENTION, 0x29, 0);
    /// There may be another medium than before.
    pub(super) const INSERTED: Self = Self::new(UNIT_ATTENTION, 0x28, 0);
    /// The medium is gone.
    pub(crate) const REMOVED: Self = Self::new(UNIT_ATTENTION, 0x3a, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code,
            qualifier,
            block: None,
        }
    }

    /// The host could not read what this block is in.
    pub(crate) fn unreadable(block: u64) -> Self {
        Self {
            block: u32::try_from(block).ok(),
            ..Self::new(MEDIUM_ERROR, 0x11, 0)
        }
    }

    /// The fixed format.
    pub(crate) fn bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        // Current, and valid where it tells a block.
        bytes[0] = 0x70 | u8::from(self.block.is_some()) << 7;
        bytes[2] = self.key;
        bytes[3..7].copy_from_slice(&self.block.unwrap_or(0).to_be_bytes());
        bytes[7] = 10; // Bytes that follow.
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}
