//! A disk that grows under its driver.

use std::sync::atomic::Ordering;

use super::*;
use crate::virtio::blk::ConfigBell;

fn changes(guest: &Guest) -> u64 {
    guest.interrupts.config.load(Ordering::Relaxed)
}

fn capacity(blk: &Blk) -> u64 {
    let mut bytes = [0; 8];
    blk.read_config(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn the_driver_is_told_of_a_new_capacity_and_can_use_it() {
    let (_directory, disk) = raw_disk(Engine::Auto);
    let bell = Arc::new(ConfigBell::default());
    let backend = Arc::clone(&disk) as Arc<dyn Disk>;
    let blk = Blk::new("disk0", backend, BlkOptions::default()).unwrap();
    let mut blk = blk.ringing_by(Arc::clone(&bell));
    let guest = Guest::new();
    bell.ring();
    assert_eq!(changes(&guest), 0, "there is no driver yet");
    let mut driver = guest.queue(0, 16);
    blk.start_queue(0, driver.resources(blk.features()))
        .unwrap();
    assert_eq!(capacity(&blk), 2048);
    let mut status = |sector| {
        driver.add_bytes(&[&header(VIRTIO_BLK_T_IN, sector)], &[512, 1]);
        driver.kick();
        driver.wait_used().written.pop()
    };
    assert_eq!(status(2048), Some(IOERR));
    disk.resize(Some(2 << 20)).unwrap();
    bell.ring();
    assert_eq!((changes(&guest), capacity(&blk)), (1, 4096));
    assert_eq!(status(2048), Some(OK));
    blk.stop_queue(0).unwrap();
    blk.reset();
    bell.ring();
    assert_eq!(changes(&guest), 1);
}
