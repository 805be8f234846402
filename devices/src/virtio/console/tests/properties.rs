//! What holds for any data, any buffers, any control messages and any ring.

use std::io::Write;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Cuts `bytes` into buffers at the given sizes, again and again.
fn cut<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).clamp(1, bytes.len().max(1));
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn data_arrives_whole_whatever_the_buffers(
        data in prop::collection::vec(any::<u8>(), 1..200_000),
        out_sizes in prop::collection::vec(1usize..20_000, 1..6),
        in_sizes in prop::collection::vec(prop::collection::vec(0usize..9000, 1..5), 1..5),
        per_chain in 1usize..5,
    ) {
        let host = Host::new();
        let mut device = host.device();
        let mut linux = Linux::up(&mut device);
        let client = host.connect(PROBE);
        linux.wait_open(PROBE, true);
        let echo = std::thread::spawn(move || {
            let (mut from, mut to) = (client.try_clone().unwrap(), client);
            io::copy(&mut from, &mut to).map(drop)
        });
        // Buffers of no bytes at all would make a chain useless, and so the guest wait for ever.
        let in_sizes: Vec<_> = in_sizes.into_iter().filter(|sizes| sizes.iter().sum::<usize>() > 0).chain([vec![512]]).collect();
        let pieces: Vec<&[u8]> = cut(&data, &out_sizes).collect();
        let (mut chains, mut layouts) = (pieces.chunks(per_chain), in_sizes.iter().cycle());
        let (tx, rx) = (usize::from(tx_queue(PROBE)), usize::from(rx_queue(PROBE)));
        let mut got = Vec::new();
        let start = Instant::now();
        while got.len() < data.len() {
            while linux.queues[rx].has_room(5) {
                linux.offer(PROBE, layouts.next().unwrap());
            }
            while linux.queues[tx].has_room(5) {
                let Some(chain) = chains.next() else { break };
                linux.post(PROBE, chain);
            }
            while linux.try_posted(PROBE) {}
            match linux.try_read(PROBE) {
                Some(bytes) => got.extend(bytes),
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            prop_assert!(start.elapsed() < DEADLINE, "{} of {} bytes", got.len(), data.len());
        }
        prop_assert!(got == data);
        linux.stop(&mut device);
        drop(device);
        drop(host);
        let _ = echo.join().unwrap();
    }

    #[test]
    fn any_control_messages_leave_the_device_working(
        messages in prop::collection::vec((prop_oneof![0u32..4, any::<u32>()], 0u16..9, 0u16..3, 0usize..12), 0..40),
        clients in prop::collection::vec(any::<bool>(), 0..10),
    ) {
        let host = Host::new();
        let mut device = host.device();
        let mut linux = Linux::new(&mut device, F_MULTIPORT);
        let mut connected = Vec::new();
        let mut clients = clients.into_iter();
        for (port, event, value, length) in messages {
            let mut message = port.to_le_bytes().to_vec();
            message.extend(event.to_le_bytes());
            message.extend(value.to_le_bytes());
            message.resize(length.max(1), 0xee);
            linux.queues[3].add_bytes(&[&message], &[]);
            linux.queues[3].kick();
            linux.queues[3].wait_used();
            linux.queues[2].add(&[], &[length.max(1)]);
            linux.queues[2].kick();
            match clients.next() {
                Some(true) => connected.push(host.connect(PROBE)),
                Some(false) => { connected.pop(); }
                None => {}
            }
            while linux.queues[2].try_used().is_some() {}
        }
        connected.clear();
        linux.stop(&mut device);
        device.reset();
        drop(device);
        let mut device = host.device();
        let mut linux = Linux::up(&mut device);
        linux.offer(PROBE, &[64]);
        let mut client = host.connect(PROBE);
        client.write_all(b"alive").unwrap();
        prop_assert_eq!(linux.read(PROBE), b"alive");
    }

    #[test]
    fn garbage_in_the_rings_never_panics(
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 8),
        events in any::<bool>(),
    ) {
        let host = Host::new();
        let mut device = host.device();
        let guest = Guest::new();
        let mut client = host.connect(PROBE);
        client.write_all(b"data").unwrap();
        for (index, bytes) in (0..).zip(&garbage) {
            let driver = guest.queue(index, 64);
            driver.scribble(bytes);
            let mut resources = driver.resources(if events { F_MULTIPORT } else { 0 });
            virtio_queue::QueueT::set_event_idx(&mut resources.queue, events);
            device.start_queue(index, resources).unwrap();
            driver.kick();
        }
        for index in 0..8 {
            prop_assert!(device.stop_queue(index).is_some());
        }
    }
}
