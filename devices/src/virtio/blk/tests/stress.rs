//! Drivers on several threads against real files: no notification is lost, in any combination of engine and notification rule.

use super::*;

const QUEUES: u16 = 3;
const ROUNDS: u32 = 500;

/// Each driver writes and reads back its own part of the disk, with ever different numbers of requests in flight; it only
/// notifies when it has to, and waits for every answer.
fn drive(mut driver: Driver, index: u16) {
    let mut next = 0_u32;
    for round in 0..ROUNDS {
        let batch = 1 + (round * 7 + u32::from(index)) % 6;
        for _ in 0..batch {
            let sector = u64::from(index) * 256 + u64::from(next % 64);
            let write = header(VIRTIO_BLK_T_OUT, sector);
            driver.add_bytes(&[&write, &next.to_le_bytes().repeat(128)], &[1]);
            next += 1;
        }
        driver.kick();
        for _ in 0..batch {
            assert_eq!(driver.wait_used().written, [OK]);
        }
        let last = next - 1;
        let sector = u64::from(index) * 256 + u64::from(last % 64);
        driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, sector)], &[512, 1]);
        driver.kick();
        let used = driver.wait_used();
        assert_eq!(used.written[..4], last.to_le_bytes());
        assert_eq!(used.written[512], OK);
    }
    assert!(driver.interrupts() > 0);
}

fn stress(engine: Engine, mask: u64) {
    let (_directory, disk) = raw_disk(engine);
    let options = BlkOptions {
        queues: QUEUES,
        queue_size: 32,
        ..BlkOptions::default()
    };
    let mut blk = Blk::new("disk0", disk, options).unwrap();
    let features = blk.features() & mask;
    let drivers: Vec<_> = (0..QUEUES)
        .map(|index| {
            // Guest RAM is never freed by the driver, so each has its own.
            let driver = Guest::new().queue(index, 32);
            blk.start_queue(index, driver.resources(features)).unwrap();
            std::thread::spawn(move || drive(driver, index))
        })
        .collect();
    for driver in drivers {
        driver.join().unwrap();
    }
    for index in 0..QUEUES {
        assert!(blk.stop_queue(index).is_some());
    }
}

#[test]
fn no_notification_is_lost_with_io_uring() {
    stress(Engine::IoUring, !0);
    stress(Engine::IoUring, !(1 << VIRTIO_RING_F_EVENT_IDX));
}

#[test]
fn no_notification_is_lost_with_threads() {
    stress(Engine::Threads, !0);
    stress(Engine::Threads, !(1 << VIRTIO_RING_F_EVENT_IDX));
}

#[test]
fn queues_can_be_stopped_and_started_under_load() {
    let (_directory, disk) = raw_disk(Engine::default());
    let mut blk = Blk::new("disk0", disk, BlkOptions::default()).unwrap();
    let driver = Guest::new().queue(0, 32);
    let resources = |queue| driver.resources_with(queue, blk.features());
    let mut first = driver.resources(blk.features());
    let spare: Vec<_> = (0..50)
        .map(|_| resources(virtio_queue::Queue::default()))
        .collect();
    let thread = std::thread::spawn(move || drive(driver, 0));
    for mut next in spare {
        std::mem::swap(&mut first, &mut next);
        blk.start_queue(0, next).unwrap();
        std::thread::sleep(Duration::from_millis(3));
        first.queue = blk.stop_queue(0).unwrap();
    }
    blk.start_queue(0, first).unwrap();
    thread.join().unwrap();
    assert!(blk.stop_queue(0).is_some());
}
