//! More connections than there may be, and more that they ask for than there is memory.

use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use paddock_longhorn::wire::Kind;

use super::each_engine_limited;
use crate::data::Limits;
use crate::data::budget::COMMON;
use crate::testing::{Client, MIB, Served};

const SILENCE: Duration = Duration::from_secs(1);

const LIMITS: Limits = Limits {
    connections: 4,
    silence: SILENCE,
    common: COMMON,
};

/// As much memory as a connection or two ask for.
const LITTLE: Limits = Limits {
    connections: 64,
    silence: Duration::from_secs(60),
    common: 4 << 20,
};

/// A connection that pings, once there is room for it.
fn connect(served: &Served) -> Client {
    let end = Instant::now() + 20 * SILENCE;
    loop {
        let mut client = served.client();
        client.send(Kind::Ping, 0, 0, &[]);
        if client.receive().is_some() {
            return client;
        }
        assert!(Instant::now() < end, "there is no room");
    }
}

/// Lets everybody be silent, but for one that pings as an engine does.
fn be_silent(engine: Option<&mut Client>) {
    let mut engine = engine;
    let end = Instant::now() + SILENCE + SILENCE / 2;
    while Instant::now() < end {
        if let Some(engine) = &mut engine {
            engine.ping().unwrap();
        }
        std::thread::sleep(SILENCE / 10);
    }
}

#[test]
fn the_longest_silent_makes_room() {
    each_engine_limited(LIMITS, |served| {
        let mut clients: Vec<_> = (0..4).map(|_| connect(&served)).collect();
        be_silent(None);
        for client in &mut clients[1..] {
            client.ping().unwrap();
        }
        be_silent(None);
        connect(&served).ping().unwrap();
        clients[0].end();
        for client in &mut clients[1..] {
            client.ping().unwrap();
        }
    });
}

#[test]
fn nobody_goes_who_is_in_use_or_whose_engine_lives() {
    each_engine_limited(LIMITS, |served| {
        let mut data = served.client();
        data.write(0, &[1; 4096]).unwrap();
        let mut waits = served.client();
        for _ in 0..31 {
            waits.send(Kind::Read, 0, 1 << 20, &[]);
        }
        let mut engine = connect(&served);
        let mut stranger = served.client();
        be_silent(Some(&mut engine));
        // Only of the stranger it is not known that it is an engine.
        connect(&served).ping().unwrap();
        stranger.end();
        assert_eq!(data.read(0, 1).unwrap(), [1]);
        for _ in 0..31 {
            assert_eq!(waits.receive().unwrap().payload.len(), MIB as usize);
        }
        engine.ping().unwrap();
    });
}

#[test]
fn where_all_are_in_use_there_is_no_room() {
    each_engine_limited(LIMITS, |served| {
        let mut clients: Vec<_> = (0..4).map(|_| connect(&served)).collect();
        let mut more = served.client();
        more.end();
        for client in &mut clients {
            client.ping().unwrap();
        }
    });
}

/// A connection that asks for much, and has all the common memory.
fn greedy(served: &Served) -> Client {
    let mut greedy = served.client();
    for _ in 0..40 {
        greedy.send(Kind::Read, 0, 1 << 20, &[]);
    }
    std::thread::sleep(Duration::from_secs(1));
    greedy
}

/// A connection that waits for what is more than its own.
fn hungry(served: &Served) -> Client {
    let mut hungry = served.client();
    hungry.send(Kind::Read, 0, 4 << 20, &[]);
    hungry
}

#[test]
fn what_is_large_waits_and_what_is_usual_does_not() {
    each_engine_limited(LITTLE, |served| {
        let mut greedy = greedy(&served);
        let mut hungry = hungry(&served);
        let mut usual = served.client();
        for _ in 0..5 {
            usual.write(0, &[1; 1 << 20]).unwrap();
            assert!(usual.read(0, 1 << 20).unwrap() == vec![1; 1 << 20]);
        }
        hungry.stream.set_nonblocking(true).unwrap();
        let error = hungry.stream.peek(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        hungry.stream.set_nonblocking(false).unwrap();
        for _ in 0..40 {
            assert_eq!(greedy.receive().unwrap().payload.len(), 1 << 20);
        }
        assert_eq!(hungry.receive().unwrap().payload.len(), 4 << 20);
    });
}

#[test]
fn who_takes_nothing_for_long_keeps_nobody_hungry() {
    let limits = Limits {
        silence: SILENCE,
        ..LITTLE
    };
    each_engine_limited(limits, |served| {
        let mut greedy = greedy(&served);
        let mut hungry = hungry(&served);
        assert_eq!(hungry.receive().unwrap().payload.len(), 4 << 20);
        // What was in the sockets' buffers, and no more.
        let mut rest = Vec::new();
        let _ = greedy.stream.read_to_end(&mut rest);
        assert!(rest.len() < 40 << 20);
    });
}

#[test]
fn all_are_served_however_little_memory_there_is() {
    each_engine_limited(LITTLE, |served| {
        std::thread::scope(|scope| {
            for number in 0..8_u8 {
                let served = &served;
                scope.spawn(move || {
                    let mut client = served.client();
                    let offset = i64::from(number) * MIB;
                    for size in [4096, 1 << 20, 3 << 20, 5 << 20] {
                        for _ in 0..4 {
                            client.send(Kind::Read, offset, size, &[]);
                        }
                        for _ in 0..4 {
                            let payload = client.receive().unwrap().payload;
                            assert_eq!(payload.len(), size as usize);
                        }
                        client.write(offset, &vec![number; size as usize]).unwrap();
                    }
                    // Closed for writing with requests before it that have to wait.
                    for _ in 0..4 {
                        client.send(Kind::Read, offset, 5 << 20, &[]);
                    }
                    client.stream.shutdown(Shutdown::Write).unwrap();
                    for _ in 0..4 {
                        assert_eq!(client.receive().unwrap().payload.len(), 5 << 20);
                    }
                });
            }
        });
    });
}
