//! A disk that fails, is late, or does not answer at all.

use super::*;
use paddock_storage::IoError;
use paddock_storage::testing::Fault;

const SIZE: usize = 64 * 512;

#[test]
fn host_errors_become_the_guests_io_errors() {
    let disk = MemoryDisk::new(SIZE);
    let mut bench = Bench::new(&disk, 16);
    for (error, status) in [
        (IoError::Os(libc::EIO), IOERR),
        (IoError::Os(libc::ENOSPC), IOERR),
        (IoError::Unsupported, UNSUPP),
    ] {
        disk.script([Fault::Error(error), Fault::Error(error)]);
        assert_eq!(
            bench.status(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]),
            status
        );
        assert_eq!(
            bench.status(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]),
            status
        );
    }
    assert_eq!(bench.status(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]), OK);
    assert_eq!(bench.guest.broken(), None);
}

#[test]
fn stopping_waits_for_late_requests_and_gives_the_ring_with_their_answers() {
    let disk = MemoryDisk::new(SIZE);
    disk.script([Fault::Delay(5), Fault::Delay(3)]);
    let mut blk = device(&disk, 1);
    let guest = Guest::new();
    let mut driver = guest.queue(0, 16);
    for sector in 0..3 {
        driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, sector)], &[512, 1]);
    }
    // Available before the start, and no kick.
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    for _ in 0..3 {
        assert_eq!(driver.wait_used().written.last(), Some(&OK));
    }
    disk.script([Fault::Delay(20)]);
    driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, 9)], &[512, 1]);
    driver.kick();
    // It is in the ring or at the disk; neither way is it lost.
    let queue = blk.stop_queue(0).unwrap();
    assert!(blk.stop_queue(0).is_none() && blk.is_quiet());
    assert_eq!(disk.open_queues(), 0);
    let again = driver.resources_with(queue, blk.features());
    blk.start_queue(0, again).unwrap();
    assert_eq!(driver.wait_used().written.last(), Some(&OK));
    blk.stop_queue(0).unwrap();
    assert!(driver.try_used().is_none());
}

/// A running device whose disk sits on a write.
fn stuck() -> (MemoryDisk, Blk, Guest, Driver) {
    let disk = MemoryDisk::new(SIZE);
    disk.script([Fault::Stuck]);
    let mut blk = device(&disk, 2);
    let guest = Guest::new();
    let mut driver = guest.queue(0, 16);
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    driver.add_bytes(&[&header(VIRTIO_BLK_T_OUT, 1), &[7; 512]], &[1]);
    driver.add_bytes(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    driver.kick();
    driver.wait_used();
    (disk, blk, guest, driver)
}

#[test]
fn a_paused_queue_takes_up_its_stuck_requests_again() {
    let (disk, mut blk, guest, mut driver) = stuck();
    let queue = blk.stop_queue(0).unwrap();
    assert!(!blk.is_quiet());
    blk.start_queue(0, driver.resources_with(queue, blk.features()))
        .unwrap();
    assert!(blk.is_quiet(), "it runs");
    // It serves others meanwhile.
    driver.add_bytes(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    driver.kick();
    driver.wait_used();
    disk.release();
    // The disk in memory completes when it is asked, which the next request does.
    driver.add_bytes(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    driver.kick();
    assert_eq!(driver.wait_used().written, [OK]);
    assert_eq!(driver.wait_used().written, [OK]);
    assert_eq!(disk.contents()[512], 7);
    assert!(blk.stop_queue(0).is_some() && blk.is_quiet());
    assert_eq!(guest.broken(), None);
}

#[test]
fn stopping_again_waits_again_and_gives_the_ring_with_the_answer() {
    let (disk, mut blk, _guest, mut driver) = stuck();
    let first = blk.stop_queue(0).unwrap();
    assert!(driver.try_used().is_none(), "the driver is told nothing");
    disk.release();
    let second = blk.stop_queue(0).unwrap();
    assert!(blk.is_quiet());
    use virtio_queue::QueueT;
    assert_eq!(first.next_used() + 1, second.next_used());
    assert_eq!(driver.wait_used().written, [OK]);
}

#[test]
fn a_stuck_disk_holds_a_reset_up_for_one_deadline_and_not_for_one_a_queue() {
    const QUEUES: u16 = 5;
    let disk = MemoryDisk::new(SIZE);
    let options = BlkOptions {
        queues: QUEUES,
        drain_deadline: Duration::from_secs(1),
        ..BlkOptions::default()
    };
    let mut blk = Blk::new("disk0", Arc::new(disk.clone()), options).unwrap();
    let guest = Guest::new();
    for index in 0..QUEUES {
        disk.script([Fault::Stuck]);
        let mut driver = guest.queue(index, 16);
        // The flush comes back, so the write is at the disk.
        driver.add_bytes(&[&header(VIRTIO_BLK_T_OUT, 1), &[7; 512]], &[1]);
        blk.start_queue(index, driver.resources(blk.features()))
            .unwrap();
        driver.add_bytes(&[&header(VIRTIO_BLK_T_FLUSH, 0)], &[1]);
        driver.kick();
        driver.wait_used();
    }
    let start = std::time::Instant::now();
    for index in 0..QUEUES {
        assert!(blk.stop_queue(index).is_some());
    }
    let took = start.elapsed();
    assert!((1..4).contains(&took.as_secs()), "{took:?}");
    blk.reset();
    assert!(!blk.is_quiet());
    disk.release();
    blk.reset();
    assert!(blk.is_quiet());
}

#[test]
fn after_a_reset_nothing_is_served_until_the_old_requests_are_done() {
    let (disk, mut blk, guest, mut old) = stuck();
    blk.stop_queue(0).unwrap();
    blk.reset();
    assert!(!blk.is_quiet());
    // Another queue would be as dangerous: the late write could undo what it wrote.
    for index in [0, 1] {
        let driver = guest.queue(index, 16);
        let error = blk
            .start_queue(index, driver.resources(blk.features()))
            .unwrap_err();
        assert_eq!(error.action, format!("starting queue {index}"));
        assert!(error.source.to_string().contains("before the reset"));
    }
    assert!(blk.stop_queue(0).is_none());
    disk.release();
    // Asking the device for a reset again has it look; a real disk's completion event does that by itself.
    blk.reset();
    assert!(blk.is_quiet());
    assert!(
        old.try_used().is_none(),
        "nobody waits for the orphan's answer"
    );
    let mut driver = guest.queue(0, 16);
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, 1)], &[512, 1]);
    driver.kick();
    assert_eq!(driver.wait_used().written[0], 7);
}

