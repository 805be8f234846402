//! The messages of the NBD protocol, as bytes: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. All numbers are big-endian.
//!
//! Pure functions on what a server sent, which may be anything. What the lengths in it ask for is the caller's to refuse.

use crate::IoError;

/// The longest string of the protocol, in bytes.
pub(super) const MAX_STRING: usize = 4096;

/// The longest payload of an option reply or an error chunk that is looked at: a string and the numbers around it.
pub(super) const MAX_TEXT_PAYLOAD: u32 = 4096 + 64;

/// The largest payload that every server takes, in bytes, where it says nothing.
pub(super) const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;

/// The greeting: `NBDMAGIC`, `IHAVEOPT`, handshake flags.
pub(super) const GREETING: usize = 18;
/// An option reply without its payload.
pub(super) const OPTION_REPLY: usize = 20;
/// What answers [`EXPORT_NAME`], without the zeros that may follow.
pub(super) const EXPORT_NAME_REPLY: usize = 10;
/// Zeros that follow that unless both sides agreed to leave them out.
pub(super) const EXPORT_NAME_ZEROES: usize = 124;
/// A request without its payload.
pub(super) const REQUEST: usize = 28;
/// A simple reply without its payload.
pub(super) const SIMPLE_REPLY: usize = 16;
/// A chunk of a structured reply without its payload.
pub(super) const CHUNK: usize = 20;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, and the client's answer.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// Options.
pub(super) const EXPORT_NAME: u32 = 1;
pub(super) const ABORT: u32 = 2;
pub(super) const STARTTLS: u32 = 5;
pub(super) const GO: u32 = 7;
pub(super) const STRUCTURED_REPLY: u32 = 8;

/// Kinds of option replies.
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERROR: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR + 1;
pub(super) const REP_ERR_TLS_REQD: u32 = REP_ERROR + 5;
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERROR + 6;
pub(super) const REP_ERR_SHUTDOWN: u32 = REP_ERROR + 7;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1 << 0;
pub(super) const READ_ONLY: u16 = 1 << 1;
pub(super) const SEND_FLUSH: u16 = 1 << 2;
pub(super) const SEND_TRIM: u16 = 1 << 5;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

/// Commands.
pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

/// Command flag: no hole where zeros are written.
pub(super) const FLAG_NO_HOLE: u16 = 1 << 1;

const CHUNK_DONE: u16 = 1 << 0;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_ERROR: u16 = 1 << 15;

const EPERM: u32 = 1;
const ENOSPC: u32 = 28;
const ENOMEM: u32 = 12;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

/// What a server did that the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server breaks the NBD protocol: {0}")]
pub(super) struct Violation(pub &'static str);

impl From<Violation> for std::io::Error {
    fn from(violation: Violation) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, violation)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// The handshake flags in a greeting.
pub(super) fn greeting(bytes: &[u8; GREETING]) -> Result<u16, Violation> {
    if u64_at(bytes, 0) != Some(NBD_MAGIC) {
        return Err(Violation("it does not greet as an NBD server does"));
    }
    match u64_at(bytes, 8) {
        Some(OPTION_MAGIC) => {}
        Some(OLDSTYLE_MAGIC) => {
            return Err(Violation(
                "it speaks only the oldstyle negotiation, which was given up in 2015",
            ));
        }
        _ => return Err(Violation("it greets without options")),
    }
    let flags = u16_at(bytes, 16).unwrap_or(0);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Violation("it does not do fixed newstyle negotiation"));
    }
    Ok(flags)
}

