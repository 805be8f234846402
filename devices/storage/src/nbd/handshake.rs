//! Negotiation, up to the first request. It blocks; the stream has a deadline. What the server sends may be anything, and at most
//! [`MAX_REPLIES`] replies of a few KiB are listened to.

use std::io::{Read, Write};

use super::error::{Failure, NbdErrorKind};
use super::protocol::{self, BlockSizes, Info, OptionReply, Violation};

/// The most replies to one option.
const MAX_REPLIES: usize = 32;

/// What was agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    /// In bytes; may still be anything.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Power of two each, and in order.
    pub blocks: BlockSizes,
    /// Whether replies are structured.
    pub structured: bool,
}

impl Export {
    /// Whether it is the same export, as far as that can be told. How replies look is each connection's own business.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.size, self.flags, self.blocks) == (other.size, other.flags, other.blocks)
    }

    /// Whether the server says that it does something.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & protocol::HAS_FLAGS != 0 && self.flags & flag != 0
    }
}

/// Takes the greeting and answers it. Whether [`enter`] is to expect no zeros.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> Result<bool, Failure> {
    let mut greeting = [0; protocol::GREETING];
    stream.read_exact(&mut greeting)?;
    let flags = protocol::greeting(&greeting)?;
    let answer = flags & (protocol::FIXED_NEWSTYLE | protocol::NO_ZEROES);
    stream.write_all(&u32::from(answer).to_be_bytes())?;
    stream.flush()?;
    Ok(answer & protocol::NO_ZEROES != 0)
}

/// Asks for TLS, which is the next thing to happen then.
pub(super) fn start_tls(stream: &mut (impl Read + Write)) -> Result<(), Failure> {
    ask(stream, protocol::STARTTLS, &[])?;
    match next(stream, protocol::STARTTLS)? {
        (protocol::REP_ACK, _) => Ok(()),
        (protocol::REP_INFO, _) => Err(Violation("it answers TLS with information").into()),
        (_, text) => {
            let text = protocol::text(&text);
            let source = std::io::Error::other(text);
            Err(Failure::because(NbdErrorKind::NoTls, source))
        }
    }
}

/// Enters the transmission phase of an export.
pub(super) fn enter(
    stream: &mut (impl Read + Write),
    name: &str,
    no_zeroes: bool,
) -> Result<Export, Failure> {
    let structured = structured_replies(stream)?;
    ask(stream, protocol::GO, &protocol::go(name))?;
    let mut export = None;
    let mut blocks = BlockSizes::default();
    for _ in 0..MAX_REPLIES {
        match next(stream, protocol::GO)? {
            (protocol::REP_INFO, payload) => match protocol::info(&payload)? {
                Info::Export(size, flags) => export = Some((size, flags)),
                Info::BlockSizes(sizes) => blocks = sizes,
                Info::Other => {}
            },
            (protocol::REP_ACK, _) => {
                let (size, flags) = export.ok_or(Violation("it does not say how large it is"))?;
                return Ok(Export {
                    size,
                    flags,
                    blocks,
                    structured,
                });
            }
            (protocol::REP_ERR_UNSUP, _) => {
                return enter_old(stream, name, no_zeroes, structured);
            }
            (kind, text) => return Err(refusal(stream, kind, &text)),
        }
    }
    Err(Violation("it informs without end").into())
}

/// Enters it in the way that cannot be refused with a reason, for servers that know no other.
fn enter_old(
    stream: &mut (impl Read + Write),
    name: &str,
    no_zeroes: bool,
    structured: bool,
) -> Result<Export, Failure> {
    ask(stream, protocol::EXPORT_NAME, name.as_bytes())?;
    let mut reply = [0; protocol::EXPORT_NAME_REPLY];
    stream.read_exact(&mut reply).map_err(|error| {
        let refused = NbdErrorKind::Refused {
            unknown: true,
            text: String::new(),
        };
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => refused.into(),
            _ => Failure::from(error),
        }
    })?;
    if !no_zeroes {
        stream.read_exact(&mut [0; protocol::EXPORT_NAME_ZEROES])?;
    }
    let (size, flags) = protocol::export_name_reply(&reply);
    Ok(Export {
        size,
        flags,
        blocks: BlockSizes::default(),
        structured,
    })
}

/// Asks for structured replies; a server may well do without.
fn structured_replies(stream: &mut (impl Read + Write)) -> Result<bool, Failure> {
    ask(stream, protocol::STRUCTURED_REPLY, &[])?;
    match next(stream, protocol::STRUCTURED_REPLY)? {
        (protocol::REP_ACK, _) => Ok(true),
        (protocol::REP_INFO, _) => Err(Violation("it informs of what was not asked").into()),
        (kind @ (protocol::REP_ERR_TLS_REQD | protocol::REP_ERR_SHUTDOWN), text) => {
            Err(refusal(stream, kind, &text))
        }
        _ => Ok(false),
    }
}

fn ask(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), Failure> {
    stream.write_all(&protocol::option(option, data))?;
    Ok(stream.flush()?)
}

/// The next reply: an acknowledgement, information, or an error.
fn next(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), Failure> {
    let mut header = [0; protocol::OPTION_REPLY];
    stream.read_exact(&mut header)?;
    let OptionReply { kind, length } = protocol::option_reply(option, &header)?;
    // At most MAX_TEXT_PAYLOAD.
    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut payload)?;
    match kind {
        protocol::REP_ACK | protocol::REP_INFO => Ok((kind, payload)),
        error if error & protocol::REP_ERROR != 0 => Ok((kind, payload)),
        _ => Err(Violation("an option reply is of a kind that was not asked for").into()),
    }
}

/// What the server's refusal means. It is told that we leave, and may not hear it.
fn refusal(stream: &mut impl Write, kind: u32, text: &[u8]) -> Failure {
    let _ = ask(stream, protocol::ABORT, &[]);
    match kind {
        protocol::REP_ERR_TLS_REQD => NbdErrorKind::WantsTls.into(),
        _ => NbdErrorKind::Refused {
            unknown: kind == protocol::REP_ERR_UNKNOWN,
            text: protocol::text(text),
        }
        .into(),
    }
}
