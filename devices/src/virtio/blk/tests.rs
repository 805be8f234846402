//! The block device as a driver sees it, on a disk in memory that can fail, delay and hang.
#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers of these tests are small"
)]

mod faults;
mod garbage;
mod holds;
mod requests;
mod resize;
mod stress;
mod suppression;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use paddock_storage::testing::MemoryDisk;
use paddock_storage::{Disk, Engine, RawDisk, RawOptions};
use tempfile::TempDir;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::{Blk, BlkOptions, BlkQueue, Counters, Kind};
use crate::virtio::VirtioDevice;
use crate::virtio::test_driver::{Driver, Guest, Used};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SERIAL: &str = "vol-0123456789";

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

/// A file of 1 MiB as a disk; the file goes with the directory.
fn raw_disk(engine: Engine) -> (TempDir, Arc<RawDisk>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let disk = RawDisk::open(&RawOptions {
        engine,
        ..RawOptions::new(&path)
    });
    (directory, Arc::new(disk.unwrap()))
}

/// A device of one queue with a driver, without a thread.
struct Bench {
    guest: Guest,
    driver: Driver,
    core: BlkQueue,
}

impl Bench {
    fn new(disk: &MemoryDisk, size: u16) -> Self {
        Self::with_features(disk, size, !0)
    }

    /// With those of the device's features that are in `mask`.
    fn with_features(disk: &MemoryDisk, size: u16, mask: u64) -> Self {
        let guest = Guest::new();
        let driver = guest.queue(0, size);
        let features = device(disk, 1).features() & mask;
        let queue = disk.open_queue(size).unwrap();
        let resources = driver.resources(features);
        let core = BlkQueue::new("disk0".into(), 0, resources, SERIAL.as_bytes(), queue);
        Self {
            guest,
            driver,
            core,
        }
    }

    /// Serves until nothing is left to do; the disk must not be stuck.
    fn settle(&mut self) {
        let mut passes = 0;
        while self.core.serve() || self.core.in_flight() > 0 {
            passes += 1;
            assert!(passes < 10_000, "the queue does not settle");
        }
    }

    fn run(&mut self, readable: &[&[u8]], writable: &[usize]) -> Used {
        let head = self.driver.add_bytes(readable, writable);
        self.settle();
        let used = self.driver.try_used().unwrap();
        assert_eq!(used.head, head);
        used
    }

    fn status(&mut self, readable: &[&[u8]], writable: &[usize]) -> u8 {
        *self.run(readable, writable).written.last().unwrap()
    }
}

fn device(disk: &MemoryDisk, queues: u16) -> Blk {
    let options = BlkOptions {
        queues,
        queue_size: 64,
        serial: SERIAL.to_owned(),
        drain_deadline: Duration::from_millis(50),
    };
    Blk::new("disk0", Arc::new(disk.clone()), options).unwrap()
}
