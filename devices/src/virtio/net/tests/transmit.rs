//! Transmit queues.

use super::*;
use paddock_network::MAX_FRAME_SIZE;

fn piece(length: usize) -> (u32, bool) {
    (u32::try_from(length).unwrap(), false)
}

#[test]
fn frames_leave_however_they_are_cut() {
    for features in [modern(), base()] {
        let mut bench = Bench::new(1);
        let mut driver = bench.start(TX, features);
        for indirect in [false, true] {
            for cut in [1, 9, 10, 12, 13, 100, 1000] {
                let bytes = with_header(&frame(cut as u64, 1500));
                let pieces = [piece(cut), piece(100), piece(bytes.len() - cut - 100)];
                let head = driver.offer(&pieces, &bytes, indirect);
                driver.notify();
                assert_eq!(receive(&bench.peers[0]), bytes);
                assert_eq!(driver.wait(), (head, vec![]));
            }
        }
        let counted = bench.counted(|c| c.tx_frames == 14);
        assert_eq!(counted.tx_bytes, 14 * 1500);
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_comes_back() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(TX, modern());
    let longest = HEADER_SIZE + MAX_FRAME_SIZE;
    driver.offer(&[piece(HEADER_SIZE)], &[], false);
    driver.offer(&[piece(1)], &[], false);
    driver.offer(&[piece(longest), piece(1)], &[], true);
    driver.offer(&[piece(100), (10, true)], &[], false);
    driver.offer(&[(100, true)], &[], false);
    let good = with_header(&frame(1, 64));
    driver.offer(&[piece(good.len())], &good, false);
    let most = with_header(&frame(2, MAX_FRAME_SIZE));
    driver.offer(&[piece(longest)], &most, false);
    driver.notify();
    for _ in 0..7 {
        assert!(driver.wait().1.is_empty());
    }
    assert_eq!(receive(&bench.peers[0]), good);
    assert_eq!(receive(&bench.peers[0]), most);
    let counted = bench.counted(|c| c.tx_frames == 2);
    assert_eq!(counted.tx_malformed, 5);
    assert_eq!(bench.interrupts.resets(), Vec::<String>::new());
}

/// Offers frames of 30 kB until the ring is full; returns how many.
fn fill(driver: &mut Driver) -> u64 {
    let mut count = 0;
    while driver.has_room(1, false) && count < 60 {
        let bytes = with_header(&frame(count, 30_000));
        driver.offer(&[piece(bytes.len())], &bytes, false);
        count += 1;
    }
    driver.notify();
    count
}

#[test]
fn a_slow_backend_is_waited_for() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(TX, modern());
    let count = fill(&mut driver);
    std::thread::sleep(Duration::from_millis(50));
    bench.assert_idle("tx0");
    for number in 0..count {
        assert_eq!(
            receive(&bench.peers[0]),
            with_header(&frame(number, 30_000))
        );
    }
    for _ in 0..count {
        driver.wait();
    }
    let counted = bench.counted(|c| c.tx_frames == count);
    assert_eq!(counted.tx_dropped, 0);
}

#[test]
fn a_blocked_queue_stops_at_once_and_keeps_its_frames() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(TX, modern());
    let count = fill(&mut driver);
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    let queue = bench.net.stop_queue(TX).unwrap();
    assert!(start.elapsed() < Duration::from_millis(500));
    bench.net.start_queue(TX, driver.resume(queue)).unwrap();
    for number in 0..count {
        assert_eq!(
            receive(&bench.peers[0]),
            with_header(&frame(number, 30_000))
        );
    }
}

#[test]
fn a_stuck_backend_does_not_keep_the_guests_buffers() {
    let mut bench = Bench::new(1);
    let mut driver = bench.start(TX, modern());
    let count = fill(&mut driver);
    for _ in 0..count {
        driver.wait();
    }
    let counted = bench.counted(|c| c.tx_frames + c.tx_dropped == count);
    assert!(counted.tx_dropped > 0);
    // It recovers.
    while try_receive(&bench.peers[0]).is_some() {}
    let bytes = with_header(&frame(99, 100));
    driver.offer(&[piece(bytes.len())], &bytes, false);
    driver.notify();
    assert_eq!(receive(&bench.peers[0]), bytes);
}

#[test]
fn no_kick_and_no_interrupt_is_wasted() {
    let mut bench = Bench::new(1);
    let mut driver = bench.prepare(TX, modern());
    let bytes = with_header(&frame(1, 100));
    for _ in 0..60 {
        driver.offer(&[piece(bytes.len())], &bytes, false);
    }
    // Available before the start: served without a kick.
    bench.net.start_queue(TX, driver.resources()).unwrap();
    for _ in 0..60 {
        driver.wait();
    }
    assert!(bench.interrupts.of_queue(TX) <= 3);
}
