//! The server over real connections, with rings and without.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers of these tests are small"
)]

mod limits;

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use paddock_longhorn::wire::{Header, Kind};

use super::connection::Connection;
use super::registry::{Limits, Registry};
use super::uring::{Uring, faults};
use super::{Engine, MOST_REQUEST};
use crate::files::names;
use crate::testing::{MIB, Served, place, serve, serve_limited, serve_small};
use crate::volume::replica::Options;

const ENGINES: [Engine; 2] = [Engine::Auto, Engine::Calls];

fn each_engine(mut test: impl FnMut(Served)) {
    for engine in ENGINES {
        let place = place();
        test(serve_small(place.path(), engine));
    }
}

fn each_engine_limited(limits: Limits, mut test: impl FnMut(Served)) {
    for engine in ENGINES {
        let place = place();
        let options = Options::new(place.path());
        test(serve_limited(options, 16 * MIB, engine, limits));
    }
}

#[test]
fn what_is_written_is_read() {
    each_engine(|served| {
        let mut client = served.client();
        assert_eq!(client.read(0, 8192).unwrap(), vec![0; 8192]);
        client.write(4096, &[1; 4096]).unwrap();
        // Within a sector, across sectors, at the very end.
        client.write(5000, &[2; 7]).unwrap();
        client.write(8000, &[3; 10000]).unwrap();
        client.write(MIB - 1, &[4]).unwrap();
        let mut expected = vec![0; 1 << 20];
        expected[4096..8192].fill(1);
        expected[5000..5007].fill(2);
        expected[8000..18000].fill(3);
        expected[(1 << 20) - 1] = 4;
        assert!(client.read(0, 1 << 20).unwrap() == expected);
        assert_eq!(client.read(7999, 3).unwrap(), [1, 3, 3]);
        assert!(client.read(100, 0).unwrap().is_empty());
        client.write(100, &[]).unwrap();
        client.ping().unwrap();
    });
}

#[test]
fn what_is_not_the_volumes_is_refused() {
    each_engine(|served| {
        let mut client = served.client();
        for (offset, size) in [
            (MIB, 1),
            (MIB - 1, 2),
            (-1, 1),
            (i64::MIN, 4096),
            (i64::MAX, 4096),
            (0, 1 << 21),
        ] {
            let error = client.read(offset, size).unwrap_err();
            assert!(error.starts_with("unexpected EOF"), "{error}");
            if size < 1 << 21 {
                let error = client.write(offset, &vec![1; size as usize]).unwrap_err();
                assert!(error.starts_with("unexpected EOF"), "{error}");
            }
        }
        assert_eq!(client.unmap(MIB, 4096).unwrap(), 0);
        assert_eq!(client.unmap(i64::MAX, u32::MAX).unwrap(), 0);
        client.unmap(-4096, 4096).unwrap_err();
        // And nothing has changed.
        assert_eq!(client.read(MIB - 4096, 4096).unwrap(), [0; 4096]);
        let head = served.replica.status().open.unwrap();
        assert_eq!(head.head_bytes, 0);
    });
}

#[test]
fn a_closed_replica_says_so_and_the_connection_lives() {
    each_engine(|served| {
        let mut client = served.client();
        client.write(0, &[7; 512]).unwrap();
        served.replica.close().unwrap();
        assert_eq!(client.read(0, 512).unwrap_err(), "replica no longer exist");
        assert_eq!(
            client.write(0, &[1]).unwrap_err(),
            "replica no longer exist"
        );
        assert_eq!(
            client.unmap(0, 4096).unwrap_err(),
            "replica no longer exist"
        );
        assert!(client.ping().unwrap_err().contains("ping failure"));
        served.replica.open().unwrap();
        client.ping().unwrap();
        assert_eq!(client.read(0, 512).unwrap(), [7; 512]);
    });
}

