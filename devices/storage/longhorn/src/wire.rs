//! The frames of the data connection between an engine and a replica, or between a client and an engine's `socket` frontend.
//!
//! A frame is a packed header of 26 bytes, little-endian, and then as many bytes of payload as it says; both directions use the same. There is no
//! handshake, no version, no checksum, and no flush. The peer is not trusted: a header that is not one ends the connection.

/// Bytes of a header.
pub const HEADER: usize = 26;

/// The first two bytes of each header.
pub const MAGIC: u16 = 0x1b01;

/// The most bytes of data that an engine asks for or sends at once. A replica takes any number below 4 GiB, and allocates that much
/// before it looks at anything else.
pub const MAX_DATA: u32 = 1 << 20;

/// The most bytes of text in an error that are believed.
pub const MAX_TEXT: u32 = 64 << 10;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A request for `size` bytes at `offset`.
    Read = 0,
    /// A request to write the payload at `offset`.
    Write = 1,
    /// It worked; what was read is the payload.
    Response = 2,
    /// It did not; the payload is a text for people.
    Error = 3,
    /// Beyond the end.
    Eof = 4,
    /// The server is about to close the connection.
    Close = 5,
    /// A request that does nothing.
    Ping = 6,
    /// A request to forget `size` bytes at `offset`.
    Unmap = 7,
    /// There is no space left for a write. Only engines say so; a replica says [`Error`](Self::Error).
    NoSpace = 8,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Response,
            3 => Self::Error,
            4 => Self::Eof,
            5 => Self::Close,
            6 => Self::Ping,
            7 => Self::Unmap,
            8 => Self::NoSpace,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The client's number of the request, which comes back with the answer.
    pub sequence: u32,
    /// What it is.
    pub kind: Kind,
    /// First byte on the volume.
    pub offset: i64,
    /// Bytes of the volume.
    pub size: u32,
    /// Bytes of payload that follow.
    pub payload: u32,
}

/// A header that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It does not begin as one.
    #[error("a frame begins with {0:#06x} instead of {MAGIC:#06x}")]
    Magic(u16),
    /// It is of no known kind.
    #[error("a frame is of the unknown type {0}")]
    Kind(u32),
}

impl Header {
    /// A request without payload.
    #[must_use]
    pub fn request(sequence: u32, kind: Kind, offset: i64, size: u32) -> Self {
        Self {
            sequence,
            kind,
            offset,
            size,
            payload: 0,
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2..6].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[6..10].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[10..18].copy_from_slice(&self.offset.to_le_bytes());
        bytes[18..22].copy_from_slice(&self.size.to_le_bytes());
        bytes[22..26].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    /// The bytes of payload behind a header, also behind one of a type that nobody knows.
    #[must_use]
    pub fn payload_of(bytes: &[u8; HEADER]) -> u32 {
        u32::from_le_bytes([bytes[22], bytes[23], bytes[24], bytes[25]])
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When the bytes are none; nothing that follows on the connection makes sense then. The farewell of Longhorn's replicas has no magic,
    /// and is taken for what it is.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, WireError> {
        let number = |at: usize| {
            let [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_le_bytes([a, b, c, d])
        };
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        let kind = Kind::from_number(number(6));
        if magic != MAGIC && !(magic == 0 && kind == Some(Kind::Close)) {
            return Err(WireError::Magic(magic));
        }
        let offset = u64::from(number(10)) | u64::from(number(14)) << 32;
        Ok(Self {
            sequence: number(2),
            kind: kind.ok_or(WireError::Kind(number(6)))?,
            offset: offset.cast_signed(),
            size: number(18),
            payload: Self::payload_of(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{HEADER, Header, Kind, WireError};

    /// As it was seen between Longhorn's own engine and replica: a write of 4096 bytes at 8192, the seventh request.
    const SEEN: [u8; HEADER] = [
        0x01, 0x1b, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0,
    ];

    #[test]
    fn a_write_as_longhorn_sends_it() {
        let header = Header {
            sequence: 7,
            kind: Kind::Write,
            offset: 8192,
            size: 4096,
            payload: 4096,
        };
        assert_eq!(Header::decode(&SEEN), Ok(header));
        assert_eq!(header.encode(), SEEN);
    }

    #[test]
    fn the_farewell_has_no_magic() {
        let mut bytes = [0; HEADER];
        bytes[6] = 5;
        assert_eq!(Header::decode(&bytes).map(|h| h.kind), Ok(Kind::Close));
        bytes[6] = 2;
        assert_eq!(Header::decode(&bytes), Err(WireError::Magic(0)));
    }

    proptest! {
        #[test]
        fn what_is_decoded_encodes_to_the_same(bytes in prop::array::uniform26(any::<u8>()), kind in 0_u8..12) {
            let mut bytes = bytes;
            bytes[..2].copy_from_slice(&super::MAGIC.to_le_bytes());
            bytes[6..10].copy_from_slice(&[kind, 0, 0, 0]);
            match Header::decode(&bytes) {
                Ok(header) => prop_assert_eq!(header.encode(), bytes),
                Err(error) => prop_assert_eq!(error, WireError::Kind(kind.into())),
            }
        }

        #[test]
        fn anything_may_come(bytes in prop::array::uniform26(any::<u8>())) {
            let _ = Header::decode(&bytes);
        }
    }
}
