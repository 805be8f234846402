//! A disk whose failed requests are held: stops, resets and the device's end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use paddock_storage::hold::{HoldingDisk, News, Policy};
use paddock_storage::testing::Fault;
use paddock_storage::{Disk, IoError};

const SIZE: usize = 64 * 512;
const EIO: Fault = Fault::Error(IoError::Os(libc::EIO));

/// A running device whose write of sector 1 is held.
fn held() -> (MemoryDisk, Arc<HoldingDisk>, Blk, Guest, Driver) {
    let inner = MemoryDisk::new(SIZE);
    inner.script([EIO]);
    let stops = Arc::new(AtomicUsize::new(0));
    let heard = Arc::clone(&stops);
    let listener = Box::new(move |news| {
        if matches!(news, News::Stopped(_)) {
            heard.fetch_add(1, Ordering::SeqCst);
        }
    });
    let disk = HoldingDisk::new(Arc::new(inner.clone()), Policy::Stop, None, listener);
    let disk = Arc::new(disk);
    let options = BlkOptions {
        queue_size: 64,
        drain_deadline: Duration::from_secs(30),
        ..BlkOptions::default()
    };
    let mut blk = Blk::new("disk0", Arc::clone(&disk) as Arc<dyn Disk>, options).unwrap();
    let guest = Guest::new();
    let mut driver = guest.queue(0, 16);
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    driver.add_bytes(&[&header(VIRTIO_BLK_T_OUT, 1), &[7; 512]], &[1]);
    driver.kick();
    let start = Instant::now();
    while stops.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing is held");
        std::thread::yield_now();
    }
    (inner, disk, blk, guest, driver)
}

#[test]
fn what_is_held_over_a_pause_is_answered_after_it() {
    let (disk, holding, mut blk, guest, mut driver) = held();
    let start = Instant::now();
    let queue = blk.stop_queue(0).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "not the deadline"
    );
    assert!(!blk.is_quiet());
    // While it is stopped and after it has started, both.
    holding.resume().unwrap();
    blk.start_queue(0, driver.resources_with(queue, blk.features()))
        .unwrap();
    assert_eq!(driver.wait_used().written, [OK]);
    assert_eq!(disk.contents()[512], 7);
    assert!(blk.stop_queue(0).is_some() && blk.is_quiet());
    assert_eq!(guest.broken(), None);
}

#[test]
fn what_is_held_at_a_reset_never_reaches_the_disk() {
    let (disk, holding, mut blk, guest, mut old) = held();
    blk.stop_queue(0).unwrap();
    blk.reset();
    assert!(
        blk.is_quiet(),
        "a reset does not wait for a disk that is held"
    );
    assert_eq!(holding.status().requests, 0);
    let mut driver = guest.queue(0, 16);
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    // The disk is still to be resumed: what is new is held.
    driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, 1)], &[512, 1]);
    driver.kick();
    holding.resume().unwrap();
    let used = driver.wait_used().written;
    assert_eq!((used[0], used.last()), (0, Some(&OK)));
    assert!(old.try_used().is_none());
    assert_eq!(disk.contents()[512], 0);
}

#[test]
fn a_device_goes_with_what_it_holds() {
    let (disk, holding, blk, _guest, _driver) = held();
    drop(blk);
    assert_eq!((disk.open_queues(), holding.status().requests), (0, 0));
}

/// An image, but for a queue that is opened while the script has none.
#[derive(Debug)]
struct FailsOnce {
    script: MemoryDisk,
    raw: Arc<RawDisk>,
}

impl Disk for FailsOnce {
    fn capabilities(&self) -> paddock_storage::Capabilities {
        self.raw.capabilities()
    }

    fn open_queue(&self, depth: u16) -> std::io::Result<Box<dyn paddock_storage::DiskQueue>> {
        match self.script.open_queues() {
            0 => self.script.open_queue(depth),
            _ => self.raw.open_queue(depth),
        }
    }
}

#[test]
fn a_worker_that_waits_in_the_ring_hears_of_a_resume() {
    for engine in [Engine::Threads, Engine::Auto] {
        let (_directory, raw) = raw_disk(engine);
        let script = MemoryDisk::new(1 << 20);
        let other = script.open_queue(1).unwrap();
        let inner = Arc::new(FailsOnce {
            script: script.clone(),
            raw,
        });
        let policy = Policy::Stop;
        let holding = Arc::new(HoldingDisk::new(inner, policy, None, Box::new(|_| {})));
        let disk = Arc::clone(&holding) as Arc<dyn Disk>;
        let mut blk = Blk::new("disk0", disk, BlkOptions::default()).unwrap();
        let guest = Guest::new();
        let mut driver = guest.queue(0, 16);
        blk.start_queue(0, driver.resources(blk.features()))
            .unwrap();
        // Another queue of the same disk fails.
        drop(other);
        let mut failing = holding.open_queue(4).unwrap();
        assert_eq!(script.open_queues(), 1);
        script.script([EIO]);
        let operation = paddock_storage::Operation::Flush;
        failing.submit(paddock_storage::Request { tag: 0, operation });
        failing.kick();
        failing.reap(&mut Vec::new());
        assert!(holding.status().stopped);
        driver.add_bytes(&[&header(VIRTIO_BLK_T_OUT, 1), &[7; 512]], &[1]);
        driver.kick();
        let start = Instant::now();
        while holding.status().requests < 2 {
            assert!(start.elapsed() < Duration::from_secs(20), "{holding:?}");
            std::thread::yield_now();
        }
        assert!(driver.try_used().is_none());
        holding.resume().unwrap();
        assert_eq!(driver.wait_used().written, [OK]);
        assert!(blk.stop_queue(0).is_some() && blk.is_quiet());
    }
}