/// An option as it is sent. The data is ours, and short.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of [`GO`]: the export's name, and that its block sizes are asked for and will be kept to.
pub(super) fn go(export: &str) -> Vec<u8> {
    let length = u32::try_from(export.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(8 + export.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(export.as_bytes());
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(INFO_BLOCK_SIZE.to_be_bytes());
    bytes
}

/// The header of an option reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionReply {
    /// One of the `REP_*`, or unknown.
    pub kind: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

/// The header of a reply to `option`.
pub(super) fn option_reply(
    option: u32,
    bytes: &[u8; OPTION_REPLY],
) -> Result<OptionReply, Violation> {
    if u64_at(bytes, 0) != Some(OPTION_REPLY_MAGIC) {
        return Err(Violation("an option reply does not begin as one"));
    }
    if u32_at(bytes, 8) != Some(option) {
        return Err(Violation("it replies to an option that was not sent"));
    }
    let kind = u32_at(bytes, 12).unwrap_or(0);
    let length = u32_at(bytes, 16).unwrap_or(0);
    if length > MAX_TEXT_PAYLOAD {
        return Err(Violation("an option reply is too long"));
    }
    Ok(OptionReply { kind, length })
}

/// Size constraints that a server announces, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockSizes {
    pub minimum: u32,
    pub preferred: u32,
    pub max_payload: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            max_payload: DEFAULT_MAX_PAYLOAD,
        }
    }
}

/// The payload of a [`REP_INFO`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Info {
    /// Size in bytes, and transmission flags.
    Export(u64, u16),
    /// Size constraints, as they must be to make sense.
    BlockSizes(BlockSizes),
    /// Something that was not asked for.
    Other,
}

/// Understands the payload of a [`REP_INFO`].
pub(super) fn info(bytes: &[u8]) -> Result<Info, Violation> {
    let kind = u16_at(bytes, 0).ok_or(Violation("an information has no type"))?;
    match (kind, bytes.len()) {
        (INFO_EXPORT, 12) => {
            let size = u64_at(bytes, 2).unwrap_or(0);
            Ok(Info::Export(size, u16_at(bytes, 10).unwrap_or(0)))
        }
        (INFO_BLOCK_SIZE, 14) => {
            let number = |at| u32_at(bytes, at).unwrap_or(0);
            let sizes = BlockSizes {
                minimum: number(2),
                preferred: number(6),
                max_payload: number(10),
            };
            let sane = sizes.minimum.is_power_of_two()
                && sizes.minimum <= 1 << 16
                && sizes.preferred.is_power_of_two()
                && sizes.preferred >= sizes.minimum.max(512)
                && sizes.max_payload >= sizes.preferred;
            if sane {
                Ok(Info::BlockSizes(sizes))
            } else {
                Err(Violation("its block sizes make no sense"))
            }
        }
        (INFO_EXPORT | INFO_BLOCK_SIZE, _) => Err(Violation("an information has a wrong length")),
        _ => Ok(Info::Other),
    }
}

/// Size in bytes and transmission flags of what answers [`EXPORT_NAME`].
pub(super) fn export_name_reply(bytes: &[u8; EXPORT_NAME_REPLY]) -> (u64, u16) {
    let size = u64_at(bytes, 0).unwrap_or(0);
    (size, u16_at(bytes, 8).unwrap_or(0))
}

/// A request's header.
pub(super) fn request(
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The cookie in a request's header.
pub(super) fn cookie_of_request(header: &[u8]) -> Option<u64> {
    let bytes = header.get(8..)?.first_chunk().copied()?;
    Some(u64::from_be_bytes(bytes))
}

/// The header of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// The whole of it, but for what was read.
    Simple {
        /// The request's.
        cookie: u64,
        /// How it ended.
        result: Result<(), ServerError>,
    },
    /// One of several messages.
    Chunk {
        /// The request's.
        cookie: u64,
        /// Whether it is the last.
        done: bool,
        /// What it brings.
        content: Content,
    },
}

/// What a chunk brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing.
    None,
    /// An offset on the disk, and so many bytes that are there.
    Data(u64, u32),
    /// An offset on the disk, and of how many zeros.
    Hole(u64, u32),
    /// What went wrong, and so many bytes more about it.
    Error(ServerError, u32),
}

