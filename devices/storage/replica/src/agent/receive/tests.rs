//! Receivers whose senders stop at any place.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::agent::Agent;
use crate::agent::http::Connection;
use crate::testing::place;
use crate::volume::replica::{Options, Replica};
use paddock_longhorn::Identity;
use proptest::prelude::*;

proptest! {
    #[test]
    fn ranges_are_what_was_added(added in prop::collection::vec((0_u64..50, 0_u64..10), 0..30)) {
        let mut ranges = Vec::new();
        let mut model = [false; 64];
        for (begin, length) in added {
            add(&mut ranges, begin, begin + length);
            for place in begin..begin + length {
                model[usize::try_from(place).unwrap()] = true;
            }
        }
        let inside = |place| ranges.iter().any(|&(begin, end)| (begin..end).contains(&place));
        for (place, expected) in (0..).zip(model) {
            prop_assert_eq!(inside(place), expected);
        }
        prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}

const NAME: &str = "volume-snap-x.img";

/// Long enough for a sender on a busy host.
const PATIENCE: Duration = Duration::from_millis(500);

/// Too long for a receiver that keeps its deadlines.
const TOO_LONG: Duration = Duration::from_secs(20);

/// A receiver, and where it listens.
async fn start(directory: &std::path::Path, patience: Duration) -> (Reception, SocketAddr) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = free.local_addr().unwrap().port();
    drop(free);
    let replica = Replica::new(Options::new(directory));
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let identity = Identity {
        volume: String::new(),
        instance: String::new(),
        role: "replica",
    };
    let agent = Agent::new(Arc::clone(&replica), identity, localhost, number, 1);
    let port = agent.shared.port().unwrap();
    let files = replica.directory().unwrap();
    let reception = receive(files, NAME.to_owned(), port, None, patience).await;
    (reception.unwrap(), SocketAddr::new(localhost, number))
}

/// What is left to be read, until the receiver ends the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    let read = timeout(TOO_LONG, stream.read_to_end(&mut rest)).await;
    read.expect("the receiver ends the connection").unwrap();
    String::from_utf8(rest).unwrap()
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_out() {
    let place = place();
    let (mut reception, address) = start(place.path(), PATIENCE).await;
    let mut silent = Vec::new();
    for number in 0..MOST_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /v1-ssync/open?beg").await.unwrap();
        }
        silent.push(stream);
    }
    let mut sender = Connection::open(address, TOO_LONG).await.unwrap();
    let opened = sender
        .call(Method::GET, "open", "begin=0&end=4096", Vec::new())
        .await;
    assert_eq!(opened.unwrap(), b"false");
    sender
        .call(Method::POST, "writeData", "begin=0&end=4096", vec![7; 4096])
        .await
        .unwrap();
    for mut stream in silent {
        let mut rest = Vec::new();
        // With what it said left unread, it may be reset.
        let read = timeout(TOO_LONG, stream.read_to_end(&mut rest)).await;
        let _ = read.expect("the receiver ends the connection");
    }
    sender
        .call(Method::POST, "close", "", Vec::new())
        .await
        .unwrap();
    reception.outcome().await.unwrap();
    assert_eq!(std::fs::read(place.path().join(NAME)).unwrap(), [7; 4096]);
}

#[tokio::test]
async fn a_sender_that_stops_in_the_middle_is_told() {
    let place = place();
    let (_reception, address) = start(place.path(), PATIENCE).await;
    let mut sender = Connection::open(address, TOO_LONG).await.unwrap();
    sender
        .call(Method::GET, "open", "begin=0&end=4096", Vec::new())
        .await
        .unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "POST /v1-ssync/writeData?begin=0&end=4096 HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\nabc";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("3 of 4096 bytes came"), "{answer}");
}

#[tokio::test]
async fn a_sender_that_is_idle_for_long_connects_again() {
    let place = place();
    let (mut reception, address) = start(place.path(), PATIENCE).await;
    let mut sender = Connection::open(address, TOO_LONG).await.unwrap();
    sender
        .call(Method::GET, "open", "begin=0&end=0", Vec::new())
        .await
        .unwrap();
    tokio::time::sleep(2 * PATIENCE).await;
    sender
        .call(Method::POST, "close", "", Vec::new())
        .await
        .unwrap();
    reception.outcome().await.unwrap();
}

#[tokio::test]
async fn a_receiver_of_which_nobody_wants_anything_ends() {
    let place = place();
    let (mut reception, address) = start(place.path(), Duration::from_millis(50)).await;
    let mut sender = Connection::open(address, TOO_LONG).await.unwrap();
    sender
        .call(Method::GET, "open", "begin=0&end=4096", Vec::new())
        .await
        .unwrap();
    let outcome = timeout(TOO_LONG, reception.outcome()).await;
    let failure = outcome.expect("the receiver ends").unwrap_err();
    assert!(
        failure.silent && failure.text.contains("nothing came"),
        "{failure:?}"
    );
    for _ in 0..100 {
        if std::fs::read_dir(place.path()).unwrap().count() == 0 {
            return;
        }
        tokio::time::sleep(PATIENCE / 10).await;
    }
    panic!("what did not come whole is left");
}

#[tokio::test]
async fn slow_data_is_no_silence() {
    let place = place();
    let (mut reception, address) = start(place.path(), PATIENCE).await;
    let mut sender = Connection::open(address, TOO_LONG).await.unwrap();
    sender
        .call(Method::GET, "open", "begin=0&end=30", Vec::new())
        .await
        .unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1-ssync/writeData?begin=0&end=30 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 30\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let start = Instant::now();
    for _ in 0..30 {
        stream.write_all(b"x").await.unwrap();
        tokio::time::sleep(PATIENCE / 6).await;
    }
    assert!(start.elapsed() > PATIENCE * SILENCES);
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    sender
        .call(Method::POST, "close", "", Vec::new())
        .await
        .unwrap();
    reception.outcome().await.unwrap();
}
