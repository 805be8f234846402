//! What takes a look inside.

use super::*;
use crate::{Disk, RawDisk, RawOptions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn open() -> (tempfile::NamedTempFile, UringQueue) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let disk = RawDisk::open(&RawOptions::new(file.path())).unwrap();
    assert_eq!(disk.size(), 4096);
    let queue = UringQueue::new(Arc::clone(&disk.image), 4).unwrap();
    (file, queue)
}

#[test]
fn a_watch_that_the_kernel_ends_is_asked_for_again() {
    let (_file, mut queue) = open();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(queue.watch(crate::fd::borrow(&event), 3).unwrap());
    for _ in 0..3 {
        event.write(1).unwrap();
        assert_eq!(queue.wait(None).unwrap(), 1 << 3);
        let end = opcode::PollRemove::new(queue.watches.armed()[0]).build();
        assert!(queue.push_extra(end, NOBODY));
        queue.turn(Some(Duration::ZERO)).unwrap();
        while !queue.watches.armed().is_empty() {
            queue.collect();
            queue.turn(Some(Duration::from_millis(1))).unwrap();
        }
        // It was written to before, which the kernel tells anew.
        assert_eq!(queue.wait(None).unwrap(), 1 << 3);
    }
}

#[test]
fn a_ring_that_fails_says_so_once_and_answers_everything() {
    let (_file, mut queue) = open();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    assert!(queue.watch(crate::fd::borrow(&event), 3).unwrap());
    queue.die(libc::EBADF);
    let buffer = crate::Buffer::zeroed(512);
    queue.submit(Request {
        tag: 9,
        operation: crate::Operation::Read { offset: 0, buffer },
    });
    let error = queue.wait(None).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    queue.kick();
    let mut done = Vec::new();
    queue.reap(&mut done);
    assert_eq!(done[0].result, Err(IoError::Os(libc::EBADF)));
    assert_eq!(queue.in_flight(), 0);
    assert!(!queue.watch(crate::fd::borrow(&event), 4).unwrap());
}