#[test]
fn many_requests_at_once_on_several_connections() {
    for engine in ENGINES {
        let place = place();
        let options = Options {
            count_revisions: true,
            ..Options::new(place.path())
        };
        let served = serve(options, 16 * MIB, engine);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let served = &served;
                scope.spawn(move || {
                    let mut client = served.client();
                    let offset = |n: i64| (part * 256 + n) * 16384;
                    for n in 0..256 {
                        let data = vec![n as u8 ^ part as u8; 16384];
                        client.send(Kind::Write, offset(n), 16384, &data);
                    }
                    let mut seen = vec![false; 256];
                    for _ in 0..256 {
                        let answer = client.receive().unwrap();
                        assert_eq!(answer.header.kind, Kind::Response);
                        seen[answer.header.sequence as usize - 1] = true;
                    }
                    assert!(seen.iter().all(|&seen| seen));
                    for n in 0..256 {
                        client.send(Kind::Read, offset(n), 16384, &[]);
                    }
                    for _ in 0..256 {
                        let answer = client.receive().unwrap();
                        let n = i64::from(answer.header.sequence) - 257;
                        assert_eq!(answer.header.offset, offset(n));
                        assert!(answer.payload == vec![n as u8 ^ part as u8; 16384]);
                    }
                });
            }
        });
        let status = served.replica.status().open.unwrap();
        assert_eq!(status.revision, Some(1024));
        let text = std::fs::read(place.path().join(names::REVISION_COUNTER)).unwrap();
        assert_eq!(&text[..5], b"1024\0");
    }
}

#[test]
fn a_sector_is_never_a_mixture() {
    each_engine(|served| {
        std::thread::scope(|scope| {
            for byte in 1..=3 {
                let served = &served;
                scope.spawn(move || {
                    let mut client = served.client();
                    for round in 0..100 {
                        // Whole sectors, which others overlap, and parts of one that nobody else writes.
                        client.write(4096 * (round % 3), &[byte; 12288]).unwrap();
                        client
                            .write(65536 + 100 * i64::from(byte), &[byte; 100])
                            .unwrap();
                    }
                });
            }
        });
        let mut client = served.client();
        let data = client.read(0, 65536).unwrap();
        for sector in data.chunks(4096) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
        let parts = client.read(65536, 500).unwrap();
        let expected: Vec<u8> = [0, 1, 2, 3, 0]
            .into_iter()
            .flat_map(|byte| [byte; 100])
            .collect();
        assert_eq!(parts, expected);
    });
}

#[test]
fn large_requests_go_through_and_larger_ones_do_not() {
    let place = place();
    let served = serve(Options::new(place.path()), 160 * MIB, Engine::Auto);
    let mut client = served.client();
    let data: Vec<u8> = (0..MOST_REQUEST / 4)
        .flat_map(|n| (n as u32).to_le_bytes())
        .collect();
    client.write(MIB + 5, &data).unwrap();
    assert!(client.read(MIB + 5, MOST_REQUEST as u32).unwrap() == data);
    let error = client.read(0, MOST_REQUEST as u32 + 1).unwrap_err();
    assert!(error.contains("too many"), "{error}");
    let error = client.read(0, u32::MAX).unwrap_err();
    assert!(error.contains("too many"), "{error}");
    let mut too_much = data;
    too_much.push(0);
    let error = client.write(0, &too_much).unwrap_err();
    assert!(error.contains("too many"), "{error}");
    client.ping().unwrap();
}

#[test]
fn a_peer_that_asks_for_much_and_takes_nothing_is_held_up() {
    let place = place();
    let served = serve(Options::new(place.path()), 64 * MIB, Engine::Auto);
    let mut client = served.client();
    for _ in 0..200 {
        client.send(Kind::Read, 0, 1 << 20, &[]);
    }
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..200 {
        assert_eq!(client.receive().unwrap().payload.len(), 1 << 20);
    }
    served.client().ping().unwrap();
}

