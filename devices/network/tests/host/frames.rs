//! Frames from tap to tap over a bridge: who hears whom, and from when on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use paddock_network::{Backend, HEADER_SIZE, Offloads, Tap};

use super::sandbox::{alone, run};
use super::{access, existing, make, port};

/// Ethernet for local experiments, so that nothing else on the host makes such frames.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// A broadcast that says who sent it.
fn broadcast(sender: u8) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes.extend([0xff; 6]);
    bytes.extend([0x52, 0x54, 0, 0, 0, sender]);
    bytes.extend(ETHERTYPE);
    bytes.resize(HEADER_SIZE + 60, sender);
    bytes
}

fn write(tap: &Tap, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(tap.queue(0).unwrap(), bytes)?)
}

/// The next frame of a queue.
pub fn try_read(tap: &Tap, pair: u16) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 70_000];
    let length = rustix::io::read(tap.queue(pair).unwrap(), &mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

/// The senders of the experiment's frames that have arrived on any queue.
fn heard(tap: &Tap) -> Vec<u8> {
    let mut senders = Vec::new();
    for pair in 0..tap.queue_pairs() {
        while let Ok(bytes) = try_read(tap, pair) {
            if bytes[HEADER_SIZE + 12..].starts_with(&ETHERTYPE) {
                senders.push(bytes[HEADER_SIZE + 11]);
            }
        }
    }
    senders
}

/// Sends until it is heard, for a bridge takes a moment until a new port forwards.
fn wait_until_heard(from: &Tap, sender: u8, by: &Tap) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        write(from, &broadcast(sender)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        if heard(by).contains(&sender) {
            return;
        }
    }
    panic!("{} never heard {}", by.name(), from.name());
}

/// A filtering bridge without spanning tree, ports of which forward at once.
fn bridge() {
    run("ip link add br0 up type bridge vlan_filtering 1 forward_delay 0 mcast_snooping 0");
}

#[test]
fn vlans_keep_apart_what_they_should() {
    alone(|| {
        bridge();
        let a = make(&access("br0", 100), 1).unwrap();
        let b = make(&access("br0", 100), 2).unwrap();
        let c = make(&access("br0", 200), 1).unwrap();
        let d = make(&port("br0"), 1).unwrap();
        wait_until_heard(&a, 1, &b);
        wait_until_heard(&b, 2, &a);
        for _ in 0..20 {
            for (tap, sender) in [(&a, 1), (&b, 2), (&c, 3), (&d, 4)] {
                write(tap, &broadcast(sender)).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(heard(&a).iter().all(|sender| *sender == 2));
        assert!(heard(&b).iter().all(|sender| *sender == 1));
        assert_eq!(heard(&c), [0_u8; 0]);
        assert_eq!(heard(&d), [0_u8; 0]);
    });
}

#[test]
fn no_frame_of_another_vlan_passes_while_a_port_is_made() {
    alone(|| {
        bridge();
        let neighbour = make(&port("br0"), 1).unwrap();
        let listener = make(&port("br0"), 1).unwrap();
        wait_until_heard(&neighbour, 9, &listener);
        let fd = neighbour.queue(0).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = rustix::io::write(fd, &broadcast(9));
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            let mut came = Vec::new();
            for _ in 0..30 {
                let tap = make(&access("br0", 100), 1);
                std::thread::sleep(Duration::from_millis(5));
                came.push(tap.map(|tap| heard(&tap)));
            }
            // Before anything can fail, for the neighbour goes on until then.
            done.store(true, Ordering::Relaxed);
            for heard in came {
                assert_eq!(heard.unwrap(), [0_u8; 0], "a frame of VLAN 1 came in");
            }
        });
        assert!(heard(&listener).contains(&9), "the neighbour was silent");
    });
}

#[test]
fn a_tap_passes_large_frames_only_when_told_to() {
    alone(|| {
        bridge();
        let a = make(&port("br0"), 1).unwrap();
        let b = make(&port("br0"), 1).unwrap();
        wait_until_heard(&a, 1, &b);
        // A TCP segment of 4000 bytes over IPv4, to be cut at 1000.
        let payload = vec![7; 4000];
        let mut segment = vec![1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];
        segment.extend([0xff; 6]);
        segment.extend([0x52, 0x54, 0, 0, 0, 1, 8, 0]);
        let total = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        segment.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0]);
        segment.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        segment.extend([
            0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ]);
        segment.extend(&payload);
        let lengths = |tap: &Tap| {
            std::thread::sleep(Duration::from_millis(50));
            let mut lengths = Vec::new();
            while let Ok(bytes) = try_read(tap, 0) {
                if bytes[HEADER_SIZE + 12..].starts_with(&[8, 0]) {
                    lengths.push(bytes.len() - HEADER_SIZE - 54);
                }
            }
            lengths
        };
        lengths(&b);
        write(&a, &segment).unwrap();
        assert_eq!(lengths(&b), [1000; 4]);
        b.set_offloads(Offloads::CSUM | Offloads::TSO4).unwrap();
        write(&a, &segment).unwrap();
        assert_eq!(lengths(&b), [4000]);
        b.set_offloads(Offloads::NONE).unwrap();
        write(&a, &segment).unwrap();
        assert_eq!(lengths(&b), [1000; 4]);
        // A header that makes no sense costs its frame and nothing else.
        segment[2] = 0xff;
        segment[3] = 0xff;
        segment[4] = 0;
        segment[5] = 0;
        let error = write(&a, &segment).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn offloads_are_what_the_kernel_takes() {
    alone(|| {
        run("ip tuntap add dev t0 mode tap");
        let tap = existing("t0", 1).unwrap();
        let supported = tap.supported_offloads();
        assert!(supported.contains(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6));
        tap.set_offloads(supported).unwrap();
        if !supported.contains(Offloads::USO) {
            let error = tap
                .set_offloads(Offloads::CSUM | Offloads::USO)
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        assert!(tap.queue(0).unwrap().as_raw_fd() >= 0);
        assert!(tap.queue(1).is_none());
    });
}
