//! Receive queues.

use super::*;

#[test]
fn frames_fill_as_many_chains_as_they_need() {
    for features in [modern(), base() | features(&[VIRTIO_NET_F_MRG_RXBUF])] {
        let mut bench = Bench::new(1);
        let mut driver = bench.start(RX, features);
        for _ in 0..SIZE / 2 {
            driver.offer(&[(700, true), (836, true)], &[], false);
        }
        driver.notify();
        for (number, length) in [14, 60, 1524, 1525, 9000, 60_000].into_iter().enumerate() {
            let sent = frame(number as u64, length);
            bench.deliver(&sent);
            assert_eq!(collect(&mut driver), sent);
        }
        let counted = bench.counted(|c| c.rx_frames == 6);
        assert_eq!(counted.rx_bytes, 14 + 60 + 1524 + 1525 + 9000 + 60_000);
        assert_eq!(counted.rx_dropped + counted.rx_errors, 0);
    }
}

#[test]
fn without_merging_a_frame_fits_one_chain_or_is_dropped() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, base());
    for _ in 0..4 {
        driver.offer(&[(12, true), (1514, true)], &[], true);
    }
    driver.notify();
    bench.deliver(&frame(1, 1514));
    bench.deliver(&frame(2, 1515));
    bench.deliver(&frame(3, 40_000));
    bench.deliver(&frame(4, 100));
    let (_, first) = driver.wait();
    assert_eq!(first[10..12], [1, 0], "num_buffers");
    assert_eq!(first[HEADER_SIZE..], frame(1, 1514));
    let (_, second) = driver.wait();
    assert_eq!(second[HEADER_SIZE..], frame(4, 100));
    bench.counted(|c| c.rx_dropped == 2);
}

#[test]
fn without_buffers_the_backend_is_left_alone_and_nothing_is_lost() {
    for features in [modern(), base()] {
        let mut bench = Bench::new(1);
        let mut driver = bench.start(RX, features);
        for number in 0..10 {
            bench.deliver(&frame(number, 500));
        }
        bench.assert_idle("rx0");
        for number in 0..10 {
            driver.offer(&[(1600, true)], &[], false);
            driver.notify();
            let (_, bytes) = driver.wait();
            assert_eq!(bytes[HEADER_SIZE..], frame(number, 500));
        }
        assert_eq!(bench.net.counters().values().rx_dropped, 0);
    }
}

#[test]
fn a_frame_that_waits_for_buffers_arrives_whole() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    driver.offer(&[(1000, true)], &[], false);
    driver.offer(&[(100, true), (100, true)], &[], false);
    driver.notify();
    let long = frame(7, 5000);
    bench.deliver(&long);
    bench.deliver(&frame(8, 60));
    std::thread::sleep(Duration::from_millis(20));
    assert!(driver.take().is_none());
    for _ in 0..6 {
        driver.offer(&[(1500, true)], &[], false);
    }
    driver.notify();
    assert_eq!(collect(&mut driver), long);
    assert_eq!(collect(&mut driver), frame(8, 60));
    assert_eq!(bench.net.counters().values().rx_dropped, 0);
}

#[test]
fn a_frame_for_which_no_buffers_come_is_dropped_whole() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    driver.offer(&[(1000, true)], &[], false);
    driver.notify();
    bench.deliver(&frame(1, 5000));
    bench.deliver(&frame(2, 80));
    // No kick: the small one comes once the long one was given up.
    assert_eq!(collect(&mut driver), frame(2, 80));
    bench.counted(|c| c.rx_dropped == 1);
}

#[test]
fn chains_too_small_for_a_header_go_straight_back() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    driver.offer(&[(11, true)], &[], false);
    driver.offer(&[(64, false)], &[], false);
    driver.offer(&[(2000, true)], &[], false);
    driver.notify();
    bench.deliver(&frame(1, 100));
    assert!(driver.wait().1.is_empty());
    assert!(driver.wait().1.is_empty());
    assert_eq!(collect(&mut driver), frame(1, 100));
}

#[test]
fn a_chain_of_too_many_pieces_is_used_as_far_as_it_goes() {
    let mut bench = Bench::new(1);
    let mut driver = bench.prepare(RX, modern());
    // Pieces of one byte that do not touch, so that they cannot be joined: every other byte of a buffer.
    let table: Vec<u8> = (0..1024_u64)
        .flat_map(|i| {
            let address = 0xa0_0000 + 2 * i;
            let flags: u16 = if i == 1023 { 2 } else { 3 };
            let next = u16::try_from((i + 1) % 1024).unwrap();
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes
        })
        .collect();
    driver.scribble(0xb0_0000, &table);
    let mut indirect = 0xb0_0000_u64.to_le_bytes().to_vec();
    indirect.extend((16 * 1024_u32).to_le_bytes());
    indirect.extend([4, 0, 0, 0]);
    driver.scribble(16 * 100, &indirect);
    driver.publish(100);
    driver.offer(&[(2000, true)], &[], false);
    bench.net.start_queue(RX, driver.resources()).unwrap();
    bench.deliver(&frame(1, 900));
    bench.counted(|c| c.rx_frames == 1);
    assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
}

#[test]
fn frames_without_a_whole_header_are_errors() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    driver.offer(&[(2000, true)], &[], false);
    driver.notify();
    rustix::net::send(&bench.peers[0], &[1; 11], SendFlags::empty()).unwrap();
    bench.deliver(&frame(1, 100));
    assert_eq!(collect(&mut driver), frame(1, 100));
    bench.counted(|c| c.rx_errors == 1);
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(RX, modern());
    for _ in 0..60 {
        driver.offer(&[(1500, true)], &[], false);
    }
    driver.notify();
    for number in 0..50 {
        bench.deliver(&frame(number, 1000));
        assert_eq!(collect(&mut driver), frame(number, 1000));
        if number % 5 == 0 {
            let queue = bench.net.stop_queue(RX).unwrap();
            assert!(bench.net.stop_queue(RX).is_none());
            bench.net.start_queue(RX, driver.resume(queue)).unwrap();
        }
    }
    assert!(driver.take().is_none());
}

#[test]
fn interrupts_are_not_sent_to_who_does_not_want_them() {
    let mut bench = Bench::new(1);
    let mut driver = bench.prepare(RX, base());
    driver.scribble(driver::PARTS[1], &[1, 0]); // VRING_AVAIL_F_NO_INTERRUPT
    driver.offer(&[(2000, true)], &[], false);
    bench.net.start_queue(RX, driver.resources()).unwrap();
    bench.deliver(&frame(1, 100));
    eventually("the frame", || driver.take());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.interrupts.of_queue(RX), 0);
}
