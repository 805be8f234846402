//! The parts of the client that look at what a server sent, for fuzzing: negotiation and replies, on bytes that are there from the beginning.
//!
//! Whatever the bytes are, nothing is answered twice or with data from beyond what was asked; that is asserted here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use super::connect::Connected;
use super::connection::{Asked, Connection, Ledger};
use super::handshake::{self, Export};
use super::protocol::{self, BlockSizes};
use crate::IoError;

/// What a server sends, whatever it is told.
struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Negotiates with a server that sends these bytes. Whether it came to a disk.
#[must_use]
pub fn negotiate(bytes: &[u8]) -> bool {
    let mut stream = Script(Cursor::new(bytes));
    let Ok(no_zeroes) = handshake::greet(&mut stream) else {
        return false;
    };
    let Ok(export) = handshake::enter(&mut stream, "export", no_zeroes) else {
        return false;
    };
    let blocks = export.blocks;
    let ordered = blocks.minimum <= blocks.preferred && blocks.preferred <= blocks.max_payload;
    assert!(blocks.minimum > 0 && ordered, "{blocks:?}");
    let uri = "nbd+unix:///export?socket=/s".parse();
    let Ok(uri) = uri else {
        return false;
    };
    let examined = super::examine(&export, &super::NbdOptions::new(uri));
    if let Ok((capabilities, limits)) = &examined {
        let block = capabilities.logical_block_size;
        assert!(block.is_power_of_two() && (512..=4096).contains(&block));
        assert!(limits.payload > 0 && limits.payload.is_multiple_of(block));
    }
    examined.is_ok()
}

/// Bytes that come in pieces of a length: each read gives one, and there is nothing to poll.
struct Pieces {
    bytes: Cursor<Vec<u8>>,
    piece: usize,
    fd: File,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.piece);
        self.bytes.read(&mut buffer[..length])
    }
}

impl Write for Pieces {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Pieces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What was asked, and the bytes that came.
#[derive(Default)]
struct Book {
    asked: BTreeMap<u64, Asked>,
    filled: BTreeMap<u64, Vec<bool>>,
    answers: usize,
}

impl Book {
    fn fill(&mut self, cookie: u64, at: u32, length: usize) {
        let filled = self.filled.get_mut(&cookie).expect("a read on its way");
        let at = usize::try_from(at).expect("as many as asked for");
        for byte in &mut filled[at..at + length] {
            assert!(!std::mem::replace(byte, true), "data twice");
        }
    }
}

impl Ledger for Book {
    fn asked(&mut self, cookie: u64) -> Option<&mut Asked> {
        self.asked.get_mut(&cookie)
    }

    fn data(&mut self, cookie: u64, at: u32, bytes: &[u8]) {
        self.fill(cookie, at, bytes.len());
    }

    fn zeros(&mut self, cookie: u64, at: u32, length: u32) {
        self.fill(cookie, at, usize::try_from(length).expect("memory"));
    }

    fn answered(&mut self, cookie: u64, result: Result<(), IoError>) {
        self.asked.remove(&cookie).expect("answered once");
        let filled = self.filled.remove(&cookie);
        if result.is_ok() {
            let complete = filled.is_none_or(|filled| filled.into_iter().all(|byte| byte));
            assert!(complete, "a read that lacks data is well");
        }
        self.answers += 1;
    }
}

/// Bytes of the reads with the cookies 1 to 4, from [`OFFSET`] on; 5 is a write, 6 a flush, 7 a trim.
pub const READS: [u32; 4] = [1, 512, 4096, 9000];

/// Where all requests begin on the disk.
pub const OFFSET: u64 = 65_536;

/// Receives these bytes as replies to some requests, in pieces of `piece` bytes. Returns how many were answered.
///
/// # Panics
/// When something is answered that must not be, or the host gives no descriptor.
#[must_use]
pub fn receive(bytes: &[u8], structured: bool, piece: usize) -> usize {
    let mut book = Book::default();
    for (cookie, length) in (1..).zip(READS) {
        let asked = Asked::new(protocol::CMD_READ, OFFSET, length);
        book.asked.insert(cookie, asked);
        let length = usize::try_from(length).expect("small");
        book.filled.insert(cookie, vec![false; length]);
    }
    let others = [protocol::CMD_WRITE, protocol::CMD_FLUSH, protocol::CMD_TRIM];
    for (cookie, command) in (5..).zip(others) {
        book.asked.insert(cookie, Asked::new(command, OFFSET, 512));
    }
    let transport = Pieces {
        bytes: Cursor::new(bytes.to_vec()),
        piece: piece.max(1),
        fd: File::open("/dev/null").expect("a descriptor"),
    };
    let export = Export {
        size: 1 << 20,
        flags: 0,
        blocks: BlockSizes::default(),
        structured,
    };
    let (mut connection, _) = Connection::new(Connected {
        transport: Box::new(transport),
        export,
    });
    // Each call takes what one read gives, at least; the end is an error.
    let calls = bytes.len() + 1;
    let ended = (0..calls).any(|_| connection.receive(&mut book).is_err());
    assert!(ended, "the connection ends with the bytes");
    book.answers
}

#[cfg(test)]
mod tests {
    use super::{OFFSET, negotiate, receive};

    #[test]
    fn what_a_server_should_send_is_understood() {
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        let reply = |option: u32, kind: u32, payload: &[u8]| {
            let length = u32::try_from(payload.len()).unwrap();
            let numbers = [option, kind, length].map(u32::to_be_bytes).concat();
            [
                &0x0003_e889_0455_65a9_u64.to_be_bytes(),
                &numbers[..],
                payload,
            ]
            .concat()
        };
        bytes.extend(reply(8, 1, &[]));
        let info = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[0, 1]].concat();
        bytes.extend(reply(7, 3, &info));
        bytes.extend(reply(7, 1, &[]));
        assert!(negotiate(&bytes));
        assert!(!negotiate(&bytes[..bytes.len() - 1]));
    }

    #[test]
    fn replies_are_taken_however_they_are_cut() {
        let chunk = |flags: u16, kind: u16, cookie: u64, payload: &[u8]| {
            let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
            bytes.extend([flags, kind].map(u16::to_be_bytes).concat());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
            [bytes, payload.to_vec()].concat()
        };
        let data = [&OFFSET.to_be_bytes()[..], &[7; 512]].concat();
        let structured = [chunk(1, 1, 2, &data), chunk(1, 0, 6, &[])].concat();
        let simple = [
            &0x6744_6698_u32.to_be_bytes()[..],
            &[0; 4],
            &5_u64.to_be_bytes(),
        ]
        .concat();
        for piece in [1, 3, 64, 4096] {
            assert_eq!(receive(&structured, true, piece), 2);
            assert_eq!(receive(&simple, false, piece), 1);
            // Not agreed upon.
            assert_eq!(receive(&structured, false, piece), 0);
        }
    }
}