#[test]
fn another_ring_does_not_inherit_stuck_requests() {
    let (disk, mut blk, guest, _old) = stuck();
    blk.stop_queue(0).unwrap();
    let driver = guest.queue(0, 16);
    let error = blk
        .start_queue(0, driver.resources(blk.features()))
        .unwrap_err();
    assert!(error.source.to_string().contains("another ring"));
    disk.release();
    assert!(blk.stop_queue(0).is_some());
}

#[test]
fn a_device_with_a_stuck_disk_can_be_dropped() {
    let (_disk, blk, _guest, _driver) = stuck();
    let start = std::time::Instant::now();
    drop(blk);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_queue_that_does_not_exist_or_runs_cannot_be_started() {
    let disk = MemoryDisk::new(SIZE);
    let mut blk = device(&disk, 1);
    let guest = Guest::new();
    let driver = guest.queue(0, 16);
    assert!(blk.stop_queue(0).is_none() && blk.stop_queue(7).is_none());
    blk.start_queue(0, driver.resources(0)).unwrap();
    assert!(blk.start_queue(0, driver.resources(0)).is_err());
    assert!(blk.start_queue(1, driver.resources(0)).is_err());
    assert!(blk.stop_queue(0).is_some());
}

#[test]
fn options_that_cannot_be_are_named() {
    let new = |queues, queue_size, serial: &str| {
        let options = BlkOptions {
            queues,
            queue_size,
            serial: serial.to_owned(),
            ..BlkOptions::default()
        };
        let disk = Arc::new(MemoryDisk::new(SIZE));
        Blk::new("disk0", disk, options).map(|_| ())
    };
    assert_eq!(new(1, 4, "12345678901234567890"), Ok(()));
    assert_eq!(new(256, 1024, ""), Ok(()));
    for (queues, size, serial, word) in [
        (0, 256, "", "queues"),
        (257, 256, "", "queues"),
        (1, 0, "", "queue size"),
        (1, 100, "", "queue size"),
        (1, 2048, "", "queue size"),
        (1, 256, "123456789012345678901", "serial"),
        (1, 256, "tab\t", "serial"),
        (1, 256, "ä", "serial"),
    ] {
        let message = new(queues, size, serial).unwrap_err().to_string();
        assert!(
            message.contains(word) && message.contains("disk0"),
            "{message}"
        );
    }
}
