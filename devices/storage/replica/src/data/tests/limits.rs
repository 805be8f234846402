//! More connections than there may be.

use std::io::Read;
use std::time::{Duration, Instant};

use paddock_longhorn::wire::Kind;

use super::each_engine_limited;
use crate::data::Limits;
use crate::testing::{Client, MIB, Served};

const SILENCE: Duration = Duration::from_secs(1);

const LIMITS: Limits = Limits {
    connections: 4,
    silence: SILENCE,
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
        assert_eq!(clients[0].stream.read(&mut [0]).unwrap(), 0);
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
        assert_eq!(stranger.stream.read(&mut [0]).unwrap(), 0);
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
        assert_eq!(more.stream.read(&mut [0]).unwrap(), 0);
        for client in &mut clients {
            client.ping().unwrap();
        }
    });
}
