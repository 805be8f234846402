//! Servers that break the protocol: each is found out, and nothing waits for it for ever.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::server::{
    ALL, Manner, Server, answer, chunk, greet, negotiate, option, request, simple,
};
use super::{chain, options, read, write};
use crate::nbd::error::Failure;
use crate::nbd::protocol::{
    self, GO, HAS_FLAGS, READ_ONLY, REP_ACK, REP_ERROR, REP_INFO, STRUCTURED_REPLY,
};
use crate::nbd::{NbdDisk, NbdErrorKind, handshake};
use crate::{Disk, IoError};

/// Why an export cannot be opened.
fn refusal(server: &Server) -> (NbdErrorKind, String) {
    let mut quick = options(&server.uri());
    quick.connect_timeout = Duration::from_millis(500);
    let start = Instant::now();
    let error = NbdDisk::open(quick).expect_err("it is refused");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
    let text = chain(&error);
    (error.kind, text)
}

fn refused(
    script: impl Fn(&mut UnixStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> (NbdErrorKind, String) {
    let server = Server::scripted(move |mut stream| {
        let _ = script(&mut stream);
        // The client hangs up first.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    refusal(&server)
}

#[test]
fn handshakes_of_nonsense_are_refused() {
    let (kind, text) = refused(|stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    assert_eq!(kind, NbdErrorKind::Protocol, "{text}");
    let (_, text) = refused(|stream| stream.write_all(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0"));
    assert!(text.contains("oldstyle"), "{text}");
    let (_, text) = refused(|stream| stream.write_all(b"NBDMAGICIHAVEOPT\0\0"));
    assert!(text.contains("fixed newstyle"), "{text}");
    let (kind, text) = refused(|stream| stream.write_all(b"NBDMAGIC"));
    assert_eq!(kind, NbdErrorKind::Timeout, "{text}");
    let (kind, text) = refused(|stream| stream.shutdown(std::net::Shutdown::Both));
    assert_eq!(kind, NbdErrorKind::Protocol, "{text}");
    // A byte now and then does not move the deadline.
    let (kind, text) = refused(|stream| {
        for byte in b"NBDMAGICIHAVEOPT\0\x03" {
            stream.write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    });
    assert_eq!(kind, NbdErrorKind::Timeout, "{text}");
}

#[test]
fn options_without_end_are_refused() {
    let (_, text) = refused(|stream| {
        greet(stream)?;
        option(stream)?;
        answer(stream, STRUCTURED_REPLY, REP_ACK, &[])?;
        option(stream)?;
        loop {
            answer(stream, GO, REP_INFO, &[0, 2, b'x'])?;
        }
    });
    assert!(text.contains("without end"), "{text}");
    for (reply, what) in [
        (vec![0; 20], "does not begin as one"),
        (
            [
                &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                &[0, 0, 0, 8],
                &[0, 0, 0, 1],
                &[0xff; 4],
            ]
            .concat(),
            "too long",
        ),
        (
            [
                &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                &[0, 0, 0, 7],
                &[0, 0, 0, 1],
                &[0; 4],
            ]
            .concat(),
            "not sent",
        ),
        (
            [
                &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                &[0, 0, 0, 8],
                &[0, 0, 0, 9],
                &[0; 4],
            ]
            .concat(),
            "of a kind",
        ),
    ] {
        let (kind, text) = refused(move |stream| {
            greet(stream)?;
            option(stream)?;
            stream.write_all(&reply)
        });
        assert_eq!(kind, NbdErrorKind::Protocol);
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn a_server_says_why_it_refuses() {
    let refuse = |kind: u32| {
        refused(move |stream| {
            greet(stream)?;
            option(stream)?;
            answer(stream, STRUCTURED_REPLY, REP_ERROR + 1, &[])?;
            option(stream)?;
            answer(stream, GO, REP_ERROR + kind, b"go\x1b[31m away")
        })
    };
    let text = "go [31m away".to_owned();
    assert_eq!(
        refuse(6).0,
        NbdErrorKind::Refused {
            unknown: true,
            text: text.clone()
        }
    );
    assert_eq!(
        refuse(7).0,
        NbdErrorKind::Refused {
            unknown: false,
            text
        }
    );
    assert_eq!(refuse(5).0, NbdErrorKind::WantsTls);
}

#[test]
fn exports_that_cannot_be_disks_are_refused() {
    let with = |change: &dyn Fn(&mut Manner)| {
        let mut manner = Manner::default();
        change(&mut manner);
        // Nothing is to be allocated for what is only said.
        let said = manner.clone();
        refused(move |stream| negotiate(stream, &said)).0
    };
    assert_eq!(with(&|m| m.size = 0), NbdErrorKind::Size(0));
    assert_eq!(with(&|m| m.size = 1 << 63), NbdErrorKind::Size(1 << 63));
    assert_eq!(
        with(&|m| m.size = 1000),
        NbdErrorKind::Unaligned {
            size: 1000,
            block: 512
        }
    );
    assert_eq!(with(&|m| m.flags |= READ_ONLY), NbdErrorKind::ReadOnly);
    let block = |minimum, max_payload| NbdErrorKind::BlockSize {
        asked: None,
        minimum,
        max_payload,
    };
    assert_eq!(
        with(&|m| m.blocks = Some([8192, 8192, 1 << 20])),
        block(8192, 1 << 20)
    );
    for nonsense in [
        [3, 4096, 1 << 20],
        [0, 4096, 1 << 20],
        [4096, 512, 1 << 20],
        [1, 4096, 512],
        [1 << 17, 1 << 17, 1 << 20],
    ] {
        assert_eq!(
            with(&|m| m.blocks = Some(nonsense)),
            NbdErrorKind::Protocol,
            "{nonsense:?}"
        );
    }
    let server = Server::scripted(|mut stream| {
        let _ = negotiate(
            &mut stream,
            &Manner {
                blocks: Some([1024, 4096, 1 << 20]),
                flags: ALL | READ_ONLY,
                ..Manner::default()
            },
        );
    });
    let mut asked = options(&server.uri());
    asked.read_only = true;
    for (size, good) in [
        (512, false),
        (1024, true),
        (4096, true),
        (8192, false),
        (3000, false),
    ] {
        asked.block_size = Some(size);
        assert_eq!(NbdDisk::open(asked.clone()).is_ok(), good, "{size}");
    }
}

/// A server that answers the first read with these bytes, made from the cookie, and later connections as it should.
fn once(structured: bool, reply: fn(u64) -> Vec<u8>) -> Server {
    let connections = AtomicUsize::new(0);
    Server::scripted(move |mut stream| {
        let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        let manner = Manner {
            structured,
            ..Manner::default()
        };
        if negotiate(&mut stream, &manner).is_err() {
            return;
        }
        while let Ok((command, _, cookie, offset, length, _)) = request(&mut stream) {
            let good = match (command, structured) {
                (protocol::CMD_READ, true) => {
                    let mut payload = offset.to_be_bytes().to_vec();
                    payload.extend(vec![7; length as usize]);
                    chunk(cookie, true, 1, &payload)
                }
                (protocol::CMD_READ, false) => {
                    [simple(cookie, 0), vec![7; length as usize]].concat()
                }
                _ => simple(cookie, 0),
            };
            let bytes = if first && command == protocol::CMD_READ {
                reply(cookie)
            } else {
                good
            };
            if stream.write_all(&bytes).is_err() {
                return;
            }
        }
    })
}

/// What is wrong with a reply, and the reply to a read of 512 bytes at 512.
type Misfit = (&'static str, fn(u64) -> Vec<u8>);

fn data(cookie: u64, done: bool, offset: u64, length: usize) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &vec![9; length]].concat();
    chunk(cookie, done, 1, &payload)
}

fn hole(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    chunk(cookie, false, 2, &payload)
}

#[test]
fn replies_that_do_not_fit_end_the_connection() {
    let structured: [Misfit; 18] = [
        ("garbage", |_| vec![0xaa; 64]),
        ("wrong cookie", |cookie| data(cookie + 1, true, 512, 512)),
        ("simple reply to a read", |cookie| simple(cookie, 0)),
        ("nothing", |cookie| chunk(cookie, true, 0, &[])),
        ("not the end", |cookie| chunk(cookie, false, 0, &[])),
        ("not empty", |cookie| chunk(cookie, true, 0, &[1])),
        ("too little", |cookie| data(cookie, true, 512, 511)),
        ("too much", |cookie| data(cookie, true, 512, 513)),
        ("before", |cookie| data(cookie, true, 511, 512)),
        ("far away", |cookie| data(cookie, true, u64::MAX, 512)),
        ("twice", |cookie| {
            [data(cookie, false, 512, 256), data(cookie, true, 700, 324)].concat()
        }),
        ("a hole twice", |cookie| {
            [hole(cookie, 512, 100), hole(cookie, 611, 413)].concat()
        }),
        ("an empty hole", |cookie| hole(cookie, 512, 0)),
        ("a hole without end", |cookie| hole(cookie, 512, u32::MAX)),
        ("no data", |cookie| chunk(cookie, true, 1, &[0; 8])),
        ("unknown", |cookie| chunk(cookie, true, 3, &[0; 8])),
        ("status", |cookie| chunk(cookie, true, 5, &[0; 12])),
        ("errors without end", |cookie| {
            let error = chunk(
                cookie,
                false,
                1 << 15 | 2,
                &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
            );
            error.repeat(65)
        }),
    ];
    let errors: [Misfit; 4] = [
        ("no error", |cookie| {
            chunk(cookie, true, 1 << 15 | 1, &[0; 6])
        }),
        ("a short error", |cookie| {
            chunk(cookie, true, 1 << 15 | 1, &[0, 0, 0, 5])
        }),
        ("a long error", |cookie| {
            chunk(cookie, true, 1 << 15 | 1, &[1; 1 << 16])
        }),
        ("text beyond its end", |cookie| {
            chunk(cookie, true, 1 << 15 | 1, &[0, 0, 0, 5, 0, 9, b'x'])
        }),
    ];
    let plain: [Misfit; 3] = [
        ("structured", |cookie| data(cookie, true, 512, 512)),
        ("wrong cookie", |cookie| simple(!cookie, 0)),
        ("twice", |cookie| {
            [
                simple(cookie, 0),
                vec![9; 512],
                simple(cookie, 0),
                vec![9; 512],
            ]
            .concat()
        }),
    ];
    let structured = structured
        .into_iter()
        .chain(errors)
        .map(|(what, reply)| (true, what, reply));
    let plain = plain.into_iter().map(|(what, reply)| (false, what, reply));
    for (is_structured, what, reply) in structured.chain(plain) {
        let server = once(is_structured, reply);
        let disk = super::open(&options(&server.uri()));
        let mut queue = disk.open_queue(4).unwrap();
        let bytes = read(queue.as_mut(), 512, 512).unwrap();
        // "Twice" is found out by the second reply only.
        assert!(
            bytes == [7; 512] || what == "twice" && bytes == [9; 512],
            "{what}"
        );
        assert_eq!(read(queue.as_mut(), 512, 512), Ok(vec![7; 512]), "{what}");
        let connections = server.state.lock().unwrap().connections;
        assert_eq!(connections, 2, "{what}");
    }
}

#[test]
fn errors_may_have_texts_and_places() {
    let replies: [fn(u64) -> Vec<u8>; 4] = [
        |cookie| {
            chunk(
                cookie,
                true,
                1 << 15 | 1,
                &[&[0, 0, 0, 28, 16, 0][..], &[b'x'; 4096]].concat(),
            )
        },
        |cookie| {
            chunk(
                cookie,
                true,
                1 << 15 | 2,
                &[0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
            )
        },
        |cookie| {
            chunk(
                cookie,
                true,
                1 << 15 | 999,
                &[0, 0, 0, 28, 0, 1, b'x', 1, 2, 3],
            )
        },
        |cookie| {
            let error = chunk(cookie, false, 1 << 15 | 1, &[0, 0, 0, 28, 0, 0]);
            [
                data(cookie, false, 512, 100),
                error,
                chunk(cookie, true, 0, &[]),
            ]
            .concat()
        },
    ];
    for reply in replies {
        let server = once(true, reply);
        let disk = super::open(&options(&server.uri()));
        let mut queue = disk.open_queue(4).unwrap();
        assert_eq!(
            read(queue.as_mut(), 512, 512),
            Err(IoError::Os(libc::ENOSPC))
        );
        assert_eq!(server.state.lock().unwrap().connections, 1);
    }
}

#[test]
fn a_server_that_never_answers_a_request_is_given_up() {
    // It answers nothing, over and over.
    let server = Server::scripted(|mut stream| {
        let _ = negotiate(&mut stream, &Manner::default());
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let mut quick = options(&server.uri());
    quick.request_timeout = Duration::from_millis(100);
    quick.reconnect_deadline = Duration::from_millis(600);
    let disk = super::open(&quick);
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(
        write(queue.as_mut(), 0, vec![1; 512]),
        Err(IoError::Os(libc::ETIMEDOUT))
    );
    assert!(server.state.lock().unwrap().connections > 2);
}

#[test]
fn a_request_that_kills_every_server_is_given_up() {
    let server = Server::scripted(|mut stream| {
        let manner = Manner {
            flags: HAS_FLAGS | protocol::CAN_MULTI_CONN,
            structured: false,
            ..Manner::default()
        };
        let _ = negotiate(&mut stream, &manner);
        // One after the other, as a server without threads does it.
        while let Ok((_, _, cookie, offset, _, _)) = request(&mut stream) {
            if offset == 512 {
                // The server keeps another handle of it.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            let _ = stream.write_all(&simple(cookie, 0));
        }
    });
    let disk = super::open(&options(&server.uri()));
    let mut queue = disk.open_queue(4).unwrap();
    let mut done = Vec::new();
    let mut tag = 0;
    let end = Instant::now() + super::PATIENCE;
    let fatal = loop {
        // Others are answered, so the server is not away.
        for offset in [0, 512].into_iter().take(if tag == 0 { 2 } else { 1 }) {
            let buffer = vec![1; 512].into();
            queue.submit(crate::Request {
                tag,
                operation: crate::Operation::Write { offset, buffer },
            });
            tag += 1;
        }
        queue.kick();
        queue
            .await_completion(Instant::now() + Duration::from_millis(20))
            .unwrap();
        queue.reap(&mut done);
        assert!(Instant::now() < end, "it is tried for ever");
        if let Some(completion) = done.iter().find(|completion| completion.tag == 1) {
            break completion.result;
        }
    };
    assert_eq!(fatal, Err(IoError::Os(libc::EIO)));
    assert!(done.len() > 1, "the others are answered");
}

/// Says what it was told to, and takes whatever comes.
struct Speaker<'a>(&'a [u8]);

impl std::io::Read for Speaker<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Speaker<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn enter(bytes: &[u8]) -> Result<handshake::Export, Failure> {
    let mut speaker = Speaker(bytes);
    let no_zeroes = handshake::greet(&mut speaker)?;
    handshake::enter(&mut speaker, "", no_zeroes)
}

proptest! {
    #[test]
    fn any_handshake_ends(replies in prop::collection::vec((0_u32..10, prop_oneof![0_u32..4, (1_u32 << 31)..(1 << 31) + 9], prop::collection::vec(any::<u8>(), 0..20)), 0..40)) {
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        for (option, kind, payload) in replies {
            bytes.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
            for number in [option, kind, u32::try_from(payload.len()).unwrap()] {
                bytes.extend(number.to_be_bytes());
            }
            bytes.extend(payload);
        }
        let _ = enter(&bytes);
    }

    #[test]
    fn any_reply_is_understood_or_not(bytes in prop::collection::vec(any::<u8>(), 0..64), magic in any::<bool>(), kind in 0_u16..4) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&0x668e_33ef_u32.to_be_bytes());
            bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        }
        if let Ok(Some((_, length))) = protocol::reply(&bytes) {
            prop_assert!(length <= bytes.len());
        }
        let _ = protocol::info(&bytes);
    }
}