/// The errors a server answers with, as far as they differ for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerError {
    /// The request's.
    Io(IoError),
    /// The server goes down: the request was not carried out.
    Shutdown,
}

/// An error number, which is not 0.
fn error(number: u32) -> ServerError {
    ServerError::Io(match number {
        EPERM => IoError::Os(libc::EPERM),
        ENOMEM => IoError::Os(libc::ENOMEM),
        ENOSPC => IoError::Os(libc::ENOSPC),
        ENOTSUP => IoError::Unsupported,
        ESHUTDOWN => return ServerError::Shutdown,
        // EINVAL and EOVERFLOW, too: what was sent was checked, so it is not the guest who is wrong.
        _ => IoError::Os(libc::EIO),
    })
}

/// The header of the reply that `bytes` begin with, and its length in bytes with what of the payload is in it; `None` as long as it is not there
/// as a whole.
pub(super) fn reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Violation> {
    let Some(magic) = u32_at(bytes, 0) else {
        return Ok(None);
    };
    match magic {
        SIMPLE_REPLY_MAGIC if bytes.len() < SIMPLE_REPLY => Ok(None),
        SIMPLE_REPLY_MAGIC => {
            let number = u32_at(bytes, 4).unwrap_or(0);
            let result = if number == 0 {
                Ok(())
            } else {
                Err(error(number))
            };
            let cookie = u64_at(bytes, 8).unwrap_or(0);
            Ok(Some((Reply::Simple { cookie, result }, SIMPLE_REPLY)))
        }
        CHUNK_MAGIC => chunk(bytes),
        _ => Err(Violation("a reply does not begin as one")),
    }
}

fn chunk(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Violation> {
    let (Some(flags), Some(kind), Some(cookie), Some(length)) = (
        u16_at(bytes, 4),
        u16_at(bytes, 6),
        u64_at(bytes, 8),
        u32_at(bytes, 16),
    ) else {
        return Ok(None);
    };
    let done = flags & CHUNK_DONE != 0;
    let (content, fixed) = match kind {
        CHUNK_NONE if length != 0 || !done => {
            return Err(Violation("an empty chunk is not empty, or not the last"));
        }
        CHUNK_NONE => (Content::None, 0),
        CHUNK_OFFSET_DATA if length <= 8 => return Err(Violation("a chunk has no data")),
        CHUNK_OFFSET_DATA => match u64_at(bytes, CHUNK) {
            Some(offset) => (Content::Data(offset, length - 8), 8),
            None => return Ok(None),
        },
        CHUNK_OFFSET_HOLE if length != 12 => return Err(Violation("a hole has a wrong length")),
        CHUNK_OFFSET_HOLE => match (u64_at(bytes, CHUNK), u32_at(bytes, CHUNK + 8)) {
            (Some(_), Some(0)) => return Err(Violation("a hole has no size")),
            (Some(offset), Some(size)) => (Content::Hole(offset, size), 12),
            _ => return Ok(None),
        },
        kind if kind & CHUNK_ERROR == 0 => {
            return Err(Violation("a chunk is of a kind that was not negotiated"));
        }
        _ if !(6..=MAX_TEXT_PAYLOAD).contains(&length) => {
            return Err(Violation("an error has a wrong length"));
        }
        _ => match (u32_at(bytes, CHUNK), u16_at(bytes, CHUNK + 4)) {
            (Some(0), Some(_)) => return Err(Violation("an error is none")),
            (Some(_), Some(text)) if u32::from(text) > length - 6 => {
                return Err(Violation("an error's text is longer than the error"));
            }
            (Some(number), Some(_)) => (Content::Error(error(number), length - 6), 6),
            _ => return Ok(None),
        },
    };
    let reply = Reply::Chunk {
        cookie,
        done,
        content,
    };
    Ok(Some((reply, CHUNK + fixed)))
}

/// What a server says to a human being, fit for a log: at most 200 characters, none of them a control character.
pub(super) fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(200).collect::<String>().trim().to_owned()
}
