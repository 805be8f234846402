//! Any frame in any layout arrives intact, and no garbage does harm.

use super::*;
use paddock_network::MAX_FRAME_SIZE;
use proptest::prelude::*;

/// How a chain is cut.
fn layout(longest: u32) -> impl Strategy<Value = (Vec<u32>, bool)> {
    (prop::collection::vec(1..=longest, 1..6), any::<bool>())
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1_usize..2000,
        2 => 2000_usize..10_000,
        1 => 10_000..=MAX_FRAME_SIZE,
    ]
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: count,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn received_frames_are_intact(
        lengths in prop::collection::vec(length(), 1..20),
        layouts in prop::collection::vec(layout(4096), 1..8),
        event_idx in any::<bool>(),
    ) {
        let mut bench = Bench::new(1);
        let bits = if event_idx { modern() } else { base() | features(&[VIRTIO_NET_F_MRG_RXBUF]) };
        let mut driver = bench.start(RX, bits);
        let mut turn = layouts.iter().cycle();
        let refill = |driver: &mut Driver, turn: &mut std::iter::Cycle<std::slice::Iter<'_, _>>| {
            loop {
                let (lengths, indirect): &(Vec<u32>, bool) = turn.next().unwrap();
                let mut pieces: Vec<(u32, bool)> = lengths.iter().map(|l| (*l, true)).collect();
                pieces[0].0 += 12;
                if !driver.has_room(pieces.len(), *indirect) {
                    break;
                }
                driver.offer(&pieces, &[], *indirect);
            }
            driver.notify();
        };
        let mut dropped = 0;
        for (number, length) in lengths.iter().enumerate() {
            refill(&mut driver, &mut turn);
            let sent = frame(number as u64, *length);
            bench.deliver(&sent);
            // It may be too long for all the buffers there are; then it is dropped, and that is counted.
            let whole = loop {
                if let Some((head, bytes)) = driver.take_within(Duration::from_millis(200)) {
                    break Some((head, bytes));
                }
                if bench.net.counters().values().rx_dropped > dropped {
                    break None;
                }
            };
            if let Some((_, mut bytes)) = whole {
                let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
                for _ in 1..buffers {
                    bytes.extend(driver.take().unwrap().1);
                }
                prop_assert_eq!(&bytes[HEADER_SIZE..], &sent[..]);
            } else {
                prop_assert!(*length > 4096, "dropped a frame of {} bytes", length);
                dropped += 1;
            }
        }
        prop_assert!(driver.take().is_none());
        prop_assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
    }

    #[test]
    fn sent_frames_are_intact(
        frames in prop::collection::vec((length(), layout(30_000)), 1..20),
        event_idx in any::<bool>(),
    ) {
        let mut bench = Bench::new(1);
        let bits = if event_idx { modern() } else { base() };
        let mut driver = bench.start(TX, bits);
        for (number, (length, (cuts, indirect))) in frames.iter().enumerate() {
            let bytes = with_header(&frame(number as u64, *length));
            let mut left = u32::try_from(bytes.len()).unwrap();
            let mut pieces = Vec::new();
            for cut in cuts {
                if left > 1 {
                    let part = (*cut).min(left - 1);
                    pieces.push((part, false));
                    left -= part;
                }
            }
            pieces.push((left, false));
            let head = driver.offer(&pieces, &bytes, *indirect);
            driver.notify();
            prop_assert_eq!(receive(&bench.peers[0]), bytes);
            prop_assert_eq!(driver.wait(), (head, vec![]));
        }
        prop_assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
    }

    #[test]
    fn garbage_does_no_harm(
        parts in prop::collection::vec(
            (0_usize..4, 0_u64..600, prop::collection::vec(any::<u8>(), 1..200)), 1..12),
        small in prop::collection::vec((0_u64..128, 0_u64..0x200_0000, 0_u32..0x2_0000, 0_u16..8, 0_u16..130), 0..64),
        heads in prop::collection::vec(0_u16..140, 0..100),
        bits in prop_oneof![Just(modern()), Just(base())],
    ) {
        let mut bench = Bench::new(1);
        let mut drivers: Vec<Driver> = (0..3).map(|index| bench.prepare(index, bits)).collect();
        for driver in &mut drivers {
            // Descriptors that could be right, a ring that names them, and noise over both.
            for (slot, address, length, flags, next) in &small {
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(length.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes.extend(next.to_le_bytes());
                driver.scribble(16 * slot, &bytes);
            }
            for head in &heads {
                driver.publish(*head);
            }
            for (part, offset, bytes) in parts.iter().skip(usize::from(driver.index) * 4) {
                driver.scribble(driver::PARTS[*part] + offset, bytes);
            }
            bench.net.start_queue(driver.index, driver.resources()).unwrap();
        }
        for number in 0..4 {
            bench.deliver(&frame(number, 1000));
            for driver in &mut drivers {
                driver.publish(u16::try_from(number).unwrap());
                driver.kick();
            }
        }
        for _ in 0..20 {
            while try_receive(&bench.peers[0]).is_some() {}
            std::thread::yield_now();
        }
        for index in 0..3 {
            let start = Instant::now();
            prop_assert!(bench.net.stop_queue(index).is_some(), "queue {} died", index);
            prop_assert!(start.elapsed() < Duration::from_secs(2));
        }
    }
}