#[test]
fn frames_in_pieces() {
    each_engine(|served| {
        let mut client = served.client();
        let header = Header {
            sequence: 9,
            kind: Kind::Write,
            offset: 10,
            size: 0,
            payload: 9000,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend([5; 9000]);
        for piece in bytes.chunks(777) {
            client.stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.receive().unwrap().header.size, 9000);
        assert_eq!(client.read(9, 2).unwrap(), [0, 5]);
        assert_eq!(client.read(9009, 2).unwrap(), [5, 0]);
    });
}

#[test]
fn what_is_no_request_has_no_answer() {
    each_engine(|served| {
        let mut client = served.client();
        for kind in [
            Kind::Response,
            Kind::Error,
            Kind::Eof,
            Kind::Close,
            Kind::NoSpace,
        ] {
            client.send(kind, 0, 5, b"hello");
        }
        let mut unknown = Header::request(1, Kind::Ping, 0, 0).encode();
        unknown[6] = 99;
        unknown[22] = 3;
        client.stream.write_all(&unknown).unwrap();
        client.stream.write_all(b"abc").unwrap();
        // A read that brings data that nobody asked for.
        client.send(Kind::Read, 0, 4, b"what?");
        assert_eq!(client.receive().unwrap().payload, [0; 4]);
        client.ping().unwrap();
    });
}

#[test]
fn another_language_ends_the_connection_and_no_other() {
    each_engine(|served| {
        let mut other = served.client();
        let mut client = served.client();
        client
            .stream
            .write_all(b"GET / HTTP/1.1\r\nHost: replica\r\n\r\n")
            .unwrap();
        assert!(client.receive().is_none());
        other.ping().unwrap();
    });
}

#[test]
fn a_half_closed_connection_gets_its_answers() {
    each_engine(|served| {
        let mut client = served.client();
        for n in 0..100 {
            client.send(Kind::Write, n * 4096, 4096, &[1; 4096]);
        }
        client.stream.shutdown(Shutdown::Write).unwrap();
        for _ in 0..100 {
            assert_eq!(client.receive().unwrap().header.kind, Kind::Response);
        }
        client.end();
    });
}

#[test]
fn a_frame_cut_short_is_nothing() {
    each_engine(|served| {
        let mut client = served.client();
        let header = Header {
            sequence: 1,
            kind: Kind::Write,
            offset: 0,
            size: 0,
            payload: 1 << 20,
        };
        client.stream.write_all(&header.encode()).unwrap();
        client.stream.write_all(&[1; 5000]).unwrap();
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.receive().is_none());
        assert_eq!(served.client().read(0, 4096).unwrap(), [0; 4096]);
    });
}

#[test]
fn a_change_waits_for_nobody_who_is_idle() {
    each_engine(|served| {
        let mut idle = served.client();
        idle.read(MIB, 1).unwrap_err();
        let start = Instant::now();
        served.replica.reload().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        idle.ping().unwrap();
    });
}

#[test]
fn a_server_that_stops_answers_what_it_has() {
    each_engine(|served| {
        let mut client = served.client();
        client.write(0, &[1; 4096]).unwrap();
        assert!(served.server.stop(Duration::from_secs(10)));
        assert!(client.receive().is_none());
        served.replica.sync().unwrap();
    });
}

#[test]
fn a_ring_that_fails_gives_back_what_was_taken() {
    for entries in 0..16 {
        let place = place();
        let served = serve_small(place.path(), Engine::Auto);
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let replica = Arc::clone(&served.replica);
        let connection = std::thread::spawn(move || {
            let healthy = std::iter::repeat_n(None, entries);
            faults::plant(healthy.chain([Some(libc::EINVAL)]));
            let ring = Uring::new(socket.as_raw_fd()).unwrap();
            let registry = Arc::new(Registry::new(Limits::default()));
            let second = socket.try_clone().unwrap().into();
            let guest = Registry::enter(&registry, 1, second, None).unwrap();
            Connection::new(socket.into(), ring, replica, guest).serve();
        });
        let mut client = peer;
        for number in 0..8 {
            let header = Header {
                payload: 10000,
                ..Header::request(number, Kind::Write, i64::from(number) * 16384 + 5, 10000)
            };
            // The connection may be gone by now.
            let _ = client.write_all(&[&header.encode()[..], &[1; 10000]].concat());
        }
        client.shutdown(Shutdown::Write).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !connection.is_finished() {
            assert!(Instant::now() < end, "after {entries} entries");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut other = served.client();
        other.write(0, &vec![2; 1 << 20]).unwrap();
        served.replica.reload().unwrap();
        assert!(other.read(0, 1 << 20).unwrap() == vec![2; 1 << 20]);
        other.ping().unwrap();
    }
}
